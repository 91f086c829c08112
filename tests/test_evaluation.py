"""Counts, intervals, the one schema of results, and an evaluation from a saved model to files."""

import json
import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lib import answers, evaluation, prompts
from lib.errors import InputError
from lib.evaluation import by_steps, evaluate, paired, paired_difference, pareto, result_row, side_by_side, wilson
from lib.problems import make_problem

many = settings(max_examples=200, deadline=None)

# As DESIGN section 6 has it.
SCHEMA = [
    "method",
    "task",
    "split",
    "model",
    "train_set",
    "train_n",
    "setting",
    "seed",
    "n",
    "accuracy",
    "ci_low",
    "ci_high",
    "answer_rate",
    "tokens_per_problem",
    "forward_passes_per_problem",
    "seconds_per_problem_batch1",
    "problems_per_second",
]


# --- intervals ---


def score_test_limit(share, n, outside):
    """The accuracy p between `share` and `outside` (0 or 1) that the score test just rejects at 95 %, by bisection."""
    inside, beyond = share, outside
    for _ in range(200):
        p = (inside + beyond) / 2
        rejected = (share - p) ** 2 > 1.96**2 * p * (1 - p) / n
        inside, beyond = (inside, p) if rejected else (p, beyond)
    return inside


counts = st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@many
@given(counts)
@example((0, 1))
@example((1, 1))
@example((417, 500))
def test_wilson_is_where_the_score_test_begins_to_reject(counted):
    correct, n = counted
    low, high = wilson(correct, n)
    assert low == pytest.approx(score_test_limit(correct / n, n, 0.0), abs=1e-9)
    assert high == pytest.approx(score_test_limit(correct / n, n, 1.0), abs=1e-9)


@many
@given(counts)
@example((0, 11))
@example((21, 21))
@example((500, 500))
def test_wilson_holds_the_accuracy_and_stays_inside_0_and_1(counted):
    """To the last bit, since a picture draws accuracy - low and high - accuracy, and refuses a negative bar."""
    correct, n = counted
    low, high = wilson(correct, n)
    assert 0 <= low <= correct / n <= high <= 1 and high > low


@pytest.mark.parametrize(
    "correct, n, low, high", [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611)]
)
def test_wilson_gives_published_values(correct, n, low, high):
    """Newcombe (1998), table I, method 3."""
    assert wilson(correct, n) == pytest.approx((low, high), abs=1e-4)


def test_wilson_of_nothing_is_everything():
    assert wilson(0, 0) == (0.0, 1.0)


def test_paired_difference_by_hand():
    """Differences 1, 0, 0, 1, -1: mean 1/5, squared deviations 2.8, so sd = sqrt(0.7) and half = 1.96 sqrt(0.14)."""
    found = paired_difference([True, True, False, True, False], [False, True, False, False, True])
    half = 1.96 * math.sqrt(0.14)
    assert found == pytest.approx((0.2, 0.2 - half, 0.2 + half))


@many
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=50))
def test_paired_difference_is_antisymmetric_and_centred_on_the_difference_of_accuracies(pairs):
    a, b = [x for x, _ in pairs], [y for _, y in pairs]
    mean, low, high = paired_difference(a, b)
    assert mean == pytest.approx(sum(a) / len(a) - sum(b) / len(b))
    assert low <= mean <= high
    assert paired_difference(b, a) == pytest.approx((-mean, -high, -low))
    if a == b:
        assert (mean, low, high) == (0, 0, 0)


def test_pairing_narrows_the_interval_of_methods_that_err_together():
    a = [True] * 60 + [False] * 40
    together, apart = [True] * 55 + [False] * 45, [False] * 45 + [True] * 55
    mean, low, high = paired_difference(a, together)
    other_mean, other_low, other_high = paired_difference(a, apart)
    assert mean == pytest.approx(other_mean) and low > 0 > other_low and high < other_high


def test_paired_difference_refuses_lists_that_do_not_pair():
    for a, b in (([True, False], [True]), ([True], [False]), ([], [])):
        with pytest.raises(AssertionError, match="same length"):
            paired_difference(a, b)


# --- the frontier ---

points = st.lists(st.tuples(st.integers(0, 4), st.integers(1, 5)), max_size=9)


@many
@given(points)
def test_the_frontier_is_the_best_accuracy_for_its_cost_and_the_least_cost_for_its_accuracy(points):
    rows = [{"method": str(i), "accuracy": a / 4, "tokens_per_problem": c} for i, (a, c) in enumerate(points)]
    expected = []
    for row, (accuracy, cost) in zip(rows, points, strict=True):
        best = max(a for a, c in points if c <= cost)
        least = min(c for a, c in points if a >= accuracy)
        if accuracy == best and cost == least:
            expected.append(row)
    assert pareto(rows) == expected
    renamed = [{"accuracy": r["accuracy"], "seconds": r["tokens_per_problem"]} for r in rows]
    assert len(pareto(renamed, "seconds")) == len(expected)


# --- rows ---

PREDICTIONS = [
    {"problem": "a", "correct": True, "answered": True, "tokens": 10},
    {"problem": "b", "correct": False, "answered": True, "tokens": 20},
    {"problem": "c", "correct": False, "answered": False, "tokens": 33},
]
WHAT = {
    "method": "cot",
    "task": "modular_chain",
    "split": "test",
    "model": "llama_tiny",
    "train_set": "modular_chain",
    "train_n": 100,
    "setting": {"steps": 5},
    "seed": 0,
}
TIMING = {"problems_per_second": 7.5, "seconds_per_problem_batch1": 0.25}


def test_a_row_has_the_schema_in_order_and_the_figures():
    row = result_row(PREDICTIONS, TIMING, **WHAT)
    assert list(row) == SCHEMA
    assert {key: row[key] for key in WHAT} == WHAT
    assert (row["n"], row["accuracy"], row["answer_rate"]) == (3, pytest.approx(1 / 3), pytest.approx(2 / 3))
    assert (row["ci_low"], row["ci_high"]) == wilson(1, 3)
    assert row["tokens_per_problem"] == row["forward_passes_per_problem"] == 21
    assert {key: row[key] for key in TIMING} == TIMING
    assert json.loads(json.dumps(row)) == row


def test_a_row_of_nothing_measured_holds_null_and_not_a_guess():
    row = result_row([], {"problems_per_second": None, "seconds_per_problem_batch1": None}, **WHAT)
    assert list(row) == SCHEMA and row["n"] == 0
    for key in ("accuracy", "answer_rate", "tokens_per_problem", "problems_per_second", "seconds_per_problem_batch1"):
        assert row[key] is None
    assert (row["ci_low"], row["ci_high"]) == (0, 1)


def test_a_row_with_a_key_missing_or_too_many_is_refused():
    with pytest.raises(AssertionError, match="seed"):
        result_row(PREDICTIONS, TIMING, **{k: v for k, v in WHAT.items() if k != "seed"})
    with pytest.raises(AssertionError, match="colour"):
        result_row(PREDICTIONS, TIMING, **WHAT, colour="red")


# --- from a saved model to files ---


@pytest.fixture(scope="module")
def evaluated(trained_run, chains, tmp_path_factory):
    """The directory of an evaluation of the trained model on ten chains it knows and two it can't answer in time."""
    directory = tmp_path_factory.mktemp("evaluated")
    config = evaluation.Config(max_new_tokens=7, batch_size=4, latency_problems=2, device="cpu")
    evaluate(config, ask(chains), trained_run / "model", directory)
    return directory


def ask(chains):
    return chains[:6] + chains[8:12] + chains[-2:]


def test_predictions_hold_what_was_asked_in_order_and_what_the_arbiter_says(evaluated, chains):
    rows = evaluation.read_rows(evaluated / "predictions.jsonl")
    keys = {"problem", "text", "correct", "steps_hold", "answered", "tokens", "seconds"}
    assert [row["problem"] for row in rows] == [p.id for p in ask(chains)]
    for problem, row in zip(ask(chains), rows, strict=True):
        assert set(row) == keys
        assert row["correct"] == answers.is_correct(problem, row["text"])
        assert row["steps_hold"] == answers.is_verified(problem, row["text"])
        assert row["answered"] == (answers.extract(row["text"]) is not None)
        assert 1 <= row["tokens"] <= 7 and row["seconds"] > 0
    known = rows[:10]
    assert all(row["correct"] and row["steps_hold"] for row in known)
    assert [row["text"] for row in known] == [prompts.solution(p) for p in ask(chains)[:10]]


def test_timing_is_measured_in_a_batch_and_alone(evaluated):
    timing = json.loads((evaluated / "timing.json").read_text())
    assert set(timing) == {"problems_per_second", "seconds_per_problem_batch1"}
    seconds = [row["seconds"] for row in evaluation.read_rows(evaluated / "predictions.jsonl")]
    assert timing["problems_per_second"] == pytest.approx(len(seconds) / sum(seconds))
    assert 0 < timing["seconds_per_problem_batch1"] < 30


def test_collect_makes_the_row_of_an_evaluation(evaluated):
    predictions = evaluation.read_rows(evaluated / "predictions.jsonl")
    row = evaluation.collect(evaluated, **WHAT)
    assert list(row) == SCHEMA
    assert row == result_row(predictions, json.loads((evaluated / "timing.json").read_text()), **WHAT)
    assert row["n"] == 12 and row["accuracy"] >= 10 / 12 and row["problems_per_second"] > 0


def test_an_evaluation_of_no_problem_is_refused(trained_run, tmp_path):
    with pytest.raises(InputError, match="There is no problem to ask"):
        evaluate(evaluation.Config(device="cpu"), [], trained_run / "model", tmp_path)


# --- tables of predictions ---


def chain(name, steps):
    return make_problem(name, ["s"] * steps, "1", "t")


def predicted(problem, method, correct, seed=0, task="t", text="text"):
    return {"task": task, "method": method, "seed": seed, "problem": problem.id, "correct": correct, "text": text}


A, B, C, D = (chain(name, steps) for name, steps in (("a", 1), ("b", 1), ("c", 3), ("d", 3)))
TESTS = {p.id: p for p in (A, B, C, D)}


def test_by_steps_counts_right_and_asked_over_all_seeds_of_one_task():
    rows = [
        predicted(A, "cot", True),
        predicted(A, "cot", False, seed=1),
        predicted(B, "cot", True),
        predicted(C, "cot", False),
        predicted(C, "answer_only", True),
        predicted(D, "cot", True, task="other"),
    ]
    assert by_steps(rows, TESTS, "t") == {"cot": {1: (2, 3), 3: (0, 1)}, "answer_only": {3: (1, 1)}}
    assert by_steps([], TESTS, "t") == {}


def test_side_by_side_shows_problems_that_every_method_met_with_the_first_seed():
    rows = [
        predicted(A, "cot", True, text="first"),
        predicted(A, "cot", False, seed=1, text="second"),
        predicted(A, "answer_only", False, text="short"),
        predicted(B, "cot", True),
        predicted(C, "answer_only", True),
        predicted(C, "cot", False),
        predicted(D, "other", True, task="elsewhere"),
    ]
    found = side_by_side(rows, TESTS, "t", 10)
    assert [problem for problem, _ in found] == [A, C]
    assert found[0][1] == {
        "cot": {"text": "first", "correct": True},
        "answer_only": {"text": "short", "correct": False},
    }
    assert len(side_by_side(rows, TESTS, "t", 1)) == 1
    assert side_by_side(rows, TESTS, "no such task", 5) == []


def test_paired_compares_shared_problems_by_task_and_seed():
    problems = (A, B, C)
    rows = [predicted(p, "cot", right) for p, right in zip(problems, (True, True, False), strict=True)]
    rows += [predicted(p, "answer_only", right) for p, right in zip(problems[:2], (False, True), strict=True)]
    rows += [predicted(p, "cot", False, seed=1) for p in problems]
    rows += [predicted(p, "answer_only", True, seed=1) for p in reversed(problems)]
    rows += [predicted(A, "cot", True, task="u"), predicted(A, "answer_only", True, task="u")]
    first, second = paired(rows, "cot", "answer_only")
    mean, low, high = paired_difference([True, True], [False, True])
    assert first == {
        "comparison": "cot - answer_only",
        "task": "t",
        "seed": 0,
        "n": 2,
        "difference": mean,
        "low": low,
        "high": high,
    }
    assert (second["seed"], second["n"], second["difference"]) == (1, 3, -1)
    assert paired(rows, "cot", "dot") == []


def test_origin_names_commit_device_and_packages(tmp_path):
    manifest = {
        "stage": "03_sft",
        "started": "2025-01-01",
        "ended": "2025-01-02",
        "code": {"commit": "0123456789abcdef", "changed": True},
        "packages": {"torch": "2.13.0", "transformers": "5.17.0"},
    }
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "metrics.json").write_text(json.dumps({"device": "CPU x86_64, 2 cores"}))
    (row,) = evaluation.origin([tmp_path])
    assert row["commit"] == "0123456789+" and row["device"] == "CPU x86_64, 2 cores"
    assert row["packages"] == "torch 2.13.0, transformers 5.17.0"
    manifest["code"] = {"commit": None, "changed": None}
    (tmp_path / "metrics.json").write_text("{}")
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    (row,) = evaluation.origin([tmp_path])
    assert (row["commit"], row["device"]) == ("unknown", None)
