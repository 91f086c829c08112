"""Answers of a diffusion model: batched, from each sample's own noise, with accuracy, cost and votes."""

import time
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path

from lib import answers, evaluation, selection
from lib.dot import multi_pass, sequences
from lib.dot.config import SAMPLERS, check_precision
from lib.dot.config import Config as Training
from lib.errors import InputError
from lib.generation import Generation, micro_batches, request_seed
from lib.problems import Problem
from lib.prompts import Example


@dataclass(frozen=True)
class Config:
    """How to ask.

    steps             denoising steps T: calls of the model
    sampler           one of lib.dot.samplers.SAMPLERS; a model of masked diffusion always uses its own
    temperature       of the score (lib.dot.samplers.table); for masked diffusion, of the tokens' distribution, where 1
                      stands for the likeliest token too
    samples           answers drawn for each problem, from different noise; the one that most state wins
    canvas            positions to write on; 0: as many as the longest solution (or thought) in training had
    max_thoughts      passes at most, for a model that writes one thought a pass; 0: as its training has set (12 if not)
    leave_at          a problem is done when all its tokens are at least so likely; 1: after `steps` calls
    batch_tokens      positions of a micro-batch when measuring accuracy and throughput
    latency_problems  how many problems are asked one at a time to measure latency
    """

    steps: int = 4
    sampler: str = "ddim"
    temperature: float = 1.0
    samples: int = 1
    canvas: int = 0
    max_thoughts: int = 0
    leave_at: float = 1.0
    batch_tokens: int = 16384
    latency_problems: int = 20
    seed: int = 0
    dtype: str = "float32"
    device: str = "auto"

    def __post_init__(self):
        check_precision(self.dtype)
        if self.sampler not in SAMPLERS:
            raise InputError(f"Unknown sampler {self.sampler!r}; use {', '.join(SAMPLERS)}.")
        for name in ("steps", "samples", "batch_tokens"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}.")
        for name in ("canvas", "max_thoughts", "latency_problems"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} must be at least 0, not {getattr(self, name)}.")
        if self.temperature <= 0:
            raise InputError(f"temperature must be above 0, not {self.temperature}.")
        if not 0 < self.leave_at <= 1:
            raise InputError(f"leave_at is a probability above 0, not {self.leave_at}.")


class Noise:
    """Each sample's own random numbers, a function of its question, the seed and its index, and of nothing else."""

    def __init__(self, questions: list[str], seed: int, indices: list[int], shape: tuple, device):
        import numpy

        self.shape, self.device = shape, device
        self.generators = [
            numpy.random.Generator(numpy.random.Philox(request_seed(question, seed, index)))
            for question, index in zip(questions, indices, strict=True)
        ]

    def of(self, rows: list[int]) -> "Noise":
        """The same for some of the samples, which go on drawing where they are."""
        part = copy(self)
        part.generators = [self.generators[row] for row in rows]
        return part

    def __call__(self, step: int, rows):
        """The next standard normal numbers of these rows: (rows, *shape)."""
        import numpy
        import torch

        drawn = [self.generators[row].standard_normal(self.shape, numpy.float32) for row in rows.tolist()]
        return torch.from_numpy(numpy.stack(drawn)).to(self.device)

    def uniform(self):
        """Uniform numbers (rows, positions)."""
        import numpy
        import torch

        drawn = [g.random(self.shape[0], numpy.float32) for g in self.generators]
        return torch.from_numpy(numpy.stack(drawn)).to(self.device)


def generate(
    model, tokenizer, trained: Training, canvas: int, questions: list[str], how: Config, indices=None, watch=None
) -> tuple[list[Generation], list[int]]:
    """One completion for each question, and how many calls of the model it took.

    canvas   positions that training had (how.canvas overrides it); indices: which sample of its question each one is
    watch    called after each call with (step, places in `questions`, ids, probabilities)
    A completion ends where the model put its end; without one it fills the canvas, and is not finished.
    A completion's tokens are all positions that were computed, on all its canvases.
    """
    import torch

    indices = [0] * len(questions) if indices is None else indices
    rows, n = sequences.sources(tokenizer, questions), how.canvas or canvas
    plan = planned(model, trained, how)

    def ask(sources: list[list[int]], noise: Noise, told: Callable | None) -> tuple[list[list[int]], list[int]]:
        source = sequences.pad(sources, tokenizer.pad_token_id, left=True)
        mask = sequences.seen(torch.tensor([len(row) for row in sources]), source.shape[1], n)
        mask = mask if mask is None else mask.to(model.device)
        ids, _, calls = asked(model, trained, how, plan, source.to(model.device), mask, n, noise, told)
        return ids.tolist(), calls.tolist()

    found = [None] * len(rows)
    passes_at_most = (how.max_thoughts or trained.max_thoughts or 12) if trained.multi_pass else 1
    for places in micro_batches([len(row) for row in rows], n * passes_at_most, how.batch_tokens, questions):
        began = time.perf_counter()
        own = [questions[i] for i in places], how.seed, [indices[i] for i in places]
        noise, told = Noise(*own, (n, model.embed_dim), model.device), watched(watch, places)
        sources = [rows[i] for i in places]
        if trained.multi_pass:
            written, calls, passes = multi_pass.think(ask, tokenizer, sources, passes_at_most, noise, told)
        else:
            (written, calls), passes = ask(sources, noise, told), [1] * len(places)
        seconds = (time.perf_counter() - began) / len(places)
        for i, ids, made, times in zip(places, written, calls, passes, strict=True):
            found[i] = replace(read(tokenizer, ids, seconds), tokens=n * times), made
    return [g for g, _ in found], [made for _, made in found]


def planned(model, trained: Training, how: Config):
    """The table that a sampler follows; None for masked diffusion."""
    from lib.dot import samplers

    if trained.loss == "masked":
        return None
    return samplers.table(samplers.gammas_of(model, how.steps), how.sampler, how.temperature)


def asked(model, trained: Training, how: Config, plan, source, mask, n: int, noise: Noise, watch: Callable | None):
    """(ids, probabilities, calls) of one micro-batch, from noise."""
    import torch

    from lib.dot import samplers

    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), torch.autocast(model.device.type, torch.bfloat16, enabled=how.dtype == "bfloat16"):
            if plan is None:
                temperature = 0.0 if how.temperature == 1 else how.temperature
                drawn = noise.uniform() if temperature else None
                return samplers.unmask(model, source, mask, n, how.steps, drawn, temperature, watch)
            z = noise(-1, torch.arange(len(source)))
            return samplers.denoise(model, source, mask, z, plan, noise, how.leave_at, watch)
    finally:
        model.train(was_training)


def watched(watch: Callable | None, places: list[int]) -> Callable | None:
    """`watch` with places in the whole call in place of rows of a micro-batch."""
    if watch is None:
        return None
    return lambda step, rows, ids, sure: watch(step, [places[row] for row in rows.tolist()], ids, sure)


def read(tokenizer, ids: list[int], seconds: float) -> Generation:
    """A canvas as a completion: the text before its end. Its tokens are all its positions: each was computed."""
    ends = tokenizer.eos_token_id in ids
    text = ids[: ids.index(tokenizer.eos_token_id)] if ends else ids
    return Generation(tokenizer.decode(text, skip_special_tokens=True), len(ids), ends, seconds)


def share_right(model, tokenizer, trained: Training, canvas: int, problems: list[Problem]) -> float:
    """The share of problems answered right in `trained.check_with` steps."""
    how = Config(steps=trained.check_with, sampler="ddim")
    found, _ = generate(model, tokenizer, trained, canvas, [p.question for p in problems], how)
    return sum(answers.is_correct(p, g.text) for p, g in zip(problems, found, strict=True)) / len(problems)


def evaluate(config: Config, problems: list[Problem], model_dir: str | Path, out_dir: str | Path) -> None:
    """Ask the model saved at `model_dir` every problem and write what `lib.evaluation.evaluate` writes.

    With several samples: the first of those with the winning answer, at the cost of all.
    """
    from lib.dot import model as plaid

    if not problems:
        raise InputError("There is no problem to ask; give test problems, and n_test of at least 1.")
    model, tokenizer, trained, canvas = plaid.load(model_dir, config.device)
    found, passes = voted(model, tokenizer, trained, canvas, problems, config)
    alone = []
    single = replace(config, batch_tokens=1)
    for problem in [problems[0], *problems[: config.latency_problems]]:  # the first one warms up
        alone.append(voted(model, tokenizer, trained, canvas, [problem], single)[0][0].seconds)
    asked = [Example(p, p.question, "", "dot") for p in problems]
    evaluation.write_predictions(Path(out_dir), asked, found, alone[1:], passes)


def voted(model, tokenizer, trained, canvas, problems: list[Problem], config: Config):
    """(Generation of each problem, calls of the model for it), by majority of its samples' answers."""
    k = config.samples
    questions = [p.question for p in problems for _ in range(k)]
    found, calls = generate(model, tokenizer, trained, canvas, questions, config, list(range(k)) * len(problems))
    chosen, passes = [], []
    for i in range(0, len(found), k):
        stated = [answers.extract(g.text) if g.finished else None for g in found[i : i + k]]
        best = found[i + (selection.vote(stated) or 0)] if k > 1 else found[i]
        tokens, seconds = sum(g.tokens for g in found[i : i + k]), sum(g.seconds for g in found[i : i + k])
        chosen.append(replace(best, tokens=tokens, seconds=seconds))
        passes.append(sum(calls[i : i + k]))
    return chosen, passes
