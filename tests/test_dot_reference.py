"""The published way of computing, on a canvas of 256 positions, against ours: the same tokens, the same loss."""

import pytest
import torch

from lib.dot import losses, samplers, sequences
from tests.oracles import dot as oracle
from tests.oracles import dot_reference as reference

SOURCES, CANVAS, PAD = [3, 9, 1, 5], 6, 0


def problems(lengths=SOURCES, seed=0):
    """Sources of these lengths."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, oracle.VOCABULARY, (n,), generator=generator).tolist() for n in lengths]


def table_of_noise(rows, steps, seed=0):
    """(step, rows) -> noise, the same at every asking."""
    drawn = torch.randn(steps + 1, rows, CANVAS, oracle.EMBED, generator=torch.Generator().manual_seed(seed))
    return lambda step, rows: drawn[step + 1][rows]


def ours(model, sources, steps, sampler, noise):
    rows = sequences.pad(sources, PAD, left=True)
    mask = sequences.seen(torch.tensor([len(row) for row in sources]), rows.shape[1], CANVAS)
    plan = samplers.table(samplers.gammas_of(model, steps), sampler)
    z = noise(-1, torch.arange(len(sources)))
    with torch.no_grad():
        ids, _, calls = samplers.denoise(model, rows, mask, z, plan, noise)
    return ids, calls


@pytest.mark.parametrize("loss", ["vlb", "cross_entropy"])
@pytest.mark.parametrize("places", [True, False])
@pytest.mark.parametrize("sampler", ["ancestral", "ddim", "dpm_2m"])
def test_the_same_tokens_come_out_of_both(sampler, places, loss):
    model, _ = oracle.small_model(places=places, loss=loss, size=2.0)
    for steps, lengths in ((1, SOURCES), (5, SOURCES), (5, [4, 4])):
        sources, noise = problems(lengths), table_of_noise(len(lengths), steps)
        ids, calls = ours(model, sources, steps, sampler, noise)
        theirs, made = reference.sample(model, sources, CANVAS, PAD, steps, sampler, noise)
        assert torch.equal(ids, theirs)
        assert (calls == steps).all() and made == steps + 1
    assert len(ids.unique()) > 3, "answers that say something"


def test_neither_the_width_nor_what_stands_in_the_padding_matters():
    model, _ = oracle.small_model(places=True)
    sources, noise = problems(), table_of_noise(len(SOURCES), 4)
    ids, _ = reference.sample(model, sources, CANVAS, PAD, 4, "ddim", noise)
    for pad_id, width in ((PAD, 15), (PAD, 64), (7, 40)):
        assert torch.equal(ids, reference.sample(model, sources, CANVAS, pad_id, 4, "ddim", noise, width)[0])


@pytest.mark.parametrize("places", [True, False])
@pytest.mark.parametrize("lengths", [SOURCES, [4, 4, 4, 4]])
@pytest.mark.parametrize("own", [0, 2, 4])
def test_loss_and_gradients_are_ours(own, lengths, places):
    """Ours wants self-conditioned rows last; they are the same rows here, for the published way in any order."""
    model, config = oracle.small_model(places=places, loss="cross_entropy")
    sources, generator = problems(lengths), torch.Generator().manual_seed(1)
    canvas = torch.randint(0, oracle.VOCABULARY, (len(lengths), CANVAS), generator=generator)
    noise = torch.randn(*canvas.shape, oracle.EMBED, generator=generator)
    t = torch.tensor([0.1, 0.9, 0.4, 0.7], dtype=torch.float64)
    source = sequences.pad(sources, PAD, left=True)
    mask = sequences.seen(torch.tensor(lengths), source.shape[1], CANVAS)
    batch = {"source": source, "canvas": canvas, "mask": mask}
    found = losses.diffused_cross_entropy(model, config, batch, losses.Draw(t, noise, own))["loss"]
    order = torch.tensor([2, 0, 3, 1])
    turned = reference.canvases([sources[i] for i in order], CANVAS, PAD)
    selfish = torch.arange(len(lengths))[order] >= own
    theirs = reference.loss(model, {"canvas": canvas[order]}, turned, t[order], noise[order], selfish)
    assert found.item() == pytest.approx(theirs.item(), rel=1e-5)
    weights = [weight for name, weight in model.named_parameters() if "noise" not in name and "gamma_b" not in name]
    one, other = (torch.autograd.grad(value, weights) for value in (found, theirs))
    for mine, wanted in zip(one, other, strict=True):
        assert (mine - wanted).norm() <= 2e-5 * wanted.norm() + 1e-8
    assert one[0].norm() > 1e-4 or own == 0, "the embeddings'"
    assert one[-1].norm() > 1e-4


def test_added_vocabulary_changes_nothing():
    model, config = oracle.small_model(places=True, size=2.0)
    larger = reference.with_vocabulary(model, config, 500)
    sources, noise = problems(), table_of_noise(len(SOURCES), 4)
    ids, _ = ours(model, sources, 4, "ddim", noise)
    theirs, _ = reference.sample(larger, sources, CANVAS, PAD, 4, "ddim", noise)
    assert torch.equal(ids, theirs) and larger.embedding_matrix.matrix.shape == (500, oracle.EMBED)
