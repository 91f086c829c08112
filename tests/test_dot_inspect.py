"""Looking at a diffusion model: what is returned is what the model does."""

import json
from dataclasses import replace

import pytest
import torch

from lib import answers, evaluation
from lib.dot import generation, inspect, losses, sequences
from lib.dot import model as plaid
from lib.dot.config import Config
from lib.problems import make_problem
from lib.prompts import solution
from lib.tasks import modular_chain
from tests.oracles import dot as oracle

HOW = generation.Config(steps=5, device="cpu")


@pytest.fixture(scope="module")
def learned(denoiser):
    """loss -> (model, tokenizer, its config, canvas) of a model that knows its chains."""
    return {loss: plaid.load(denoiser(loss), "cpu") for loss in ("cross_entropy", "masked")}


@pytest.fixture
def random_model(short_chains):
    """(settings) -> (model, tokenizer, its config), untrained, with a schedule that is no line."""

    def make(**settings):
        tokenizer = sequences.tokenizer_for(Config(), short_chains)
        model, config = oracle.small_model(vocabulary=len(tokenizer), sizes=(16, 1, 2), **{"loss": "vlb", **settings})
        return model, tokenizer, config

    return make


# --- the schedule ---


def test_a_schedule_goes_between_its_own_ends_and_is_drawn_beside_where_it_started(random_model):
    model, _, config = random_model(gamma_0=-4.0, gamma_1=5.0)
    with torch.no_grad():
        model.gamma_bounds.gamma_0.fill_(-2.5)
        model.gamma_bounds.gamma_1.fill_(7.5)
    curve = inspect.schedule_curve(model, config, 41)
    assert curve["t"] == pytest.approx([i / 40 for i in range(41)])
    assert curve["gamma"][0] == pytest.approx(-2.5) and curve["gamma"][-1] == pytest.approx(7.5)
    assert all(a < b for a, b in zip(curve["gamma"], curve["gamma"][1:], strict=False))
    assert curve["start"] == pytest.approx([-4 + 9 * i / 40 for i in range(41)])
    w = oracle.weights(model)
    assert curve["gamma"] == pytest.approx([oracle.gamma_of(w, t).item() for t in curve["t"]])
    assert max(abs(a + 2.5 - 10 * t) for a, t in zip(curve["gamma"], curve["t"], strict=True)) > 0.05, "no line"


def test_without_a_learned_shape_the_schedule_is_its_start(learned):
    model, _, trained, _ = learned["cross_entropy"]
    curve = inspect.schedule_curve(model, trained)
    assert len(curve["t"]) == 101 and curve["gamma"] == pytest.approx(curve["start"])


# --- the loss by time ---


@pytest.mark.parametrize("scope", ["target", "all"])
def test_the_loss_at_a_time_is_the_bounds_row_there(scope, random_model, short_chains):
    """By the formulas, with the same noise; problems of two lengths, so that sources are padded."""
    model, tokenizer, config = random_model(loss_scope=scope)
    problems = short_chains[18:23]
    found = inspect.loss_by_time(model, tokenizer, config, problems, bins=4)
    assert [row["t"] for row in found] == [0.125, 0.375, 0.625, 0.875]
    encoded = sequences.encode(tokenizer, problems)
    m, n = (max(len(e[part]) for e in encoded) for part in ("source", "target"))
    w = oracle.weights(model)
    for i, row in enumerate(found):
        columns = n + m if scope == "all" else n
        noise = torch.randn(5, columns, 16, generator=torch.Generator().manual_seed(i)).double()
        rows = []
        for e, own in zip(encoded, noise, strict=True):
            padding = m - len(e["source"])
            source = [0] * padding + e["source"]
            canvas = e["target"] + [0] * (n - len(e["target"]))
            ids = source + canvas if scope == "all" else canvas
            rows.append(dict(source=source, padding=padding, ids=ids, canvas=n, t=row["t"], noise=own, own=False))
        values = [term["value"].item() for term in oracle.bound_terms(w, rows, 2, source_scale=4.0)]
        mean, low, high = evaluation.mean_interval(values)
        assert row["loss"] == pytest.approx(mean, rel=1e-4) and mean > 0
        assert row["low"] == pytest.approx(max(0, low), rel=1e-3, abs=1e-4)
        assert row["high"] == pytest.approx(high, rel=1e-3)
    assert inspect.loss_by_time(model, tokenizer, config, problems, bins=4) == found, "a second time it is the same"


def test_the_loss_by_time_of_few_at_once_is_that_of_these_problems(random_model, short_chains):
    """With seven at once the first seven get the noise that they get alone; the others get what comes next."""
    parts = random_model()
    first = inspect.loss_by_time(*parts, short_chains[:7], bins=2)
    for at_once in (7, 128):
        assert inspect.loss_by_time(*parts, short_chains[:7], bins=2, at_once=at_once) == first
    some, whole = (inspect.loss_by_time(*parts, short_chains, bins=2, at_once=n) for n in (7, 128))
    for a, b in zip(some, whole, strict=True):
        assert a["loss"] != b["loss"] and a["low"] < b["loss"] < a["high"]


def test_one_problem_has_no_interval(random_model, short_chains):
    for row in inspect.loss_by_time(*random_model(), short_chains[:1], bins=2):
        assert row["low"] == row["loss"] == row["high"]


def test_the_mean_over_times_is_what_the_bound_charges(random_model, short_chains):
    """Its diffusion term, over many draws of times and noise, to their error."""
    model, tokenizer, config = random_model(self_conditioning=0.0)
    problems = short_chains[:20]
    by_time = inspect.loss_by_time(model, tokenizer, config, problems, bins=60)
    rows = sequences.Rows(sequences.encode(tokenizer, problems), tokenizer.pad_token_id)
    batch, values = rows.batch(torch.arange(20)), []
    shape = (*batch["canvas"].shape, 16)
    for step in range(60):
        drawn = losses.draw(config, 20, shape, step, 0, 1, 1, "cpu")
        with torch.no_grad():
            terms = losses.named(losses.vlb(model, config, batch, drawn))
        values.append(terms["diffusion"].item())
    mean, low, high = evaluation.mean_interval(values, z=4)
    assert low < sum(row["loss"] for row in by_time) / 60 < high


# --- films ---


@pytest.mark.parametrize(
    "loss, ways, names",
    [
        ("cross_entropy", [HOW, replace(HOW, sampler="ancestral", steps=3)], ["ddim", "ancestral"]),
        ("cross_entropy", [replace(HOW, steps=1), replace(HOW, leave_at=0.97, steps=9)], ["ddim", "ddim"]),
        ("masked", [HOW, replace(HOW, batch_tokens=1)], ["unmask", "unmask"]),
    ],
)
def test_a_film_has_a_frame_a_call_and_ends_with_what_was_written(loss, ways, names, learned, short_chains):
    model, tokenizer, trained, canvas = learned[loss]
    problems = [*short_chains[16:22], *modular_chain.generate(4, n_operations=3)]  # the last: longer than any learned
    items = inspect.films(model, tokenizer, trained, canvas, problems, ways)
    assert [(item["question"], item["answer"]) for item in items] == [(p.question, p.answer) for p in problems]
    for place, (how, name) in enumerate(zip(ways, names, strict=True)):
        questions = [p.question for p in problems]
        found, calls = generation.generate(model, tokenizer, trained, canvas, questions, how)
        for item, problem, g, made in zip(items, problems, found, calls, strict=True):
            run = item["runs"][place]
            assert (run["sampler"], run["steps"], run["text"]) == (name, how.steps, g.text)
            assert run["right"] == answers.is_correct(problem, g.text) and len(run["frames"]) == made
            assert [f["t"] for f in run["frames"]] == pytest.approx([1 - i / how.steps for i in range(made)])
            for frame in run["frames"]:
                assert len(frame["tokens"]) == len(frame["confidence"]) == canvas
                assert all(0 < likely <= 1.00001 for likely in frame["confidence"])
            last = run["frames"][-1]["tokens"]
            ends = last.index("<eos>") if g.finished else canvas
            assert ("<eos>" in last) == g.finished and "".join(last[:ends]) == g.text
            assert "<pad>" not in last, "an empty place is an empty token"
    if any(how.leave_at < 1 for how in ways):
        assert len({len(item["runs"][-1]["frames"]) for item in items}) > 1, "some left early"


def test_an_answer_that_nobody_knows_is_not_judged(learned):
    asked = make_problem("v1 + n2 ?", [], "", "asked")
    (item,) = inspect.films(*learned["masked"], [asked], [HOW])
    assert item["runs"][0]["right"] is None and item["answer"] == ""
    assert inspect.films(*learned["masked"], [asked], []) == [{"question": "v1 + n2 ?", "answer": "", "runs": []}]


def test_a_camera_films_any_question_as_it_is_told(learned):
    camera = inspect.filmed(*learned["cross_entropy"], replace(HOW, seed=3))
    item = camera("v1 + n2 ?", "dpm_2m", 7)
    (run,) = item["runs"]
    assert item["question"] == "v1 + n2 ?" and (run["sampler"], run["steps"], len(run["frames"])) == ("dpm_2m", 7, 7)
    how = replace(HOW, seed=3, sampler="dpm_2m", steps=7)
    (found,), _ = generation.generate(*learned["cross_entropy"], ["v1 + n2 ?"], how)
    assert run["text"] == found.text
    assert len(camera("v1 + n2 " * 100, "ddim", 2)["runs"][0]["frames"]) == 2, "longer than any in training"


# --- how many steps ---


@pytest.mark.parametrize(
    "loss, changed",
    [
        ("cross_entropy", dict(steps=1)),
        ("cross_entropy", dict(sampler="ancestral", temperature=0.8)),
        ("masked", dict(steps=2, samples=3, temperature=3.0)),
    ],
)
def test_right_answers_are_counted(loss, changed, denoiser, learned, short_chains, tmp_path):
    how = replace(HOW, **changed)
    inspect.try_ways(inspect.Ways((HOW, how)), short_chains, denoiser(loss), tmp_path)
    row = json.loads((tmp_path / "tried.jsonl").read_text().splitlines()[1])
    found, _ = generation.voted(*learned[loss], short_chains, how)
    right = sum(answers.is_correct(p, g.text) for p, g in zip(short_chains, found, strict=True))
    assert (row["right"], row["n"]) == (right, 44) and right > 0 and row["seconds"] > 0
    for name in ("sampler", "steps", "samples", "temperature"):
        assert row[name] == getattr(how, name)


@pytest.mark.parametrize(
    "found, within, expected",
    [
        ({1: 50, 2: 97, 4: 98, 8: 98}, 0.01, 2),
        ({1: 50, 2: 97, 4: 98, 8: 98}, 0.0, 4),
        ({1: 50, 2: 96, 4: 98, 8: 98}, 0.01, 4),
        ({8: 98, 4: 90, 2: 98}, 0.01, 2),
        ({1: 0, 2: 0}, 0.01, 1),
        ({16: 7}, 0.01, 16),
        ({1: 10, 2: 90}, 1.0, 1),
    ],
)
def test_the_fewest_steps_that_are_as_good_as_the_best(found, within, expected):
    rows = [{"steps": steps, "right": right, "n": 100} for steps, right in found.items()]
    assert inspect.fewest_steps(rows, within) == expected


def test_there_is_room_for_the_longest_solution_and_its_end(denoiser, short_chains):
    folder = denoiser("cross_entropy")
    tokenizer = plaid.load(folder, "cpu")[1]
    longer = modular_chain.generate(5, n_operations=7)
    needed = [len(tokenizer(solution(p), add_special_tokens=False)["input_ids"]) + 1 for p in longer]
    assert inspect.room(folder, longer) == max(needed) > inspect.room(folder, short_chains)
    assert inspect.room(folder, []) == 1
