"""pass@k: the share of all choices of k samples that hold a right one, counted one by one."""

import random
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.evaluation import any_right, mean_pass_at_k, pass_at_k
from lib.problems import write_jsonl
from tests.oracles import preferences as oracle

many = settings(max_examples=100, deadline=None)
rows = st.lists(st.booleans(), min_size=1, max_size=10)


def drawn(directory, *found):
    """What `sampling.draw` leaves, of the samples of each problem that are right and wrong."""
    write_jsonl(
        directory / "samples.jsonl",
        [{"id": str(i), "samples": [{"correct": x} for x in right]} for i, right in enumerate(found)],
    )
    return directory


@many
@given(rows, st.data())
def test_it_is_the_share_of_all_choices_that_hold_a_right_one(right, data):
    k = data.draw(st.integers(1, len(right)))
    assert pass_at_k(len(right), sum(right), k) == pytest.approx(float(oracle.pass_at_k(right, k)), abs=1e-12)


@many
@given(rows)
def test_one_sample_is_the_share_right_and_all_of_them_is_coverage(right):
    n, correct = len(right), sum(right)
    assert pass_at_k(n, correct, 1) == pytest.approx(correct / n)
    assert pass_at_k(n, correct, n) == any(right)
    found = [pass_at_k(n, correct, k) for k in range(1, n + 1)]
    assert found == sorted(found) and 0 <= found[0] and found[-1] <= 1, "more tries never pass less"


def test_drawing_more_does_not_change_what_is_estimated():
    """The plain share of solved problems among the first k is an estimate too, of the same but with more noise."""
    rng = random.Random(0)
    first = [any(rng.random() < 0.3 for _ in range(2)) for _ in range(20000)]
    estimates = [pass_at_k(10, sum(rng.random() < 0.3 for _ in range(10)), 2) for _ in range(20000)]
    assert sum(estimates) / 20000 == pytest.approx(1 - 0.7**2, abs=0.01)
    assert sum(first) / 20000 == pytest.approx(1 - 0.7**2, abs=0.01)


def test_with_many_samples_nothing_overflows():
    assert pass_at_k(2000, 1, 1000) == 0.5 and pass_at_k(2000, 0, 1000) == 0


@pytest.mark.parametrize("n, correct, k", [(3, 1, 0), (3, 1, 4), (3, 4, 1), (3, -1, 1), (0, 0, 1)])
def test_what_cannot_be_is_refused(n, correct, k):
    with pytest.raises(AssertionError, match=f"{correct} right of {n} samples, k = {k}"):
        pass_at_k(n, correct, k)


def test_over_a_drawing_it_is_the_mean_of_the_problems(tmp_path):
    yes, no = True, False
    drawn(tmp_path, [yes, no, no, no], [no, no, no, no], [yes, yes, no, yes], [no, no, yes, no])
    found = mean_pass_at_k(tmp_path, [1, 2, 4])
    assert found == {1: pytest.approx(5 / 16), 2: pytest.approx((1 / 2 + 0 + 1 + 1 / 2) / 4), 4: 0.75}
    assert found[4] == any_right(tmp_path, 4)


@many
@given(st.lists(rows, min_size=1, max_size=5))
def test_over_a_drawing_it_is_what_brute_force_says(tmp_path_factory, found):
    folder = drawn(tmp_path_factory.mktemp("drawn"), *found)
    ks = list(range(1, min(map(len, found)) + 1))
    wanted = {k: sum(oracle.pass_at_k(right, k) for right in found) / Fraction(len(found)) for k in ks}
    assert mean_pass_at_k(folder, ks) == {k: pytest.approx(float(share)) for k, share in wanted.items()}
