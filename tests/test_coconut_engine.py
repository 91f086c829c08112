"""The model that thinks against the slow, obvious one: logits, gradients, padding, parallel thoughts, markers.

The models of the oracle have logits of size 6 to 30 and outputs that differ from token to token; the differences that
are allowed (2e-5 in a logit, 1e-5 of a gradient's norm) are float32 rounding at that size.
"""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lib import models
from lib.coconut import sequences
from lib.coconut.engine import Coconut, add_tokens
from lib.errors import InputError
from tests.oracles import coconut as oracle

LATENT = oracle.MARKERS[2]
NO_MARKERS = (None, None, LATENT)  # thoughts, and nothing around them
MIXED = [(5, 3, 4, 2), (9, 1, 0, 3), (7, 0, 6, 2), (3, 4, 2, 1)]  # question, thoughts, steps, answer
CLOSE = dict(rtol=0, atol=2e-5)
every_kind = pytest.mark.parametrize("kind", oracle.KINDS)


def batch_of(rows, pad_id=0, markers=oracle.MARKERS, **how):
    """The batch of rows of `oracle.random_rows`, none of their steps left out."""
    made = []
    for question, thoughts, steps, answer in rows:
        encoded = {"question": question, "steps": [steps], "answer": answer}
        made.append(sequences.row(encoded, 0, thoughts, markers))
    return sequences.make_batch(made, pad_id, **how)


def pad_more(batch, left, right, pad_id):
    """The same batch with so many more columns of padding on either side."""
    fillers = {"input_ids": pad_id, "attention_mask": 0, "position_ids": 0, "labels": -100}
    more = {name: torch.nn.functional.pad(batch[name], (left, right), value=value) for name, value in fillers.items()}
    return batch | more | {"first": batch["first"] + left}


def own_logits(thinker, batch, edit=None):
    """The logits (length, vocabulary) of each row, padding aside."""
    every = thinker.head(thinker.hidden(batch, edit=edit))
    return [row[mask.bool()] for row, mask in zip(every, batch["attention_mask"], strict=True)]


def same_gradients(model, one, other, close=1e-5):
    """Do two losses have the same gradient in every weight, to `close` of its norm?"""
    weights = dict(model.named_parameters())
    found = torch.autograd.grad(one, list(weights.values()), retain_graph=True)
    expected = torch.autograd.grad(other, list(weights.values()), retain_graph=True)
    for name, ours, theirs in zip(weights, found, expected, strict=True):
        assert theirs.norm() > 1e-4, f"{name}: no gradient to compare"
        assert (ours - theirs).norm() <= close * theirs.norm(), name


# --- the whole of it, against the naive model ---


@every_kind
@pytest.mark.parametrize("markers", [oracle.MARKERS, NO_MARKERS])
def test_logits_and_gradients_are_those_of_the_naive_model(kind, markers):
    model, rows = oracle.small_model(kind), oracle.random_rows(MIXED)
    thinker, batch = Coconut(model, markers, "last_hidden"), batch_of(rows, markers=markers)
    for ours, row in zip(own_logits(thinker, batch), rows, strict=True):
        expected = oracle.logits(model, oracle.sequence(row, markers)[0], LATENT)
        assert 6 < expected.abs().max() < 30 and expected.argmax(-1).unique().numel() > 2, "a test that sees nothing"
        torch.testing.assert_close(ours, expected, **CLOSE)
    output, expected = thinker(**batch), oracle.loss(model, [oracle.sequence(row, markers) for row in rows], LATENT)
    assert output["tokens"] == sum(len(steps) + len(answer) for _, _, steps, answer in rows)
    assert output["loss"].item() == pytest.approx(expected.item(), rel=1e-6)
    same_gradients(model, output["loss"], expected)


@every_kind
@pytest.mark.parametrize("pad_id", [0, 1, 17])  # 1 is the end of sequence
def test_padding_changes_nothing(kind, pad_id):
    model, rows = oracle.small_model(kind, seed=1), oracle.random_rows(MIXED, seed=1)
    thinker, batch = Coconut(model, oracle.MARKERS, "last_hidden"), batch_of(rows)
    padded = pad_more(batch_of(rows, pad_id), 7, 5, pad_id)
    assert torch.equal(padded["input_ids"][:, :7], torch.full((4, 7), pad_id))
    for ours, expected in zip(own_logits(thinker, padded), own_logits(thinker, batch), strict=True):
        torch.testing.assert_close(ours, expected, **CLOSE)
    one, other = thinker(**padded), thinker(**batch)
    assert one["tokens"] == other["tokens"]
    same_gradients(model, one["loss"], other["loss"])


@every_kind
def test_a_batch_gives_each_row_what_it_gets_alone(kind):
    rows = oracle.random_rows([(2, 4, 3, 1), (20, 1, 2, 2), (6, 0, 9, 2), (11, 2, 0, 3), (1, 0, 0, 1)], seed=2)
    model = oracle.small_model(kind, seed=2)
    thinker = Coconut(model, oracle.MARKERS, "last_hidden")
    alone = [own_logits(thinker, batch_of([row]))[0] for row in rows]
    for ours, expected in zip(own_logits(thinker, batch_of(rows)), alone, strict=True):
        torch.testing.assert_close(ours, expected, **CLOSE)
    assert (alone[0][:3] - alone[1][:3]).abs().max() > 1, "the rows are different"


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_rows_of_one_question_each_with_its_own_number_of_thoughts(kind):
    """No thought at all is a row of its own too: a batch of 0 thoughts, and one with the same question 6 times."""
    question, _, steps, answer = oracle.random_rows([(6, 0, 3, 2)], seed=3)[0]
    model = oracle.small_model(kind)
    thinker = Coconut(model, oracle.MARKERS, "last_hidden")
    for counts in ([0, 0, 0], [0, 1, 2, 3, 4, 5]):
        rows = [(question, n, steps, answer) for n in counts]
        for ours, row in zip(own_logits(thinker, batch_of(rows)), rows, strict=True):
            torch.testing.assert_close(ours, oracle.logits(model, oracle.sequence(row)[0], LATENT), **CLOSE)


def test_every_column_is_read_once_and_a_thought_costs_a_pass():
    model, batch = oracle.small_model("llama"), batch_of(oracle.random_rows(MIXED))
    columns = []
    model.base_model.register_forward_pre_hook(
        lambda module, given, named: columns.append(named["inputs_embeds"].shape[1]), with_kwargs=True
    )
    Coconut(model, oracle.MARKERS, "last_hidden")(**batch)
    length = batch["input_ids"].shape[1]
    assert columns == [batch["first"], 1, 1, 1, length - batch["first"] - 3]
    columns.clear()
    Coconut(model, oracle.MARKERS, "pause")(**batch)
    Coconut(model, None, None)(**batch_of(oracle.random_rows(MIXED), markers=None))
    assert len(columns) == 2, "what feeds nothing back is one pass"


# --- gradients through thoughts ---


@every_kind
def test_the_gradient_reaches_every_thought(kind):
    model, rows = oracle.small_model(kind), oracle.random_rows([(6, 4, 3, 2), (3, 4, 2, 2)])
    thinker, seen = Coconut(model, oracle.MARKERS, "last_hidden"), []
    batch = batch_of(rows)
    states = thinker.hidden(batch, edit=lambda j, inputs: seen.append(inputs) or inputs)
    loss = torch.nn.functional.cross_entropy(
        thinker.head(states[:, :-1]).flatten(0, 1), batch["labels"][:, 1:].flatten()
    )
    norms = [g.norm(dim=-1) for g in torch.autograd.grad(loss, seen)]
    assert len(norms) == 4 and min(n.min().item() for n in norms) > 1e-3


def test_a_thought_that_is_cut_off_passes_no_gradient_to_what_it_was_made_of():
    """What is fed at the last thought hangs on the earlier ones; cut off, it does not (later text reads them still)."""
    model, rows = oracle.small_model("llama"), oracle.random_rows([(6, 3, 3, 2)])
    thinker = Coconut(model, oracle.MARKERS, "last_hidden")
    for cut, expected in ((False, True), (True, False)):
        made = []

        def edit(j, inputs, cut=cut, made=made):
            inputs = inputs.detach() if cut else inputs
            made.append(inputs.requires_grad_())
            return made[-1]

        thinker.hidden(batch_of(rows), edit=edit)
        heard = torch.autograd.grad(made[2].sum(), made[:2], allow_unused=True)
        assert [g is not None and bool(g.abs().sum() > 1e-3) for g in heard] == [expected, expected]


def test_edit_sees_each_thought_once_in_order_and_what_it_returns_is_read():
    model, rows = oracle.small_model("gpt2"), oracle.random_rows(MIXED)
    thinker, batch, seen = Coconut(model, oracle.MARKERS, "last_hidden"), batch_of(oracle.random_rows(MIXED)), []
    own_logits(thinker, batch, lambda j, inputs: seen.append((j, inputs)) or inputs)
    assert [j for j, _ in seen] == [0, 1, 2, 3]
    for b, row in enumerate(rows):
        ids = oracle.sequence(row)[0]
        expected = [v for v, i in zip(oracle.fed(model, ids, LATENT), ids, strict=True) if i == LATENT]
        for (_, found), thought in zip(seen, expected, strict=False):
            torch.testing.assert_close(found[b], thought, **CLOSE)
    equal = batch_of(oracle.random_rows([(5, 3, 4, 2), (9, 3, 0, 3)]))
    plain = own_logits(thinker, equal)
    edited = own_logits(thinker, equal, lambda j, inputs: inputs * 0 if j == 1 else inputs)
    for question, row, changed in zip((5, 9), plain, edited, strict=True):
        differs, second = (row - changed).abs().amax(-1) > 1e-2, question + 2
        assert not differs[:second].any() and differs[second:].all(), "from the second thought on"


# --- no thoughts ---


@every_kind
@pytest.mark.parametrize("markers", [oracle.MARKERS, NO_MARKERS, None])
def test_without_thoughts_the_loss_is_that_of_the_language_model(kind, markers):
    model = oracle.small_model(kind, seed=4)
    rows = oracle.random_rows([(5, 0, 4, 2), (9, 0, 3, 2), (2, 0, 0, 1)], seed=4)
    thinker = Coconut(model, markers, "last_hidden" if markers else None)
    losses = []
    for row in rows:
        ids, labels = (torch.tensor([values]) for values in oracle.sequence(row, markers))
        assert ids.shape[1] == sum(len(part) for part in (row[0], row[2], row[3])) + 2 * (markers == oracle.MARKERS)
        losses.append(model(input_ids=ids, labels=labels).loss)
        assert thinker(**batch_of([row], markers=markers))["loss"].item() == pytest.approx(losses[-1].item(), rel=1e-6)
    weights = [len(row[2]) + len(row[3]) for row in rows]
    together = sum(w * x for w, x in zip(weights, losses, strict=True)) / sum(weights)
    output = thinker(**batch_of(rows, markers=markers))
    assert output["loss"].item() == pytest.approx(together.item(), rel=1e-6), "a mean over tokens, not over rows"
    same_gradients(model, output["loss"], together)


# --- all thoughts at once ---


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen2"])
@pytest.mark.parametrize("passes", [0, 1, 2, 3, 6])
def test_parallel_thoughts_are_those_of_the_naive_model(kind, passes):
    model, rows = oracle.small_model(kind), oracle.random_rows(MIXED)
    thinker, batch = Coconut(model, oracle.MARKERS, "last_hidden", passes), batch_of(rows)
    one_by_one = own_logits(Coconut(model, oracle.MARKERS, "last_hidden"), batch)
    found = own_logits(thinker, pad_more(batch, 2, 3, 9))
    for ours, exact, row in zip(found, one_by_one, rows, strict=True):
        torch.testing.assert_close(ours, oracle.logits(model, oracle.sequence(row)[0], LATENT, passes=passes), **CLOSE)
        if passes >= row[1] - 1:
            torch.testing.assert_close(ours, exact, **CLOSE)
        else:
            assert (ours - exact).abs().max() > 0.1, "fewer refinements give something else"
    expected = oracle.loss(model, [oracle.sequence(row) for row in rows], LATENT, passes=passes)
    same_gradients(model, thinker(**batch)["loss"], expected)


def test_no_more_refinements_are_made_than_can_change_anything():
    model, batch = oracle.small_model("llama"), batch_of(oracle.random_rows([(5, 3, 2, 2)]))
    columns = []
    model.base_model.register_forward_pre_hook(
        lambda module, given, named: columns.append(named["inputs_embeds"].shape[1]), with_kwargs=True
    )
    Coconut(model, oracle.MARKERS, "last_hidden", passes=6)(**batch)
    assert len(columns) == 1 + 2 + 1, "the question, two refinements of three thoughts, and the rest"


# --- as published ---


@every_kind
def test_the_published_way_gives_the_same_logits_loss_and_gradients(kind):
    model, rows = oracle.small_model(kind, seed=5), oracle.random_rows(MIXED, seed=5)
    batch = batch_of(rows)
    named = {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids", "labels")}
    every, _, loss = oracle.list_of_lists_forward(model, LATENT, **named)
    thinker = Coconut(model, oracle.MARKERS, "last_hidden")
    mask = batch["attention_mask"].bool()
    torch.testing.assert_close(thinker.head(thinker.hidden(batch))[mask], every[mask], **CLOSE)
    same_gradients(model, thinker(**batch)["loss"], loss)


# --- markers ---


def padded_llama(tokenizer, tied, more):
    """A random Llama with `more` rows of embeddings than its tokenizer has tokens."""
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer) + more, tie_word_embeddings=tied, **sizes))


NEW = ["<|start-latent|>", "<|end-latent|>", "<|latent|>"]  # the published names, in the published order


@pytest.mark.parametrize("markers", [True, False])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "more, init_from",
    [
        (0, ""),
        (0, "<<"),
        (0, "v3 + n4"),
        (64, "v3 + n4"),
        pytest.param(64, ""),
    ],
)
def test_new_tokens_start_as_the_mean_of_others_in_embeddings_and_head(tied, markers, more, init_from, tiny_llama):
    tokenizer = models.load_tokenizer(str(tiny_llama))
    model, length = padded_llama(tokenizer, tied, more), len(tokenizer)
    pieces = tokenizer(init_from)["input_ids"] if init_from else list(range(length))
    before = [part.weight.detach().clone() for part in (model.get_input_embeddings(), model.get_output_embeddings())]
    found = add_tokens(model, tokenizer, markers, init_from)
    ids = [i for i in found if i is not None]
    assert found == ((length, length + 1, length + 2) if markers else (None, None, length))
    assert tokenizer.convert_ids_to_tokens(ids) == NEW[-len(ids) :]
    for old, table in zip(before, (model.get_input_embeddings(), model.get_output_embeddings()), strict=True):
        assert len(table.weight) == max(len(old), length + len(ids)), "never fewer rows than there were"
        assert torch.equal(table.weight[:length], old[:length])
        for i in ids:
            torch.testing.assert_close(table.weight[i], old[pieces].mean(0), atol=1e-6, rtol=0)
    with torch.no_grad():
        model.get_input_embeddings().weight[ids] += 1
    trained = model.get_input_embeddings().weight.detach().clone()
    assert add_tokens(model, tokenizer, markers, init_from) == found
    assert torch.equal(model.get_input_embeddings().weight, trained), "tokens that are there keep what they learned"


def test_markers_that_come_later_leave_the_trained_latent_as_it_is(tiny_llama):
    tokenizer = models.load_tokenizer(str(tiny_llama))
    model = padded_llama(tokenizer, True, 0)
    latent = add_tokens(model, tokenizer, False, "<<")[2]
    with torch.no_grad():
        model.get_input_embeddings().weight[latent] = 3.0
    assert add_tokens(model, tokenizer, True, "<<") == (latent + 1, latent + 2, latent)
    assert (model.get_input_embeddings().weight[latent] == 3).all()


def test_an_encoder_decoder_is_refused_in_one_sentence(tiny_t5):
    model, _ = models.load_model(str(tiny_t5), device="cpu")
    with pytest.raises(InputError, match="need a causal language model; an encoder-decoder was given"):
        Coconut(model, oracle.MARKERS, "last_hidden")


# --- on a GPU ---


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@every_kind
@pytest.mark.parametrize("passes", [None, 1])
def test_logits_and_gradients_on_a_gpu_are_those_of_the_naive_model(kind, passes):
    model, rows = oracle.small_model(kind).cuda(), oracle.random_rows(MIXED)
    thinker = Coconut(model, oracle.MARKERS, "last_hidden", passes)
    batch = {name: value.cuda() if hasattr(value, "cuda") else value for name, value in batch_of(rows).items()}
    for ours, row in zip(own_logits(thinker, batch), rows, strict=True):
        expected = oracle.logits(model, oracle.sequence(row)[0], LATENT, passes=passes)
        torch.testing.assert_close(ours, expected, rtol=0, atol=2e-4)
    expected = oracle.loss(model, [oracle.sequence(row) for row in rows], LATENT, passes=passes)
    same_gradients(model, thinker(**batch)["loss"], expected, close=1e-4)
