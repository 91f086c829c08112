"""Where thoughts come from: every source against the naive model, and the learned ones for what they promise."""

import pytest
import torch

from lib import models
from lib.coconut import engine, sources
from lib.coconut.config import SOURCES, Config
from lib.coconut.engine import Coconut
from lib.coconut.schedule import Stage
from tests.oracles import coconut as oracle
from tests.test_coconut_engine import CLOSE, LATENT, MIXED, batch_of, own_logits, same_gradients

PLAIN = [source for source in SOURCES if source not in ("projection", "mlp")]  # these two have weights of their own


@pytest.mark.parametrize("kind", ["gpt2", "llama", "llama_tied"])
@pytest.mark.parametrize("source", PLAIN)
def test_each_source_gives_the_logits_and_gradients_of_the_naive_model(source, kind):
    model, rows = oracle.small_model(kind, layers=4), oracle.random_rows(MIXED)
    thinker, batch = Coconut(model, oracle.MARKERS, source), batch_of(rows)
    usual = own_logits(Coconut(model, oracle.MARKERS, "last_hidden"), batch)
    for ours, last_hidden, row in zip(own_logits(thinker, batch), usual, rows, strict=True):
        torch.testing.assert_close(ours, oracle.logits(model, oracle.sequence(row)[0], LATENT, source), **CLOSE)
        if source != "last_hidden" and row[1]:
            assert (ours - last_hidden).abs().max() > 0.1, "another source is another model"
    expected = oracle.loss(model, [oracle.sequence(row) for row in rows], LATENT, source)
    same_gradients(model, thinker(**batch)["loss"], expected)


@pytest.mark.parametrize("layers", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("source", ["middle", "second_to_last", "suppressed_added"])
def test_sources_of_other_layers_work_at_every_depth_and_in_parallel(source, layers):
    model, rows = oracle.small_model("llama", layers=layers), oracle.random_rows(MIXED)
    for passes in (None, 1):
        found = own_logits(Coconut(model, oracle.MARKERS, source, passes), batch_of(rows))
        for ours, row in zip(found, rows, strict=True):
            ids = oracle.sequence(row)[0]
            torch.testing.assert_close(ours, oracle.logits(model, ids, LATENT, source, passes), **CLOSE)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen2"])
def test_the_last_state_has_been_through_the_final_norm_and_the_one_before_has_not(kind):
    """So the head reads a thought exactly; where this fails, "last_hidden" is not what was published."""
    model = oracle.small_model(kind)
    ids = oracle.sequence(oracle.random_rows([(5, 3, 4, 2)])[0])[0]
    thinker, seen = Coconut(model, oracle.MARKERS, "last_hidden"), []
    every = own_logits(
        thinker, batch_of(oracle.random_rows([(5, 3, 4, 2)])), lambda j, inputs: seen.append(inputs[0]) or inputs
    )[0]
    first = ids.index(LATENT)
    for j, thought in enumerate(seen):
        torch.testing.assert_close(thinker.head(thought), every[first + j - 1], **CLOSE)
    states = model.base_model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
    assert not torch.allclose(thinker.head(states[-2]), thinker.head(states[-1]), atol=1)


def test_a_pause_is_an_ordinary_token():
    """The whole sequence through the language model as it is, <latent> and all."""
    model, row = oracle.small_model("qwen2"), oracle.random_rows([(5, 3, 4, 2)])[0]
    expected = model(input_ids=torch.tensor([oracle.sequence(row)[0]])).logits[0]
    torch.testing.assert_close(own_logits(Coconut(model, oracle.MARKERS, "pause"), batch_of([row]))[0], expected)
    fed_back = Coconut(model, oracle.MARKERS, "pause"), []
    found = own_logits(fed_back[0], batch_of([row]), lambda j, inputs: fed_back[1].append(inputs) or inputs)[0]
    torch.testing.assert_close(found, expected, **CLOSE)
    assert len(fed_back[1]) == 3 and all(
        torch.equal(x[0], model.get_input_embeddings().weight[LATENT]) for x in fed_back[1]
    )


def test_normalised_and_projected_thoughts_are_as_long_as_embeddings_are_on_average():
    model, rows = oracle.small_model("llama"), oracle.random_rows(MIXED[:2] + MIXED[3:])
    lengths = model.get_input_embeddings().weight.norm(dim=-1).mean().item()
    for source in ("normalised", "projection"):
        seen = []
        thinker = Coconut(model, oracle.MARKERS, source)
        own_logits(thinker, batch_of(rows), lambda j, inputs, seen=seen: seen.append(inputs) or inputs)
        thoughts = torch.stack([x[b] for j, x in enumerate(seen) for b, row in enumerate(rows) if j < row[1]])
        assert len(thoughts) == 8
        assert thoughts.norm(dim=-1).tolist() == pytest.approx([lengths] * 8, rel=1e-5)


def test_a_projection_starts_as_no_projection():
    model, batch = oracle.small_model("gpt2"), batch_of(oracle.random_rows(MIXED))
    projected, normalised = Coconut(model, oracle.MARKERS, "projection"), Coconut(model, oracle.MARKERS, "normalised")
    for ours, expected in zip(own_logits(projected, batch), own_logits(normalised, batch), strict=True):
        torch.testing.assert_close(ours, expected, **CLOSE)


@pytest.mark.parametrize("source", ["projection", "mlp"])
@pytest.mark.parametrize("passes", [None, 1])
def test_a_learned_map_is_reached_by_the_gradient_and_does_what_its_layers_say(source, passes):
    model, rows = oracle.small_model("llama"), oracle.random_rows([(5, 2, 4, 2)])
    torch.manual_seed(1)
    thinker, seen = Coconut(model, oracle.MARKERS, source, passes), []
    with torch.no_grad():
        for weight in thinker.projection.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    loss = thinker(**batch_of(rows))["loss"]
    gradients = torch.autograd.grad(loss, list(thinker.projection.parameters()))
    assert min(g.norm().item() for g in gradients) > 1e-4
    own_logits(thinker, batch_of(rows), lambda j, inputs: seen.append(inputs[0]) or inputs)
    question = torch.tensor([[*rows[0][0], oracle.MARKERS[0]]])
    state = model.base_model(input_ids=question).last_hidden_state[0, -1]
    w = thinker.projection.state_dict()
    if source == "projection":
        made = w["layers.weight"] @ state
        made = made / made.norm() * model.get_input_embeddings().weight.norm(dim=-1).mean()
    else:
        inner = torch.nn.functional.gelu(w["layers.0.weight"] @ state + w["layers.0.bias"])
        inner = w["layers.2.weight"] @ inner + w["layers.2.bias"]
        made = (inner - inner.mean()) / (inner.var(correction=0) + 1e-5).sqrt()
        made = made * w["layers.3.weight"] + w["layers.3.bias"]
    torch.testing.assert_close(seen[0], made, **CLOSE)


def test_suppressed_neurons_are_those_that_the_last_layer_lowers():
    """By hand, with more tokens than neurons and with fewer, where the way through the logits loses something."""
    before, last = torch.tensor([1.0, 1.0, 1.0]), torch.tensor([0.5, 0.95, 2.0])
    many = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    assert sources.suppressed((before, last), many).tolist() == pytest.approx([0.5, 0, 0])
    one = torch.tensor([[0.0, 0.0, 2.0]])  # logits show the third neuron alone
    assert sources.suppressed((before, last), one).tolist() == [0, 0, 0]
    assert sources.suppressed((last, before), one).tolist() == [0, 0, 1]
    assert sources.suppressed((before, last), many, threshold=-0.01).tolist() == pytest.approx([0.5, 0.95, 0])


@pytest.mark.parametrize("kind", ["gpt2", "llama", "llama_tied"])
@pytest.mark.parametrize("source", ["last_hidden", "projection", "mlp"])
def test_what_is_saved_is_what_is_loaded(source, kind, chain_texts, tmp_path):
    """Tied and untied heads, learned maps, the marker rows, and how the model thinks."""
    from lib.tokenization import build_tokenizer

    tokenizer, model = build_tokenizer(chain_texts, 320), oracle.small_model(kind)
    model.resize_token_embeddings(len(tokenizer))
    config, stage = Config(source=source, c_thought=2, markers=kind != "gpt2", seed=5), Stage(3, 3, 5)
    torch.manual_seed(2)
    thinker = engine.wrap(config, model, tokenizer)
    with torch.no_grad():
        for weight in thinker.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    directory = thinker.save(tmp_path / "model", tokenizer, config, stage)
    again, same_tokenizer, loaded, at = engine.load(directory, device="cpu")
    assert (loaded, at, again.markers) == (config, stage, thinker.markers) and not again.training
    assert same_tokenizer.get_vocab() == tokenizer.get_vocab()
    expected = {name: value for name, value in thinker.state_dict().items()}
    assert all(torch.equal(value, expected[name]) for name, value in again.state_dict().items())
    tied = again.model.get_input_embeddings().weight is again.model.get_output_embeddings().weight
    assert tied == (kind != "llama")
    batch = batch_of(oracle.random_rows(MIXED, below=200), markers=thinker.markers)
    thinker.eval()
    for ours, theirs in zip(own_logits(again, batch), own_logits(thinker, batch), strict=True):
        assert torch.equal(ours, theirs)
    half, _, _, _ = engine.load(directory, dtype="bfloat16", device="cpu")
    assert {value.dtype for value in half.state_dict().values()} == {torch.bfloat16}
    assert torch.isfinite(half(**batch)["loss"])


def test_a_directory_that_holds_no_model_that_thinks_is_refused(tiny_llama, tmp_path):
    from lib.errors import InputError

    for directory, says in ((tmp_path / "nowhere", "nowhere"), (tiny_llama, "not a model that thinks")):
        with pytest.raises(InputError, match=says):
            engine.load(directory, device="cpu")
    assert models.load_model(str(tiny_llama), device="cpu")
