"""Ask a model for completions: batched, greedy or sampled, causal or encoder-decoder, with or without a calculator.

Knows prompts and texts, no problems: whether a completion is right is asked of `lib.answers`. The decoding loop is our
own, over the library's models and caches: each row draws from its own random numbers, prompts that stand in a batch
several times are read once, and finished rows leave.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b

from lib.errors import InputError
from lib.progress import Bar
from lib.tokenization import tokenize


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
    indices: list[int] | None = None,
    calculator=None,
    top_p: float = 1.0,
    top_k: int = 0,
    batch_tokens: int = 16384,
    reader=None,
) -> list[Generation]:
    """One completion for each prompt, in the order of `prompts`.

    temperature   0 takes the likeliest token (greedy); above 0 samples from softmax(logits / temperature), over the
                  whole vocabulary unless top_p < 1 or top_k > 0 narrow it (the library's own default is top_k = 50)
    indices       which sample of its prompt each one is (0 for all by default): a sample depends on its prompt, `seed`
                  and its index, and on nothing else in the call. (Rows of a batch share matrix products, whose
                  rounding depends on the batch: where two tokens are all but equally good, that can decide.)
    calculator    a `decoding_calculator.Calculator`, which writes the results of annotations; it counts what it did
    batch_tokens  positions of a micro-batch at most, prompts and completions together (one row at least)
    reader        how prompts are read, as `read` does by default; for a model that thinks before it writes
    """
    results: list[Generation | None] = [None] * len(prompts)
    arguments = (max_new_tokens, temperature, seed, indices, calculator, top_p, top_k, batch_tokens)
    for rows, generations in stream(model, tokenizer, prompts, *arguments, reader=reader):
        for row, generation in zip(rows, generations, strict=True):
            results[row] = generation
    return results


def stream(
    model,
    tokenizer,
    prompts: list[str],
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    seed: int = 0,
    indices: list[int] | None = None,
    calculator=None,
    top_p: float = 1.0,
    top_k: int = 0,
    batch_tokens: int = 16384,
    done: int = 0,
    reader=None,
) -> Iterator[tuple[list[int], list[Generation]]]:
    """`generate`, one micro-batch after another: yields (places in `prompts`, their completions).

    The same call cuts the same micro-batches, so the first `done` of them can be left out when they were drawn before.
    Micro-batches go from long prompts to short: memory that does not suffice is missed at once, and padding is little.
    """
    import torch

    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens must be at least 1, not {max_new_tokens}.")
    indices = [0] * len(prompts) if indices is None else indices
    assert len(indices) == len(prompts), f"{len(prompts)} prompts, but {len(indices)} indices"
    tokens = dict(zip(unique := list(dict.fromkeys(prompts)), tokenize(tokenizer, unique), strict=True))
    batches = micro_batches([len(tokens[p]) for p in prompts], max_new_tokens, batch_tokens, prompts)
    was_training = model.training
    try:
        with Bar("generating", len(prompts), done=sum(map(len, batches[:done]))) as bar:
            for rows in batches[done:]:
                began = time.perf_counter()
                model.eval()  # here, since whoever reads this stream may train in between
                uniforms = [random_numbers(prompts[r], seed, indices[r], max_new_tokens) for r in rows]
                choose = Chooser(temperature, top_p, top_k, uniforms, model.device)
                with torch.inference_mode():
                    asked = [(prompts[r], tokens[prompts[r]]) for r in rows]
                    written = decode(model, tokenizer, asked, max_new_tokens, choose, calculator, bar, reader or read)
                seconds = (time.perf_counter() - began) / len(rows)
                ends = stop_ids(model, tokenizer)
                yield (
                    rows,
                    [
                        Generation(tokenizer.decode(ids, skip_special_tokens=True), len(ids), ids[-1] in ends, seconds)
                        for ids in written
                    ],
                )
    finally:
        model.train(was_training)


def micro_batches(lengths: list[int], new: int, budget: int, keys: list[str]) -> list[list[int]]:
    """Rows cut into batches of at most `budget` positions, longest first; equal keys stand together."""
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], keys[row], row))
    batches: list[list[int]] = []
    for row in order:
        if not batches or (len(batches[-1]) + 1) * (lengths[batches[-1][0]] + new) > budget:
            batches.append([])
        batches[-1].append(row)
    return batches


def request_seed(prompt: str, seed: int, index: int) -> int:
    """The 63-bit number that all randomness of one sample is made from."""
    digest = blake2b(f"{seed} {index} {prompt}".encode(errors="backslashreplace"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def random_numbers(prompt: str, seed: int, index: int, n: int):
    """`n` uniform numbers in [0, 1), one a token, as a float32 array."""
    import numpy

    return numpy.random.Generator(numpy.random.Philox(request_seed(prompt, seed, index))).random(n, numpy.float32)


def stop_ids(model, tokenizer) -> set[int]:
    """The ids that end a completion: the tokenizer's, and those that the model's own generation config names."""
    named = model.generation_config.eos_token_id
    named = named if isinstance(named, list) else [named]
    return {i for i in [tokenizer.eos_token_id, *named] if i is not None}


class Chooser:
    """Turns logits into tokens: the likeliest, or the one at which the cumulative probability passes a given number."""

    def __init__(self, temperature: float, top_p: float, top_k: int, uniforms, device):
        import numpy
        import torch
        from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

        self.greedy = temperature == 0
        self.warpers = [] if self.greedy or temperature == 1 else [TemperatureLogitsWarper(float(temperature))]
        self.warpers += [TopKLogitsWarper(top_k)] if top_k > 0 else []
        self.warpers += [TopPLogitsWarper(top_p)] if top_p < 1 else []
        self.uniforms = torch.from_numpy(numpy.stack(uniforms)).to(device)  # (rows, max_new_tokens)

    def __call__(self, logits, step: int):
        """logits (rows, vocabulary) -> ids (rows)."""
        if self.greedy:
            return logits.argmax(-1)
        logits = logits.float()
        for warp in self.warpers:
            logits = warp(None, logits)
        cumulative = logits.double().softmax(-1).cumsum(-1)
        edge = self.uniforms[:, step : step + 1] * cumulative[:, -1:]
        return (cumulative <= edge).sum(-1)

    def keep(self, rows: list[int]) -> None:
        """Only these rows go on, in this order."""
        self.uniforms = self.uniforms[rows]


def decode(
    model, tokenizer, asked, max_new_tokens: int, choose: Chooser, calculator, bar: Bar, read
) -> list[list[int]]:
    """The new ids of each row, up to and with the one that ends it. `asked` holds (prompt, its ids) of each row."""
    import torch

    unique = {prompt: ids for prompt, ids in asked}
    places = {prompt: i for i, prompt in enumerate(unique)}
    logits, state = read(model, tokenizer, list(unique.values()))
    rows = torch.tensor([places[prompt] for prompt, _ in asked], device=model.device)
    if len(unique) < len(asked):
        logits = logits[rows]
        repeat(state, rows)
    ends = stop_ids(model, tokenizer)
    written: list[list[int]] = [[] for _ in asked]
    active = list(range(len(asked)))  # the row of `asked` that each row of the batch is
    if calculator:
        calculator.start(len(asked))
    for step in range(max_new_tokens):
        chosen = choose(logits, step).tolist()  # the one read of a step from the device
        if calculator:
            chosen = calculator.override(chosen)
        for row, token in zip(active, chosen, strict=True):
            written[row].append(token)
        going = [i for i, token in enumerate(chosen) if token not in ends]
        bar.update(len(active) - len(going))
        if not going or step + 1 == max_new_tokens:
            break
        if calculator:
            calculator.advance(chosen)
        if len(going) < len(active):  # finished rows leave; the last ones take their places
            holes = [i for i in range(len(going)) if chosen[i] in ends]
            movers = [i for i in going if i >= len(going)]
            places = dict(zip(holes, movers, strict=True))
            order = [places.get(i, i) for i in range(len(going))]
            active, chosen = [active[i] for i in order], [chosen[i] for i in order]
            leave(
                state, *(torch.tensor(rows, dtype=torch.long, device=model.device) for rows in (order, holes, movers))
            )
            choose.keep(order)
            if calculator:
                calculator.keep(order)
        logits = advance(model, state, torch.tensor(chosen, device=model.device))
    bar.update(len(going))
    return written


def read(model, tokenizer, prompts: list[list[int]]):
    """(logits (batch, vocabulary) for the first new token, state): prompts padded and read.

    Padding is on the left for causal models, since generation goes on from the last position.
    """
    import torch
    from transformers import EncoderDecoderCache

    from lib.kv_cache import roomy_cache

    two_sided = model.config.is_encoder_decoder
    width = max(1, max(map(len, prompts)))
    pads = [[tokenizer.pad_token_id] * (width - len(ids)) for ids in prompts]
    ids = [[*row, *pad] if two_sided else [*pad, *row] for row, pad in zip(prompts, pads, strict=True)]
    mask = [
        [1] * len(row) + [0] * len(pad) if two_sided else [0] * len(pad) + [1] * len(row)
        for row, pad in zip(prompts, pads, strict=True)
    ]
    ids, mask = (torch.tensor(value, device=model.device) for value in (ids, mask))
    if two_sided:
        encoded = model.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state
        state = {"attention_mask": mask, "encoded": encoded}
        state["cache"] = EncoderDecoderCache(roomy_cache(), roomy_cache())
        start = torch.full((len(prompts),), model.config.decoder_start_token_id, device=model.device)
        return advance(model, state, start), state
    state = {"attention_mask": mask, "cache": roomy_cache(model.config)}
    output = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
        past_key_values=state["cache"],
        use_cache=True,
        logits_to_keep=1,
    )
    return output.logits[:, -1], state


def advance(model, state: dict, tokens):
    """Append one token (rows) to each row of the state; returns the logits (rows, vocabulary) for the next."""
    import torch
    from transformers.modeling_outputs import BaseModelOutput

    if "encoded" in state:
        output = model(
            decoder_input_ids=tokens[:, None],
            encoder_outputs=BaseModelOutput(last_hidden_state=state["encoded"]),
            attention_mask=state["attention_mask"],
            past_key_values=state["cache"],
            use_cache=True,
        )
        return output.logits[:, -1]
    mask = torch.cat([state["attention_mask"], state["attention_mask"].new_ones(len(tokens), 1)], 1)
    state["attention_mask"] = mask
    output = model(
        input_ids=tokens[:, None],
        attention_mask=mask,
        position_ids=mask.sum(-1, keepdim=True) - 1,
        past_key_values=state["cache"],
        use_cache=True,
    )
    return output.logits[:, -1]


def repeat(state: dict, rows) -> None:
    """Go on with these rows; a row may be named several times."""
    from lib import kv_cache

    for part in caches(state):
        kv_cache.select(part, rows)
    for name in ("attention_mask", "encoded"):
        if name in state:
            state[name] = state[name][rows]


def caches(state: dict) -> list:
    """The caches of a state: of the decoder's own positions and, with an encoder, of its positions too."""
    cache = state["cache"]
    return [cache.self_attention_cache, cache.cross_attention_cache] if "encoded" in state else [cache]


def leave(state: dict, order, holes, movers) -> None:
    """Go on with the rows `order`: the first ones as they stand, but that the rows `movers` take the places `holes`."""
    from lib import kv_cache

    for part in caches(state):
        kv_cache.leave(part, order, holes, movers)
    for name in ("attention_mask", "encoded"):
        if name in state:
            state[name] = state[name][order]


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
