"""Exercises of 06_dot_training: signal and noise, one step of the sampler, one pass of many, the loss."""

import math

import numpy as np

from lib.lessons.check import Exercise

# ----- 6.1
GAMMAS = (-13.0, -4.0, -1.5, -0.3, 0.0, 0.7, 2.0, 6.0)


def both(alpha_sigma, gamma: float) -> tuple[float, float]:
    """(alpha, sigma) as the reader's function returns them."""
    found = alpha_sigma(gamma)
    assert np.shape(found) == (2,), f"gamma {gamma}: the pair (alpha, sigma) was expected, found {found!r}"
    return float(found[0]), float(found[1])


def shares_make_one(alpha_sigma):
    """The variance is preserved: alpha² + sigma² is 1 at every gamma."""
    for gamma in GAMMAS:
        alpha, sigma = both(alpha_sigma, gamma)
        total = alpha**2 + sigma**2
        reason = ": alpha and sigma are 1 together, so these are the squares; take roots"
        reason = reason if math.isclose(alpha + sigma, 1.0, abs_tol=1e-6) else ""
        assert math.isclose(total, 1.0, abs_tol=1e-6), f"gamma {gamma}: alpha² + sigma² is {total:.6g}{reason}"


def shares_are_even_at_zero(alpha_sigma):
    """At gamma 0 half of the variance is signal and half is noise: alpha and sigma are the same, the root of 1/2."""
    alpha, sigma = both(alpha_sigma, 0.0)
    for name, value in (("alpha", alpha), ("sigma", sigma)):
        assert math.isclose(value, math.sqrt(0.5), abs_tol=1e-6), f"{name} should be 0.7071, found {value:.6g}"


def shares_have_the_ratio_of_gamma(alpha_sigma):
    """gamma is -log SNR: alpha² / sigma² is exp(-gamma), so that a higher gamma is noisier."""
    for gamma in GAMMAS:
        alpha, sigma = both(alpha_sigma, gamma)
        wanted = math.exp(-gamma)
        assert sigma, f"gamma {gamma}: sigma is 0"
        found = alpha**2 / sigma**2
        others = {1 / wanted: ": alpha and sigma are exchanged", wanted**2: ": are these the squares? Take roots"}
        reason = next((why for value, why in others.items() if math.isclose(found, value, rel_tol=1e-5)), "")
        assert math.isclose(found, wanted, rel_tol=1e-5), (
            f"gamma {gamma}: alpha² / sigma² should be {wanted:.6g}, found {found:.6g}{reason}"
        )


def shares_hold_at_the_ends(alpha_sigma):
    """A huge gamma is noise alone, a hugely negative one signal alone, and no exponential overflows."""
    for gamma, wanted in ((800.0, (0.0, 1.0)), (-800.0, (1.0, 0.0))):
        try:
            alpha, sigma = both(alpha_sigma, gamma)
        except OverflowError:
            raise AssertionError(f"gamma {gamma:.0f}: an exponential overflows; write it with exp(-|gamma|)") from None
        assert np.allclose((alpha, sigma), wanted, atol=1e-9), (
            f"gamma {gamma:.0f}: (alpha, sigma) should be {wanted}, found ({alpha:.6g}, {sigma:.6g})"
        )


# ----- 6.2
NOISE = np.array([[0.5, -1.25, 2.0], [-0.75, 1.5, 0.25]])
GUESS = np.array([[1.0, 0.0, -0.5], [0.25, -1.0, 0.75]])
STEPS = ((5.0, 3.0), (2.0, -1.0), (0.5, -4.0), (6.0, -6.0))


def mixed(x, noise, gamma: float):
    """alpha x + sigma noise."""
    return x * math.sqrt(1 / (1 + math.exp(gamma))) + noise * math.sqrt(1 / (1 + math.exp(-gamma)))


def stepped(ddim_step, z, x_hat, gamma_t: float, gamma_s: float):
    """What the reader's function returns for copies, as an array of the shape of z."""
    found = np.asarray(ddim_step(z.copy(), x_hat.copy(), gamma_t, gamma_s), dtype=float)
    assert found.shape == z.shape, f"z has the shape {z.shape}, what came back {found.shape}"
    return found


def first(array) -> str:
    """The numbers of the first position, rounded."""
    return "[" + ", ".join(f"{value:.4g}" for value in array[0]) + "]"


def step_of_no_length_stays(ddim_step):
    """A step from a time to the same time changes nothing, whatever the guess."""
    z = mixed(GUESS, NOISE, 1.0)
    for gamma in (4.0, 1.0, -2.0):
        found = stepped(ddim_step, z, GUESS + 0.5, gamma, gamma)
        again = stepped(ddim_step, z, GUESS + 0.5, gamma, gamma)
        reason = "put back as much noise as you take out" if np.allclose(found, again) else "DDIM draws no new noise"
        assert np.allclose(found, z, atol=1e-8), f"gamma {gamma} to {gamma}: {first(z)} became {first(found)}; {reason}"


def step_stays_on_the_noise_line(ddim_step):
    """If the guess is right, alpha_t x + sigma_t eps becomes alpha_s x + sigma_s eps: less of the same noise."""
    for t, s in STEPS:
        z, wanted, nothing = mixed(GUESS, NOISE, t), mixed(GUESS, NOISE, s), 0 * NOISE
        found = stepped(ddim_step, z, GUESS, t, s)
        kept, left = (mixed(GUESS, nothing, gamma) for gamma in (t, s))
        back = kept + (z - left) * (mixed(nothing, NOISE, t) / mixed(nothing, NOISE, s))
        others = (
            (back, "gamma_t and gamma_s are exchanged: z is at gamma_t"),
            (left, "no noise is put back"),
            (NOISE, "that is the noise alone; mix it with the guess again"),
        )
        reason = next((f"; {why}" for value, why in others if np.allclose(found, value, atol=1e-8)), "")
        assert np.allclose(found, wanted, atol=1e-8), (
            f"gamma {t} to {s}: the first position should be {first(wanted)}, found {first(found)}{reason}"
        )


def step_is_two_half_steps(ddim_step):
    """With the same guess, two steps, by way of a time in between, lead where one leads."""
    z = mixed(GUESS, NOISE, 1.0)
    for t, s in STEPS:
        half = stepped(ddim_step, z, GUESS, t, (t + s) / 2)
        twice, once = stepped(ddim_step, half, GUESS, (t + s) / 2, s), stepped(ddim_step, z, GUESS, t, s)
        assert np.allclose(twice, once, atol=1e-8), (
            f"gamma {t} to {s}: two steps lead to {first(twice)}, one to {first(once)}"
        )


def step_ends_at_the_guess(ddim_step):
    """A step to where there is no noise any more (a very low gamma) ends at the guess."""
    for t in (5.0, 0.0, -3.0):
        found = stepped(ddim_step, mixed(GUESS, NOISE, t), GUESS + 0.5, t, -60.0)
        assert np.allclose(found, GUESS + 0.5, atol=1e-6), (
            f"gamma {t} to -60: the guess is {first(GUESS + 0.5)}, found {first(found)}"
        )


# ----- 6.3
SIGNS = "<sep>", "<pad>", "<end>"
ASKED = ["v3", "+", "n4", "?", "<sep>"]


def passed(next_pass, canvas: list[str], source: list[str] = ASKED) -> tuple[list[str], bool]:
    """What the reader's function returns for copies."""
    given, written = list(source), list(canvas)
    found = next_pass(given, written, *SIGNS)
    pair = isinstance(found, (tuple, list)) and len(found) == 2 and isinstance(found[0], (tuple, list))
    assert pair, f"the pair (source, has it ended) was expected, found {found!r}"
    assert (given, written) == (list(source), list(canvas)), "the lists that came in were changed; build a new one"
    return list(found[0]), bool(found[1])


def pass_ends_at_the_padding(next_pass):
    """What stands before the first padding is the thought; whatever follows it is dropped."""
    for canvas in (["r2", "⏎", "<pad>", "<pad>"], ["r2", "⏎", "<pad>", "r7"]):
        found, _ = passed(next_pass, canvas)
        wanted = ["v3", "+", "n4", "?", "r2", "⏎", "<sep>"]
        assert found == wanted, f"canvas {canvas}: the source should be {wanted}, found {found}"


def pass_fills_its_canvas(next_pass):
    """A thought may fill its canvas: without padding or end, all of it is the thought. An empty one adds nothing."""
    found, ended = passed(next_pass, ["r2", "⏎"])
    assert found[-3:] == ["r2", "⏎", "<sep>"] and not ended, f"two tokens and no padding became {found}, {ended}"
    found, ended = passed(next_pass, ["<pad>", "r2"])
    assert found == ASKED and not ended, f"an empty thought should leave the source as it was, found {found}, {ended}"


def pass_keeps_what_was_there(next_pass):
    """Pass after pass, question and earlier thoughts stay word for word, and the separator stands once, at the end."""
    source = list(ASKED)
    for thought in ("r2", "r4", "r3"):
        source, _ = passed(next_pass, [thought, "⏎", "<pad>"], source)
    wanted = ["v3", "+", "n4", "?", "r2", "⏎", "r4", "⏎", "r3", "⏎", "<sep>"]
    assert source == wanted, f"after three passes the source should be {wanted}, found {source}"


def pass_knows_the_end(next_pass):
    """A thought that stops with the end is the last; the end itself is no part of it."""
    found, ended = passed(next_pass, ["r4", "⏎", "<end>", "<pad>"])
    assert ended, "the canvas has the end behind its thought, and yet the chain went on"
    assert found[-3:] == ["r4", "⏎", "<sep>"], f"the thought is r4 ⏎, found the source {found}"
    assert not passed(next_pass, ["r4", "⏎", "<pad>", "<pad>"])[1], "a canvas without the end ended the chain"


def pass_believes_what_comes_first(next_pass):
    """Behind the first padding nothing counts, not even an end."""
    found, ended = passed(next_pass, ["r4", "<pad>", "<end>"])
    assert not ended and found[-2:] == ["r4", "<sep>"], f"an end behind padding was believed: {found}, {ended}"


# ----- 6.4
TRUTH = np.array([[1.0, -1.0, 0.5, 0.0], [0.0, 2.0, -0.5, 1.0]])
ERROR = np.array([[0.5, 0.0, -0.25, 1.0], [0.0, 0.125, 0.5, -0.5]])


def costs(diffusion_loss, error, gamma: float = 0.5, gamma_prime: float = 3.0) -> float:
    """The reader's loss of a guess that is wrong by `error`, as one number."""
    truth = np.resize(TRUTH, error.shape)
    found = diffusion_loss(truth.copy(), truth + error, gamma, gamma_prime)
    assert found is not None, "one number was expected, nothing came back"
    assert np.ndim(found) == 0, f"one number for all positions was expected, found the shape {np.shape(found)}"
    return float(found)


def loss_of_a_perfect_guess_is_zero(diffusion_loss):
    """A perfect guess costs nothing, however much noise there is."""
    for gamma in (-5.0, 0.0, 4.0):
        found = costs(diffusion_loss, 0 * ERROR, gamma)
        assert abs(found) < 1e-12, f"gamma {gamma}: x_hat is x, and yet the loss is {found:.6g}"


def loss_is_quadratic(diffusion_loss):
    """Twice the error costs four times as much."""
    once, twice = costs(diffusion_loss, ERROR), costs(diffusion_loss, 2 * ERROR)
    assert once, "a wrong guess should cost something"
    reason = ": is each coordinate's error squared, and no root taken?"
    assert math.isclose(twice, 4 * once, rel_tol=1e-9), (
        f"an error costs {once:.6g}, one twice as large {twice:.6g}{reason}"
    )


def loss_sums_over_the_width(diffusion_loss):
    """An embedding's squares are summed: twice as wide, with the same errors again, costs twice as much."""
    once, wide = costs(diffusion_loss, ERROR), costs(diffusion_loss, np.hstack([ERROR, ERROR]))
    assert once and math.isclose(wide, 2 * once, rel_tol=1e-9), (
        f"width 4 costs {once:.6g}, width 8 with the same errors twice costs {wide:.6g}: sum over the last axis"
    )


def loss_averages_over_positions(diffusion_loss):
    """Positions are averaged: twice as many, with the same errors again, cost the same."""
    once, long = costs(diffusion_loss, ERROR), costs(diffusion_loss, np.vstack([ERROR, ERROR]))
    assert once and math.isclose(long, once, rel_tol=1e-9), (
        f"2 positions cost {once:.6g}, 4 with the same errors twice cost {long:.6g}: take the mean over positions"
    )


def loss_follows_the_speed_of_gamma(diffusion_loss):
    """Where gamma changes twice as fast, the loss is twice as high."""
    once, twice = (costs(diffusion_loss, ERROR, gamma_prime=speed) for speed in (3.0, 6.0))
    assert once and math.isclose(twice, 2 * once, rel_tol=1e-9), (
        f"gamma_prime 3 costs {once:.6g}, gamma_prime 6 costs {twice:.6g}: it is a factor of the loss"
    )


def loss_is_half_of_what_snr_loses(diffusion_loss):
    """It is -1/2 · d SNR/dt · error, where SNR(t) = exp(-gamma(t)), here for gamma(t) = 9t² - 4."""
    error = float((ERROR**2).sum() / len(ERROR))
    for t in (0.2, 0.5, 0.8):
        slope = (math.exp(4 - 9 * (t + 1e-5) ** 2) - math.exp(4 - 9 * (t - 1e-5) ** 2)) / 2e-5
        gamma = 9 * t**2 - 4
        wanted, found = -0.5 * slope * error, costs(diffusion_loss, ERROR, gamma, 18 * t)
        others = {
            2: ": the half is missing",
            -1: ": its sign; gamma' is above 0, and so is a loss",
            math.exp(2 * gamma): ": the weight has e^gamma; SNR is e^-gamma",
            math.exp(gamma): ": the weight lacks e^-gamma",
        }
        reason = next((why for k, why in others.items() if math.isclose(found, k * wanted, rel_tol=1e-5)), "")
        assert math.isclose(found, wanted, rel_tol=1e-5), (
            f"t {t}: -1/2 · {slope:.6g} · {error:.6g} is {wanted:.6g}, found {found:.6g}{reason}"
        )


EXERCISES = {
    "6.1": Exercise(
        [shares_make_one, shares_are_even_at_zero, shares_have_the_ratio_of_gamma, shares_hold_at_the_ends],
        [
            "gamma says how much more noise than signal there is; the two shares of the variance make 1.",
            "The signal's share is the sigmoid of -gamma, the noise's that of gamma; alpha and sigma are their roots.",
            "sigmoid(x) = 1 / (1 + exp(-x)) if x >= 0 else exp(x) / (1 + exp(x)); sqrt of it at -gamma, and at gamma",
        ],
    ),
    "6.2": Exercise(
        [
            step_of_no_length_stays,
            step_stays_on_the_noise_line,
            step_is_two_half_steps,
            step_ends_at_the_guess,
        ],
        [
            "If x_hat is the text, the rest of z is noise. Take it out, and put less of it back.",
            "First solve z = alpha_t x_hat + sigma_t eps for eps; then mix x_hat and that eps anew, for the time s.",
            "eps = (z - alpha_t * x_hat) / sigma_t; return alpha_s * x_hat + sigma_s * eps",
        ],
    ),
    "6.3": Exercise(
        [
            pass_ends_at_the_padding,
            pass_fills_its_canvas,
            pass_keeps_what_was_there,
            pass_knows_the_end,
            pass_believes_what_comes_first,
        ],
        [
            "Where does the thought end? At the first place that is padding or the end; without one, with the canvas.",
            "Cut the separator off the source, put the thought there, then the separator again.",
            "stops = [i for i, token in enumerate(canvas) if token in (pad, end)]; thought = canvas[: stops[0]], or "
            "all of it; return [*source[:-1], *thought, sep] and whether canvas[stops[0]] is the end.",
        ],
    ),
    "6.4": Exercise(
        [
            loss_of_a_perfect_guess_is_zero,
            loss_is_quadratic,
            loss_sums_over_the_width,
            loss_averages_over_positions,
            loss_follows_the_speed_of_gamma,
            loss_is_half_of_what_snr_loses,
        ],
        [
            "A squared error, with a weight that says how much each moment of denoising counts.",
            "SNR is exp(-gamma), so that -d SNR/dt is exp(-gamma) * gamma_prime; half of that is the weight.",
            "0.5 * exp(-gamma) * gamma_prime * ((x - x_hat) ** 2).sum(-1).mean()",
        ],
    ),
}
