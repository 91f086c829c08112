"""Training a diffusion model: what a step does, interrupted runs, going on from a directory, what is refused."""

import copy
import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lib.dot import config as settings
from lib.dot import generation, losses, repair, sequences, trainer, training
from lib.dot import model as plaid
from lib.dot.config import Config, check_multi_pass, check_sizes
from lib.errors import InputError
from lib.problems import make_problem, write_jsonl

# 20 problems in batches of 8: three steps an epoch, the last of them short; a checkpoint every 4 steps.
STEPS = Config(
    model="tiny",
    loss="vlb",
    steps=24,
    batch_size=8,
    check_steps=4,
    learning_rate=2e-3,
    embedding_rate=1e-2,
    warmup_steps=4,
    settle_steps=2,
    prior_steps=4,
    clip_quantile=0.5,
    valid_problems=4,
    max_length=64,
    device="cpu",
)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(settings.PRESETS, "tiny", (32, 1, 4))


@pytest.fixture
def train(short_chains):
    return short_chains[12:32]


@pytest.fixture
def valid(short_chains):
    return short_chains[:4]


def read_curve(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def weights(directory):
    return {path.name: path.read_bytes() for path in (directory / "model").glob("*.safetensors")}


def same_end(one, two):
    assert weights(one), "no weights were saved"
    assert weights(one) == weights(two)
    assert (one / "metrics.jsonl").read_text() == (two / "metrics.jsonl").read_text()


# --- it learns ---


@pytest.mark.parametrize("loss", ["cross_entropy", "masked"])
def test_chains_shown_often_are_learned_by_heart(loss, denoiser, short_chains):
    """Chance is 1 in 5."""
    model, tokenizer, trained, canvas = plaid.load(denoiser(loss), "cpu")
    found = [row["loss"] for row in read_curve(denoiser(loss).parent) if "loss" in row]
    assert found[-1] < 0.2 * found[0]
    assert trained.loss == loss and canvas == 7, "two results, each with its line's end, marker, answer, end"
    for steps in (1, 4, 9):
        how = replace(trained, check_with=steps)
        assert generation.share_right(model, tokenizer, how, canvas, short_chains) > 0.85


def test_the_bound_teaches_too(monkeypatch, tmp_path):
    """More slowly, so there is only to copy."""
    problems = [make_problem(f"v{a} v{b} ?", [f"r{a}"], str(b), "pairs") for a in range(5) for b in range(5)]
    monkeypatch.setitem(settings.PRESETS, "tiny", (64, 2, 4))
    config = replace(STEPS, steps=130, batch_size=25, check_steps=130, clip_quantile=0.95, learning_rate=3e-3)
    config = replace(config, valid_problems=25, warmup_steps=20, settle_steps=10, prior_steps=20)
    training.train(config, problems, problems, tmp_path)
    curve = read_curve(tmp_path)
    found = [row["loss"] for row in curve if "loss" in row]
    assert found[-1] < 0.2 * found[0]
    (right,) = [row["right"] for row in curve if "right" in row]
    assert right > 0.9
    assert {path.name for path in tmp_path.iterdir()} == {"model", "metrics.jsonl", "config.json"}
    assert Config(**json.loads((tmp_path / "config.json").read_text())) == config
    model, tokenizer, trained, canvas = plaid.load(tmp_path / "model", "cpu")
    assert trained == config and canvas == 5
    assert generation.share_right(model, tokenizer, trained, canvas, problems) == right, "saved is what was looked at"


def test_the_curve_tells_the_parts_of_the_bound_that_it_adds_up(train, valid, tmp_path):
    training.train(STEPS, train, valid, tmp_path)
    curve = read_curve(tmp_path)
    assert [row["step"] for row in curve if "right" in row] == [4, 8, 12, 16, 20, 24]
    told = [row for row in curve if "loss" in row]
    assert [row["step"] for row in told] == [6, 12, 18, 24]
    for row in told:
        assert set(row) == {"step", "loss", "grad_norm", *losses.TERMS} and row["grad_norm"] > 0
        assert row["loss"] == pytest.approx(sum(row[term] for term in losses.TERMS), rel=0.01)
    training.train(replace(STEPS, loss="cross_entropy", valid_problems=0), train, valid, tmp_path / "other")
    assert all(set(row) == {"step", "loss", "grad_norm"} for row in read_curve(tmp_path / "other")), "nobody was asked"


# --- a step ---


def factor_of(config, step):
    """What rates are multiplied by: nothing, then up along one line and down along another."""
    if step < config.settle_steps:
        return 0.0
    return min(1, step / config.warmup_steps) * (1 - step / config.steps)


class Split:
    """How many rows are reconstructed, from running means of a loss and its square."""

    def __init__(self):
        self.sums = {kind: [0.0, 0.0, 0.0] for kind in (True, False)}

    def rows(self, n):
        if any(weight == 0 for weight, _, _ in self.sums.values()):
            return max(1, n // 8)
        deviations = {k: max(0.0, b / w - (a / w) ** 2) ** 0.5 for k, (w, a, b) in self.sums.items()}
        return min(n - 1, max(1, round(n * deviations[True] / sum(deviations.values()))))

    def remember(self, found):
        for kind in (True, False):
            here = found["rows"][found["reconstructed"] == kind].double()
            if len(here):
                new = (1.0, here.mean().item(), here.square().mean().item())
                self.sums[kind] = [0.997 * old + 0.003 * more for old, more in zip(self.sums[kind], new, strict=True)]


def plainly(config, model, fed):
    """(weights, their running mean) after a loop that does what the settings say; fed: the batches of each step."""
    rates = {}  # of each weight: its rate, and what a step takes off it
    for name, weight in model.named_parameters():
        if name.startswith("model."):
            inside = "blocks" in name and weight.dim() == 2
            rate = config.learning_rate * (256 / model.sizes[0] if inside else 1)
            rates[weight] = rate, config.weight_decay
        else:
            rates[weight] = config.embedding_rate, config.bounds_decay if name.startswith("gamma_bounds") else 0.0
    betas = config.adam_beta1, config.adam_beta2
    groups = [{"params": [w], "lr": rate, "weight_decay": 0.0} for w, (rate, _) in rates.items()]
    adam = torch.optim.AdamW(groups, betas=betas, foreach=False)
    split, norms, mean = Split(), [], None
    for step, passes in enumerate(fed):
        adam.zero_grad()
        for part, batch in enumerate(passes):
            rows, n = batch["canvas"].shape
            shape = (rows, n) if config.loss == "masked" else (rows, n, config.embed_dim)
            kept = split.rows(rows) if config.loss == "vlb" else 0
            drawn = losses.draw(config, rows, shape, step, part, len(passes), kept, "cpu")
            found = losses.LOSSES[config.loss](model, config, batch, drawn, min(1, step / config.prior_steps))
            (found["loss"] / len(passes)).backward()
            if config.loss == "vlb":
                split.remember(found)
        moved = [w for w in rates if w.grad is not None]
        norm = torch.stack([w.grad.norm() for w in moved]).norm()
        if len(norms) >= 20:
            limit = torch.tensor(norms).quantile(config.clip_quantile)
            for w in moved:
                w.grad *= min(1, limit / norm)
        norms.append(norm.item())
        for group, (w, (rate, decay)) in zip(adam.param_groups, rates.items(), strict=True):
            group["lr"] = rate * factor_of(config, step)
            if w.grad is not None:
                w.data *= 1 - decay * factor_of(config, step)
        adam.step()
        now = {name: weight.detach().clone() for name, weight in model.named_parameters()}
        mean = now if mean is None else {k: config.ema * mean[k] + (1 - config.ema) * now[k] for k in now}
    return now, mean, norms


@pytest.mark.parametrize(
    "change", [{}, {"accumulation": 2, "ema": 0.8}, {"loss": "cross_entropy"}, {"loss": "masked", "ema": 0.5}]
)
def test_steps_are_those_of_a_plain_loop(change, train, tmp_path):
    config = replace(
        STEPS, steps=28, valid_problems=0, weight_decay=1e-2, bounds_decay=1e-2, clip_quantile=0.1, **change
    )
    model, tokenizer = training.load(config, train)
    rows = sequences.Rows(sequences.encode(tokenizer, train), tokenizer.pad_token_id)
    made, learner = trainer.make_trainer(config, copy.deepcopy(model), rows, lambda learned: None, tmp_path)
    fed = [[] for _ in range(28)]

    def keep(module, given, batch):
        assert batch["part"] == len(fed[batch["step"]])
        fed[batch["step"]].append({name: batch[name] for name in ("source", "canvas", "mask")})

    learner.register_forward_pre_hook(keep, with_kwargs=True)
    made.train()
    assert {len(passes) for passes in fed} == ({1, 2} if config.accumulation == 2 else {1}), "the last of 20 is alone"
    assert {len(batch["canvas"]) for passes in fed for batch in passes} == ({4, 8} if config.accumulation == 1 else {4})
    now, mean, norms = plainly(config, model, fed)
    ours, best = dict(learner.model.named_parameters()), dict(learner.best().named_parameters())
    moved = 0
    for name, expected in now.items():
        torch.testing.assert_close(ours[name].detach(), expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(best[name].detach(), mean[name] if config.ema else expected, rtol=0, atol=1e-6)
        moved += not torch.equal(expected, dict(training.load(config, train)[0].named_parameters())[name])
    assert moved > 10
    torch.testing.assert_close(learner.norms[:28], torch.tensor(norms), rtol=1e-4, atol=1e-6)
    assert sum(norm > sorted(norms[:i])[i // 8] for i, norm in enumerate(norms) if i >= 20) > 2, "none was clipped"


@pytest.mark.parametrize("loss", ["vlb", "cross_entropy", "masked"])
def test_two_halves_have_the_times_of_one_whole(loss):
    """Whatever is accumulated, a step's times lie evenly, other noise; without reconstruction they are the same."""
    config, found = replace(STEPS, loss=loss), {}
    for parts in (1, 2):
        rows = 8 // parts
        kept = 1 if loss == "vlb" else 0
        drawn = [losses.draw(config, rows, (rows, 3, 16), 5, part, parts, kept, "cpu") for part in range(parts)]
        found[parts] = torch.cat([d.t for d in drawn]).sort()[0]
    if loss == "vlb":
        assert [(t == 0).sum() for t in found.values()] == [1, 2]
        for t in found.values():
            assert t[t > 0].diff().std() < 1e-12 and t.max() > 0.8
    else:
        torch.testing.assert_close(found[1], found[2], rtol=0, atol=1e-15)


@pytest.mark.parametrize("loss", ["vlb", "masked"])
def test_asking_in_between_does_not_disturb_training(loss, train, valid, tmp_path):
    config = replace(STEPS, loss=loss, steps=12)
    for check_steps in (1, 1000):
        training.train(replace(config, check_steps=check_steps), train, valid, tmp_path / str(check_steps))
    assert weights(tmp_path / "1") == weights(tmp_path / "1000")
    often, seldom = (read_curve(tmp_path / name) for name in ("1", "1000"))
    assert [row["step"] for row in often if "right" in row] == list(range(1, 13))
    assert [row for row in often if "loss" in row] == [row for row in seldom if "loss" in row]


def test_the_last_problem_may_stand_alone_in_its_batch(train, tmp_path):
    """A pass of one row has no second kind of row: it is of one of the two, and nothing breaks."""
    training.train(replace(STEPS, steps=9, valid_problems=0), train[:17], [], tmp_path)
    assert all(torch.isfinite(torch.tensor(list(row.values()))).all() for row in read_curve(tmp_path))
    assert all(value.isfinite().all() for value in load_file(tmp_path / "model" / plaid.WEIGHTS).values())


# --- interrupted runs ---


# Each training runs in a process of its own, which kills itself: right after a checkpoint, or with one half made.
KILLED = """
import json, os, signal, sys
from lib import problems, sft, trainers
from lib.dot import config, training
config.PRESETS["tiny"] = (32, 1, 4)
train, valid, *runs = sys.argv[1:]
train, valid, real = problems.read_jsonl(train), problems.read_jsonl(valid), trainers.mark_complete
for run in runs:
    settings, last, marked, out_dir = json.loads(run)
    def mark(checkpoint):
        here = checkpoint.name == f"checkpoint-{last}"
        if not here or marked:
            real(checkpoint)
        if here:
            os.kill(os.getpid(), signal.SIGKILL)
    child = os.fork()
    if not child:
        trainers.mark_complete = mark
        training.train(config.Config(**settings), train, valid, out_dir)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL, "was not killed"
"""
RUNS = {  # (settings, the checkpoint at which it is killed, was that one complete?)
    "the bound, a running mean, many reconstructed": (dict(ema=0.9, batch_size=20, gamma_0=0.0), 12, True),
    "the bound, accumulated, the checkpoint half made": (dict(ema=0.9, accumulation=2), 12, False),
    "masked, a running mean": (dict(loss="masked", ema=0.9), 18, True),
}


@pytest.fixture(scope="module")
def killed(short_chains, tmp_path_factory):
    """Where each of RUNS was left when it was killed."""
    root, parts = tmp_path_factory.mktemp("killed"), (short_chains[12:32], short_chains[:4])
    files = [str(write_jsonl(root / f"{i}.jsonl", part)) for i, part in enumerate(parts)]
    commands = [
        json.dumps([asdict(replace(STEPS, **change)), last, marked, str(root / name)])
        for name, (change, last, marked) in RUNS.items()
    ]
    home = Path(training.__file__).parents[2]
    command, environment = [sys.executable, "-c", KILLED, *files, *commands], {**os.environ, "PYTHONPATH": str(home)}
    done = subprocess.run(command, cwd=home, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    return root


@pytest.mark.parametrize("name", RUNS)
def test_a_killed_run_ends_as_an_undisturbed_one_to_the_bit(name, killed, train, valid, tmp_path):
    change, last, marked = RUNS[name]
    assert (killed / name / f"checkpoint-{last}" / "complete").exists() == marked
    for directory in (killed / name, tmp_path):
        training.train(replace(STEPS, **change), train, valid, directory)
    same_end(tmp_path, killed / name)
    assert [row["step"] for row in read_curve(tmp_path) if "loss" in row] == [6, 12, 18, 24]


@pytest.mark.parametrize("check_steps", [1, 4, 7, 100])
@pytest.mark.parametrize("steps", [2, 30, 1500])
def test_checkpoints_come_when_a_loss_was_told(steps, check_steps, tmp_path):
    """So that no mean of losses is cut in two by an interruption."""
    args = trainer.arguments(replace(STEPS, steps=steps, check_steps=check_steps), tmp_path, torch.device("cpu"))
    assert args.save_steps % args.logging_steps == 0 and args.save_steps >= min(check_steps, steps)


def test_a_run_repeats_to_the_bit_and_another_seed_does_not(train, valid, tmp_path):
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        training.train(replace(STEPS, steps=8, seed=seed), train, valid, tmp_path / name)
    same_end(tmp_path / "one", tmp_path / "again")
    assert weights(tmp_path / "one") != weights(tmp_path / "other")


# --- going on ---


@pytest.fixture
def begun(train, tmp_path):
    """loss, other settings -> the directory of a model that a few steps left."""

    def make(loss, **change):
        training.train(replace(STEPS, loss=loss, steps=4, valid_problems=0, **change), train, [], tmp_path / "begun")
        return tmp_path / "begun" / "model"

    return make


@pytest.mark.parametrize("before, after", [("vlb", "cross_entropy"), ("cross_entropy", "vlb"), ("masked", "masked")])
def test_a_training_goes_on_from_a_directory(before, after, begun, train, tmp_path):
    directory = begun(before)
    config = replace(STEPS, model=str(directory), loss=after, steps=3, settle_steps=0, valid_problems=0)
    model, tokenizer = training.load(config, train[:2])
    old = load_file(directory / plaid.WEIGHTS)
    assert all(torch.equal(value, old[name]) for name, value in model.state_dict().items())
    assert model.learned == (after == "vlb") and model.prior == (after != "masked")
    words = plaid.load(directory, "cpu")[1].get_vocab()
    assert tokenizer.get_vocab() == words, "not that of the new problems"
    still = replace(config, learning_rate=1e-30, embedding_rate=1e-30, weight_decay=0.0, bounds_decay=0.0)
    training.train(still, train[:9], [], tmp_path / "still")
    kept = load_file(tmp_path / "still" / "model" / plaid.WEIGHTS)
    assert all(torch.equal(kept[name], value) for name, value in old.items()), "at hardly any rate nothing moves"
    training.train(config, train[:9], [], tmp_path / "on")
    moved = load_file(tmp_path / "on" / "model" / plaid.WEIGHTS)
    assert any(not torch.equal(moved[name], value) for name, value in old.items())
    assert plaid.load(tmp_path / "on" / "model", "cpu")[2].loss == after


@pytest.mark.parametrize(
    "before, change, says",
    [
        ("masked", {"loss": "vlb"}, "trained with loss masked"),
        ("masked", {"loss": "cross_entropy"}, "trained with loss masked"),
        ("vlb", {"loss": "masked"}, "trained with loss vlb"),
        ("vlb", {"digits": False}, "trained with digits True, not False"),
        ("vlb", {"embed_dim": 8}, "trained with embed_dim 16, not 8"),
        ("vlb", {"places": False}, "trained with places True, not False"),
        ("vlb", {"source_scale": 1.0}, "trained with source_scale 0.0, not 1.0"),
        ("vlb", {"max_length": 65}, "trained with max_length 64, not 65"),
    ],
)
def test_what_cannot_go_on_is_refused_in_one_sentence(before, change, says, train, tmp_path):
    model, tokenizer = training.load(replace(STEPS, loss=before), train)
    plaid.save(model, tokenizer, replace(STEPS, loss=before), 5, tmp_path / "model")
    config = replace(replace(STEPS, loss=before), model=str(tmp_path / "model"), **change)
    with pytest.raises(InputError, match=says) as refused:
        training.train(config, train, [], tmp_path / "out")
    assert "\n" not in str(refused.value) and not (tmp_path / "out").exists()


def test_words_that_a_model_does_not_know_are_refused(begun, tmp_path):
    config = replace(STEPS, model=str(begun("vlb")), steps=1, valid_problems=0)
    other = [make_problem(f"{n} + {n} ?", [f"sum {n}"], str(2 * n), "sums") for n in range(10, 20)]
    with pytest.raises(InputError, match="10 of 10 solutions hold words that the model's vocabulary lacks"):
        training.train(config, other, [], tmp_path / "out")


def test_a_model_that_is_not_there_is_refused_with_the_presets(train, tmp_path):
    with pytest.raises(InputError, match="no diffusion model 'plaid_1x1'; use plaid_3x128"):
        training.train(replace(STEPS, model="plaid_1x1"), train, [], tmp_path)
    with pytest.raises(InputError, match="None of 0 problems fits"):
        training.train(STEPS, [], [], tmp_path)


# --- problems as rows ---


@pytest.mark.parametrize("digits, expected", [(True, ["1", "2", " +", " 1", "2"]), (False, ["12", " +", " 12"])])
def test_how_numbers_are_cut_is_stored_with_the_model(digits, expected, tmp_path):
    problems = [make_problem(f"{n} + {n} ?", [], str(2 * n), "sums") for n in range(10, 20)]
    config = replace(STEPS, digits=digits, steps=1, valid_problems=0)
    training.train(config, problems, [], tmp_path)
    _, tokenizer, trained, _ = plaid.load(tmp_path / "model", "cpu")
    assert trained.digits == digits
    assert [tokenizer.decode([i]) for i in tokenizer("12 + 12", add_special_tokens=False)["input_ids"]] == expected
    assert tokenizer.get_vocab() == sequences.tokenizer_for(config, problems).get_vocab()


def test_long_problems_are_left_out_whole_and_counted(train, tmp_path, capsys):
    long = make_problem("v1 " + "+ n2 " * 20 + "?", ["r1"] * 20, "1", "modular_chain")
    training.train(replace(STEPS, steps=1, max_length=20), [*train, long, long], [], tmp_path)
    assert "left out 2 of 22 problems: longer than 20 tokens" in capsys.readouterr().out
    assert plaid.load(tmp_path / "model", "cpu")[3] == 7, "the longest of those that are left"
    with pytest.raises(InputError, match="None of 1 problems fits into max_length = 20"):
        training.train(replace(STEPS, max_length=20), [long], [], tmp_path)


@pytest.mark.parametrize("length", [7, 8, 9])
def test_what_fits_is_kept_as_it_is(length):
    encoded = [{"source": [5] * 4, "target": [6] * 3 + [1]}, {"source": [5], "target": [6] * 4 + [1]}]
    kept = sequences.keep_short(encoded, length)
    assert kept == [e for e in encoded if len(e["source"] + e["target"]) <= length]
    assert all(any(e is one for one in encoded) and e["target"][-1] == 1 for e in kept)


def test_a_long_problem_among_those_to_validate_with_does_not_stop_a_training(train, tmp_path):
    """With a vector for each place, there is none for places so far away."""
    long = make_problem("v1 " + "+ n2 " * 60 + "?", ["r1"] * 60, "1", "modular_chain")
    training.train(replace(STEPS, steps=4, max_length=16), train, [train[0], long], tmp_path)
    assert [row["step"] for row in read_curve(tmp_path) if "right" in row] == [4]


def test_encoded_problems_are_never_changed(train, monkeypatch, tmp_path):
    """By sequences, nor by a training."""
    seen, real = [], sequences.encode

    def keep(tokenizer, problems):
        found = real(tokenizer, problems)
        seen.append((found, copy.deepcopy(found)))
        return found

    monkeypatch.setattr(sequences, "encode", keep)
    training.train(replace(STEPS, steps=4), train, train[:3], tmp_path)
    ((encoded, before),) = seen
    assert encoded == before and len(encoded) == 20
    for e, problem in zip(encoded, train, strict=True):
        assert len(e["source"]) == len(problem.question.split()) + 1, "with the separator, once"
        assert e["target"][-1] == 1 and e["target"].count(1) == 1 and 0 not in e["source"] + e["target"]


# --- what is refused ---


@pytest.mark.parametrize(
    "change, says",
    [
        ({"dtype": "float8"}, "float8"),
        ({"loss": "mse"}, "Unknown loss 'mse'; use vlb, cross_entropy, masked"),
        ({"loss_scope": "source"}, "Unknown loss_scope 'source'; use target, all"),
        *[
            ({name: 0}, f"{name} must be at least 1, not 0")
            for name in ("embed_dim", "steps", "batch_size", "accumulation", "check_steps", "check_with", "max_length")
        ],
        *[({name: -0.1}, f"{name} is a share") for name in ("self_conditioning", "clip_quantile", "ema")],
        *[({name: 1.0}, f"{name} is a share") for name in ("clip_quantile", "ema", "adam_beta1", "adam_beta2")],
        ({"self_conditioning": 1.1}, "self_conditioning is a share"),
        *[
            ({name: -1}, f"{name} must be at least 0, not -1")
            for name in ("warmup_steps", "settle_steps", "prior_steps", "weight_decay", "bounds_decay", "source_scale")
        ],
        ({"valid_problems": -1}, "valid_problems must be at least 0"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"embedding_rate": -1e-3}, "embedding_rate must be above 0"),
        ({"gamma_0": 6.0}, "gamma_0 must be below gamma_1"),
        ({"accumulation": 3}, "batch_size 8 is no multiple of accumulation 3"),
        ({"accumulation": 8}, "at least 2 rows"),
        ({"loss": "masked", "loss_scope": "all"}, "no loss on its source"),
    ],
)
def test_what_is_no_setting_is_refused_in_one_sentence(change, says):
    with pytest.raises(InputError, match=says) as refused:
        replace(STEPS, **change)
    assert "\n" not in str(refused.value)


def test_shares_of_1_and_0_are_settings_where_they_mean_something():
    replace(STEPS, self_conditioning=1.0, clip_quantile=0.0, ema=0.0, valid_problems=0, warmup_steps=0)
    replace(STEPS, loss="cross_entropy", accumulation=8)
    replace(STEPS, self_conditioning=0.0, settle_steps=0, prior_steps=0, source_scale=0.0, weight_decay=0.0)


@pytest.mark.parametrize(
    "change, says",
    [
        ({"steps": [1, 2, 3]}, "steps has 3 numbers for 2 tasks"),
        ({"tasks": ["a", "a"]}, "Every task must be named once"),
        ({"seeds": [0, 0]}, "Every seed must be named once"),
        ({"seeds": []}, "Every seed must be named once"),
        ({"tasks": []}, "Every task must be named once"),
        ({"bound_steps": -1}, "bound_steps must be at least 0"),
        ({"cot_steps": [-1]}, "cot_steps must be at least 0"),
        ({"cot_steps": [1, 2, 3]}, "cot_steps has 3 numbers for 2 tasks"),
        ({"steps": [0]}, "steps must be at least 1"),
        ({"n_valid": 1}, "n_valid must be at least 2"),
        ({"n_test": 0}, "n_test must be at least 1"),
    ],
)
def test_sizes_that_fit_nothing_are_refused_by_name(change, says):
    good = {"tasks": ["a", "b"], "steps": [10], "seeds": [0, 1], "bound_steps": 0, "n_valid": 2, "n_test": 1}
    check_sizes(**good, cot_steps=[0])
    check_multi_pass(["b"], ["a", "b"], ["a"])
    for learned, refused in ((["c"], "none of the tasks a, b"), (["a"], "one thought")):
        with pytest.raises(InputError, match=refused):
            check_multi_pass(learned, ["a", "b"], ["a"])
    check_sizes(**{**good, "steps": [10, 20]})
    with pytest.raises(InputError, match=says):
        check_sizes(**{**good, **change})


@pytest.mark.parametrize(
    "change, says",
    [
        ({"sampler": "euler"}, "Unknown sampler 'euler'"),
        *[({name: 0}, f"{name} must be at least 1") for name in ("steps", "samples", "batch_tokens")],
        *[({name: -1}, f"{name} must be at least 0") for name in ("canvas", "latency_problems")],
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"leave_at": 0.0}, "leave_at is a probability"),
        ({"leave_at": 1.1}, "leave_at is a probability"),
    ],
)
def test_no_way_to_ask_is_refused(change, says):
    with pytest.raises(InputError, match=says):
        generation.Config(**change)


@pytest.mark.parametrize(
    "change, says",
    [
        ({"start": -0.1}, "start is a time from 0 to 1"),
        ({"start": 1.1}, "start is a time from 0 to 1"),
        ({"errors": -1}, "errors must be at least 0"),
        ({"steps": 0}, "steps at least 1"),
        ({"sampler": "euler"}, "Unknown sampler 'euler'"),
        ({"temperature": -1.0}, "temperature must be above 0"),
    ],
)
def test_no_way_to_injure_is_refused(change, says):
    with pytest.raises(InputError, match=says):
        repair.Config(**change)


# --- a tokenizer of the user's ---


def named_tokenizer(folder, **names):
    """A byte-level BPE that knows 16 and 42 as tokens, with the special tokens `names`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(special_tokens=["<e>", "<s>", "<p>"], initial_alphabet=alphabet, show_progress=False)
    inner.train_from_iterator(["16 42 16 42"] * 9, trainer)
    PreTrainedTokenizerFast(tokenizer_object=inner, **names).save_pretrained(folder)
    return str(folder)


def test_a_users_tokenizer_takes_digits_apart_and_is_saved_so(tmp_path):
    folder = named_tokenizer(tmp_path / "theirs", eos_token="<e>", sep_token="<s>", pad_token="<p>")
    whole = sequences.tokenizer_for(Config(tokenizer=folder, digits=False), [])
    apart = sequences.tokenizer_for(Config(tokenizer=folder, digits=True), [])
    assert whole.tokenize("16-42") == ["16", "-", "42"]
    assert apart.tokenize("16-42") == ["1", "6", "-", "4", "2"]
    assert apart.decode(apart("16 - 42")["input_ids"]) == "16 - 42"
    apart.save_pretrained(tmp_path / "again")
    again = sequences.tokenizer_for(Config(tokenizer=str(tmp_path / "again"), digits=False), [])
    assert again.tokenize("16-42") == ["1", "6", "-", "4", "2"]


@pytest.mark.parametrize("missing", ["eos_token", "sep_token", "pad_token"])
def test_a_users_tokenizer_without_a_token_of_its_own_for_each_task_is_refused(tmp_path, missing):
    """The library's loader takes the end for padding where there is none; that would teach ends as filler."""
    names = {"eos_token": "<e>", "sep_token": "<s>", "pad_token": "<p>"}
    names.pop(missing)
    folder = named_tokenizer(tmp_path / "theirs", **names)
    with pytest.raises(InputError, match="three different ones"):
        sequences.tokenizer_for(Config(tokenizer=folder), [])
