"""Exercises of 01_data_inspection: a split that holds, reading an answer, checking a chain."""

import inspect
from collections import Counter
from fractions import Fraction

from lib import answers, problems
from lib.lessons.check import Exercise
from lib.tasks import word_problems


def split_is_stable(split_of):
    """The same text always goes to the same split, also in another session."""
    names = getattr(getattr(inspect.unwrap(split_of), "__code__", None), "co_names", ())
    assert "hash" not in names, "Python's hash() of a text differs from session to session; hashlib's functions do not"
    for text in [f"{a}+{b}" for a in range(2, 12) for b in range(12, 22)]:
        assert split_of(text) == split_of(text), f"{text!r} went to two splits: is there something random in it?"


def split_has_the_shares(split_of):
    """About 80, 10 and 10 in a hundred go to train, valid and test."""
    counts = Counter(split_of(f"{a}+{b}") for a in range(100) for b in range(100))
    found = ", ".join(sorted(map(repr, counts)))
    assert set(counts) == {"train", "valid", "test"}, f"the splits are train, valid and test; found {found}"
    for name, share in (("train", 0.8), ("valid", 0.1), ("test", 0.1)):
        found = counts[name] / 10_000
        assert abs(found - share) < 0.02, (
            f"{name} got {found:.1%} of 10,000 texts, not about {share:.0%}: is your number spread evenly?"
        )


def split_ignores_the_answer(split_of):
    """No last digit and no digit sum of an answer says where it goes (7919 a + 104729 b modulo 10 failed here)."""
    tests = [a + b for a in range(100) for b in range(100) if split_of(f"{a}+{b}") == "test"]
    assert tests, "no text went to test"
    for what, base in (("last digits", 10), ("remainders by 9, which are those of their digit sums:", 9)):
        found = Counter(answer % base for answer in tests)
        assert max(found.values()) < 0.2 * len(tests), (
            f"of {len(tests)} test answers, the {what} {dict(sorted(found.items()))}: arithmetic on numbers or letters "
            "decides the split; a digest of the whole text would not follow the answer"
        )


ANSWERS = {
    "<<3+4=7>>\n#### 7": "7",
    "#### 1,080": "1080",
    "#### $5.50": "5.5",
    "#### -3.": "-3",
    "#### 3\nno, wait\n#### 4": "4",
    "#### 12\nThat is 3 more.": "12",
    "the answer is 7": None,
    "#### ": None,
}


def _number(found) -> Fraction | None:
    """The number that the reader's function gave, however it is written."""
    try:
        return Fraction(str(found).replace(",", "").strip("$ \n"))
    except (ValueError, ZeroDivisionError):
        return None


def answer_is_the_last_marked(read_answer):
    """The number behind the last #### is read, with commas, signs and decimals; without #### there is none."""
    for text, expected in ANSWERS.items():
        found = read_answer(text)
        if expected is None:
            assert found is None, f"{text!r} has no answer, but you read {found!r}"
        else:
            assert found is not None, f"{text!r} has the answer {expected}, but you read none"
            assert _number(found) == Fraction(expected), f"{text!r}: expected {expected}, you read {found!r}"


def answer_is_cleaned(read_answer):
    """The answer is a text that holds the number alone: no blank, comma or $, and no stop behind it."""
    for text, expected in ANSWERS.items():
        found = read_answer(text)
        if expected is not None:
            assert isinstance(found, str), f"{text!r}: a text was expected, you gave {found!r}"
            left = {"a blank": " ", "a comma": ",", "the $": "$", "a line break": "\n"}
            left = [name for name, sign in left.items() if sign in found] + ["the stop"] * found.endswith(".")
            assert not left, f"{text!r}: you read {found!r}; {' and '.join(left)} should be gone"


def chain_counts_broken_steps(broken_steps):
    """The number of steps that do not hold is counted, also where an earlier one is broken."""
    cases = {
        "<<3+4=7>>": (0, "3+4 is 7"),
        "<<3+4=8>>": (1, "3+4 is not 8"),
        "<<2*3=6>>\n<<6-1=4>>\n<<4/2=3>>": (2, "the last two do not hold; count them all"),
        "<<1/3=0.33>>": (0, "0.33 is 1/3, rounded: calculator.agrees knows"),
        "<<10/0=0>>": (1, "a step without a value does not hold"),
    }
    for text, (expected, reason) in cases.items():
        try:
            found = broken_steps(text)
        except TypeError as error:  # such as agrees(None, ...)
            raise AssertionError(f"{text!r}: your function raised TypeError, {error}; {reason}") from None
        assert found == expected, f"{text!r} has {expected} broken steps, you found {found}: {reason}"


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
            "Turn a digest of the text, hashlib.sha256(text.encode()).digest(), into a number between 0 and 1; below "
            "0.8 it is train, below 0.9 valid, else test.",
            f"int.from_bytes(digest, 'big') / 2 ** (8 * len(digest)) is one. ({problems.__name__}.split_of does so.)",
        ],
    ),
    "1.2": Exercise(
        [answer_is_the_last_marked, answer_is_cleaned],
        [
            "Look for the last '####', not the first: a model may change its mind.",
            "Strip '$', commas and a final stop before you look whether anything is left.",
            "before, marker, answer = text.rpartition('####'); of answer keep its first line, strip() it, strip('$'), "
            f"replace(',', ''), rstrip('.'). ({answers.__name__}.extract does more; read it after you tried.)",
        ],
    ),
    "1.3": Exercise(
        [chain_counts_broken_steps, chain_accepts_gold],
        [
            "answers.annotations(text) gives (expression, stated value) pairs.",
            "calculator.evaluate(expression) gives a value or a reason; a step without a value is broken.",
            "Then value, _ = calculator.evaluate(expression); value is None or not calculator.agrees(value, stated)",
        ],
    ),
}
