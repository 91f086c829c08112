"""The denoiser against the slow, obvious one: logits and guesses, its prior, its source, padding, and its precision.

The differences that are allowed against float64 are float32 rounding at logits of size 5 to 30.
"""

import math

import pytest
import torch
from torch import nn

from lib.dot import model as plaid
from lib.dot import samplers, schedule, sequences
from lib.dot.config import Config
from tests.oracles import dot as oracle

LENGTHS = [(3, 5), (6, 5), (1, 5), (4, 5)]  # source, canvas: rows of a batch
CLOSE = dict(rtol=1e-5, atol=1e-5)


def rows_of(lengths, seed=0):
    """Rows (source ids, canvas ids) of these lengths."""
    draw = torch.Generator().manual_seed(seed)
    return [[torch.randint(0, oracle.VOCABULARY, (n,), generator=draw).tolist() for n in row] for row in lengths]


def stacked(rows, pad_id=0, more=0):
    """(source, mask) of rows, padded on the left, to `more` columns more than the longest needs."""
    width = max(len(source) for source, _ in rows) + more
    source = sequences.pad([source for source, _ in rows], pad_id, True, width)
    mask = sequences.seen(torch.tensor([len(source) for source, _ in rows]), width, len(rows[0][1]))
    return source, mask


def states(rows, gammas, seed=0):
    """Some z (batch, n, embed_dim), and a guess before."""
    draw = torch.Generator().manual_seed(seed)
    shape = len(rows), len(rows[0][1]), oracle.EMBED
    sizes = torch.tensor([[[a] for _ in range(shape[1])] for a in (oracle.alpha_sigma(g)[1] for g in gammas)])
    return torch.randn(shape, generator=draw) * sizes, torch.randn(shape, generator=draw) * 0.25


GAMMAS = [-3.0, 0.4, 6.0, -1.2]


def asked(model, rows, z, before=None, gammas=GAMMAS, pad_id=0, more=0, **how):
    """(logits, x_hat) of a batch of rows."""
    source, mask = stacked(rows, pad_id, more)
    gamma = torch.tensor(gammas, dtype=torch.float64)
    with torch.no_grad():
        return model.guess(z, gamma, model.embedding_matrix()[source], before, mask, **how)


def expected(model, config, rows, z, before=None, gammas=GAMMAS, **how):
    """The same of the oracle, a row at a time and without padding."""
    w, found = oracle.weights(model), []
    scale = config.source_scale or math.sqrt(config.embed_dim)
    with torch.no_grad():
        for i, (source, _) in enumerate(rows):
            own = None if before is None else before[i].double()
            gamma = torch.tensor(gammas[i], dtype=torch.float64)
            found.append(oracle.guess(w, z[i].double(), gamma, source, own, oracle.HEADS, source_scale=scale, **how))
    return [torch.stack(part).float() for part in zip(*found, strict=True)]


# --- against the oracle ---


@pytest.mark.parametrize("selfcond", [False, True])
@pytest.mark.parametrize("source_scale", [0.0, 1.0])
@pytest.mark.parametrize("lengths", [LENGTHS, [(4, 3)] * 4, [(1, 1), (2, 1), (9, 1), (2, 1)]])
def test_logits_and_guesses_are_the_oracles(selfcond, source_scale, lengths):
    model, config = oracle.small_model(source_scale=source_scale)
    rows = rows_of(lengths)
    z, before = states(rows, GAMMAS)
    before = before if selfcond else None
    ours, theirs = asked(model, rows, z, before), expected(model, config, rows, z, before)
    assert 3 < theirs[0].abs().max() < 60 and theirs[0].argmax(-1).unique().numel() > 2, "a test that sees nothing"
    network = expected(model, config, rows, z, before, prior_scale=0.0)[0]
    assert network.std() > 0.5, "the network has its say"
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


def test_the_guess_before_and_every_weight_matter():
    """A weight that is never used could hold anything, and agree with any oracle that forgets it too."""
    model, _ = oracle.small_model()
    rows = rows_of(LENGTHS)
    z, before = states(rows, GAMMAS)
    first = asked(model, rows, z, before)[0]
    assert (asked(model, rows, z)[0] - first).abs().max() > 0.1
    for name, weight in [*model.model.named_parameters(), *model.embedding_matrix.named_parameters()]:
        kept = weight.data.clone()
        weight.data = kept + 0.3 * torch.randn(kept.shape, generator=torch.Generator().manual_seed(1))
        assert (asked(model, rows, z, before)[0] - first).abs().max() > 1e-3, name
        weight.data = kept


def test_a_wider_model_with_other_heads_too():
    sizes = 64, 3, 2
    model, config = oracle.small_model(sizes=sizes)
    rows = rows_of([(3, 4), (2, 4)])
    z, before = states(rows, [0.5, -2.0])
    ours = asked(model, rows, z, before, [0.5, -2.0])
    w, scale = oracle.weights(model), math.sqrt(config.embed_dim)
    for i, (source, _) in enumerate(rows):
        gamma = torch.tensor([0.5, -2.0][i], dtype=torch.float64)
        logits, x_hat = oracle.guess(w, z[i].double(), gamma, source, before[i].double(), 2, source_scale=scale)
        torch.testing.assert_close(ours[0][i], logits.float().detach(), **CLOSE)
        torch.testing.assert_close(ours[1][i], x_hat.float().detach(), **CLOSE)


def test_no_guess_before_is_a_guess_of_zeros():
    """What a sampler's first call sees is what training showed rows that are not self-conditioned."""
    model, _ = oracle.small_model()
    rows = rows_of(LENGTHS)
    z, _ = states(rows, GAMMAS)
    for one, other in zip(asked(model, rows, z), asked(model, rows, z, torch.zeros_like(z)), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("canvas", [5, 3])
def test_learned_places_are_counted_from_where_the_canvas_begins(canvas):
    """So that neither the source's length nor its padding moves them."""
    model, config = oracle.small_model(places=True, max_length=24)
    rows = rows_of([(3, 5), (6, 5), (1, 5), (4, 5)] if canvas == 5 else [(2, 5)] * 4)
    z, before = states(rows, GAMMAS)
    ours = asked(model, rows, z, before, more=4 if canvas == 5 else 0, canvas=canvas)
    for one, other in zip(ours, expected(model, config, rows, z, before, canvas=canvas), strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


# --- the prior ---


@pytest.mark.parametrize("gamma", [-6.0, -3.0, 0.0, 2.5, 6.0])
def test_the_prior_is_bayes_log_posterior(gamma):
    """Of z = alpha E[token] + sigma noise, where all rows have length one; of no other table."""
    draw = torch.Generator().manual_seed(0)
    table = torch.randn(50, 16, dtype=torch.float64, generator=draw)
    unit = table / table.norm(dim=1, keepdim=True)
    alpha, sigma = oracle.alpha_sigma(gamma)
    for rows, same in ((unit, True), (unit * torch.linspace(0.5, 1.5, 50)[:, None], False)):
        z = alpha * rows[:20] + sigma * torch.randn(20, 16, dtype=torch.float64, generator=draw)
        prior = torch.log_softmax(alpha / sigma**2 * z @ rows.T, 1)
        off = (prior - oracle.bayes(rows, z, gamma)).abs().max()
        assert off < 1e-9 if same else off > 1e-3


@pytest.mark.parametrize("gamma", [-3.0, 0.0, 6.0])
def test_an_untrained_model_knows_the_posterior_and_no_more(gamma):
    """Rows that are not of length one are used as if they were."""
    torch.manual_seed(0)
    model = plaid.Plaid(oracle.VOCABULARY, Config(), oracle.SIZES)
    with torch.no_grad():
        model.embedding_matrix.matrix.mul_(torch.linspace(0.2, 5, oracle.VOCABULARY)[:, None])
    rows = rows_of([(3, 6)] * 4)
    z, before = states(rows, [gamma] * 4)
    logits, x_hat = asked(model, rows, z, before, [gamma] * 4)
    table = oracle.embeddings(oracle.weights(model)).detach()
    found = torch.stack([oracle.bayes(table, row.double(), gamma) for row in z])
    torch.testing.assert_close(logits.log_softmax(-1).double(), found, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(x_hat.double(), found.exp() @ table, rtol=1e-5, atol=1e-5)
    logits, x_hat = asked(model, rows, z, before, [gamma] * 4, prior_scale=0.0)
    assert (logits == 0).all(), "zero weights at the end"
    targets = torch.tensor([canvas for _, canvas in rows])
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    assert loss.item() == pytest.approx(math.log(oracle.VOCABULARY), abs=1e-6)


def test_the_prior_is_faded_in_and_can_be_left_out():
    model, config = oracle.small_model()
    rows = rows_of(LENGTHS)
    z, _ = states(rows, GAMMAS)
    none, half, whole = (asked(model, rows, z, prior_scale=scale)[0] for scale in (0.0, 0.5, 1.0))
    torch.testing.assert_close(half - none, (whole - none) / 2, rtol=1e-4, atol=1e-4)
    masked, _ = oracle.small_model(loss="masked")
    assert torch.equal(asked(masked, rows, z)[0], none), "masked diffusion has no prior"


@pytest.mark.parametrize("width, share", [(128, 2.0), (256, 1.0), (512, 0.5)])
def test_the_width_divides_what_the_network_reads_out_but_not_the_prior_nor_the_bias(width, share):
    model, _ = oracle.small_model(sizes=(width, 1, 4))
    rows = rows_of([(2, 3)])
    z, _ = states(rows, [-2.0])
    read, heard = [], []
    model.model.output_norm.register_forward_hook(lambda module, given, out: read.append(out))
    model.model.output_linear.register_forward_hook(lambda module, given, out: heard.append((given[0], out)))
    logits, _ = asked(model, rows, z, None, [-2.0])
    torch.testing.assert_close(heard[0][0], read[0] * share)
    last = model.model.output_linear
    torch.testing.assert_close(heard[0][1], (read[0] * share) @ last.weight.T + last.bias)
    alpha, sigma = oracle.alpha_sigma(-2.0)
    prior = alpha / sigma**2 * z @ model.embedding_matrix().T
    torch.testing.assert_close(logits, heard[0][1] + prior.detach(), rtol=1e-5, atol=1e-5)


# --- places ---


@pytest.mark.parametrize("more", [1, 7, 40])
@pytest.mark.parametrize("pad_id", [0, 11])
def test_padding_changes_nothing(more, pad_id):
    """Nor does a shift of all positions, which it is."""
    model, _ = oracle.small_model()
    rows = rows_of(LENGTHS)
    z, before = states(rows, GAMMAS)
    plain, padded = asked(model, rows, z, before), asked(model, rows, z, before, pad_id=pad_id, more=more)
    for one, other in zip(plain, padded, strict=True):
        assert other.isfinite().all()
        torch.testing.assert_close(one, other, rtol=1e-5, atol=2e-5)


def test_what_stands_in_the_padding_changes_nothing_at_all():
    model, _ = oracle.small_model()
    rows = rows_of(LENGTHS)
    z, before = states(rows, GAMMAS)
    source, mask = stacked(rows, more=4)
    gamma, clean = torch.tensor(GAMMAS, dtype=torch.float64), model.embedding_matrix()[source]
    hidden = ~mask[:, : source.shape[1]]
    for filler in (torch.randn(clean.shape), torch.full(clean.shape, 1e3)):
        other = torch.where(hidden[:, :, None], filler, clean)
        with torch.no_grad():
            one, two = (model.guess(z, gamma, x, before, mask)[0] for x in (clean, other))
        assert torch.equal(one, two)


def test_a_batch_gives_each_row_what_it_gets_alone():
    model, _ = oracle.small_model()
    rows = rows_of(LENGTHS)
    z, before = states(rows, GAMMAS)
    together = asked(model, rows, z, before)[0]
    for i, row in enumerate(rows):
        alone = asked(model, [row], z[i : i + 1], before[i : i + 1], GAMMAS[i : i + 1])[0][0]
        torch.testing.assert_close(together[i], alone, rtol=1e-5, atol=1e-5)


def test_positions_do_not_turn_values():
    """With queries of zero, each position gets the mean of all values that it may see, as they are."""
    model, _ = oracle.small_model()
    block, seen = model.model.blocks[0], []
    block.attn_qkv.weight.data[: oracle.WIDTH] = 0
    block.attn_qkv.register_forward_hook(lambda module, given, out: seen.append(out[..., 2 * oracle.WIDTH :]))
    block.attn_out.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    rows = rows_of(LENGTHS)
    z, before = states(rows, GAMMAS)
    asked(model, rows, z, before)
    values, attended = seen
    for i, (source, _) in enumerate(rows):
        mean = values[i, values.shape[1] - 5 - len(source) :].mean(0)
        torch.testing.assert_close(attended[i], mean.expand_as(attended[i]), rtol=1e-5, atol=1e-6)


# --- the source ---


def test_what_the_source_is_changes_every_answer():
    model, _ = oracle.small_model()
    rows = rows_of([(4, 5)] * 4)
    z, _ = states(rows, GAMMAS)
    first = asked(model, rows, z)[0]
    for place in range(4):
        others = [([*s[:place], (s[place] + 1) % oracle.VOCABULARY, *s[place + 1 :]], c) for s, c in rows]
        changed = (asked(model, others, z)[0] - first).abs().amax(2)
        assert changed.min() > 1e-5, "every position of every canvas sees it"
        assert changed.max() > 1e-2


@pytest.mark.parametrize("selfcond", [False, True])
def test_noise_on_the_source_reaches_nothing_but_its_own_prior(selfcond):
    """Where the source's columns are noised too, the network sees them clean: the canvas's logits agree to the bit."""
    model, config = oracle.small_model()
    rows = rows_of([(4, 5)] * 4)
    whole = [(source, [*source, *canvas]) for source, canvas in rows]
    z, before = states(whole, GAMMAS)
    before = before if selfcond else None
    source = torch.tensor([s for s, _ in rows])
    gamma, clean = torch.tensor(GAMMAS, dtype=torch.float64), model.embedding_matrix()[source]
    with torch.no_grad():
        first = model.guess(z, gamma, clean, before, None, canvas=5)
        assert first[0].shape == (4, 9, oracle.VOCABULARY)
        for filler in (torch.randn(4, 4, 16), torch.full((4, 4, 16), 1e4)):
            other = torch.cat([filler, z[:, 4:]], 1)
            guessed = None if before is None else torch.cat([filler, before[:, 4:]], 1)
            second = model.guess(other, gamma, clean, guessed, None, canvas=5)
            assert torch.equal(first[0][:, 4:], second[0][:, 4:]) and torch.equal(first[1][:, 4:], second[1][:, 4:])
            assert not torch.equal(first[0][:, :4], second[0][:, :4])
        cut = model.guess(z[:, 4:], gamma, clean, None if before is None else before[:, 4:])
    torch.testing.assert_close(first[0][:, 4:], cut[0], **CLOSE)
    theirs = expected(model, config, rows, z, before, canvas=5)
    for one, other in zip(first, theirs, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


# --- norms and precision ---


def test_the_norm_has_an_epsilon_that_shows_on_small_states():
    norm = plaid.rms_norm(8, "cpu")
    assert isinstance(norm, nn.RMSNorm)
    for size in (1.0, 3e-3, 1e-4):
        x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0)) * size
        expected = torch.stack([oracle.rms(row.double(), torch.ones(8, dtype=torch.float64)) for row in x])
        torch.testing.assert_close(norm(x).detach(), expected.float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("gamma", [-9.0, -3.0, 0.0, 6.0])
def test_bfloat16_keeps_the_prior_and_the_guess_whole(gamma):
    """Half precision is for the blocks: where noise is low the prior's factor is large, its rounding would be too."""
    model, _ = oracle.small_model()
    rows = rows_of([(4, 5)] * 4)
    draw = torch.Generator().manual_seed(0)
    alpha, sigma = (part.item() for part in schedule.alpha_sigma(torch.tensor(gamma, dtype=torch.float64)))
    tokens = model.embedding_matrix()[torch.tensor([c for _, c in rows])].detach()
    z = alpha * tokens + sigma * torch.randn(tokens.shape, generator=draw)
    exact = asked(model, rows, z, None, [gamma] * 4)
    with torch.autocast("cpu", torch.bfloat16):
        half = asked(model, rows, z, None, [gamma] * 4)
    network = asked(model, rows, z, None, [gamma] * 4, prior_scale=0.0)[0]
    assert half[0].dtype == half[1].dtype == torch.float32
    assert 0 < (half[0] - exact[0]).abs().max() < 0.03 * network.abs().max()
    torch.testing.assert_close(half[1], exact[1], rtol=0, atol=0.05)


def test_asking_between_two_steps_of_training_does_not_disturb_them():
    """Nothing that is kept from an answer may be unfit for a gradient."""
    model, _ = oracle.small_model()
    source = torch.zeros(2, 3, dtype=torch.long)
    plan = samplers.table(samplers.gammas_of(model, 2), "ddim")
    with torch.inference_mode():
        samplers.denoise(model, source, None, torch.randn(2, 4, 16), plan)
    gamma = torch.zeros(2, dtype=torch.float64)
    logits, _ = model.guess(torch.randn(2, 4, 16), gamma, model.embedding_matrix()[source])
    logits.sum().backward()
    assert model.model.input_linear.weight.grad.abs().sum() > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_fused_norm_is_the_same_norm():
    apex = pytest.importorskip("apex.normalization")
    fused, plain = plaid.rms_norm(64, "cuda").cuda(), plaid.rms_norm(64, "cpu").cuda()
    assert isinstance(fused, apex.FusedRMSNorm) and isinstance(plain, nn.RMSNorm)
    assert fused.state_dict().keys() == plain.state_dict().keys()
    with torch.no_grad():
        fused.weight.normal_()
        plain.weight.copy_(fused.weight)
    for size in (1.0, 1e-3):
        x = (torch.randn(8, 5, 64, device="cuda") * size).requires_grad_()
        torch.testing.assert_close(fused(x), plain(x), rtol=1e-5, atol=1e-5)
        one, other = (torch.autograd.grad(norm(x).square().sum(), x)[0] for norm in (fused, plain))
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_what_the_cpu_gives():
    model, _ = oracle.small_model()
    rows = rows_of(LENGTHS)
    z, before = states(rows, GAMMAS)
    expected = asked(model, rows, z, before)
    source, mask = stacked(rows)
    other = model.cuda()
    gamma = torch.tensor(GAMMAS, dtype=torch.float64, device="cuda")
    with torch.no_grad():
        clean = other.embedding_matrix()[source.cuda()]
        found = other.guess(z.cuda(), gamma, clean, before.cuda(), mask.cuda())
    for one, two in zip(expected, found, strict=True):
        torch.testing.assert_close(one, two.cpu(), rtol=1e-4, atol=1e-3)
