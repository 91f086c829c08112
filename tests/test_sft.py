"""Supervised fine-tuning: the loss mask in real batches, steps equal to a plain loop, and interrupted runs."""

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from lib import answers, generation, models, prompts, sft, tokenization, trainers
from lib.errors import InputError
from lib.tasks import word_problems
from tests.oracles import sft as oracle

STEPS = sft.Config(steps=6, batch_size=8, learning_rate=1e-2, warmup_steps=2, log_steps=1, device="cpu")
either_model = pytest.mark.parametrize("fixture", ["tiny_llama", "tiny_t5"])


def texts(problems, style="cot"):
    """What is to be learned, written out here: one step a line and the answer, or the answer alone."""
    steps = {"cot": lambda p: "".join(f"{step}\n" for step in p.steps), "answer_only": lambda p: ""}[style]
    return [(f"{p.question}\n", f"{steps(p)}#### {p.answer}") for p in problems]


def read_curve(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def trainer_for(config, directory, train, out_dir, pad_is_eos=False):
    """The real trainer of a saved model, as `sft.train` makes it, and its tokenizer."""
    model, tokenizer = models.load_model(str(directory), device="cpu")
    if pad_is_eos:
        tokenizer.pad_token = tokenizer.eos_token
    data = sft.make_dataset(config, tokenizer, train, model.config.is_encoder_decoder)
    return sft.make_trainer(config, model, tokenizer, data, data, out_dir), tokenizer


def mixed(chains, n=8):
    """`n` problems of different lengths, so that a batch of them holds padding."""
    return (chains[:2] + chains[8:11] + chains[20:23])[:n]


# --- what is learned, read from the batches that the trainer feeds ---


@pytest.mark.parametrize("style", ["cot", "answer_only"])
@pytest.mark.parametrize("pad_is_eos", [False, True])
def test_real_batches_learn_completion_and_eos_and_nothing_else(style, pad_is_eos, tiny_llama, chains, tmp_path):
    train = chains[6:11]
    config = replace(STEPS, style=style, batch_size=3)
    trainer, tokenizer = trainer_for(config, tiny_llama, train, tmp_path, pad_is_eos)
    expected = dict(texts(train, style))
    padded = 0
    for batch in trainer.get_train_dataloader():
        for ids, labels, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
            length = int(mask.sum())
            assert mask[:length].all() and not mask[length:].any(), "padding stands on the right while training"
            assert (labels[length:] == -100).all() and (ids[length:] == tokenizer.pad_token_id).all()
            first = int((labels != -100).nonzero()[0])
            completion = expected.pop(tokenizer.decode(ids[:first]))
            assert tokenizer.decode(labels[first:length]) == completion + tokenizer.eos_token
            assert torch.equal(labels[first:length], ids[first:length])
            padded += length < len(ids)
    assert not expected, "every problem was fed once"
    assert padded, "the batches held no padding, so this test saw nothing"


def test_real_encoder_decoder_batches_learn_completion_and_eos(tiny_t5, chains, tmp_path):
    train = chains[6:11]
    trainer, tokenizer = trainer_for(replace(STEPS, batch_size=5), tiny_t5, train, tmp_path)
    (batch,) = trainer.get_train_dataloader()
    expected = dict(texts(train))
    assert (batch["labels"] == -100).any() and (batch["attention_mask"] == 0).any()
    for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
        learned = labels[labels != -100]
        assert torch.equal(learned, labels[: len(learned)])
        assert tokenizer.decode(learned) == expected.pop(tokenizer.decode(ids[mask.bool()])) + tokenizer.eos_token
    assert not expected


def test_encode_joins_prompt_and_completion_as_they_are_tokenised_apart(tiny_llama, chains):
    tokenizer = models.load_tokenizer(str(tiny_llama))
    for problem in chains:
        row = sft.encode(tokenizer, problem, "cot")
        prompt, completion = (tokenizer(text)["input_ids"] for text in texts([problem])[0])
        assert row["input_ids"] == prompt + completion + [1]
        assert row["labels"] == [-100] * len(prompt) + completion + [1]


def formatted(chains):
    """Chains in the four formats, exemplars in front where the format wants some."""
    return [prompts.written(p, chains, prompts.FORMATS[i % 4], 2) for i, p in enumerate(chains)]


@pytest.mark.parametrize("pad_is_eos", [False, True])
def test_real_batches_of_examples_learn_their_completions_whatever_the_style(pad_is_eos, tiny_llama, chains, tmp_path):
    train = formatted(chains)[:9]
    config = replace(STEPS, style="answer_only", batch_size=5)
    trainer, tokenizer = trainer_for(config, tiny_llama, train, tmp_path, pad_is_eos)
    expected = {e.prompt: e.completion for e in train}
    for batch in trainer.get_train_dataloader():
        for ids, labels, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
            length, first = int(mask.sum()), int((labels != -100).nonzero()[0])
            assert (labels[first:length] == ids[first:length]).all() and (labels[length:] == -100).all()
            written = tokenizer.decode(labels[first:length])
            assert written == expected.pop(tokenizer.decode(ids[:first])) + tokenizer.eos_token
    assert not expected, "every example was fed once"


@either_model
def test_examples_are_encoded_as_they_are_and_problems_in_the_style(fixture, request, chains):
    tokenizer = models.load_tokenizer(str(request.getfixturevalue(fixture)))
    two_sided = fixture == "tiny_t5"
    for style in ("cot", "answer_only"):
        plain = [
            prompts.Example(p, prompt, text, style)
            for p, (prompt, text) in zip(chains, texts(chains, style), strict=True)
        ]
        as_problems = sft.encode_all(tokenizer, chains, style, two_sided)
        assert sft.encode_all(tokenizer, plain, "cot", two_sided) == as_problems
        assert [sft.encode(tokenizer, e, "answer_only", two_sided) for e in plain] == as_problems
    other = formatted(chains)
    for example, row in zip(other, sft.encode_all(tokenizer, other, "cot", two_sided), strict=True):
        learned = [i for i in row["labels"] if i != -100]
        assert tokenizer.decode(learned) == example.completion + tokenizer.eos_token
        given = row["input_ids"] if two_sided else row["input_ids"][: -len(learned)]
        assert tokenizer.decode(given) == example.prompt


# --- parity with a plain loop ---


@pytest.mark.parametrize(
    "fixture, style, clip, close",
    [("tiny_llama", "cot", 4, 1e-4), ("tiny_llama", "answer_only", 6, 1e-4), ("tiny_t5", "cot", 3, 5e-4)],
)
def test_training_equals_a_plain_loop(fixture, style, clip, close, request, chains, tmp_path):
    """Losses, rates, gradient norms and the final probabilities; Adam blows up T5's rounding a little more."""
    directory = request.getfixturevalue(fixture)
    train, valid = mixed(chains), chains[11:15]
    config = replace(STEPS, model=str(directory), style=style, learning_rate=2e-3, weight_decay=0.5, max_grad_norm=clip)
    sft.train(config, train, valid, tmp_path)
    found = [row for row in read_curve(tmp_path) if "loss" in row]

    model, tokenizer = models.load_model(str(directory), device="cpu")
    expected = oracle.train(model, tokenizer, texts(train, style), 6, 2, 2e-3, 0.5, config.adam_beta2, clip)
    norms = [step["grad_norm"] for step in expected]
    assert max(norms) > clip > min(norms), "Adam forgives a clipping that is the same at every step"
    assert found[0]["loss"] == pytest.approx(expected[0]["loss"], abs=1e-5)
    for row, step in zip(found, expected, strict=True):
        assert row["loss"] == pytest.approx(step["loss"], abs=1e-4)
        assert row["learning_rate"] == pytest.approx(step["learning_rate"], abs=1e-9)
        assert row["grad_norm"] == pytest.approx(step["grad_norm"], rel=1e-3)
    trained, _ = models.load_model(str(tmp_path / "model"), device="cpu")
    for prompt, completion in texts(train + valid, style):
        ours = oracle.log_likelihoods(trained, tokenizer, prompt, completion)
        assert torch.allclose(ours, oracle.log_likelihoods(model, tokenizer, prompt, completion), atol=close)
    (watched,) = [row["eval_loss"] for row in read_curve(tmp_path) if row["step"] == 6 and "eval_loss" in row]
    assert watched == pytest.approx(oracle.loss(model, tokenizer, texts(valid, style)).item(), abs=1e-4)


def test_lora_training_equals_a_plain_loop_and_moves_only_the_adapter(tiny_llama, chains, tmp_path):
    from peft import get_peft_model

    train = mixed(chains)
    trainer, tokenizer = trainer_for(replace(STEPS, lora_rank=4), tiny_llama, train, tmp_path)
    before = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    base, _ = models.load_model(str(tiny_llama), device="cpu")
    plain = get_peft_model(base, models.lora_config(base, 4))
    plain.load_state_dict(before)
    trainer.train()
    expected = oracle.train(plain, tokenizer, texts(train), 6, 2, 1e-2, 0.01, STEPS.adam_beta2, 1.0)
    logged = [row for row in sft.curve(trainer.state.log_history) if "loss" in row]
    assert [row["loss"] for row in logged] == pytest.approx([step["loss"] for step in expected], abs=1e-4)
    assert logged[0]["loss"] == pytest.approx(expected[0]["loss"], abs=1e-5)
    for name, weight in trainer.model.state_dict().items():
        assert torch.equal(weight, before[name]) == ("lora_" not in name), name
        assert torch.allclose(weight, plain.state_dict()[name], atol=1e-4), name


@either_model
def test_accumulated_batches_give_the_loss_of_the_whole_batch(fixture, request, chains, tmp_path):
    """Long and short completions mixed, so that a mean of the parts' means would show; twice as many as a batch."""
    directory = request.getfixturevalue(fixture)
    train = chains[:5] + chains[8:13] + chains[20:26]
    losses = []
    for accumulation in (1, 2, 4):
        config = replace(STEPS, model=str(directory), accumulation=accumulation, steps=2)
        sft.train(config, train, train[:2], tmp_path / str(accumulation))
        losses.append([row["loss"] for row in read_curve(tmp_path / str(accumulation)) if "loss" in row])
    whole, *parts = losses
    assert len(whole) == 2 and whole[0] != pytest.approx(whole[1], abs=1e-3), "two different batches"
    for accumulated in parts:
        assert accumulated == pytest.approx(whole, abs=1e-5)


@pytest.mark.parametrize("floor", [0.0, 0.25])
def test_the_rate_comes_down_to_its_least(floor, tiny_llama, chains, tmp_path):
    config = replace(STEPS, learning_rate=1e-2, min_lr_rate=floor, warmup_steps=2)
    trainer, _ = trainer_for(config, tiny_llama, chains[:8], tmp_path)
    trainer.train()
    rates = [row["learning_rate"] for row in trainer.state.log_history if "loss" in row]
    assert rates == pytest.approx([oracle.learning_rate(step, 6, 2, 1e-2, floor) for step in range(6)], abs=1e-9)
    assert trainer.lr_scheduler.get_last_lr() == pytest.approx([floor * 1e-2] * 2, abs=1e-9)


@pytest.mark.parametrize("fixture, field", [("tiny_llama", "attention_dropout"), ("tiny_t5", "dropout_rate")])
def test_dropout_is_set_where_it_is_asked_for_and_left_as_it_is_elsewhere(fixture, field, request, chains):
    directory = str(request.getfixturevalue(fixture))
    for asked, expected in ((None, 0.0), (0.25, 0.25)):
        model, _ = sft.load(sft.Config(directory, dropout=asked, device="cpu"), chains)
        assert getattr(model.config, field) == expected
        losses = []
        for _ in range(2):
            ids = torch.tensor([[5, 9, 30, 4, 12, 7]])
            losses.append(model.train()(input_ids=ids, labels=ids).loss.item())
        assert (losses[0] == losses[1]) == (expected == 0)


# --- it learns, and leaves what it promises ---


def test_a_tiny_model_learns_32_chains_by_heart(trained_run, chains):
    model, tokenizer = models.load_model(str(trained_run / "model"), device="cpu")
    found = generation.generate(model, tokenizer, [prompts.prompt(p) for p in chains], max_new_tokens=16)
    right = sum(answers.is_verified(p, g.text) and g.finished for p, g in zip(chains, found, strict=True))
    assert right >= 0.95 * len(chains)


def test_an_encoder_decoder_learns(tiny_t5, chains, tmp_path):
    config = replace(STEPS, model=str(tiny_t5), steps=40, batch_size=16, log_steps=4)
    sft.train(config, chains[:16], chains[:4], tmp_path)
    losses = [row["loss"] for row in read_curve(tmp_path) if "loss" in row]
    assert losses[-1] < 0.4 * losses[0]


def test_a_run_leaves_model_curve_and_config_and_no_checkpoint(trained_run, tiny_llama):
    left = {path.name for path in trained_run.iterdir()} - {"README.md"}  # the library's model card
    assert left == {"model", "metrics.jsonl", "config.json"}
    config = sft.Config(**json.loads((trained_run / "config.json").read_text()))
    assert (config.model, config.steps) == (str(tiny_llama), 120)
    curve = read_curve(trained_run)
    assert [row["step"] for row in curve if "loss" in row] == list(range(12, 121, 12))
    assert [row["step"] for row in curve if "eval_loss" in row] == [30, 60, 90, 120]
    for row in curve:
        learned = {"step", "loss", "learning_rate", "grad_norm", "mean_token_accuracy"}
        assert set(row) == (learned if "loss" in row else {"step", "eval_loss", "eval_mean_token_accuracy"})


def test_a_preset_trained_on_examples_knows_their_words(chains, tmp_path):
    """Its tokenizer is built from what it will read and write: prompts and completions, and trains on both."""
    train = formatted(chains)
    config = sft.Config("llama_2x128", steps=1, batch_size=4, log_steps=1, vocab_size=400, device="cpu")
    sft.train(config, train, train[:4], tmp_path)
    tokenizer = models.load_tokenizer(str(tmp_path / "model"))
    assert [len(tokenizer(word)["input_ids"]) for word in (" answer", " step", "Let")] == [1, 1, 1]
    _, plain = sft.load(config, chains)
    assert len(plain(" answer")["input_ids"]) > 1


def test_a_preset_is_trained_from_scratch_and_loads_again(chains, tmp_path):
    config = sft.Config("llama_2x128", steps=2, batch_size=4, log_steps=1, device="cpu", seed=3)
    sft.train(config, chains[:8], chains[8:10], tmp_path)
    model, tokenizer = models.load_model(str(tmp_path / "model"), device="cpu")
    fresh, built = sft.load(config, chains[:8])
    assert tokenizer.get_vocab() == built.get_vocab() and len(tokenizer) == model.config.vocab_size
    models.seed_everything(3)
    again = models.from_scratch("llama_2x128", built)
    assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), again.parameters(), strict=True))
    assert not torch.equal(fresh.lm_head.weight, model.lm_head.weight), "two steps moved nothing"


def test_bfloat16_keeps_float32_master_weights(tiny_llama, chains, tmp_path):
    config = replace(STEPS, model=str(tiny_llama), dtype="bfloat16", steps=2)
    sft.train(config, chains[:8], chains[8:10], tmp_path)
    model, _ = models.load_model(str(tmp_path / "model"), device="cpu")
    saved = json.loads((tmp_path / "model" / "config.json").read_text())
    assert saved["dtype"] == "float32" and model.lm_head.weight.dtype == torch.float32


# --- too long, too odd ---


def test_problems_over_max_length_are_left_out_and_counted(tiny_llama, chains, capsys):
    tokenizer = models.load_tokenizer(str(tiny_llama))
    lengths = [len(sft.encode(tokenizer, p, "cot")["input_ids"]) for p in chains]
    limit = sorted(set(lengths))[1]
    data = sft.make_dataset(replace(STEPS, max_length=limit), tokenizer, chains)
    kept = [n for n in lengths if n <= limit]
    assert [len(row["input_ids"]) for row in data] == kept
    assert f"left out {32 - len(kept)} of 32 problems" in capsys.readouterr().out


def test_no_problem_left_is_one_sentence(tiny_llama, chains):
    tokenizer = models.load_tokenizer(str(tiny_llama))
    with pytest.raises(InputError, match="None of 32 problems fits into max_length = 5 tokens"):
        sft.make_dataset(replace(STEPS, max_length=5), tokenizer, chains)
    with pytest.raises(InputError, match="None of 0 problems"):
        sft.make_dataset(STEPS, tokenizer, [])


def test_settings_that_cannot_work_are_refused_before_anything_runs(tiny_llama, chains, tmp_path):
    for wrong, says in (
        ({"accumulation": 3}, "batch_size 8 is no multiple of accumulation 3"),
        ({"steps": 0}, "steps must be at least 1, not 0"),
        ({"style": "prose"}, "Unknown style 'prose'; use cot or answer_only"),
    ):
        with pytest.raises(InputError, match=says):
            replace(STEPS, **wrong)
    with pytest.raises(InputError, match="LoRA adapts a trained model"):
        sft.train(replace(STEPS, model="llama_tiny", lora_rank=4), chains, chains, tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_adapter_that_is_too_large_is_refused_before_anything_runs(tiny_llama, chains, tmp_path):
    config = replace(STEPS, model=str(tiny_llama), lora_rank=4, max_adapter_mb=0.001)
    with pytest.raises(InputError, match="A LoRA adapter of rank 4 takes .* no rank fits"):
        sft.train(config, chains, chains, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_scale_of_an_adapter_can_be_set(tiny_llama, chains, tmp_path):
    for alpha, wanted in ((0, 8), (20, 20)):
        sft.train(
            replace(STEPS, model=str(tiny_llama), steps=1, lora_rank=4, lora_alpha=alpha),
            chains,
            chains[:4],
            tmp_path / str(alpha),
        )
        found = json.loads((tmp_path / str(alpha) / "model" / "adapter_config.json").read_text())
        assert (found["r"], found["lora_alpha"]) == (4, wanted)


def test_a_model_that_learns_conversations_knows_their_turns_and_their_template():
    items = word_problems.generate(30, seed=1)
    speaker = tokenization.build_tokenizer([""])
    speaker.chat_template = prompts.CHATML
    talks = prompts.conversations(items, items, speaker, "Be brief.", 1)
    config = sft.Config(model="llama_tiny", device="cpu")
    _, tokenizer = sft.load(config, talks)
    again = prompts.conversations(items, items, tokenizer, "Be brief.", 1)
    assert [e.prompt for e in again] == [e.prompt for e in talks]
    for turn in tokenization.TURNS:
        (token,) = tokenizer(turn)["input_ids"]
        assert tokenizer.decode([token], skip_special_tokens=True) == ""
    _, plain = sft.load(config, items)
    assert plain.chat_template is None and len(plain(tokenization.TURNS[0])["input_ids"]) > 1


# --- interrupted runs ---

# 20 problems in batches of 8: three steps an epoch, the last of them short; checkpoints at 2, 4, ... 10 and at the end.
LONG = replace(STEPS, steps=11, log_steps=2)


def weights(directory):
    return {path.name: path.read_bytes() for path in (directory / "model").glob("*.safetensors")}


def same_end(one, two):
    assert weights(one), "no weights were saved"
    assert weights(one) == weights(two)
    assert (one / "metrics.jsonl").read_text() == (two / "metrics.jsonl").read_text()


class Cut(Exception):
    """The power fails."""


def cut_at(monkeypatch, step, mark=False):
    """Have training stop when the checkpoint of `step` stands: not yet marked complete, or just marked."""
    real = trainers.mark_complete

    def failing(checkpoint):
        if checkpoint.name != f"checkpoint-{step}" or mark:
            real(checkpoint)
        if checkpoint.name == f"checkpoint-{step}":
            raise Cut

    monkeypatch.setattr(trainers, "mark_complete", failing)


@pytest.fixture(scope="module")
def undisturbed(tiny_llama, chains, tmp_path_factory):
    directory = tmp_path_factory.mktemp("undisturbed")
    sft.train(replace(LONG, model=str(tiny_llama)), chains[:20], chains[20:24], directory)
    return directory


def test_a_run_repeats_to_the_bit_and_another_seed_does_not(undisturbed, tiny_llama, chains, tmp_path):
    config = replace(LONG, model=str(tiny_llama))
    sft.train(config, chains[:20], chains[20:24], tmp_path / "again")
    same_end(undisturbed, tmp_path / "again")
    sft.train(replace(config, seed=1), chains[:20], chains[20:24], tmp_path / "other")
    assert weights(undisturbed) != weights(tmp_path / "other")


@pytest.mark.parametrize("step, mark", [(6, True), (6, False), (2, False), (10, True)])
def test_a_run_cut_off_at_a_checkpoint_ends_as_an_undisturbed_one(
    step, mark, undisturbed, tiny_llama, chains, tmp_path, monkeypatch
):
    config = replace(LONG, model=str(tiny_llama))
    with monkeypatch.context() as patch, pytest.raises(Cut):
        cut_at(patch, step, mark)
        sft.train(config, chains[:20], chains[20:24], tmp_path)
    newest = tmp_path / f"checkpoint-{step}"
    assert (newest / "complete").exists() == mark
    if not mark:
        (newest / "model.safetensors").write_bytes(b"half a fi")
    sft.train(config, chains[:20], chains[20:24], tmp_path)
    same_end(undisturbed, tmp_path)


def test_a_checkpoint_cut_off_while_it_is_deleted_does_not_pass_for_complete(tmp_path, monkeypatch):
    """Deleting begins with the mark, whatever order the files then go in."""
    checkpoint = tmp_path / "checkpoint-4"
    checkpoint.mkdir()
    for name in ("optimizer.pt", "complete"):
        (checkpoint / name).touch()

    def killed(path):
        (path / "optimizer.pt").unlink()
        raise Cut

    with monkeypatch.context() as patch, pytest.raises(Cut):
        patch.setattr(trainers.shutil, "rmtree", killed)
        trainers.discard(checkpoint)
    assert trainers.last_checkpoint(tmp_path) is None and not checkpoint.exists()


def test_what_was_done_before_the_cut_is_not_done_again(tiny_llama, chains, tmp_path, monkeypatch):
    config = replace(LONG, model=str(tiny_llama))
    with monkeypatch.context() as patch, pytest.raises(Cut):
        cut_at(patch, 6, mark=True)
        sft.train(config, chains[:20], chains[20:24], tmp_path)
    saved, real = [], trainers.mark_complete
    monkeypatch.setattr(trainers, "mark_complete", lambda checkpoint: (saved.append(checkpoint.name), real(checkpoint)))
    sft.train(config, chains[:20], chains[20:24], tmp_path)
    assert saved == ["checkpoint-8", "checkpoint-10"]


@pytest.mark.parametrize("fixture, rank", [("tiny_llama", 4), ("tiny_t5", 0)])
def test_other_kinds_of_training_resume_to_the_bit_too(fixture, rank, request, chains, tmp_path, monkeypatch):
    config = replace(LONG, model=str(request.getfixturevalue(fixture)), lora_rank=rank, steps=6)
    sft.train(config, chains[:20], chains[20:24], tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Cut):
        cut_at(patch, 4, mark=False)
        sft.train(config, chains[:20], chains[20:24], tmp_path / "cut")
    sft.train(config, chains[:20], chains[20:24], tmp_path / "cut")
    same_end(tmp_path / "whole", tmp_path / "cut")


KILLED = """
import json, os, signal, sys
from lib import problems, sft, trainers
real = trainers.mark_complete
def mark(checkpoint):
    if checkpoint.name == "checkpoint-6":
        os.kill(os.getpid(), signal.SIGKILL)
    real(checkpoint)
trainers.mark_complete = mark
config, train, valid, out_dir = sys.argv[1:]
sft.train(sft.Config(**json.loads(config)), problems.read_jsonl(train), problems.read_jsonl(valid), out_dir)
"""


def test_a_killed_process_leaves_a_run_that_ends_as_an_undisturbed_one(undisturbed, tiny_llama, chains, tmp_path):
    from lib.problems import write_jsonl

    config, out_dir = replace(LONG, model=str(tiny_llama)), tmp_path / "out"
    files = write_jsonl(tmp_path / "train.jsonl", chains[:20]), write_jsonl(tmp_path / "valid.jsonl", chains[20:24])
    command = [sys.executable, "-c", KILLED, json.dumps(asdict(config)), *map(str, files), str(out_dir)]
    root = Path(sft.__file__).parents[1]
    done = subprocess.run(command, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True)
    assert done.returncode == -9, done.stderr.decode()[-2000:]
    assert {path.name for path in out_dir.glob("checkpoint-*")} == {"checkpoint-4", "checkpoint-6"}
    sft.train(config, chains[:20], chains[20:24], out_dir)
    same_end(undisturbed, out_dir)


def test_only_complete_checkpoints_count_and_their_numbers_order_them(tmp_path):
    for step, complete in ((80, True), (90, True), (100, True), (110, False)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "weights").write_text("x")
        if complete:
            trainers.mark_complete(tmp_path / f"checkpoint-{step}")
    assert trainers.last_checkpoint(tmp_path).name == "checkpoint-100"
    assert not (tmp_path / "checkpoint-110").exists()
    assert trainers.last_checkpoint(tmp_path / "nowhere") is None


def test_a_checkpoint_stands_at_every_tenth_at_least(tmp_path):
    """Where the curve has a point too, so that an interrupted run's curve goes on; a short run has a curve as well."""
    for steps, log_steps, every in ((600, 20, 60), (1200, 20, 120), (250, 20, 40), (5, 20, 1)):
        config = replace(STEPS, steps=steps, log_steps=log_steps)
        arguments = sft.trainer_arguments(config, tmp_path, torch.device("cpu"))
        assert arguments["save_steps"] == every
        assert every % arguments["logging_steps"] == 0 and arguments["logging_steps"] <= steps
