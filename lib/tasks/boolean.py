"""Nested Boolean expressions, worked out one operation at a time.

    ( true and not false ) or ( false xor true )
        not false = true
        true and true = true
        false xor true = true
        true or true = true
        #### true

Every pair but the outermost stands in brackets, and `not` stands right before a truth value or a bracket: nothing hangs
on precedence. A step is one operation with its result, left operand first, then the right one, then what joins them, so
that all problems of one size have chains of one length.
"""

import random
from collections.abc import Iterator
from functools import cache
from math import comb

from lib.errors import InputError
from lib.problems import Problem, make_problem

TRUTHS = ("true", "false")
OPERATORS = {
    "and": lambda a, b: a and b,
    "or": lambda a, b: a or b,
    "xor": lambda a, b: a != b,
}
MAX_LEAVES = 40  # so that no question is longer than 1000 characters


class NoExpression(Exception):
    """A text is no expression of this task."""


@cache
def cuts(leaves: int, depth: int) -> list[int]:
    """How many trees of at most `depth` have 1, 2, ... of their leaves on the left."""
    return [shapes(k, depth - 1) * shapes(leaves - k, depth - 1) for k in range(1, leaves)]


@cache
def shapes(leaves: int, depth: int) -> int:
    """How many binary trees have that many leaves and at most `depth` pairs on the way to each."""
    return 1 if leaves == 1 else sum(cuts(leaves, depth)) if depth > 0 else 0


def generate(
    n: int, n_leaves: int = 7, max_depth: int = 3, n_nots: int = 0, operators: str = "and or", seed: int = 0
) -> list[Problem]:
    """`n` different problems of `n_leaves` truth values and `n_nots` nots, all equally likely.

    No truth value stands inside more than `max_depth` pairs. Every chain has n_leaves - 1 + n_nots steps.
    operators   words of OPERATORS, each as likely. Chains with xor are much harder: no value may be left out of account
    """
    used = operators.split()
    if not used or not set(used) <= set(OPERATORS):
        raise InputError(f"boolean knows the operators {', '.join(OPERATORS)}, not {operators!r}; change operators.")
    if not 2 <= n_leaves <= MAX_LEAVES:
        raise InputError(f"boolean wants n_leaves from 2 to {MAX_LEAVES}, got {n_leaves}; change it.")
    depth = min(max_depth, n_leaves - 1)
    if not shapes(n_leaves, depth):
        raise InputError(
            f"boolean: an expression of depth {max_depth} cannot hold {n_leaves} leaves; "
            "ask for fewer leaves (n_leaves) or more depth (max_depth)."
        )
    places = 2 * n_leaves - 2  # every node but the root may have one `not`
    if not 0 <= n_nots <= places:
        raise InputError(f"boolean: {n_leaves} leaves leave room for 0 to {places} nots, not {n_nots}; change n_nots.")
    size = shapes(n_leaves, depth) * len(set(used)) ** (n_leaves - 1) * 2**n_leaves * comb(places, n_nots)
    if n > size:
        raise InputError(f"boolean has {size} problems of this size, not {n}; ask for fewer.")
    rng = random.Random(seed)
    problems: dict[str, Problem] = {}
    while len(problems) < n:
        nots = [True] * n_nots + [False] * (places - n_nots)
        rng.shuffle(nots)
        new = solve(_pair(rng, n_leaves, depth, iter(nots), used))
        problems[new.id] = new
    return list(problems.values())


def _pair(rng: random.Random, leaves: int, depth: int, nots: Iterator[bool], used: list[str]) -> str:
    """A random pair with an operator between: every tree of that many leaves and that depth is equally likely."""
    left = rng.choices(range(1, leaves), cuts(leaves, depth))[0]
    first = _operand(rng, left, depth - 1, nots, used)
    return f"{first} {rng.choice(used)} {_operand(rng, leaves - left, depth - 1, nots, used)}"


def _operand(rng: random.Random, leaves: int, depth: int, nots: Iterator[bool], used: list[str]) -> str:
    """A random truth value or pair in brackets, behind a `not` where the next of `nots` says so."""
    mark = "not " if next(nots) else ""
    return mark + (rng.choice(TRUTHS) if leaves == 1 else f"( {_pair(rng, leaves, depth, nots, used)} )")


def solve(question: str) -> Problem | None:
    """The problem that a question states, solved; None where it is no question of this task, or nested too deep."""
    words, steps = question.split(" ")[::-1], []
    try:
        value, canonical = _read_pair(words, steps, MAX_LEAVES - 1)
    except NoExpression:
        return None
    return None if words else make_problem(question, steps, value, "boolean", canonical=canonical, exact_steps=True)


def _read_pair(words: list[str], steps: list[str], depth: int) -> tuple[str, str]:
    """The value and the canonical form of the pair that `words`, last word first, begin with; its steps to `steps`.

    In the canonical form operands are sorted, for all three operators commute.
    """
    if not depth:
        raise NoExpression
    left, one = _read_operand(words, steps, depth)
    operator = _next(words)
    if operator not in OPERATORS:
        raise NoExpression
    right, other = _read_operand(words, steps, depth)
    value = _name(OPERATORS[operator](left == "true", right == "true"))
    steps.append(f"{left} {operator} {right} = {value}")
    return value, f"{operator}({','.join(sorted((one, other)))})"


def _read_operand(words: list[str], steps: list[str], depth: int) -> tuple[str, str]:
    """As `_read_pair`, for a truth value or a pair in brackets, with or without a `not` before it."""
    word = _next(words)
    negated = word == "not"
    if negated:
        word = _next(words)
    if word == "(":
        value, form = _read_pair(words, steps, depth - 1)
        if _next(words) != ")":
            raise NoExpression
    elif word in TRUTHS:
        value = form = word
    else:
        raise NoExpression
    if not negated:
        return value, form
    steps.append(f"not {value} = {_name(value == 'false')}")
    return _name(value == "false"), f"not({form})"


def _next(words: list[str]) -> str:
    if not words:
        raise NoExpression
    return words.pop()


def _name(value: bool) -> str:
    return "true" if value else "false"
