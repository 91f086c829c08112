"""Ask a model for completions: batched, greedy or sampled, causal or encoder-decoder.

Knows prompts and texts, no problems: whether a completion is right is asked of `lib.answers`.
"""

import time
from dataclasses import dataclass

from lib.progress import Bar


@dataclass(frozen=True)
class Generation:
    """One completion.

    text      without the prompt and without special tokens
    tokens    generated positions, the end-of-sequence token included
    finished  did the model end it (True), or did it run into max_new_tokens (False)?
    seconds   this completion's share of its batch's time
    """

    text: str
    tokens: int
    finished: bool
    seconds: float


def generate(
    model,
    tokenizer,
    prompts: list[str],
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    seed: int = 0,
    batch_size: int = 64,
) -> list[Generation]:
    """One completion for each prompt, in the order of `prompts`.

    temperature  0 takes the likeliest token (greedy); above 0 samples from softmax(logits / temperature) over the whole
                 vocabulary (no top-k, unlike the library's default of 50)
    Prompts are sorted by length so that a batch pads little; padding is on the left for causal models, since
    generation goes on from the last position. The tokenizer is left as it was.
    """
    import torch

    lengths = [len(ids) for ids in tokenizer(prompts)["input_ids"]] if prompts else []
    order = sorted(range(len(prompts)), key=lambda i: lengths[i])
    results: list[Generation | None] = [None] * len(prompts)
    sampling = (
        dict(do_sample=True, temperature=temperature, top_k=0, top_p=1.0) if temperature else dict(do_sample=False)
    )
    was_training = model.training
    model.eval()
    with torch.random.fork_rng(), torch.inference_mode(), Bar("generating", len(prompts)) as bar:
        torch.manual_seed(seed)
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            began = time.perf_counter()
            ids = _generate_batch(model, tokenizer, [prompts[i] for i in rows], max_new_tokens, sampling)
            seconds = (time.perf_counter() - began) / len(rows)
            for i, row in zip(rows, ids, strict=True):
                results[i] = _result(row, tokenizer, seconds)
            bar.update(len(rows))
    model.train(was_training)
    return results


def _generate_batch(model, tokenizer, prompts: list[str], max_new_tokens: int, sampling: dict) -> list[list[int]]:
    """The new token ids of each row (batch, up to max_new_tokens), padding behind the end included."""
    side = tokenizer.padding_side
    tokenizer.padding_side = "right" if model.config.is_encoder_decoder else "left"
    try:
        batch = tokenizer(prompts, return_tensors="pt", padding=True).to(model.device)
    finally:
        tokenizer.padding_side = side
    output = model.generate(
        input_ids=batch["input_ids"],  # (batch, prompt)
        attention_mask=batch["attention_mask"],
        max_new_tokens=max_new_tokens,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **sampling,
    )
    skip = 1 if model.config.is_encoder_decoder else batch["input_ids"].shape[1]  # the decoder's start, or the prompt
    return output[:, skip:].tolist()


def _result(ids: list[int], tokenizer, seconds: float) -> Generation:
    """Cut a row at its first end-of-sequence token (counted, not shown); what follows is padding."""
    finished = tokenizer.eos_token_id in ids
    if finished:
        ids = ids[: ids.index(tokenizer.eos_token_id) + 1]
    return Generation(tokenizer.decode(ids, skip_special_tokens=True), len(ids), finished, seconds)


def token_probabilities(model, tokenizer, prompt: str, completion: str, top: int = 5) -> list[dict]:
    """How likely the model finds each token of `completion` after `prompt`, end-of-sequence included.

    A list of {"token", "probability", "top": [(token, probability), ...]}, one entry a token.
    """
    import torch

    prompt_ids = tokenizer(prompt)["input_ids"]
    ids = tokenizer(completion, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    prompt_ids, labels = (torch.tensor([part], device=model.device) for part in (prompt_ids, ids))
    with torch.inference_mode():
        if model.config.is_encoder_decoder:
            logits = model(input_ids=prompt_ids, labels=labels).logits[0]  # (completion, vocabulary)
        else:
            logits = model(input_ids=torch.cat([prompt_ids, labels], 1)).logits[0, prompt_ids.shape[1] - 1 : -1]
    probabilities = logits.float().softmax(-1)  # row k predicts ids[k]
    best = probabilities.topk(top)
    return [
        {
            "token": tokenizer.decode([token]),
            "probability": probabilities[k, token].item(),
            "top": [
                (tokenizer.decode([i]), p)
                for i, p in zip(best.indices[k].tolist(), best.values[k].tolist(), strict=True)
            ],
        }
        for k, token in enumerate(ids)
    ]
