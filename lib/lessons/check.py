"""`check("1.2", fn)`: is what the reader wrote right, and if not, which invariant broke and why, most likely?

The exercises of notebook NN live in `lib/lessons/lesson_NN.py`, in `EXERCISES`: {"1.2": Exercise(...)}. An invariant
is a function that takes the reader's function and asserts; its docstring says what should hold, its message what went
wrong.
"""

import functools
import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from html import escape

from lib.errors import InputError


@dataclass(frozen=True)
class Exercise:
    """An exercise: its invariants, in the order in which they should be mended, and hints from vague to plain."""

    invariants: list[Callable]
    hints: list[str]


@dataclass(frozen=True)
class Result:
    """What a check found: (invariant, passed, message) each; `passed` when all hold."""

    exercise: str
    rows: list[tuple[str, bool, str]] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return bool(self.rows) and all(ok for _, ok, _ in self.rows)

    def __str__(self) -> str:
        lines = [
            f"  {'ok ' if ok else 'NO '} {what}" + (f"\n      {why}" if why else "") for what, ok, why in self.rows
        ]
        return f"exercise {self.exercise}: {'passed' if self.passed else 'not yet'}\n" + "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{'✓' if ok else '✗'}</td><td style='text-align:left'>{escape(what)}"
            + (f"<br><small>{escape(why)}</small>" if why else "")
            + "</td></tr>"
            for what, ok, why in self.rows
        )
        return f"<b>Exercise {self.exercise}: {'passed' if self.passed else 'not yet'}</b><table>{rows}</table>"


def find(exercise: str) -> Exercise:
    """The exercise of that number; InputError with the known ones."""
    lesson = exercise.partition(".")[0]
    try:
        exercises = importlib.import_module(f"lib.lessons.lesson_{int(lesson):02d}").EXERCISES
    except (ModuleNotFoundError, ValueError):
        raise InputError(f"There is no lesson {lesson!r} with exercises.") from None
    if exercise not in exercises:
        raise InputError(f"Lesson {lesson} has no exercise {exercise!r}; it has {', '.join(exercises)}.")
    return exercises[exercise]


def check(exercise: str, answer: Callable) -> Result:
    """Try the reader's function against every invariant of the exercise, up to the first that is not even run.

    Returns a Result that Jupyter shows as a table. With WORKBENCH_STRICT=1 in the environment (tests, grading) an
    exercise that does not pass raises AssertionError instead.
    """
    rows, returned = [], [0]

    @functools.wraps(answer)
    def watched(*arguments, **named):
        returned[0] = answer(*arguments, **named)
        return returned[0]

    for invariant in find(exercise).invariants:
        what = (invariant.__doc__ or invariant.__name__).strip()
        returned[0] = 0
        try:
            invariant(watched)
            rows.append((what, True, ""))
        except NotImplementedError:
            rows = [("your function", False, "not implemented yet")]
            break
        except AssertionError as error:
            rows.append((what, False, str(error)))
        except Exception as error:  # whatever the reader's code raises is a finding, not a crash
            why = f"your function raised {type(error).__name__}: {error}"
            if returned[0] is None:
                why = f"your function returned None: is its `return` missing? ({type(error).__name__}: {error})"
            rows.append((what, False, why))
    result = Result(exercise, rows)
    if os.environ.get("WORKBENCH_STRICT") == "1":
        assert result.passed, str(result)
    return result


def hint(exercise: str, level: int = 1) -> None:
    """Print the first `level` hints, each plainer than the one before."""
    hints = find(exercise).hints
    for number, text in enumerate(hints[:level], 1):
        print(f"hint {number} of {len(hints)}: {text}")
