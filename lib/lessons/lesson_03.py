"""Exercises of 03_sft: the label mask and the loss."""

import math

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
    logits, labels = _example()
    found, unshifted = float(loss(logits, labels)), -(logits.log_softmax(-1)[[2, 3], [1, 2]]).mean().item()
    assert not math.isclose(found, unshifted, abs_tol=1e-4), "row k was compared with label k: it should be label k + 1"


def loss_is_right(loss):
    """The loss is the mean negative log-likelihood over the labels that are not -100."""
    logits, labels = _example()
    expected = -(logits.log_softmax(-1)[[1, 2], [1, 2]]).mean().item()
    found = float(loss(logits, labels))
    everything = -(logits.log_softmax(-1)[[1, 2], [1, 2]]).sum().item() / 3
    reason = "are the -100 positions in your mean?" if math.isclose(found, everything, abs_tol=1e-4) else "mean or sum?"
    assert math.isclose(found, expected, abs_tol=1e-5), f"expected {expected:.4f}, found {found:.4f}; {reason}"


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
            "Position k predicts token k + 1: drop the last row of logits and the first label.",
            "log_softmax over the last axis; pick each row's label; keep rows whose label is not -100.",
            "keep = labels[1:] != -100; then -log_probs[keep, labels[1:][keep]].mean()",
        ],
    ),
}
