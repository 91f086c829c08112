"""Generated word problems: a person's things grow, shrink, multiply and get shared out, one event a step.

    Mia has 14 marbles. Noah gives Mia 8 marbles. Mia sorts the marbles into 2 equal piles and keeps one pile.
    How many marbles does Mia have now?
        <<14+8=22>>
        <<22/2=11>>
        #### 11

The split is by the arithmetic (14+8/2, operands of a first + or * in order of size), not by the wording: no training
problem has the whole chain of a test problem. (It may begin with it: 14+8 can be tested and 14+8/2 trained on.)
"""

import random

from lib.errors import InputError
from lib.problems import Problem, make_problem

NAMES = "Ada Ben Carla Dev Ella Farid Grace Hugo Ines Jonas Kofi Lena Mia Noah Olga Pavel Quinn Rosa Sam Tara".split()
THINGS = (
    "apples books buttons cards coins cookies flowers marbles nuts pears pencils plums rings seeds shells stamps "
    "stickers stones tickets tokens"
).split()
PLACES = ("in a drawer", "under the bed", "at the market", "in the garden", "on the way home", "in an old box")
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()

STARTS = {
    None: ("{name} has {a} {things}.", "{name} starts with {a} {things}.", "There are {a} {things} on {name}'s table."),
    "+": (
        "{friend} has {a} {things}. {name} has {b} more {things} than {friend}.",
        "{name} has {a} {things} at home and {b} {things} at school.",
    ),
    "-": ("{friend} has {a} {things}. {name} has {b} fewer {things} than {friend}.",),
    "*": (
        "{name} has {a} boxes with {b} {things} in each.",
        "{name} fills {a} bags and puts {b} {things} into each bag.",
    ),
}
EVENTS = {
    "+": (
        "{name} buys {b} more {things}.",
        "{friend} gives {name} {b} {things}.",
        "{name} finds {b} {things} {place}.",
        "On {day}, {name} gets another {b} {things}.",
        "{name} wins {b} {things} from {friend}.",
    ),
    "-": (
        "{name} gives {b} {things} to {friend}.",
        "{name} loses {b} {things} {place}.",
        "On {day}, {name} sells {b} {things}.",
        "{friend} borrows {b} {things} from {name}.",
        "Then {b} of the {things} break.",
    ),
    "*": (
        "Over the summer, the number of {name}'s {things} becomes {b} times as large.",
        "{name} trades every one of the {things} for {b} new {things}.",
    ),
    "/": (
        "{name} sorts the {things} into {b} equal piles and keeps one pile.",
        "{name} shares the {things} equally among {b} people, {name} being one of them.",
    ),
}
QUESTIONS = (
    "How many {things} does {name} have now?",
    "How many {things} does {name} have in the end?",
    "How many {things} are left for {name}?",
)


def operand(rng: random.Random, operator: str, value: int, max_number: int) -> int | None:
    """A second operand (at least 2) that keeps the value a whole number in 1..max_number, or None if there is none."""
    if operator == "+":
        choices = range(2, max_number - value + 1)
    elif operator == "-":
        choices = range(2, value)
    elif operator == "*":
        choices = range(2, min(max_number // value, 9) + 1)
    else:
        choices = [k for k in range(2, 10) if value % k == 0 and value > k]
    return rng.choice(choices) if choices else None


def problem(rng: random.Random, n_steps: int, max_number: int) -> Problem:
    """One problem with `n_steps` arithmetic steps and every number in 1..max_number."""
    name, friend = rng.sample(NAMES, 2)
    words = {"name": name, "friend": friend, "things": rng.choice(THINGS)}
    value = rng.randint(2, max_number)
    chain, sentences = [], []
    while len(chain) < n_steps:
        operator = rng.choice("+-*/")
        b = operand(rng, operator, value, max_number)
        if b is None:
            if not chain:
                value = rng.randint(2, max_number)
            continue
        words |= {"a": value, "b": b, "place": rng.choice(PLACES), "day": rng.choice(DAYS)}
        if not chain:
            compound = operator in STARTS and rng.random() < 0.4
            sentences.append(rng.choice(STARTS[operator if compound else None]).format(**words))
        if chain or not compound:
            sentences.append(rng.choice(EVENTS[operator]).format(**words))
        result = {"+": value + b, "-": value - b, "*": value * b, "/": value // b}[operator]
        chain.append((value, operator, b, result))
        value = result
    question = " ".join(sentences + [rng.choice(QUESTIONS).format(**words)])
    steps = [f"<<{a}{operator}{b}={result}>>" for a, operator, b, result in chain]
    return make_problem(question, steps, str(value), "word_problems", canonical=canonical_chain(chain))


def canonical_chain(chain: list[tuple[int, str, int, int]]) -> str:
    """ "14+8/2" for the chain 14+8, 22/2; the operands of a first + or * stand in order of size."""
    a, operator, b, _ = chain[0]
    if operator in "+*":
        a, b = min(a, b), max(a, b)
    return f"{a}{operator}{b}" + "".join(f"{operator}{b}" for _, operator, b, _ in chain[1:])


def generate(n: int, min_steps: int = 1, max_steps: int = 3, max_number: int = 20, seed: int = 0) -> list[Problem]:
    """`n` problems with different questions, their numbers of steps spread evenly over min_steps..max_steps."""
    if not (1 <= min_steps <= max_steps and max_number >= 10):
        raise InputError(
            "word_problems wants 1 <= min_steps <= max_steps and max_number >= 10, "
            f"got {min_steps}, {max_steps} and {max_number}; change them."
        )
    rng = random.Random(seed)
    problems: dict[str, Problem] = {}
    while len(problems) < n:
        new = problem(rng, min_steps + len(problems) % (max_steps - min_steps + 1), max_number)
        problems[new.id] = new
    return list(problems.values())
