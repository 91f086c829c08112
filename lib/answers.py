"""The one arbiter of correctness: what a text answers, whether that is right, and whether its steps hold.

Every method, every metric and every filter asks here. Knows no model and no task by name, only three kinds of answer
(number, truth value, text) and two kinds of step (an annotation `<<expression=value>>`, or a step with one right form).
"""

import re
from fractions import Fraction
from typing import NamedTuple

from lib import calculator
from lib.problems import Problem

MARKER = "####"
# `[^<>=]` keeps the expression free of a second "="; the stated value may hold one, and then agrees with nothing.
ANNOTATION = re.compile(r"<<([^<>=\n]*)=([^<>\n]*)>>")
# A sign may stand before or after a currency sign; a fraction is two whole numbers. `%` and a final stop are dropped.
NUMBER = re.compile(rf"([-+−]?)\s*[$€£]?\s*([-+−]?)({calculator.NUMBER})(?:\s*/\s*([0-9]+))?")
TRUTHS = {"true": "true", "yes": "true", "false": "false", "no": "false"}


class Step(NamedTuple):
    """One checked step: its text, whether it holds, and why not (None where it does)."""

    text: str
    ok: bool
    reason: str | None


def extract(text: str) -> str | None:
    """The answer a text states: what follows the last `####` that is followed by anything on its line, else None."""
    found = None
    for match in re.finditer(rf"{MARKER}#*[ \t]*([^\n]*)", text):
        answer = match.group(1).strip()
        if answer.strip("#. "):
            found = answer.partition(MARKER)[0].strip() or found
    return found


def number(text: str) -> Fraction | None:
    """The number that an answer begins with, exactly: commas, signs, decimals, fractions, `$` and `%` understood.

    "$1,080.50" is 2161/2, "-3" is -3, "18 apples." is 18, "3/4" is 3/4, "20%" is 20; "about 3" and "1 2" are None.
    """
    match = NUMBER.match(text.strip())
    if match is None:
        return None
    outer, inner, digits, divisor = match.groups()
    rest = text.strip()[match.end() :]
    if re.match(r"\s*[0-9]|[.,][0-9]", rest) or (outer and inner) or (divisor and not int(divisor)):
        return None
    value = calculator.evaluate(digits).value
    if value is None:
        return None
    sign = -1 if (outer or inner) in ("-", "−") else 1
    return sign * value / int(divisor or 1)


def truth(text: str) -> str | None:
    """ "true" or "false" for True/False, yes/no in any case, with or without a final stop; else None."""
    return TRUTHS.get(text.strip().rstrip(".").lower())


def same(gold: str, answer: str, relative_tolerance: float = 0.0) -> bool:
    """Do two answers agree? The gold answer decides the kind: a number, a truth value or text.

    Numbers agree where the difference is at most `relative_tolerance` times the gold value (0: exactly equal, so
    that 18 equals 18.0 but not 18.01); text where it is the same but for case, blanks and a final stop.
    """
    expected = number(gold)
    if expected is not None:
        found = number(answer)
        return found is not None and abs(found - expected) <= Fraction(relative_tolerance) * abs(expected)
    if truth(gold):
        return truth(answer) == truth(gold)
    return _words(gold) == _words(answer)


def _words(text: str) -> list[str]:
    return text.strip().rstrip(".").lower().split()


def is_correct(problem: Problem, text: str) -> bool:
    """Does `text` (a whole completion) end in the problem's answer?"""
    answer = extract(text)
    return answer is not None and same(problem.answer, answer, problem.meta.get("relative_tolerance", 0.0))


def annotations(text: str) -> list[tuple[str, str]]:
    """Every `<<expression=value>>` of a text, as (expression, value), in order."""
    return ANNOTATION.findall(text)


def check_annotation(expression: str, stated: str) -> Step:
    """Evaluate one annotation and compare it with the value it states (the rounding rule is calculator.agrees)."""
    text = f"<<{expression}={stated}>>"
    value, reason = calculator.evaluate(expression)
    if value is None:
        return Step(text, False, reason)
    if not calculator.agrees(value, stated):
        return Step(text, False, f"the value is {calculator.format_number(value)}")
    return Step(text, True, None)


def check_steps(problem: Problem, text: str) -> list[Step]:
    """Check a chain of thought step by step.

    Arithmetic chains: every annotation of the text. Chains of which each step has one right form (problem.steps
    without annotations, as in modular_chain and multiplication): every line before `####` against the problem's own.
    """
    body = text.partition(MARKER)[0]
    if annotations(" ".join(problem.steps)):
        return [check_annotation(*pair) for pair in annotations(body)]
    lines = [line.strip() for line in body.split("\n") if line.strip()]
    steps = []
    for i, line in enumerate(lines):
        expected = problem.steps[i] if i < len(problem.steps) else None
        ok = expected is not None and line.split() == expected.split()
        steps.append(Step(line, ok, None if ok else f"expected {expected}" if expected else "one step too many"))
    return steps


def is_verified(problem: Problem, text: str) -> bool:
    """Right answer, at least one step where the problem has any, and every step holds."""
    steps = check_steps(problem, text)
    return is_correct(problem, text) and bool(steps or not problem.steps) and all(step.ok for step in steps)


def inspect(problem: Problem) -> dict:
    """What can be said of a problem's own solution: is its answer readable, and which annotations hold?

    {"problem": id, "answer_extracted", "annotations": [{"annotation", "evaluated", "agrees", "reason"}]}
    """
    answer = extract(f"{MARKER} {problem.answer}")
    found = []
    for expression, stated in annotations("\n".join(problem.steps)):
        step = check_annotation(expression, stated)
        evaluated = calculator.evaluate(expression).value is not None
        found.append({"annotation": step.text, "evaluated": evaluated, "agrees": step.ok, "reason": step.reason})
    readable = answer is not None and same(problem.answer, answer)
    return {"problem": problem.id, "answer_extracted": readable, "annotations": found}
