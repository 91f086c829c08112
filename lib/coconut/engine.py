"""The model that thinks: one forward pass with thoughts of any number in each row, and the loss. Loads torch.

Embeddings are made once and never rebuilt; the question is read in one pass, then each thought costs a pass of one
column on the cached keys and values, and the last thought goes together with what follows it. Logits are computed only
where there are labels. Equals, to rounding, a model run over the whole sequence anew for every thought
(tests/oracles/coconut.py).
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import DynamicCache

from lib import models
from lib.coconut import sources
from lib.coconut.config import Config
from lib.coconut.schedule import Stage
from lib.coconut.sequences import LATENT, MARKERS
from lib.errors import InputError


class Coconut(nn.Module):
    """A causal language model of the library, and where its thoughts come from.

    model    any causal model whose backbone takes `inputs_embeds` and a cache (GPT-2, Llama, Qwen2, ...)
    markers  ids of <start>, <end> (None: no markers) and <latent>; None for methods without latent positions
    source   one of config.SOURCES; None without latent positions
    passes   None: one pass a thought; else that many refinements of all thoughts at once (Jacobi; cf. 2506.18582)
    """

    def __init__(self, model, markers: tuple | None, source: str | None, passes: int | None = None):
        super().__init__()
        if model.config.is_encoder_decoder:
            raise InputError("Continuous thoughts need a causal language model; an encoder-decoder was given.")
        self.model, self.markers, self.source, self.passes = model, markers, source, passes
        width = model.config.hidden_size
        self.projection = sources.Projection(source, width) if source in ("projection", "mlp") else None
        if self.projection is not None:
            self.projection.to(model.device)

    @property
    def device(self):
        """Where the weights are."""
        return self.model.device

    def forward(self, **batch):
        """Of a batch of `sequences.make_batch`: {"loss": mean over its labels, in nats, "tokens": how many labels}."""
        states = self.hidden(batch)
        asked = batch["labels"][:, 1:] != -100
        logits = self.head(states[:, :-1][asked])
        return {"loss": cross_entropy(logits.float(), batch["labels"][:, 1:][asked]), "tokens": len(logits)}

    def head(self, states):
        """Last hidden states (..., width) -> logits (..., vocabulary)."""
        return self.model.get_output_embeddings()(states)

    def hidden(self, batch: dict, cache=None, edit: Callable | None = None):
        """Last hidden states (batch, length, width) of a batch, each thought fed the states before it.

        cache  where keys and values are kept; None: a new one, through which gradients pass
        edit   edit(j, inputs) -> inputs: called with the inputs (batch, width) of the j-th latent position (from 0)
               before the model reads them, to look at them or to change them
        """
        embeds = self.model.get_input_embeddings()(batch["input_ids"])  # (batch, length, width), made once
        first, most = batch["first"], batch["most"]
        if most == 0 or (self.source == "pause" and edit is None):  # nothing is fed back
            return self.read(batch, embeds, 0, cache)[-1]
        cache = DynamicCache(config=self.model.config) if cache is None else cache
        # cut once: every slice of its own would cost a zero-filled gradient of the whole length
        question, *own, rest = embeds.split([first, *[1] * most, embeds.shape[1] - first - most], 1)
        states = self.read(batch, question, 0, cache)
        if self.passes is not None:
            return self.in_parallel(batch, own, rest, states, cache, edit)
        parts = [states[-1]]
        for j in range(most):
            inputs = self.inputs(batch, own[j], tuple(s[:, -1] for s in states), j, edit)
            if j == most - 1:
                inputs = torch.cat([inputs, rest], 1)
            states = self.read(batch, inputs, first + j, cache)
            parts.append(states[-1])
        return torch.cat(parts, 1)

    def in_parallel(self, batch: dict, own: list, rest, states, cache, edit):
        """`hidden` from the question's states on, all thoughts refined at once.

        The first thought is exact from the start, the others start as the token <latent>; each refinement reads them
        all and makes one more of them exact, so that n - 1 refinements equal one pass a thought.
        """
        first, most = batch["first"], batch["most"]
        parts = [states[-1]]
        head = self.inputs(batch, own[0], tuple(s[:, -1] for s in states), 0, edit)
        block = torch.cat([head, *own[1:]], 1)
        for _ in range(min(self.passes, most - 1)):  # after most - 1 all are exact
            states = self.read(batch, block, first, cache)
            cache.crop(-most)
            refined = [self.inputs(batch, own[j], tuple(s[:, j - 1] for s in states), j, edit) for j in range(1, most)]
            block = torch.cat([head, *refined], 1)
        inputs = torch.cat([block, rest], 1)
        return torch.cat([*parts, self.read(batch, inputs, first, cache)[-1]], 1)

    def inputs(self, batch: dict, own, states: tuple, j: int, edit):
        """What the j-th latent position is fed (batch, 1, width): a thought; in rows with fewer, the token's embedding.

        own     the embeddings (batch, 1, width) of the tokens there
        states  hidden states (batch, width) of the position before
        """
        table, own = self.model.get_input_embeddings().weight, own[:, 0]
        made = sources.thought(self.source, states, table[self.markers[2]], self.model, self.projection)
        inputs = torch.where((batch["thoughts"] > j)[:, None], made.to(own.dtype), own)
        return (inputs if edit is None else edit(j, inputs))[:, None]

    def read(self, batch: dict, embeds, begin: int, cache) -> tuple:
        """Read `embeds` (batch, columns, width) as the columns from `begin` on; hidden states, the last one last."""
        end = begin + embeds.shape[1]
        every = self.source in sources.EVERY_LAYER
        output = self.model.base_model(
            inputs_embeds=embeds,
            attention_mask=batch["attention_mask"][:, :end],
            position_ids=batch["position_ids"][:, begin:end],
            past_key_values=cache,
            use_cache=cache is not None,
            output_hidden_states=every,
        )
        return output.hidden_states if every else (output.last_hidden_state,)

    def save(self, directory: str | Path, tokenizer, config: Config, stage: Stage) -> Path:
        """The language model and its tokenizer as the library saves them, and beside them how it thinks."""
        directory = models.save_model(self.model, tokenizer, directory)
        if self.projection is not None:
            save_file(self.projection.state_dict(), directory / "projection.safetensors")
        how = {"config": asdict(config), "stage": asdict(stage)}
        (directory / "coconut.json").write_text(json.dumps(how, indent=1) + "\n")
        return directory


def add_tokens(model, tokenizer, markers: bool, init_from: str = "") -> tuple:
    """Give tokenizer and model the token <latent>, and <start> and <end> if asked, where they have none yet.

    Returns the ids of <start>, <end> (None without markers) and <latent>.
    Their embeddings (and rows of an untied head) start as the mean of those of the tokens of `init_from`, or of all.
    """
    named = list(MARKERS) if markers else [LATENT]
    there = tokenizer.get_vocab()
    ids = models.add_special_tokens(model, tokenizer, named)
    found = (*ids,) if markers else (None, None, *ids)
    new = [i for i, token in zip(ids, named, strict=True) if token not in there]
    if not (new and init_from):
        return found
    pieces = tokenizer(init_from, add_special_tokens=False)["input_ids"]
    tables = [model.get_input_embeddings().weight]
    if model.get_output_embeddings().weight is not tables[0]:
        tables.append(model.get_output_embeddings().weight)
    with torch.no_grad():
        for table in tables:
            table[new] = table[pieces].mean(0)
    return found


def wrap(config: Config, model, tokenizer) -> Coconut:
    """The engine of config.method around a language model, which gets its tokens if the method has latents."""
    markers = add_tokens(model, tokenizer, config.markers, config.init_from) if config.has_latents else None
    passes = config.jacobi_passes if config.method == "coconut_jacobi" else None
    return Coconut(model, markers, config.thought_source, passes)


def load(directory: str | Path, dtype: str = "float32", device: str = "auto"):
    """(Coconut, tokenizer, its Config, the Stage it was trained up to) of a directory that `Coconut.save` wrote.

    Raises InputError where the directory holds no such model.
    """
    directory = Path(directory)
    try:
        how = json.loads((directory / "coconut.json").read_text())
        config, stage = Config(**how["config"]), Stage(**how["stage"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{directory}: not a model that thinks ({error}); train one with coconut.training.") from None
    model, tokenizer = models.load_model(str(directory), dtype=dtype, device=device)
    thinker = wrap(config, model, tokenizer)
    if thinker.projection is not None:
        thinker.projection.load_state_dict(load_file(directory / "projection.safetensors"))
        thinker.projection.to(model.device, model.dtype)
    return thinker.eval(), tokenizer, config, stage
