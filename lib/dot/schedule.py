"""How much noise at which time. Times t run from 0 (clean) to 1 (noise).

Noise is measured by gamma = -log SNR: a token's embedding x becomes z = alpha x + sigma noise, with alpha^2 =
sigmoid(-gamma) and sigma^2 = sigmoid(gamma), so that alpha^2 + sigma^2 = 1 (variance preserving; Kingma et al.,
2107.00630). Everything here is computed in float64: late in denoising the differences are small. Loads torch.
"""

import torch
from torch import nn
from torch.nn.functional import softplus


class NoiseSchedule(nn.Module):
    """gamma_bar: [0, 1] -> [0, 1], increasing, with gamma_bar(0) = 0 and gamma_bar(1) = 1: the schedule's shape.

    A network of one hidden layer with positive weights, W2 tanh(W1 (t - 1/2) + b1), normalised. Names and shapes of its
    weights are Plaid's.
    """

    def __init__(self, hidden: int = 1024):
        super().__init__()
        self.W1 = nn.Parameter(torch.randn(hidden, 1))
        self.b1 = nn.Parameter(torch.randn(hidden))
        self.W2 = nn.Parameter(torch.randn(1, hidden))

    def forward(self, t):
        """t (batch,) -> (gamma_bar (batch,), its derivative by t (batch,)), float64."""
        slope, b1, height = softplus(self.W1.double())[:, 0], self.b1.double(), softplus(self.W2.double())[0]
        inner = torch.tanh((t.double()[:, None] - 0.5) * slope + b1)  # (batch, hidden)
        low, high = torch.tanh(b1 - 0.5 * slope) @ height, torch.tanh(b1 + 0.5 * slope) @ height
        rise = (1 - inner**2) @ (height * slope)
        return (inner @ height - low) / (high - low), rise / (high - low)


class GammaBounds(nn.Module):
    """gamma at t = 0 and at t = 1."""

    def __init__(self, gamma_0: float = -3.0, gamma_1: float = 6.0):
        super().__init__()
        self.gamma_0 = nn.Parameter(torch.tensor(float(gamma_0)))
        self.gamma_1 = nn.Parameter(torch.tensor(float(gamma_1)))


def gamma_at(shape: NoiseSchedule | None, bounds: GammaBounds, t):
    """t (batch,) -> (gamma, d gamma / dt), both (batch,) float64. Without a shape gamma runs along a line."""
    low, high = bounds.gamma_0.double(), bounds.gamma_1.double()
    bar, slope = shape(t) if shape is not None else (t.double(), torch.ones_like(t, dtype=torch.float64))
    return low + (high - low) * bar, (high - low) * slope


def alpha_sigma(gamma):
    """gamma -> (alpha, sigma)."""
    return torch.sigmoid(-gamma).sqrt(), torch.sigmoid(gamma).sqrt()


def spread_times(n: int, u: float, part: int = 0, parts: int = 1):
    """n times in [0, 1), (float64): part `part` of n * parts that lie evenly, (i + u) / (n * parts), u in [0, 1).

    One u for all of a step, on every process and in every accumulated pass: together their times are spread evenly,
    which makes the bound's estimate much steadier than independent times (Kingma et al., 2107.00630, appendix I).
    """
    return (torch.arange(n, dtype=torch.float64) * parts + part + u) / (n * parts)
