"""Weights from outside and in training: published files, saved models, groups of weights, clipping, running means."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from lib.dot import model as plaid
from lib.dot import sequences, trainer, weights
from lib.dot.config import Config
from lib.errors import InputError
from tests.oracles import dot as oracle

SIZES = 128, 2, 2  # width, blocks, heads: published models have heads of 64
FROM_FILES = Config(loss="vlb", places=False, device="cpu", source_scale=1.0)


def published(blocks=2, width=128, vocabulary=oracle.VOCABULARY):
    """Names and shapes of the published weights by file, at other sizes."""
    model = {
        "input_linear.weight": (width, 16),
        "selfcond_linear.weight": (width, 16),
        "gamma_linear.weight": (width, 64),
    }
    for i in range(blocks):
        part = f"blocks.{i}."
        model |= {part + "rmsnorm1.weight": (width,), part + "rmsnorm2.weight": (width,)}
        model |= {part + "attn_qkv.weight": (3 * width, width), part + "attn_out.weight": (width, width)}
        model |= {part + "mlp.fc1.weight": (4 * width, width), part + "mlp.fc2.weight": (width, 4 * width)}
    model |= {"output_norm.weight": (width,), "output_linear.weight": (vocabulary, width)}
    return {
        "embedding_matrix": {"matrix": (vocabulary, 16)},
        "noise_schedule": {"W1": (1024, 1), "b1": (1024,), "W2": (1, 1024)},
        "gamma_bounds": {"gamma_0": (), "gamma_1": ()},
        "model": model | {"output_linear.bias": (vocabulary,)},
    }


def random_files(seed=0):
    """Such tensors, of decent sizes."""
    draw = torch.Generator().manual_seed(seed)
    files = {
        file: {
            name: torch.randn(shape, generator=draw) * (shape[-1] if len(shape) > 1 else 4) ** -0.5
            for name, shape in of.items()
        }
        for file, of in published().items()
    }
    files["gamma_bounds"] = {"gamma_0": torch.tensor(-3.3), "gamma_1": torch.tensor(6.1)}
    return files


def written(folder, files, legacy=False):
    folder.mkdir(exist_ok=True)
    for name, state in files.items():
        torch.save(state, folder / f"{name}.pt", _use_new_zipfile_serialization=not legacy)
    return folder


def refused(folder, *said, vocabulary=oracle.VOCABULARY, config=FROM_FILES):
    with pytest.raises(InputError) as error:
        weights.load(folder, config, vocabulary)
    for part in said:
        assert part in str(error.value), str(error.value)


# --- published files ---


def test_names_and_shapes_are_the_published_ones():
    model = plaid.Plaid(oracle.VOCABULARY, FROM_FILES, SIZES)
    for file, expected in published().items():
        found = {name: tuple(value.shape) for name, value in getattr(model, file).state_dict().items()}
        assert found == expected
    assert {name.split(".")[0] for name in model.state_dict()} == set(published())


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("rotary", [False, True])
def test_published_files_give_the_model_that_wrote_them(tmp_path, legacy, rotary):
    files = random_files()
    if rotary:
        files["model"]["rotary_emb.inv_freq"] = 10_000 ** -(torch.arange(0, 64, 2) / 64)
    model = weights.load(written(tmp_path / "published", files, legacy), FROM_FILES, oracle.VOCABULARY)
    assert model.sizes == SIZES
    for name, value in model.state_dict().items():
        file, rest = name.split(".", 1)
        assert torch.equal(value, files[file][rest])
    w = {f"{file}.{name}": value.double() for file, state in files.items() for name, value in state.items()}
    draw = torch.Generator().manual_seed(0)
    z, before = (torch.randn(1, 3, 16, generator=draw) for _ in range(2))
    gamma = model.gamma(torch.tensor([0.4], dtype=torch.float64))[0]
    assert gamma.item() == pytest.approx(oracle.gamma_of(w, torch.tensor(0.4, dtype=torch.float64)).item(), rel=1e-12)
    with torch.no_grad():
        logits, x_hat = model.guess(z, gamma, model.embedding_matrix()[torch.tensor([[3, 1]])], before)
    theirs = oracle.guess(w, z[0].double(), gamma[0], [3, 1], before[0].double(), 2, source_scale=1.0)
    for one, other in zip((logits[0], x_hat[0]), theirs, strict=True):
        torch.testing.assert_close(one, other.float(), rtol=1e-5, atol=1e-5)


EVERY = [(file, name) for file, names in published().items() for name in names]
SOME = [pair for pair in EVERY if "blocks.0" not in pair[1]]


@pytest.mark.parametrize("file, name", SOME)
def test_a_missing_weight_is_named(tmp_path, file, name):
    files = random_files()
    del files[file][name]
    refused(written(tmp_path / "x", files), f"{file}.pt", name)


@pytest.mark.parametrize("file", ["embedding_matrix", "noise_schedule", "gamma_bounds", "model"])
def test_an_unknown_weight_is_named(tmp_path, file):
    files = random_files()
    files[file]["blocks.1.extra"] = torch.zeros(2)
    refused(written(tmp_path / "x", files), f"{file}.pt", "unknown", "blocks.1.extra")


@pytest.mark.parametrize("file, name", SOME)
def test_a_weight_of_another_shape_is_named(tmp_path, file, name):
    files = random_files()
    old = files[file][name]
    files[file][name] = torch.zeros([n + 1 for n in old.shape] or [1])
    if name in ("input_linear.weight", "matrix"):  # these tell the sizes
        refused(written(tmp_path / "x", files), str(tmp_path))
    else:
        refused(written(tmp_path / "x", files), f"{file}.pt", name, str(tuple(old.shape)))


@pytest.mark.parametrize("file", ["embedding_matrix", "noise_schedule", "gamma_bounds", "model"])
def test_an_absent_or_cut_file_is_named(tmp_path, file):
    folder = written(tmp_path / "x", random_files())
    path = folder / f"{file}.pt"
    whole = path.read_bytes()
    for kept in (0, 1, 100, len(whole) // 2, len(whole) - 10):
        path.write_bytes(whole[:kept])
        refused(folder, f"{file}.pt")
    path.unlink()
    refused(folder, f"{file}.pt", "Cannot read")
    path.mkdir()
    refused(folder, f"{file}.pt")
    shutil.rmtree(folder)
    refused(folder, str(folder))


@pytest.mark.parametrize("legacy", [False, True])
def test_a_broken_file_is_refused_wherever_it_is_cut_or_changed(tmp_path, legacy):
    """Or read: a changed number is a number. Nothing else is ever raised."""
    path = tmp_path / "x.pt"
    torch.save({"W1": torch.zeros(3, 1), "b1": torch.zeros(3)}, path, _use_new_zipfile_serialization=not legacy)
    whole, read = path.read_bytes(), 0
    for k in range(120):
        place = k * len(whole) // 120
        for data in (whole[:place], whole[:place] + bytes([whole[place] ^ 0x5A]) + whole[place + 1 :]):
            path.write_bytes(data)
            try:
                read += bool(weights.read(path))
            except InputError as error:
                assert str(path) in str(error)
    assert read < 150


@pytest.mark.parametrize("state", [[torch.zeros(2)], torch.zeros(2), {"W1": 3.0}, {1: torch.zeros(2)}, "W1", None, {}])
def test_anything_but_a_table_of_tensors_is_refused(tmp_path, state):
    for file in ("noise_schedule", "model"):
        refused(written(tmp_path / file, random_files() | {file: state}), f"{file}.pt")


class Malicious:
    """Pickled, it is a call that writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("file", ["embedding_matrix", "model"])
def test_a_pickle_that_would_run_something_is_refused_and_does_not_run_it(tmp_path, file, legacy):
    trap, files = tmp_path / "sprung", random_files()
    for state in (files[file] | {"x": Malicious(trap)}, Malicious(trap)):
        folder = written(tmp_path / "x", files | {file: state}, legacy)
        refused(folder, f"{file}.pt", "no file of tensors")
        (folder / f"{file}.pt").write_bytes(pickle.dumps(state))
        refused(folder, f"{file}.pt")
        assert not trap.exists()
    pickle.loads(pickle.dumps(Malicious(trap)))
    assert trap.exists(), "the trap is a real one"


def test_sizes_that_do_not_fit_are_refused(tmp_path):
    folder = written(tmp_path / "x", random_files())
    refused(folder, "19 embeddings", "20 tokens", vocabulary=20)
    refused(folder, "width 16", "embed_dim", config=Config(places=False, device="cpu", embed_dim=8, source_scale=1.0))
    files = random_files()
    files["model"] = {name: value for name, value in files["model"].items() if not name.startswith("blocks")}
    refused(written(folder, files), "model.pt", "0 blocks")
    files = random_files()
    files["model"]["input_linear.weight"] = torch.zeros(100, 16)
    refused(written(folder, files), "model.pt", "width 100")


# --- a saved model ---


@pytest.fixture
def saved(tmp_path, chains):
    config = Config(device="cpu", places=False, source_scale=1.0)
    tokenizer = sequences.tokenizer_for(config, chains)
    model, _ = oracle.small_model(vocabulary=len(tokenizer))
    plaid.save(model, tokenizer, config, 9, tmp_path / "model")
    return tmp_path / "model", model, config


def test_a_saved_model_comes_back(saved, chains):
    folder, model, config = saved
    found, tokenizer, settings, canvas = plaid.load(folder, "cpu")
    assert settings == config and canvas == 9 and found.sizes == oracle.SIZES and not found.training
    assert all(torch.equal(value, found.state_dict()[name]) for name, value in model.state_dict().items())
    assert (
        tokenizer(chains[0].question)["input_ids"]
        == sequences.tokenizer_for(config, chains)(chains[0].question)["input_ids"]
    )


@pytest.mark.parametrize("file", [plaid.WEIGHTS, plaid.SETTINGS])
def test_a_broken_saved_model_is_refused(saved, file):
    folder, path = saved[0], saved[0] / file
    whole = path.read_bytes()
    for data in (b"", whole[:-5], whole[: len(whole) // 2], b"\x00" + whole[1:]):
        path.write_bytes(data)
        with pytest.raises(InputError, match=str(folder)):
            plaid.load(folder, "cpu")
    path.unlink()
    with pytest.raises(InputError, match=str(folder)):
        plaid.load(folder, "cpu")


def test_weights_and_settings_that_disagree_are_refused(saved):
    folder = saved[0]
    path = folder / plaid.SETTINGS
    settings = json.loads(path.read_text())
    for changed in ({"vocabulary": settings["vocabulary"] + 1}, {"sizes": [32, 3, 4]}, {"config": {"nothing": 1}}):
        path.write_text(json.dumps(settings | changed))
        with pytest.raises(InputError, match=str(folder)):
            plaid.load(folder, "cpu")


# --- groups of weights ---


@pytest.mark.parametrize("width, share", [(32, 8.0), (256, 1.0), (512, 0.5)])
def test_rates_go_by_width_for_matrices_between_hidden_layers_alone(width, share):
    config = Config(places=False, learning_rate=3e-4, embedding_rate=1e-2)
    model = plaid.Plaid(oracle.VOCABULARY, config, (width, 1, 4))
    rates = {id(w): group["lr"] for group in trainer.groups(model, config) for w in group["params"]}
    assert len(rates) == len(list(model.parameters())) == sum(len(g["params"]) for g in trainer.groups(model, config))
    for name, weight in model.named_parameters():
        if not name.startswith("model."):
            expected = 1e-2
        elif "blocks" in name and weight.dim() == 2:
            expected = 3e-4 * share
        else:
            expected = 3e-4
        assert rates[id(weight)] == pytest.approx(expected), name


@pytest.mark.parametrize("learning_rate", [1e-5, 3e-4, 0.3])
@pytest.mark.parametrize("step", [3, 30, 70])
def test_decay_takes_the_same_off_whatever_the_rate(learning_rate, step):
    config = Config(
        places=False,
        learning_rate=learning_rate,
        embedding_rate=learning_rate * 7,
        weight_decay=0.02,
        bounds_decay=0.1,
        settle_steps=5,
        warmup_steps=40,
        steps=100,
    )
    model, _ = oracle.small_model()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    optimizer = AdamW(trainer.groups(model, config), betas=(0.9, 0.99))
    scheduler = LambdaLR(optimizer, lambda k: trainer.rate_factor(config, k + step))
    assert scheduler.get_last_lr()[0] == optimizer.param_groups[0]["lr"]
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    factor = {3: 0.0, 30: 30 / 40 * 0.7, 70: 0.3}[step]
    for name, weight in model.named_parameters():
        decay = 0.02 if name.startswith("model.") else 0.1 if name.startswith("gamma_bounds") else 0.0
        torch.testing.assert_close(weight.detach(), before[name] * (1 - decay * factor), rtol=1e-6, atol=1e-7)


def test_the_rate_waits_rises_and_falls():
    config = Config(settle_steps=4, warmup_steps=10, steps=50)
    found = [trainer.rate_factor(config, step) for step in range(51)]
    assert found[:4] == [0] * 4 and found[50] == 0 and min(found[4:50]) > 0
    for step in range(4, 10):
        assert found[step] == pytest.approx(step / 10 * (1 - step / 50))
    for step in range(10, 51):
        assert found[step] == pytest.approx(1 - step / 50)
    assert trainer.rate_factor(Config(settle_steps=0, warmup_steps=0, steps=50), 0) == 1


# --- clipping ---


def with_norm(learner, size):
    """Give all gradients together this norm."""
    parameters = list(learner.model.parameters())
    draw = torch.Generator().manual_seed(0)
    for weight in parameters:
        weight.grad = torch.randn(weight.shape, generator=draw)
    whole = torch.stack([weight.grad.norm() for weight in parameters]).norm()
    for weight in parameters:
        weight.grad *= size / whole


def norm_of(learner):
    return torch.stack([weight.grad.norm() for weight in learner.model.parameters()]).norm().item()


def test_gradients_are_clipped_to_the_quantile_of_their_norms_but_not_at_first():
    model, config = oracle.small_model(clip_quantile=0.9)
    learner, sizes = trainer.Learner(model, config), [float(1 + (7 * i) % 20) for i in range(20)]
    for step, size in enumerate(sizes):
        with_norm(learner, 1000 * size if step == 19 else size)
        known = norm_of(learner)
        assert trainer.clip(learner, step) == pytest.approx(known, rel=1e-4)
        assert norm_of(learner) == pytest.approx(known, rel=1e-4), "fewer than 20 norms are known: never"
    sizes[19] *= 1000
    for step in range(20, 30):
        with_norm(learner, 500.0)
        limit = torch.quantile(torch.tensor(sizes), 0.9).item()
        assert trainer.clip(learner, step) == pytest.approx(500, rel=1e-4), "what it was is what is remembered"
        assert norm_of(learner) == pytest.approx(min(500, limit), rel=1e-4)
        sizes.append(500.0)
    with_norm(learner, 0.5)
    trainer.clip(learner, 30)
    assert norm_of(learner) == pytest.approx(0.5, rel=1e-4), "small ones stay"


def test_old_norms_are_forgotten_and_broken_ones_never_kept():
    model, config = oracle.small_model(clip_quantile=0.5)
    learner = trainer.Learner(model, config)
    learner.norms.fill_(1e6)
    for step in range(trainer.NORMS, trainer.NORMS + trainer.NORMS // 2 + 1):
        learner.norms[step % trainer.NORMS] = 3.0  # as if so many had been
    with_norm(learner, 50.0)
    trainer.clip(learner, 5)
    assert norm_of(learner) == pytest.approx(3.0, rel=1e-4)
    with_norm(learner, 1.0)
    next(learner.model.parameters()).grad.fill_(torch.inf)
    trainer.clip(learner, 6)
    assert learner.norms.isfinite().all()


def test_a_quantile_of_0_never_clips():
    model, config = oracle.small_model(clip_quantile=0.0)
    learner = trainer.Learner(model, config)
    for step in range(40):
        with_norm(learner, 10.0**step if step < 9 else 1.0)
        known = norm_of(learner)
        trainer.clip(learner, step)
        assert norm_of(learner) == pytest.approx(known, rel=1e-4)


# --- running means ---


def test_without_a_running_mean_the_weights_themselves_are_used():
    model, config = oracle.small_model(ema=0.0)
    learner = trainer.Learner(model, config)
    assert learner.best() is model and not any("mean" in name for name in learner.state_dict())


def test_a_running_mean_is_one_and_leaves_the_weights_alone():
    model, config = oracle.small_model(ema=0.75)
    learner = trainer.Learner(model, config)
    callback = trainer.DotCallback(learner, lambda found: 0.0, [])
    state = type("State", (), {"global_step": 1})()
    expected = None
    for step in range(6):
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(step)))
        now = {name: weight.detach().clone() for name, weight in model.named_parameters()}
        callback.on_step_end(None, state, None)
        expected = {n: w if expected is None else 0.75 * expected[n] + 0.25 * w for n, w in now.items()}
        assert all(torch.equal(weight, now[name]) for name, weight in model.named_parameters())
    best = learner.best()
    assert best is not model
    for name, weight in best.named_parameters():
        assert not weight.requires_grad
        torch.testing.assert_close(weight, expected[name], rtol=1e-5, atol=1e-5)
