"""Preference training of encoder-decoder models: batches, log-probabilities, losses and the figures that are logged."""

from dataclasses import replace

import pytest
import torch

from lib import dpo, models, seq2seq_dpo
from tests.oracles import dpo as oracle
from tests.preferring import STEPS, trainer_for

LOSSES = [("sigmoid", 0.0), ("ipo", 0.0), ("hinge", 0.0), ("sigmoid", 0.7), ("hinge", 0.2)]
every_loss = pytest.mark.parametrize("loss, sft_weight", LOSSES)


@pytest.fixture
def t5(tiny_t5):
    """A T5 in double precision, and its tokenizer."""
    return oracle.in_double(tiny_t5), models.load_tokenizer(str(tiny_t5))


# --- batches ---


def test_a_batch_holds_every_id_once_and_padding_elsewhere(t5, pairs):
    _, tokenizer = t5
    rows = dpo.encode(tokenizer, [pairs[0], pairs[10], pairs[25]])
    batch = seq2seq_dpo.make_batch(rows, 0)
    assert batch["labels"].shape[:2] == (2, 3) and "reference" not in batch
    for i, row in enumerate(rows):
        mask = batch["attention_mask"][i].bool()
        assert batch["input_ids"][i][mask].tolist() == row["prompt_ids"] and mask[: len(row["prompt_ids"])].all()
        assert (batch["input_ids"][i][~mask] == 0).all()
        for side, key in enumerate(("chosen_ids", "rejected_ids")):
            labels = batch["labels"][side, i].tolist()
            assert labels == row[key] + [-100] * (len(labels) - len(row[key])), "no id but -100 is padding"
    assert (batch["labels"] == -100).any() and (batch["attention_mask"] == 0).any()
    assert batch["labels"].shape[2] == max(len(row[key]) for row in rows for key in ("chosen_ids", "rejected_ids"))


def test_a_batch_holds_the_reference_in_the_order_of_its_completions(t5, pairs):
    _, tokenizer = t5
    rows = [
        row | {"ref_chosen_logps": -float(i), "ref_rejected_logps": -10.0 - i}
        for i, row in enumerate(dpo.encode(tokenizer, pairs[:3]))
    ]
    assert seq2seq_dpo.make_batch(rows, 0)["reference"].tolist() == [[0, -1, -2], [-10, -11, -12]]


# --- log-probabilities ---


def test_log_probabilities_are_those_of_the_oracle_whatever_the_padding(t5, pairs):
    model, tokenizer = t5
    oracle.disturb(model)
    rows = dpo.encode(tokenizer, pairs[::4])
    with torch.no_grad():
        sums, tokens = seq2seq_dpo.log_probabilities(model, seq2seq_dpo.make_batch(rows, 0))
        for i, row in enumerate(rows):
            for side, key in enumerate(("chosen_ids", "rejected_ids")):
                expected = sum(oracle.log_probabilities(model, row["prompt_ids"], row[key]))
                assert sums[side, i].item() == pytest.approx(expected.item(), abs=1e-5)
                assert tokens[side, i] == len(row[key])
    assert sums.shape == (2, len(rows)) and sums.dtype == torch.float64


def test_pad_as_end_of_sequence_is_an_end_that_counts(t5, pairs):
    """Where a tokenizer pads with its end-of-sequence token, the end is learned all the same."""
    model, tokenizer = t5
    rows = dpo.encode(tokenizer, [pairs[1], pairs[25]])
    with torch.no_grad():
        usual, others = [
            seq2seq_dpo.log_probabilities(model, seq2seq_dpo.make_batch(rows, pad))
            for pad in (0, tokenizer.eos_token_id)
        ]
    assert torch.allclose(usual[0], others[0], atol=1e-6) and torch.equal(usual[1], others[1])


def test_the_encoder_reads_a_prompt_once(t5, pairs):
    model, tokenizer = t5
    seen = []
    model.get_encoder().register_forward_hook(lambda module, args, output: seen.append(output[0].shape[0]))
    seq2seq_dpo.log_probabilities(model, seq2seq_dpo.make_batch(dpo.encode(tokenizer, pairs[:5]), 0))
    assert seen == [5]


# --- losses ---


@every_loss
def test_losses_are_those_of_trl_for_the_same_log_probabilities(loss, sft_weight, tiny_llama, pairs, tmp_path):
    config = replace(STEPS, batch_size=5, beta=0.3, loss=loss, sft_weight=sft_weight)
    trainer, _ = trainer_for(config, tiny_llama, pairs[5:10], tmp_path)
    (batch,) = trainer.get_train_dataloader()
    reference = torch.stack(trainer.compute_ref_log_probs(trainer.ref_model, batch))
    oracle.disturb(trainer.model)
    logps = torch.stack(trainer.compute_ref_log_probs(trainer.model, batch))
    tokens = batch["completion_mask"].sum(1).unflatten(0, (2, 5))
    found, rewards = seq2seq_dpo.losses(config, logps, reference, tokens)
    theirs = trainer.compute_loss(trainer.model, batch).item()
    assert found.shape == (5,) and rewards.shape == (2, 5)
    assert found.mean().item() == pytest.approx(theirs, abs=2e-5, rel=1e-6)
    assert torch.allclose(rewards, 0.3 * (logps - reference))


@every_loss
def test_losses_by_hand(loss, sft_weight):
    """Pairs that are won by far, lost by far, and neither; the SFT term is one mean over all chosen tokens."""
    config = replace(STEPS, beta=0.5, loss=loss, sft_weight=sft_weight)
    logps = torch.tensor([[-2.0, -9.0, -4.0], [-8.0, -3.0, -4.0]], dtype=torch.float64)
    reference = torch.tensor([[-5.0, -5.0, -4.0], [-5.0, -5.0, -4.0]], dtype=torch.float64)
    tokens = torch.tensor([[2, 3, 4], [5, 1, 2]])
    found, _ = seq2seq_dpo.losses(config, logps, reference, tokens)
    columns = zip(logps.T, reference.T, tokens.T, strict=True)
    expected = [oracle.pair_loss(loss, 0.5, p, r, n).item() + sft_weight * 15 / 9 for p, r, n in columns]
    assert found.tolist() == pytest.approx(expected, abs=1e-9)
    assert expected[0] < expected[2] < expected[1] or loss == "ipo"


def test_losses_stay_finite_for_pairs_lost_by_far():
    logps, reference = torch.tensor([[-5000.0], [0.0]]), torch.tensor([[0.0], [-5000.0]])
    found, _ = seq2seq_dpo.losses(replace(STEPS, beta=1.0), logps, reference, torch.ones(2, 1))
    assert found.item() == pytest.approx(10000)


# --- the reference ---


@pytest.mark.parametrize("fixture", ["tiny_t5", "t5_adapter"])
def test_the_reference_is_the_model_before_training_in_batches_of_any_size(fixture, request, pairs):
    directory = request.getfixturevalue(fixture)
    model, tokenizer = dpo.load(STEPS, directory)
    data = dpo.make_dataset(STEPS, tokenizer, pairs[:7])
    double, found = oracle.in_double(directory), []
    for size in (1, 3, 8):
        model.train()
        rows = seq2seq_dpo.with_reference(replace(STEPS, batch_size=size), model, data, 0).to_list()
        found.append([[row["ref_chosen_logps"], row["ref_rejected_logps"]] for row in rows])
        assert model.training
        assert [{k: v for k, v in row.items() if "logps" not in k} for row in rows] == data.to_list()
    for row, logps in zip(data.to_list(), zip(*found, strict=True), strict=True):
        for side, key in enumerate(("chosen_ids", "rejected_ids")):
            with torch.no_grad():
                expected = sum(oracle.log_probabilities(double, row["prompt_ids"], row[key])).item()
            assert [both[side] for both in logps] == pytest.approx([expected] * 3, abs=1e-4)


def test_the_reference_is_computed_without_dropout(tiny_t5, pairs):
    model, tokenizer = models.load_model(str(tiny_t5), device="cpu", dropout=0.3)
    data, found = dpo.make_dataset(STEPS, tokenizer, pairs[:4]), []
    for loaded in (model, dpo.load(STEPS, tiny_t5)[0]):
        found.append(seq2seq_dpo.with_reference(STEPS, loaded.train(), data, 0)["ref_rejected_logps"][:])
    assert found[0] == pytest.approx(found[1], abs=1e-5)


def test_the_reference_stays_while_the_model_moves(tiny_t5, pairs, tmp_path):
    trainer, _ = trainer_for(STEPS, tiny_t5, pairs[:8], tmp_path)
    before = trainer.train_dataset.to_list()
    trainer.train()
    assert trainer.train_dataset.to_list() == before
    rewards = [row["rewards/chosen"] for row in trainer.state.log_history if "loss" in row]
    assert rewards[0] == pytest.approx(0, abs=1e-5) and abs(rewards[-1]) > 0.1


# --- the figures ---


def test_logged_figures_are_means_over_the_pairs_since_the_last_log(tiny_t5, pairs, tmp_path):
    """Of 11 pairs in batches of 4 and of 2 at a pass, the last one smaller; a rate of 0 leaves the model as it is."""
    config = replace(STEPS, steps=30, learning_rate=0.0, batch_size=4, accumulation=2, beta=0.3, log_steps=3)
    trainer, tokenizer = trainer_for(config, tiny_t5, pairs[:11], tmp_path, pairs[11:18])
    reference = oracle.in_double(tiny_t5)
    oracle.disturb(trainer.model)
    models.save_model(trainer.model, tokenizer, tmp_path)
    trainer.train()
    history = dpo.curve(trainer.state.log_history)
    trained = [row for row in history if "loss" in row]
    watched = [row for row in history if "eval_loss" in row]
    assert [row["step"] for row in trained] == [1, *range(3, 31, 3)], "each third step ends an epoch"
    moved = oracle.in_double(tmp_path)
    for rows, prefix, items in ((trained[2:], "", pairs[:11]), (watched, "eval_", pairs[11:18])):
        with torch.no_grad():
            _, figures = oracle.dpo("sigmoid", 0.3, 0, moved, reference, dpo.encode(tokenizer, items))
        assert len(rows) >= 4
        for row in rows:
            for name, value in figures.items():
                assert row[prefix + name] == pytest.approx(value, abs=2e-4), name


def test_watching_does_not_train_and_training_figures_are_not_mixed_with_it(tiny_t5, pairs, tmp_path):
    dpo.train(STEPS, pairs[:8], pairs[20:28], tiny_t5, tmp_path / "watched")
    dpo.train(STEPS, pairs[:8], [], tiny_t5, tmp_path / "alone")
    read = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("watched", "alone")]
    assert [line for line in read[0] if "eval_loss" not in line] == read[1]
