"""Preference training of both kinds of model: losses against a plain oracle, references, encoding, refusals, KTO.

What is the encoder-decoder's alone stands in test_seq2seq_dpo.py; what a run leaves, and resuming, in test_dpo_runs.py.
"""

import math
import re
from dataclasses import replace

import pytest
import torch

from lib import dpo, models, sft
from lib.errors import InputError
from lib.preferences import Opinion, Pair
from lib.prompts import Example
from tests.oracles import dpo as oracle
from tests.preferring import SETUPS, STEPS, curve, easy, opinions, trainer_for, with_config

KTO = replace(STEPS, loss="kto")
either_model = pytest.mark.parametrize("fixture", ["tiny_llama", "tiny_t5"])
every_setup = pytest.mark.parametrize("setup", SETUPS)


# --- the loss ---


@every_setup
def test_the_first_loss_is_ln_2_whatever_the_reference(setup, request, pairs, tmp_path):
    fixture, changes = SETUPS[setup]
    config = replace(STEPS, steps=2, **changes)
    dpo.train(config, pairs[:8], pairs[8:11], request.getfixturevalue(fixture), tmp_path)
    assert curve(tmp_path)[0] == pytest.approx(math.log(2), abs=5e-5)
    assert curve(tmp_path, "rewards/chosen")[0] == pytest.approx(0, abs=1e-5)
    trainer, _ = trainer_for(replace(config, beta=1.0), request.getfixturevalue(fixture), pairs[:8], tmp_path)
    trainer.model.train()
    (batch,) = trainer.get_train_dataloader()
    assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(math.log(2), abs=1e-4)


@every_setup
def test_the_loss_and_its_figures_are_those_of_the_oracle_once_the_model_has_moved(setup, request, pairs, tmp_path):
    """Three pairs of different lengths, one rejected completion without its end, through the trainer's own batch."""
    fixture, changes = SETUPS[setup]
    directory = request.getfixturevalue(fixture)
    config = replace(STEPS, steps=1, learning_rate=0.0, batch_size=3, beta=0.3, **changes)
    three = [pairs[0], pairs[10], pairs[25]]
    assert [p.finished for p in three].count(False) == 1
    trainer, tokenizer = trainer_for(config, directory, three, tmp_path, three)
    oracle.disturb(trainer.model)
    models.save_model(trainer.model, tokenizer, tmp_path / "moved")
    moved, reference = oracle.in_double(tmp_path / "moved"), oracle.in_double(directory)
    expected, figures = oracle.dpo("sigmoid", 0.3, 0, moved, reference, dpo.encode(tokenizer, three))
    assert abs(expected.item() - math.log(2)) > 1e-2, "the model has hardly moved, so this test saw nothing"
    trainer.train()
    trained, watched = dpo.curve(trainer.state.log_history)
    for name, value in figures.items():
        assert trained[name] == pytest.approx(value, abs=1e-4), name
        assert watched[f"eval_{name}"] == pytest.approx(value, abs=1e-4), name
    (batch,) = trainer.get_train_dataloader()
    losses = trained["loss"], watched["eval_loss"], trainer.compute_loss(trainer.model, batch).item()
    assert losses == pytest.approx([expected.item()] * 3, abs=1e-6)


@pytest.mark.parametrize("loss, sft_weight", [("sigmoid", 0.0), ("ipo", 0.0), ("hinge", 0.0), ("sigmoid", 0.7)])
@either_model
def test_every_loss_and_its_gradient_are_those_of_the_oracle(fixture, loss, sft_weight, request, pairs, tmp_path):
    directory = request.getfixturevalue(fixture)
    config = replace(STEPS, batch_size=3, beta=0.3, loss=loss, sft_weight=sft_weight)
    three = [pairs[0], replace(pairs[10], prompt=pairs[10].prompt * 6), pairs[25]]
    trainer, tokenizer = trainer_for(config, directory, three, tmp_path)
    (batch,) = trainer.get_train_dataloader()
    oracle.disturb(trainer.model)
    trainer.model.train()
    models.save_model(trainer.model, tokenizer, tmp_path)
    moved, reference = oracle.in_double(tmp_path), oracle.in_double(directory)
    found = trainer.compute_loss(trainer.model, batch)
    expected, _ = oracle.dpo(loss, 0.3, sft_weight, moved, reference, dpo.encode(tokenizer, three))
    assert found.item() == pytest.approx(expected.item(), abs=1e-6, rel=1e-6)
    found.backward()
    expected.backward()
    wanted = dict(moved.named_parameters())
    for name, weight in trainer.model.named_parameters():
        close, scale = wanted[name].grad, wanted[name].grad.norm()
        assert (weight.grad - close).norm() <= 2e-5 * scale + 1e-9, name


@pytest.mark.parametrize("setup", ["full", "new adapter", "trained adapter"])
def test_copied_and_precomputed_references_give_the_same_losses(setup, request, pairs, tmp_path):
    fixture, changes = SETUPS[setup if setup != "full" else "full, copied"]
    for kind in ("copy", "precomputed"):
        config = replace(STEPS, reference=kind, **changes)
        dpo.train(config, pairs[:20], pairs[20:24], request.getfixturevalue(fixture), tmp_path / kind)
    for key in ("loss", "eval_loss", "rewards/margins"):
        copied = curve(tmp_path / "copy", key)
        assert copied[-1] != pytest.approx(copied[0], abs=5e-3), "nothing was learned"
        assert curve(tmp_path / "precomputed", key) == pytest.approx(copied, abs=5e-5), key


@pytest.mark.parametrize("fixture, rates", [("tiny_llama", "attention_dropout"), ("tiny_t5", "dropout_rate")])
def test_dropout_in_the_saved_config_is_off(fixture, rates, request, chains, pairs, tmp_path):
    """Else model and reference would differ before the first step, as they do where a model is loaded as it is."""
    model = with_config(request.getfixturevalue(fixture), tmp_path / "dropout", **{rates: 0.1})
    dpo.train(replace(STEPS, steps=2), pairs[:8], [], model, tmp_path / "out")
    assert curve(tmp_path / "out")[0] == pytest.approx(math.log(2), abs=5e-5)
    sft.train(sft.Config(str(model), steps=2, lora_rank=4, device="cpu"), chains, chains[:4], tmp_path / "adapter")
    dpo.train(replace(STEPS, steps=2), pairs[:8], [], tmp_path / "adapter" / "model", tmp_path / "further")
    assert curve(tmp_path / "further")[0] == pytest.approx(math.log(2), abs=5e-5)

    loaded, tokenizer = models.load_model(str(model), device="cpu")
    data = dpo.make_dataset(STEPS, tokenizer, pairs[:8])
    trainer = dpo.make_trainer(replace(STEPS, beta=1.0), loaded, tokenizer, data, None, tmp_path)
    trainer.model.train()
    (batch,) = trainer.get_train_dataloader()
    assert trainer.compute_loss(trainer.model, batch).item() != pytest.approx(math.log(2), abs=1e-3)


@pytest.mark.parametrize("fixture", ["llama_adapter", "t5_adapter"])
def test_dropout_of_an_adapter_is_off(fixture, request, pairs, tmp_path):
    adapter = request.getfixturevalue(fixture)
    model = with_config(adapter, tmp_path / "dropout", "adapter_config.json", lora_dropout=0.5)
    dpo.train(replace(STEPS, steps=2), pairs[:8], [], model, tmp_path / "out")
    assert curve(tmp_path / "out")[0] == pytest.approx(math.log(2), abs=5e-5)


# --- it learns ---


@either_model
def test_a_tiny_model_learns_a_preference_that_holds_for_other_problems(fixture, request, pairs, tmp_path):
    directory, plain = request.getfixturevalue(fixture), easy(pairs)
    config = replace(STEPS, steps=30, learning_rate=5e-3, log_steps=5)
    dpo.train(config, plain[:24], plain[24:], directory, tmp_path)
    assert curve(tmp_path)[-1] < 0.3 and curve(tmp_path, "rewards/accuracies")[-1] > 0.95
    assert curve(tmp_path, "eval_rewards/margins")[-1] > 1
    before, after = oracle.in_double(directory), oracle.in_double(tmp_path / "model")
    for row in dpo.encode(models.load_tokenizer(str(directory)), plain[24:28]):
        with torch.no_grad():
            margins = [
                sum(oracle.log_probabilities(model, row["prompt_ids"], row["chosen_ids"]))
                - sum(oracle.log_probabilities(model, row["prompt_ids"], row["rejected_ids"]))
                for model in (before, after)
            ]
        assert margins[1] > margins[0] + 5


# --- encoding ---


@either_model
def test_prompt_and_completion_are_tokenised_apart_and_only_what_ended_has_an_end(fixture, request, pairs):
    tokenizer = models.load_tokenizer(str(request.getfixturevalue(fixture)))
    rows = dpo.encode(tokenizer, pairs)
    assert len(rows) == 32 and {p.finished for p in pairs} == {True, False}
    for row, pair in zip(rows, pairs, strict=True):
        assert row["prompt_ids"] == tokenizer(pair.prompt)["input_ids"]
        assert row["chosen_ids"] == tokenizer(pair.chosen)["input_ids"] + [1]
        assert row["rejected_ids"] == tokenizer(pair.rejected)["input_ids"] + [1] * pair.finished
    made = opinions(pairs[:6])
    for row, opinion in zip(dpo.encode(tokenizer, made), made, strict=True):
        assert row["completion_ids"] == tokenizer(opinion.completion)["input_ids"] + [1] * opinion.finished
        assert (row["prompt_ids"], row["label"]) == (tokenizer(opinion.prompt)["input_ids"], opinion.right)


def test_the_chosen_ids_are_those_of_fine_tuning(tiny_llama, chains, pairs):
    tokenizer = models.load_tokenizer(str(tiny_llama))
    for chain, pair, row in zip(chains, pairs, dpo.encode(tokenizer, pairs), strict=True):
        learned = Example(chain, pair.prompt, pair.chosen, "cot")
        assert sft.encode(tokenizer, learned, "cot")["input_ids"] == row["prompt_ids"] + row["chosen_ids"]
        two_sided = sft.encode(tokenizer, learned, "cot", encoder_decoder=True)
        assert two_sided == {"input_ids": row["prompt_ids"], "labels": row["chosen_ids"]}


def test_a_prompt_has_one_first_token_and_a_completion_none(tiny_llama):
    from tokenizers.processors import TemplateProcessing

    tokenizer = models.load_tokenizer(str(tiny_llama))
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    bos = tokenizer.bos_token_id
    template = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    tokenizer.backend_tokenizer.post_processor = template
    for prompt in ("v1 ?\n", "<s>v1 ?\n"):
        (row,) = dpo.encode(tokenizer, [Pair("a", prompt, "#### 1", "#### 2", True, 0.0)])
        assert row["prompt_ids"][0] == bos and row["prompt_ids"].count(bos) == 1
        assert bos not in row["chosen_ids"] + row["rejected_ids"]


def test_pairs_too_long_or_empty_are_left_out_and_counted(tiny_llama, pairs, capsys):
    tokenizer = models.load_tokenizer(str(tiny_llama))
    rows = dpo.encode(tokenizer, pairs)
    lengths = [len(r["prompt_ids"]) + max(len(r["chosen_ids"]), len(r["rejected_ids"])) for r in rows]
    limit = sorted(set(lengths))[2]
    empty = replace(pairs[0], rejected="", finished=False)
    data = dpo.make_dataset(replace(STEPS, max_length=limit), tokenizer, [empty, *pairs])
    assert data.to_list() == [row for row, length in zip(rows, lengths, strict=True) if length <= limit]
    assert 0 < len(data) < 32 and f"left out {33 - len(data)} of 33 preferences" in capsys.readouterr().out
    assert len(dpo.make_dataset(STEPS, tokenizer, [empty, *pairs])) == 32
    assert len(dpo.make_dataset(STEPS, tokenizer, [replace(empty, finished=True)])) == 1, "an end alone is a completion"


def test_no_pair_left_is_one_sentence(tiny_llama, pairs):
    tokenizer = models.load_tokenizer(str(tiny_llama))
    for items, limit in ((pairs, 5), ([], 512)):
        with pytest.raises(
            InputError, match=f"^None of {len(items)} preferences .* {limit} tokens.*problems.*[.]$"
        ) as caught:
            dpo.make_dataset(replace(STEPS, max_length=limit), tokenizer, items)
        assert "\n" not in str(caught.value) and ". " not in str(caught.value)


# --- what cannot work ---


@pytest.mark.parametrize(
    "wrong, says",
    [
        ({"loss": "orpo"}, "Unknown loss 'orpo'; use sigmoid, ipo, hinge, kto"),
        ({"reference": "none"}, "Unknown reference 'none'; use copy or precomputed"),
        ({"steps": 0}, "steps must be at least 1, not 0"),
        ({"log_steps": 0}, "log_steps must be at least 1"),
        ({"accumulation": 3}, "batch_size 8 is no multiple of accumulation 3"),
        ({"beta": 0.0}, "beta must be above 0"),
        ({"sft_weight": -0.1}, "sft_weight at least 0"),
        ({"loss": "kto", "sft_weight": 0.1}, "sft_weight goes with pairs"),
        ({"loss": "kto", "accumulation": 8}, "at least 2 a forward pass"),
        ({"loss": "kto", "batch_size": 1}, "at least 2 a forward pass"),
    ],
)
def test_settings_that_cannot_work_are_refused(wrong, says):
    with pytest.raises(InputError, match=re.escape(says)):
        replace(STEPS, **wrong)


def test_models_that_cannot_be_preferred_with_are_refused_in_one_sentence(llama_adapter, tiny_t5, pairs, tmp_path):
    for config, items, model, says in (
        (STEPS, pairs, "llama_tiny", "llama_tiny is an untrained preset"),
        (replace(STEPS, lora_rank=4), pairs, llama_adapter, "is an adapter and is trained further as it is"),
        (KTO, opinions(pairs), tiny_t5, "KTO is for causal models"),
    ):
        with pytest.raises(InputError, match=says) as caught:
            dpo.train(config, items, [], model, tmp_path)
        assert str(caught.value).endswith(".") and ". " not in str(caught.value)
    assert not list(tmp_path.iterdir())


# --- KTO ---


@pytest.mark.parametrize("setup", ["full, copied", "full, precomputed", "new adapter", "trained adapter"])
def test_the_kto_loss_is_one_half_at_first_and_the_formula_later(setup, request, pairs, tmp_path):
    fixture, changes = SETUPS[setup]
    directory, config = request.getfixturevalue(fixture), replace(KTO, batch_size=6, beta=0.3, **changes)
    six = opinions([pairs[0], pairs[10], pairs[25], pairs[3]])
    trainer, tokenizer = trainer_for(config, directory, six, tmp_path)
    trainer.model.train()
    (batch,) = trainer.get_train_dataloader()
    at_first = 0.5 * (4 * 1 + 2 * 2) / 6  # four right ones, two wrong ones that count double
    assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(at_first, abs=1e-6)
    oracle.disturb(trainer.model)
    models.save_model(trainer.model, tokenizer, tmp_path / "moved")
    moved, reference = oracle.in_double(tmp_path / "moved"), oracle.in_double(directory)
    with torch.no_grad():
        expected, kl = oracle.kto(0.3, moved, reference, dpo.encode(tokenizer, six))
    assert abs(expected - at_first) > 1e-2, "the model has hardly moved, so this test saw nothing"
    assert (kl > 0.1) == ("full" in setup), "both a KL and one cut off at 0 are seen"
    assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("right, wrong, expected", [(9, 3, (1, 3)), (2, 8, (4, 1)), (4, 4, (1, 1)), (5, 0, (1, 5))])
def test_right_and_wrong_opinions_weigh_alike(right, wrong, expected, tiny_llama, pairs, tmp_path):
    """Eq. 8 of the paper: weight times number is the same of both kinds."""
    items = [Opinion("a", pairs[0].prompt, pairs[i].chosen, True, i < right) for i in range(right + wrong)]
    trainer, _ = trainer_for(KTO, tiny_llama, items, tmp_path)
    assert (trainer.desirable_weight, trainer.undesirable_weight) == expected


def test_completions_are_mismatched_within_their_batch_and_batches_keep_their_order(tiny_llama, pairs, tmp_path):
    items = opinions(pairs)[:11]
    trainer, _ = trainer_for(replace(KTO, batch_size=8, accumulation=2), tiny_llama, items, tmp_path, items[:6])
    for loader in (trainer.get_train_dataloader(), trainer.get_train_dataloader(), trainer.get_eval_dataloader()):
        for batch in loader:
            own, other = [
                [
                    ids[mask.bool()].tolist()
                    for ids, mask in zip(batch[f"{name}input_ids"], batch[f"{name}completion_mask"], strict=True)
                ]
                for name in ("", "KL_")
            ]
            assert len(own) in (2, 3, 4) and other == [own[-1], *own[:-1]]


def test_kto_learns(tiny_llama, pairs, tmp_path):
    config = replace(KTO, steps=30, learning_rate=5e-3, log_steps=5)
    watched = sorted(opinions(easy(pairs[24:])), key=lambda x: x.problem)
    dpo.train(config, opinions(easy(pairs[:24])), watched, tiny_llama, tmp_path)
    assert curve(tmp_path)[-1] < 0.6 * curve(tmp_path)[0]
    assert curve(tmp_path, "eval_rewards/margins")[-1] > 1 and curve(tmp_path, "kl")[0] == 0
