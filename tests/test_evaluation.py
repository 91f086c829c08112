"""Counts, intervals, the one schema of results, and an evaluation from a saved model to files."""

import json
import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lib import answers, evaluation, prompts, stage
from lib.errors import InputError
from lib.evaluation import by_steps, evaluate, paired, paired_difference, pareto, result_row, side_by_side, wilson
from lib.problems import make_problem, write_jsonl

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
    config = evaluation.Config(max_new_tokens=7, batch_tokens=100, latency_problems=2, device="cpu")
    evaluate(config, ask(chains), trained_run / "model", directory)
    return directory


def ask(chains):
    return chains[:6] + chains[8:12] + chains[-2:]


def test_predictions_hold_what_was_asked_in_order_and_what_the_arbiter_says(evaluated, chains):
    rows = evaluation.read_rows(evaluated / "predictions.jsonl")
    keys = {"problem", "text", "correct", "steps_hold", "answered", "tokens", "passes", "seconds"}
    assert [row["problem"] for row in rows] == [p.id for p in ask(chains)]
    for problem, row in zip(ask(chains), rows, strict=True):
        assert set(row) == keys
        assert row["correct"] == answers.is_correct(problem, row["text"])
        assert row["steps_hold"] == answers.is_verified(problem, row["text"])
        assert row["answered"] == (answers.extract(row["text"]) is not None)
        assert 1 <= row["tokens"] == row["passes"] <= 7 and row["seconds"] > 0
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


def test_examples_are_asked_by_their_own_prompts(trained_run, chains, tmp_path):
    """The trained model answers plain prompts; asked for one chain in words of another, it gives that one's answer."""
    known = chains[:4]
    swapped = [
        prompts.Example(p, prompts.prompt(q), "", "swapped") for p, q in zip(known, known[1:] + known[:1], strict=True)
    ]
    evaluate(
        evaluation.Config(max_new_tokens=7, latency_problems=1, device="cpu"), swapped, trained_run / "model", tmp_path
    )
    rows = evaluation.read_rows(tmp_path / "predictions.jsonl")
    assert [row["problem"] for row in rows] == [p.id for p in known]
    assert [row["text"] for row in rows] == [prompts.solution(q) for q in known[1:] + known[:1]]
    assert [row["correct"] for row in rows] == [
        answers.is_correct(p, r["text"]) for p, r in zip(known, rows, strict=True)
    ]
    assert not (tmp_path / "calculator.json").exists()


def test_with_a_calculator_results_are_right_and_what_it_did_is_counted_once(annotating, sums, tmp_path):
    """Not again for the problems that are asked alone."""
    found = {}
    for calculator, latency in ((False, 0), (True, 0), (True, 6)):
        out = tmp_path / f"{calculator} {latency}"
        out.mkdir()
        config = evaluation.Config(24, calculator=calculator, latency_problems=latency, device="cpu")
        evaluate(config, sums[40:60], annotating, out)
        rows = evaluation.read_rows(out / "predictions.jsonl")
        counted = (out / "calculator.json").exists() and json.loads((out / "calculator.json").read_text())
        found[calculator, latency] = sum(row["steps_hold"] for row in rows), counted
    assert found[False, 0][0] < 10 and found[False, 0][1] is False
    assert found[True, 0] == found[True, 6] and found[True, 0][0] > found[False, 0][0]
    assert found[True, 0][1]["triggered"] >= 20 > found[True, 0][1]["overridden"] > 10


def test_an_evaluation_of_no_problem_is_refused(trained_run, tmp_path):
    with pytest.raises(InputError, match="There is no problem to ask"):
        evaluate(evaluation.Config(device="cpu"), [], trained_run / "model", tmp_path)


# --- tables of predictions ---


def chain(name, steps):
    return make_problem(name, ["s"] * steps, "1", "t")


def predicted(problem, method, correct, seed=0, task="t", text="text", **setting):
    what = {"task": task, "method": method, "setting": setting, "seed": seed}
    return {**what, "problem": problem.id, "correct": correct, "text": text}


def labelled(rows):
    """As `evaluation.merge` gives them."""
    return [{**row, "label": label} for row, label in zip(rows, evaluation.labels(rows), strict=True)]


A, B, C, D = (chain(name, steps) for name, steps in (("a", 1), ("b", 1), ("c", 3), ("d", 3)))
TESTS = {p.id: p for p in (A, B, C, D)}


def test_by_steps_counts_right_and_asked_over_all_seeds_of_one_task():
    rows = [
        predicted(A, "cot", True),
        predicted(A, "cot", False, seed=1),
        predicted(B, "cot", True),
        predicted(C, "cot", False),
        predicted(C, "rft", True, k=1),
        predicted(C, "rft", False, k=8),
        predicted(D, "cot", True, task="other"),
    ]
    expected = {"cot": {1: (2, 3), 3: (0, 1)}, "rft k 1": {3: (1, 1)}, "rft k 8": {3: (0, 1)}}
    assert by_steps(labelled(rows), TESTS, "t") == expected
    assert by_steps([], TESTS, "t") == {}


def test_side_by_side_shows_problems_that_every_method_met_with_the_first_seed():
    rows = [
        predicted(A, "cot", True, text="first"),
        predicted(A, "cot", False, seed=1, text="second"),
        predicted(A, "rft", False, text="short", k=1),
        predicted(A, "rft", True, text="long", k=8),
        predicted(B, "cot", True),
        predicted(B, "rft", True, k=1),
        predicted(C, "rft", True, k=8),
        predicted(C, "rft", True, k=1),
        predicted(C, "cot", False),
        predicted(D, "other", True, task="elsewhere"),
    ]
    found = side_by_side(labelled(rows), TESTS, "t", 10)
    assert [problem for problem, _ in found] == [A, C]
    assert found[0][1] == {
        "cot": {"text": "first", "correct": True},
        "rft k 1": {"text": "short", "correct": False},
        "rft k 8": {"text": "long", "correct": True},
    }
    assert len(side_by_side(labelled(rows), TESTS, "t", 1)) == 1
    assert side_by_side(labelled(rows), TESTS, "no such task", 5) == []


# --- names for rows ---


def row_of(method, task="t", seed=0, train_n=100, **setting):
    return {"task": task, "method": method, "setting": setting, "seed": seed, "train_n": train_n}


def test_a_label_names_the_settings_that_part_a_row_from_others_of_its_method_and_task():
    rows = [
        row_of("cot", steps=800),
        row_of("cot", steps=250, gold=500),
        row_of("cot", task="u", steps=800),
        row_of("rft", gold=500, k=1, steps=250),
        row_of("rft", gold=500, k=8, steps=250),
        row_of("verifier", gold=500),
        row_of("verifier", gold=500, seed=1),
    ]
    assert evaluation.labels(rows) == [
        "cot steps 800",
        "cot steps 250, gold 500",
        "cot",
        "rft k 1",
        "rft k 8",
        "verifier",
        "verifier",
    ]
    assert evaluation.labels([]) == []


settings_of_rows = st.dictionaries(st.sampled_from("kns"), st.integers(0, 2), max_size=3).map(
    lambda drawn: dict(sorted(drawn.items()))
)


@many
@given(st.lists(st.tuples(st.sampled_from(("cot", "rft")), st.sampled_from("tu"), settings_of_rows), max_size=8))
def test_rows_of_a_task_share_a_label_where_they_share_method_and_setting_and_nowhere_else(drawn):
    rows = [{"method": method, "task": task, "setting": setting} for method, task, setting in drawn]
    named = list(zip(rows, evaluation.labels(rows), strict=True))
    for one, first in named:
        assert first == one["method"] or first.startswith(one["method"] + " ")
        for other, second in named:
            if one["task"] == other["task"]:
                same = (one["method"], one["setting"]) == (other["method"], other["setting"])
                assert (first == second) == same


@pytest.mark.parametrize(
    "which, fits",
    [
        ("rft", False),  # it has a label, which is more than its method
        ("rft k 8", True),
        ("rft k 1", False),
        ({"method": "rft"}, True),
        ({"method": "rft", "k": 8}, True),
        ({"method": "rft", "k": 8, "calculator": False}, True),
        ({"method": "rft", "k": 1}, False),
        ({"method": "rft", "n": 8}, False),
        ({"method": "cot", "k": 8}, False),
        ({"k": 8}, True),
    ],
)
def test_a_prediction_is_named_by_its_label_or_by_some_of_its_settings(which, fits):
    labelled = {**predicted(A, "rft", True, k=8, calculator=False, sizes=[1, 2]), "label": "rft k 8"}
    assert evaluation.matches(labelled, which) is fits


def test_a_prediction_without_a_label_is_named_by_its_method():
    assert evaluation.matches(predicted(A, "rft", True, k=8), "rft")
    assert not evaluation.matches(predicted(A, "rft", True, k=8), "cot")


# --- paired differences ---


def test_paired_compares_shared_problems_by_task_and_seed():
    problems = (A, B, C)
    rows = [predicted(p, "cot", right) for p, right in zip(problems, (True, True, False), strict=True)]
    rows += [predicted(p, "answer_only", right) for p, right in zip(problems[:2], (False, True), strict=True)]
    rows += [predicted(p, "cot", False, seed=1) for p in problems]
    rows += [predicted(p, "answer_only", True, seed=1) for p in reversed(problems)]
    rows += [predicted(A, "cot", True, task="u"), predicted(A, "answer_only", True, task="u")]
    first, second, overall = paired(rows, "cot", "answer_only")
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
    # A: +1 and -1, B: 0 and -1, C: only -1.
    mean, low, high = evaluation.mean_interval([0, -0.5, -1])
    assert overall == {**first, "seed": "all", "n": 3, "difference": mean, "low": low, "high": high}
    assert paired(rows, "cot", "dot") == []


def test_paired_by_setting_compares_what_it_names_and_says_so():
    rows = [predicted(p, "rft", right, k=1) for p, right in ((A, True), (B, True))]
    rows += [predicted(p, "rft", right, k=8) for p, right in ((A, True), (B, False))]
    rows += [predicted(p, "cot", False, steps=5) for p in (A, B)]
    (found,) = paired(rows, {"method": "rft", "k": 8}, "cot")
    assert (found["comparison"], found["difference"]) == ("rft k 8 - cot", 0.5)
    (found,) = paired(rows, {"method": "rft", "k": 8}, {"method": "rft", "k": 1})
    assert (found["comparison"], found["difference"]) == ("rft k 8 - rft k 1", -0.5)
    (found,) = paired(rows, {"k": 8}, {"steps": 5})
    assert (found["comparison"], found["difference"]) == ("k 8 - steps 5", 0.5)
    for ambiguous in ("rft", {"method": "rft"}):
        with pytest.raises(AssertionError, match="several settings of .*rft"):
            paired(rows, ambiguous, "cot")


def test_the_same_answers_with_every_seed_are_no_more_evidence_than_with_one():
    """The interval over all seeds is over problems: three seeds that agree leave it as wide as one."""
    right = [True, False, True, True, False, True]
    problems = [chain(str(i), 1) for i in range(6)]
    rows = [
        predicted(p, method, value == (method == "a"), seed=seed)
        for seed in (0, 1, 2)
        for method in "ab"
        for p, value in zip(problems, right, strict=True)
    ]
    *each, overall = paired(rows, "a", "b")
    assert [row["seed"] for row in (*each, overall)] == [0, 1, 2, "all"]
    for row in each:
        assert {**row, "seed": "all"} == pytest.approx(overall)


outcomes = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=8)


@settings(max_examples=60, deadline=None)
@given(st.lists(outcomes, min_size=2, max_size=4))
def test_over_all_seeds_the_difference_is_the_mean_of_each_problems_mean(by_seed):
    rows = [
        predicted(chain(str(i), 1), method, right, seed=seed)
        for seed, pairs in enumerate(by_seed)
        for i, pair in enumerate(pairs)
        for method, right in zip("ab", pair, strict=True)
    ]
    *each, overall = paired(rows, "a", "b")
    assert [row["seed"] for row in each] == list(range(len(by_seed)))
    differences = [[x - y for pairs in by_seed for x, y in pairs[i : i + 1]] for i in range(max(map(len, by_seed)))]
    means = [sum(found) / len(found) for found in differences]
    assert overall["n"] == len(means) and overall["difference"] == pytest.approx(sum(means) / len(means))
    assert overall["low"] <= overall["difference"] <= overall["high"]
    swapped = paired(rows, "b", "a")[-1]
    assert (swapped["low"], swapped["high"]) == pytest.approx((-overall["high"], -overall["low"]))


def test_every_label_of_a_task_is_compared_with_the_chain_of_thought_of_its_gold_chains_or_of_the_most_problems():
    shapes = [
        ("answer_only", "t", 100, {"steps": 9}),
        ("cot", "t", 20, {"steps": 9, "gold": 20}),
        ("cot", "t", 100, {"steps": 9}),
        ("rft", "t", 60, {"k": 1, "gold": 20}),
        ("rft", "t", 90, {"k": 8, "gold": 20}),
        ("self_consistency", "u", 20, {}),
        ("verifier", "u", 20, {}),
    ]
    rows = [row_of(method, task, train_n=n, **setting) for method, task, n, setting in shapes]
    predictions = labelled(
        [
            predicted(p, method, i == 2, task=task, **setting)
            for i, (method, task, _, setting) in enumerate(shapes)
            for p in (A, B)
        ]
    )
    found = evaluation.against_cot(rows, predictions)
    assert [(row["task"], row["comparison"]) for row in found] == [
        ("t", "answer_only - cot"),
        ("t", "rft k 8 - cot gold 20"),
        ("t", "rft k 1 - cot gold 20"),
        ("u", "verifier - self_consistency"),
    ]
    assert [row["difference"] for row in found] == [-1, 0, 0, 0]


def test_what_was_asked_with_the_calculator_is_compared_with_chains_asked_with_it():
    shapes = [
        ("cot", {"gold": 20, "steps": 9}),
        ("cot_calculator", {"gold": 20, "steps": 9}),
        ("cot_calculator", {"gold": 20, "steps": 7, "iteration": 0}),
        ("self_training", {"gold": 20, "steps": 7, "iteration": 1, "calculator": True}),
        ("rft", {"gold": 20, "steps": 9, "calculator": True}),
    ]
    rows = [row_of(method, "t", train_n=20, **setting) for method, setting in shapes]
    predictions = labelled([predicted(p, method, True, task="t", **s) for method, s in shapes for p in (A, B)])
    assert [row["comparison"] for row in evaluation.against_cot(rows, predictions)] == [
        "cot_calculator steps 9 - cot",
        "cot_calculator steps 7, iteration 0 - cot",
        "self_training - cot_calculator steps 7, iteration 0",
        "rft - cot_calculator steps 9",
    ]


def test_over_seeds_the_interval_is_students():
    rows = [row_of("cot", "t", seed=seed, gold=5) | {"accuracy": x} for seed, x in enumerate((0.2, 0.3, 0.4))]
    rows += [row_of("cot", "t", gold=6) | {"accuracy": 0.9}]
    three, one = evaluation.over_seeds(rows)
    assert (three["setting"], three["seeds"], one["seeds"]) == ({"gold": 5}, 3, 1)
    assert three["accuracy"] == pytest.approx(0.3)
    half = 4.303 * 0.1 / 3**0.5  # 97.5 % of Student's t with two degrees of freedom
    assert (three["low"], three["high"]) == pytest.approx((0.3 - half, 0.3 + half))
    assert one["accuracy"] == 0.9 and one["low"] is one["high"] is None


# --- choosing among samples ---


def scored(problem, *scores):
    """A line of scores.jsonl: every score took 0.25 seconds."""
    return {"id": problem.id, "scores": list(scores), "seconds": 0.25 * len(scores)}


def test_a_verifiers_choice_costs_what_drawing_and_rating_cost(tmp_path):
    folder = drawn(tmp_path, a=[sample("#### 1", True), sample("#### 2"), sample("#### 2")])
    write_jsonl(tmp_path / "scores.jsonl", [scored(A, 0.9, 0.1, 0.1)])
    for by, passes, seconds in (("vote", 10, 1.0), ("verifier", 12, 1.5), ("weighted_vote", 12, 1.5)):
        out = tmp_path / by
        out.mkdir()
        evaluation.choose(evaluation.ChoiceConfig(by, 2), [A], folder, tmp_path, out)
        (row,) = evaluation.read_rows(out / "predictions.jsonl")
        assert (row["tokens"], row["passes"], row["seconds"]) == (10, passes, seconds)
        assert evaluation.collect(out, **WHAT)["forward_passes_per_problem"] == passes


def sample(text, correct=False, finished=True, tokens=5, seconds=0.5):
    return {"text": text, "answer": answers.extract(text), "correct": correct, "finished": finished} | {
        "tokens": tokens,
        "seconds": seconds,
    }


def drawn(directory, **samples):
    """What `sampling.draw` leaves, of these samples by the question of their problem."""
    write_jsonl(
        directory / "samples.jsonl",
        [{"id": TESTS_BY_QUESTION[question].id, "samples": found} for question, found in samples.items()],
    )
    return directory


TESTS_BY_QUESTION = {p.question: p for p in TESTS.values()}


def test_the_vote_chooses_the_answer_that_most_samples_state_and_costs_all_of_them(tmp_path):
    folder = drawn(
        tmp_path,
        a=[sample("#### 2", tokens=3), sample("so\n#### 1", True), sample("#### 1.0", True), sample("#### 2")],
        b=[sample("no answer", tokens=2), sample("#### 3"), sample("none"), sample("none")],
        c=[sample("none"), sample("nothing"), sample("none"), sample("#### 1")],
    )
    for n, texts in ((1, ["#### 2", "no answer", "none"]), (3, ["so\n#### 1", "#### 3", "none"])):
        out = tmp_path / str(n)
        out.mkdir()
        evaluation.choose(evaluation.ChoiceConfig("vote", n), [A, B, C], folder, "", out)
        rows = evaluation.read_rows(out / "predictions.jsonl")
        assert [row["text"] for row in rows] == texts
        assert [row["problem"] for row in rows] == [A.id, B.id, C.id]
        assert [row["correct"] for row in rows] == [n == 3, False, False]
        assert [row["tokens"] for row in rows] == ([3, 2, 5] if n == 1 else [13, 12, 15])
        assert [row["seconds"] for row in rows] == [0.5 * n] * 3
        timing = json.loads((out / "timing.json").read_text())
        assert timing == {"problems_per_second": pytest.approx(3 / (1.5 * n)), "seconds_per_problem_batch1": None}
        assert evaluation.collect(out, **WHAT)["accuracy"] == pytest.approx((n == 3) / 3)


def test_the_verifiers_choice_is_the_sample_with_the_highest_score(tmp_path):
    folder = drawn(tmp_path, a=[sample("#### 2"), sample("#### 2"), sample("#### 1", True)], b=[sample("#### 3")] * 3)
    write_jsonl(tmp_path / "scores.jsonl", [scored(A, 0.2, 0.1, 0.9), scored(B, 0.5, 0.5, 0.4)])
    found = {}
    for n in (1, 2, 3):
        out = tmp_path / str(n)
        out.mkdir()
        evaluation.choose(evaluation.ChoiceConfig("verifier", n), [B, A], folder, tmp_path, out)
        found[n] = [row["text"] for row in evaluation.read_rows(out / "predictions.jsonl")]
    assert found == {1: ["#### 3", "#### 2"], 2: ["#### 3", "#### 2"], 3: ["#### 3", "#### 1"]}


def test_a_weighted_vote_goes_to_the_answer_with_the_highest_sum_of_scores(tmp_path):
    texts = ["#### 2", "#### 1", "so\n#### 1.0", "#### 3", "no answer"]
    folder = drawn(
        tmp_path, a=[sample(text, "1" in text) for text in texts], b=[sample("none"), *[sample("nothing")] * 4]
    )
    chosen = {}
    for name, row in {"pair": [0.5, 0.3, 0.3, 0.4, 0.9], "one": [0.5, 0.1, 0.3, 0.2, 0.9], "none": [0.0] * 5}.items():
        write_jsonl(tmp_path / "scores.jsonl", [scored(A, *row), scored(B, 0.1, *[0.2] * 4)])
        for n in (1, 5):
            out = tmp_path / f"{name} {n}"
            out.mkdir()
            evaluation.choose(evaluation.ChoiceConfig("weighted_vote", n), [A, B], folder, tmp_path, out)
            chosen[name, n] = [row["text"] for row in evaluation.read_rows(out / "predictions.jsonl")]
    assert chosen["pair", 5] == ["#### 1", "none"], "two middling samples that agree beat a better one alone"
    assert chosen["one", 5] == chosen["none", 5] == ["#### 2", "none"]
    assert {tuple(chosen[name, 1]) for name in ("pair", "one", "none")} == {("#### 2", "none")}


def test_choosing_among_more_samples_than_were_drawn_is_one_sentence(tmp_path):
    folder = drawn(tmp_path, a=[sample("#### 1", True)] * 2)
    with pytest.raises(InputError, match="3 samples are to be chosen from, but 2 were drawn"):
        evaluation.choose(evaluation.ChoiceConfig("vote", 3), [A], folder, "", tmp_path)


def test_another_way_to_choose_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match="'luck'; use vote, verifier or weighted_vote"):
        evaluation.ChoiceConfig("luck")


def test_what_choosing_can_reach_is_the_share_of_problems_with_a_right_sample_among_the_first(tmp_path):
    right, wrong = sample("#### 1", True), sample("#### 2")
    drawn(tmp_path, a=[wrong, right, wrong], b=[wrong, wrong, wrong], c=[wrong, wrong, right], d=[right, wrong, right])
    assert [evaluation.any_right(tmp_path, n) for n in (1, 2, 3)] == [0.25, 0.5, 0.75]


# --- what stages leave ---


def test_stages_are_merged_in_order_and_their_predictions_labelled_together(tmp_path):
    first, second, empty = tmp_path / "03_sft", tmp_path / "04_rft_generation", tmp_path / "01_data_inspection"
    empty.mkdir()
    write_jsonl(first / "rows.jsonl", [row_of("cot", steps=800)])
    write_jsonl(first / "predictions.jsonl", [predicted(A, "cot", True, steps=800)])
    write_jsonl(second / "rows.jsonl", [row_of("cot", steps=250), row_of("rft", k=8)])
    write_jsonl(second / "predictions.jsonl", [predicted(A, "cot", False, steps=250), predicted(A, "rft", True, k=8)])
    rows, predictions = evaluation.merge([empty, first, second])
    assert rows == [row_of("cot", steps=800), row_of("cot", steps=250), row_of("rft", k=8)]
    assert [p["label"] for p in predictions] == ["cot steps 800", "cot steps 250", "rft"] == evaluation.labels(rows)
    assert [p["correct"] for p in predictions] == [True, False, True]
    nothing = tmp_path / "05"
    write_jsonl(nothing / "rows.jsonl", [])
    write_jsonl(nothing / "predictions.jsonl", [])
    assert evaluation.merge([first, nothing])[0] == [row_of("cot", steps=800)]
    for stages in ([], [empty], [empty, nothing]):
        with pytest.raises(InputError, match="no results to show yet; make some first: python run_all.py"):
            evaluation.merge(stages)


def test_stages_with_the_same_settings_are_told_apart(tmp_path):
    for name in ("03_sft", "07_coconut_stages"):
        write_jsonl(tmp_path / name / "rows.jsonl", [row_of("cot", steps=8), row_of(f"only {name}", steps=8)])
        write_jsonl(tmp_path / name / "predictions.jsonl", [predicted(A, "cot", name == "03_sft", steps=8)])
    rows, predictions = evaluation.merge([tmp_path / "03_sft", tmp_path / "07_coconut_stages"])
    assert [p["label"] for p in predictions] == ["cot stage 03", "cot stage 07"]
    assert [row["setting"] for row in rows] == [
        {"steps": 8, "stage": "03"},
        {"steps": 8},
        {"steps": 8, "stage": "07"},
        {"steps": 8},
    ]
    evaluation.against_cot(rows, predictions)


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
    (row,) = stage.origin([tmp_path])
    assert row["commit"] == "0123456789+" and row["device"] == "CPU x86_64, 2 cores"
    assert row["packages"] == "torch 2.13.0, transformers 5.17.0"
    manifest["code"] = {"commit": None, "changed": None}
    (tmp_path / "metrics.json").write_text("{}")
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    (row,) = stage.origin([tmp_path])
    assert (row["commit"], row["device"]) == ("unknown", None)
