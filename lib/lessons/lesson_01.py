"""Exercises of 01_data_inspection: a split that holds, reading an answer, checking a chain."""

from collections import Counter
from fractions import Fraction

from lib import answers, problems
from lib.lessons.check import Exercise
from lib.tasks import word_problems


def split_is_stable(split_of):
    """The same text always goes to the same split, also in another session."""
    names = getattr(getattr(split_of, "__code__", None), "co_names", ())
    assert "hash" not in names, "Python's hash() of a text differs from session to session; hashlib's functions do not"
    for text in [f"{a}+{b}" for a in range(2, 12) for b in range(12, 22)]:
        assert split_of(text) == split_of(text), f"{text!r} went to two splits: is there something random in it?"


def split_has_the_shares(split_of):
    """About 80, 10 and 10 in a hundred go to train, valid and test."""
    counts = Counter(split_of(f"{a}+{b}") for a in range(100) for b in range(100))
    assert set(counts) == {"train", "valid", "test"}, f"found the splits {sorted(counts)}"
    for name, share in (("train", 0.8), ("valid", 0.1), ("test", 0.1)):
        found = counts[name] / 10_000
        assert abs(found - share) < 0.02, f"{name} got {found:.1%} of 10,000 texts, not about {share:.0%}"


def split_ignores_the_answer(split_of):
    """The last digit of the sum says nothing about the split (7919 a + 104729 b modulo 10 failed here)."""
    tests = [(a, b) for a in range(100) for b in range(100) if split_of(f"{a}+{b}") == "test"]
    digits = Counter((a + b) % 10 for a, b in tests)
    assert tests and max(digits.values()) < 0.2 * len(tests), f"last digits of the test answers: {dict(digits)}"


ANSWERS = {
    "<<3+4=7>>\n#### 7": "7",
    "#### 1,080": "1080",
    "#### $5.50": "5.5",
    "#### -3.": "-3",
    "#### 3\nno, wait\n#### 4": "4",
    "the answer is 7": None,
    "#### ": None,
}


def answer_is_the_last_marked(read_answer):
    """The number behind the last #### is read, with commas, signs and decimals; without #### there is none."""
    for text, expected in ANSWERS.items():
        found = read_answer(text)
        if expected is None:
            assert found is None, f"{text!r} has no answer, but you read {found!r}"
        else:
            assert found is not None, f"{text!r} has the answer {expected}, but you read none"
            assert Fraction(str(found).replace(",", "").strip("$ ")) == Fraction(expected), (
                f"{text!r}: expected {expected}, you read {found!r}"
            )


def chain_counts_broken_steps(broken_steps):
    """The number of steps that do not hold is counted, also where an earlier one is broken."""
    cases = {"<<3+4=7>>": 0, "<<3+4=8>>": 1, "<<2*3=6>>\n<<6-1=4>>\n<<4/2=3>>": 2, "<<1/3=0.33>>": 0, "<<10/0=0>>": 1}
    for text, expected in cases.items():
        found = broken_steps(text)
        assert found == expected, f"{text!r} has {expected} broken steps, you found {found}"


def chain_accepts_gold(broken_steps):
    """No step of 200 generated solutions is called broken."""
    for problem in word_problems.generate(200, seed=7):
        text = "\n".join(problem.steps)
        assert broken_steps(text) == 0, f"{text!r} holds, but you found {broken_steps(text)} broken steps"


EXERCISES = {
    "1.1": Exercise(
        [split_is_stable, split_has_the_shares, split_ignores_the_answer],
        [
            "Python's own hash() of a text differs from session to session; hashlib's functions do not.",
            "Turn the digest into a number between 0 and 1: int.from_bytes(digest, 'big') / 2 ** (8 * len(digest)).",
            f"Below 0.8 it is train, below 0.9 valid, else test: problems.split_of in {problems.__name__} does this.",
        ],
    ),
    "1.2": Exercise(
        [answer_is_the_last_marked],
        [
            "Look for the last '####', not the first: a model may change its mind.",
            "Strip '$', commas and a final stop before you look whether anything is left.",
            f"{answers.__name__}.extract and .number do this; read them after you tried.",
        ],
    ),
    "1.3": Exercise(
        [chain_counts_broken_steps, chain_accepts_gold],
        [
            "answers.annotations(text) gives (expression, stated value) pairs.",
            "calculator.evaluate(expression) gives a value or a reason; a step without a value is broken.",
            "calculator.agrees(value, stated) knows the rounding rule: 1/3 may be written 0.33.",
        ],
    ),
}
