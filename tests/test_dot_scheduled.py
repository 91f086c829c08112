"""Scheduled sampling: some rows are noised from the own guess. Which, from when on, and that all else stays."""

from dataclasses import replace

import pytest
import torch

from lib.dot import losses
from lib.dot.config import Config
from lib.errors import InputError
from tests.oracles import dot as oracle
from tests.test_dot_losses import SOURCES, batch_of, drawn

PLAIN = Config(steps=100, batch_size=64, self_conditioning=0.25)
SHAPE = (64, 5, 16)


def draws(config, step, reconstructed=0):
    return losses.draw(config, 64, SHAPE, step, 0, 1, reconstructed, "cpu")


@pytest.mark.parametrize("step", [0, 50, 99])
def test_switched_off_nothing_is_drawn_and_switched_on_the_rest_is_the_same(step):
    off, on = draws(PLAIN, step), draws(replace(PLAIN, min_prob=0.5), step)
    assert off.guessed is None and off.later is None and off.later_noise is None
    assert torch.equal(off.t, on.t) and torch.equal(off.noise, on.noise) and off.own == on.own


def test_at_first_the_truth_is_always_noised_in_the_end_with_min_prob():
    assert draws(replace(PLAIN, min_prob=0.2), 0).guessed is None
    for step, wanted in ((25, 0.2), (50, 0.4), (100, 0.8)):
        found = [losses.draw(replace(PLAIN, min_prob=0.2, seed=s), 64, SHAPE, step, 0, 1, 0, "cpu") for s in range(60)]
        share = torch.stack([f.guessed for f in found]).double().mean().item()
        assert abs(share - wanted) < 0.03, (step, share)


def pairs(noise):
    """Neighbouring numbers; a single one may come twice by chance."""
    numbers = noise.flatten().tolist()
    return set(zip(numbers, numbers[1:], strict=False))


def test_the_guess_is_made_at_a_later_time_with_noise_of_its_own():
    found = [draws(replace(PLAIN, min_prob=0.0, seed=s), 100, 6) for s in range(30)]
    t, later = torch.cat([f.t for f in found]), torch.cat([f.later for f in found])
    assert (later >= t).all() and (later <= 1).all()
    share = ((later - t) / (1 - t))[t < 0.99]
    assert abs(share.mean() - 0.5) < 0.03 and share.min() < 0.01 and share.max() > 0.99
    nearby = [draws(replace(PLAIN, seed=s), step, 6).noise for s in range(30) for step in (99, 100, 101)]
    everywhere = pairs(torch.stack(nearby))
    for f in found:
        assert not f.guessed[f.t == 0].any() and f.guessed[f.t > 0].all()
        assert not pairs(f.later_noise) & everywhere
        assert abs((f.noise * f.later_noise).mean()) < 0.06 and f.later_noise.std() == pytest.approx(1, abs=0.05)


TIMES = [0.3, 0.13, 0.5, 0.92, 0.2, 0.7]


def prepared(loss, guessed):
    model, config = oracle.small_model(loss=loss)
    batch = batch_of()
    plain = drawn(batch, TIMES)
    noise = torch.randn(plain.noise.shape, generator=torch.Generator().manual_seed(7))
    later = torch.tensor(TIMES, dtype=torch.float64) * 0.5 + 0.5
    return model, config, batch, plain, replace(plain, guessed=guessed, later=later, later_noise=noise)


GUESSED = torch.tensor([True, False, False, True, True, False])


@pytest.mark.parametrize("loss", ["vlb", "cross_entropy"])
def test_rows_and_their_guesses_stand_side_by_side(loss):
    """Each row's loss, against one batch a row: its state made by hand from a guess at its own later time."""
    model, config, batch, plain, changed = prepared(loss, GUESSED)
    found = losses.LOSSES[loss](model, config, batch, changed)["rows"]
    untouched = losses.LOSSES[loss](model, config, batch, plain)["rows"]
    assert torch.equal(found[~GUESSED], untouched[~GUESSED])
    table = model.embedding_matrix().detach()
    for i in GUESSED.nonzero()[:, 0].tolist():
        gamma = model.gamma(changed.later[i : i + 1])[0]
        alpha, sigma = oracle.alpha_sigma(gamma.item())
        z = alpha * table[batch["canvas"][i : i + 1]] + sigma * changed.later_noise[i : i + 1]
        mask = batch["mask"][i : i + 1]
        with torch.no_grad():
            _, guess = model.guess(z.float(), gamma, table[batch["source"][i : i + 1]], None, mask)
        alpha, sigma = oracle.alpha_sigma(model.gamma(changed.t[i : i + 1])[0].item())
        state, given = (alpha * guess + sigma * changed.noise[i : i + 1]).float(), {}
        real = model.guess

        def watched(z, gamma, clean, before=None, *rest, given=given, real=real, **named):
            given["z"], given["found"] = z, real(z, gamma, clean, before, *rest, **named)
            return given["found"]

        model.guess = watched
        try:
            losses.LOSSES[loss](model, config, batch, changed)
        finally:
            del model.guess
        torch.testing.assert_close(given["z"][i : i + 1], state, rtol=1e-4, atol=1e-5)
        logits, x_hat = (part[i].detach() for part in given["found"])
        ids, (gamma, slope) = batch["canvas"][i], model.gamma(changed.t[i : i + 1])
        if loss == "vlb":
            error = (table[ids] - x_hat).square().sum(-1).mean()
            wanted = 0.5 * (-gamma).exp() * slope * error
        else:
            wanted = torch.nn.functional.cross_entropy(logits, ids)
        assert found[i].item() == pytest.approx(wanted.item(), rel=1e-4), "the loss is taken against the truth"
        assert not torch.equal(found[i], untouched[i])


@pytest.mark.parametrize("loss", ["vlb", "cross_entropy"])
def test_no_gradient_goes_through_a_guess(loss):
    """With all rows guessed, the guess replaced by a constant of the same value gives the same gradients."""
    model, config, batch, _, changed = prepared(loss, torch.ones(len(SOURCES), dtype=torch.bool))
    real, states = model.guess, []

    def gradients():
        model.zero_grad()
        losses.LOSSES[loss](model, config, batch, changed)["loss"].backward()
        return [None if p.grad is None else p.grad.clone() for p in model.parameters()]

    def first(*given, **named):
        out = real(*given, **named)
        states.append([part.detach().clone() for part in out])
        return out

    model.guess = first
    ours = gradients()
    constant, count = states[0], [0]

    def second(*given, **named):
        count[0] += 1
        return constant if count[0] == 1 else real(*given, **named)

    model.guess = second
    theirs = gradients()
    del model.guess
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None) == (b is None) and (a is None or torch.equal(a, b))


def test_masked_diffusion_has_nothing_to_schedule():
    with pytest.raises(InputError, match="min_prob"):
        Config(loss="masked", min_prob=0.9)
    with pytest.raises(InputError, match="min_prob"):
        Config(min_prob=1.5)
