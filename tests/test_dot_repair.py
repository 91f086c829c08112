"""Injured solutions: what is replaced, what noise leaves of it, and what is counted."""

import json
import random
from collections import Counter
from dataclasses import replace

import pytest
import torch

from lib import answers
from lib.dot import generation, repair, samplers, sequences
from lib.dot import model as plaid
from lib.errors import InputError
from tests.oracles import dot as oracle

HOW = repair.Config(errors=1, steps=4, device="cpu")


@pytest.fixture(scope="module")
def learned(denoiser):
    """loss -> (model, tokenizer, its config, canvas) of a model that knows its chains."""
    return {loss: plaid.load(denoiser(loss), "cpu") for loss in ("cross_entropy", "masked")}


@pytest.fixture
def mended(learned, monkeypatch, tmp_path):
    """(config, problems, loss) -> the rows that mending them writes."""

    def make(config, problems, loss="cross_entropy"):
        monkeypatch.setattr(plaid, "load", lambda directory, device: learned[loss])
        repair.mend(config, problems, "anywhere", tmp_path)
        return [json.loads(line) for line in (tmp_path / "repairs.jsonl").read_text().splitlines()]

    return make


# --- injuries ---


@pytest.mark.parametrize("errors", [0, 1, 3, 6, 9])
@pytest.mark.parametrize("ids", [[4, 5, 6, 5, 4, 7], [9] * 6, [5]])
def test_exactly_so_many_tokens_are_replaced_and_none_by_itself(ids, errors):
    """9 stands for a token that is no choice itself."""
    for seed in range(30):
        kept = list(ids)
        found = repair.injure(ids, errors, [4, 5, 6, 7], random.Random(seed))
        assert ids == kept and len(found) == len(ids)
        changed = [new for old, new in zip(ids, found, strict=True) if old != new]
        assert len(changed) == min(errors, len(ids)) and set(changed) <= {4, 5, 6, 7}


def test_every_place_and_every_other_token_comes_equally_often():
    ids, places, tokens = [4, 5, 6, 7], Counter(), Counter()
    rng = random.Random(0)
    for _ in range(6000):
        ((place, token),) = [(i, new) for i, new in enumerate(repair.injure(ids, 1, ids, rng)) if new != ids[i]]
        places[place] += 1
        tokens[place, token] += 1
    assert all(abs(count - 1500) < 150 for count in places.values()) and len(places) == 4
    assert all(abs(count - 500) < 90 for count in tokens.values()) and len(tokens) == 12


@pytest.mark.parametrize("loss", ["cross_entropy", "masked"])
@pytest.mark.parametrize("errors", [0, 1, 2, 50])
def test_at_time_0_nothing_changes_and_the_end_is_never_hit(errors, loss, mended, learned, short_chains, monkeypatch):
    tokenizer, drawn, real = learned[loss][1], [], repair.injure

    def keep(ids, errors, choices, rng):
        assert not set(choices) & set(tokenizer.all_special_ids)
        drawn.append((ids, real(ids, errors, choices, rng)))
        return drawn[-1][1]

    monkeypatch.setattr(repair, "injure", keep)
    rows = mended(replace(HOW, errors=errors, start=0.0), short_chains, loss)
    encoded = sequences.encode(tokenizer, short_chains)
    pieces = {i for e in encoded for i in e["target"]} - {tokenizer.eos_token_id}
    for row, problem, e, (gold, ids) in zip(rows, short_chains, encoded, drawn, strict=True):
        assert gold == e["target"][:-1] and len(ids) == len(gold) and set(ids) <= pieces, "the end is no part of it"
        assert row["problem"] == problem.id and row["injured"] == row["mended"] == tokenizer.decode(ids)
        assert row["kept"] == 1 and row["hit"] == (0 if errors else None)
        assert sum(a != b for a, b in zip(ids, gold, strict=True)) == min(errors, len(gold))
        assert row["before"] == row["after"] == answers.is_verified(problem, row["injured"]) == (not errors)
    texts = [row["injured"] for row in rows]
    assert texts == [row["injured"] for row in mended(replace(HOW, errors=errors, start=0.7), short_chains, loss)]
    other = [row["injured"] for row in mended(replace(HOW, errors=errors, start=0.0, seed=1), short_chains, loss)]
    assert (texts == other) == (not errors)
    assert [row["injured"] for row in mended(replace(HOW, errors=errors), short_chains[::-1], loss)] == texts[::-1]


@pytest.mark.parametrize("loss", ["cross_entropy", "masked"])
def test_what_is_mended_does_not_hang_on_the_batch(loss, mended, short_chains, monkeypatch):
    how = replace(HOW, errors=2, start=0.7)
    whole = mended(how, short_chains, loss)
    monkeypatch.setattr(repair, "AT_ONCE", 7)
    assert mended(how, short_chains, loss) == whole and any(row["injured"] != row["mended"] for row in whole)


# --- what noise leaves ---


def noised(learned, ids, start, steps=3, sampler="ddim"):
    """(the state that denoising begins with, the tokens that it ends with) of canvases with these tokens."""
    model, tokenizer, told, canvas = learned["cross_entropy"]
    questions = ["v1 - n3 ?"] * len(ids)
    source = sequences.pad(sequences.sources(tokenizer, questions), tokenizer.pad_token_id, True)
    noise = generation.Noise(questions, 0, [0] * len(ids), (canvas, model.embed_dim), "cpu")
    states, guess = [], model.guess
    model.guess = lambda z, *given: states.append(z) or guess(z, *given)
    try:
        with torch.inference_mode():
            how = replace(HOW, start=start, steps=steps, sampler=sampler)
            end = repair.from_time(how, model, told, source, None, ids, noise)
    finally:
        del model.guess
    return states[0], end


@pytest.mark.parametrize("start", [0.3, 0.7, 1.0])
def test_noise_leaves_of_an_injury_what_its_time_says(start, learned):
    """Two canvases, the same noise: their states differ by alpha times what their tokens differ by."""
    model, _, _, canvas = learned["cross_entropy"]
    ids = torch.tensor([[5, 6, 7, 8, 9, 1, 0], [5, 6, 10, 8, 9, 1, 0]])
    assert ids.shape[1] == canvas
    state, _ = noised(learned, ids, start)
    gamma = model.gamma(torch.tensor([start], dtype=torch.float64))[0].item()
    alpha, _ = oracle.alpha_sigma(gamma)
    with torch.no_grad():
        points = model.embedding_matrix()[ids]
    torch.testing.assert_close(state[1] - state[0], alpha * (points[1] - points[0]), rtol=0, atol=1e-6)
    assert alpha < {0.3: 1.0, 0.7: 0.5, 1.0: 0.06}[start]


def test_at_time_1_hardly_anything_is_left_of_an_injury(learned, monkeypatch):
    """With gamma_1 = 6 alpha is 0.05; with as much noise as to leave a millionth, what was there makes no difference,
    and what comes is what sampling from noise gives.
    """
    model, tokenizer, trained, canvas = learned["cross_entropy"]
    ids = torch.randint(4, len(tokenizer), (6, canvas), generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(model.gamma_bounds.gamma_1, "data", torch.tensor(28.0))
    state, end = noised(learned, ids, 1.0, steps=6)
    assert (state - state[0]).abs().max() < 2e-5 and (end == end[0]).all()
    how = generation.Config(steps=6, device="cpu")
    (found,), _ = generation.generate(model, tokenizer, trained, canvas, ["v1 - n3 ?"], how)
    assert generation.read(tokenizer, end[0].tolist(), 0).text == found.text


def test_denoising_goes_on_from_the_time_it_is_noised_to(learned, monkeypatch):
    """In even steps to 0, each told its own gamma; with the sampler's own noise where it has some."""
    model, seen = learned["cross_entropy"][0], []
    ids = torch.tensor([[5, 6, 7, 8, 9, 1, 0]])
    real = samplers.denoise

    def watched(model, source, mask, z, plan, noise):
        seen.append(plan)
        return real(model, source, mask, z, plan, noise)

    monkeypatch.setattr(samplers, "denoise", watched)
    for sampler in ("ddim", "ancestral"):
        noised(learned, ids, 0.6, steps=3, sampler=sampler)
    for plan in seen:
        assert [step.t for step in plan] == pytest.approx([0.6, 0.4, 0.2])
        gammas, _ = model.gamma(torch.tensor([0.6, 0.4, 0.2], dtype=torch.float64))
        assert [step.gamma for step in plan] == pytest.approx(gammas.tolist())
    assert seen[0][0].n == 0 < seen[1][0].n


# --- what is counted ---


def canvases(tokenizer, texts, canvas):
    """Canvases with these texts, ended and filled up."""
    ids = [[*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id] for text in texts]
    return sequences.pad(ids, tokenizer.pad_token_id, False, canvas)


@pytest.mark.parametrize(
    "injured, written, expected",
    [
        # the right chain is r3 ⏎ #### 3 <eos>: five tokens
        ("r1\n#### 3", "r3\n#### 3", dict(before=False, after=True, kept=1.0, hit=1.0)),
        ("r1\n#### 3", "r1\n#### 3", dict(before=False, after=False, kept=1.0, hit=0.0)),
        ("r1\n#### 3", "r1\n#### 1", dict(before=False, after=False, kept=0.75, hit=0.0)),
        ("r1\n#### 3", "r3\n#### 1", dict(before=False, after=False, kept=0.75, hit=1.0)),
        ("r1\n#### 1", "r3\n#### 1", dict(before=False, after=False, kept=1.0, hit=0.5)),
        ("r1\n#### 1", "r0\n#### 3", dict(before=False, after=False, kept=1.0, hit=0.5)),
        ("r3\n#### 3", "r3\n#### 3", dict(before=True, after=True, kept=1.0, hit=None)),
        ("r3\n#### 3", "r3\nr3\n#### 3", dict(before=True, after=False, kept=0.4, hit=None)),
    ],
)
def test_a_case_made_by_hand_is_counted_right(injured, written, expected, learned, mended, short_chains, monkeypatch):
    tokenizer, canvas = learned["cross_entropy"][1], learned["cross_entropy"][3]
    problem = short_chains[0]
    assert (problem.steps, problem.answer) == (("r3",), "3")
    ids = tokenizer(injured, add_special_tokens=False)["input_ids"]
    monkeypatch.setattr(repair, "injure", lambda target, errors, choices, rng: ids)
    monkeypatch.setattr(repair, "from_time", lambda *given: canvases(tokenizer, [written], canvas))
    (row,) = mended(HOW, [problem])
    texts = {"problem": problem.id, "injured": injured, "mended": written}
    assert row == {**texts, **{k: v if v is None else pytest.approx(v) for k, v in expected.items()}}


def test_shares_are_summed_up_over_the_problems_that_have_them():
    rows = [
        {"before": False, "after": True, "kept": 1.0, "hit": 0.5},
        {"before": True, "after": True, "kept": 0.5, "hit": None},
        {"before": False, "after": False, "kept": 0.0, "hit": 1.0},
        {"before": False, "after": True, "kept": 0.5, "hit": 0.0},
    ]
    expected = {"errors": 1, "start": 0.5, "n": 4, "before": 0.25, "repaired": 0.75}
    expected |= {"tokens_kept": 0.5, "hit": 0.5}
    assert repair.summary(rows, HOW) == expected
    assert repair.summary(rows[1:2], HOW)["hit"] is None


@pytest.mark.parametrize("loss", ["cross_entropy", "masked"])
def test_a_model_that_knows_its_chains_mends_them(loss, mended, short_chains):
    """After much noise all is written anew, and right; at time 0 all stays as it was injured."""
    repaired = {}
    for start in (0.0, 1.0):
        rows = mended(replace(HOW, errors=2, start=start, steps=6), short_chains, loss)
        for row, problem in zip(rows, short_chains, strict=True):
            assert row["before"] == answers.is_verified(problem, row["injured"])
            assert row["after"] == answers.is_verified(problem, row["mended"])
        repaired[start] = repair.summary(rows, HOW)["repaired"]
    assert repaired[0.0] == 0 and repaired[1.0] > 0.8
    again = mended(replace(HOW, errors=2, start=1.0, steps=6), short_chains, loss)
    assert again == rows, "a second time it is the same"


def test_the_share_that_is_masked_is_the_start(mended, learned, short_chains, monkeypatch):
    """Where nothing is masked the token stays; all of it at 1, which is writing anew."""
    begun, real = [], samplers.unmask

    def keep(model, source, mask, n, steps, uniform, temperature=0.0, watch=None, start=None):
        if start is not None:
            begun.append(start.clone())
        ids, *rest = real(model, source, mask, n, steps, uniform, temperature, watch, start)
        assert start is None or torch.equal(ids[start >= 0], start[start >= 0])
        return ids, *rest

    monkeypatch.setattr(samplers, "unmask", keep)
    for start in (0.3, 0.8, 1.0):
        rows = mended(replace(HOW, errors=2, start=start), short_chains, "masked")
    shares = [(ids < 0).float().mean().item() for ids in begun]
    assert shares == pytest.approx([0.3, 0.8, 1.0], abs=0.1) and shares[2] == 1
    assert (begun[0][:, 0] < 0).any() and ((begun[0] < 0) <= (begun[1] < 0)).all(), "more noise hides more"
    how = generation.Config(steps=4, device="cpu")
    found, _ = generation.generate(*learned["masked"], [p.question for p in short_chains], how)
    assert [row["mended"] for row in rows] == [g.text for g in found]


def test_nothing_to_mend_is_one_sentence(mended):
    with pytest.raises(InputError, match="There is no problem to mend"):
        mended(HOW, [])
