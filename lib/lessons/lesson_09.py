"""Exercises of 09_evaluation: an interval for an accuracy, and the methods no other beats."""

import math
import random

from lib import evaluation
from lib.lessons.check import Exercise


def ends(wilson, correct: int, n: int) -> tuple[float, float]:
    """(low, high) as the reader's function returns them."""
    found = wilson(correct, n)
    pair = hasattr(found, "__len__") and len(found) == 2
    assert pair, f"{correct} of {n}: the two ends (low, high) were expected, found {found!r}"
    return float(found[0]), float(found[1])


def interval_stays_inside(wilson):
    """Both ends lie in [0, 1] and hold the accuracy between them, also when all or nothing is right."""
    for correct, n in ((0, 10), (10, 10), (1, 3), (400, 500)):
        low, high = ends(wilson, correct, n)
        places = [0, low, correct / n, high, 1]
        ordered = all(a <= b + 1e-9 for a, b in zip(places, places[1:], strict=False))  # but for rounding
        reason = "the low end comes first" if low > high else "are these shares? Is it p ± 1.96 s?"
        assert ordered, f"{correct} of {n}: ({low:.3f}, {high:.3f}); {reason}"


def interval_has_width(wilson):
    """10 right of 10 is not certainty: the interval has a width."""
    low, high = ends(wilson, 10, 10)
    assert high - low > 0.1, f"10 of 10 gave ({low:.3f}, {high:.3f}): a width of 0 claims to know the accuracy exactly"


def interval_is_right(wilson):
    """It is Wilson's interval at 95 %."""
    for correct, n in ((0, 10), (7, 9), (80, 100), (417, 500)):
        expected, (low, high) = evaluation.wilson(correct, n), ends(wilson, correct, n)
        close = all(math.isclose(a, b, abs_tol=1e-4) for a, b in zip(expected, (low, high), strict=True))
        middle = math.isclose(low + high, sum(expected), abs_tol=1e-4)
        reason = "its middle is right, not its width" if middle else "its middle lies nearer 1/2 than p, and z is 1.96"
        pairs = f"expected ({expected[0]:.4f}, {expected[1]:.4f}), found ({low:.4f}, {high:.4f})"
        assert close, f"{correct} of {n}: {pairs}; {reason}"


def _point(row: dict) -> str:
    return f"{row['method']} (accuracy {row['accuracy']}, {row['tokens_per_problem']} tokens)"


def _rows(n: int, seed: int) -> list[dict]:
    rng = random.Random(seed)
    return [
        {"method": f"m{i}", "accuracy": rng.randint(0, 5) / 5, "tokens_per_problem": rng.randint(1, 6)}
        for i in range(n)
    ]


def kept(frontier, rows: list[dict]) -> list[str]:
    """The methods of the rows that the reader's function returns."""
    found = frontier([dict(row) for row in rows])
    given = isinstance(found, (list, tuple)) and all(isinstance(row, dict) for row in found)
    assert given, f"a list of rows was expected, found {found!r}"
    return [row["method"] for row in found]


def frontier_keeps_the_unbeaten(frontier):
    """A method stays if no other is as accurate and as cheap and better in one of the two."""
    for seed in range(30):
        rows = _rows(6, seed)
        found, expected = set(kept(frontier, rows)), {row["method"] for row in evaluation.pareto(rows)}
        for row in rows:
            others = [other for other in rows if row not in evaluation.pareto([row, other])]  # those that beat it
            said = f"{_point(others[0])} beats it" if others else "no other row beats it"
            assert row["method"] not in found - expected, f"you keep {_point(row)}, but {said}"
            assert row["method"] not in expected - found, f"you leave out {_point(row)}, but {said}"


def frontier_keeps_ties(frontier):
    """Two methods with the same accuracy and cost both stay."""
    rows = [{"method": m, "accuracy": 0.5, "tokens_per_problem": 3} for m in "ab"]
    found = kept(frontier, rows)
    assert len(found) == 2, f"of two equal rows you keep {len(found)}: a row beats another only if it is better in one"


EXERCISES = {
    "9.1": Exercise(
        [interval_stays_inside, interval_has_width, interval_is_right],
        [
            "Both ends q solve the same equation, |q - p| = 1.96 sqrt(q (1 - q) / n). Square it.",
            "By powers of q, with z = 1.96: (1 + z²/n) q² - (2p + z²/n) q + p² = 0. What are its two roots?",
            "Middle (p + z²/2n) / (1 + z²/n), half width z / (1 + z²/n) · sqrt(p (1 - p) / n + z²/4n²), z = 1.96.",
        ],
    ),
    "9.2": Exercise(
        [frontier_keeps_ties, frontier_keeps_the_unbeaten],
        [
            "Write a function beats(a, b) first: no worse in both, better in at least one.",
            "[row for row in rows if not any(beats(other, row) for other in rows)]",
        ],
    ),
}
