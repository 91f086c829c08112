"""Exercises of 05_dpo_self_training: the pair rule, the DPO loss, pass@k."""

import math
from itertools import combinations

from lib.lessons.check import Exercise

RIGHT = [{1, 2, 3, 4}, {1, 5, 6}]
WRONG = [{1, 2, 3, 9}, {7, 8}, {1, 5}]


def similarity(a: set, b: set) -> float:
    """Jaccard similarity."""
    return len(a & b) / len(a | b)


def pairs_of(farthest, right: list[set], wrong: list[set], n: int) -> list[tuple[int, int]]:
    """What the reader's function returns, as a list of pairs of places."""
    found = farthest(right, wrong, n)
    assert isinstance(found, (list, tuple)), f"a list of pairs (place, place) was expected, found {found!r}"
    for pair in found:
        places = isinstance(pair, tuple) and len(pair) == 2 and all(hasattr(place, "__index__") for place in pair)
        assert places, f"a pair is (place in right, place in wrong), two whole numbers; found {pair!r}"
        there = 0 <= pair[0] < len(right) and 0 <= pair[1] < len(wrong)
        assert there, f"{len(right)} right and {len(wrong)} wrong texts: there is no pair {pair}; right comes first"
    return list(found)


def farthest_returns_pairs_of_places(farthest):
    """It returns n pairs (place in right, place in wrong), none of them twice."""
    for n in (3, 6):
        found = pairs_of(farthest, RIGHT, WRONG, n)
        assert len(found) == n, f"{n} pairs were asked for, {len(found)} came"
        assert len(set(found)) == n, f"a pair came twice: {found}"


def farthest_prefers_the_least_alike(farthest):
    """The pairs are the least alike of all, the least alike first."""
    found = [similarity(RIGHT[i], WRONG[j]) for i, j in pairs_of(farthest, RIGHT, WRONG, 3)]
    everything = sorted(similarity(a, b) for a in RIGHT for b in WRONG)
    wanted, most = everything[:3], everything[:-4:-1]
    assert found == wanted or found != wanted[::-1], "the order is upside down: the least alike comes first"
    numbers = [[round(value, 2) for value in values] for values in (wanted, found)]
    reason = "those are the most alike" if found == most else "sort all pairs by their similarity, then cut"
    assert found == wanted, f"the three smallest similarities are {numbers[0]}, yours have {numbers[1]}: {reason}"


def farthest_divides_by_the_union(farthest):
    """Alike is the share of the union, not the number in common: long texts have more in common with everything."""
    right, wrong = [set(range(20))], [set(range(5)), {0, 1, 2, 100}]
    found = pairs_of(farthest, right, wrong, 1)
    assert found == [(0, 1)], f"3 of 21 tokens in common are less alike than 5 of 20; expected [(0, 1)], found {found}"
    found = pairs_of(farthest, [{1, 2, 3, 4}], [{1, 2, 3, 5, 6, 7, 8, 9}, {1, 2, 10}], 1)
    assert found == [(0, 0)], f"3 of 9 are less alike than 2 of 5; expected [(0, 0)], found {found}"


def farthest_takes_what_there_is(farthest):
    """Fewer pairs than n are all of them; without right or without wrong ones there is none."""
    found = pairs_of(farthest, RIGHT[:1], WRONG[:2], 3)
    assert len(found) == 2, f"one right and two wrong make two pairs, 3 were asked for, found {found}"
    for right, wrong in ((RIGHT, []), ([], WRONG)):
        found = farthest(right, wrong, 3)
        assert list(found) == [], f"{len(right)} right and {len(wrong)} wrong texts make no pair, found {found}"


CASES = [(-12.0, -15.0, -12.5, -14.0, 0.1), (-3.0, -2.0, -4.0, -2.5, 0.5), (-80.0, -20.0, -10.0, -15.0, 0.1)]


def expected_loss(chosen, rejected, ref_chosen, ref_rejected, beta):
    """The DPO loss of one pair."""
    return math.log1p(math.exp(-beta * ((chosen - ref_chosen) - (rejected - ref_rejected))))


STARTS = {  # what some mistakes give where the model is the reference
    0.0: "that is the margin; the loss is -log sigmoid of it",
    0.5: "that is sigmoid of the margin; take -log of it",
    -math.log(2): "the minus before the log is missing",
    1.0: "the logarithm is the natural one",
}


def loss_starts_at_log_two(loss):
    """Before the first step the model is the reference, and the loss is ln 2, whatever the pair."""
    for chosen, rejected in ((-10.0, -30.0), (-30.0, -10.0)):
        found = loss(chosen, rejected, chosen, rejected, 0.1)
        reasons = (why for value, why in STARTS.items() if math.isclose(found, value, abs_tol=1e-9))
        reason = next(reasons, "is each text's reference subtracted from it?")
        assert abs(found - math.log(2)) < 1e-9, f"model = reference gives ln 2 = 0.6931, found {found:.4f}: {reason}"


def loss_falls_when_the_chosen_gains(loss):
    """It falls when the chosen gains against the reference, and rises when the rejected does."""
    still = loss(-10.0, -10.0, -10.0, -10.0, 0.1)
    assert loss(-8.0, -10.0, -10.0, -10.0, 0.1) < still, "the chosen became likelier, so the loss must fall: the sign?"
    assert loss(-10.0, -8.0, -10.0, -10.0, 0.1) > still, (
        "the rejected became likelier, so the loss must rise: is it in the margin, with a minus?"
    )


def loss_looks_at_the_difference_alone(loss):
    """Both may become less likely: where the rejected loses more, the loss falls all the same."""
    found = loss(-15.0, -25.0, -10.0, -10.0, 0.1)
    assert found < math.log(2), f"chosen lost 5 nats, rejected 15, so the loss falls below 0.6931; found {found:.4f}"


def loss_is_the_published_one(loss):
    """-log sigmoid(beta * ((chosen - ref_chosen) - (rejected - ref_rejected)))."""
    for case in CASES:
        found, wanted = loss(*case), expected_loss(*case)
        reason = ": beta is missing" if math.isclose(found, expected_loss(*case[:4], 1.0), abs_tol=1e-9) else ""
        assert abs(found - wanted) < 1e-9, f"loss{case} is {wanted:.6f}, found {found:.6f}{reason}"


def pass_is_coverage_and_mean(estimate):
    """With k = 1 it is the share of right samples, with k = n it is 1 where any is right."""
    found = estimate(10, 3, 1)
    reason = ": that is the chance of none" if abs(found - 0.7) < 1e-9 else ""
    assert abs(found - 0.3) < 1e-12, f"3 right of 10, k = 1: 0.3, found {found:.4f}{reason}"
    for correct, wanted in ((1, 1), (0, 0)):
        found = estimate(10, correct, 10)
        assert abs(found - wanted) < 1e-9, (
            f"{correct} right of 10, k = 10: {wanted}, found {found:.4f}: there is one choice, and it holds all samples"
        )


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
        others = {
            1 - share: ": that is the share of choices without a right one",
            math.comb(correct, k) / math.comb(n, k): ": that is the share of choices in which all are right",
        }
        reason = next((why for value, why in others.items() if math.isclose(found, value, abs_tol=1e-9)), "")
        assert abs(found - share) < 1e-9, f"n {n}, correct {correct}, k {k}: {share:.4f}, found {found:.4f}{reason}"


def pass_handles_few_wrong(estimate):
    """Fewer than k wrong samples: every choice holds a right one."""
    found = estimate(10, 8, 5)
    assert abs(found - 1) < 1e-9, f"8 right of 10, k 5: 1, found {found:.4f}: two wrong ones cannot fill five places"


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
