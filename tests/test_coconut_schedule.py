"""Which stage leaves out and thinks what: tables written out by hand, label masks, settings that are refused."""

import random
from collections import Counter
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib import models
from lib.coconut import schedule, sequences
from lib.coconut.config import METHODS, Config
from lib.coconut.schedule import ALL, Stage
from lib.errors import InputError
from lib.problems import make_problem
from lib.tasks import modular_chain

PUBLISHED = Config(mix=0.0, mix_from="all", one_at_a_time=False, max_latent_stage=3, markers=True)
CURRICULA = ("coconut", "coconut_jacobi", "coconut_pause_as_thought", "coconut_no_thought")


def plans(config, n_steps, longest=9):
    """(steps left out, thoughts) of a problem in every stage."""
    return [schedule.plan(config, stage, n_steps) for stage in schedule.stages(config, longest)]


def by_hand(c, top, pad, s, n_steps):
    """(steps left out, thoughts) in published stage s, as the reference has it, case by case."""
    if s <= top:
        return min(s, n_steps), s * c
    return n_steps, c * top if pad else c * min(n_steps, top)


# --- the stages ---


@pytest.mark.parametrize("top", [0, 1, 3, 6])
@pytest.mark.parametrize("pad", [True, False])
@pytest.mark.parametrize("c", [1, 2, 3])
@pytest.mark.parametrize("method", CURRICULA)
def test_every_stage_leaves_out_and_thinks_what_was_published(method, c, pad, top):
    config = replace(PUBLISHED, method=method, c_thought=c, pad_latent_to_max=pad, max_latent_stage=top)
    known = schedule.stages(config, longest=9)
    assert [stage.number for stage in known] == list(range(top + 2)), "0, one for each step, and one without language"
    for n_steps in range(1, 9):
        expected = [by_hand(c, top, pad, s, n_steps) for s in range(top + 2)]
        if method == "coconut_no_thought":
            expected = [(skip, 0) for skip, _ in expected]
        assert plans(config, n_steps) == expected


def test_a_short_example_gets_the_stages_thoughts_all_the_same():
    """Two thoughts a step, three stages and the last, a problem of one step: written out."""
    config = replace(PUBLISHED, c_thought=2)
    assert plans(config, 1) == [(0, 0), (1, 2), (1, 4), (1, 6), (1, 6)]
    assert plans(replace(config, pad_latent_to_max=False), 1) == [(0, 0), (1, 2), (1, 4), (1, 6), (1, 2)]
    assert plans(config, 5) == [(0, 0), (1, 2), (2, 4), (3, 6), (5, 6)]
    assert plans(replace(config, pad_latent_to_max=False), 5) == [(0, 0), (1, 2), (2, 4), (3, 6), (5, 6)]


def test_thoughts_one_at_a_time_make_a_stage_each():
    config = replace(PUBLISHED, c_thought=3, max_latent_stage=2, one_at_a_time=True)
    assert [(s.number, *plan) for s, plan in zip(schedule.stages(config, 9), plans(config, 4), strict=True)] == [
        (0, 0, 0),
        (1, 1, 1),
        (1, 1, 2),
        (1, 1, 3),
        (2, 2, 4),
        (2, 2, 5),
        (2, 2, 6),
        (3, 4, 6),
    ]
    for other in (replace(config, c_thought=1), replace(config, method="coconut_no_thought")):
        assert schedule.stages(other, 9) == schedule.stages(replace(other, one_at_a_time=False), 9)


@pytest.mark.parametrize("pad, longest, numbers", [(True, 3, 3), (True, 4, 4), (False, 3, 4), (True, 1, 3)])
def test_the_last_stage_is_left_out_where_nothing_would_be_left_for_it(pad, longest, numbers):
    """Without padding a short problem has fewer thoughts in the last stage than in the one before."""
    config = replace(PUBLISHED, pad_latent_to_max=pad)
    known = schedule.stages(config, longest)
    assert [stage.number for stage in known] == list(range(numbers + 1))
    final = Stage(4, ALL, 3)
    differs = any(
        schedule.plan(config, final, n) != schedule.plan(config, Stage(3, 3, 3), n) for n in range(1, longest + 1)
    )
    assert differs == (known[-1].skip == ALL)


def test_without_thoughts_no_stage_stands_twice():
    config = replace(PUBLISHED, method="coconut_no_thought", pad_latent_to_max=False)
    assert len(plans(config, 3, longest=3)) == len(set(plans(config, 3, longest=3)))


@pytest.mark.parametrize("c, pad", product([1, 2], [True, False]))
def test_methods_without_a_curriculum_have_one_stage(c, pad):
    config = replace(PUBLISHED, c_thought=c, pad_latent_to_max=pad)
    few, many = (2, 5)
    assert plans(replace(config, method="cot"), few) == [(0, 0)]
    assert plans(replace(config, method="answer_only"), few) == [(2, 0)]
    for method in ("coconut_no_curriculum", "coconut_pause_token"):
        assert plans(replace(config, method=method), few) == [(2, c * (3 if pad else 2))]
        assert plans(replace(config, method=method), many) == [(5, c * 3)]


def test_which_methods_have_what():
    has = {method: (Config(method=method).has_curriculum, Config(method=method).has_latents) for method in METHODS}
    assert [method for method in METHODS if has[method][0]] == [m for m in METHODS if m in CURRICULA]
    assert [method for method in METHODS if not has[method][1]] == ["cot", "answer_only", "coconut_no_thought"]
    for method in METHODS:
        source = Config(method=method, source="middle").thought_source
        if "pause" in method:
            assert source == "pause"
        else:
            assert source == ("middle" if has[method][1] else None)


# --- being asked ---


@pytest.mark.parametrize("c", [1, 2, 3])
@pytest.mark.parametrize("pad", [True, False])
def test_thoughts_when_asked_are_the_published_evaluations(c, pad):
    """k = c times the least of the stage and what max_latent_stage (and, unpadded, the steps) allow."""
    config = replace(PUBLISHED, c_thought=c, pad_latent_to_max=pad)
    for s, stage in enumerate(schedule.stages(config, 9)):
        for n_steps in range(1, 8):
            most = 3 if pad else min(3, n_steps)
            assert schedule.thoughts_to_answer(config, stage, n_steps) == c * min(s, most)
    for method in ("cot", "answer_only", "coconut_no_thought"):
        other = replace(config, method=method)
        assert {schedule.thoughts_to_answer(other, stage, 2) for stage in schedule.stages(other, 9)} == {0}


def test_unpadded_training_and_asking_disagree_in_the_middle_stages_as_published():
    config = replace(PUBLISHED, pad_latent_to_max=False, c_thought=2)
    known = schedule.stages(config, 9)
    assert [schedule.plan(config, stage, 1)[1] for stage in known] == [0, 2, 4, 6, 2]
    assert [schedule.thoughts_to_answer(config, stage, 1) for stage in known] == [0, 2, 2, 2, 2]


# --- by epochs ---


@pytest.mark.parametrize(
    "settings, epochs",
    [
        (
            dict(c_thought=2, max_latent_stage=3, epochs_per_stage=3, first_epoch=3, num_epochs=25),
            {1: (3, 5), 2: (6, 8), 3: (9, 11), 4: (12, 24)},  # GSM8K
        ),
        (
            dict(max_latent_stage=6, epochs_per_stage=5, num_epochs=50),
            {s: (5 * s, 5 * s + 4) for s in range(7)} | {7: (35, 49)},  # ProsQA, ProntoQA
        ),
        (
            dict(max_latent_stage=4, epochs_per_stage=25, num_epochs=300),
            {s: (25 * s, 25 * s + 24) for s in range(5)} | {5: (125, 299)},  # Zhu et al.: 4 and more
        ),
    ],
)
def test_stages_by_epoch_are_those_of_the_published_runs(settings, epochs):
    config = replace(PUBLISHED, steps=0, **settings)
    known = schedule.stages(config, 9)
    found: dict[int, list[int]] = {}
    for epoch in range(config.first_epoch, config.num_epochs):
        found.setdefault(known[schedule.stage_of_epoch(config, known, epoch)].number, []).append(epoch)
    assert {number: (least[0], least[-1]) for number, least in found.items()} == epochs
    rows = schedule.table(config, 9)
    assert [row["stage"] for row in rows] == [stage.number for stage in known]
    expected = {number: f"epochs {first} to {last}" for number, (first, last) in epochs.items()}
    assert [row["ends"] for row in rows] == [expected.get(stage.number, "no epoch") for stage in known]


def test_the_table_says_what_happens():
    rows = schedule.table(replace(PUBLISHED, steps=103, switch_at=0.9, mix=0.25, mix_from="earlier"), 9)
    assert [(row["steps left out"], row["thoughts"]) for row in rows] == [(0, 0), (1, 1), (2, 2), (3, 3), ("all", 3)]
    ends = [f"once 90% are right, by step {step}" for step in (20, 41, 61, 82)]
    assert [row["ends"] for row in rows] == [*ends, "at the end of training"]
    assert [row["rows from other stages"] for row in rows] == ["none", "25%", "25%", "25%", "25%"]
    everywhere = schedule.table(replace(PUBLISHED, mix=0.25, switch_at=0.0, steps=100), 9)
    assert [row["rows from other stages"] for row in everywhere] == ["25%"] * 5
    assert everywhere[0]["ends"] == "by step 20"
    assert schedule.table(replace(PUBLISHED, method="cot", mix=0.5), 9)[0]["rows from other stages"] == "none"


@pytest.mark.parametrize("steps", [5, 16, 100, 1103])
def test_every_stage_has_its_share_of_the_steps(steps):
    config = replace(PUBLISHED, steps=steps)
    known = schedule.stages(config, 9)
    ends = [schedule.deadline(config, known, at) for at in range(5)]
    shares = [end - begin for begin, end in zip([0, *ends], ends, strict=False)]
    assert sum(shares) == steps and max(shares) - min(shares) <= 1 and min(shares) >= 1


# --- rows of other stages ---


def drawn(config, at, n_steps, n=4000):
    known = schedule.stages(config, 9)
    rng = random.Random(1)
    return Counter(schedule.draw(config, known, at, n_steps, rng) for _ in range(n)), known


def near(count, share, n=4000):
    """Within four standard deviations of what is expected."""
    return abs(count - share * n) <= 4 * (n * share * (1 - share)) ** 0.5


def test_rows_of_earlier_stages_come_as_often_as_asked():
    config = replace(PUBLISHED, mix=0.3, mix_from="earlier", c_thought=2)
    found, known = drawn(config, 3, 5)
    assert set(found) == set(known[:4]) and near(found[known[3]], 0.7)
    assert all(near(found[stage], 0.1) for stage in known[:3])
    assert drawn(config, 0, 5)[0] == {known[0]: 4000}


@pytest.mark.parametrize("c, n_steps", [(1, 2), (2, 5), (3, 3)])
def test_rows_of_all_stages_draw_a_number_of_steps_as_published(c, n_steps):
    """One of 0 to all of its own steps; more than max_latent_stage is the stage without language."""
    config = replace(PUBLISHED, mix=0.5, mix_from="all", c_thought=c)
    found, known = drawn(config, 1, n_steps)
    share = 0.5 / (n_steps + 1)
    for stage in known:
        expected = share * (stage.number <= n_steps)
        if stage.number == 4:
            expected = share * max(0, n_steps - 3)
        assert near(found[stage], expected + 0.5 * (stage.number == 1)), stage
    assert sum(found[stage] for stage in known) == 4000, "no stage that the curriculum does not have"


def test_nothing_is_mixed_in_where_nothing_is_asked_for():
    for config in (PUBLISHED, replace(PUBLISHED, method="cot", mix=0.9), replace(PUBLISHED, method="answer_only")):
        found, known = drawn(config, len(schedule.stages(config, 9)) - 1, 4)
        assert found == {known[-1]: 4000}


@settings(max_examples=150, deadline=None)
@given(
    method=st.sampled_from(sorted(METHODS)),
    c=st.integers(1, 3),
    top=st.integers(0, 5),
    pad=st.booleans(),
    mix_from=st.sampled_from(["earlier", "all"]),
    singly=st.booleans(),
    n_steps=st.integers(0, 8),
    seed=st.integers(0, 99),
)
def test_whatever_is_drawn_can_be_trained_and_repeats(method, c, top, pad, mix_from, singly, n_steps, seed):
    config = replace(PUBLISHED, method=method, c_thought=c, max_latent_stage=top, pad_latent_to_max=pad)
    config = replace(config, mix=0.5, mix_from=mix_from, one_at_a_time=singly)
    known = schedule.stages(config, 8)
    assert len(set(known)) == len(known)
    before = (0, 0)
    for at, stage in enumerate(known):
        assert (stage.skip, stage.thoughts) >= before, "never back"
        before = (stage.skip, stage.thoughts)
        one, other = (schedule.draw(config, known, at, n_steps, random.Random(seed)) for _ in range(2))
        skip, thoughts = schedule.plan(config, one, n_steps)
        assert one == other and 0 <= skip <= n_steps
        assert 0 <= thoughts <= c * top and (config.has_latents or not thoughts)
        assert 0 <= schedule.thoughts_to_answer(config, stage, n_steps) <= c * top


# --- problems as rows of tokens ---


@pytest.fixture(scope="module")
def tokenizer(tiny_llama):
    return models.load_tokenizer(str(tiny_llama))


@pytest.mark.parametrize("markers", [(400, 401, 402), (None, None, 402), None])
@pytest.mark.parametrize("prefix", ["#### ", "### ", ""])
def test_what_is_learned_is_the_rest_of_the_steps_the_answer_and_its_end(prefix, markers, tokenizer, chains):
    config = replace(PUBLISHED, answer_prefix=prefix)
    for problem, encoded in zip(chains, sequences.encode(config, tokenizer, chains), strict=True):
        for skip, thoughts in ((0, 0), (1, 1), (1, 3), (len(problem.steps), 6)):
            row = sequences.row(encoded, skip, thoughts, markers)
            ids, labels = row["input_ids"], row["labels"]
            written = "".join(f"{step}\n" for step in problem.steps[skip:]) + prefix + problem.answer
            learned = [i for i in labels if i != -100]
            assert tokenizer.decode(learned) == written + tokenizer.eos_token
            assert len(learned) == sum(map(len, encoded["steps"][skip:])) + len(encoded["answer"])
            assert labels == [-100] * (len(ids) - len(learned)) + ids[-len(learned) :]
            given = ids[: -len(learned)]
            asked = tokenizer(problem.question + "\n")["input_ids"]
            start, end, latent = markers or (None, None, None)
            middle = [start, *[latent] * (thoughts if markers else 0), end]
            assert given == asked + [i for i in middle if i is not None]
            assert row["thoughts"] == (thoughts if markers else 0)
            assert row["first"] == len(asked) + (start is not None)


def test_first_thoughts_share_a_column_and_rows_without_any_begin_at_once():
    """Written out: on the left so that the thoughts (9) meet, on the right to one length; positions row by row."""
    asked = [([5], 2), ([6, 6, 6], 1), ([7, 7], 0)]
    rows = [sequences.row({"question": q, "steps": [], "answer": [3, 1]}, 0, n, (None, None, 9)) for q, n in asked]
    batch = sequences.make_batch(rows, 4)
    assert batch["input_ids"].tolist() == [[4, 4, 5, 9, 9, 3, 1], [6, 6, 6, 9, 3, 1, 4], [7, 7, 3, 1, 4, 4, 4]]
    assert batch["attention_mask"].tolist() == [[0, 0, *[1] * 5], [*[1] * 6, 0], [*[1] * 4, 0, 0, 0]]
    assert batch["position_ids"].tolist() == [[0, 0, 0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5, 0], [0, 1, 2, 3, 0, 0, 0]]
    learned = [[-100] * 5 + [3, 1], [-100] * 4 + [3, 1, -100], [-100, -100, 3, 1, -100, -100, -100]]
    assert batch["labels"].tolist() == learned
    assert (batch["thoughts"].tolist(), batch["first"], batch["most"]) == ([2, 1, 0], 3, 2)


def test_pieces_are_tokenised_apart_and_only_the_question_gets_a_first_token(tokenizer):
    from tokenizers.processors import TemplateProcessing

    problem = make_problem("What is\n1 + 2 ?", ["1 + 2 =", " 3 "], "3", "mine")
    config = replace(PUBLISHED, answer_prefix="### ")
    (plain,) = sequences.encode(config, tokenizer, [problem])
    assert tokenizer.decode(plain["question"]) == "What is\n1 + 2 ?\n"
    assert [tokenizer.decode(ids) for ids in plain["steps"]] == [f"{step}\n" for step in problem.steps]
    assert tokenizer.decode(plain["answer"]) == "### 3" + tokenizer.eos_token and plain["answer"][-1] == 1
    tokenizer = tokenizer.__class__(
        tokenizer_object=tokenizer.backend_tokenizer.from_str(tokenizer.backend_tokenizer.to_str()),
        bos_token="<pad>",
        eos_token="<eos>",
    )
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing("<pad> $A", special_tokens=[("<pad>", 0)])
    (first,) = sequences.encode(config, tokenizer, [problem])
    assert first == plain | {"question": [0, *plain["question"]]}
    assert sequences.encode(config, tokenizer, []) == []


def test_problems_that_do_not_fit_with_all_their_thoughts_are_left_out_and_counted(tokenizer, chains, capsys):
    config = replace(PUBLISHED, c_thought=2)
    encoded = sequences.encode(config, tokenizer, chains)
    longest = [len(sequences.row(e, 0, 6, (400, 401, 402))["input_ids"]) for e in encoded]
    limit = sorted(set(longest))[1]
    kept = sequences.keep_short(replace(config, max_length=limit), encoded)
    assert kept == [e for e, n in zip(encoded, longest, strict=True) if n <= limit] and len(kept) < 32
    assert f"left out {32 - len(kept)} of 32 problems" in capsys.readouterr().out
    assert sequences.keep_short(replace(config, method="cot", max_length=limit - 8), encoded) == kept
    with pytest.raises(InputError, match="None of 32 problems fits into max_length = 5"):
        sequences.keep_short(replace(config, max_length=5), encoded)


# --- settings ---


@pytest.mark.parametrize(
    "wrong, says",
    [
        (dict(method="cococo"), "Unknown method 'cococo'; use cot, answer_only, coconut"),
        (dict(source="third_eye"), "Unknown source 'third_eye'; use last_hidden, normalised"),
        (dict(mix_from="later"), "Unknown mix_from 'later'; use earlier, all"),
        (dict(reset_optimizer="always"), "Unknown reset_optimizer 'always'; use never, stage, epoch"),
        (dict(dtype="float8"), "Unknown dtype 'float8'"),
        (dict(c_thought=0), "c_thought must be at least 1, not 0"),
        (dict(max_latent_stage=-1), "max_latent_stage must be at least 0, not -1"),
        (dict(mix=1.5), "mix is a share from 0 to 1, not 1.5"),
        (dict(switch_at=-0.1), "switch_at is a share from 0 to 1"),
        (dict(steps=0), "How long to train"),
        (dict(steps=0, num_epochs=5), "A curriculum by epochs needs epochs_per_stage"),
        (dict(batch_size=10, accumulation=4), "batch_size 10 is no multiple of accumulation 4"),
        (dict(steps=0, epochs_per_stage=3, num_epochs=25, first_epoch=25), "num_epochs above first_epoch .25."),
        (dict(epochs_per_stage=3), "by steps or by epochs: set one of steps and epochs_per_stage to 0"),
        (dict(steps=0, epochs_per_stage=3, num_epochs=9, c_thought=2), "set one_at_a_time to false"),
        (dict(source="pause"), "Unknown source 'pause'"),
        (dict(warmup_steps=-1), "warmup_steps must be at least 0, not -1"),
        (dict(valid_problems=-1), "valid_problems must be at least 0, not -1"),
        (dict(learning_rate=0.0), "learning_rate must be above 0, not 0.0"),
        (dict(dropout=1.0), "dropout must be at least 0 and below 1, not 1.0"),
    ],
)
def test_settings_that_cannot_work_are_refused_in_one_sentence(wrong, says):
    with pytest.raises(InputError, match=says) as refused:
        Config(**wrong)
    assert "\n" not in str(refused.value)


def test_the_embedded_setting_suits_the_embedded_problems():
    """One thought a step, and as many stages as the chains of four operations have steps."""
    known = schedule.stages(Config(), max(len(p.steps) for p in modular_chain.generate(5)))
    assert [(stage.skip, stage.thoughts) for stage in known] == [(n, n) for n in range(5)]
