"""Supervised fine-tuning the slow, obvious way: one example at a time without padding, AdamW written out."""

import math

import torch


def log_likelihoods(model, tokenizer, prompt: str, completion: str) -> torch.Tensor:
    """log p of each token of the completion, and of the end-of-sequence token after it, given all before: (tokens)."""
    given = tokenizer(prompt)["input_ids"]
    wanted = tokenizer(completion)["input_ids"] + [tokenizer.eos_token_id]
    if model.config.is_encoder_decoder:
        decoded = [model.config.decoder_start_token_id] + wanted[:-1]
        logits = model(input_ids=torch.tensor([given]), decoder_input_ids=torch.tensor([decoded])).logits[0]
    else:
        logits = model(input_ids=torch.tensor([given + wanted[:-1]])).logits[0, len(given) - 1 :]
    return torch.stack([row.log_softmax(-1)[token] for row, token in zip(logits, wanted, strict=True)])


def loss(model, tokenizer, examples: list[tuple[str, str]]) -> torch.Tensor:
    """Mean negative log-likelihood over all tokens of all completions."""
    return -torch.cat([log_likelihoods(model, tokenizer, *example) for example in examples]).mean()


def learning_rate(step: int, steps: int, warmup: int, peak: float, floor: float = 0.0) -> float:
    """The rate of step 0, 1, ...: a line from 0 to the peak, then half a cosine down to `floor` times the peak."""
    if step < warmup:
        return peak * step / warmup
    cosine = (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2
    return peak * (floor + (1 - floor) * cosine)


def train(model, tokenizer, examples, steps, warmup, peak, decay, beta2, max_norm) -> list[dict]:
    """`steps` steps of AdamW, each on all examples; returns {"loss", "learning_rate", "grad_norm"} of each step.

    The norm of the whole gradient is clipped to max_norm; decay applies to matrices, not to the gains of norms.
    """
    weights = [w for w in model.parameters() if w.requires_grad]
    first, second = [torch.zeros_like(w) for w in weights], [torch.zeros_like(w) for w in weights]
    curve = []
    for step in range(steps):
        value = loss(model, tokenizer, examples)
        gradients = torch.autograd.grad(value, weights)
        norm = math.sqrt(sum((g.double() ** 2).sum().item() for g in gradients))
        rate = learning_rate(step, steps, warmup, peak)
        curve.append({"loss": value.item(), "learning_rate": rate, "grad_norm": norm})
        with torch.no_grad():
            for weight, gradient, m, v in zip(weights, gradients, first, second, strict=True):
                gradient = gradient * min(1.0, max_norm / norm)
                m.mul_(0.9).add_(0.1 * gradient)
                v.mul_(beta2).add_((1 - beta2) * gradient**2)
                corrected_m, corrected_v = m / (1 - 0.9 ** (step + 1)), v / (1 - beta2 ** (step + 1))
                if weight.dim() > 1:
                    weight.mul_(1 - rate * decay)
                weight.sub_(rate * corrected_m / (corrected_v.sqrt() + 1e-8))
    return curve
