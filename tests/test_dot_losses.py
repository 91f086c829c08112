"""What a denoiser is trained on, against the formulas: values, gradients, what sends none, and what is random."""

import math

import pytest
import torch

from lib.dot import losses, sequences
from lib.dot.config import Config
from lib.dot.losses import Draw, draw
from lib.dot.trainer import Learner
from lib.errors import InputError
from tests.oracles import dot as oracle

SOURCES, CANVAS = [3, 1, 4, 2, 4, 3], 4
HOW = dict(source_scale=4.0)  # sqrt(embed_dim)


def batch_of(sources=SOURCES, canvas=CANVAS, seed=0, more=0, pad_id=0):
    """A batch with sources of these lengths, with `more` columns of padding than the longest needs."""
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(1, oracle.VOCABULARY, (n,), generator=generator).tolist() for n in sources]
    ids = torch.randint(0, oracle.VOCABULARY, (len(sources), canvas), generator=generator)
    width = max(sources) + more
    source = sequences.pad(rows, pad_id, True, width)
    return {"source": source, "canvas": ids, "mask": sequences.seen(torch.tensor(sources), width, canvas)}


def drawn(batch, t, own=4, scope="target", seed=0):
    """A Draw with these times."""
    rows, n = batch["canvas"].shape
    n += batch["source"].shape[1] if scope == "all" else 0
    noise = torch.randn(rows, n, oracle.EMBED, generator=torch.Generator().manual_seed(seed))
    return Draw(torch.tensor(t, dtype=torch.float64), noise, own)


TIMES = [0.0, 0.13, 0.5, 0.92, 0.0, 0.7]  # of rows; the last two are self-conditioned


def rows_of(batch, found: Draw, scope="target"):
    """The same for the oracle."""
    rows = []
    for i, canvas in enumerate(batch["canvas"].tolist()):
        source = batch["source"][i].tolist()
        padding = 0 if batch["mask"] is None else int((~batch["mask"][i]).sum())
        row = {"source": source, "padding": padding, "ids": source + canvas if scope == "all" else canvas}
        row |= {"canvas": len(canvas), "t": found.t[i].item(), "own": i >= found.own, "noise": found.noise[i].double()}
        rows.append(row)
    return rows


def gradients(model, loss):
    """The gradient in each weight by name, zeros where there is none."""
    weights = dict(model.named_parameters())
    found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True, retain_graph=True)
    return {n: torch.zeros_like(weights[n]) if g is None else g for n, g in zip(weights, found, strict=True)}


def close_gradients(ours, theirs, close=2e-5):
    for name, expected in theirs.items():
        off, size = (ours[name].double() - expected.double()).norm(), expected.norm()
        assert off <= close * size + 1e-9, f"{name}: {off} of {size}"


# --- the bound ---


@pytest.mark.parametrize("scope", ["target", "all"])
@pytest.mark.parametrize("learn_schedule", [True, False])
def test_the_bound_and_its_gradients_are_those_of_the_formulas(scope, learn_schedule):
    """Network, embeddings and bounds get the gradient of E[loss], the schedule's shape that of E[loss^2]."""
    model, config = oracle.small_model(loss_scope=scope, learn_schedule=learn_schedule)
    batch = batch_of()
    noise = drawn(batch, TIMES, scope=scope)
    found = losses.vlb(model, config, batch, noise)
    w = oracle.weights(model)
    terms = oracle.bound_terms(w, rows_of(batch, noise, scope), oracle.HEADS, learned=learn_schedule, **HOW)
    for kind, value, term in zip(found["reconstructed"].tolist(), found["rows"].tolist(), terms, strict=True):
        assert kind == (term["kind"] == "reconstruction") and term["value"] > 0.01
        assert value == pytest.approx(term["value"].item(), rel=2e-5)
    assert found["prior"].item() == pytest.approx(terms[0]["prior"].item(), rel=1e-6)
    expected = oracle.bound(terms)
    assert found["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    ours = gradients(model, found["loss"])
    others = [name for name in w if "noise_schedule" not in name]
    theirs = torch.autograd.grad(expected, [w[name] for name in others], allow_unused=True, retain_graph=True)
    theirs = {n: torch.zeros_like(w[n]) if g is None else g for n, g in zip(others, theirs, strict=True)}
    assert all(g.norm() > 1e-6 for name, g in theirs.items() if "bounds" not in name), "gradients to compare"
    close_gradients(ours, theirs)
    shape = [name for name in w if "noise_schedule" in name]
    if not learn_schedule:
        assert all((ours[name] == 0).all() for name in (*shape, "gamma_bounds.gamma_0", "gamma_bounds.gamma_1"))
        return
    assert all(theirs[f"gamma_bounds.gamma_{i}"].abs() > 1e-6 for i in (0, 1))
    values = [term["value"] for term in terms if term["kind"] == "diffusion"]
    squared = sum(value**2 for value in values) / len(values)
    theirs = dict(zip(shape, torch.autograd.grad(squared, [w[name] for name in shape]), strict=True))
    assert all(g.norm() > 1e-6 for g in theirs.values())
    close_gradients(ours, theirs)


def test_the_prior_of_the_bound():
    """KL(q(z_1 | x) || N(0, 1)) of an embedding of length one in 16 dimensions at gamma = 6."""
    model, config = oracle.small_model(gamma_1=6.0, embed_dim=16)
    batch = batch_of()
    assert losses.vlb(model, config, batch, drawn(batch, TIMES))["prior"].item() == pytest.approx(0.0012608, abs=5e-8)
    named = losses.named(losses.vlb(model, config, batch, drawn(batch, TIMES)))
    assert list(named) == ["reconstruction", "diffusion", "prior"]


def test_at_full_noise_an_untrained_model_loses_ln_of_the_vocabulary():
    from lib.dot.model import Plaid

    config = Config(places=False)
    model, batch = Plaid(oracle.VOCABULARY, config, oracle.SIZES), batch_of()
    found = losses.vlb(model, config, batch, drawn(batch, [0.0] * 6), prior_scale=0.0)
    torch.testing.assert_close(found["rows"], torch.full((6,), math.log(oracle.VOCABULARY)))


def test_the_diffusion_loss_does_not_depend_on_the_shape_of_the_schedule():
    """Fixed denoiser and bounds, 6,000 rows a shape: means agree within 3 standard errors, not without gamma'."""
    n, seen = 6000, {}
    model, config = oracle.small_model(sizes=(32, 1, 4))  # seeds torch as well
    batch = {"source": torch.full((n, 1), 3), "canvas": torch.tensor([[5, 11]]).expand(n, 2), "mask": None}
    for kind, (steep, place) in {"even": (0.1, 0.0), "late": (5.0, -1.5), "early": (5.0, 1.5)}.items():
        with torch.no_grad():
            model.noise_schedule.W1.fill_(steep)
            model.noise_schedule.b1.fill_(place)
            t = torch.rand(n, dtype=torch.float64).clamp(min=1e-9)
            found = losses.vlb(model, config, batch, Draw(t, torch.randn(n, 2, oracle.EMBED), n))["rows"].double()
            rise = model.gamma(t)[1]
            whole = model.gamma(torch.tensor([0.0, 1.0], dtype=torch.float64))[0]
        torch.testing.assert_close(whole, torch.tensor([-3.0, 6.0], dtype=torch.float64))
        seen[kind] = [(x.mean(), x.std() / math.sqrt(n)) for x in (found, found / rise)]
    for one, other in (("even", "late"), ("even", "early"), ("late", "early")):
        (mean, error), (other_mean, other_error) = seen[one][0], seen[other][0]
        assert error < 0.05 * mean, "an estimate that tells something"
        assert abs(mean - other_mean) < 3 * math.hypot(error, other_error), (one, other)
    (mean, error), (other_mean, other_error) = seen["early"][1], seen["late"][1]
    assert abs(mean - other_mean) > 10 * math.hypot(error, other_error), "gamma' is what makes it so"


def test_self_conditioned_rows_teach_embeddings_and_schedule_nothing():
    model, config = oracle.small_model()
    batch = batch_of()
    noise = drawn(batch, TIMES, own=0)
    found = losses.vlb(model, config, batch, noise)
    terms = oracle.bound_terms(oracle.weights(model), rows_of(batch, noise), oracle.HEADS, **HOW)
    for value, term in zip(found["rows"].tolist(), terms, strict=True):
        assert value == pytest.approx(term["value"].item(), rel=2e-5), "what they lose is the same"
    for name, gradient in gradients(model, found["loss"]).items():
        if name.startswith("model."):
            assert gradient.norm() > 1e-6, name
        else:
            assert (gradient == 0).all(), name


@pytest.mark.parametrize("loss", ["vlb", "cross_entropy"])
def test_the_first_guess_has_no_gradient_and_is_used(loss):
    model, config = oracle.small_model(loss=loss)
    batch, calls = batch_of(), []
    guess = model.guess

    def watched(*given, **named):
        found = guess(*given, **named)
        calls.append((len(given[0]), found[1].requires_grad))
        return found

    model.guess = watched
    with_own = losses.LOSSES[loss](model, config, batch, drawn(batch, TIMES, own=4))
    assert calls == [(2, False), (6, True)], "two rows, then all"
    calls.clear()
    without = losses.LOSSES[loss](model, config, batch, drawn(batch, TIMES, own=6))
    assert calls == [(6, True)]
    changed = (with_own["rows"] - without["rows"]).abs()
    assert changed[4:].min() > 1e-4 and changed[:4].max() < 1e-5


# --- what counts ---


@pytest.mark.parametrize(
    "loss, scope", [("vlb", "target"), ("vlb", "all"), ("cross_entropy", "target"), ("masked", "")]
)
def test_nothing_outside_the_scope_is_learned(loss, scope):
    model, config = oracle.small_model(loss=loss, loss_scope=scope or "target")
    batch, kept = batch_of([3] * 6), []
    noise = drawn(batch, [0.0, *TIMES[1:4], 0.3, 0.2], own=6, scope=scope)
    if loss == "masked":
        noise.noise = torch.rand(6, CANVAS)

    def keep(module, given, out):
        out.retain_grad()
        kept.append(out)

    model.model.blocks[-1].register_forward_hook(keep)
    model.model.output_linear.register_forward_hook(keep)
    losses.LOSSES[loss](model, config, batch, noise)["loss"].backward()
    states, logits = kept
    assert logits.shape[1] == (3 + CANVAS if scope == "all" else CANVAS)
    outside, inside = states.grad[:, :3], states.grad[:, 3:]
    assert (outside.abs().sum(2) > 0).all() if scope == "all" else (outside == 0).all()
    if loss == "masked":
        hidden = hidden_by(noise)
        assert 3 < hidden.sum() < 21
        assert (logits.grad[~hidden] == 0).all(), "nothing is learned from what can be seen"
        assert (logits.grad[hidden].abs().sum(1) > 0).all()
    else:
        assert (inside.abs().sum(2) > 0).all()


@pytest.mark.parametrize("loss", ["vlb", "cross_entropy", "masked"])
def test_padding_does_not_change_the_loss(loss):
    model, config = oracle.small_model(loss=loss)
    found = []
    for more, pad_id in ((0, 0), (5, 0), (5, 7)):
        batch = batch_of(more=more, pad_id=pad_id)
        noise = drawn(batch, [0.0, 0.13, 0.5, 0.92, 0.3, 0.7])
        if loss == "masked":
            noise.noise = torch.rand(6, CANVAS, generator=torch.Generator().manual_seed(0))
        loss_of = losses.LOSSES[loss](model, config, batch, noise)["loss"]
        found.append((loss_of, gradients(model, loss_of)))
    for value, gradient in found[1:]:
        assert value.item() == pytest.approx(found[0][0].item(), rel=1e-5)
        close_gradients(gradient, found[0][1], 5e-5)


@pytest.mark.parametrize("loss", ["vlb", "cross_entropy"])
def test_two_halves_of_a_batch_are_the_batch(loss):
    model, config = oracle.small_model(loss=loss)
    batch = batch_of([3] * 8)
    noise = drawn(batch, [0.0, 0.1, 0.3, 0.0, 0.6, 0.8, 0.4, 0.9], own=6)
    whole = losses.LOSSES[loss](model, config, batch, noise)["loss"]
    halves = []
    for places in (torch.tensor([0, 1, 2, 6]), torch.tensor([3, 4, 5, 7])):
        part = {name: value[places] if value is not None else None for name, value in batch.items()}
        given = Draw(noise.t[places], noise.noise[places], 3)
        halves.append(losses.LOSSES[loss](model, config, part, given)["loss"])
    together = sum(halves) / 2
    assert whole.item() == pytest.approx(together.item(), rel=1e-5)
    theirs = [gradients(model, half) for half in halves]
    close_gradients(gradients(model, whole), {name: (theirs[0][name] + theirs[1][name]) / 2 for name in theirs[0]})


# --- how many rows are reconstructed ---


def test_rows_are_split_by_the_deviations_of_their_losses():
    model, config = oracle.small_model()
    learner = Learner(model, config)
    assert 1 <= learner.reconstructed(8) <= 7, "before anything is known"

    def told(kinds):
        values = torch.tensor(kinds[0] + kinds[1])
        return {"rows": values, "reconstructed": torch.arange(len(values)) < len(kinds[0])}

    learner.remember(told(([1.0, 7.0], [4.0, 6.0])))  # deviations 3 and 1
    assert learner.reconstructed(8) == 6 and learner.reconstructed(100) == 75
    for _ in range(3000):
        learner.remember(told(([2.0, 3.0], [4.0, 8.0])))  # 0.5 and 2
    assert learner.reconstructed(100) == 20


@pytest.mark.parametrize("kinds", [([0.0, 0.0], [1.0, 2.0]), ([1.0, 9.0], [1.0, 1.0]), ([3.0, 3.0], [2.0, 2.0])])
@pytest.mark.parametrize("rows", [2, 3, 64])
def test_there_is_always_a_row_of_each_kind(kinds, rows):
    model, config = oracle.small_model()
    learner = Learner(model, config)
    values = torch.tensor(kinds[0] + kinds[1])
    learner.remember({"rows": values, "reconstructed": torch.arange(4) < 2})
    assert 1 <= learner.reconstructed(rows) <= rows - 1
    other = oracle.small_model(loss="cross_entropy")[1]
    assert Learner(model, other).reconstructed(rows) == 0


def test_the_bound_is_unbiased_for_any_split():
    model, config = oracle.small_model(sizes=(32, 1, 4))
    batch = {"source": torch.full((48, 1), 3), "canvas": torch.tensor([[5, 11]]).expand(48, 2), "mask": None}
    found = {}
    for k, split in enumerate((1, 12, 47)):
        values = []
        for step in range(160):
            noise = draw(config, 48, (48, 2, oracle.EMBED), 1000 * k + step, 0, 1, split, "cpu")
            with torch.no_grad():
                values.append(losses.vlb(model, config, batch, noise)["loss"].double())
        values = torch.stack(values)
        found[split] = values.mean(), values.std() / math.sqrt(len(values))
    for split in (1, 47):
        (mean, error), (other, other_error) = found[12], found[split]
        assert abs(mean - other) < 3.5 * math.hypot(error, other_error), split
        assert other_error < 0.15 * mean


def test_a_pass_of_one_row_is_refused_where_two_kinds_are_needed():
    for sizes in ({"batch_size": 1}, {"batch_size": 4, "accumulation": 4}):
        with pytest.raises(InputError, match="at least 2 rows"):
            Config(loss="vlb", **sizes)
        Config(loss="cross_entropy", **sizes)


# --- what is random ---


def settings(**more):
    return Config(**{"self_conditioning": 0.25, "loss": "vlb", **more})


def test_a_draw_is_a_function_of_seed_step_and_part():
    before = torch.get_rng_state()

    def one(seed=3, step=5, part=1):
        return draw(settings(seed=seed), 12, (12, 4, 16), step, part, 4, 3, "cpu")

    first, again = one(), one()
    assert torch.equal(torch.get_rng_state(), before), "nobody else's random numbers are used up"
    assert torch.equal(first.t, again.t) and torch.equal(first.noise, again.noise) and first.own == again.own
    for other in (one(seed=4), one(step=6), one(part=2), one(part=0)):
        assert not torch.equal(first.t, other.t)
        assert (first.noise - other.noise).abs().min() > 0, "no number comes again"


@pytest.mark.parametrize("rows, parts, kept", [(8, 1, 2), (16, 4, 5), (2, 2, 1), (7, 3, 6)])
def test_a_draw_spreads_the_times_of_a_step_and_its_self_conditioned_rows(rows, parts, kept):
    times, own = [], 0
    for part in range(parts):
        found = draw(settings(), rows, (rows, 4, 16), 9, part, parts, kept, "cpu")
        assert found.t.shape == (rows,) and found.t.dtype == torch.float64
        assert (found.t == 0).sum() == kept and found.noise.shape == (rows, 4, 16)
        assert abs((rows - found.own) - rows * 0.25) < 1
        times.append(found.t[found.t > 0])
        own += rows - found.own
    n = parts * (rows - kept)
    gaps = torch.cat(times).sort()[0].diff()
    torch.testing.assert_close(gaps, torch.full((n - 1,), 1 / n, dtype=torch.float64), rtol=0, atol=1e-12)


def test_the_number_of_self_conditioned_rows():
    for share, expected in ((0.0, 0), (0.5, 8), (1.0, 16)):
        for step in range(5):
            found = draw(settings(self_conditioning=share), 16, (16, 4, 16), step, 0, 1, 4, "cpu")
            assert 16 - found.own == expected


@pytest.mark.parametrize("rows", [2, 4, 9])
def test_a_row_is_self_conditioned_whatever_its_time_and_kind(rows):
    """Over many steps the times of such rows fill [0, 1] evenly, and a quarter of each kind is of them."""
    own, every = [], []
    for step in range(6000 // rows):
        found = draw(settings(), rows, (rows, 1, 1), step, 0, 1, 1, "cpu")
        own.append(found.t[found.own :])
        every.append(found.t)
    own, every = torch.cat(own), torch.cat(every)
    assert (own == 0).sum() / (every == 0).sum() == pytest.approx(0.25, abs=0.05)
    share = torch.histc(own[own > 0], 8, 0, 1) / torch.histc(every[every > 0], 8, 0, 1)
    assert share.min() > 0.15 and share.max() < 0.35


def test_noise_is_standard_normal_or_uniform():
    noise = draw(settings(), 64, (64, 20, 16), 0, 0, 1, 8, "cpu").noise
    assert abs(noise.mean()) < 0.03 and noise.std() == pytest.approx(1, abs=0.03)
    uniform = draw(settings(loss="masked"), 64, (64, 20), 0, 0, 1, 0, "cpu").noise
    assert uniform.min() >= 0 and uniform.max() < 1 and uniform.mean() == pytest.approx(0.5, abs=0.03)


# --- the other losses ---


def hidden_by(noise):
    """Which positions masked diffusion hides."""
    rows = zip(noise.t.tolist(), noise.noise.tolist(), strict=True)
    return torch.tensor([oracle.hidden_of(t, row) for t, row in rows])


@pytest.mark.parametrize("scope", ["target", "all"])
def test_cross_entropy_is_the_formulas(scope):
    model, config = oracle.small_model(loss="cross_entropy", loss_scope=scope)
    batch = batch_of()
    noise = drawn(batch, [0.05, *TIMES[1:4], 0.3, 0.7], scope=scope)
    found = losses.diffused_cross_entropy(model, config, batch, noise)
    w = oracle.weights(model)
    expected = oracle.cross_entropy(w, rows_of(batch, noise, scope), oracle.HEADS, **HOW)
    assert found["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert found["rows"].mean().item() == pytest.approx(expected.item(), rel=1e-5)
    ours, theirs = gradients(model, found["loss"]), torch.autograd.grad(expected, list(w.values()), allow_unused=True)
    theirs = {n: torch.zeros_like(w[n]) if g is None else g for n, g in zip(w, theirs, strict=True)}
    close_gradients(ours, theirs)
    assert all((ours[name] == 0).all() for name in ours if name.startswith(("gamma_bounds", "noise_schedule")))
    assert losses.named(found) == {}


def test_masked_diffusion_is_the_formula():
    model, config = oracle.small_model(loss="masked")
    batch, told = batch_of(), []
    noise = Draw(torch.tensor([0.2, 0.4, 0.5, 0.7, 0.9, 1.0]), torch.rand(6, CANVAS), 6)
    guess = model.guess
    model.guess = lambda z, gamma, *given, **named: told.append(gamma) or guess(z, gamma, *given, **named)
    found = losses.masked(model, config, batch, noise)
    gamma = told[0].unique().item()  # one noise level for all
    w = oracle.weights(model)
    expected = oracle.masked(w, rows_of(batch, noise), oracle.HEADS, gamma, **HOW)
    assert found["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    ours, theirs = gradients(model, found["loss"]), torch.autograd.grad(expected, list(w.values()), allow_unused=True)
    theirs = {n: torch.zeros_like(w[n]) if g is None else g for n, g in zip(w, theirs, strict=True)}
    close_gradients(ours, theirs)


def test_masked_tokens_are_hidden_from_the_model():
    """What is masked is nowhere in the input: another token there changes no logit, and no loss but its own."""
    model, config = oracle.small_model(loss="masked")
    batch = batch_of()
    noise = Draw(torch.full((6,), 0.5, dtype=torch.float64), torch.rand(6, CANVAS), 6)
    hidden, seen = hidden_by(noise), []
    model.model.output_linear.register_forward_hook(lambda module, given, out: seen.append(out))
    other = (batch["canvas"] + 1) % oracle.VOCABULARY
    for ids in (batch["canvas"], torch.where(hidden, other, batch["canvas"]), other):
        losses.masked(model, config, batch | {"canvas": ids}, noise)
    assert torch.equal(seen[0], seen[1]) and not torch.allclose(seen[0], seen[2])


def test_masks_of_all_sizes_make_the_bound():
    """Where t is even over (0, 1], every number of hidden tokens comes equally often, from 1 to all."""
    model, config = oracle.small_model(loss="masked")
    batch = batch_of()
    for t in (0.0, 1.0):
        noise = Draw(torch.full((6,), t, dtype=torch.float64), torch.rand(6, CANVAS), 6)
        assert losses.masked(model, config, batch, noise)["loss"].isfinite()
    sizes = [sum(oracle.hidden_of((i + 0.5) / (7 * CANVAS), [*range(CANVAS)])) for i in range(7 * CANVAS)]
    assert [sizes.count(k) for k in range(CANVAS + 1)] == [0] + [7] * CANVAS


def test_rows_of_a_batch_are_as_wide_as_its_widest_and_nothing_is_changed():
    encoded = [{"source": [1] * a, "target": [2] * b} for a, b in ((3, 2), (5, 1), (1, 4))]
    copy = [{name: list(ids) for name, ids in e.items()} for e in encoded]
    rows = sequences.Rows(encoded, 0)
    found = rows.batch(torch.tensor([2, 0]))
    assert found["source"].tolist() == [[0, 0, 1], [1, 1, 1]] and found["canvas"].tolist() == [[2] * 4, [2, 2, 0, 0]]
    assert found["mask"].tolist() == [[False, False, True, *[True] * 4], [True] * 7]
    assert rows.batch(torch.tensor([1]))["mask"] is None
    found["source"].fill_(9)
    assert encoded == copy and 9 not in rows.source
