"""Exercises of 09_evaluation: an interval for an accuracy, and the methods no other beats."""

import math
import random

from lib import evaluation
from lib.lessons.check import Exercise


def interval_stays_inside(wilson):
    """Both ends lie in [0, 1] and hold the accuracy between them, also when all or nothing is right."""
    for correct, n in ((0, 10), (10, 10), (1, 3), (400, 500)):
        low, high = wilson(correct, n)
        ends = [0, low, correct / n, high, 1]
        ordered = all(a <= b + 1e-9 for a, b in zip(ends, ends[1:], strict=False))  # but for rounding
        assert ordered, f"{correct} of {n}: ({low:.3f}, {high:.3f}); is it p ± 1.96 s?"


def interval_has_width(wilson):
    """10 right of 10 is not certainty: the interval has a width."""
    low, high = wilson(10, 10)
    assert high - low > 0.1, f"10 of 10 gave ({low:.3f}, {high:.3f}): a width of 0 claims to know the accuracy exactly"


def interval_is_right(wilson):
    """It is Wilson's interval at 95 %."""
    for correct, n in ((0, 10), (7, 9), (80, 100), (417, 500)):
        expected, found = evaluation.wilson(correct, n), wilson(correct, n)
        close = all(math.isclose(a, b, abs_tol=1e-4) for a, b in zip(expected, found, strict=True))
        assert close, f"{correct} of {n}: expected ({expected[0]:.4f}, {expected[1]:.4f}), found {found}"


def _rows(n: int, seed: int) -> list[dict]:
    rng = random.Random(seed)
    return [
        {"method": f"m{i}", "accuracy": rng.randint(0, 5) / 5, "tokens_per_problem": rng.randint(1, 6)}
        for i in range(n)
    ]


def frontier_keeps_the_unbeaten(frontier):
    """A method stays if no other is as accurate and as cheap and better in one of the two."""
    for seed in range(30):
        rows = _rows(6, seed)
        found = {row["method"] for row in frontier(rows)}
        expected = {row["method"] for row in evaluation.pareto(rows)}
        points = [(r["method"], r["accuracy"], r["tokens_per_problem"]) for r in rows]
        assert found == expected, f"of {points} you keep {sorted(found)}, expected {sorted(expected)}"


def frontier_keeps_ties(frontier):
    """Two methods with the same accuracy and cost both stay."""
    rows = [{"method": m, "accuracy": 0.5, "tokens_per_problem": 3} for m in "ab"]
    assert len(frontier(rows)) == 2, "equal methods beat each other in your version: ask for better in one of the two"


EXERCISES = {
    "9.1": Exercise(
        [interval_stays_inside, interval_has_width, interval_is_right],
        [
            "p ± 1.96 sqrt(p (1 - p) / n) has width 0 at p = 1; Wilson asks which p would have made ours likely.",
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
