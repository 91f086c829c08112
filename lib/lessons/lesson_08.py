"""Exercises of 08_dtw_tokenizer_alignment: the warping's table, a walk along offsets, a divergence with a tail."""

import itertools
import math

from lib.lessons.check import Exercise

INF = math.inf


# ----- 8.1
TABLES = (
    [[1, 2, 3], [2, 1, 4]],
    [[0, 2], [1, 0], [3, 1]],
    [[5]],
    [[1, 1, 1, 1]],
    [[2], [0], [1]],
    [[1, 9, 9], [9, 9, 1], [9, 1, 1]],
)


def cheapest(costs, i, j):
    """The least sum of costs on a way from (0, 0) to (i, j), by trying all of them."""
    if i < 0 or j < 0:
        return INF
    if i == j == 0:
        return costs[0][0]
    return costs[i][j] + min(cheapest(costs, i - 1, j - 1), cheapest(costs, i - 1, j), cheapest(costs, i, j - 1))


def found_totals(totals, costs):
    """What the reader's function returns, as lists."""
    found = totals([list(row) for row in costs])
    table = hasattr(found, "__len__") and all(hasattr(row, "__len__") for row in found)
    assert table, f"a table, a list of rows, was expected, found {found!r}"
    return [list(row) for row in found]


def totals_of_every_pair(totals):
    """There is one total for each pair of tokens: as many rows and columns as there are costs."""
    for costs in TABLES:
        found = found_totals(totals, costs)
        shape = (len(found), {len(row) for row in found})
        assert shape == (len(costs), {len(costs[0])}), f"{len(costs)} x {len(costs[0])} totals expected, found {found}"


def totals_begin_with_the_first_cost(totals):
    """The way begins at the first pair: its total is its cost."""
    for costs in TABLES:
        found, wanted = found_totals(totals, costs)[0][0], costs[0][0]
        reason = "it has nothing before it; note that Python's index -1 is the last entry"
        assert found == wanted, f"costs {costs}: the first total is {wanted}, found {found}; {reason}"


def totals_along_the_edges(totals):
    """In the first row and column there is one way only: the costs are added up."""
    for costs in TABLES:
        found = found_totals(totals, costs)
        row = list(itertools.accumulate(costs[0]))
        column = list(itertools.accumulate(line[0] for line in costs))
        reason = "what is outside the table costs infinity, not 0"
        assert found[0] == row, f"costs {costs}: the first row is {row}, found {found[0]}; {reason}"
        edge = [line[0] for line in found]
        assert edge == column, f"costs {costs}: the first column is {column}, found {edge}; {reason}"


def totals_are_the_cheapest(totals):
    """Every total is the cost of the cheapest way to that pair: both go on, or one of the two waits."""
    for costs in TABLES:
        found = found_totals(totals, costs)
        for i, j in itertools.product(range(len(costs)), range(len(costs[0]))):
            wanted = cheapest(costs, i, j)
            before = [(a, b) for a, b in ((i - 1, j - 1), (i - 1, j), (i, j - 1)) if min(a, b) >= 0]
            ways = ", ".join(f"{cheapest(costs, a, b)} at {(a, b)}" for a, b in before)
            assert found[i][j] == wanted, (
                f"costs {costs}: the total at {(i, j)} is {wanted}, its own cost {costs[i][j]} and the least of "
                f"{ways or 'nothing'}; found {found[i][j]}"
            )


# ----- 8.2
TEXTS = (  # spans of the teacher, of the student
    ([(0, 3), (3, 9)], [(0, 3), (3, 6), (6, 9)]),
    ([(0, 1), (1, 2), (2, 3)], [(0, 3)]),
    ([(0, 2), (2, 5)], [(0, 3), (3, 5)]),
    ([(0, 2), (3, 5)], [(0, 2), (3, 4), (4, 5)]),
    ([(0, 4)], [(0, 1), (1, 4)]),
    ([(0, 1), (0, 1), (1, 4)], [(0, 1), (1, 4)]),
    ([(0, 1), (1, 4)], [(0, 1), (0, 1), (1, 4)]),
    ([(0, 1), (0, 1), (1, 4)], [(0, 1), (0, 1), (1, 4)]),
)


def sharing(left, right):
    """Pairs of spans with a character in common, by looking at every pair."""
    pairs = itertools.product(enumerate(left), enumerate(right))
    return [(i, j) for (i, a), (j, b) in pairs if set(range(*a)) & set(range(*b))]


def linked(links, left, right) -> list[tuple]:
    """The pairs that the reader's function returns."""
    found = links(list(left), list(right))
    found = list(found) if hasattr(found, "__iter__") else found
    pairs = isinstance(found, list) and all(hasattr(pair, "__len__") and len(pair) == 2 for pair in found)
    assert pairs, f"a list of pairs (i, j) was expected, found {found!r}"
    return [tuple(pair) for pair in found]


def links_of_equal_texts(links):
    """Cut alike, every token belongs to its own twin and to nothing else."""
    for left, _ in TEXTS[:5]:
        wanted = [(i, i) for i in range(len(left))]
        found = sorted(linked(links, left, left))
        reason = "is the place at `end` taken for one of the span?"
        reason = "a pair came twice" if len(set(found)) < len(found) else reason
        assert found == wanted, f"spans {left} on both sides: {wanted}, found {found}; {reason}"


def links_miss_nothing(links):
    """Tokens that share a character are linked: one with several, several with one, several with several."""
    for left, right in TEXTS:
        found = set(linked(links, left, right))
        wanted = set(sharing(left, right))
        missed = sorted(wanted - found)
        reason = "did a finger move on while its token had another partner?"
        reason = "the teacher's place comes first" if {(j, i) for i, j in found} == wanted else reason
        assert not missed, f"teacher {left}, student {right}: missed {missed}; {reason}"


def links_do_not_touch(links):
    """Tokens that only touch, one ending where the other begins, share nothing."""
    for left, right in TEXTS:
        wrong = sorted(set(linked(links, left, right)) - set(sharing(left, right)))
        reason = "a span's end is the first place behind it"
        assert not wrong, f"teacher {left}, student {right}: {wrong} share no character; {reason}"


class Place(int):
    """A place in a text that counts how often places are compared."""

    compared = 0

    def _counted(compare):
        def method(self, other):
            Place.compared += 1
            return compare(int(self), int(other))

        return method

    __lt__, __le__, __gt__, __ge__ = map(_counted, (int.__lt__, int.__le__, int.__gt__, int.__ge__))
    __eq__, __ne__ = map(_counted, (int.__eq__, int.__ne__))
    __hash__ = int.__hash__


def links_walk(links):
    """Walk, don't search: of two long texts each span is compared a few times, not once with every other."""
    n = 400
    left, right = ([(Place(i), Place(i + 1)) for i in range(n)] for _ in range(2))
    Place.compared = 0
    found = linked(links, left, right)
    assert len(found) == n, f"{n} tokens of one letter each on both sides have {n} links, found {len(found)}"
    compared = Place.compared
    assert compared < 40 * n, f"{n} tokens a side took {compared:,} comparisons; two fingers need a few a token"


# ----- 8.3
PAIRS = (  # the teacher's probabilities, the student's, of tokens by name; what a dictionary lacks is the tail
    ({"a": 0.7, "b": 0.2}, {"a": 0.5, "b": 0.3}),
    ({"a": 1.0}, {"a": 0.25}),
    ({"a": 0.6}, {"a": 0.9}),
    ({"a": 0.5, "b": 0.5}, {"a": 0.5, "b": 0.25}),
    ({"a": 0.6}, {"a": 0.5, "b": 0.3}),
)


def exact(teacher, student):
    """The divergence of two distributions over the teacher's tokens and one event more: any other token."""
    pairs = [(p, student[token]) for token, p in teacher.items()]
    pairs.append((1 - sum(teacher.values()), 1 - sum(student[token] for token in teacher)))
    return sum(p * math.log(p / q) for p, q in pairs if p > 1e-12)


def diverged(divergence, teacher: dict, student: dict) -> float:
    """What the reader's function gives for copies."""
    try:
        found = divergence(dict(teacher), dict(student))
    except (ValueError, ZeroDivisionError) as error:
        raise AssertionError(
            f"teacher {teacher}, student {student}: {error}; an event of probability 0 adds nothing, leave it out"
        ) from None
    assert found is not None, "one number was expected, nothing came back"
    return float(found)


def divergence_of_a_point_mass(divergence):
    """A teacher that is sure teaches as a sample does: minus the log of what the student gives the token."""
    for q in (0.25, 0.9):
        found, wanted = diverged(divergence, {"a": 1.0}, {"a": q}), -math.log(q)
        reason = "p log(p / q), where p is the teacher's"
        reason = "the logarithm is the natural one" if math.isclose(found * math.log(2), wanted) else reason
        assert math.isclose(found, wanted, abs_tol=1e-6), f"student {q}: {wanted:.4f}, found {found:.4f}; {reason}"


def divergence_of_equals_is_0(divergence):
    """Nothing is to be learned where the two agree."""
    for teacher in ({"a": 0.7, "b": 0.2}, {"a": 0.6}):
        found = diverged(divergence, teacher, teacher)
        reason = "the log of p / q is 0 where q is p; and the teacher's numbers stay as they are, the rest is the tail"
        assert abs(found) < 1e-6, f"teacher and student {teacher}: 0, found {found:.4f}; {reason}"


def divergence_is_never_negative(divergence):
    """The tail counts: without it a student that gives the teacher's tokens too much would be rewarded."""
    found = diverged(divergence, {"a": 0.6}, {"a": 0.9})
    assert found > -1e-6, f"teacher {{'a': 0.6}}, student {{'a': 0.9}}: found {found:.4f}, below 0; what of the rest?"


def divergence_is_that_of_the_tail_too(divergence):
    """p log(p / q) over the teacher's tokens, and once more for all others together."""
    for teacher, student in PAIRS:
        found, wanted = diverged(divergence, teacher, student), exact(teacher, student)
        named = sum(p * math.log(p / student[token]) for token, p in teacher.items())
        reason = "the tail's q is 1 minus what the student gives the teacher's tokens, not all that it names"
        reason = reason if set(student) - set(teacher) else "p log(p / q) of every event, the tail, too"
        reason = "the tail is missing" if math.isclose(found, named, abs_tol=1e-6) else reason
        assert math.isclose(found, wanted, abs_tol=1e-6), (
            f"teacher {teacher}, student {student}: {wanted:.4f}, found {found:.4f}; {reason}"
        )


EXERCISES = {
    "8.1": Exercise(
        [totals_of_every_pair, totals_begin_with_the_first_cost, totals_along_the_edges, totals_are_the_cheapest],
        [
            "A way to the pair (i, j) came from (i - 1, j - 1), from (i - 1, j) or from (i, j - 1).",
            "A table with a row and a column more than the costs, infinite but for 0 in its corner, needs no cases.",
            "totals[i + 1][j + 1] = costs[i][j] + min(totals[i][j], totals[i][j + 1], totals[i + 1][j])",
        ],
    ),
    "8.2": Exercise(
        [links_of_equal_texts, links_miss_nothing, links_do_not_touch, links_walk],
        [
            "Two spans share a character when each begins before the other ends.",
            "For each of the teacher's spans: skip the student's that end before it begins, for good; then look from "
            "there until one begins after it ends.",
            "For (start, end) of left: while first < len(right) and right[first][1] <= start: first += 1; then from "
            "j = first on, while j < len(right) and right[j][0] < end: note (i, j), j += 1. first itself stays.",
        ],
    ),
    "8.3": Exercise(
        [
            divergence_of_a_point_mass,
            divergence_of_equals_is_0,
            divergence_is_never_negative,
            divergence_is_that_of_the_tail_too,
        ],
        [
            "The divergence is a sum of p * log(p / q) over all events. All tokens that the teacher does not name are "
            "one event more, of probability 1 - sum(teacher.values()).",
            "What the student gives that event: 1 minus its probabilities of the teacher's tokens.",
            "An event that the teacher finds impossible adds nothing; leave it out, for the log of 0 is not to be had: "
            "sum(p * math.log(p / q) for p, q in pairs if p > 1e-12), with the tail as the last of the pairs.",
        ],
    ),
}
