"""Diffusion of thoughts as the published code computes it: what benchmarks compare with, and a second truth.

The weights are those of a lib.dot.model.Plaid, and so are the blocks of its transformer, so that both ways share every
kernel; what is around them is done as published:

    canvas      every row has `width` positions (256): question, separator, what is denoised, padding behind. So sources
                are padded on the right, and each row's canvas begins at a column of its own
    everywhere  noise, state, prior, logits over the whole vocabulary and their softmax: at all positions, the source's
                and the padding's too
    sampling    state in float64; the noise schedule asked twice a step; rows that still go on are gathered and
                scattered by a boolean mask at every step; an `.item()` a step; T + 1 calls, the last one for the logits
    training    self-conditioned rows by nonzero() and index, their gradients cut by a mask over whole tensors

Two things are not as published. Padding is never attended to, and the times are those of lib.dot.samplers, so that the
same tokens come out. And what cost the published code more without being part of the idea is left out: logits are not
gathered and scattered, their weights are not put together anew at each call.
"""

import math

import torch
from torch.nn.functional import cross_entropy

from lib.dot.model import BASE_WIDTH, Plaid

WIDTH = 256


def columns(lengths, n: int):
    """(rows, columns), index tensors of the n positions behind sources of these lengths."""
    return torch.arange(len(lengths))[:, None], lengths[:, None] + torch.arange(n)


def spread(values, lengths, width: int = WIDTH, fill: float = 0):
    """(batch, n, ...) -> (batch, width, ...): each row's values behind its source, `fill` elsewhere."""
    out = values.new_full((len(values), width, *values.shape[2:]), fill)
    out[columns(lengths, values.shape[1])] = values
    return out


def canvases(sources: list[list[int]], n: int, pad_id: int, width: int = WIDTH) -> dict:
    """ids (batch, width) with padding behind the sources; lengths (batch,) of the sources; where columns are the
    sources' (fixed) and where they may be attended to (seen), both (batch, width) bool.
    """
    assert max(map(len, sources)) + n <= width
    lengths = torch.tensor([len(row) for row in sources])
    ids = torch.tensor([row + [pad_id] * (width - len(row)) for row in sources])
    at = torch.arange(width)
    return {"ids": ids, "lengths": lengths, "fixed": at < lengths[:, None], "seen": at < lengths[:, None] + n}


def guess(model: Plaid, z, gamma, clean, before, fixed, seen, prior_scale: float = 1.0, cut=None):
    """(logits (batch, width, vocabulary), x_hat (batch, width, embed_dim)) at all positions.

    z       (batch, width, embed_dim), noisy everywhere; gamma (batch,), both float64
    clean   (batch, width, embed_dim): embeddings, of which those at `fixed` replace the input and the guess before
    cut     (batch,) bool: rows that send no gradient to the embeddings, but for their logits'
    """
    net, table, dim = model.model, model.embedding_matrix(), model.embed_dim
    alpha, sigma = (part.sqrt()[:, None, None] for part in (torch.sigmoid(-gamma), torch.sigmoid(gamma)))
    here = fixed[:, :, None]
    x = torch.where(here, clean * model.source_scale, (z / (alpha**2 / dim + sigma**2).sqrt()).float())
    before = torch.where(here, clean, before.float()) * math.sqrt(dim)
    angles = gamma[:, None] * net.frequencies
    told = net.gamma_linear(torch.cat([angles.sin(), angles.cos()], 1).float())
    h = net.input_linear(x) + net.selfcond_linear(before) + told[:, None]
    if net.places is not None:  # counted from each row's canvas
        at = net.places.num_embeddings // 2 + torch.arange(h.shape[1]) - fixed.sum(1, keepdim=True)
        h = h + net.places(at)
    cos, sin = net.rotary_emb(h.shape[1])
    for block in net.blocks:
        h = block(h, seen[:, None, None], cos, sin)
    h = net.output_norm(h) * (BASE_WIDTH / h.shape[-1])
    logits = net.output_linear(h)
    if model.prior and prior_scale:
        scaled = ((prior_scale * alpha / sigma**2) * z).float()
        if cut is None:
            logits.flatten(0, 1).addmm_(scaled.flatten(0, 1), table.T)  # in place: no second tensor of that size
        else:
            prior = scaled @ table.T
            logits = logits + torch.where(cut[:, None, None], prior.detach(), prior)
    x_hat = logits.softmax(-1) @ table
    return logits, x_hat if cut is None else torch.where(cut[:, None, None], x_hat.detach(), x_hat)


@torch.no_grad()
def sample(model: Plaid, sources: list[list[int]], n: int, pad_id: int, steps: int, sampler: str, noise, width=WIDTH):
    """(ids (batch, n), calls): the likeliest tokens after `steps` steps of "ancestral", "ddim" or "dpm_2m".

    noise  (step, rows) -> (rows, n, embed_dim), as for lib.dot.samplers.denoise; step -1 gives the state to begin with
    """
    canvas = canvases(sources, n, pad_id, width)
    lengths, fixed, seen = canvas["lengths"], canvas["fixed"], canvas["seen"]
    clean = model.embedding_matrix()[canvas["ids"]]
    every = torch.arange(len(sources))
    z = spread(noise(-1, every), lengths, width).double()
    before, last, last_gamma = torch.zeros_like(z), torch.zeros_like(z), None
    to_go, calls = torch.full((len(z),), steps), 0
    for i in range(steps):
        going = to_go > 0
        t = torch.full((int(going.sum()),), 1 - i / steps, dtype=torch.float64)
        s = torch.full((len(t),), 1 - (i + 1) / steps, dtype=torch.float64)
        gamma_t, gamma_s = model.gamma(t)[0], model.gamma(s)[0]
        state, told = z[going], before[going]
        _, x_hat = guess(model, state, gamma_t, clean[going], told, fixed[going], seen[going])
        calls, x_hat = calls + 1, x_hat.double()
        if (s[0] > 0).item():
            (alpha_t, sigma_t), (alpha_s, sigma_s) = (
                (torch.sigmoid(-g).sqrt()[:, None, None], torch.sigmoid(g).sqrt()[:, None, None])
                for g in (gamma_t, gamma_s)
            )
            if sampler == "ancestral":
                c = -torch.expm1(gamma_s - gamma_t)[:, None, None]
                fresh = spread(noise(i, every[going]), lengths[going], width).double()
                state = (1 - c) * (alpha_s / alpha_t) * state + c * alpha_s * x_hat + (c * sigma_s**2).sqrt() * fresh
            elif sampler == "ddim":
                state = alpha_s * x_hat + sigma_s * (state - alpha_t * x_hat) / sigma_t
            else:
                assert sampler == "dpm_2m", sampler
                h, drift = ((gamma_t - gamma_s) / 2)[:, None, None], x_hat
                if last_gamma is not None:
                    r = (last_gamma - gamma_t)[:, None, None] / 2 / h
                    drift = (1 + 1 / (2 * r)) * x_hat - last[going] / (2 * r)
                state = sigma_s / sigma_t * state - alpha_s * torch.expm1(-h) * drift
            z[going], before[going], last[going], last_gamma = state, x_hat, x_hat, gamma_t
        to_go[going] -= 1
    gamma = model.gamma(torch.full((len(z),), 1 / steps, dtype=torch.float64))[0]
    logits, _ = guess(model, z, gamma, clean, before, fixed, seen)
    return logits.argmax(-1)[columns(lengths, n)], calls + 1


def loss(model: Plaid, batch: dict, canvas: dict, t, noise, own, prior_scale: float = 1.0):
    """Mean over rows of the mean cross-entropy at each row's n target positions; logits are made at all positions.

    batch   "canvas" (batch, n), the targets; canvas from `canvases`, of the same sources
    t       (batch,) float64; noise (batch, n, embed_dim); own (batch,) bool: rows that see a guess of their own
    """
    n, lengths, fixed, seen = batch["canvas"].shape[1], canvas["lengths"], canvas["fixed"], canvas["seen"]
    width = fixed.shape[1]
    ids, counted = torch.where(fixed, canvas["ids"], spread(batch["canvas"], lengths, width)), seen & ~fixed
    table = model.embedding_matrix()
    x = table[ids]
    x = torch.where(own[:, None, None], x.detach(), x)
    gamma = model.gamma(t)[0].detach()
    alpha, sigma = (part.sqrt()[:, None, None] for part in (torch.sigmoid(-gamma), torch.sigmoid(gamma)))
    z = alpha * x + sigma * spread(noise, lengths, width)  # float64
    before = torch.zeros_like(z)
    rows = own.nonzero()[:, 0]
    if len(rows):
        with torch.no_grad():
            _, first = guess(model, z[rows], gamma[rows], x[rows], before[rows], fixed[rows], seen[rows], prior_scale)
        before[rows] = first.double()
    logits, _ = guess(model, z, gamma, x, before, fixed, seen, prior_scale, own)
    losses = cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="none").view(ids.shape)
    return ((losses * counted).sum(1) / n).mean()


def with_vocabulary(model: Plaid, config, vocabulary: int) -> Plaid:
    """The same model with rows added to its vocabulary that no training saw and that are never the likeliest."""
    torch.manual_seed(0)
    other = Plaid(vocabulary, config, model.sizes, model.device)
    state = other.state_dict()
    for name, value in model.state_dict().items():
        if value.shape == state[name].shape:
            state[name] = value
        else:  # embeddings, and the output's weights and bias
            state[name] = torch.cat([value, state[name][len(value) :]])
    state["model.output_linear.bias"][len(model.embedding_matrix.matrix) :] = -1e4
    other.load_state_dict(state)
    return other.eval()
