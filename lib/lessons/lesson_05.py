"""Exercises of 05_dpo_self_training: the pair rule, the DPO loss, pass@k."""

import math
from itertools import combinations

from lib.lessons.check import Exercise

RIGHT = [{1, 2, 3, 4}, {1, 5, 6}]
WRONG = [{1, 2, 3, 9}, {7, 8}, {1, 5}]


def similarity(a: set, b: set) -> float:
    """Jaccard similarity."""
    return len(a & b) / len(a | b)


def farthest_returns_pairs_of_places(farthest):
    """It returns n pairs (place in right, place in wrong), none of them twice."""
    found = list(farthest(RIGHT, WRONG, 3))
    assert len(found) == 3, f"3 pairs were asked for, {len(found)} came"
    assert all(0 <= i < len(RIGHT) and 0 <= j < len(WRONG) for i, j in found), f"no such places: {found}"
    assert len(set(found)) == 3, f"a pair came twice: {found}"


def farthest_prefers_the_least_alike(farthest):
    """The pairs are the least alike of all, the least alike first."""
    found = [similarity(RIGHT[i], WRONG[j]) for i, j in farthest(RIGHT, WRONG, 3)]
    wanted = sorted(similarity(a, b) for a in RIGHT for b in WRONG)[:3]
    assert found != wanted[::-1] or found == wanted, "the order is upside down: the least alike comes first"
    assert found == wanted, f"the three smallest similarities are {wanted}, yours have {found}"


def farthest_divides_by_the_union(farthest):
    """Alike is the share of the union, not the number in common: long texts have more in common with everything."""
    right, wrong = [set(range(20))], [set(range(5)), {0, 1, 2, 100}]
    found = list(farthest(right, wrong, 1))
    assert found == [(0, 1)], f"3 of 21 tokens in common are less alike than 5 of 20; expected [(0, 1)], found {found}"
    found = list(farthest([{1, 2, 3, 4}], [{1, 2, 3, 5, 6, 7, 8, 9}, {1, 2, 10}], 1))
    assert found == [(0, 0)], f"3 of 9 are less alike than 2 of 5; expected [(0, 0)], found {found}"


def farthest_takes_what_there_is(farthest):
    """Fewer pairs than n are all of them; without right or without wrong ones there is none."""
    assert len(list(farthest(RIGHT[:1], WRONG[:2], 3))) == 2, "one right and two wrong make two pairs"
    assert list(farthest(RIGHT, [], 3)) == [] and list(farthest([], WRONG, 3)) == [], "nothing to pair with"


CASES = [(-12.0, -15.0, -12.5, -14.0, 0.1), (-3.0, -2.0, -4.0, -2.5, 0.5), (-80.0, -20.0, -10.0, -15.0, 0.1)]


def expected_loss(chosen, rejected, ref_chosen, ref_rejected, beta):
    """The DPO loss of one pair."""
    return math.log1p(math.exp(-beta * ((chosen - ref_chosen) - (rejected - ref_rejected))))


def loss_starts_at_log_two(loss):
    """Before the first step the model is the reference, and the loss is ln 2, whatever the pair."""
    for chosen, rejected in ((-10.0, -30.0), (-30.0, -10.0)):
        found = loss(chosen, rejected, chosen, rejected, 0.1)
        assert abs(found - math.log(2)) < 1e-9, f"model = reference gives ln 2 = 0.6931, found {found}"


def loss_falls_when_the_chosen_gains(loss):
    """It falls when the chosen gains against the reference, and rises when the rejected does."""
    still = loss(-10.0, -10.0, -10.0, -10.0, 0.1)
    assert loss(-8.0, -10.0, -10.0, -10.0, 0.1) < still, "the chosen became likelier, so the loss must fall"
    assert loss(-10.0, -8.0, -10.0, -10.0, 0.1) > still, "the rejected became likelier, so the loss must rise"


def loss_looks_at_the_difference_alone(loss):
    """Both may become less likely: where the rejected loses more, the loss falls all the same."""
    found = loss(-15.0, -25.0, -10.0, -10.0, 0.1)
    assert found < math.log(2), f"chosen lost 5 nats, rejected 15, so the pair is ordered better; found {found}"


def loss_is_the_published_one(loss):
    """-log sigmoid(beta * ((chosen - ref_chosen) - (rejected - ref_rejected)))."""
    for case in CASES:
        found = loss(*case)
        assert abs(found - expected_loss(*case)) < 1e-9, f"loss{case} is {expected_loss(*case):.6f}, found {found}"


def pass_is_coverage_and_mean(estimate):
    """With k = 1 it is the share of right samples, with k = n it is 1 where any is right."""
    assert abs(estimate(10, 3, 1) - 0.3) < 1e-12, f"3 right of 10, k = 1: 0.3, found {estimate(10, 3, 1)}"
    assert estimate(10, 1, 10) == 1 and estimate(10, 0, 10) == 0, "with k = n all samples are in every choice"


def pass_counts_every_choice(estimate):
    """It is the share of all choices of k samples that hold a right one."""
    for n, correct, k in ((5, 2, 2), (6, 1, 3), (8, 5, 3), (10, 3, 5)):
        choices = list(combinations(range(n), k))
        share = sum(any(i < correct for i in choice) for choice in choices) / len(choices)
        found = estimate(n, correct, k)
        biased = 1 - (1 - correct / n) ** k
        assert abs(found - biased) > 1e-9 or abs(share - biased) < 1e-9, (
            f"1 - (1 - c/n)^k draws with replacement and is too low: n {n}, c {correct}, k {k} gives {share:.4f}"
        )
        assert abs(found - share) < 1e-9, f"n {n}, correct {correct}, k {k}: {share:.4f}, found {found}"


def pass_handles_few_wrong(estimate):
    """Fewer than k wrong samples: every choice holds a right one."""
    assert estimate(10, 8, 5) == 1, "two wrong samples cannot fill a choice of five"


EXERCISES = {
    "5.1": Exercise(
        [
            farthest_returns_pairs_of_places,
            farthest_prefers_the_least_alike,
            farthest_divides_by_the_union,
            farthest_takes_what_there_is,
        ],
        [
            "List all pairs of places first, then sort them, then cut.",
            "How alike two sets are: the size of a & b over the size of a | b.",
            "sorted(((i, j) for i in range(len(right)) for j in range(len(wrong))), key=...)[:n]",
        ],
    ),
    "5.2": Exercise(
        [
            loss_starts_at_log_two,
            loss_falls_when_the_chosen_gains,
            loss_looks_at_the_difference_alone,
            loss_is_the_published_one,
        ],
        [
            "A log-ratio says how much likelier the model finds a text than the reference does: a difference of logs.",
            "The margin is beta times (log-ratio of the chosen minus log-ratio of the rejected).",
            "-log sigmoid(x) = log(1 + exp(-x)): math.log1p(math.exp(-margin))",
        ],
    ),
    "5.3": Exercise(
        [pass_is_coverage_and_mean, pass_counts_every_choice, pass_handles_few_wrong],
        [
            "Count the choices that fail: all k of them are among the wrong ones.",
            "math.comb(n, k) is the number of choices, and it is 0 where k is more than n.",
            "1 - math.comb(n - correct, k) / math.comb(n, k)",
        ],
    ),
}
