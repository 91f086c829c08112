"""Answers of a model that thinks: batched, on cached keys and values, with the one decoding loop of `lib.generation`.

How many thoughts there are is imposed: no model is taught to end them itself.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from lib import answers, evaluation
from lib.coconut import schedule, sequences
from lib.coconut.config import Config as Training
from lib.errors import InputError
from lib.generation import Generation
from lib.generation import generate as generate_texts
from lib.problems import Problem
from lib.prompts import Example, prompt


@dataclass(frozen=True)
class Config:
    """How to ask.

    thoughts          thoughts before the answer; -1: as many as the model had at the end of its training
    max_new_tokens    longest text after the thoughts, in tokens
    batch_tokens      positions of a micro-batch when measuring accuracy and throughput
    latency_problems  how many problems are asked one at a time to measure latency
    """

    thoughts: int = -1
    max_new_tokens: int = 64
    batch_tokens: int = 16384
    latency_problems: int = 20
    dtype: str = "float32"
    device: str = "auto"

    def __post_init__(self):
        if self.thoughts < -1:
            raise InputError(f"thoughts must be at least 0, or -1 for as many as were trained, not {self.thoughts}.")


def read(thinker, thoughts: int, edit, model, tokenizer, prompts: list[list[int]]):
    """As `lib.generation.read`: (logits (batch, vocabulary) for the first token after the thoughts, state)."""
    from lib.coconut.training import to_device
    from lib.kv_cache import roomy_cache

    nothing = {"steps": [], "answer": []}
    rows = [sequences.row({"question": ids, **nothing}, 0, thoughts, thinker.markers) for ids in prompts]
    batch = sequences.make_batch(rows, tokenizer.pad_token_id, ends_aligned=True)
    batch = to_device(batch, model.device)
    state = {"attention_mask": batch["attention_mask"], "cache": roomy_cache(model.config)}
    hidden = thinker.hidden(batch, state["cache"], edit)
    return thinker.head(hidden[:, -1]), state


def generate(thinker, tokenizer, prompts: list[str], thoughts: int | list[int], edit=None, **how) -> list[Generation]:
    """One completion for each prompt, after so many thoughts (one number for all, or one for each).

    edit  as in `Coconut.hidden`; prompts of one text then stand once in a batch, the longest first
    how   max_new_tokens, temperature, seed, batch_tokens, ... of `lib.generation.generate`
    `tokens` of a Generation counts the thoughts too: a token is a generated or a latent position.
    """
    each = [thoughts] * len(prompts) if isinstance(thoughts, int) else thoughts
    assert len(each) == len(prompts), f"{len(prompts)} prompts, but {len(each)} numbers of thoughts"
    if thinker.markers is None and any(each):
        raise InputError("A model without latent positions has no thoughts; ask it with thoughts 0.")
    results: list[Generation | None] = [None] * len(prompts)
    indices = how.pop("indices", None)
    for n in sorted(set(each)):
        places = [i for i, value in enumerate(each) if value == n]
        own = {"indices": [indices[i] for i in places]} if indices else {}
        reader = partial(read, thinker, n, edit)
        found = generate_texts(thinker.model, tokenizer, [prompts[i] for i in places], reader=reader, **own, **how)
        for i, generation in zip(places, found, strict=True):
            results[i] = replace(generation, tokens=generation.tokens + n)
    return results


def evaluate(config: Config, problems: list[Problem], model_dir: str | Path, out_dir: str | Path) -> None:
    """Ask the model saved at `model_dir` every problem (greedy) and write what `lib.evaluation.evaluate` writes."""
    from lib.coconut import engine

    if not problems:
        raise InputError("There is no problem to ask; give test problems, and n_test of at least 1.")
    thinker, tokenizer, trained, stage = engine.load(model_dir, config.dtype, config.device)
    each = thoughts_for(config, trained, stage, problems)

    def ask(some: list[Problem], counts: list[int], batch_tokens: int) -> list[Generation]:
        how = dict(max_new_tokens=config.max_new_tokens, batch_tokens=batch_tokens)
        return generate(thinker, tokenizer, [prompt(p) for p in some], counts, **how)

    found = [replace(g, text=with_marker(g.text, trained)) for g in ask(problems, each, config.batch_tokens)]
    alone, counts = problems[: config.latency_problems], each[: config.latency_problems]
    ask(alone[:1], counts[:1], 1)
    single = ask(alone, counts, 1)
    asked = [Example(p, prompt(p), "", trained.method) for p in problems]
    passes = [g.tokens - n + passes_of(trained, n) for g, n in zip(found, each, strict=True)]
    evaluation.write_predictions(Path(out_dir), asked, found, [g.seconds for g in single], passes)


def thoughts_for(config: Config, trained: Training, stage: schedule.Stage, problems: list[Problem]) -> list[int]:
    """How many thoughts each problem gets. Raises InputError where a model without thoughts is asked for some."""
    if config.thoughts < 0:
        return [schedule.thoughts_to_answer(trained, stage, len(p.steps)) for p in problems]
    if config.thoughts and not trained.has_latents:
        raise InputError(f"A model trained as {trained.method} has no thoughts; ask it with thoughts 0.")
    return [config.thoughts] * len(problems)


def passes_of(trained: Training, thoughts: int) -> int:
    """Forward passes that so many thoughts cost beyond the one over the question."""
    if trained.thought_source in (None, "pause"):
        return 0
    return min(trained.jacobi_passes, thoughts - 1) + 1 if trained.method == "coconut_jacobi" and thoughts else thoughts


def with_marker(text: str, trained: Training) -> str:
    """A completion with the house's `####` before its answer, where it was trained with the published `###`."""
    if answers.MARKER in text:
        return text
    if not trained.answer_prefix:  # then the answer is the last line
        before, end, answer = text.rpartition("\n")
        return f"{before}{end}{answers.MARKER} {answer}"
    before, prefix, answer = text.rpartition(trained.answer_prefix)
    return f"{before}{answers.MARKER} {answer}" if prefix else text
