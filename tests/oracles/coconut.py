"""Continuous thoughts the slow, obvious way (Hao et al., 2412.06769, section 3), and the way they were published.

`logits` is the truth: one row, no padding, no cache, the whole sequence anew for every thought. `list_of_lists_forward`
and `uncached_generate` compute as the published code does, and are what benchmarks compare with. Nothing here knows
lib.coconut; a thought stands wherever the token <latent> stands.
"""

import torch
from torch.nn.functional import cross_entropy
from transformers import (
    DynamicCache,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

VOCABULARY = 44
MARKERS = (41, 42, 43)  # <start>, <end>, <latent>
KINDS = ("gpt2", "llama", "llama_tied", "qwen2")


def thought(source: str, model, states, latent_id: int):
    """The input of a latent position (width), of the states (width) of every layer at the position before.

    states[0] is the embedding, states[i] what layer i gives; the last has been through the final norm.
    """
    table, last = model.get_input_embeddings().weight, states[-1]
    if source == "last_hidden":
        return last
    if source == "pause":
        return table[latent_id]
    if source == "normalised":
        mean_norm = sum(row.pow(2).sum().sqrt() for row in table.detach()) / len(table)
        return last * (mean_norm / last.pow(2).sum().sqrt())
    if source == "second_to_last":
        return states[len(states) - 2]
    if source == "middle":
        return states[len(states) // 2]
    if source == "soft_token":
        likely = model.get_output_embeddings()(last).softmax(-1)
        return sum(p * row for p, row in zip(likely, table, strict=True))
    assert source in ("suppressed", "suppressed_added"), source
    head = model.get_output_embeddings().weight.detach().double()
    change = torch.linalg.pinv(head) @ (head @ last.detach().double() - head @ states[-2].detach().double())
    kept = torch.stack([x if c < -0.1 else 0 * x for x, c in zip(last, change, strict=True)])
    return table[latent_id] + kept if source == "suppressed_added" else kept


def run(model, inputs: list):
    """Everything the model gives for inputs (width each), read anew from the first to the last."""
    return model(inputs_embeds=torch.stack(inputs)[None], output_hidden_states=True, use_cache=False)


def fed(model, ids: list[int], latent_id: int, source: str = "last_hidden", passes: int | None = None) -> list:
    """What is fed at each position (width each): token embeddings, and thoughts where <latent> stands.

    passes  None: one thought after another, each from the state before it. Else Jacobi: the first thought as ever, the
            others start as the embedding of <latent>; `passes` times all are made anew from the states that they gave.
    """
    table = model.get_input_embeddings().weight
    inputs = [table[i] for i in ids]
    places = [place for place, i in enumerate(ids) if i == latent_id]

    def made(given, place):
        return thought(source, model, [layer[0, place - 1] for layer in run(model, given).hidden_states], latent_id)

    for place in places if passes is None else places[:1]:
        inputs[place] = made(inputs, place)
    for _ in range(passes or 0):
        before = list(inputs)
        for place in places[1:]:
            inputs[place] = made(before, place)
    return inputs


def logits(model, ids: list[int], latent_id: int, source: str = "last_hidden", passes: int | None = None):
    """(length, vocabulary) of one row of token ids."""
    return run(model, fed(model, ids, latent_id, source, passes)).logits[0]


def loss(model, rows: list[tuple[list[int], list[int]]], latent_id: int, source="last_hidden", passes=None):
    """Mean negative log-likelihood over all labels but -100 of rows of (ids, labels), in nats."""
    each = []
    for ids, labels in rows:
        likely = logits(model, ids, latent_id, source, passes).log_softmax(-1)
        each += [-likely[t - 1, label] for t, label in enumerate(labels) if t and label != -100]
    return sum(each) / len(each)


# --- as published ---


def list_of_lists_forward(model, latent_id: int, input_ids, attention_mask, position_ids, labels=None):
    """(logits (batch, length, vocabulary), input embeddings, loss or None) of rows whose first thoughts share a column.

    One pass a thought on cached keys and values; after each, the input embeddings are taken apart into batch times
    length vectors, thoughts take their places among them, and all are stacked anew. Logits for every position.
    """
    places = [[t for t, i in enumerate(row) if i == latent_id] for row in input_ids.tolist()]
    most, length = max(map(len, places)), input_ids.shape[1]
    embeds = model.get_input_embeddings()(input_ids)
    begin, end = 0, min((row[0] for row in places if row), default=length)
    cache, parts = DynamicCache(config=model.config), []
    for j in range(most + 1):
        output = model(
            inputs_embeds=embeds[:, begin:end],
            attention_mask=attention_mask[:, :end],
            position_ids=position_ids[:, begin:end],
            past_key_values=cache,
            use_cache=True,
            output_hidden_states=True,
        )
        parts.append(output.logits)
        if j < most:
            vectors = [[embeds[b, t, :] for t in range(length)] for b in range(len(places))]
            for b, row in enumerate(places):
                if j < len(row):
                    vectors[b][row[j]] = output.hidden_states[-1][b, row[j] - 1 - begin, :]
            embeds = torch.stack([torch.stack(row) for row in vectors])
            begin, end = end, length if j == most - 1 else end + 1
    every = torch.cat(parts, 1)
    if labels is None:
        return every, embeds, None
    return every, embeds, cross_entropy(every[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


@torch.no_grad()
def uncached_generate(model, prompt: list[int], markers, thoughts: int, max_new_tokens: int, eos_id: int | None):
    """(new ids, the logits (vocabulary) that each was chosen by) after `thoughts` thoughts, greedy, one prompt.

    markers  ids of <start>, <end> (None: none there) and <latent>
    Every new token has the whole row of embeddings read again. Ends with, and includes, `eos_id`.
    """
    start, end, latent = markers
    ids = [i for i in (*prompt, start, *[latent] * thoughts, end) if i is not None]
    ids = torch.tensor([ids], device=model.device)
    positions = torch.arange(ids.shape[1], device=model.device)[None]
    every, embeds, _ = list_of_lists_forward(model, latent, ids, torch.ones_like(ids), positions)
    written, chosen_by = [], [every[0, -1]]
    while True:
        written.append(chosen_by[-1].argmax().item())
        if written[-1] == eos_id or len(written) == max_new_tokens:
            return written, chosen_by
        new = model.get_input_embeddings()(torch.tensor([[written[-1]]], device=model.device))
        embeds = torch.cat([embeds, new], 1)
        chosen_by.append(model(inputs_embeds=embeds, use_cache=False).logits[0, -1])


# --- small models whose outputs differ from token to token ---


def small_model(kind: str, layers: int = 3, seed: int = 0, dropout: float = 0.0):
    """An untrained model of width 32; every weight, norms and biases too, is random and of a decent size."""
    sizes = dict(vocab_size=VOCABULARY, bos_token_id=None, pad_token_id=0, eos_token_id=1)
    if kind == "gpt2":
        rates = dict(attn_pdrop=dropout, embd_pdrop=dropout, resid_pdrop=dropout)
        made = GPT2LMHeadModel, GPT2Config(n_embd=32, n_layer=layers, n_head=4, n_positions=128, **sizes, **rates)
    else:
        sizes |= dict(hidden_size=32, intermediate_size=64, num_hidden_layers=layers, num_attention_heads=4)
        sizes |= dict(max_position_embeddings=128, attention_dropout=dropout, num_key_value_heads=2)
        sizes |= dict(tie_word_embeddings=kind == "llama_tied")
        made = (Qwen2ForCausalLM, Qwen2Config(**sizes)) if kind == "qwen2" else (LlamaForCausalLM, LlamaConfig(**sizes))
    torch.manual_seed(seed)
    model = made[0](made[1])
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                weight.normal_(std=0.5 if any(part in name for part in ("embed_tokens", "wte", "lm_head")) else 0.15)
            else:  # gains near 1, biases near 0
                weight.add_(0.2 * torch.randn_like(weight))
    return model.eval()


def random_rows(sizes: list[tuple[int, int, int, int]], seed: int = 0, below: int = min(MARKERS)) -> list[tuple]:
    """Rows (question, thoughts, steps, answer) of ids under `below`, for lengths of each; every answer ends in 1."""
    draw = torch.Generator().manual_seed(seed)
    rows = []
    for question, thoughts, steps, answer in sizes:
        some = [torch.randint(2, below, (n,), generator=draw).tolist() for n in (question, steps, answer)]
        rows.append((some[0], thoughts, some[1], [*some[2], 1]))
    return rows


def sequence(row: tuple, markers: tuple | None = MARKERS) -> tuple[list[int], list[int]]:
    """(ids, labels) of one such row, as the paper writes it.

    markers  ids of <start>, <end> and <latent>, the first two None where there are none; None: no latent positions
    """
    question, thoughts, steps, answer = row
    start, end, latent = markers or (None, None, None)
    middle = [start, *[latent] * (thoughts if markers else 0), end]
    given, learned = [*question, *(i for i in middle if i is not None)], [*steps, *answer]
    return given + learned, [-100] * len(given) + learned
