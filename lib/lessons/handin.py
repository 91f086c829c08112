"""What stands in a hand-in: the exercises of its notebooks as jobs for the sandbox, its prompt, its bundle.json.

Nothing of a hand-in is run here; its cells are parsed.
"""

import ast
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lib.errors import InputError
from lib.lessons import archive, build

NOTEBOOKS = build.ROOT / "notebooks"


@dataclass(frozen=True)
class Exercise:
    """An exercise as the notebooks with the solutions have it."""

    number: str
    function: str
    notebook: str

    @property
    def lesson(self) -> str:
        return self.notebook[:2]


@dataclass(frozen=True)
class Cell:
    """A code cell: its source without Jupyter's own commands, its statements (none where it does not parse), tags."""

    source: str
    body: tuple[ast.stmt, ...]
    tags: tuple[str, ...]
    error: str = ""


def known_exercises(notebooks: Path = NOTEBOOKS) -> dict[str, Exercise]:
    """Every exercise of the notebooks with the solutions, by number, in their order."""
    found = {}
    for path in sorted(notebooks.glob("*.ipynb")):
        cells = [(source, tags) for kind, source, tags in archive.notebook(path) if kind == "code"]
        for (_, tags), (following, _) in zip(cells, cells[1:], strict=False):
            match = build.CHECK.search(following)
            if "exercise" in tags and match:
                found[match[1]] = Exercise(match[1], match[2], path.name)
    return found


def read_cells(path: Path) -> list[Cell]:
    """The code cells of a notebook. Raises InputError where the file holds no notebook."""
    cells = []
    for kind, source, tags in archive.notebook(path):
        if kind != "code":
            continue
        text, error = re.sub(r"(?m)^[%!].*$", "", source), ""
        try:
            body = tuple(ast.parse(text).body)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as problem:
            body, error = (), f"{type(problem).__name__}: {problem}"
        cells.append(Cell(text, body, tuple(tags), error))
    return cells


def exercise_job(cells: list[Cell], exercise: Exercise, functions: Iterable[str]) -> dict | str:
    """The job that tries an exercise of a notebook, or one sentence on why there is none.

    The last cell that defines the function at its top level counts. With it go the cells before it that it builds on
    (exercises, those that count for one of `functions`, and those that only define functions, classes and constants),
    and of the notebook's imports those whose names are used: what another exercise breaks, or imports, does not stand
    in this one's way.
    """
    place = _defining(cells, exercise.function)
    if place is None:
        unread = [cell.error for cell in cells if cell.error and re.search(rf"\b{exercise.function}\b", cell.source)]
        if unread:
            return f"The cell with {exercise.function} is no Python ({unread[-1]})."
        return f"No cell defines {exercise.function}."
    counted = {_defining(cells, name) for name in functions}
    before = [k for k in range(place) if "exercise" in cells[k].tags or k in counted or _only_defines(cells[k])]
    used, chosen = _used(cells[place]), {place}
    for k in reversed(before):  # a cell builds on cells before it alone
        if used & _bound(cells[k].body):
            chosen.add(k)
            used |= _used(cells[k])
    imports = {
        ast.unparse(node): None  # a dictionary keeps the order
        for cell in cells
        for node in cell.body
        if isinstance(node, (ast.Import, ast.ImportFrom)) and ({"*"} | used) & _bound((node,))
    }
    return {
        "kind": "exercise",
        "number": exercise.number,
        "function": exercise.function,
        "imports": "\n".join(imports),
        "cells": [cells[k].source for k in sorted(chosen)],
        "variables": {},
    }


def _defining(cells: list[Cell], name: str) -> int | None:
    """The place of the last cell that defines a function of that name at its top level."""
    found = None
    for place, cell in enumerate(cells):
        for node in cell.body:
            named = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name == name
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Lambda):
                named = any(isinstance(target, ast.Name) and target.id == name for target in node.targets)
            found = place if named else found
    return found


def _only_defines(cell: Cell) -> bool:
    """Is there nothing but functions, classes and constants in it: a reader's own helpers?"""

    def constant(node: ast.stmt) -> bool:
        kinds = (ast.Constant, ast.List, ast.Tuple, ast.Set, ast.Dict, ast.UnaryOp, ast.USub, ast.Load)
        return isinstance(node, ast.Assign) and all(isinstance(part, kinds) for part in ast.walk(node.value))

    own = [node for node in cell.body if not isinstance(node, (ast.Import, ast.ImportFrom))]
    plain = all(isinstance(node, (ast.FunctionDef, ast.ClassDef)) or constant(node) for node in own)
    return bool(own) and plain and "parameters" not in cell.tags


def _used(cell: Cell) -> set[str]:
    """Every name that a cell reads."""
    nodes = [node for statement in cell.body for node in ast.walk(statement)]
    stored = {id(node) for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    stored -= {id(node.target) for node in nodes if isinstance(node, ast.AugAssign)}
    return {node.id for node in nodes if isinstance(node, ast.Name) and id(node) not in stored}


def _bound(body: Iterable[ast.stmt]) -> set[str]:
    """The names that statements bind at their top level; "*" for an import of everything."""
    names = set()
    for node in body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        else:
            stored = (n for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store))
            names |= {n.id for n in stored}
    return names


# ----- the prompt and the manifest
def read_prompt(path: Path) -> tuple[str, list[list[str]]]:
    """(system, shots) of a prompt.json. Raises InputError where it is not {"system": str, "shots": [[str, str]]}."""
    found = archive.read_json(path)
    system, shots = (found.get("system", ""), found.get("shots", [])) if isinstance(found, dict) else (None, None)
    pairs = isinstance(shots, list) and all(
        isinstance(shot, list) and len(shot) == 2 and all(isinstance(text, str) for text in shot) for shot in shots
    )
    if not isinstance(system, str) or not pairs:
        raise InputError(f'{path.name} must be {{"system": text, "shots": [[question, chain], ...]}}; write it so.')
    return system, shots


def read_manifest(folder: Path) -> dict:
    """bundle.json of an unpacked hand-in, {} where there is none. Raises InputError where it is not well made."""
    if not (folder / "bundle.json").exists():
        return {}
    found = archive.read_json(folder / "bundle.json")
    if not isinstance(found, dict) or not all(isinstance(found.get(key, ""), str) for key in ("name", "plan")):
        raise InputError("bundle.json of the hand-in is not well made; make the bundle anew.")
    return found
