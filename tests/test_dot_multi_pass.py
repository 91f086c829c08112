"""One thought a pass: how chains are cut, what is learned of them, and how thoughts are strung together again."""

import copy
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lib import answers, models
from lib.dot import config as settings
from lib.dot import generation, inspect, losses, multi_pass, pictures, sequences, training
from lib.dot import model as plaid
from lib.dot.config import Config
from lib.errors import InputError
from lib.problems import make_problem
from lib.prompts import solution
from lib.tasks import arithmetic, modular_chain

ROOT = Path(__file__).parents[1]
LONG = [p for n in (1, 2, 3) for p in modular_chain.generate(8, n_operations=n, seed=n)]
BARE = make_problem("1 + 1", [], "2", "bare")


@pytest.fixture(scope="module")
def words():
    return sequences.tokenizer_for(Config(), [*LONG, BARE])


@pytest.fixture(scope="module")
def encoded(words):
    return multi_pass.encode(words, LONG)


# --- thoughts ---


def test_a_thought_is_a_step_and_the_answer_belongs_to_the_last():
    problem = make_problem("q", ["a = b", "c = d", "e = f"], "7", "test")
    assert multi_pass.thoughts(problem) == ["a = b\n", "c = d\n", "e = f\n#### 7"]
    assert multi_pass.thoughts(BARE) == ["#### 2"]
    odd = make_problem("q", ["a\u2028b", "c"], "x\x0cy", "test")
    assert multi_pass.thoughts(odd) == ["a\u2028b\n", "c\n#### x\x0cy"]


def test_thoughts_make_the_solution_to_the_token(words, encoded):
    for problem, own, whole in zip(LONG, encoded, sequences.encode(words, LONG), strict=True):
        assert own["target"] == whole["target"] and own["source"] == whole["source"]
        assert sum(own["thoughts"], []) == own["target"]
        assert len(own["thoughts"]) == len(problem.steps)
        assert words.decode(own["target"][:-1]) == solution(problem)


def test_the_end_stands_after_the_last_thought_alone(words, encoded):
    for own in encoded:
        assert [thought.count(words.eos_token_id) for thought in own["thoughts"][:-1]] == [0] * (
            len(own["thoughts"]) - 1
        )
        assert own["thoughts"][-1].index(words.eos_token_id) == len(own["thoughts"][-1]) - 1


# --- rows ---


def test_a_pass_knows_what_was_thought_before(words, encoded):
    for own in encoded:
        for i, thought in enumerate(own["thoughts"]):
            row = multi_pass.row(own, i)
            assert row["source"] == [*own["source"][:-1], *sum(own["thoughts"][:i], []), words.sep_token_id]
            assert row["target"] == thought and row["source"].count(words.sep_token_id) == 1


def test_two_thoughts_on_one_canvas_stand_on_both_sides_of_a_separator(words, encoded):
    own = encoded[-1]
    row = multi_pass.row(own, 1, both=True)
    assert row["target"] == [*own["thoughts"][1], words.sep_token_id, *own["thoughts"][2]]
    assert row["source"] == multi_pass.row(own, 1)["source"], "the first of them is noised too"


def drawn(rows, words, seeds, place=-1):
    """How often each canvas comes, of one problem."""
    found = Counter()
    for seed in range(seeds):
        batch = rows.batch(torch.tensor([place % len(rows)]), seed)
        found[tuple(batch["canvas"][0].tolist())] += 1
    return found


def test_each_thought_comes_equally_often(words, encoded):
    found = drawn(multi_pass.Rows(encoded, words), words, 900)
    assert set(found) == {tuple(thought) for thought in encoded[-1]["thoughts"]}
    assert all(abs(count - 300) < 60 for count in found.values()), found


@pytest.mark.parametrize("coupled", [0.3, 1.0])
def test_two_thoughts_come_as_often_as_asked_where_there_are_two(coupled, words, encoded):
    found = drawn(multi_pass.Rows(encoded, words, coupled), words, 900)
    two = sum(count for canvas, count in found.items() if words.sep_token_id in canvas)
    assert abs(two - 600 * coupled) < 60  # the last thought has none behind it
    assert words.sep_token_id not in {t for c in drawn(multi_pass.Rows(encoded, words, 1.0), words, 9, 0) for t in c}


def test_coupling_leaves_the_thought_that_was_drawn_the_same(words, encoded):
    places = torch.arange(len(encoded))
    plain, on = (multi_pass.Rows(encoded, words, c).batch(places, 5) for c in (0.0, 1.0))
    assert torch.equal(plain["source"], on["source"]) and plain["canvas"].shape != on["canvas"].shape
    for a, b in zip(plain["canvas"].tolist(), on["canvas"].tolist(), strict=True):
        thought = [token for token in a if token != words.pad_token_id]
        assert b[: len(thought)] == thought


def test_a_batch_hangs_on_its_seed_alone_and_changes_nothing(words, encoded):
    before, rows = copy.deepcopy(encoded), multi_pass.Rows(encoded, words, 0.5)
    places = torch.tensor([3, 0, 17, 3])
    first = rows.batch(places, 11)
    rows.batch(torch.arange(9), 12)
    again = rows.batch(places, 11)
    assert all(torch.equal(first[name], again[name]) for name in ("source", "canvas", "mask"))
    assert any(not torch.equal(rows.batch(places, seed)["source"], first["source"]) for seed in range(5))
    assert encoded == before


def test_shorter_thoughts_are_followed_by_padding_which_is_learned_and_seen(words, encoded):
    batch = multi_pass.Rows(encoded, words).batch(torch.arange(len(encoded)), 0)
    assert (batch["canvas"] == words.pad_token_id).any()
    m = batch["source"].shape[1]
    assert batch["mask"][:, m:].all(), "padding of the canvas can be attended to"
    assert torch.equal(batch["mask"][:, :m], batch["source"] != words.pad_token_id)


# --- a canvas as a thought ---

END, PAD, SEP = 1, 0, 3


@pytest.mark.parametrize(
    "canvas, thought, ends",
    [
        ([7, 8, PAD, PAD], [7, 8], False),
        ([7, 8, END, PAD], [7, 8, END], True),
        ([7, 8, 9], [7, 8, 9], False),
        ([7, 8, END], [7, 8, END], True),
        ([7, PAD, 8, END], [7], False),
        ([7, END, 8, PAD], [7, END], True),
        ([PAD, 7, 8], [], False),
        ([SEP, 7, SEP, 8, PAD], [7], False),
        ([7, 8, SEP, 9, END], [7, 8], False),
        ([SEP, SEP], [], False),
        ([END], [END], True),
    ],
)
def test_a_thought_goes_up_to_its_padding_or_with_its_end(canvas, thought, ends):
    assert multi_pass.cut(canvas, END, PAD, SEP) == (thought, ends)


@given(st.lists(st.integers(0, 6)))
def test_no_canvas_breaks_the_cut(canvas):
    thought, ends = multi_pass.cut(canvas, END, PAD, SEP)
    assert not {SEP, PAD} & set(thought) and ends == (END in thought) and thought.count(END) <= 1
    while canvas and canvas[0] == SEP:
        canvas.pop(0)
    assert canvas[: len(thought)] == thought
    assert ends or len(thought) == len(canvas) or canvas[len(thought)] in (SEP, PAD)


# --- thought after thought ---


class Told:
    """Stands where the model would: each sample's canvases, in order; remembers what it was asked."""

    def __init__(self, canvases):
        self.left = {key: list(own) for key, own in canvases.items()}
        self.asked, self.calls = [], 0

    def __call__(self, sources, noise, watch):
        self.asked.append(sources)
        self.calls += 1
        if watch:
            watch("step", torch.arange(len(sources)), None, None)
        return [self.left[source[0]].pop(0) for source in sources], [2] * len(sources)


class Drawn:
    """Noise that says whose it is."""

    def __init__(self):
        self.asked = []

    def of(self, rows):
        self.asked.append(list(rows))
        return self


def test_thoughts_are_kept_verbatim_and_whoever_is_done_leaves(words):
    e, p, s = words.eos_token_id, words.pad_token_id, words.sep_token_id
    told = Told({20: [[5, p], [6, p], [7, e]], 21: [[8, e]], 22: [[9, 9], [p, p], [9, e]]})
    noise, seen = Drawn(), []
    sources = [[20, s], [21, 4, s], [22, s]]
    written, calls, passes = multi_pass.think(
        told, words, sources, 5, noise, lambda step, rows, *_: seen.append(rows.tolist())
    )
    assert written == [[5, 6, 7, e], [8, e], [9, 9, 9, e]]
    assert told.asked == [
        [[20, s], [21, 4, s], [22, s]],
        [[20, 5, s], [22, 9, 9, s]],
        [[20, 5, 6, s], [22, 9, 9, s]],
    ]
    assert calls == [6, 2, 6] and passes == [3, 1, 3] and noise.asked == seen == [[0, 1, 2], [0, 2], [0, 2]]
    assert sources == [[20, s], [21, 4, s], [22, s]]


def test_it_thinks_so_often_and_no_longer(words):
    told = Told({20: [[5]] * 9})
    written, calls, passes = multi_pass.think(told, words, [[20, words.sep_token_id]], 4, Drawn(), None)
    assert (written, calls, passes, told.calls) == ([[5] * 4], [8], [4], 4)


# --- for real ---


@pytest.fixture(scope="module")
def learned(short_chains, tmp_path_factory):
    """loss -> (model, tokenizer, config, canvas) of a tiny model that learned 44 chains, thought by thought."""
    made = {}

    def load(loss):
        if loss not in made:
            folder = tmp_path_factory.mktemp(f"mp_{loss}")
            size = dict(model="tiny", loss=loss, steps=300, batch_size=44, check_steps=300, valid_problems=0)
            rates = dict(learning_rate=1e-3, embedding_rate=1e-2, warmup_steps=20)
            with pytest.MonkeyPatch.context() as patch:
                patch.setitem(settings.PRESETS, "tiny", (64, 2, 4))
                config = Config(**size, **rates, multi_pass=True, coupled=0.05, device="cpu")
                training.train(config, short_chains, [], folder)
            made[loss] = plaid.load(folder / "model", "cpu")
        return made[loss]

    return load


@pytest.mark.parametrize("loss", ["cross_entropy", "masked"])
def test_a_model_learns_to_think_one_thought_a_pass(loss, learned, short_chains):
    model, tokenizer, trained, canvas = learned(loss)
    how = generation.Config(steps=3, device="cpu")
    asked = [p.question for p in short_chains]
    found, calls = generation.generate(model, tokenizer, trained, canvas, asked, how)
    right = [answers.is_verified(p, g.text) for p, g in zip(short_chains, found, strict=True)]
    assert sum(right) >= 40
    for problem, g, made, ok in zip(short_chains, found, calls, right, strict=True):
        n = len(problem.steps)
        assert not ok or (g.finished and made == 3 * n and g.tokens == canvas * n)


def test_a_sample_does_not_hang_on_the_others(learned, short_chains):
    parts, how = learned("cross_entropy"), generation.Config(steps=2, sampler="ancestral", device="cpu")
    asked = [p.question for p in short_chains]
    whole, _ = generation.generate(*parts, asked, how)
    alone = [generation.generate(*parts, [q], how)[0][0].text for q in asked[::7]]
    small, _ = generation.generate(*parts, asked[::-1], replace(how, batch_tokens=400))
    assert [g.text for g in whole[::7]] == alone and [g.text for g in small[::-1]] == [g.text for g in whole]


def test_it_gives_up_after_so_many_thoughts(learned, short_chains):
    how = generation.Config(steps=1, max_thoughts=1, device="cpu")
    two = [p for p in short_chains if len(p.steps) == 2]
    found, calls = generation.generate(*learned("cross_entropy"), [p.question for p in two], how)
    assert not any(answers.is_correct(p, g.text) and g.finished for p, g in zip(two, found, strict=True))
    assert set(calls) == {1}


def test_problems_without_steps_have_one_thought(tmp_path, monkeypatch):
    monkeypatch.setitem(settings.PRESETS, "tiny", (32, 1, 2))
    bare = [replace(p, steps=()) for p in arithmetic.generate(40, "+", 1)]
    training.train(Config(model="tiny", steps=3, batch_size=4, multi_pass=True, device="cpu"), bare, bare[:3], tmp_path)
    *_, trained, canvas = plaid.load(tmp_path / "model", "cpu")
    assert trained.multi_pass and canvas == max(len(p.answer.split()) for p in bare) + 2


def test_thoughts_on_one_canvas_need_thoughts():
    with pytest.raises(InputError, match="multi_pass"):
        Config(coupled=0.1)


# --- how many passes, and what they look like ---


def test_a_model_may_think_twice_as_often_as_its_longest_chain(learned, short_chains):
    *_, trained, _ = learned("cross_entropy")
    assert trained.max_thoughts == 2 * max(len(p.steps) for p in short_chains)
    for wrong in ({"max_thoughts": -1}, {"min_prob": 2.0}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            Config(**wrong)


def test_so_many_passes_may_be_said_in_training(tmp_path, monkeypatch):
    monkeypatch.setitem(settings.PRESETS, "tiny", (32, 1, 2))
    some = modular_chain.generate(20, n_operations=3)
    config = Config(model="tiny", steps=2, batch_size=4, multi_pass=True, max_thoughts=5, device="cpu")
    training.train(config, some, some[:2], tmp_path)
    assert plaid.load(tmp_path / "model", "cpu")[2].max_thoughts == 5


def test_a_film_of_passes_keeps_what_was_thought_before(learned, short_chains):
    parts = learned("cross_entropy")
    problem = next(p for p in short_chains if len(p.steps) == 2)
    hows = [generation.Config(steps=n, device="cpu") for n in (1, 3)]
    (item,) = inspect.films(*parts, [problem], hows)
    tokenizer, canvas = parts[1], parts[3]
    for how, run in zip(hows, item["runs"], strict=True):
        (whole,), _ = generation.generate(*parts, [problem.question], how)
        assert whole.text == run["text"] and answers.is_verified(problem, run["text"])
        assert [f["pass"] for f in run["frames"]] == [n for n in (1, 2) for _ in range(how.steps)]
        first, second = run["frames"][how.steps - 1], run["frames"][how.steps]
        thought = multi_pass.thoughts(problem)[0]
        before = len(tokenizer(thought, add_special_tokens=False)["input_ids"])
        assert len(first["tokens"]) == canvas and len(second["tokens"]) == canvas + before
        assert second["tokens"][:before] == first["tokens"][:before]
        assert second["confidence"][:before] == [1.0] * before
        assert all(len(f["tokens"]) == len(f["confidence"]) for f in run["frames"])


def test_a_picture_of_passes_says_so(learned, short_chains):
    problem = next(p for p in short_chains if len(p.steps) == 2)
    (item,) = inspect.films(*learned("cross_entropy"), [problem], [generation.Config(steps=2, device="cpu")])
    (ax, *_) = pictures.film_strip(item["runs"][0]).axes
    assert ax.get_title(loc="left").startswith("one thought a pass, 2 passes: ddim, 2 steps")


def test_a_training_of_passes_killed_halfway_ends_as_an_undisturbed_one(tmp_path):
    """Real processes: coupled and scheduled sampling draw of the step alone, so nothing is lost with the process."""
    program = """
import sys
from lib.dot import training, config as settings
from lib.tasks import modular_chain
settings.PRESETS["tiny"] = (32, 1, 2)
some = modular_chain.generate(60, n_operations=3)
own = dict(multi_pass=True, coupled=0.3, min_prob=0.5, ema=0.9)
config = settings.Config(model="tiny", steps=60, batch_size=8, check_steps=10, device="cpu", **own)
training.train(config, some, some[:8], sys.argv[1])
"""

    def start(name):
        return subprocess.Popen([sys.executable, "-c", program, str(tmp_path / name)], cwd=ROOT)

    assert start("whole").wait() == 0
    process = start("killed")
    while process.poll() is None and not list((tmp_path / "killed").glob("checkpoint-*/complete")):
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert start("killed").wait() == 0
    for name in ("model/weights.safetensors", "metrics.jsonl"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


# --- coupled rows and scheduled sampling in the loss ---


@pytest.mark.parametrize("loss", ["vlb", "cross_entropy", "masked"])
def test_both_thoughts_of_a_coupled_row_are_noised_and_learned(loss, words, encoded):
    """The earlier thought is on the canvas: its tokens are hidden as the next one's are, and count in the loss."""
    long = [e for e in encoded if len(e["thoughts"]) > 1][:8]
    batch = sequences.batch([multi_pass.row(e, 0, both=True) for e in long], words.pad_token_id)
    config = Config(loss=loss, multi_pass=True, coupled=1.0, self_conditioning=0.0)
    models.seed_everything(0)
    model = plaid.Plaid(len(words), config, (32, 1, 2), "cpu")
    with torch.no_grad():
        model.model.output_linear.weight.normal_()  # it begins at zero, which says the same of every token
    shape = losses.noised_columns(config, batch)[0].shape
    shape = shape if loss == "masked" else (*shape, config.embed_dim)
    draw = losses.draw(config, len(long), shape, 5, 0, 1, 0, "cpu")
    ids, counted = losses.noised_columns(config, batch)
    assert torch.equal(ids, batch["canvas"]) and counted.bool().all()
    for i, e in enumerate(long):
        first, second = e["thoughts"][:2]
        own = [*first, words.sep_token_id, *second]
        assert batch["canvas"][i, : len(own)].tolist() == own
        assert batch["source"][i, batch["source"].shape[1] - len(e["source"]) :].tolist() == e["source"]
    before = losses.LOSSES[loss](model, config, batch, draw)["rows"]
    changed = {**batch, "canvas": batch["canvas"].clone()}
    changed["canvas"][:, 0] = (changed["canvas"][:, 0] + 1) % len(words)  # the first token of the earlier thought
    after = losses.LOSSES[loss](model, config, changed, draw)["rows"]
    assert (before != after).sum() >= len(long) - (2 if loss == "masked" else 0)


def test_sampling_switched_off_trains_to_the_bit_as_if_it_were_not_there(tmp_path, monkeypatch):
    """min_prob 1 and coupled 0 are no settings at all; a little of either is one."""
    monkeypatch.setitem(settings.PRESETS, "tiny", (32, 1, 2))
    some = modular_chain.generate(60, n_operations=3)
    plain = Config(model="tiny", steps=20, batch_size=8, valid_problems=0, multi_pass=True, device="cpu")
    found = {}
    for name, config in {
        "plain": plain,
        "off": replace(plain, min_prob=1.0, coupled=0.0),
        "scheduled": replace(plain, min_prob=0.2),
        "coupled": replace(plain, coupled=0.5),
    }.items():
        training.train(config, some, [], tmp_path / name)
        found[name] = (tmp_path / name / "model" / plaid.WEIGHTS).read_bytes()
    assert found["off"] == found["plain"]
    assert len(set(found.values())) == 3
