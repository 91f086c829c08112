"""What a denoiser is trained on: the variational bound, plain cross-entropy, or masked diffusion. Loads torch.

All three take a batch of `sequences.Rows.batch` and a `Draw` (times, noise, which rows see a guess of their own), and
give the mean over rows of the mean over a row's positions, in nats a token.
"""

from dataclasses import dataclass
from hashlib import blake2b

import torch
from torch.nn.functional import cross_entropy

from lib.dot import schedule
from lib.dot.model import Plaid


@dataclass
class Draw:
    """What is random in one pass. Rows that see a guess of their own (self-conditioning) stand last.

    t      (batch,) float64; 0 in rows that are reconstructed, in any order
    noise  (batch, n, embed_dim), standard normal; for masked diffusion (batch, n), uniform
    own    rows from this one on are self-conditioned
    guessed  (batch,) bool: rows noised from the model's own guess instead of the truth; None: none (see `noised`)
    later    (batch,) float64: the time above t at which that guess is made, with more noise (later_noise, as noise)
    """

    t: torch.Tensor
    noise: torch.Tensor
    own: int
    guessed: torch.Tensor | None = None
    later: torch.Tensor | None = None
    later_noise: torch.Tensor | None = None


def draw(config, rows: int, shape: tuple, step: int, part: int, parts: int, reconstructed: int, device) -> Draw:
    """The randomness of pass `part` of `parts` at a step: a function of the seed, the step and the part alone.

    reconstructed  rows at t = 0 (0 for the other losses). Self-conditioned rows are spread over all times
    """
    seed = (config.seed * 1_000_003 + step) % 2**31
    u, offset = torch.rand(2, generator=torch.Generator().manual_seed(seed)).tolist()
    generator = torch.Generator(device).manual_seed((seed * parts + part) % 2**63 + 1)
    t = torch.zeros(rows, dtype=torch.float64)
    t[reconstructed:] = schedule.spread_times(rows - reconstructed, u, part, parts)
    every = torch.arange(rows)
    edges = (torch.arange(rows + 1) * config.self_conditioning + offset).floor()
    chosen = edges.diff() > 0  # at an offset of their own, so that they have all times
    order = torch.cat([every[~chosen], every[chosen]])
    kind = torch.rand if config.loss == "masked" else torch.randn
    noise = kind(shape, generator=generator, device=device)
    drawn = Draw(t[order].to(device), noise, int((~chosen).sum()))
    truth = config.min_prob + (1 - config.min_prob) * max(0.0, 1 - step / config.steps)
    if truth < 1:  # with numbers of its own: without scheduled sampling everything else stays as it is, to the bit
        name = f"guessed {seed} {part} {parts}".encode()
        own = torch.Generator(device).manual_seed(int.from_bytes(blake2b(name, digest_size=4).digest()))
        chance, further = torch.rand(2, rows, generator=own, device=device, dtype=torch.float64)
        drawn.guessed = (chance >= truth) & (drawn.t > 0)
        drawn.later = 1 - (1 - drawn.t) * further
        drawn.later_noise = torch.randn(shape, generator=own, device=device)
    return drawn


def noised_columns(config, batch: dict) -> tuple:
    """(ids, counted), both (batch, n): the tokens that are noised, and where a loss is taken."""
    if config.loss_scope == "all":
        ids = torch.cat([batch["source"], batch["canvas"]], 1)
        return ids, torch.ones_like(ids, dtype=torch.bool)
    return batch["canvas"], torch.ones_like(batch["canvas"], dtype=torch.bool)


def guesses(model: Plaid, z, gamma, batch: dict, clean, own: int, prior_scale: float):
    """(logits, x_hat) with a first guess, without gradient, for rows from `own` on."""
    before, mask, canvas = None, batch["mask"], batch["canvas"].shape[1]
    if own < len(z):
        with torch.no_grad():
            seen = None if mask is None else mask[own:]
            _, first = model.guess(z[own:], gamma[own:], clean[own:], None, seen, prior_scale, canvas=canvas)
        before = torch.cat([torch.zeros_like(z[:own]), first])
    return model.guess(z, gamma, clean, before, mask, prior_scale, own, canvas)


def noised(model: Plaid, x, alpha, sigma, batch: dict, draw: Draw, prior_scale: float):
    """The state z = alpha x + sigma noise (batch, n, embed_dim), where x is the truth or, in some rows, a guess of it.

    Scheduled sampling (Ye et al. 2024, after Bengio et al., 1506.03099): asked for a chain, the model goes on from its
    own guesses, not from the truth. So in rows drawn.guessed the truth is noised up to a time later than t, guessed at
    once, without gradient, and the guess is what is noised up to t. What is to be learned stays the truth.
    """
    if draw.guessed is not None and bool(draw.guessed.any()):
        rows = draw.guessed
        with torch.no_grad():
            gamma, _ = model.gamma(draw.later[rows])
            more, less = (part.float()[:, None, None] for part in schedule.alpha_sigma(gamma))
            z = more * x[rows] + less * draw.later_noise[rows]
            clean, mask = model.embedding_matrix()[batch["source"][rows]], batch["mask"]
            seen, canvas = None if mask is None else mask[rows], batch["canvas"].shape[1]
            _, guess = model.guess(z, gamma, clean, None, seen, prior_scale, canvas=canvas)
        x = x.index_put((rows,), guess)
    return alpha * x + sigma * draw.noise


def row_means(values, counted):
    """(batch, n) -> (batch,), over the positions that count."""
    return (values * counted).sum(1) / counted.sum(1)


def vlb(model: Plaid, config, batch: dict, draw: Draw, prior_scale: float = 1.0) -> dict:
    """The variational bound: reconstruction at t = 0, diffusion elsewhere, and the prior, in nats a token.

    diffusion  -1/2 dSNR/dt |x - x_hat|^2 = 1/2 exp(-gamma) gamma' |x - x_hat|^2 (continuous time)
    prior      KL(q(z_1 | x) || N(0, 1)), summed over coordinates
    The schedule's shape does not minimise this but its variance: the gradient that reaches gamma_bar and its derivative
    from a row is multiplied by twice the row's loss, which makes it the gradient of the squared loss. Self-conditioned
    rows send no gradient to embeddings and schedule: these would learn to make the first guess easy.
    Returns loss (scalar), and without gradient rows (batch,): each row's own term; reconstructed (batch,) bool; prior.
    """
    ids, counted = noised_columns(config, batch)
    table, own = model.embedding_matrix(), draw.own
    reconstructed, free = draw.t == 0, torch.arange(len(draw.t), device=draw.t.device) < own
    bounds = model.gamma_bounds
    low, high = bounds.gamma_0.double(), bounds.gamma_1.double()
    if not model.learned:
        low, high = low.detach(), high.detach()
    weights = {}
    if model.learned:
        bar, slope = model.noise_schedule(draw.t)
        bar, slope = (torch.where(free & ~reconstructed, part, part.detach()) for part in (bar, slope))
        if bar.requires_grad:
            for part in (bar, slope):
                part.register_hook(lambda gradient: gradient * weights["twice the loss"])
    else:
        bar, slope = draw.t, torch.ones_like(draw.t)
    gamma, rise = low + (high - low) * bar, (high - low) * slope
    gamma, rise = (torch.where(free, part, part.detach()) for part in (gamma, rise))
    x = by_own(table, ids, own)
    alpha, sigma = (part.float()[:, None, None] for part in schedule.alpha_sigma(gamma))
    z = noised(model, x, alpha, sigma, batch, draw, prior_scale)
    logits, x_hat = guesses(model, z, gamma, batch, by_own(table, batch["source"], own), own, prior_scale)
    reconstruction = cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="none").view(ids.shape)
    error = (x - x_hat).square().sum(2)
    diffusion = 0.5 * torch.exp(-gamma).float()[:, None] * rise.float()[:, None] * error
    reconstruction, diffusion = row_means(reconstruction, counted), row_means(diffusion, counted)
    weights["twice the loss"] = 2 * diffusion.detach().double()
    end = torch.where(free, high, high.detach())
    alpha_1, sigma_1 = schedule.alpha_sigma(end)
    prior = 0.5 * (config.embed_dim * (sigma_1**2 - 1 - torch.log(sigma_1**2)) + alpha_1**2).mean()
    terms = [part.mean() for part in (reconstruction[reconstructed], diffusion[~reconstructed]) if len(part)]
    return {
        "loss": sum(terms) + prior.float(),
        "rows": torch.where(reconstructed, reconstruction, diffusion).detach(),
        "reconstructed": reconstructed,
        "prior": prior.detach(),
    }


def by_own(table, ids, own: int):
    """Embeddings of ids (batch, n), detached in rows from `own` on."""
    if own >= len(ids):
        return table[ids]
    return torch.cat([table[ids[:own]], table.detach()[ids[own:]]])


def diffused_cross_entropy(model: Plaid, config, batch: dict, draw: Draw, prior_scale: float = 1.0) -> dict:
    """Cross-entropy of the clean tokens at every time, each time counting the same; the schedule is a line."""
    ids, counted = noised_columns(config, batch)
    table = model.embedding_matrix()
    gamma, _ = model.gamma(draw.t)
    gamma = gamma.detach()
    alpha, sigma = (part.float()[:, None, None] for part in schedule.alpha_sigma(gamma))
    z = noised(model, by_own(table, ids, draw.own), alpha, sigma, batch, draw, prior_scale)
    clean = by_own(table, batch["source"], draw.own)
    logits, _ = guesses(model, z, gamma, batch, clean, draw.own, prior_scale)
    losses = cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="none").view(ids.shape)
    rows = row_means(losses, counted)
    return {"loss": rows.mean(), "rows": rows.detach()}


def masked(model: Plaid, config, batch: dict, draw: Draw, prior_scale: float = 1.0) -> dict:
    """Masked (absorbing) diffusion: t of a row's n tokens are masked, and guessed from the others.

    With every k from 1 to n equally often, and any k tokens masked, the mean cross-entropy of the masked ones is the
    bound in nats a token (Hoogeboom et al., 2110.02037, equation 9). In expectation that is masking each token with
    probability t at weight 1 / t (Sahoo et al., 2406.07524), without the weight's rare huge values.
    """
    ids, _ = noised_columns(config, batch)
    n = ids.shape[1]
    k = (draw.t * n).ceil().clamp(1, n)[:, None]
    hidden = draw.noise.argsort(1).argsort(1) < k
    table = model.embedding_matrix()
    z = table[ids] * ~hidden[:, :, None]  # a masked position is a zero vector
    logits, _ = masked_guess(model, z, table[batch["source"]], batch["mask"])
    losses = cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="none").view(ids.shape)
    rows = row_means(losses, hidden)
    return {"loss": rows.mean(), "rows": rows.detach()}


def masked_guess(model: Plaid, z, clean, mask):
    """`Plaid.guess` for masked diffusion: what is not masked is clean, so there is one noise level, that of t = 0."""
    gamma = torch.zeros(len(z), device=z.device) - 10.0
    return model.guess(z, gamma, clean, None, mask)


LOSSES = {"vlb": vlb, "cross_entropy": diffused_cross_entropy, "masked": masked}
TERMS = ("reconstruction", "diffusion", "prior")


def named(found: dict) -> dict:
    """The bound's terms of one pass, each a scalar in nats a token; nan where no row had it; {} for other losses."""
    if "prior" not in found:
        return {}
    here = found["reconstructed"]
    terms = found["rows"][here].mean(), found["rows"][~here].mean(), found["prior"].float()
    return dict(zip(TERMS, terms, strict=True))
