"""Which source files a result depends on: found by reading import statements, blind to comments and layout."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from lib import sources

ROOT = Path(__file__).parents[1]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """write(name=code) makes modules of a package `lib` in an empty folder; tasks__gsm8k is lib/tasks/gsm8k.py."""
    monkeypatch.setattr(sources, "LIB", tmp_path)

    def write(**modules):
        for name, code in modules.items():
            file = tmp_path / (name.replace("__", "/", 1) + ".py" if name != "init" else "__init__.py")
            file.parent.mkdir(exist_ok=True)
            file.write_text(code)

    return write


def function_of(module):
    """A function that says it was defined in `module`."""

    def train():
        pass

    train.__module__ = module
    return train


# --- what code imports ---


@pytest.mark.parametrize(
    "code",
    [
        "import lib.a",
        "import lib.a as b, os",
        "from lib import a",
        "from lib import a as b",
        "from lib.a import x, y",
        "def f():\n    from lib import a",
        "class C:\n    def f(self):\n        if self:\n            import lib.a",
        "try:\n    import lib.a\nexcept ImportError:\n    pass",
        "f = lambda: 1\nasync def g():\n    with h:\n        from lib.a import x",
    ],
)
def test_every_form_of_import_is_found_at_any_depth(package, code):
    package(a="")
    assert sources.imports(code) == {"lib.a"}


@pytest.mark.parametrize("code", ["import os", "from json import a", "a = 'import lib.a'", "# import lib.a", "lib.a"])
def test_what_is_no_import_of_this_package_is_not_found(package, code):
    package(a="")
    assert sources.imports(code) == set()


def test_names_imported_from_a_module_are_not_taken_for_modules(package):
    package(a="", tasks____init__="", tasks__gsm8k="")
    code = "from lib.a import read\nfrom lib.tasks import gsm8k, load\nfrom lib import missing"
    assert sources.imports(code) == {"lib.a", "lib.tasks", "lib.tasks.gsm8k"}


def test_the_closure_follows_imports_of_imports_lazy_ones_and_circles(package):
    package(a="from lib import b", b="def f():\n    from lib import c", c="import lib.a", other="")
    assert list(sources.closure("from lib import a", set())) == ["lib.a", "lib.b", "lib.c"]


def test_a_package_is_a_dependency_of_who_imports_from_it(package):
    package(tasks____init__="SOURCES = 1", tasks__gsm8k="from lib import problems", problems="")
    found = sources.closure("from lib.tasks import gsm8k", set())
    assert list(found) == ["lib.problems", "lib.tasks", "lib.tasks.gsm8k"]


def test_what_is_left_out_is_left_out_with_all_it_contains_and_imports(package):
    package(a="from lib import lessons", lessons____init__="", lessons__check="from lib import b", b="")
    assert list(sources.closure("from lib import a\nfrom lib.lessons import check", {"lib.lessons"})) == ["lib.a"]


def test_nothing_is_imported_or_run(package):
    package(a="raise SystemExit('this ran')")
    assert list(sources.closure("from lib import a", set())) == ["lib.a"]


# --- what counts as a change ---

CODE = 'RATE = 0.1\n\n\ndef f(x):\n    return x + RATE\n\n\nclass C:\n    name = "c"\n'


@pytest.mark.parametrize(
    "same",
    [
        "# a comment\n" + CODE,
        '"""A docstring."""\n' + CODE,
        CODE.replace("    return x", '    """A docstring."""\n    # and why\n    return x'),
        CODE.replace("    name", '    """A docstring."""\n\n    name'),
        CODE.replace("x + RATE", "(\n        x\n        + RATE\n    )"),
        CODE.replace('"c"', "'c'").replace("\n\n\n", "\n"),
    ],
)
def test_comments_docstrings_and_layout_leave_the_hash_alone(same):
    assert same != CODE
    assert sources.code_hash(same) == sources.code_hash(CODE)


@pytest.mark.parametrize(
    "other",
    [
        CODE.replace("0.1", "0.2"),
        CODE.replace("x + RATE", "x - RATE"),
        CODE.replace('"c"', '"d"'),
        CODE.replace("def f(x)", "def f(x, y=0)"),
        CODE.replace("return x", "yield x"),
        CODE.replace("    return x", '    print("not a docstring")\n    return x'),
        CODE.replace("RATE = 0.1", "RATE = 0.1\nf = None"),
        CODE.replace('    name = "c"', '    name = """c\n"""'),
    ],
)
def test_a_changed_constant_operator_or_signature_changes_the_hash(other):
    assert other != CODE
    assert sources.code_hash(other) != sources.code_hash(CODE)


def test_the_hash_of_a_file_is_the_same_in_another_process():
    code = f"from lib import sources; print(sources.code_hash({CODE!r}))"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == sources.code_hash(CODE)


def test_a_digest_is_of_the_value_not_of_the_order_of_keys():
    assert sources.digest({"a": 1, "b": [2]}) == sources.digest({"b": [2], "a": 1})
    assert len({sources.digest(value) for value in ([1, 2], [2, 1], ["1", 2], [1, [2]], {}, [], None, "")}) == 8


# --- what a function and what a notebook depend on ---


def test_a_function_depends_on_its_module_and_its_imports_but_not_on_machinery_and_onlookers(package):
    package(
        method="from lib import stage, models, plots, evaluation\nfrom lib.errors import InputError",
        models="",
        stage="from lib import problems",
        problems="",
        errors="",
        plots="from lib import fonts",
        fonts="",
        evaluation="",
    )
    assert list(sources.of_function(function_of("lib.method"))) == ["lib.method", "lib.models"]


def test_a_function_of_an_onlooker_depends_on_that_one_and_on_no_other(package):
    package(evaluation="from lib import plots, answers", plots="", answers="from lib import evaluation")
    assert list(sources.of_function(function_of("lib.evaluation"))) == ["lib.answers", "lib.evaluation"]


def test_a_notebook_depends_on_onlookers_too_but_not_on_machinery(package):
    package(plots="", stage="", method="", lessons____init__="", lessons__check="")
    cells = ["from lib import plots, stage", "x = 1", "from lib.lessons.check import check\nimport lib.method"]
    assert list(sources.of_cells(cells)) == ["lib.method", "lib.plots"]


def test_the_names_left_out_are_modules_that_exist():
    assert {name for name in sources.MACHINERY | sources.ONLOOKERS if not sources.module_file(name)} == set()


def test_training_depends_on_the_model_but_not_on_the_plots():
    from lib import sft

    found = set(sources.of_function(sft.train))
    assert {"lib.sft", "lib.models", "lib.prompts", "lib.problems"} <= found
    assert not found & (sources.MACHINERY | sources.ONLOOKERS)


# --- rules by which the closure sees everything ---


def test_the_package_itself_is_no_dependency_of_anything(package):
    package(init="from lib import b", a="import lib", b="")
    assert list(sources.closure("import lib\nfrom lib import a", set())) == ["lib.a"]


def test_the_package_file_holds_nothing_but_a_docstring():
    tree = ast.parse((ROOT / "lib" / "__init__.py").read_text())
    assert ast.get_docstring(tree) and len(tree.body) == 1


def test_no_module_of_lib_uses_a_relative_or_a_star_import():
    for file in (ROOT / "lib").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0 and node.names[0].name != "*", f"{file}, line {node.lineno}"
