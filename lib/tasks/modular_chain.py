"""Chains of operations modulo a small number: the one task on which every method reports a row.

    v3 + n4 * n2 - n1 + n3 ?      start at 3, add 4, times 2, minus 1, plus 3, left to right, all modulo 5
        r2                        (3 + 4) mod 5
        r4                        (2 * 2) mod 5
        r3
        r1
        #### 1

`v` marks the start value, `n` an operand, `r` a result: each is one token (lib.tokenization), so that a step is one
token and one continuous thought can stand for it. Steps cannot be skipped by looking only at the end, and there are
few enough problems (73,205 for 4 operations modulo 5) to say exactly which were held out.
"""

import random
import re
from itertools import product

from lib.errors import InputError
from lib.problems import Problem, make_problem


def operations(modulus: int) -> list[tuple[str, int]]:
    """Every (operator, operand) that changes something: + and - without 0, * without 0 and 1."""
    return [(o, n) for o in "+-*" for n in range(2 if o == "*" else 1, modulus)]


def apply(value: int, operator: str, operand: int, modulus: int) -> int:
    """One step: value operator operand, modulo `modulus`."""
    return {"+": value + operand, "-": value - operand, "*": value * operand}[operator] % modulus


def problem(start: int, chain: tuple[tuple[str, int], ...], modulus: int) -> Problem:
    """The problem that starts at `start` and applies `chain`, a tuple of (operator, operand), from left to right."""
    value, steps = start, []
    for operator, operand in chain:
        value = apply(value, operator, operand, modulus)
        steps.append(f"r{value}")
    question = f"v{start} " + " ".join(f"{o} n{n}" for o, n in chain) + " ?"
    (first, n), rest = chain[0], chain[1:]
    low, high = (min(start, n), max(start, n)) if first in "+*" else (start, n)  # 3 + 4 and 4 + 3 share a split
    canonical = f"{low}{first}{high}" + "".join(f"{o}{n}" for o, n in rest) + f"mod{modulus}"
    return make_problem(
        question, steps, str(value), "modular_chain", canonical=canonical, exact_steps=True, modulus=modulus
    )


def generate(n: int, n_operations: int = 4, modulus: int = 5, seed: int = 0) -> list[Problem]:
    """`n` different problems; n = 0 gives all modulus * (3 modulus - 4) ** n_operations of them, in order."""
    if not (n_operations >= 1 and modulus >= 3):
        raise InputError(
            f"modular_chain wants n_operations >= 1 and modulus >= 3, got {n_operations} and {modulus}; change them."
        )
    moves = operations(modulus)
    size = modulus * len(moves) ** n_operations
    if n > size:
        raise InputError(f"modular_chain has {size} problems of {n_operations} operations, not {n}; ask for fewer.")
    if n == 0:
        chains = product(range(modulus), product(moves, repeat=n_operations))
        return [problem(start, chain, modulus) for start, chain in chains]
    rng = random.Random(seed)
    problems: dict[str, Problem] = {}
    while len(problems) < n:
        new = problem(rng.randrange(modulus), tuple(rng.choices(moves, k=n_operations)), modulus)
        problems[new.id] = new
    return list(problems.values())


def solve(question: str, modulus: int = 5) -> Problem | None:
    """The problem that a question states, solved; None where it is no question of this task."""
    if not re.fullmatch(r"v[0-9]+( [-+*] n[0-9]+)+ \?", question):
        return None
    start, *rest = question.removesuffix(" ?").split(" ")
    chain = tuple((o, int(n[1:])) for o, n in zip(rest[::2], rest[1::2], strict=True))
    fits = int(start[1:]) < modulus and all(move in operations(modulus) for move in chain)
    return problem(int(start[1:]), chain, modulus) if fits else None


def answer_from(problem: Problem, steps: tuple[str, ...]) -> str:
    """The answer of `problem` if its first results were `steps`: its remaining operations applied to the last of them.

    What a change of one intermediate result must lead to.
    """
    value, modulus = int(steps[-1][1:]), problem.meta["modulus"]
    rest = problem.question.removesuffix(" ?").split(" ")[1 + 2 * len(steps) :]
    for operator, operand in zip(rest[::2], rest[1::2], strict=True):
        value = apply(value, operator, int(operand[1:]), modulus)
    return str(value)
