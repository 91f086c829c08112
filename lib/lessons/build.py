"""Student copies of the notebooks: the same lessons, with a stub where a solution stands.

What stands between `### BEGIN SOLUTION` and `### END SOLUTION` (nbgrader's markers) becomes one line that raises
NotImplementedError; everything else is as it was, to the byte. Nothing is run but the invariants, on a stub.
"""

import ast
import json
import os
import re
from pathlib import Path

from lib.errors import InputError
from lib.lessons import check as lessons

ROOT = Path(__file__).parents[2]
BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
CHECK = re.compile(r'^check\("([\d.]+)", (\w+)\)', re.MULTILINE)
TELLING = 6  # shorter lines of a solution, such as `else:`, may stand elsewhere in the cell

GUIDE = """# Lessons

{lessons}

In the folder of the workbench, with its environment active (`source .venv/bin/activate`): `jupyter lab FOLDER`, where
FOLDER is the folder of this file. A lesson reads what the lessons before it made; where that is missing, it names the
command that makes it, `python run_all.py --only 01` first of all.

- **Write** the body of a function where it says `raise NotImplementedError`. Helpers of your own go into the same cell,
  or into a cell before it that holds nothing but functions and constants.
- **Check** it with the cell below: `check("{first}", ...)` names what does not hold yet, and why, most likely.
- **Hints**: `hint("{first}")` gives the first, `hint("{first}", 2)` a plainer one.
- **Grade** your work: `python -m lib.lessons grade FOLDER`
- **Bundle** it into a file to hand in: `python -m lib.lessons bundle FOLDER --name YOUR_NAME`
"""


def build(out: Path, notebooks: Path = ROOT / "notebooks") -> list[Path]:
    """Write a student copy of every notebook in `notebooks`, and a README.md, to the folder `out`; their paths.

    The same notebooks give the same bytes. Raises InputError, before anything is written, where a notebook's exercises
    are not in order (see `student_copy`), and where `out` holds a file that would be overwritten and is not an
    untouched copy: it may be a student's work.
    """
    out, sources = Path(out), sorted(Path(notebooks).glob("*.ipynb"))
    if not sources:
        raise InputError(f"{notebooks}: there are no notebooks here; give the folder that holds the lessons.")
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is not a folder; give the name of a folder for the copies.")
    if out.resolve() == Path(notebooks).resolve():
        raise InputError(f"{out} holds the notebooks with their solutions; give another folder for the copies.")
    copies, exercises = {}, {}
    for path in sources:
        text, exercises[path] = student_copy(path)
        copies[out / path.name] = text.encode()
    copies[out / "README.md"] = _guide(exercises).encode()
    for path, data in copies.items():
        if path.is_symlink() or (path.exists() and (not path.is_file() or path.read_bytes() != data)):
            raise InputError(f"{path} is no untouched copy and would be lost; choose another folder for the copies.")
    out.mkdir(parents=True, exist_ok=True)
    for path, data in copies.items():
        write_bytes(path, data)
    return list(copies)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(data)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read_notebook(path: Path) -> dict:
    """A notebook as a dict. Raises InputError where the file holds none."""
    try:
        notebook = json.loads(Path(path).read_text(encoding="utf-8"))
        assert all("source" in cell and "metadata" in cell and "cell_type" in cell for cell in notebook["cells"])
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}; check the path.") from None
    except (ValueError, TypeError, KeyError, AssertionError, RecursionError):
        raise InputError(f"{path} is not a notebook (format 4, JSON); save it again from Jupyter.") from None
    return notebook


def write_notebook(notebook: dict) -> str:
    """A notebook as text, in the form in which Jupyter saves one."""
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def student_copy(path: Path) -> tuple[str, dict[str, str]]:
    """(text of the copy, {number: function} of its exercises) of the notebook at `path`.

    Raises InputError, naming notebook and cell, for markers that are unpaired, nested or outside an exercise, an
    exercise that no check follows or no lesson knows, a check that a stub passes, a line of a solution that is left
    over, and outputs.
    """
    notebook, exercises = read_notebook(path), {}
    if write_notebook(notebook) != Path(path).read_text(encoding="utf-8"):
        raise InputError(f"{path} is not written as Jupyter writes a notebook; open it there and save it.")
    cells = notebook["cells"]
    code = [place for place, cell in enumerate(cells) if cell["cell_type"] == "code"]
    for place, cell in enumerate(cells):
        where, tags = f"{Path(path).name}, cell {place + 1}", cell["metadata"].get("tags", [])
        if cell.get("outputs") or cell.get("execution_count") is not None:
            raise InputError(f"{where}: it holds outputs; clear all outputs and save the notebook.")
        lines = "".join(cell["source"]).splitlines(keepends=True)
        if "exercise" not in tags or cell["cell_type"] != "code":
            if any("# BEGIN SOLUTION" in line or "# END SOLUTION" in line for line in lines):
                raise InputError(f"{where}: a marker of a solution in a cell that is not tagged `exercise`; tag it.")
            continue
        after = next((cells[k] for k in code if k > place), None)
        found = CHECK.search("".join(after["source"])) if after else None
        if found is None or "check" not in after["metadata"].get("tags", []):
            raise InputError(f'{where}: an exercise without a check in the next code cell; add check("N.M", function).')
        number, name = found.groups()
        if number in exercises:
            raise InputError(f"{where}: a second exercise {number} in this notebook; give it a number of its own.")
        exercises[number] = name
        copied = _stubbed(lines, number, name, where)
        _refuse_what_passes(copied, number, name, where)
        cell["source"] = copied if isinstance(cell["source"], list) else "".join(copied)
    return write_notebook(notebook), exercises


def _stubbed(lines: list[str], number: str, name: str, where: str) -> list[str]:
    """The lines of an exercise with a stub line, at the same indent, for each marked solution."""
    kept, solution, opened = [], [], False
    for line in lines:
        text = line.strip()
        if text == BEGIN or text == END:
            if (text == BEGIN) == opened:
                raise InputError(f"{where}: `{text}` without its partner, or nested; pair the markers.")
            opened = not opened
            indent = line[: len(line) - len(line.lstrip())]
            if opened:
                stub = f'{indent}raise NotImplementedError("exercise {number}: write {name}")'
            else:
                kept.append(stub + line[len(line.rstrip("\r\n")) :])
        elif "# BEGIN SOLUTION" in line or "# END SOLUTION" in line:
            raise InputError(f"{where}: a marker that is not alone on its line ({text[:60]!r}); give it a line.")
        else:
            (solution if opened else kept).append(line)
    if opened:
        raise InputError(f"{where}: `{BEGIN}` without its partner; add `{END}`.")
    if not solution:
        raise InputError(f"{where}: an exercise without a solution between `{BEGIN}` and `{END}`; write it.")
    rest = "".join(kept)
    for line in solution:
        if len(line.strip()) >= TELLING and line.strip() in rest:
            raise InputError(
                f"{where}: {line.strip()[:60]!r}, a line of the solution, is left in the copy; mark it too."
            )
    return kept


def _refuse_what_passes(lines: list[str], number: str, name: str, where: str) -> None:
    """InputError where the exercise is unknown, its cell doesn't define a stub, or a stub passes its check."""
    try:
        invariants = lessons.find(number).invariants
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    try:
        body = ast.parse("".join(line for line in lines if not line.startswith(("%", "!")))).body
    except SyntaxError as error:
        raise InputError(f"{where}: without its solution it is no Python ({error.msg}); move the markers.") from None
    defined = [node for node in body if isinstance(node, ast.FunctionDef) and node.name == name]
    if not defined or not any(isinstance(node, ast.Raise) for node in defined[-1].body):
        raise InputError(f"{where}: the markers are not in the body of `{name}`, which the check tries; move them.")
    before = defined[-1].body[: [isinstance(node, ast.Raise) for node in defined[-1].body].index(True)]
    if any(isinstance(node, ast.Return) for statement in before for node in ast.walk(statement)):
        raise InputError(f"{where}: `{name}` returns before its solution begins; move `{BEGIN}` up.")

    def stub(*_, **__):
        raise NotImplementedError

    if _holds(invariants, stub):
        raise InputError(f"{where}: the check of exercise {number} passes on a stub; give it an invariant that fails.")


def _holds(invariants: list, answer) -> bool:
    """Does every invariant accept the answer?"""
    try:
        for invariant in invariants:
            invariant(answer)
    except Exception:  # whatever it raises, it does not hold
        return False
    return True


def _guide(exercises: dict[Path, dict[str, str]]) -> str:
    """README.md of the copies."""
    rows = [f"- `{path.name}`: exercises {', '.join(found)}" for path, found in exercises.items() if found]
    first = next((number for found in exercises.values() for number in found), "1.1")
    return GUIDE.format(lessons="\n".join(rows), first=first)
