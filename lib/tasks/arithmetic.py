"""n-digit addition and multiplication with a chain of thought, least significant digit first.

The form of the published "implicit chain of thought" files, one problem a line; 314 * 592 reads

    4 1 3 * 2 9 5||8 2 6 0 + 0 6 2 8 2 ( 8 8 8 8 2 ) + 0 0 0 7 5 1 #### 8 8 8 5 8 1

Each partial product carries its trailing zeros in front and the running sum in brackets. Addition has no published
form; here a step is one column with the carry in brackets, `5 + 7 ( 0 ) = 2 ( 1 )`.
"""

import random
import re

from lib.errors import InputError
from lib.problems import Problem, make_problem, read_lines

DIGITS = "[0-9](?: [0-9])*"
QUESTION = re.compile(rf"({DIGITS}) ([*+]) ({DIGITS})")
ROW = re.compile(rf"({DIGITS}) ([*+]) ({DIGITS})\|\|(.*) #### ({DIGITS})")


def digits(value: int, width: int = 1) -> str:
    """`value` in at least `width` digits, least significant first, with blanks between: (24, 4) -> "4 2 0 0"."""
    return " ".join(reversed(str(value).zfill(width)))


def value_of(text: str) -> int:
    """The number that reversed digits spell: "4 2 0 0" -> 24."""
    return int("".join(reversed(text.split())))


def multiplication_steps(a: int, b: int, n: int, m: int) -> list[str]:
    """Partial products of an n-digit a with each of the m digits of b, running sums in brackets but for the last."""
    steps, total = [], 0
    for i, digit in enumerate(int(d) for d in reversed(str(b).zfill(m))):
        part = a * digit * 10**i
        total += part
        width = n + 1 + i
        running = f" ( {digits(total, width)} )" if 0 < i < m - 1 else ""
        steps.append(("+ " if i else "") + digits(part, width) + running)
    return steps


def addition_steps(a: int, b: int, n: int, m: int) -> list[str]:
    """One step a column: the two digits, the carry in, and the digit of the sum with the carry out."""
    steps, carry = [], 0
    for i in range(max(n, m)):
        x, y = a // 10**i % 10, b // 10**i % 10
        total = x + y + carry
        steps.append(f"{x} + {y} ( {carry} ) = {total % 10} ( {total // 10} )")
        carry = total // 10
    return steps


def problem(a: int, b: int, operator: str, n: int, m: int) -> Problem:
    """The problem `a operator b` (operator "+" or "*") with a written in n and b in m digits, solved."""
    if operator == "*":
        steps, answer, width = multiplication_steps(a, b, n, m), a * b, n + m
    else:
        steps, answer, width = addition_steps(a, b, n, m), a + b, max(n, m) + 1
    return _problem(f"{digits(a, n)} {operator} {digits(b, m)}", steps, digits(answer, width), a, b, operator)


def _problem(question: str, steps: list[str], answer: str, a: int, b: int, operator: str) -> Problem:
    source = {"*": "multiplication", "+": "addition"}[operator]
    canonical = f"{min(a, b)}{operator}{max(a, b)}"
    return make_problem(question, steps, answer, source, canonical=canonical, exact_steps=True)


def generate(n: int, operator: str = "*", n_digits: int = 4, seed: int = 0) -> list[Problem]:
    """`n` different problems with operands of `n_digits` digits, the first of which is not 0."""
    if operator not in "+*" or n_digits < 1:
        raise InputError(f"arithmetic wants + or * and at least 1 digit, not {operator!r} and {n_digits}.")
    low, high = 10 ** (n_digits - 1) if n_digits > 1 else 0, 10**n_digits - 1
    if n > (high - low + 1) ** 2:
        raise InputError(
            f"There are only {(high - low + 1) ** 2} problems of {n_digits} digits, not {n}; ask for fewer."
        )
    rng = random.Random(seed)
    problems: dict[str, Problem] = {}
    while len(problems) < n:
        new = problem(rng.randint(low, high), rng.randint(low, high), operator, n_digits, n_digits)
        problems[new.id] = new
    return list(problems.values())


def parse(line: str, where: str) -> Problem:
    """One line of a published file, kept as it is written; InputError where it does not have that form."""
    match = ROW.fullmatch(line.strip())
    if match is None:
        raise InputError(
            f"{where}: expected `digits * digits||steps #### digits` with single digits, as in `5 6 * 7 4||...`."
        )
    a, operator, b, chain, answer = match.groups()
    cut = r" \+ (?![^(]*\))" if operator == "*" else r"(?<=\)) (?=[0-9])"
    steps = re.split(cut, chain)
    if operator == "*":
        steps = steps[:1] + [f"+ {step}" for step in steps[1:]]
    return _problem(f"{a} {operator} {b}", steps, answer, value_of(a), value_of(b), operator)


def read(path: str) -> list[Problem]:
    """The problems of a published file, one a line; InputError with the line number at the first that is none."""
    return [parse(line, where) for where, line in read_lines(path)]


def to_line(problem: Problem) -> str:
    """The line of a published file that holds `problem`: the inverse of `parse`."""
    return f"{problem.question}||{' '.join(problem.steps)} #### {problem.answer}"


def solve(given: Problem) -> Problem:
    """`given` solved anew from its question, to compare a file's steps and answer with."""
    a, operator, b = QUESTION.fullmatch(given.question).groups()
    return problem(value_of(a), value_of(b), operator, len(a.split()), len(b.split()))
