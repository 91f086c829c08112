"""Runs of preference training: accumulated batches, what is left behind, interrupted runs, and no bars but ours."""

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from lib import dpo, models, trainers
from lib.problems import write_jsonl
from tests.preferring import SETUPS, STEPS, curve, opinions, read_curve, trainer_for, weights

either_model = pytest.mark.parametrize("fixture", ["tiny_llama", "tiny_t5"])


# --- batches ---


@pytest.mark.parametrize("loss", ["sigmoid", "ipo"])
@either_model
def test_accumulated_batches_move_the_model_as_the_whole_batch_does(fixture, loss, request, pairs, tmp_path):
    """20 pairs in batches of 8: the last of an epoch is half a batch, and none of it is too many."""
    moved = []
    for accumulation in (1, 2):
        config = replace(STEPS, loss=loss, accumulation=accumulation, learning_rate=1e-3)
        dpo.train(config, pairs[:20], [], request.getfixturevalue(fixture), tmp_path / str(accumulation))
        model, _ = models.load_model(str(tmp_path / str(accumulation) / "model"), device="cpu")
        moved.append(torch.cat([weight.flatten() for weight in model.parameters()]).double())
    before, _ = models.load_model(str(request.getfixturevalue(fixture)), device="cpu")
    start = torch.cat([weight.flatten() for weight in before.parameters()]).double()
    whole, accumulated = moved
    assert (whole - start).norm() > 0.05
    assert (accumulated - whole).norm() < 1e-4 * (whole - start).norm()
    losses = [curve(tmp_path / str(accumulation)) for accumulation in (1, 2)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)


@either_model
def test_every_pair_is_fed_once_an_epoch_in_an_order_that_the_seed_decides(fixture, request, pairs, tmp_path):
    orders = []
    for seed in (0, 0, 1):
        out_dir = tmp_path / f"{len(orders)}"
        dpo.train(replace(STEPS, steps=2, seed=seed), pairs[:16], [], request.getfixturevalue(fixture), out_dir)
        orders.append(curve(out_dir, "logps/rejected"))
    first, again, other = orders
    assert first == again and first[0] != pytest.approx(other[0], abs=1e-3)
    assert sum(first) == pytest.approx(sum(other), abs=1e-2), "the first step's rate is 0, so the model stood still"


# --- what is left ---

LEARNED = {"step", "loss", "learning_rate", "grad_norm"}
FIGURES = [key for key in dpo.KEYS if key != "kl"]


@pytest.mark.parametrize("setup", ["full, copied", "new adapter", "trained adapter", "t5 full", "t5 trained adapter"])
def test_a_run_leaves_a_model_that_loads_its_curve_and_config(setup, request, pairs, tmp_path):
    fixture, changes = SETUPS[setup]
    config = replace(STEPS, steps=8, n_watched=3, log_steps=2, **changes)
    dpo.train(config, pairs[:20], pairs[20:30], request.getfixturevalue(fixture), tmp_path)
    left = {path.name for path in tmp_path.iterdir()} - {"README.md"}  # the library's model card
    assert left == {"model", "metrics.jsonl", "config.json"}
    assert not any(path.is_dir() for path in (tmp_path / "model").iterdir()), "the reference is not part of the model"
    assert dpo.Config(**json.loads((tmp_path / "config.json").read_text())) == config
    rows = read_curve(tmp_path)
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 9))
    assert [row["step"] for row in rows if "eval_loss" in row] == [2, 4, 6, 8]
    for row in rows:
        watched = {"step", *(f"eval_{key}" for key in FIGURES)}
        assert set(row) == (LEARNED | set(FIGURES) if "loss" in row else watched)
    loaded, _ = models.load_model(str(tmp_path / "model"), device="cpu")
    assert list(getattr(loaded, "peft_config", {"default": 0})) == ["default"]
    trainer, _ = trainer_for(replace(config, lora_rank=0), tmp_path / "model", pairs[20:23], tmp_path / "again")
    trainer.train()
    assert trainer.state.log_history[0]["logps/chosen"] == pytest.approx(rows[-1]["eval_logps/chosen"], abs=1e-3)


@either_model
def test_nothing_need_be_watched(fixture, request, pairs, tmp_path):
    dpo.train(replace(STEPS, steps=2), pairs[:8], [], request.getfixturevalue(fixture), tmp_path)
    assert [set(row) for row in read_curve(tmp_path)] == [LEARNED | set(FIGURES)] * 2


def test_kto_leaves_its_kl_and_watches_opinions(tiny_llama, pairs, tmp_path):
    items = sorted(opinions(pairs), key=lambda x: x.problem)
    dpo.train(replace(STEPS, loss="kto", steps=4), items[:20], items[20:28], tiny_llama, tmp_path)
    expected = set(dpo.KEYS) - {"rewards/accuracies"}
    for row in read_curve(tmp_path):
        assert set(row) == (LEARNED | expected if "loss" in row else {"step", *(f"eval_{key}" for key in expected)})


def test_opinions_that_come_sorted_are_mixed(tiny_llama, pairs, tmp_path):
    dpo.train(replace(STEPS, loss="kto", steps=4), opinions(pairs), [], tiny_llama, tmp_path)
    assert len(curve(tmp_path, "rewards/margins")) == 4, "a batch had only right ones, or only wrong ones"


def test_pairs_and_opinions_are_not_taken_for_one_another(tiny_llama, pairs, tmp_path):
    for config, items in ((STEPS, opinions(pairs)), (replace(STEPS, loss="kto"), pairs)):
        with pytest.raises(AssertionError, match="wants"):
            dpo.train(config, items, [], tiny_llama, tmp_path)


@pytest.mark.parametrize("setup", ["new adapter", "trained adapter", "t5 new adapter", "t5 trained adapter"])
def test_an_adapter_alone_moves_and_the_model_beneath_it_stays(setup, request, pairs, tmp_path):
    fixture, changes = SETUPS[setup]
    trainer, _ = trainer_for(replace(STEPS, **changes), request.getfixturevalue(fixture), pairs[:8], tmp_path)
    before = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    trainer.train()
    for name, weight in trainer.model.state_dict().items():
        assert torch.equal(weight, before[name]) == ("lora_" not in name or ".ref." in name), name


@either_model
def test_bfloat16_starts_from_the_float32_weights_that_were_saved(fixture, request, pairs, tmp_path):
    directory = request.getfixturevalue(fixture)
    saved, _ = models.load_model(str(directory), device="cpu")
    loaded, _ = dpo.load(replace(STEPS, dtype="bfloat16"), directory)
    assert all(torch.equal(a, b) for a, b in zip(saved.parameters(), loaded.parameters(), strict=True))
    dpo.train(replace(STEPS, dtype="bfloat16", steps=2), pairs[:8], [], directory, tmp_path)
    assert curve(tmp_path)[0] == pytest.approx(0.693, abs=5e-3)


# --- bars ---


@pytest.mark.parametrize("before", [None, "0"])
@pytest.mark.parametrize("setup", ["full, precomputed", "trained adapter, precomputed", "t5 full", "kto"])
def test_no_bar_of_a_library_is_seen_while_the_trainer_is_made(
    setup, before, request, pairs, tmp_path, monkeypatch, capfd
):
    import datasets

    fixture, changes = SETUPS.get(setup, ("tiny_llama", {"loss": "kto", "reference": "precomputed"}))
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    if before is not None:
        monkeypatch.setenv("TQDM_DISABLE", before)
    items = opinions(pairs) if setup == "kto" else pairs
    capfd.readouterr()
    trainer, _ = trainer_for(replace(STEPS, **changes), request.getfixturevalue(fixture), items, tmp_path, items[:8])
    assert any("logps" in name for name in trainer.train_dataset.column_names), "computed now, not while training"
    said = "".join(capfd.readouterr())
    bars = [line for line in said.replace("\r", "\n").splitlines() if "%|" in line]
    assert [line for line in bars if "reference:" not in line] == []
    assert bool(bars) == (setup == "t5 full"), "ours is the only one"
    assert os.environ.get("TQDM_DISABLE") == before and datasets.are_progress_bars_disabled() is False


# --- interrupted runs ---

LONG = replace(STEPS, steps=11, log_steps=2)  # 20 pairs in batches of 8; checkpoints at 2, 4, ... 10


def same_end(one, two):
    assert weights(one) == weights(two)
    assert (one / "metrics.jsonl").read_text() == (two / "metrics.jsonl").read_text()


class Cut(Exception):
    """The power fails."""


CUT = ["full, precomputed", "new adapter", "trained adapter", "t5 new adapter", "kto, trained adapter"]


@pytest.mark.parametrize("setup", CUT)
def test_a_run_cut_off_at_a_checkpoint_ends_as_an_undisturbed_one(setup, request, pairs, tmp_path, monkeypatch):
    fixture, changes = SETUPS.get(setup, ("llama_adapter", {"loss": "kto"}))
    items = opinions(pairs) if "kto" in setup else pairs
    how = replace(LONG, steps=6, **changes), items[:20], items[20:24], request.getfixturevalue(fixture)
    real = trainers.mark_complete

    def failing(checkpoint):
        real(checkpoint)
        if checkpoint.name == "checkpoint-4":
            raise Cut

    with monkeypatch.context() as patch, pytest.raises(Cut):
        patch.setattr(trainers, "mark_complete", failing)
        dpo.train(*how, tmp_path / "cut")
    assert (tmp_path / "cut" / "checkpoint-4" / "complete").exists()
    saved = []
    monkeypatch.setattr(trainers, "mark_complete", lambda checkpoint: (saved.append(checkpoint.name), real(checkpoint)))
    dpo.train(*how, tmp_path / "cut")
    assert saved == ["checkpoint-5"], "what was done before the cut is not done again"
    torch.manual_seed(123)  # what was drawn before a run must not matter
    dpo.train(*how, tmp_path / "whole")
    same_end(tmp_path / "whole", tmp_path / "cut")


KILLED = """
import json, os, signal, sys
from lib import dpo, preferences, sft, trainers
real = trainers.mark_complete
def mark(checkpoint):
    if checkpoint.name == "checkpoint-6":
        os.kill(os.getpid(), signal.SIGKILL)
    real(checkpoint)
trainers.mark_complete = mark
config, pairs, model, out_dir = sys.argv[1:]
pairs = [preferences.Pair(**json.loads(line)) for line in open(pairs)]
dpo.train(dpo.Config(**json.loads(config)), pairs[:20], pairs[20:24], model, out_dir)
"""


@either_model
def test_a_killed_process_leaves_a_run_that_ends_as_an_undisturbed_one(fixture, request, pairs, tmp_path):
    directory, out_dir = request.getfixturevalue(fixture), tmp_path / "out"
    file = write_jsonl(tmp_path / "pairs.jsonl", map(asdict, pairs))
    command = [sys.executable, "-c", KILLED, json.dumps(asdict(LONG)), str(file), str(directory), str(out_dir)]
    root = Path(dpo.__file__).parents[1]
    done = subprocess.run(command, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True)
    assert done.returncode == -9, done.stderr.decode()[-2000:]
    assert {path.name for path in out_dir.glob("checkpoint-*")} == {"checkpoint-4", "checkpoint-6"}
    dpo.train(LONG, pairs[:20], pairs[20:24], directory, out_dir)
    dpo.train(LONG, pairs[:20], pairs[20:24], directory, tmp_path / "whole")
    same_end(tmp_path / "whole", out_dir)
