"""Which source files a piece of code depends on, read from its import statements: nothing is imported or run.

A result is stale when the code that made it changed. The code that made it is the code it imports, directly or not,
also inside functions; comments, docstrings and layout do not count.
"""

import ast
import hashlib
import json
from functools import cache
from pathlib import Path

LIB = Path(__file__).parent
# Runs, shows or teaches the work, and changes no result.
MACHINERY = {
    "lib.stage",
    "lib.sources",
    "lib.workers",
    "lib.pipeline",
    "lib.launch",
    "lib.progress",
    "lib.errors",
    "lib.lessons",
}
# May change without making a training stale: it only looks at results.
ONLOOKERS = {"lib.plots", "lib.viewers", "lib.evaluation"}


_frozen: dict[Path, str] = {}


def freeze(snapshot: dict[Path, str] | None = None) -> None:
    """From now on, take this package's sources as they are now, or as in `snapshot` of another process (`frozen`).

    A process runs to its end what it loaded.
    """
    _frozen.update(snapshot or {file: file.read_text() for file in LIB.rglob("*.py")})


def frozen() -> dict[Path, str]:
    """The sources that `freeze` took, {} before."""
    return dict(_frozen)


def digest(value: object) -> str:
    """A short hash of any JSON value, equal for equal values."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def module_file(name: str) -> Path | None:
    """The file of a module of this package ("lib.tasks.gsm8k"), or None."""
    parts = name.split(".")
    if parts[0] != "lib":
        return None
    base = LIB.joinpath(*parts[1:])
    for file in (base.with_suffix(".py"), base / "__init__.py"):
        if file.is_file() and len(parts) > 1:
            return file
    return None


def imports(code: str) -> set[str]:
    """The modules of this package that `code` imports, at any depth of nesting."""
    return {name for name in imported(code) if module_file(name)}


@cache
def imported(code: str) -> set[str]:
    """All names that import statements in `code` may stand for a module with."""
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def closure(code: str, leave_out: set[str]) -> dict[str, str]:
    """{module: hash of its code} for everything `code` imports from this package, directly or not."""
    found: dict[str, str] = {}
    waiting = sorted(imports(code))
    while waiting:
        name = waiting.pop()
        packages = {".".join(name.split(".")[:n]) for n in range(2, name.count(".") + 2)}
        if name in found or packages & leave_out:
            continue
        file = module_file(name)
        source = _frozen[file] if file in _frozen else file.read_text()
        found[name] = code_hash(source)
        waiting += sorted(imports(source))
    return dict(sorted(found.items()))


@cache
def code_hash(code: str) -> str:
    """A hash of what code does: of its syntax tree without docstrings, so comments and line breaks leave it alone."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            if isinstance(getattr(body[0], "value", None), ast.Constant) and isinstance(body[0].value.value, str):
                body.pop(0)
    return digest(ast.dump(tree))


def of_function(function) -> dict[str, str]:
    """{module: hash} of the module that defines `function` and of all it imports, but for machinery and onlookers."""
    name = function.__module__
    return closure(f"import {name}", MACHINERY | (ONLOOKERS - {name}))


def of_cells(cells: list[str]) -> dict[str, str]:
    """{module: hash} of all that a notebook's code cells import, but for machinery."""
    return closure("\n".join(cells), MACHINERY)
