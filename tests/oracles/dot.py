"""Diffusion of thoughts the slow, obvious way: Plaid's denoiser (Gulrajani, Hashimoto, 2305.18619), bound, samplers.

Everything is computed in float64, one row and one head at a time, from a table of weights by name ("model.",
"embedding_matrix.", "noise_schedule.", "gamma_bounds.") and formulas of the papers. Nothing here knows lib.dot, but for
`small_model`, which makes what is compared with.
"""

import math

import torch
from torch.nn.functional import softplus

VOCABULARY, WIDTH, BLOCKS, HEADS, EMBED = 19, 32, 2, 4, 16
SIZES = (WIDTH, BLOCKS, HEADS)


def weights(model) -> dict:
    """The weights by name, float64, each one a leaf that can have a gradient."""
    return {name: value.detach().double().requires_grad_() for name, value in model.state_dict().items()}


def small_model(seed: int = 0, vocabulary: int = VOCABULARY, sizes: tuple = SIZES, size: float = 1.0, **settings):
    """(model, config): untrained; every weight, norms and biases too, is random and of a decent size."""
    from lib.dot.config import Config
    from lib.dot.model import Plaid

    config = Config(**{"places": False, "loss": "vlb", **settings})
    torch.manual_seed(seed)
    model = Plaid(vocabulary, config, sizes)
    with torch.no_grad():
        for name, weight in model.model.named_parameters():
            if weight.dim() == 1:  # gains near 1, biases near 0
                weight.add_(0.2 * torch.randn_like(weight))
            elif "output" in name:  # the width divides what is read out
                weight.normal_(std=2 * size * weight.shape[1] ** -0.5 * sizes[0] / 256)
            else:
                weight.normal_(std=size * weight.shape[1] ** -0.5)
        model.embedding_matrix.matrix.mul_(1 + torch.rand(vocabulary, 1))  # rows are not of length 1
    return model.eval(), config


# --- noise ---


def alpha_sigma(gamma):
    """(alpha, sigma) of gamma = -log(alpha^2 / sigma^2), alpha^2 + sigma^2 = 1."""
    ratio = math.exp(-gamma) if isinstance(gamma, float) else torch.exp(-gamma)
    return (ratio / (1 + ratio)) ** 0.5, (1 / (1 + ratio)) ** 0.5


def gamma_of(w: dict, t, learned: bool = True):
    """gamma at a scalar time, by the formula: normalised W2 tanh(W1 (t - 1/2) + b1), W1 and W2 through softplus."""
    low, high = w["gamma_bounds.gamma_0"], w["gamma_bounds.gamma_1"]
    if not learned:
        return low.detach() + (high - low).detach() * t
    slopes, heights = softplus(w["noise_schedule.W1"])[:, 0], softplus(w["noise_schedule.W2"])[0]

    def raw(at):
        return 0.01 * (heights * torch.tanh(slopes * (at - 0.5) + w["noise_schedule.b1"])).sum()

    return low + (high - low) * (raw(t) - raw(0.0)) / (raw(1.0) - raw(0.0))


# --- denoiser ---


def embeddings(w: dict):
    """(vocabulary, embed_dim), every row of length 1."""
    matrix = w["embedding_matrix.matrix"]
    return torch.stack([row / (row.pow(2).sum().sqrt() + 1e-8) for row in matrix])


def turned(x, place: int):
    """A query or key (head_dim): each pair (i, i + head_dim / 2) turned by place / 10000^(2i / head_dim)."""
    half = len(x) // 2
    out = [None] * len(x)
    for i in range(half):
        angle = place * 10_000 ** (-2 * i / len(x))
        out[i] = x[i] * math.cos(angle) - x[i + half] * math.sin(angle)
        out[i + half] = x[i + half] * math.cos(angle) + x[i] * math.sin(angle)
    return torch.stack(out)


def rms(x, gain):
    """RMSNorm of one state."""
    return x / torch.sqrt((x * x).mean() + 1e-5) * gain


def transformer(w: dict, x, guess, gamma, seen: list[bool], heads: int, canvas: int, last: int):
    """Logits (last, vocabulary) of one row, without the prior. x, guess (length, embed_dim); gamma a scalar."""
    length, width = len(x), w["model.input_linear.weight"].shape[0]
    head_dim, blocks = width // heads, len({name.split(".")[2] for name in w if name.startswith("model.blocks.")})
    frequencies = torch.exp(torch.linspace(-5, 5, 32, dtype=torch.float64))
    told = w["model.gamma_linear.weight"] @ torch.cat([torch.sin(frequencies * gamma), torch.cos(frequencies * gamma)])
    h = [w["model.input_linear.weight"] @ x[i] + w["model.selfcond_linear.weight"] @ guess[i] for i in range(length)]
    h = [state + told for state in h]
    if "model.places.weight" in w:  # one vector a position; the canvas's first has the first of the upper half
        middle = len(w["model.places.weight"]) // 2
        h = [state + w["model.places.weight"][middle + i - (length - canvas)] for i, state in enumerate(h)]
    for b in range(blocks):
        part = f"model.blocks.{b}."
        qkv = [w[part + "attn_qkv.weight"] @ rms(state, w[part + "rmsnorm1.weight"]) for state in h]
        rows = []
        for i in range(length):
            found = []
            for head in range(heads):
                first = [kind * width + head * head_dim for kind in range(3)]
                q, k, v = (slice(place, place + head_dim) for place in first)
                query = turned(qkv[i][q], i)
                places = [j for j in range(length) if seen[j]]
                scores = torch.stack([query @ turned(qkv[j][k], j) / math.sqrt(head_dim) for j in places])
                shares = torch.exp(scores - scores.max())
                found.append(sum(s * qkv[j][v] for s, j in zip(shares / shares.sum(), places, strict=True)))
            rows.append(w[part + "attn_out.weight"] @ torch.cat(found))
        h = [state + row / math.sqrt(blocks) for state, row in zip(h, rows, strict=True)]
        for i in range(length):
            u = w[part + "mlp.fc1.weight"] @ rms(h[i], w[part + "rmsnorm2.weight"])
            u = 0.5 * u * (1 + torch.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3)))
            h[i] = h[i] + w[part + "mlp.fc2.weight"] @ u / math.sqrt(blocks)
    logits = []
    for state in h[length - last :]:
        centred = state - state.mean()
        normed = centred / torch.sqrt((centred * centred).mean() + 1e-5) * w["model.output_norm.weight"]
        logits.append(w["model.output_linear.weight"] @ (normed * 256 / width) + w["model.output_linear.bias"])
    return torch.stack(logits)


def guess(
    w: dict, z, gamma, source, before, heads: int, *, source_scale, padding=0, prior_scale=1.0, canvas=0, prior=True
):
    """(logits, x_hat) of one row.

    z             (n, embed_dim), noisy; source (m) ids, the first `padding` of them padding
    before        (n, embed_dim), the guess before, or None
    canvas        with fewer than n: the columns of z before these are the source's, which the network sees clean
    """
    table, m = embeddings(w), len(source)
    canvas = canvas or len(z)
    alpha, sigma = alpha_sigma(gamma)
    size = torch.sqrt(alpha**2 / z.shape[1] + sigma**2)
    clean = [table[i] for i in source]
    x = torch.stack([*(row * source_scale for row in clean), *(row / size for row in z[len(z) - canvas :])])
    own = before[len(z) - canvas :] if before is not None else torch.zeros(canvas, z.shape[1], dtype=torch.float64)
    own = torch.stack([*clean, *own]) * math.sqrt(z.shape[1])
    seen = [j >= padding for j in range(m + canvas)]
    logits = transformer(w, x, own, gamma, seen, heads, canvas, len(z))
    if prior:
        logits = logits + prior_scale * alpha / sigma**2 * torch.stack([table @ row for row in z])
    return logits, torch.softmax(logits, 1) @ table


def bayes(table, z, gamma: float):
    """log p(token | z) (n, vocabulary) of z = alpha E[token] + sigma noise, every token as likely as any other."""
    alpha, sigma = alpha_sigma(gamma)
    found = []
    for state in z:
        density = torch.stack([-((state - alpha * row) ** 2).sum() / (2 * sigma**2) for row in table])
        found.append(density - torch.logsumexp(density, 0))
    return torch.stack(found)


# --- losses ---


def cut(w: dict) -> dict:
    """The same weights where embeddings and schedule have no gradient."""
    return {name: value if name.startswith("model.") else value.detach() for name, value in w.items()}


def first_and_second(w: dict, z, gamma, source, own: bool, heads: int, **how):
    """`guess`, for a row with a guess of its own after a first one that has no gradient."""
    before = None
    if own:
        with torch.no_grad():
            before = guess(w, z, gamma, source, None, heads, **how)[1]
    return guess(w, z, gamma, source, before, heads, **how)


def bound_terms(w: dict, rows: list[dict], heads: int, *, learned: bool = True, **how) -> list[dict]:
    """[{"kind", "value", "prior"}] of each row, in nats a token, with gradients.

    rows  source and ids (m and n ids), t (a number), noise (n, embed_dim), own (self-conditioned?), padding of the
          source; canvas (of n) where the source's columns are noised too
    """
    found = []
    for row in rows:
        v = cut(w) if row["own"] else w
        t = torch.tensor(float(row["t"]), dtype=torch.float64, requires_grad=True)
        gamma = gamma_of(v, t, learned)
        rise = torch.autograd.grad(gamma, t, create_graph=True)[0]
        if row["own"]:
            gamma, rise = gamma.detach(), rise.detach()
        alpha, sigma = alpha_sigma(gamma)
        x = embeddings(v)[row["ids"]]
        z = alpha * x + sigma * row["noise"]
        more = dict(padding=row["padding"], canvas=row["canvas"])
        logits, x_hat = first_and_second(v, z, gamma, row["source"], row["own"], heads, **more, **how)
        if row["t"] == 0:
            values = [-torch.log_softmax(line, 0)[i] for line, i in zip(logits, row["ids"], strict=True)]
        else:
            values = [0.5 * torch.exp(-gamma) * rise * ((a - b) ** 2).sum() for a, b in zip(x, x_hat, strict=True)]
        last = v["gamma_bounds.gamma_1"] if learned else v["gamma_bounds.gamma_1"].detach()
        alpha_1, sigma_1 = alpha_sigma(last)
        prior = 0.5 * (z.shape[1] * (sigma_1**2 - 1 - torch.log(sigma_1**2)) + alpha_1**2)
        kind = "reconstruction" if row["t"] == 0 else "diffusion"
        found.append({"kind": kind, "value": sum(values) / len(values), "prior": prior})
    return found


def bound(terms: list[dict]):
    """The mean of each kind, added up."""
    kinds = ("reconstruction", "diffusion")
    groups = [[term["value"] for term in terms if term["kind"] == kind] for kind in kinds]
    return sum(sum(g) / len(g) for g in groups if g) + sum(term["prior"] for term in terms) / len(terms)


def cross_entropy(w: dict, rows: list[dict], heads: int, **how):
    """Mean over rows of the mean cross-entropy of a row's tokens; gamma along a line, which learns nothing."""
    found = []
    for row in rows:
        v = cut(w) if row["own"] else w
        gamma = gamma_of(w, float(row["t"]), learned=False)
        alpha, sigma = alpha_sigma(gamma)
        z = alpha * embeddings(v)[row["ids"]] + sigma * row["noise"]
        more = dict(padding=row["padding"], canvas=row["canvas"])
        logits, _ = first_and_second(v, z, gamma, row["source"], row["own"], heads, **more, **how)
        values = [-torch.log_softmax(line, 0)[i] for line, i in zip(logits, row["ids"], strict=True)]
        found.append(sum(values) / len(values))
    return sum(found) / len(found)


def hidden_of(t: float, noise: list[float]) -> list[bool]:
    """The share t of a row's tokens, rounded up: those with the smallest numbers."""
    k = min(len(noise), max(1, math.ceil(t * len(noise))))
    return [u in sorted(noise)[:k] for u in noise]


def masked(w: dict, rows: list[dict], heads: int, gamma: float, **how):
    """Masked diffusion: the share t of a row's tokens is hidden; the mean of -log p over the hidden ones.

    noise of a row: (n) uniform numbers; gamma: the noise level that the network is always told
    """
    found, told = [], torch.tensor(gamma, dtype=torch.float64)
    for row in rows:
        hidden = hidden_of(float(row["t"]), row["noise"].tolist())
        x = embeddings(w)[row["ids"]]
        z = torch.stack([0 * e if h else e for e, h in zip(x, hidden, strict=True)])
        logits, _ = guess(w, z, told, row["source"], None, heads, padding=row["padding"], prior=False, **how)
        lines = zip(logits, row["ids"], hidden, strict=True)
        found.append(sum(-torch.log_softmax(line, 0)[i] for line, i, h in lines if h) / sum(hidden))
    return sum(found) / len(found)


# --- samplers: one step each from gamma_t to gamma_s, z and x_hat any tensors ---


def tempered(z, x_hat, gamma_t: float, temperature: float):
    """The guess that stands for the noise of x_hat divided by the temperature."""
    alpha, sigma = alpha_sigma(gamma_t)
    noise = (z - alpha * x_hat) / sigma / temperature
    return (z - sigma * noise) / alpha


def posterior(z, x, gamma_t: float, gamma_s: float):
    """(mean, standard deviation) of q(z_s | z_t, x): the product of two normal densities in z_s.

    One is q(z_s | x); the other what z_t = a z_s + noise of variance v says about z_s.
    """
    (alpha_t, sigma_t), (alpha_s, sigma_s) = alpha_sigma(gamma_t), alpha_sigma(gamma_s)
    a = alpha_t / alpha_s
    v = sigma_t**2 - a**2 * sigma_s**2
    precision = 1 / sigma_s**2 + a**2 / v
    return (alpha_s * x / sigma_s**2 + a * z / v) / precision, precision**-0.5


def ddim(z, x, gamma_t: float, gamma_s: float):
    """The noise that z_t holds if x is right stays the same (Song et al., 2010.02502, eta 0)."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = alpha_sigma(gamma_t), alpha_sigma(gamma_s)
    return alpha_s * x + sigma_s * (z - alpha_t * x) / sigma_t


def dpm(z, x, gamma_t: float, gamma_s: float, earlier=None):
    """DPM-Solver++ in lambda = log(alpha / sigma) (Lu et al., 2211.01095, algorithm 2).

    earlier  None: order 1; (x, gamma) of the step before: order 2
    """
    (alpha_t, sigma_t), (alpha_s, sigma_s) = alpha_sigma(gamma_t), alpha_sigma(gamma_s)
    lambda_t, lambda_s = math.log(alpha_t / sigma_t), math.log(alpha_s / sigma_s)
    h = lambda_s - lambda_t
    if earlier is not None:
        before, gamma_before = earlier
        alpha, sigma = alpha_sigma(gamma_before)
        r = (lambda_t - math.log(alpha / sigma)) / h
        x = (1 + 1 / (2 * r)) * x - 1 / (2 * r) * before
    return sigma_s / sigma_t * z - alpha_s * (math.exp(-h) - 1) * x


def x0_iteration(x_hat, gammas: list[float], i: int):
    """The released iteration: order 1 with gamma brought to [0, 1], and x_hat in the place of the state."""
    low, high = gammas[-1], gammas[0]
    gamma_t, gamma_s = ((g - low) / (high - low) for g in gammas[i : i + 2])
    return dpm(x_hat, x_hat, gamma_t, gamma_s)
