"""From noise to text: each sampler against its paper's formula, on toys with known answers, and end to end."""

import itertools
import math
import random

import pytest
import torch

from lib.dot import generation, repair, samplers, sequences
from lib.dot.config import SAMPLERS, Config
from lib.errors import InputError
from tests.oracles import dot as oracle

DETERMINISTIC = ("ddim", "dpm_1", "dpm_2m")


def falling(steps, low=-3.0, high=6.0):
    """gamma along a line, from much noise to little."""
    return [high + (low - high) * t / steps for t in range(steps + 1)]


def uneven(steps, seed=0):
    draw = random.Random(seed)
    return sorted((draw.uniform(-5, 7) for _ in range(steps + 1)), reverse=True)


def followed(plan, z, guess, noise=None):
    """All states that a plan passes through, the last one too, if guess(z, gamma) is what the model says."""
    found, last = [z], None
    for i, step in enumerate(plan):
        now = step.p * z + step.q * guess(z, step.gamma)
        z = step.a * z + step.b * now + (step.c * last if step.c else 0) + (step.n * noise[i] if step.n else 0)
        last = now
        found.append(z)
    return found


class Stub:
    """A denoiser that says what `answer(z, gamma)` says, and remembers what it was given."""

    device, embed_dim = torch.device("cpu"), 16

    def __init__(self, answer, vocabulary=7):
        self.answer, self.calls = answer, []
        torch.manual_seed(0)
        rows = torch.randn(vocabulary, 16)
        self.rows = rows / rows.norm(dim=1, keepdim=True)

    def embedding_matrix(self):
        return self.rows

    def guess(self, z, gamma, clean, before=None, mask=None):
        self.calls.append({"z": z, "gamma": gamma, "clean": clean, "before": before, "mask": mask})
        return self.answer(z, gamma)


# --- the tables ---


@pytest.mark.parametrize("gammas", [falling(1), falling(2), falling(64), uneven(5), uneven(12, 1)])
@pytest.mark.parametrize("temperature", [1.0, 0.5, 0.8, 2.0])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_step_is_its_papers(sampler, temperature, gammas):
    plan, draw = samplers.table(gammas, sampler, temperature), torch.Generator().manual_seed(0)
    z, earlier = torch.randn(4, dtype=torch.float64, generator=draw), None
    assert len(plan) == len(gammas) - 1
    guesses, noise = (torch.randn(len(plan), 4, dtype=torch.float64, generator=draw) for _ in range(2))
    told = iter(guesses)
    ours = followed(plan, z, lambda z, gamma: next(told), noise)
    for i, (step, x_hat) in enumerate(zip(plan, guesses, strict=True)):
        gamma_t, gamma_s = gammas[i : i + 2]
        assert step.gamma == gamma_t
        x = oracle.tempered(z, x_hat, gamma_t, temperature)
        if sampler == "ancestral":
            mean, deviation = oracle.posterior(z, x, gamma_t, gamma_s)
            z = mean + deviation * noise[i]
        elif sampler == "ddim":
            z = oracle.ddim(z, x, gamma_t, gamma_s)
        elif sampler == "release_x0_iteration":
            z = oracle.x0_iteration(x_hat, gammas, i)
        else:
            z = oracle.dpm(z, x, gamma_t, gamma_s, earlier if sampler == "dpm_2m" else None)
            earlier = x, gamma_t
        torch.testing.assert_close(ours[i + 1], z, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("gammas", [falling(64), falling(3), uneven(20), [30.0, 29.999999, -30.0]])
def test_the_first_order_solver_is_ddim(gammas):
    for one, other in zip(samplers.table(gammas, "ddim"), samplers.table(gammas, "dpm_1"), strict=True):
        assert one.a == pytest.approx(other.a, rel=1e-10) and one.b == pytest.approx(other.b, rel=1e-8, abs=1e-10)
        assert one.c == other.c == one.n == other.n == 0


@pytest.mark.parametrize("gammas", [falling(1), falling(64), uneven(20)])
def test_ancestral_steps_keep_the_distribution(gammas):
    """From q(z_t | x) with the right x to q(z_s | x): its mean and its variance."""
    for step, gamma_s in zip(samplers.table(gammas, "ancestral"), gammas[1:], strict=True):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = oracle.alpha_sigma(step.gamma), oracle.alpha_sigma(gamma_s)
        assert step.a * alpha_t + step.b == pytest.approx(alpha_s, rel=1e-12)
        assert step.a**2 * sigma_t**2 + step.n**2 == pytest.approx(sigma_s**2, rel=1e-12)
        assert step.n > 0


@pytest.mark.parametrize("temperature", [0.3, 0.5, 1.0, 1.7])
def test_the_temperature_divides_the_noise_that_the_guess_stands_for(temperature):
    z, x_hat = torch.randn(2, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for step in samplers.table(uneven(9), "ddim", temperature):
        alpha, sigma = oracle.alpha_sigma(step.gamma)
        tempered = step.p * z + step.q * x_hat
        torch.testing.assert_close((z - alpha * tempered) / sigma, (z - alpha * x_hat) / sigma / temperature)


def test_unknown_samplers_and_temperatures_are_refused():
    with pytest.raises(InputError, match="Unknown sampler 'euler'; use ancestral"):
        samplers.table([1.0, 0.0], "euler")
    for temperature in (0.0, -1.0):
        with pytest.raises(InputError, match="above 0"):
            samplers.table([1.0, 0.0], "ddim", temperature)


def test_the_released_iteration():
    """At T = 64 each step keeps its guess, shrunk by a fifth of a percent, whatever gamma; nothing of the state."""
    plan = samplers.table(falling(64), "release_x0_iteration")
    other = samplers.table(falling(64, -30, 3), "release_x0_iteration", temperature=0.5)
    for step, same in zip(plan, other, strict=True):
        assert (step.a, step.c, step.n, step.p, step.q) == (0, 0, 0, 0, 1) == (same.a, same.c, same.n, same.p, same.q)
        assert step.b == pytest.approx(same.b, rel=1e-12)
    ratios, shares = [], []
    for i in range(64):
        (_, sigma_t), (alpha_s, sigma_s) = oracle.alpha_sigma(1 - i / 64), oracle.alpha_sigma(1 - (i + 1) / 64)
        ratios.append(sigma_s / sigma_t)
        shares.append(alpha_s * -math.expm1(-1 / 128))
        assert plan[i].b == pytest.approx(ratios[i] + shares[i], rel=1e-12)
    assert round(ratios[0], 3) == 0.998 and round(shares[0], 3) == 0.004
    assert 0.996 < min(ratios) and max(shares) < 0.0056, "and not much else later"
    stub = Stub(lambda z, gamma: (torch.zeros(*z.shape[:2], 7), torch.full_like(z, 0.25)))
    for seed in (1, 2):
        z = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(seed))
        samplers.denoise(stub, torch.zeros(2, 1, dtype=torch.long), None, z, plan)
    for one, same in zip(stub.calls[1:64], stub.calls[65:], strict=True):
        assert torch.equal(one["z"], same["z"]), "its first state is forgotten"


# --- a toy with a known answer ---


def toy(gamma, z, mean=0.7, deviation=0.4):
    """E[x | z] of z = alpha x + sigma noise, x normal."""
    alpha, sigma = oracle.alpha_sigma(gamma)
    return (alpha * deviation**2 * z + sigma**2 * mean) / (alpha**2 * deviation**2 + sigma**2)


def flow(z, gamma_t, gamma_s, mean=0.7, deviation=0.4):
    """Where the probability flow takes z: as many standard deviations from the mean as it was."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = oracle.alpha_sigma(gamma_t), oracle.alpha_sigma(gamma_s)
    spread = [math.sqrt(a**2 * deviation**2 + s**2) for a, s in ((alpha_t, sigma_t), (alpha_s, sigma_s))]
    return alpha_s * mean + (z - alpha_t * mean) * spread[1] / spread[0]


def toy_error(sampler, steps):
    z = torch.linspace(-2, 2, 9, dtype=torch.float64)
    end = followed(samplers.table(falling(steps), sampler), z, lambda z, gamma: toy(gamma, z))[-1]
    return (end - flow(z, 6.0, -3.0)).abs().max().item()


@pytest.mark.parametrize("sampler, order", [("ddim", 1), ("dpm_1", 1), ("dpm_2m", 2)])
def test_errors_fall_with_the_step_to_the_power_of_the_order(sampler, order):
    errors = [toy_error(sampler, steps) for steps in (128, 256, 512, 1024)]
    slopes = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert all(slope == pytest.approx(order, abs=0.2) for slope in slopes), slopes


def test_order_2_is_better_at_few_steps_too():
    assert toy_error("dpm_2m", 16) < toy_error("dpm_1", 16) / 2
    assert toy_error("release_x0_iteration", 512) > 20 * toy_error("dpm_1", 512), "this one goes elsewhere"


def test_ancestral_sampling_draws_from_the_toy():
    draw = torch.Generator().manual_seed(0)
    noise = torch.randn(201, 20_000, dtype=torch.float64, generator=draw)
    plan = samplers.table(falling(200, -8.0, 8.0), "ancestral")
    end = followed(plan, noise[200], lambda z, gamma: toy(gamma, z), noise)[-1]
    assert end.mean().item() == pytest.approx(0.7, abs=0.02) and end.std().item() == pytest.approx(0.4, abs=0.02)


# --- one grid ---


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 64])
def test_times_go_evenly_from_1_to_0(steps):
    grid = samplers.times(steps)
    assert len(grid) == steps + 1 and grid[0] == 1 and grid[-1] == 0
    assert all(a - b == pytest.approx(1 / steps) for a, b in itertools.pairwise(grid))
    model, _ = oracle.small_model()
    gammas = samplers.gammas_of(model, steps)
    assert gammas[0] == pytest.approx(6) and gammas[-1] == pytest.approx(-3)
    expected = model.gamma(torch.tensor(grid, dtype=torch.float64))[0]
    assert gammas == pytest.approx(expected.tolist(), rel=1e-12)
    plan = samplers.table(gammas, "ddim")
    assert [step.t for step in plan] == grid[:-1] and [step.gamma for step in plan] == gammas[:-1]


@pytest.mark.parametrize("steps", [1, 2, 4, 9, 64])
@pytest.mark.parametrize("sampler", ["ancestral", *DETERMINISTIC])
def test_the_model_is_told_the_noise_that_its_state_has(sampler, steps):
    """With the right guess the state is alpha x + sigma noise of the gamma that is told, at every call; T calls."""
    gammas, draw = falling(steps), torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 7, (40, 50), generator=draw)
    stub = Stub(lambda z, gamma: (torch.nn.functional.one_hot(tokens, 7).float(), stub.rows[tokens]))
    x = stub.rows[tokens]
    alpha, sigma = oracle.alpha_sigma(gammas[0])
    first = torch.randn(x.shape, generator=draw)
    source, asked = torch.tensor([[1, 2, 3]]).expand(40, 3), []

    def noise(i, rows):
        asked.append(i)
        return torch.randn(x.shape, generator=draw)

    ids, _, calls = samplers.denoise(
        stub, source, None, alpha * x + sigma * first, samplers.table(gammas, sampler), noise
    )
    assert len(stub.calls) == steps and (calls == steps).all() and torch.equal(ids, tokens)
    for i, call in enumerate(stub.calls):
        assert call["gamma"].dtype == torch.float64 and call["gamma"].unique().tolist() == [gammas[i]]
        assert torch.equal(call["clean"], stub.rows[source]), "the source is clean at every call"
        alpha, sigma = oracle.alpha_sigma(gammas[i])
        held = (call["z"] - alpha * x) / sigma
        if sampler == "ancestral":
            assert held.mean().item() == pytest.approx(0, abs=0.03)
            assert held.std().item() == pytest.approx(1, abs=0.03)
        else:
            torch.testing.assert_close(held, first, rtol=0, atol=1e-4)
    assert asked == (list(range(steps - 1)) if sampler == "ancestral" else []), "no noise after the last call"


def test_the_guess_before_is_the_models_own_whatever_the_temperature():
    answers = [torch.full((1, 2, 16), float(i)) for i in range(4)]
    told = iter(answers)
    stub = Stub(lambda z, gamma: (torch.zeros(1, 2, 7), next(told)))
    plan = samplers.table(falling(4), "ddim", temperature=0.5)
    samplers.denoise(stub, torch.zeros(1, 1, dtype=torch.long), None, torch.randn(1, 2, 16), plan)
    assert stub.calls[0]["before"] is None
    for call, answer in zip(stub.calls[1:], answers, strict=False):
        assert torch.equal(call["before"], answer)


def test_a_repair_starts_from_the_noise_of_its_time():
    model, _ = oracle.small_model()
    tokens = torch.randint(0, 7, (3, 5), generator=torch.Generator().manual_seed(0))
    stub = Stub(lambda z, gamma: (torch.nn.functional.one_hot(tokens, 7).float(), stub.rows[tokens]))
    stub.gamma, draws = model.gamma, torch.randn(3, 5, 16)
    how = repair.Config(start=0.6, steps=3)
    with torch.no_grad():
        repair.from_time(how, stub, Config(), torch.zeros(3, 1, dtype=torch.long), None, tokens, lambda i, rows: draws)
        gammas = model.gamma(torch.tensor([0.6, 0.4, 0.2], dtype=torch.float64))[0]
    assert len(stub.calls) == 3
    for call, gamma in zip(stub.calls, gammas.tolist(), strict=True):
        assert call["gamma"].tolist() == pytest.approx([gamma] * 3)
        alpha, sigma = oracle.alpha_sigma(gamma)
        torch.testing.assert_close(call["z"], alpha * stub.rows[tokens] + sigma * draws, rtol=1e-4, atol=1e-4)


# --- end to end ---


@pytest.mark.parametrize("sampler, temperature", [("ancestral", 0.8), ("ddim", 1.0), ("dpm_2m", 1.0)])
def test_float32_decodes_what_float64_decodes(sampler, temperature):
    """64 steps of a small model, and of the slow one in float64, by formulas and from the same noise."""
    model, config = oracle.small_model(sizes=(16, 1, 2))
    draw = torch.Generator().manual_seed(3)
    source, z = torch.tensor([[4, 9], [1, 2]]), torch.randn(2, 3, 16, generator=draw)
    noise = torch.randn(64, 2, 3, 16, generator=draw)
    gammas = samplers.gammas_of(model, 64)
    plan = samplers.table(gammas, sampler, temperature)
    with torch.inference_mode():
        ids, sure, _ = samplers.denoise(model, source, None, z, plan, lambda i, rows: noise[i][rows])
    assert ids.unique().numel() > 2
    w = oracle.weights(model)
    for row in range(2):
        state, before, earlier = z[row].double(), None, None
        for i in range(64):
            with torch.no_grad():
                gamma = torch.tensor(gammas[i], dtype=torch.float64)
                asked = w, state, gamma, source[row].tolist(), before, 2
                logits, before = oracle.guess(*asked, source_scale=math.sqrt(config.embed_dim))
            x = oracle.tempered(state, before, gammas[i], temperature)
            if sampler == "ancestral":
                mean, deviation = oracle.posterior(state, x, *gammas[i : i + 2])
                state = mean + deviation * noise[i][row]
            elif sampler == "ddim":
                state = oracle.ddim(state, x, *gammas[i : i + 2])
            else:
                state, earlier = oracle.dpm(state, x, *gammas[i : i + 2], earlier), (x, gammas[i])
        assert logits.argmax(1).tolist() == ids[row].tolist()
        torch.testing.assert_close(logits.softmax(1).max(1)[0].float(), sure[row], rtol=0, atol=1e-3)


@pytest.mark.parametrize("sampler", DETERMINISTIC)
def test_rows_that_leave_have_the_tokens_they_had_then(sampler):
    model, _ = oracle.small_model(gamma_0=-7.0)  # so little noise at the end that tokens settle
    draw = torch.Generator().manual_seed(0)
    lengths = torch.tensor([1, 3, 2, 3, 3, 1, 2, 3])
    source = torch.randint(0, oracle.VOCABULARY, (8, 3), generator=draw)
    mask, z = sequences.seen(lengths, 3, 4), torch.randn(8, 4, 16, generator=draw)
    plan, history = samplers.table(samplers.gammas_of(model, 12), sampler), []

    def watch(step, rows, ids, sure):
        assert rows.tolist() == list(range(8))
        history.append((step.t, ids.clone(), sure.clone()))

    with torch.inference_mode():
        end, last, all_calls = samplers.denoise(model, source, mask, z, plan, watch=watch)
        assert [t for t, _, _ in history] == pytest.approx([1 - i / 12 for i in range(12)])
        assert torch.equal(end, history[-1][1]) and torch.equal(last, history[-1][2]) and (all_calls == 12).all()
        ids, sure, calls = samplers.denoise(model, source, mask, z, plan, leave_at=0.9)
    left = 0
    for row in range(8):
        met = [i + 1 for i, (_, _, found) in enumerate(history) if (found[row] >= 0.9).all()]
        call = met[0] if met else 12
        assert calls[row] == call
        _, then, how_sure = history[call - 1]
        assert torch.equal(ids[row], then[row])
        torch.testing.assert_close(sure[row], how_sure[row], rtol=1e-4, atol=1e-4)
        if met and all(torch.equal(found[row], then[row]) for _, found, _ in history[call:]):
            left += call < 12
            assert torch.equal(ids[row], end[row]), "stable: it would have ended so"
    assert left >= 3 and calls.unique().numel() > 1, "some leave, and some stay"


@pytest.mark.parametrize("sampler", ["ancestral", "dpm_2m"])
def test_rows_that_stay_keep_what_is_theirs(sampler):
    """Noise, source, mask, the guess before and the one before that: as if nobody had left."""
    draw = torch.Generator().manual_seed(0)
    z, noise = torch.randn(5, 3, 16, generator=draw), torch.randn(9, 5, 3, 16, generator=draw)
    source, mask = torch.arange(5)[:, None], torch.ones(5, 4, dtype=torch.bool)
    mask[torch.tensor([1, 4]), 0] = False
    plan, sure = samplers.table(falling(9), sampler, 0.8), {(0, 2), (3, 4), (1, 4)}  # which row, at which call

    def played(leave_at):
        """(what each row was given at its calls, how many these were)."""
        seen = {}

        def answer(z, gamma):
            call = stub.calls[-1]
            before = 0 if call["before"] is None else call["before"]
            whose = [(row == stub.rows).all(1).nonzero().item() for row in call["clean"][:, 0]]
            for row, its_z, its_mask in zip(whose, z, call["mask"], strict=True):
                seen.setdefault(row, []).append((its_z, its_mask))
            sizes = torch.tensor([20.0 * ((row, len(stub.calls)) in sure) for row in whose])
            logits = torch.tensor([1.0, 0, 0, 0, 0, 0, 0]) * sizes[:, None, None].expand(len(z), 3, 1)
            return logits, torch.tanh(2 * z + before)

        stub = Stub(answer)
        calls = samplers.denoise(stub, source, mask, z, plan, lambda i, rows: noise[i][rows], leave_at)[2]
        return seen, calls.tolist()

    (every, all_calls), (some, calls) = played(1.0), played(0.9)
    assert all_calls == [9] * 5 and calls == [2, 4, 9, 4, 9]
    for row in range(5):
        assert len(some[row]) == calls[row] and len(every[row]) == 9
        for (one, its_mask), (other, same) in zip(some[row], every[row], strict=False):
            assert torch.equal(one, other) and torch.equal(its_mask, same) and torch.equal(same, mask[row])


@pytest.fixture(scope="module")
def asking(chains):
    """(model, tokenizer, its config, questions) of an untrained model whose answers depend on the noise."""
    tokenizer = sequences.tokenizer_for(Config(), chains)
    model, config = oracle.small_model(vocabulary=len(tokenizer), size=0.7, gamma_0=-5.0)
    return model, tokenizer, config, [p.question for p in chains[:10]]


def test_a_sample_does_not_depend_on_who_else_is_asked(asking):
    """Its noise is its own: any size and order of batches, with others leaving or not."""
    model, tokenizer, config, questions = asking
    how = dict(steps=12, sampler="ancestral", device="cpu")
    before = torch.get_rng_state()

    def ask(order, seed=0, **more):
        asked = generation.Config(**how, seed=seed, **more)
        found, calls = generation.generate(model, tokenizer, config, 9, [questions[i] for i in order], asked)
        return {i: (g.text, g.finished, c) for i, g, c in zip(order, found, calls, strict=True)}

    order = list(range(10))
    expected = ask(order)
    assert len({text for text, _, _ in expected.values()}) > 5
    for other in (order[::-1], order[3:], [7, 1, 4]):
        for batch_tokens in (1, 60, 16384):
            assert ask(other, batch_tokens=batch_tokens) == {i: expected[i] for i in other}
    assert ask(order, seed=1) != expected
    leaving = ask(order, leave_at=0.2)
    assert len({calls for _, _, calls in leaving.values()}) > 1
    for batch_tokens in (1, 60):
        assert ask(order[::-1], leave_at=0.2, batch_tokens=batch_tokens) == leaving
    assert torch.equal(torch.get_rng_state(), before), "nobody else's random numbers are used up"


def test_votes_are_deterministic(asking, chains):
    model, tokenizer, config, _ = asking

    def ask(**more):
        how = generation.Config(steps=3, sampler="ancestral", samples=4, device="cpu", **more)
        found, calls = generation.voted(model, tokenizer, config, 9, chains[:6], how)
        assert calls == [12] * 6
        return [g.text for g in found]

    assert ask() == ask(batch_tokens=1) == ask(batch_tokens=77) != ask(seed=1)


def test_half_precision_decodes_nearly_the_same(asking):
    model, tokenizer, config, questions = asking
    found = []
    for dtype in ("float32", "bfloat16"):
        how = generation.Config(steps=4, sampler="ddim", device="cpu", dtype=dtype)
        written = []

        def watch(step, places, ids, sure, written=written):
            if step.t == pytest.approx(0.25):
                written.append(ids)

        generation.generate(model, tokenizer, config, 9, questions, how, watch=watch)
        found.append(torch.cat(written))
    assert (found[0] == found[1]).float().mean() > 0.9


# --- masked diffusion ---


def hidden_counts(n, steps, start=None):
    """(ids, masked positions of each row at each call) of a model that likes position 0 best, then 1, and so on."""
    sizes = torch.linspace(5, 1, n)[None, :, None] if n > 1 else torch.full((1, 1, 1), 5.0)
    stub = Stub(lambda z, gamma: (torch.tensor([0.0, 0, 1, 0, 0, 0, 0]) * sizes.expand(len(z), n, 1), None))
    ids, sure, calls = samplers.unmask(stub, torch.ones(3, 2, dtype=torch.long), None, n, steps, None, start=start)
    assert (calls == steps).all() and len(stub.calls) == steps and (sure >= 0).all()
    hidden = [(call["z"].abs().sum(2) == 0) for call in stub.calls]
    return ids, hidden


@pytest.mark.parametrize("n", [1, 3, 5, 10, 49])
def test_as_many_stay_masked_as_the_schedule_says(n):
    for steps in [*range(1, 16), 64]:
        ids, hidden = hidden_counts(n, steps)
        assert (ids == 2).all(), "all are written at the end"
        for i, masked in enumerate(hidden):
            left = n * (steps - i) // steps
            assert (masked.sum(1) == left).all(), (steps, i)
            assert masked[:, n - left :].all(), "the surest go first"


def test_what_stands_already_stays():
    start = torch.tensor([[3, -1, -1, 4, -1, -1], [-1] * 6, [5] * 6])
    ids, hidden = hidden_counts(6, 4, start)
    assert ids.tolist() == [[3, 2, 2, 4, 2, 2], [2] * 6, [5] * 6]
    # evenly in each row
    assert [masked.sum(1).tolist() for masked in hidden] == [[4, 6, 0], [3, 4, 0], [2, 3, 0], [1, 1, 0]]
    assert start[0, 1] == -1, "what was given is not changed"


@pytest.mark.parametrize("temperature", [0.5, 1.5])
def test_tokens_are_drawn_by_their_probability(temperature):
    logits = torch.tensor([0.0, 1.0, -1.0, 0.5, 2.0, 0.3, -3.0])
    stub = Stub(lambda z, gamma: (logits.expand(len(z), 1, 7), None))
    uniform = (torch.arange(20_000) + 0.5)[:, None] / 20_000
    source = torch.zeros(20_000, 1, dtype=torch.long)
    ids, sure, _ = samplers.unmask(stub, source, None, 1, 1, uniform, temperature)
    expected = (logits / temperature).softmax(0)
    torch.testing.assert_close(torch.bincount(ids[:, 0], minlength=7) / 20_000, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(sure[:, 0], expected[ids[:, 0]])


def test_masked_samples_do_not_depend_on_who_else_is_asked(chains):
    tokenizer = sequences.tokenizer_for(Config(), chains)
    model, config = oracle.small_model(vocabulary=len(tokenizer), size=0.7, loss="masked")
    questions, found = [p.question for p in chains[:6]], []
    for batch_tokens in (1, 16384):
        how = generation.Config(steps=5, temperature=2.0, device="cpu", batch_tokens=batch_tokens)
        found.append([g.text for g in generation.generate(model, tokenizer, config, 9, questions, how)[0]])
    assert found[0] == found[1] and len(set(found[0])) > 3
