"""Looking inside: what thoughts say, whether answers hang on them, how they lie, and the search they stand for.

Every function takes a model of `engine.load` and returns plain numbers, for plots and viewers. A thought here is what a
latent position is fed; with the source "last_hidden" it has been through the final norm, so that the model's own head
reads it exactly, as it would have to choose a token there.
"""

import math
import random

from lib import answers
from lib.coconut import generation
from lib.generation import advance
from lib.problems import Problem
from lib.prompts import prompt
from lib.tasks import modular_chain

KINDS = ("kept", "zeroed", "averaged", "noised", "swapped", "shuffled")


def thoughts_of(thinker, tokenizer, problems: list[Problem], k: int):
    """What the `k` latent positions of each problem are fed: a tensor (problems, k, width), on the CPU."""
    import torch

    seen: list[list] = []

    def look(j, inputs):
        seen[-1].append(inputs.float().cpu())
        return inputs

    with torch.inference_mode():
        for start in range(0, len(problems), 128):
            seen.append([])
            asked = [tokenizer(prompt(p))["input_ids"] for p in problems[start : start + 128]]
            generation.read(thinker, k, look, thinker.model, tokenizer, asked)
    return torch.cat([torch.stack(part[-k:], 1) for part in seen])


def decode(thinker, tokenizer, problem: Problem, k: int, top: int = 5) -> list[list[tuple[str, float]]]:
    """The `top` likeliest tokens of each of the `k` thoughts and, last, of the position that writes: (text, share)."""
    import torch

    (states,) = thoughts_of(thinker, tokenizer, [problem], k)
    asked = [tokenizer(prompt(problem))["input_ids"]]
    with torch.inference_mode():
        logits, _ = generation.read(thinker, k, None, thinker.model, tokenizer, asked)
        rows = torch.cat([thinker.head(states.to(thinker.device, thinker.model.dtype)), logits])
    best = rows.float().softmax(-1).topk(top)
    return [
        [(tokenizer.decode([i]), p) for i, p in zip(ids, shares, strict=True)]
        for ids, shares in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def accuracy_by_thoughts(thinker, tokenizer, problems: list[Problem], ks: list[int], new: int = 64) -> list[dict]:
    """Accuracy of one model given so many thoughts: [{"thoughts", "accuracy", "tokens": written a problem}]."""
    rows = []
    for k in ks:
        found = generation.generate(thinker, tokenizer, [prompt(p) for p in problems], k, max_new_tokens=new)
        right = sum(answers.is_correct(p, g.text) for p, g in zip(problems, found, strict=True))
        written = sum(g.tokens - k for g in found) / len(found)
        rows.append({"thoughts": k, "accuracy": right / len(found), "tokens": written})
    return rows


# ----- causal checks
def changed(kind: str, thoughts, seed: int = 0):
    """Other inputs for the latent positions, (problems, k, width), made from the ones they would have had.

    zeroed    all 0
    averaged  the mean over the problems, position by position
    noised    Gaussian noise of each thought's own norm
    swapped   those of the next problem (the last gets the first one's)
    shuffled  each problem's own, in another order
    """
    import torch

    numbers = torch.Generator().manual_seed(seed)
    if kind == "zeroed":
        return torch.zeros_like(thoughts)
    if kind == "averaged":
        return thoughts.mean(0, keepdim=True).expand_as(thoughts)
    if kind == "noised":
        noise = torch.randn(thoughts.shape, generator=numbers)
        return noise / noise.norm(dim=-1, keepdim=True) * thoughts.norm(dim=-1, keepdim=True)
    if kind == "swapped":
        return thoughts.roll(-1, 0)
    if kind == "shuffled":
        k = thoughts.shape[1]
        order = [random.Random(f"{seed} {i}").sample(range(k), k) for i in range(len(thoughts))]
        return thoughts.gather(1, torch.tensor(order)[..., None].expand_as(thoughts))
    assert kind == "kept", f"unknown change {kind!r}: {', '.join(KINDS)}"
    return thoughts


def answers_with(thinker, tokenizer, problems: list[Problem], inputs, positions: list[int], new: int) -> list[str]:
    """What the model writes (greedy, `new` tokens at most) when the latent positions `positions` are fed `inputs`.

    inputs  (problems, k, width). Positions behind a changed one are fed what the model makes of it, unless changed too.
    """
    import torch

    texts = []
    for start in range(0, len(problems), 128):
        given = inputs[start : start + 128].to(thinker.device, thinker.model.dtype)

        def put(j, there, given=given):
            return given[:, j] if j in positions else there

        asked = [tokenizer(prompt(p))["input_ids"] for p in problems[start : start + 128]]
        with torch.inference_mode():
            logits, state = generation.read(thinker, inputs.shape[1], put, thinker.model, tokenizer, asked)
            written = [logits.argmax(-1)]
            for _ in range(new - 1):
                written.append(advance(thinker.model, state, written[-1]).argmax(-1))
        for ids in torch.stack(written, 1).tolist():
            end = ids.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in ids else len(ids)
            texts.append(tokenizer.decode(ids[:end], skip_special_tokens=True))
    return texts


def causal_checks(thinker, tokenizer, problems: list[Problem], k: int, new: int = 16) -> list[dict]:
    """Accuracy with all thoughts changed, kind by kind: does the answer hang on them?

    [{"change", "accuracy", "answer of the other"}]; the last is the share that gives the next problem's answer, over
    the pairs of problems whose answers differ.
    """
    own = thoughts_of(thinker, tokenizer, problems, k)
    others = [*problems[1:], problems[0]]
    rows = []
    for kind in KINDS:
        texts = answers_with(thinker, tokenizer, problems, changed(kind, own), list(range(k)), new)
        right = [answers.is_correct(p, t) for p, t in zip(problems, texts, strict=True)]
        differ = [i for i, p in enumerate(problems) if not answers.same(p.answer, others[i].answer)]
        other = sum(answers.is_correct(others[i], texts[i]) for i in differ)
        row = {"change": kind, "accuracy": sum(right) / len(right)}
        rows.append(row | {"answer of the other": other / len(differ) if differ else None})
    return rows


def swapped_steps(thinker, tokenizer, problems: list[Problem], new: int = 16) -> list[dict]:
    """Chains of modular arithmetic with one thought exchanged for that of the next problem, position by position.

    If the j-th thought stands for the j-th result, exchanging it must change the answer to what the remaining
    operations make of the other problem's j-th result. Over the pairs where that is another answer:
    [{"thought", "pairs", "predicted": share that gives it, "unchanged": share that still gives its own}]
    """
    k, n = len(problems[0].steps), len(problems)
    own = thoughts_of(thinker, tokenizer, problems, k)
    rows = []
    for j in range(k):
        texts = answers_with(thinker, tokenizer, problems, changed("swapped", own), [j], new)
        others = [*problems[1:], problems[0]]
        predicted = [modular_chain.answer_from(p, q.steps[: j + 1]) for p, q in zip(problems, others, strict=True)]
        pairs = [i for i in range(n) if predicted[i] != problems[i].answer]
        stated = [answers.extract(text) for text in texts]
        row = {"thought": j + 1, "pairs": len(pairs)}
        row["predicted"] = sum(stated[i] == predicted[i] for i in pairs) / max(1, len(pairs))
        rows.append(row | {"unchanged": sum(stated[i] == problems[i].answer for i in pairs) / max(1, len(pairs))})
    return rows


# ----- geometry
def geometry(thinker, tokenizer, problems: list[Problem], k: int) -> list[dict]:
    """How thoughts lie, position by position, beside the token embeddings ("embeddings"): are they large, all alike?

    norm     mean length
    cosine   mean cosine of two problems' thoughts (1: all point the same way, nothing is told apart)
    rank     effective rank: exp of the entropy of the shares of variance (of at most `width` directions)
    """
    import torch

    table = thinker.model.get_input_embeddings().weight.detach().float().cpu()
    states = thoughts_of(thinker, tokenizer, problems, k)
    groups = [(f"thought {j + 1}", states[:, j]) for j in range(k)] + [("embeddings", table)]
    rows = []
    for name, vectors in groups:
        unit = vectors / vectors.norm(dim=-1, keepdim=True).clamp(min=1e-9)
        total, n = unit.sum(0), len(unit)
        shares = torch.linalg.svdvals(vectors - vectors.mean(0)) ** 2
        shares = shares / shares.sum().clamp(min=1e-12)
        entropy = -(shares * shares.clamp(min=1e-12).log()).sum().item()
        row = {"of": name, "norm": vectors.norm(dim=-1).mean().item()}
        rows.append(row | {"cosine": ((total @ total).item() - n) / (n * (n - 1)), "rank": math.exp(entropy)})
    return rows


# ----- search
def node_probabilities(thinker, tokenizer, question: str, prefix: str, names: list[str], k: int) -> dict[str, float]:
    """After `k` thoughts and the forced words `prefix`: the probability of each name (the product over its tokens)."""
    import torch

    asked = [tokenizer(question + "\n")["input_ids"]]
    forced = tokenizer(prefix, add_special_tokens=False)["input_ids"] if prefix else []
    found = {}
    with torch.inference_mode():
        for name in names:
            ids = tokenizer(prefix + name, add_special_tokens=False)["input_ids"]
            logits, state = generation.read(thinker, k, None, thinker.model, tokenizer, asked)
            total = 0.0
            for place, token in enumerate(ids):
                if place >= len(forced):
                    total += logits.float().log_softmax(-1)[0, token].item()
                logits = advance(thinker.model, state, torch.tensor([token], device=thinker.device))
            found[name] = math.exp(total)
    return found
