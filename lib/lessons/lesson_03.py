"""Exercises of 03_sft: the label mask, the loss, an adapter, and what to write for a number."""

import math
import random
import tempfile
import warnings
from pathlib import Path

from lib.lessons.check import Exercise

PROMPT, COMPLETION, EOS = [11, 12, 13], [21, 22], 1


def labels_have_the_length(labels):
    """There is one label for each token of prompt, completion and EOS."""
    found = list(labels(list(PROMPT), list(COMPLETION), EOS))
    assert len(found) == 6, f"3 + 2 + 1 tokens want 6 labels, found {len(found)}: {found}"


def labels_skip_the_prompt(labels):
    """No loss is taken on the prompt: its labels are -100."""
    found = list(labels(list(PROMPT), list(COMPLETION), EOS))
    assert found[:3] == [-100] * 3, f"the first three labels are {found[:3]}: the model would learn to write questions"


def labels_end_with_eos(labels):
    """The completion and EOS are learned; without EOS a model never stops."""
    found = list(labels(list(PROMPT), list(COMPLETION), EOS))
    assert found[-1] == EOS, f"the last label is {found[-1]}, not EOS = {EOS}: a model taught so runs on for ever"
    assert found[3:5] == COMPLETION, f"the completion's labels are {found[3:5]}, not {COMPLETION}"


def labels_leave_inputs_alone(labels):
    """The lists that come in are not changed."""
    prompt, completion = list(PROMPT), list(COMPLETION)
    labels(prompt, completion, EOS)
    assert (prompt, completion) == (PROMPT, COMPLETION), "prompt or completion was changed in place"


def _example():
    """Logits (length 4, vocabulary 3) and labels with one position to skip."""
    import torch

    logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 1.0], [5.0, 0.0, 0.0]])
    return logits, torch.tensor([-100, -100, 1, 2])


def loss_is_shifted(loss):
    """The logits at one position are judged by the token that comes next."""
    import torch

    labels, costs = torch.tensor([-100, 2, 0, 1]), {}
    for shift in (1, 0, -1):  # logits that are sure, at each place k, of label k + shift
        logits = torch.zeros(4, 3)
        for k in range(4):
            if 0 <= k + shift < 4 and labels[k + shift] >= 0:
                logits[k, labels[k + shift]] = 20.0
        costs[shift] = float(loss(logits, labels))
    if costs[1] > 0.01:
        assert costs[0] > 0.01, "row k was compared with label k: it should be label k + 1"
        assert costs[-1] > 0.01, "row k was compared with label k - 1: it should be label k + 1, so cut the other ends"
    assert costs[1] < 0.01, f"who is sure of the right next tokens should pay next to nothing, found {costs[1]:.4f}"
    assert min(costs[0], costs[-1]) > 1, "who is sure of wrong tokens pays next to nothing: are the logits looked at?"


def loss_is_right(loss):
    """The loss is the mean negative log-likelihood over the labels that are not -100."""
    logits, labels = _example()
    expected = -(logits.log_softmax(-1)[[1, 2], [1, 2]]).mean().item()
    found = float(loss(logits, labels))
    everything = -(logits.log_softmax(-1)[[1, 2], [1, 2]]).sum().item() / 3
    reason = "; are the -100 positions in your mean?" if math.isclose(found, everything, abs_tol=1e-4) else ""
    reason = "; is it a sum, not a mean?" if math.isclose(found, 2 * expected, abs_tol=1e-4) else reason
    assert math.isclose(found, expected, abs_tol=1e-5), f"expected {expected:.4f}, found {found:.4f}{reason}"


def loss_agrees_with_the_library(loss):
    """On random numbers it is what torch's cross_entropy gives."""
    import torch

    generator = torch.Generator().manual_seed(0)
    for length in (3, 9):
        logits = torch.randn(length, 7, generator=generator)
        labels = torch.randint(0, 7, (length,), generator=generator)
        labels[: length // 2] = -100
        expected = torch.nn.functional.cross_entropy(logits[:-1], labels[1:]).item()
        found = float(loss(logits, labels))
        assert math.isclose(found, expected, abs_tol=1e-5), f"expected {expected:.5f}, found {found:.5f}"


def _base():
    """A tiny language model with seeded weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
        return LlamaForCausalLM(LlamaConfig(vocab_size=24, pad_token_id=0, use_cache=False, **shape))


def _linear(model) -> dict[str, tuple[int, int]]:
    """(in, out) of every linear layer but the head, by name."""
    import torch

    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)}
    return {name: (x.in_features, x.out_features) for name, x in layers.items() if x is not model.lm_head}


def _adapted(adapt, rank: int = 2):
    """(what adapt returns, its base's linear layers)."""
    base = _base()
    layers, model = _linear(base), adapt(base, rank)
    assert hasattr(model, "named_parameters"), f"return the model that is to be trained; found {model!r}"
    return model, layers


def _adapters(model, part: str = "lora_A") -> dict:
    """Weights of adapters by the name of the layer that they adapt."""
    found = {name.partition(f".{part}."): weight for name, weight in model.named_parameters()}
    return {name.removeprefix("base_model.model."): weight for (name, hit, _), weight in found.items() if hit}


def _ids():
    import torch

    return torch.randint(1, 24, (2, 7), generator=torch.Generator().manual_seed(0))


def adapt_trains_adapters_alone(adapt):
    """Of all weights those of adapters train, and no other."""
    model, _ = _adapted(adapt)
    training = [name for name, weight in model.named_parameters() if weight.requires_grad]
    others = [name for name in training if "lora_" not in name]
    assert any("lora_" in name for name in training), "no adapter trains: is there one? What get_peft_model returns has"
    assert not others, (
        f"{len(others)} weights train that belong to no adapter, the first is {others[0]}: freeze the base"
    )


def adapt_reaches_every_linear_layer(adapt):
    """Every linear layer has an adapter but the head."""
    model, layers = _adapted(adapt)
    found = set(_adapters(model))
    missing = sorted({name.rpartition(".")[2] for name in set(layers) - found})
    assert not missing, f"without an adapter: {', '.join(missing)}; left alone, peft adapts q_proj and v_proj"
    assert found == set(layers), f"an adapter too many: {', '.join(sorted(found - set(layers)))}"


def adapt_has_the_rank(adapt):
    """As many weights train as rank * (in + out), summed over the linear layers."""
    for rank in (2, 5):
        model, layers = _adapted(adapt, rank)
        found = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
        wanted = rank * sum(map(sum, layers.values()))
        ranks = sorted({len(weight) for weight in _adapters(model).values()})
        reason = f"the adapters' ranks are {ranks}" if ranks != [rank] else "layers were left out, or others train, too"
        assert found == wanted, f"with rank {rank} there should be {wanted} weights to train, found {found}: {reason}"


def adapt_starts_as_the_base(adapt):
    """Before any training the logits are the base's: B begins at 0."""
    import torch

    with torch.no_grad():
        wanted = _base().eval()(input_ids=_ids()).logits
        gap = (_adapted(adapt)[0].eval()(input_ids=_ids()).logits - wanted).abs().max().item()
    assert gap < 1e-5, f"the logits differ by {gap:.3g} before anything was learned: leave init_lora_weights as it is"


def adapt_learns_where_layers_are_checkpointed(adapt):
    """After one step with recomputed layers every B has left 0."""
    import torch
    from torch.utils.checkpoint import checkpoint

    model, _ = _adapted(adapt)
    for layer in [layer for layer in model.modules() if type(layer).__name__ == "LlamaDecoderLayer"]:

        def forward(states, *rest, inner=layer.forward, **more):
            return checkpoint(lambda x: inner(x, *rest, **more), states, use_reentrant=True)

        layer.forward = forward  # as a training loop of one's own does it, without the library's help
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    assert weights, "nothing trains"
    reason = (
        "the input of a recomputed layer wants a gradient, and the embeddings are frozen: enable_input_require_grads"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        value = model.train()(input_ids=_ids(), labels=_ids()).loss
    assert value.requires_grad, f"the loss has no gradient at all: {reason}"
    value.backward()
    torch.optim.SGD(weights, lr=0.1).step()
    still = [name for name, weight in _adapters(model, "lora_B").items() if not weight.any()]
    assert not still, f"after a step B is still 0 in {len(still)} layers, the first is {still[0]}: {reason}"


def adapt_returns_what_saves_the_adapter(adapt):
    """`save_pretrained` of what is returned writes an adapter, not the whole model."""
    from transformers.utils import logging

    model, _ = _adapted(adapt)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bars = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()
        try:
            model.save_pretrained(folder)
        finally:
            (logging.enable_progress_bar if bars else logging.disable_progress_bar)()
        found = sorted(path.name for path in Path(folder).iterdir())
    assert "adapter_config.json" in found and "model.safetensors" not in found, (
        f"it wrote {', '.join(found)}: that is the base; return what get_peft_model returns"
    )


# Answers as a generator of questions computes them, and how they should be written.
ROUNDED = {20870.982787499997: "20900", 0.0123456: "0.0123", 3.14159: "3.14", 182.88: "183", 999.6: "1000"}
NOISY = {5999.999999999999: "6000", 4.000000000000001: "4", 80000.0: "80000", 0.125: "0.125", 2.5: "2.5", 10.0: "10"}
EXTREME = {1234567.0: "1230000", 86400000.0: "86400000", 0.0000456: "0.0000456"}


def _stated(target, value: float) -> str:
    """The number in what `target` gives; the whole text where it has no tags."""
    text = str(target(value))
    return text.partition("<answer>")[2].partition("</answer>")[0].strip() if "<answer>" in text else text


def target_is_a_tagged_number(target):
    """A blank, <answer>, the number and </answer>: nothing else, and no second blank."""
    for value in (6.0, 182.88):
        text = target(value)
        assert isinstance(text, str), f"{value} gave {text!r}, not a text"
        reason = "the blank parts the answer from the question before it" if not text.startswith(" ") else ""
        assert text == f" <answer>{_stated(target, value)}</answer>", f"{value} gave {text!r} {reason}"


def target_has_three_figures(target):
    """The number is rounded to three significant figures, whatever its size."""
    for value, wanted in ROUNDED.items():
        found = _stated(target, value)
        reason = "" if len(found) < 9 else ": a model would have to learn digits that mean nothing"
        assert found == wanted, f"{value} should be written {wanted}, found {found}{reason}"


def target_shows_no_noise(target):
    """No float noise and no zero that says nothing: 6000, 4, 2.5, not 5999.999999999999, 4.00, 2.50."""
    for value, wanted in NOISY.items():
        found = _stated(target, value)
        assert found == wanted, f"{value} should be written {wanted}, found {found}"


def target_writes_numbers_out(target):
    """Large and small numbers are written out, never with an exponent."""
    for value, wanted in EXTREME.items():
        found = _stated(target, value)
        reason = ": an exponent is another notation to learn" if "e" in found else ""
        assert found == wanted, f"{value} should be written {wanted}, found {found}{reason}"


def target_stays_near(target):
    """What is written is within 0.5 % of the value."""
    draw = random.Random(0)
    for value in (10 ** draw.uniform(-4, 6) for _ in range(300)):
        found = _stated(target, value)
        try:
            off = abs(float(found) / value - 1)
        except ValueError:
            raise AssertionError(f"{value} became {found!r}, which is no number") from None
        assert off <= 0.005, f"{value} became {found}: that is {off:.1%} off"


EXERCISES = {
    "3.1": Exercise(
        [labels_have_the_length, labels_skip_the_prompt, labels_end_with_eos, labels_leave_inputs_alone],
        [
            "-100 is the label that the loss ignores.",
            "The labels stand beside prompt + completion + [eos], one a token; the shift comes later, in the loss.",
            "[-100] * len(prompt) + completion + [eos]",
        ],
    ),
    "3.2": Exercise(
        [loss_is_shifted, loss_is_right, loss_agrees_with_the_library],
        [
            "Of which token does the row at position k speak? Not of the one that stands there.",
            "Position k predicts token k + 1: drop the last row of logits and the first label.",
            "log_softmax over the last axis; pick each row's label; keep rows whose label is not -100.",
            "keep = labels[1:] != -100; then -log_probs[keep, labels[1:][keep]].mean()",
        ],
    ),
    "3.3": Exercise(
        [
            adapt_trains_adapters_alone,
            adapt_reaches_every_linear_layer,
            adapt_has_the_rank,
            adapt_starts_as_the_base,
            adapt_learns_where_layers_are_checkpointed,
            adapt_returns_what_saves_the_adapter,
        ],
        [
            "peft does the work: a LoraConfig says what is wanted, get_peft_model puts it into the model.",
            'r is the rank, target_modules="all-linear" all layers but the head; return what get_peft_model returns.',
            "model.enable_input_require_grads() first; then return get_peft_model(model, LoraConfig(r=rank, "
            'target_modules="all-linear", task_type="CAUSAL_LM")).',
        ],
    ),
    "3.4": Exercise(
        [
            target_is_a_tagged_number,
            target_has_three_figures,
            target_shows_no_noise,
            target_writes_numbers_out,
            target_stays_near,
        ],
        [
            "First round, then write: two formats, one after the other.",
            'f"{value:.3g}" rounds to three figures, but may write an exponent; float() of it may be written again.',
            'f"{float(f\'{value:.3g}\'):.12f}" has no exponent; now rstrip("0"), and then rstrip(".").',
        ],
    ),
}
