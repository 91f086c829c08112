"""From noise to text: every sampler is a table of coefficients, made beforehand in float64, and one loop follows it.

Times are t_i = 1 - i / T. Call i of the denoiser is told gamma(t_i) and given a state that has exactly that much noise;
the table says how the state at t_(i+1) is made:

    guess' = p z + q x_hat                            score temperature; p = 0, q = 1 without
    z      = a z + b guess' + c guess'_before + n noise

T calls in all. The tokens are the likeliest ones of the last call. With gamma = -log SNR and lambda = -gamma / 2 (half
the log SNR):

    ancestral   z_s ~ q(z_s | z_t, x_hat)                                    (Kingma et al., 2107.00630)
    ddim        the same noise direction at s, no new noise                  (Song et al., 2010.02502)
    dpm_1       DPM-Solver++ of order 1, in lambda; equals ddim              (Lu et al., 2211.01095)
    dpm_2m      DPM-Solver++ of order 2, multistep: one call a step          (ibid., algorithm 2)
    release_x0_iteration   what the released DoT calls DPM-Solver++: coefficients from a schedule squeezed into [0, 1],
                and a state that holds no noise at all. For comparison
    unmask      masked diffusion: at each call the surest masked positions get their token (as many as the linear
                schedule asks for)
Loads torch.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from lib.dot.config import SAMPLERS
from lib.dot.model import Plaid
from lib.errors import InputError


@dataclass(frozen=True)
class Step:
    """One call: the time and gamma it is told, and the coefficients of what follows (see above)."""

    t: float
    gamma: float
    p: float
    q: float
    a: float
    b: float
    c: float
    n: float


def times(steps: int) -> list[float]:
    """t_0 = 1 to t_T = 0, evenly."""
    return [1 - i / steps for i in range(steps)] + [0.0]


def table(gammas: list[float], sampler: str, temperature: float = 1.0) -> list[Step]:
    """The steps of a sampler, from gamma at each of `times(T)` (T + 1 numbers, falling: noise goes).

    temperature  of the score: the noise that x_hat stands for is divided by it, so that below 1 the guess goes further
                 away from the state (the published one is 0.5). release_x0_iteration has none
    Raises InputError for an unknown sampler, or a temperature that is not above 0.
    """
    if sampler not in SAMPLERS:
        raise InputError(f"Unknown sampler {sampler!r}; use {', '.join(SAMPLERS)}.")
    if temperature <= 0:
        raise InputError(f"The score temperature must be above 0, not {temperature}.")
    steps, grid = [], times(len(gammas) - 1)
    for i, (gamma_t, gamma_s) in enumerate(zip(gammas, gammas[1:], strict=False)):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = parts(gamma_t), parts(gamma_s)
        h = (gamma_t - gamma_s) / 2  # the step in lambda
        p, q, c, n = (1 - 1 / temperature) / alpha_t, 1 / temperature, 0.0, 0.0
        if sampler == "ancestral":
            share = -math.expm1(gamma_s - gamma_t)
            a, b, n = (1 - share) * alpha_s / alpha_t, share * alpha_s, math.sqrt(share) * sigma_s
        elif sampler == "release_x0_iteration":
            p, q = 0.0, 1.0
            (_, sigma_t), (alpha_s, sigma_s) = parts(squeezed(gamma_t, gammas)), parts(squeezed(gamma_s, gammas))
            h = (squeezed(gamma_t, gammas) - squeezed(gamma_s, gammas)) / 2
            a, b = 0.0, sigma_s / sigma_t - alpha_s * math.expm1(-h)
        elif sampler == "ddim":
            a, b = sigma_s / sigma_t, alpha_s - sigma_s * alpha_t / sigma_t
        else:
            a, b = sigma_s / sigma_t, -alpha_s * math.expm1(-h)
            if sampler == "dpm_2m" and i:
                r = (gammas[i - 1] - gamma_t) / 2 / h
                b, c = b * (1 + 1 / (2 * r)), -b / (2 * r)
        steps.append(Step(grid[i], gamma_t, p, q, a, b, c, n))
    return steps


def parts(gamma: float) -> tuple[float, float]:
    """(alpha, sigma) of one gamma."""
    return math.sqrt(1 / (1 + math.exp(gamma))), math.sqrt(1 / (1 + math.exp(-gamma)))


def squeezed(gamma: float, gammas: list[float]) -> float:
    """gamma mapped into [0, 1]."""
    return (gamma - gammas[-1]) / (gammas[0] - gammas[-1])


def gammas_of(model: Plaid, steps: int) -> list[float]:
    """The model's gamma at each of `times(steps)`."""
    with torch.no_grad():
        gamma, _ = model.gamma(torch.tensor(times(steps), dtype=torch.float64, device=model.device))
    return gamma.tolist()


def denoise(
    model: Plaid,
    source,
    mask,
    z,
    plan: list[Step],
    noise: Callable | None = None,
    leave_at: float = 1.0,
    watch: Callable | None = None,
):
    """(ids, probabilities, calls): each row's likeliest tokens at the end, how likely, and how many calls it took.

    source    (batch, m) ids, never changed; mask (batch, m + n) bool or None
    z         (batch, n, embed_dim), the state at the first step's noise
    plan      from `table`, or a part of one
    noise     (step number, rows) -> (rows, n, embed_dim), for samplers that add some; `rows` are places in the batch
    leave_at  a row leaves when all its tokens are at least so likely; 1: never
    watch     called after each call with (step, rows, ids, probabilities)
    """
    rows = torch.arange(len(z), device=z.device)
    ids = torch.zeros(z.shape[:2], dtype=torch.long, device=z.device)
    sure = torch.zeros(z.shape[:2], device=z.device)
    calls = torch.zeros(len(z), dtype=torch.long, device=z.device)
    clean, before, last = model.embedding_matrix()[source], None, None
    for i, step in enumerate(plan):
        told = torch.full((len(z),), step.gamma, dtype=torch.float64, device=z.device)
        logits, x_hat = model.guess(z, told, clean, before, mask)
        final, done = i + 1 == len(plan), None
        if final or watch or leave_at < 1:
            probability, best = logits.softmax(-1).max(-1)
            done = (probability >= leave_at).all(1) if leave_at < 1 else None
            ids[rows], sure[rows] = best, probability
            if watch:
                watch(step, rows, best, probability)
        calls[rows] = i + 1
        if final:
            break
        guess = step.p * z + step.q * x_hat if step.p else x_hat
        moved = step.a * z + step.b * guess
        if step.c:
            moved = moved + step.c * last
        if step.n:
            moved = moved + step.n * noise(i, rows)
        z, before, last = moved, x_hat, guess
        if done is not None and bool(done.any()):
            going = (~done).nonzero()[:, 0]
            if not len(going):
                break
            rows, z, before, last, clean = (part[going] for part in (rows, z, before, last, clean))
            mask = None if mask is None else mask[going]
    return ids, sure, calls


def unmask(model: Plaid, source, mask, n: int, steps: int, uniform, temperature: float = 0.0, watch=None, start=None):
    """`denoise` for masked diffusion: of the masked positions, a share of 1 - (i + 1) / T still is after call i.

    The surest go first. temperature  0: each gets its likeliest token; above 0 one drawn by `uniform` (batch, n), and
    is as sure as that token is likely
    start     (batch, n) ids to begin with, -1 where masked; None: all masked
    """
    from lib.dot.losses import masked_guess

    embedding = model.embedding_matrix()
    clean = embedding[source]
    ids = torch.full((len(source), n), -1, device=source.device) if start is None else start.clone()
    sure, first = torch.zeros(ids.shape, device=source.device), (ids < 0).sum(1)
    for i in range(steps):
        hidden = ids < 0
        z = embedding[ids.clamp(min=0)] * ~hidden[:, :, None]
        logits, _ = masked_guess(model, z, clean, mask)
        probabilities = (logits / temperature if temperature else logits).softmax(-1)
        likely, best = probabilities.max(-1)
        if temperature:
            best = (probabilities.cumsum(-1) < uniform[:, :, None]).sum(-1).clamp(max=logits.shape[-1] - 1)
            likely = probabilities.gather(-1, best[:, :, None])[:, :, 0]
        keep = first * (steps - i - 1) // steps  # masked after this call, in each row
        rank = torch.where(hidden, likely, torch.full_like(likely, 2.0)).argsort(1).argsort(1)  # least sure first
        stays = (rank < keep[:, None]) & hidden
        ids = torch.where(hidden & ~stays, best, ids)
        sure = torch.where(hidden, likely, sure)
        if watch:
            shown = torch.where(hidden, best, ids)
            watch(Step(1 - i / steps, 0.0, 0, 1, 0, 0, 0, 0), torch.arange(len(ids)), shown, sure)
    return ids, sure, torch.full((len(ids),), steps, device=source.device)
