"""How much noise at which time: the learned schedule, its derivative, and the times of a batch."""

import pytest
import torch

from lib.dot import schedule
from tests.oracles import dot as oracle


def made(seed=0, scale=1.0, gamma_0=-3.0, gamma_1=6.0):
    """(shape, bounds); `scale` makes the shape steeper."""
    torch.manual_seed(seed)
    shape, bounds = schedule.NoiseSchedule(), schedule.GammaBounds(gamma_0, gamma_1)
    with torch.no_grad():
        for weight in shape.parameters():
            weight.mul_(scale)
    return shape, bounds


every_schedule = pytest.mark.parametrize("seed, scale", [(0, 1.0), (1, 3.0), (2, 10.0), (3, None)])


def of(seed, scale):
    shape, bounds = made(seed, scale or 1.0, gamma_0=-4.5, gamma_1=5.25)
    return (None if scale is None else shape), bounds


@every_schedule
def test_gamma_rises_from_one_bound_to_the_other(seed, scale):
    shape, bounds = of(seed, scale)
    gamma, rise = schedule.gamma_at(shape, bounds, torch.linspace(0, 1, 5001, dtype=torch.float64))
    assert gamma.dtype == rise.dtype == torch.float64
    assert (gamma.diff() > 0).all() and (rise > 0).all()
    assert gamma[0].item() == pytest.approx(-4.5, abs=1e-12) and gamma[-1].item() == pytest.approx(5.25, abs=1e-12)
    if scale == 10.0:
        line = torch.linspace(-4.5, 5.25, 5001, dtype=torch.float64)
        assert (gamma - line).abs().max() > 0.05, "a shape that is no line"


@every_schedule
def test_its_derivative_is_autograds_and_that_of_finite_differences(seed, scale):
    shape, bounds = of(seed, scale)
    t = torch.rand(200, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).mul(0.98).add(0.01)
    t.requires_grad_()
    gamma, rise = schedule.gamma_at(shape, bounds, t)
    torch.testing.assert_close(torch.autograd.grad(gamma.sum(), t)[0], rise, rtol=1e-12, atol=1e-12)
    step = 1e-6
    ends = [schedule.gamma_at(shape, bounds, t.detach() + d)[0] for d in (step, -step)]
    torch.testing.assert_close((ends[0] - ends[1]) / (2 * step), rise, rtol=1e-7, atol=1e-7)


def test_it_is_the_formula():
    model, _ = oracle.small_model(seed=4)
    w, t = oracle.weights(model), torch.linspace(0, 1, 17, dtype=torch.float64)
    expected = torch.stack([oracle.gamma_of(w, at) for at in t])
    torch.testing.assert_close(model.gamma(t)[0], expected, rtol=0, atol=1e-12)


def test_float32_times_and_weights_are_computed_in_float64():
    shape, bounds = made()
    t = torch.rand(64)
    exact = schedule.gamma_at(shape, bounds, t.double())
    for ours, expected in zip(schedule.gamma_at(shape, bounds, t), exact, strict=True):
        assert torch.equal(ours, expected)


def test_alpha_and_sigma():
    gamma = torch.linspace(-12, 12, 401, dtype=torch.float64)
    alpha, sigma = schedule.alpha_sigma(gamma)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(gamma), rtol=0, atol=1e-15)
    torch.testing.assert_close(torch.log(sigma**2 / alpha**2), gamma, rtol=0, atol=1e-10)
    published = schedule.alpha_sigma(torch.tensor([-3.0, 6.0], dtype=torch.float64))
    assert [round(x, 3) for x in published[0].tolist()] == [0.976, 0.05]
    assert [round(x, 4) for x in published[1].tolist()] == [0.2178, 0.9988]


def test_the_ends_of_the_shape_do_not_depend_on_its_weights():
    """So that nothing but the bounds moves gamma at t = 0 and t = 1."""
    shape, _ = made()
    bar, _ = shape(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64))
    for place, moves in ((0, False), (1, True), (2, False)):
        found = torch.autograd.grad(bar[place], list(shape.parameters()), retain_graph=True)
        assert (max(g.abs().max().item() for g in found) > 1e-6) == moves


@pytest.mark.parametrize("n, parts", [(1, 1), (7, 1), (5, 4), (16, 2), (1, 3)])
@pytest.mark.parametrize("u", [0.0, 0.37, 0.999])
def test_times_of_all_parts_together_are_even(n, parts, u):
    found = torch.cat([schedule.spread_times(n, u, part, parts) for part in range(parts)])
    assert found.dtype == torch.float64 and len(found) == n * parts
    expected = (torch.arange(n * parts, dtype=torch.float64) + u) / (n * parts)
    torch.testing.assert_close(found.sort()[0], expected, rtol=0, atol=1e-12)
    assert 0 <= found.min() and found.max() < 1


@pytest.mark.parametrize("n, parts", [(8, 1), (4, 4)])
def test_each_part_spans_all_times_too(n, parts):
    for part in range(parts):
        found = schedule.spread_times(n, 0.5, part, parts)
        torch.testing.assert_close(found.diff(), torch.full((n - 1,), 1 / n, dtype=torch.float64))


def test_every_time_is_as_likely_as_any_other():
    us = torch.rand(2000, generator=torch.Generator().manual_seed(0)).tolist()
    found = torch.cat([schedule.spread_times(3, u, 1, 2) for u in us])
    counts = torch.histc(found, 6, 0, 1)  # of part 1 of 2: every second sixth
    assert counts[::2].sum() == 0 and (counts[1::2] == 2000).all()


def test_spread_times_make_an_estimate_steadier():
    def spread(times):
        return torch.stack([torch.exp(-3 * times(i)).mean() for i in range(200)]).std()

    draws = torch.Generator().manual_seed(0)
    even = spread(lambda i: schedule.spread_times(16, torch.rand(1, generator=draws).item()))
    independent = spread(lambda i: torch.rand(16, generator=draws))
    assert even < independent / 3
