"""What self-training learns from a model's own samples: gold first, no near-duplicate or known path, none too often."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib import answers, prompts, rft, sampling
from lib.models import load_tokenizer
from lib.preferences import Config, labels
from lib.prompts import Example, in_t5_form, solution
from tests.oracles import preferences as oracle
from tests.test_preferences import ASKED, FIRST, PROBLEMS, TOKENIZER, Tokens, limits, sample, samples, t5_sample

many = settings(max_examples=100, deadline=None)
SPREAD = ["red old #### 7", "blue new #### 7", "green big #### 7", "small fast #### 7"]  # none like another
EVERYTHING = Config(max_similarity=0.5, cap_percentile=100)


def learn(drawn, gold=None, config=EVERYTHING, asked=ASKED):
    """(what is learned, counts) of samples by place of their problem."""
    pool = {asked[i].problem.id: found for i, found in drawn.items()}
    return labels(config, asked, gold or {}, [pool], TOKENIZER)


def by_problem(found):
    """How many solutions each problem has."""
    return Counter(example.problem.id for example in found)


# --- without near-duplicates ---


def test_gold_comes_first_then_the_right_samples_and_each_is_an_example_of_its_problem():
    own = [replace(ASKED[0], prompt="Tell me:\n", form="chat"), ASKED[1]]
    drawn = {0: [sample(t) for t in [SPREAD[1], SPREAD[0], "blue #### 8"]]}
    found, counts = learn(drawn, {FIRST: "gold #### 7"}, asked=own)
    assert found == [Example(PROBLEMS[0], "Tell me:\n", text, "chat") for text in ("gold #### 7", SPREAD[1], SPREAD[0])]
    assert counts == {"correct": 2, "distinct": 2, "labels": 2}


def test_without_samples_gold_alone_is_learned_and_a_problem_without_either_not_at_all():
    found, counts = learn({1: [], 2: [sample("red #### 8")]}, {FIRST: "gold #### 7"})
    assert found == [replace(ASKED[0], completion="gold #### 7")]
    assert counts == {"correct": 0, "distinct": 0, "labels": 0}
    assert learn({}) == ([], counts)


def test_steps_are_not_looked_at_but_a_text_that_never_ends_is_not_learned():
    drawn = {0: [sample("<<3+4=9>>\n#### 7"), sample("red old #### 7", False), sample("blue #### 8", False)]}
    found, counts = learn(drawn)
    assert [e.completion for e in found] == ["<<3+4=9>>\n#### 7"] and counts["correct"] == 1


def test_gold_sampled_anew_counts_as_right_and_is_not_learned_twice():
    for limit in (0.7, 1.0):
        config = Config(max_similarity=limit, cap_percentile=100)
        found, counts = learn({0: [sample("gold #### 7"), sample(SPREAD[0])] * 2}, {FIRST: "gold #### 7"}, config)
        assert [e.completion for e in found] == ["gold #### 7", SPREAD[0]], limit
        assert counts == {"correct": 4, "distinct": 1, "labels": 1}


@many
@given(samples, samples, st.none() | st.just("gold red\n#### 7"), limits)
def test_what_is_learned_without_a_cap_is_what_brute_force_says(first, second, gold, limit):
    config = Config(max_similarity=float(limit), cap_percentile=100)
    solutions = {} if gold is None else {FIRST: gold}
    found, counts = labels(config, ASKED, solutions, [{FIRST: first}, {FIRST: second}], TOKENIZER)
    right = [s["text"] for s in first + second if s["text"].endswith("7") and s["finished"]]
    kept = oracle.keep([*solutions.values(), *sorted(set(right))], Tokens(), limit)
    assert [e.completion for e in found] == kept
    new = len(kept) - len(solutions)
    assert counts == {"correct": len(right), "distinct": new, "labels": new}


# --- the cap ---


def test_no_problem_gets_more_than_the_cap():
    """1, 2, 3 and 4 solutions: the 90th percentile is 3.7, so 3; the median 2.5, so 2."""
    drawn = {i: [sample(t, problem=PROBLEMS[i]) for t in SPREAD[: i + 1]] for i in range(4)}
    for percentile, sizes in {100: [1, 2, 3, 4], 90: [1, 2, 3, 3], 50: [1, 2, 2, 2], 0: [1, 1, 1, 1]}.items():
        found, counts = learn(drawn, config=replace(EVERYTHING, cap_percentile=percentile))
        assert list(by_problem(found).values()) == sizes
        assert counts == {"correct": 10, "distinct": 10, "labels": sum(sizes)}


def test_gold_counts_for_the_cap_and_is_never_cut_off():
    drawn = {0: [sample(t) for t in SPREAD], 1: [sample(SPREAD[0], problem=PROBLEMS[1])]}
    gold = {p.id: "gold #### 7" for p in PROBLEMS[:3]}
    found, counts = learn(drawn, gold, replace(EVERYTHING, cap_percentile=50))  # 5, 2 and 1 solutions, none for four
    assert [(e.problem, e.completion) for e in found] == [
        (PROBLEMS[0], "gold #### 7"),
        (PROBLEMS[0], sorted(SPREAD)[0]),
        (PROBLEMS[1], "gold #### 7"),
        (PROBLEMS[1], SPREAD[0]),
        (PROBLEMS[2], "gold #### 7"),
    ]
    assert counts == {"correct": 5, "distinct": 5, "labels": 2}


MANY = prompts.examples([replace(PROBLEMS[0], id=f"p{i}", question=f"Is it {i}?") for i in range(12)])


@many
@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=12), st.sampled_from(["0", "25", "50", "75", "90", "99", "100"])
)
def test_the_cap_is_the_percentile_over_the_problems_that_have_solutions(sizes, percentile):
    drawn = {i: [sample(t) for t in SPREAD[:n]] for i, n in enumerate(sizes)}
    found, counts = learn(drawn, config=replace(EVERYTHING, cap_percentile=float(percentile)), asked=MANY)
    most = oracle.cap([n for n in sizes if n], percentile) if any(sizes) else 0
    assert by_problem(found) == {f"p{i}": min(n, most) for i, n in enumerate(sizes) if n}
    assert counts["labels"] == len(found) and counts["distinct"] == counts["correct"] == sum(sizes)


def test_a_cap_that_is_a_whole_number_is_not_rounded_to_the_one_below():
    """17 problems with 1 solution and 2 with 6: their 90th percentile is 2, which floating point makes 1.99..."""
    asked = prompts.examples([replace(PROBLEMS[0], id=f"p{i}", question=f"Is it {i}?") for i in range(19)])
    words = ["red", "blue", "green", "old", "new", "big"]
    drawn = {i: [sample(f"{word} #### 7") for word in (words if i < 2 else words[:1])] for i in range(19)}
    assert oracle.cap([6, 6] + [1] * 17, "90") == 2
    found, _ = learn(drawn, config=Config(max_similarity=0.99), asked=asked)
    assert list(by_problem(found).values()) == [2, 2] + [1] * 17


# --- by paths ---

PATHS = Config(labels="paths", cap_percentile=100)


def test_by_paths_every_step_must_hold_and_the_equations_be_new():
    drawn = [
        sample(t)
        for t in (
            "red <<4+3=7>>\n#### 7",
            "old <<3+4=7>>\n#### 7",
            "<<3+4=8>>\n#### 7",
            "<<1+6=7>>\n#### 7\nMore",
            "red <<4+3=7>>\n#### 7",
        )
    ]
    found, counts = learn({0: drawn}, {FIRST: solution(PROBLEMS[0])}, PATHS)
    assert [e.completion for e in found] == [solution(PROBLEMS[0]), "red <<4+3=7>>\n#### 7"]
    assert counts == {"correct": 5, "distinct": 1, "labels": 1}
    assert len(learn({0: drawn}, config=PATHS)[0]) == 2, "without gold its path is new"


def test_by_paths_t5s_form_is_compared_as_the_arbiter_reads_it_and_learned_as_it_was_written():
    asked = [in_t5_form(PROBLEMS[0])]
    drawn = [t5_sample(t) for t in ("old [3 + 4 = 7] 7. #### 7", "red [ 4 + 3 = 7] 7. #### 7", "[ 3 + 4 = 8]. #### 7")]
    found, counts = learn({0: drawn}, {FIRST: asked[0].completion}, PATHS, asked)
    assert found == [asked[0], replace(asked[0], completion="red [ 4 + 3 = 7] 7. #### 7")]
    assert counts == {"correct": 3, "distinct": 1, "labels": 1}


@pytest.fixture(scope="module")
def pools(sums, annotating, tmp_path_factory):
    """Two drawings of every third sum."""
    found = []
    for seed in (0, 1):
        config = sampling.Config(6, 1.0, max_new_tokens=20, calculator=True, seed=seed, device="cpu")
        folder = tmp_path_factory.mktemp("drawn")
        sampling.draw(config, sums[::3], annotating, folder)
        found.append(sampling.read_samples(folder))
    return found


def test_by_paths_what_is_learned_is_what_rejection_sampling_learns(sums, annotating, pools):
    asked, gold = sums[::3], sums[:30:3]
    tokenizer = load_tokenizer(str(annotating))
    found, counts = labels(PATHS, prompts.examples(asked), {p.id: solution(p) for p in gold}, pools, tokenizer)
    training, ledger = rft.collect(asked, gold, pools, 6)
    as_lines = [(e.problem.question, rft.as_problem(e.problem, e.completion, 0).steps) for e in found]
    for problem in asked:
        own = [steps for question, steps in as_lines if question == problem.question]
        assert own == [p.steps for p in training if p.question == problem.question]
    assert counts["labels"] == counts["distinct"] == ledger["kept"] > 10
    judged = [s for pool in pools for row in pool.values() for s in row]
    assert counts["correct"] == sum(s["correct"] and s["finished"] for s in judged)


def test_of_a_real_drawing_right_answers_alone_are_learned_and_each_problem_keeps_its_gold(sums, annotating, pools):
    asked, gold = prompts.examples(sums[::3]), {p.id: solution(p) for p in sums[:30:3]}
    tokenizer = load_tokenizer(str(annotating))
    found, counts = labels(Config(), asked, gold, pools, tokenizer)
    assert found == labels(Config(), asked, gold, pools, tokenizer)[0]
    written = {(name, s["text"]) for pool in pools for name, row in pool.items() for s in row if s["finished"]}
    for example in found:
        assert answers.is_correct(example.problem, example.completion)
        name = example.problem.id
        assert (name, example.completion) in written or example.completion == gold[name]
    assert [e.problem.id for e in found if e.completion == gold.get(e.problem.id)] == list(gold)
    assert counts["correct"] >= counts["distinct"] >= counts["labels"] == len(found) - len(gold) > 0
