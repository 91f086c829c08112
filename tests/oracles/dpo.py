"""Preference losses the slow, obvious way: one completion and one token at a time, in double precision."""

import math

import torch

from lib import models


def log_probabilities(model, prompt: list[int], completion: list[int]) -> list[torch.Tensor]:
    """log p of each token of the completion given all before: a forward pass a token, no padding, no batch."""
    found = []
    for n, token in enumerate(completion):
        before = completion[:n]
        if model.config.is_encoder_decoder:
            decoded = torch.tensor([[model.config.decoder_start_token_id, *before]])
            logits = model(input_ids=torch.tensor([prompt]), decoder_input_ids=decoded).logits
        else:
            logits = model(input_ids=torch.tensor([prompt + before])).logits
        found.append(logits[0, -1].double().log_softmax(-1)[token])
    return found


def pair_loss(kind: str, beta: float, policy, reference, tokens) -> torch.Tensor:
    """The loss of one pair from log-probabilities and lengths, each (chosen, rejected)."""
    ratios = [p - r for p, r in zip(policy, reference, strict=True)]
    if kind == "ipo":
        return (ratios[0] / tokens[0] - ratios[1] / tokens[1] - 1 / (2 * beta)) ** 2
    margin = beta * (ratios[0] - ratios[1])
    return (1 + (-margin).exp()).log() if kind == "sigmoid" else max(1 - margin, 0 * margin)


def dpo(kind: str, beta: float, sft_weight: float, model, reference, rows: list[dict]):
    """(loss, {figure: value}) of encoded pairs: a mean over pairs, and one over all chosen tokens beside it."""
    losses, nll, seen = [], [], []
    for row in rows:
        both = [row["chosen_ids"], row["rejected_ids"]]
        logps = [log_probabilities(model, row["prompt_ids"], ids) for ids in both]
        policy = [sum(found) for found in logps]
        with torch.no_grad():
            fixed = [sum(log_probabilities(reference, row["prompt_ids"], ids)) for ids in both]
        losses.append(pair_loss(kind, beta, policy, fixed, [len(ids) for ids in both]))
        nll += [-value for value in logps[0]]
        seen.append(
            [value.item() for value in (*policy, *(beta * (p - r) for p, r in zip(policy, fixed, strict=True)))]
        )
    chosen, rejected, good, bad = (sum(column) / len(rows) for column in zip(*seen, strict=True))
    figures = {"logps/chosen": chosen, "logps/rejected": rejected, "rewards/chosen": good, "rewards/rejected": bad}
    figures["rewards/margins"] = good - bad
    figures["rewards/accuracies"] = sum(row[2] > row[3] for row in seen) / len(seen)
    return sum(losses) / len(losses) + sft_weight * sum(nll) / len(nll), figures


def kto(beta: float, model, reference, rows: list[dict]) -> tuple[float, float]:
    """(KTO's loss of a batch of encoded opinions, its KL), by Eq. 7 of Ethayarajh et al., 2024, both kinds alike."""

    def ratio(prompt, completion):
        both = [sum(log_probabilities(m, prompt, completion)) for m in (model, reference)]
        return (both[0] - both[1]).item()

    shifted = zip(rows, [rows[-1], *rows[:-1]], strict=True)
    mismatched = [ratio(row["prompt_ids"], other["completion_ids"]) for row, other in shifted]
    kl = max(0.0, sum(mismatched) / len(rows))
    total = 0.0
    for row in rows:
        sign = 1 if row["label"] else -1
        lead = beta * sign * (ratio(row["prompt_ids"], row["completion_ids"]) - kl)
        weight = max(1.0, sum(r["label"] != row["label"] for r in rows) / sum(r["label"] == row["label"] for r in rows))
        total += weight * (1 - 1 / (1 + math.exp(-lead)))
    return total / len(rows), kl


def disturb(model, scale: float = 0.05) -> None:
    """Move every weight that is trained, as training would: the model is its own reference no more."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(scale * torch.randn(weight.shape, generator=generator))


def in_double(directory):
    """The model saved in a directory, in double precision and without dropout."""
    return models.load_model(str(directory), device="cpu", dropout=0.0)[0].double().eval()
