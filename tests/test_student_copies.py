"""Student copies: only exercises differ, they run from top to bottom, and nobody's work is overwritten."""

import ast
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lib import pipeline
from lib.errors import InputError
from lib.lessons import __main__ as command
from lib.lessons import build
from lib.lessons import check as lessons

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    out = tmp_path_factory.mktemp("copies") / "lessons"
    build.build(out)
    return out


@pytest.fixture(autouse=True)
def lenient(monkeypatch):
    monkeypatch.delenv("WORKBENCH_STRICT", raising=False)


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def code(path):
    """(source without Jupyter's own commands, tags) of the code cells."""
    return [
        (re.sub(r"(?m)^%.*$", "", "".join(cell["source"])), cell["metadata"].get("tags", []))
        for cell in read(path)["cells"]
        if cell["cell_type"] == "code"
    ]


# --- what a copy is ---


@every_notebook
def test_a_copy_differs_from_its_notebook_in_exercise_cells_alone(path, copies):
    mine, ours = read(copies / path.name), read(path)
    assert {k: v for k, v in mine.items() if k != "cells"} == {k: v for k, v in ours.items() if k != "cells"}
    for copied, cell in zip(mine["cells"], ours["cells"], strict=True):
        exercise = "exercise" in cell["metadata"].get("tags", [])
        assert (copied != cell) == exercise
        assert {k: v for k, v in copied.items() if k != "source"} == {k: v for k, v in cell.items() if k != "source"}
    assert "SOLUTION" not in (copies / path.name).read_text(encoding="utf-8")


@every_notebook
def test_a_copy_is_the_notebook_to_the_byte_but_for_the_lines_of_solutions(path, copies):
    """Put the solutions back in place of the stubs, in the files' text: the notebook comes out."""
    text = (copies / path.name).read_text(encoding="utf-8")
    solutions = re.findall(
        r'^    "( *)### BEGIN SOLUTION\\n",\n(?:.*\n)*?^    " *### END SOLUTION.*$', path.read_text("utf-8"), re.M
    )
    blocks = [
        found[0]
        for found in re.finditer(
            r'^    " *### BEGIN SOLUTION\\n",\n(?:.*\n)*?^    " *### END SOLUTION.*$', path.read_text("utf-8"), re.M
        )
    ]
    stubs = list(re.finditer(r'^    "( *)raise NotImplementedError\(.*$', text, re.M))
    assert len(stubs) == len(blocks) == len(solutions) >= 2
    for stub, block, indent in reversed(list(zip(stubs, blocks, solutions, strict=True))):
        assert stub[1] == indent
        text = text[: stub.start()] + block + text[stub.end() :]
    assert text == path.read_text(encoding="utf-8")


def test_a_stub_names_its_exercise_and_function(copies):
    """By number and name as the check below has them."""
    for path in NOTEBOOKS:
        cells = code(copies / path.name)
        for (source, tags), (following, _) in zip(cells, cells[1:], strict=False):
            if "exercise" in tags:
                number, name = re.search(r'check\("([\d.]+)", (\w+)\)', following).groups()
                assert source.endswith(f'    raise NotImplementedError("exercise {number}: write {name}")')


def test_building_twice_gives_the_same_bytes(copies, tmp_path):
    def digests(folder):
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}

    before = digests(copies)
    made = build.build(tmp_path / "again" / "copies")
    assert digests(tmp_path / "again" / "copies") == before
    assert sorted(before) == sorted(path.name for path in made) == sorted([p.name for p in NOTEBOOKS] + ["README.md"])
    build.build(copies)  # onto untouched copies
    assert digests(copies) == before


def test_the_readme_names_every_exercise_and_the_commands(copies):
    text = (copies / "README.md").read_text()
    for path in NOTEBOOKS:
        exercises = [m[1] for source, tags in code(path) if "check" in tags for m in build.CHECK.finditer(source)]
        assert f"`{path.name}`: exercises {', '.join(exercises)}" in text
    for word in ("jupyter lab", "check(", "hint(", "lib.lessons grade", "lib.lessons bundle"):
        assert word in text


# --- a copy runs ---


@every_notebook
def test_cells_for_the_reader_run_in_a_copy_and_say_not_implemented_yet(path, copies):
    cells = code(copies / path.name)
    nodes = [n for source, _ in cells for n in ast.parse(source).body if isinstance(n, (ast.Import, ast.ImportFrom))]
    namespace, found = {}, []
    exec("\n".join(map(ast.unparse, nodes)), namespace)
    namespace["check"] = lambda *given: found.append(lessons.check(*given))
    checked = []
    for source, tags in cells:
        if {"exercise", "check", "break-it"} & set(tags):
            before = len(found)
            exec(source, namespace)
            checked += found[before:] if "check" in tags else []
    exercises = [source for source, tags in cells if "exercise" in tags]
    assert len(checked) == len(exercises) >= 2
    for result in checked:
        assert result.rows == [("your function", False, "not implemented yet")], str(result)
    assert not any(result.passed for result in found)


def run_copy(path, out, parameters):
    """Execute a notebook whole, in a kernel of its own; its code cells."""
    import papermill

    papermill.execute_notebook(
        str(path), str(out), parameters=parameters, kernel_name="python3", progress_bar=False, cwd=str(path.parent)
    )
    return [cell for cell in read(out)["cells"] if cell["cell_type"] == "code"]


def in_kernels(monkeypatch, folder):
    """Kernels find lib where we do, and write below `folder`."""
    monkeypatch.setenv("WORKBENCH_OUTPUTS", str(folder))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    monkeypatch.delenv("WORKBENCH_STAGE_DIR", raising=False)


def said(cells):
    """What checks showed, and errors."""
    outputs = [output for cell in cells for output in cell["outputs"]]
    texts = ["".join(output.get("data", {}).get("text/plain", "")) for output in outputs]
    unwritten = sum("not implemented yet" in text for text in texts)
    return unwritten, [output for output in outputs if output["output_type"] == "error"]


def test_a_whole_copy_runs_in_a_kernel(copies, tmp_path, monkeypatch):
    in_kernels(monkeypatch, tmp_path / "outputs")
    copy = copies / "01_data_inspection.ipynb"
    cells = run_copy(copy, tmp_path / "executed.ipynb", {"n_problems": 200, "run": "lesson"})
    unwritten, errors = said(cells)
    assert not errors
    assert unwritten == sum("exercise" in cell["metadata"]["tags"] for cell in cells)
    assert (tmp_path / "outputs" / "lesson" / "01_data_inspection.live" / "problems").is_dir()


@pytest.mark.slow
def test_all_copies_run_in_kernels(copies, tmp_path, monkeypatch):
    """On what the smoke profile made: each lesson reads what the lessons before it left."""
    in_kernels(monkeypatch, tmp_path / "outputs")
    subprocess.run(
        [sys.executable, "run_all.py", "--profile", "smoke", "--run", "lesson"], cwd=ROOT, env=os.environ, check=True
    )
    parameters = pipeline.resolve("smoke", [])
    for path in NOTEBOOKS:
        given = {**parameters[path.stem], "run": "lesson"}
        cells = run_copy(copies / path.name, tmp_path / path.name, given)
        unwritten, errors = said(cells)
        assert not errors and unwritten >= sum("exercise" in cell["metadata"]["tags"] for cell in cells), path.name


# --- what is refused ---

SOLVED = [
    "def make_labels(prompt, completion, eos):\n",
    "    ### BEGIN SOLUTION\n",
    "    return [-100] * len(prompt) + completion + [eos]\n",
    "    ### END SOLUTION",
]
CHECKED = ['check("3.1", make_labels)']


def cell(source, *tags, **more):
    return {
        "cell_type": "code",
        "execution_count": None,
        "id": "a",
        "metadata": {"tags": list(tags)} if tags else {},
        "outputs": [],
        "source": source,
        **more,
    }


def folder_of(tmp_path, *cells):
    """A folder with one notebook of these cells."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    notebook = {"cells": list(cells), "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    (folder / "03_small.ipynb").write_text(build.write_notebook(notebook))
    return folder


def test_a_small_notebook_is_copied(tmp_path):
    folder = folder_of(tmp_path, cell(SOLVED, "exercise"), cell(CHECKED, "check"))
    build.build(tmp_path / "out", folder)
    first, second = read(tmp_path / "out" / "03_small.ipynb")["cells"]
    assert first["source"] == [SOLVED[0], '    raise NotImplementedError("exercise 3.1: write make_labels")']
    assert second["source"] == CHECKED


BEGIN, END = SOLVED[1], SOLVED[3]
REFUSED = {
    "begin alone": ([SOLVED[0], BEGIN, SOLVED[2]], "without its partner"),
    "end alone": ([SOLVED[0], SOLVED[2], END], "without its partner"),
    "nested": ([SOLVED[0], BEGIN, BEGIN, SOLVED[2], END], "or nested"),
    "in front of code": ([SOLVED[0], "    x = 1  ### BEGIN SOLUTION\n", SOLVED[2], END], "not alone on its line"),
    "no solution": (["def make_labels(prompt, completion, eos):\n", "    return 1"], "without a solution"),
    "left over": ([SOLVED[0], f"    # {SOLVED[2].strip()}\n", *SOLVED[1:]], "is left in the copy"),
    "no Python": ([SOLVED[0], *SOLVED[1:], "\n  return 1"], "is no Python"),
    "beside the function": (
        [SOLVED[0], "    return 1\n", "### BEGIN SOLUTION\n", "x = 1\n", "### END SOLUTION"],
        "body",
    ),
    "after a return": ([SOLVED[0], "    return 1\n", *SOLVED[1:]], "returns before"),
}


@pytest.mark.parametrize("source, why", REFUSED.values(), ids=REFUSED)
def test_an_exercise_that_is_not_in_order_is_refused(source, why, tmp_path):
    folder = folder_of(tmp_path, cell(["1"]), cell(source, "exercise"), cell(CHECKED, "check"))
    with pytest.raises(InputError, match=f"^03_small.ipynb, cell 2: .*{why}"):
        build.build(tmp_path / "out", folder)
    assert not (tmp_path / "out").exists()


def test_markers_outside_an_exercise_are_refused(tmp_path):
    with pytest.raises(InputError, match="03_small.ipynb, cell 1: .* not tagged `exercise`"):
        build.build(tmp_path / "out", folder_of(tmp_path, cell(SOLVED), cell(CHECKED, "check")))


@pytest.mark.parametrize(
    "after, why",
    [
        ([], "without a check"),
        ([cell(["1"]), cell(CHECKED, "check")], "without a check"),
        ([cell(CHECKED)], "without a check"),
        ([cell(['check("3.77", make_labels)'], "check")], "no exercise '3.77'"),
        ([cell(['check("77.1", make_labels)'], "check")], "no lesson '77'"),
        ([cell(['check("3.1", labels)'], "check")], "not in the body of `labels`"),
        ([cell(CHECKED, "check"), cell(SOLVED, "exercise"), cell(CHECKED, "check")], "a second exercise 3.1"),
    ],
)
def test_an_exercise_without_its_check_is_refused(after, why, tmp_path):
    with pytest.raises(InputError, match=f"03_small.ipynb, cell [13]: .*{why}"):
        build.build(tmp_path / "out", folder_of(tmp_path, cell(SOLVED, "exercise"), *after))


def test_a_check_that_passes_on_a_stub_is_refused(tmp_path, monkeypatch):
    from lib.lessons import lesson_03

    easy = lessons.Exercise([lambda answer: None], [])
    monkeypatch.setitem(lesson_03.EXERCISES, "3.1", easy)
    with pytest.raises(InputError, match="cell 1: the check of exercise 3.1 passes on a stub"):
        build.build(tmp_path / "out", folder_of(tmp_path, cell(SOLVED, "exercise"), cell(CHECKED, "check")))


@pytest.mark.parametrize("more", [{"outputs": [{"output_type": "stream", "text": "1"}]}, {"execution_count": 3}])
def test_outputs_are_refused(more, tmp_path):
    with pytest.raises(InputError, match="03_small.ipynb, cell 1: it holds outputs"):
        build.build(tmp_path / "out", folder_of(tmp_path, cell(["1"], **more)))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"cells": 3}', '{"cells": [{}]}', "\udcff"])
def test_what_is_no_notebook_is_refused(text, tmp_path):
    folder = folder_of(tmp_path)
    (folder / "03_small.ipynb").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match="03_small.ipynb is not"):
        build.build(tmp_path / "out", folder)


def test_another_layout_of_the_json_is_refused(tmp_path):
    """Else the copy could not be the same to the byte."""
    folder = folder_of(tmp_path, cell(["1"]))
    (folder / "03_small.ipynb").write_text(json.dumps(read(folder / "03_small.ipynb")))
    with pytest.raises(InputError, match="not written as Jupyter writes"):
        build.build(tmp_path / "out", folder)


# --- nobody's work is lost ---


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["03_sft.ipynb", "README.md"])
def test_a_students_work_is_not_overwritten(name, tmp_path):
    build.build(tmp_path)
    (tmp_path / name).write_text((tmp_path / name).read_text() + " ")
    (tmp_path / "01_data_inspection.ipynb").unlink()
    before = contents(tmp_path)
    with pytest.raises(InputError, match=f"{name} is no untouched copy .* another folder"):
        build.build(tmp_path)
    assert contents(tmp_path) == before


def test_other_files_stay(tmp_path):
    (tmp_path / "mine.ipynb").write_text("mine")
    build.build(tmp_path)
    assert (tmp_path / "mine.ipynb").read_text() == "mine"


def test_the_folder_of_the_notebooks_is_refused(tmp_path, monkeypatch):
    folder = folder_of(tmp_path, cell(SOLVED, "exercise"), cell(CHECKED, "check"))
    before = contents(folder)
    (tmp_path / "link").symlink_to(folder)
    for out in (folder, tmp_path / "link", folder / ".." / "notebooks"):
        with pytest.raises(InputError, match="holds the notebooks with their solutions"):
            build.build(out, folder)
    assert contents(folder) == before


def test_a_file_and_an_empty_source_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is not a folder"):
        build.build(tmp_path / "file")
    with pytest.raises(InputError, match="no notebooks here"):
        build.build(tmp_path / "out", tmp_path)


def test_a_copy_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    def full(self, data):
        open(self, "wb").write(data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert command.main(["build", str(tmp_path / "out")]) == 2
    assert list((tmp_path / "out").iterdir()) == []


def test_the_command(tmp_path, capsys):
    assert command.main(["build", str(tmp_path / "out")]) == 0
    assert f"{len(NOTEBOOKS)} lessons" in capsys.readouterr().out
    (tmp_path / "out" / "03_sft.ipynb").write_text("{}")
    assert command.main(["build", str(tmp_path / "out")]) == 2
    assert "03_sft.ipynb is no untouched copy" in capsys.readouterr().err
