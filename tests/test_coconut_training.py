"""Training through a curriculum: what is fed when, what Adam remembers, interrupted runs, what is saved."""

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from lib import models
from lib.coconut import engine, schedule, sequences, training
from lib.coconut.config import Config
from lib.coconut.trainer import make_trainer
from lib.errors import InputError
from lib.problems import write_jsonl
from tests.oracles import coconut as oracle

# 20 problems of up to 3 steps in batches of 8: three steps an epoch, the last of them short; four stages of 4 steps;
# a checkpoint every 2.
STEPS = Config(
    steps=16,
    check_steps=2,
    max_latent_stage=2,
    batch_size=8,
    learning_rate=1e-2,
    warmup_steps=2,
    decay_steps=4,
    switch_at=0.0,
    valid_problems=4,
    device="cpu",
)


def some(chains):
    """20 problems of 1, 2 and 3 steps, and 4 others."""
    return chains[:5] + chains[8:15] + chains[20:28], chains[16:20]


def read_curve(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


class Watch(TrainerCallback):
    """What is fed and what Adam remembers, step by step."""

    def __init__(self, trainer):
        self.thoughts, self.adam, self.norms = [], [], []
        self.weights = [weight for weight in trainer.thinker.parameters() if weight.requires_grad]
        trainer.add_callback(self)
        trainer.thinker.register_forward_pre_hook(
            lambda module, given, batch: self.thoughts.append(batch["thoughts"].tolist()), with_kwargs=True
        )

    def on_step_begin(self, args, state, control, optimizer=None, **kwargs):
        states = getattr(optimizer, "optimizer", optimizer).state.values()
        self.adam.append(max((int(one["step"]) for one in states), default=0))

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.norms.append(torch.stack([w.grad.norm() for w in self.weights if w.grad is not None]).norm().item())


def watched(config, base, train, valid, out_dir):
    """A training watched step by step: (what was seen, the trainer, its curriculum)."""
    config = replace(config, model=str(base))
    model, tokenizer = training.load(config, train)
    encoded, held_out = (sequences.encode(config, tokenizer, part) for part in (train, valid))
    known = schedule.stages(config, max(len(e["steps"]) for e in encoded))
    models.seed_everything(config.seed)
    trainer, curriculum = make_trainer(config, model, tokenizer, encoded, held_out, known, out_dir)
    watch = Watch(trainer)
    trainer.train()
    return watch, trainer, curriculum


# --- what is fed when ---


def test_the_loss_falls_and_every_stage_is_gone_through(tiny_llama, chains, tmp_path):
    config = replace(STEPS, model=str(tiny_llama), steps=88, check_steps=11, batch_size=16)
    training.train(config, chains, chains[:8], tmp_path)
    curve = read_curve(tmp_path)
    looks = [(row["step"], row["stage"], row["thoughts"]) for row in curve if "right" in row]
    expected = [(11, 0, 0), (22, 0, 0), (22, 1, 1), (33, 1, 1), (44, 1, 1), (44, 2, 2), (55, 2, 2), (66, 2, 2)]
    assert looks == [*expected, (66, 3, 2), (77, 3, 2), (88, 3, 2)], "both sides of each switch"
    losses = [row["loss"] for row in curve if "loss" in row]
    assert len(losses) == 8 and losses[1] < 0.7 * losses[0]
    assert {path.name for path in tmp_path.iterdir()} == {"model", "metrics.jsonl", "config.json"}
    assert Config(**json.loads((tmp_path / "config.json").read_text())) == config
    assert engine.load(tmp_path / "model", device="cpu")[2:] == (config, schedule.stages(config, 3)[-1])


def test_a_loss_is_told_of_the_stage_that_it_was_taken_in(tiny_llama, chains, tmp_path):
    training.train(replace(STEPS, model=str(tiny_llama)), *some(chains), tmp_path)
    losses = {row["step"]: row["stage"] for row in read_curve(tmp_path) if "loss" in row}
    assert losses == {2: 0, 4: 0, 6: 1, 8: 1, 10: 2, 12: 2, 14: 3, 16: 3}


def test_the_first_batch_after_a_switch_is_of_the_new_stage(tiny_llama, chains, tmp_path):
    """The library draws a batch ahead; it must not be of the stage before."""
    train, valid = chains[20:32], chains[12:16]
    watch, *_ = watched(replace(STEPS, mix=0.0, c_thought=2, steps=12), tiny_llama, train, valid, tmp_path)
    assert [set(row) for row in watch.thoughts] == [{min(t // 2, 4)} for t in range(12)]


def test_published_epochs_decide_the_stages(tiny_llama, chains, tmp_path):
    """Two epochs a stage from epoch 1 on, three steps an epoch: one epoch of stage 0, then two each."""
    config = replace(STEPS, steps=0, num_epochs=7, epochs_per_stage=2, first_epoch=1, mix=0.0, reset_optimizer="epoch")
    watch, _, _ = watched(config, tiny_llama, *some(chains), tmp_path)
    assert [row[0] for row in watch.thoughts] == [0] * 3 + [1] * 6 + [2] * 9
    assert watch.adam == [0, 1, 2] * 6
    late, *_ = watched(replace(config, first_epoch=5), tiny_llama, *some(chains), tmp_path / "late")
    assert [row[0] for row in late.thoughts] == [2] * 6


def test_which_rows_are_of_another_stage_depends_on_seed_step_and_problem_alone(tiny_llama, chains, tmp_path):
    config = replace(STEPS, mix=0.5, mix_from="all")
    encoded = sequences.encode(config, models.load_tokenizer(str(tiny_llama)), chains)
    known = schedule.stages(config, 3)
    one, other = (
        training.Curriculum(replace(config, seed=seed), known, encoded, (None, None, 300), 0, at=2) for seed in (0, 1)
    )
    whole = one.batch(list(range(32)), 7)["thoughts"].tolist()
    assert one.batch(list(range(31, -1, -1)), 7)["thoughts"].tolist() == whole[::-1]
    assert sum((one.batch([i], 7)["thoughts"].tolist() for i in range(32)), []) == whole
    assert whole != one.batch(list(range(32)), 8)["thoughts"].tolist()
    assert whole != other.batch(list(range(32)), 7)["thoughts"].tolist()
    assert set(whole) == {0, 1, 2}
    watch, *_ = watched(replace(config, mix_from="earlier"), tiny_llama, chains[20:28], [], tmp_path)
    assert len({tuple(sorted(thoughts)) for thoughts in watch.thoughts[12:]}) > 1, "the last stage, the same 8 problems"


@pytest.mark.parametrize("switch_at", [0.0, 0.5])
def test_a_stage_ends_when_it_is_right_or_its_steps_are_over(switch_at, tiny_llama, chains, tmp_path):
    """One problem, learned by heart, so that it is right long before its 30 steps."""
    config = replace(STEPS, model=str(tiny_llama), steps=120, switch_at=switch_at, learning_rate=2e-2)
    training.train(replace(config, mix=0.0), chains[20:21], chains[20:21], tmp_path)
    looks = [row for row in read_curve(tmp_path) if "right" in row]
    ends = [a for a, b in zip(looks, looks[1:], strict=False) if b["stage"] != a["stage"]]
    if switch_at:
        assert len(ends) == 3 and ends[0]["step"] < 30
        assert all(row["right"] == 1 for row in ends)
        begun = [0, *(r["step"] for r in ends)]
        for stage, since in enumerate(begun[:3]):
            right = next(r for r in looks if r["stage"] == stage and r["right"] == 1 and r["step"] > since)
            assert right == ends[stage], "at the first look that finds it right"
    else:
        assert [row["step"] for row in ends] == [30, 60, 90]


def test_written_right_is_what_the_naive_model_would_write(chains, tmp_path, tiny_llama):
    """Letter by letter, greedy, with the steps that are left: half learned, so that some are right and some wrong."""
    config = replace(STEPS, model=str(tiny_llama), steps=70, batch_size=16, learning_rate=2e-2)
    _, trainer, curriculum = watched(config, tiny_llama, chains[:16], chains[:4], tmp_path)
    thinker, right = trainer.thinker.eval(), 0
    for e in curriculum.encoded:
        skip, thoughts = schedule.plan(config, curriculum.stage, len(e["steps"]))
        rest = [i for step in e["steps"][skip:] for i in step]
        ids, labels = oracle.sequence((e["question"], thoughts, rest, e["answer"]), curriculum.markers)
        best = oracle.logits(thinker.model, ids, curriculum.markers[2], "normalised").argmax(-1).tolist()
        right += all(best[t - 1] == label for t, label in enumerate(labels) if label != -100)
    assert 0 < right < 16, "a test that sees nothing"
    for batch_size in (1, 5, 256):
        thinker.train()
        assert training.written_right(thinker, curriculum, curriculum.encoded, batch_size) == right / 16
        assert thinker.training and thinker.model.training


# --- what the optimizer does ---


@pytest.mark.parametrize(
    "reset, remembered",
    [
        ("never", list(range(16))),
        ("stage", [0, 1, 2, 3] * 4),
        ("epoch", [0, 1, 2] * 5 + [0]),
    ],
)
def test_adam_forgets_when_it_is_told_to_and_only_then(reset, remembered, tiny_llama, chains, tmp_path):
    watch, _, _ = watched(replace(STEPS, reset_optimizer=reset), tiny_llama, *some(chains), tmp_path)
    assert watch.adam == remembered


def test_gradients_are_clipped_where_it_is_asked_for(tiny_llama, chains, tmp_path):
    free, _, _ = watched(replace(STEPS, max_grad_norm=0.0), tiny_llama, *some(chains), tmp_path)
    clipped, _, curriculum = watched(replace(STEPS, max_grad_norm=0.25), tiny_llama, *some(chains), tmp_path / "2")
    assert min(free.norms) > 0.5 and max(clipped.norms) == pytest.approx(0.25, rel=1e-3)
    told = [row["grad_norm"] for row in curriculum.curve if "grad_norm" in row]
    assert len(told) == 8 and min(told) > 0.5, "the norm before clipping is told"


def test_the_rate_rises_stays_and_falls_to_nothing(tiny_llama, chains, tmp_path):
    config = replace(STEPS, steps=12, check_steps=1, decay_steps=5, warmup_steps=3)
    _, trainer, _ = watched(config, tiny_llama, *some(chains), tmp_path)
    rates = [row["learning_rate"] for row in trainer.state.log_history if "loss" in row]
    expected = [0, 1 / 3, 2 / 3, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2]
    assert rates == pytest.approx([1e-2 * rate for rate in expected], abs=1e-9)
    flat = replace(config, decay_steps=0, warmup_steps=0)
    _, trainer, _ = watched(flat, tiny_llama, *some(chains), tmp_path / "flat")
    assert {row["learning_rate"] for row in trainer.state.log_history if "loss" in row} == {1e-2}


def test_accumulated_halves_are_the_mean_of_their_means(tiny_llama, chains, tmp_path):
    """As published. Where all rows have as many labels that is the whole batch's mean, to rounding (which Adam makes
    more of); elsewhere it is not: a half with few labels counts as much as the other.
    """
    curves = {}
    for name, train in (("alike", chains[20:28]), ("mixed", some(chains)[0][:8])):
        for accumulation in (1, 2):
            config = replace(STEPS, accumulation=accumulation, steps=6, check_steps=1, mix=0.0)
            _, trainer, _ = watched(config, tiny_llama, train, [], tmp_path / f"{name}{accumulation}")
            curves[name, accumulation] = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert curves["alike", 2] == pytest.approx(curves["alike", 1], abs=1e-3)
    assert curves["alike", 2][0] == pytest.approx(curves["alike", 1][0], abs=1e-5)
    assert curves["mixed", 2] == pytest.approx(curves["mixed", 1], rel=0.05)
    assert curves["mixed", 2][0] != pytest.approx(curves["mixed", 1][0], abs=1e-5)


# --- interrupted runs ---


def weights(directory):
    return {path.name: path.read_bytes() for path in (directory / "model").glob("*.safetensors")}


def same_end(one, two):
    assert weights(one), "no weights were saved"
    assert weights(one) == weights(two)
    assert (one / "metrics.jsonl").read_text() == (two / "metrics.jsonl").read_text()


# Each training runs in a process of its own, which kills itself: right after a checkpoint, or with one half made.
KILLED = """
import json, os, signal, sys
from lib import problems, sft, trainers
from lib.coconut import training
from lib.coconut.config import Config
train, valid, *runs = sys.argv[1:]
train, valid, real = problems.read_jsonl(train), problems.read_jsonl(valid), trainers.mark_complete
for run in runs:
    config, last, marked, out_dir = json.loads(run)
    def mark(checkpoint):
        here = checkpoint.name == f"checkpoint-{last}"
        if not here or marked:
            real(checkpoint)
        if here:
            os.kill(os.getpid(), signal.SIGKILL)
    child = os.fork()
    if not child:
        trainers.mark_complete = mark
        training.train(Config(**config), train, valid, out_dir)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL, "was not killed"
"""
LONG = replace(STEPS, mix=0.3)
EPOCHS = dict(dropout=0.1, steps=0, num_epochs=5, epochs_per_stage=1, reset_optimizer="epoch", mix_from="all")
PARALLEL = dict(method="coconut_jacobi", source="projection", switch_at=0.01, learning_rate=3e-2)
RUNS = {  # (settings, the checkpoint at which it is killed, was that one complete?)
    "in the first stage": ({}, 2, True),
    "after a switch": ({}, 6, True),
    "at a switch, the checkpoint half made": ({}, 8, False),
    "optimizer reset at a switch": (dict(reset_optimizer="stage"), 4, True),
    "dropout, published epochs, optimizer reset": (EPOCHS, 8, True),
    "a learned map, accumulation": (dict(source="mlp", accumulation=2, steps=15), 6, True),
    "parallel thoughts, switch when right": (PARALLEL, 10, True),
}


@pytest.fixture(scope="module")
def killed(tiny_llama, chains, tmp_path_factory):
    """Where each of RUNS was left when it was killed."""
    root, (train, valid) = tmp_path_factory.mktemp("killed"), some(chains)
    files = [str(write_jsonl(root / f"{i}.jsonl", part)) for i, part in enumerate((train, valid))]
    commands = [
        json.dumps([asdict(replace(LONG, model=str(tiny_llama), **settings)), last, marked, str(root / name)])
        for name, (settings, last, marked) in RUNS.items()
    ]
    home = Path(training.__file__).parents[2]
    command, environment = [sys.executable, "-c", KILLED, *files, *commands], {**os.environ, "PYTHONPATH": str(home)}
    done = subprocess.run(command, cwd=home, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    return root


@pytest.mark.parametrize("name", RUNS)
def test_a_killed_run_ends_as_an_undisturbed_one_to_the_bit(name, killed, tiny_llama, chains, tmp_path):
    settings, last, marked = RUNS[name]
    config = replace(LONG, model=str(tiny_llama), **settings)
    assert (killed / name / f"checkpoint-{last}" / "complete").exists() == marked
    for directory in (killed / name, tmp_path):
        training.train(config, *some(chains), directory)
    same_end(tmp_path, killed / name)
    assert len({row["stage"] for row in read_curve(tmp_path)}) > 1, "nothing was switched"


def test_a_run_repeats_to_the_bit_and_another_seed_does_not(tiny_llama, chains, tmp_path):
    config = replace(LONG, model=str(tiny_llama))
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        training.train(replace(config, seed=seed), *some(chains), tmp_path / name)
    same_end(tmp_path / "one", tmp_path / "again")
    assert weights(tmp_path / "one") != weights(tmp_path / "other")


def test_a_model_with_a_head_of_its_own_trains_and_resumes(tiny_llama, chains, tmp_path, monkeypatch):
    from lib import trainers
    from tests.test_sft import Cut, cut_at

    tokenizer, base = models.load_tokenizer(str(tiny_llama)), tmp_path / "base"
    model = oracle.small_model("llama", layers=1)
    model.resize_token_embeddings(len(tokenizer))
    models.save_model(model, tokenizer, base)
    config = replace(LONG, model=str(base), markers=True, init_from="<<")
    training.train(config, *some(chains), tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Cut):
        cut_at(patch, 6, mark=True)
        training.train(config, *some(chains), tmp_path / "cut")
    assert trainers.last_checkpoint(tmp_path / "cut").name == "checkpoint-6"
    training.train(config, *some(chains), tmp_path / "cut")
    same_end(tmp_path / "whole", tmp_path / "cut")
    thinker, saved, _, _ = engine.load(tmp_path / "whole" / "model", device="cpu")
    assert saved.convert_tokens_to_ids(list(sequences.MARKERS)) == list(thinker.markers)
    head, table = thinker.model.get_output_embeddings().weight, thinker.model.get_input_embeddings().weight
    assert head.data_ptr() != table.data_ptr() and len(head) == len(table) == len(saved)


# --- other models, other precisions ---


def test_a_plain_model_directory_gets_what_the_method_needs(tiny_llama, chains, tmp_path):
    config = replace(STEPS, model=str(tiny_llama), steps=4)
    plain = models.load_tokenizer(str(tiny_llama))
    for markers, method, more in ((True, "coconut", 3), (False, "coconut", 1), (True, "coconut_no_thought", 0)):
        out_dir = tmp_path / f"{markers}{method}"
        training.train(replace(config, markers=markers, method=method), *some(chains), out_dir)
        thinker, tokenizer, *_ = engine.load(out_dir / "model", device="cpu")
        assert len(tokenizer) == len(plain) + more == thinker.model.config.vocab_size
        assert (thinker.markers is None) == (not more)
    again = replace(config, model=str(tmp_path / "Truecoconut" / "model"))
    training.train(replace(again, markers=True), *some(chains), tmp_path / "again")
    assert len(models.load_tokenizer(str(tmp_path / "again" / "model"))) == len(plain) + 3, "none is added again"


def test_bfloat16_learns_with_float32_master_weights(tiny_llama, chains, tmp_path):
    config, losses = replace(STEPS, model=str(tiny_llama), steps=16), {}
    for dtype in ("float32", "bfloat16"):
        training.train(replace(config, dtype=dtype), *some(chains), tmp_path / dtype)
        losses[dtype] = [row["loss"] for row in read_curve(tmp_path / dtype) if "loss" in row]
    assert losses["bfloat16"][1] < losses["bfloat16"][0] == pytest.approx(losses["float32"][0], rel=0.02)
    assert abs(losses["bfloat16"][0] - losses["float32"][0]) > 1e-5, "it was float32 all the same"
    assert engine.load(tmp_path / "bfloat16" / "model", device="cpu")[0].model.lm_head.weight.dtype == torch.float32


@pytest.mark.parametrize("base, says", [("tiny_t5", "causal language model"), ("llama_adapter", "adapter")])
def test_models_that_cannot_think_are_refused_in_one_sentence(base, says, request, chains, tmp_path):
    config = replace(STEPS, model=str(request.getfixturevalue(base)))
    with pytest.raises(InputError, match=says) as refused:
        training.train(config, *some(chains), tmp_path)
    assert "\n" not in str(refused.value) and not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="None of 0 problems fits"):
        training.train(replace(STEPS, model=str(request.getfixturevalue("tiny_llama"))), [], [], tmp_path)


def test_problems_that_do_not_fit_are_left_out_of_validation_too(tiny_llama, chains, tmp_path):
    tokenizer, model = models.load_tokenizer(str(tiny_llama)), oracle.small_model("gpt2", layers=1)  # 128 positions
    model.resize_token_embeddings(len(tokenizer))
    models.save_model(model, tokenizer, tmp_path / "base")
    long = replace(chains[0], question="v1 + n2 " * 60)
    config = replace(STEPS, model=str(tmp_path / "base"), max_length=128)
    training.train(config, [*some(chains)[0], long], [chains[20], long], tmp_path / "out")


def test_without_validation_problems_stages_end_by_their_steps(tiny_llama, chains, tmp_path):
    config = replace(STEPS, model=str(tiny_llama), switch_at=0.5)
    training.train(config, some(chains)[0], [], tmp_path)
    curve = read_curve(tmp_path)
    assert all("loss" in row for row in curve) and curve[-1]["stage"] == 3
    assert engine.load(tmp_path / "model", device="cpu")[3] == schedule.Stage(3, schedule.ALL, 2)


# --- on a GPU ---


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_bfloat16_on_a_gpu_learns_and_switches(chains, tmp_path):
    config = replace(STEPS, device="cuda", dtype="bfloat16", steps=88, check_steps=11, batch_size=16)
    training.train(replace(config, learning_rate=2e-3), chains, chains[:8], tmp_path)
    losses = [row["loss"] for row in read_curve(tmp_path) if "loss" in row]
    assert losses[1] < 0.7 * losses[0] and {row["stage"] for row in read_curve(tmp_path)} == {0, 1, 2, 3}
