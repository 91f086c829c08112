"""The one arbiter of correctness: what a text answers, whether that is right, and whether its steps hold.

Every method, every metric and every filter asks here. Knows no model and no task by name, only three kinds of answer
(number, truth value, text) and three kinds of step (an annotation `<<expression=value>>`, a step with one right form,
or a step of a proof from the question's premises: lib.proofs).
"""

import re
from fractions import Fraction
from itertools import zip_longest
from typing import NamedTuple

from lib import calculator, proofs
from lib.problems import Problem

MARKER = "####"
STATED = re.compile(r"the answer is:? ?", re.IGNORECASE)  # another way to state an answer
TAG = re.compile(
    r"<answer>((?:(?!</?answer>)[^\n])*)(?:</answer>)?"
)  # a third; a missing end is forgiven, as by its users
ANNOTATION = re.compile(rf"<<([^\n]{{0,{calculator.MAX_ANNOTATION}}}?)>>")
# A sign may stand before or after a currency sign; a fraction is two whole numbers. `%` and a final stop are dropped.
NUMBER = re.compile(rf"([-+−]?) ?[$€£]? ?([-+−]?)({calculator.NUMBER})(?: ?/ ?([0-9]{{1,15}}))?")
# What may not follow a number: another one, or an operator with one (5-3 is no answer, it is a task).
MORE = re.compile(r"\s*[0-9]|[.,][0-9]|[eE][-+]?[0-9]|\s*[-+*/^:=×÷−x]\s*[-+(0-9]")
TRUTHS = {"true": "true", "yes": "true", "false": "false", "no": "false"}


class Step(NamedTuple):
    """One checked step: its text, whether it holds, and why not (None where it does)."""

    text: str
    ok: bool
    reason: str | None


def extract(text: str) -> str | None:
    """The answer a text states, else None.

    It is what follows the last `####` that is followed by anything on its line; in a text without `####`, what the last
    `<answer>` that holds anything holds; in a text with neither, what follows the last "The answer is".
    """
    if MARKER not in text:
        return _stated(text)[1]
    for part in reversed(text.split(MARKER)[1:]):
        if (answer := _first_line(part.lstrip("#"))).strip("."):
            return answer
    return None


def chain(text: str) -> str:
    """A text without the answer that it states at its end: what stands before the last mark of one."""
    return text.rpartition(MARKER)[0] if MARKER in text else text[: _stated(text)[0]]


def _stated(text: str) -> tuple[int, str | None]:
    """Where the last `<answer>` begins, or else the last "The answer is", that is followed by anything, and by what.

    (length, None) without one.
    """
    if "<answer>" in text:
        tagged = [(match.start(), match[1].strip()) for match in TAG.finditer(text) if match[1].strip().strip(".")]
        return tagged[-1] if tagged else (len(text), None)
    found = list(STATED.finditer(text))
    ends = [match.start() for match in found[1:]] + [len(text)]
    for match, end in reversed(list(zip(found, ends, strict=False))):
        if (answer := _first_line(text[match.end() : end])).strip("."):
            return match.start(), answer
    return len(text), None


def _first_line(text: str) -> str:
    return text.partition("\n")[0].strip()


def number(text: str) -> Fraction | None:
    """The number that an answer begins with, exactly: commas, signs, decimals, fractions, `$` and `%` understood.

    "$1,080.50" is 2161/2, "-3" is -3, "18 apples." is 18, "3/4" is 3/4, "20%" is 20; "about 3" and "1 2" are None.
    """
    match = NUMBER.match(text.strip())
    if match is None:
        return None
    outer, inner, digits, divisor = match.groups()
    rest = text.strip()[match.end() :]
    if MORE.match(rest) or (outer and inner) or (divisor and not int(divisor)):
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
        return found is not None and abs(found - expected) <= Fraction(str(relative_tolerance)) * abs(expected)
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
    """Every `<<expression=value>>` of a text, as (expression, value), in order; without a "=" the value is empty."""
    return [
        (expression, stated) for expression, _, stated in (body.partition("=") for body in ANNOTATION.findall(text))
    ]


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
    """Check a chain of thought step by step, up to its answer.

    Arithmetic chains: every annotation of the text. Where each step has one right form (`meta["exact_steps"]`, as in
    modular_chain and multiplication): every line but those with `####` against the problem's own, none left out.
    Proofs (`meta["proof"]`, as in prosqa and prontoqa): every such line against the premises of the question, any way
    from what is asked to the answer being right; a last, empty step says what is lacking where the chain ends early.
    """
    body = chain(text)
    kind = problem.meta.get("proof")
    if not (kind or problem.meta.get("exact_steps")):
        return [check_annotation(*pair) for pair in annotations(body)]
    lines = [line.strip() for line in body.split("\n") if line.strip() and MARKER not in line]
    if kind:
        reasons, lacking = proofs.check(kind, problem.question, problem.answer, lines)
        steps = [Step(line, reason is None, reason) for line, reason in zip(lines, reasons, strict=True)]
        return steps + ([Step("", False, lacking)] if lacking else [])
    steps = []
    for line, expected in zip_longest(lines, problem.steps):
        if line is None:
            steps.append(Step("", False, f"missing: {expected}"))
        elif expected is None:
            steps.append(Step(line, False, "one step too many"))
        else:
            ok = line.split() == expected.split()
            steps.append(Step(line, ok, None if ok else f"expected {expected}"))
    return steps


def is_verified(problem: Problem, text: str) -> bool:
    """Right answer, at least one checkable step where the problem's own chain has any, and every step holds."""
    steps = check_steps(problem, text)
    wanted = bool(check_steps(problem, "\n".join(problem.steps)))
    return is_correct(problem, text) and (bool(steps) or not wanted) and all(step.ok for step in steps)


def inspect(problem: Problem) -> dict:
    """What can be said of a problem's own solution: is its answer readable, and which annotations hold?

    An answer counts as extracted where it is a number or a truth value; text counts only where the problem expects it
    (`meta["answer_kind"] == "text"`, or steps of one right form, as with digits written apart).
    {"problem": id, "answer_extracted", "annotations": [{"annotation", "evaluated", "agrees", "reason"}]}
    """
    answer = extract(f"{MARKER} {problem.answer}")
    found = []
    for expression, stated in annotations("\n".join(problem.steps)):
        step = check_annotation(expression, stated)
        evaluated = calculator.evaluate(expression).value is not None
        found.append({"annotation": step.text, "evaluated": evaluated, "agrees": step.ok, "reason": step.reason})
    text_expected = problem.meta.get("answer_kind") == "text" or problem.meta.get("exact_steps", False)
    readable = answer is not None and (number(answer) is not None or truth(answer) is not None or text_expected)
    return {"problem": problem.id, "answer_extracted": readable, "annotations": found}
