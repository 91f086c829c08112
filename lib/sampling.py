"""Many solutions for each problem, drawn once and kept: what voting, verifiers, rejection sampling and DPO feed on.

Every micro-batch goes to disk when it is done, so an interruption loses at most one. Knows how to judge a sample (by
asking `lib.answers`) and nothing of what becomes of it.
"""

import json
import math
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from lib import answers, generation, prompts
from lib.decoding_calculator import Calculator, marks
from lib.errors import InputError
from lib.models import PRESETS, load_model
from lib.problems import Problem, write_jsonl
from lib.prompts import Example
from lib.tasks import solve

DRAWN = "drawn.jsonl"  # the micro-batches of a drawing that is not complete


@dataclass(frozen=True)
class Config:
    """How to draw.

    n_samples        solutions a problem; sample i of a problem is the same whatever n_samples is
    temperature      0 is greedy, and then n_samples must be 1
    top_p, top_k     1 and 0: sample from the whole vocabulary, with either backend (their own defaults differ)
    calculator       have the results of annotations computed while the model writes
    backend          "hf" (any model) or "vllm" (causal models, no calculator; needs vLLM)
    batch_tokens     hf: positions of a micro-batch
    memory_fraction  vllm: the share of the GPU's memory that it takes; max_model_len, max_sequences: 0 is its default
    """

    n_samples: int = 8
    temperature: float = 0.7
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 128
    calculator: bool = False
    seed: int = 0
    backend: str = "hf"
    batch_tokens: int = 16384
    dtype: str = "float32"
    device: str = "auto"
    memory_fraction: float = 0.9
    max_model_len: int = 0
    max_sequences: int = 0

    def __post_init__(self):
        if self.backend not in ("hf", "vllm"):
            raise InputError(f"Unknown backend {self.backend!r}; use hf or vllm.")
        if self.backend == "vllm" and self.calculator:
            raise InputError("vLLM samples without the calculator; use the backend hf, or calculator: false.")
        if self.n_samples < 1 or self.max_new_tokens < 1:
            raise InputError("n_samples and max_new_tokens must be at least 1.")
        if not (0 <= self.temperature < math.inf and 0 < self.top_p <= 1 and self.top_k >= 0):
            raise InputError("temperature must be at least 0, top_p above 0 and at most 1, top_k at least 0.")
        if 0 < self.temperature < 0.01:
            raise InputError(f"A temperature of {self.temperature} is next to greedy and overflows; use 0, or 0.01 up.")
        if self.temperature == 0 and self.n_samples > 1:
            raise InputError("Greedy decoding gives one sample; use a temperature above 0 for more.")


def draw(config: Config, problems: list[Problem] | list[Example], model: str | Path, out_dir: str | Path) -> None:
    """Ask `model` (a directory or hub id) for config.n_samples solutions of each problem. Leaves in `out_dir`:

    samples.jsonl    one line a problem: id, question, gold (its answer), samples: a list of {index, text, answer,
                     correct, verified, finished, tokens, seconds}; in T5's form, text is as the arbiter reads it, and
                     "written" as the model wrote it
    calculator.json  what the calculator did: triggered, overridden, failed by reason
    Goes on where an interrupted call stopped.
    """
    out_dir, asked = Path(out_dir), prompts.examples(problems)
    if (out_dir / "samples.jsonl").exists() and not (out_dir / DRAWN).exists():
        return  # all was done but for the word that it was
    requests = [(row, index) for row in range(len(asked)) for index in range(config.n_samples)]
    drawn = read_whole_lines(out_dir / DRAWN)
    with open(out_dir / DRAWN, "a") as file:
        for batch in draw_batches(config, asked, requests, model, done=len(drawn)):
            drawn.append(batch)
            file.write(json.dumps(batch) + "\n")
            file.flush()
            os.fsync(file.fileno())
    found = {place: g for batch in drawn for place, g in zip(batch["rows"], batch["generations"], strict=True)}
    samples: list[list[dict]] = [[] for _ in asked]
    for place, (row, index) in enumerate(requests):
        written = found[place]["text"]
        text = prompts.canonical_text(written, asked[row].form)
        sample = {"index": index, **found[place], "text": text, **judge(asked[row].problem, text)}
        samples[row].append(sample | ({"written": written} if text != written else {}))
    write_jsonl(
        out_dir / "samples.jsonl",
        (
            {"id": e.problem.id, "question": e.problem.question, "gold": e.problem.answer, "samples": rows}
            for e, rows in zip(asked, samples, strict=True)
        ),
    )
    (out_dir / "calculator.json").write_text(json.dumps(add_counts([b["calculator"] for b in drawn])) + "\n")
    (out_dir / DRAWN).unlink()


def draw_batches(config: Config, asked: list[Example], requests, model, done: int) -> Iterator[dict]:
    """The micro-batches after the first `done`: {"rows": places in `requests`, "generations", "calculator"}."""
    texts, indices = [asked[row].prompt for row, _ in requests], [index for _, index in requests]
    how = (config.max_new_tokens, config.temperature, config.seed, indices)
    narrow = dict(top_p=config.top_p, top_k=config.top_k, done=done)
    calculator = None
    if config.backend == "vllm":
        from lib import generation_vllm

        engine = generation_vllm.load(
            str(model),
            dtype=config.dtype,
            device=config.device,
            memory_fraction=config.memory_fraction,
            max_model_len=config.max_model_len or None,
            max_sequences=config.max_sequences or 256,
        )
        batches = generation_vllm.stream(engine, texts, *how, **narrow)
    else:
        if str(model) in PRESETS:
            raise InputError(f"{model} is an untrained preset; give the directory or hub id of a trained model.")
        language_model, tokenizer = load_model(str(model), dtype=config.dtype, device=config.device)
        calculator = Calculator(tokenizer, marks(asked[0].form)) if config.calculator and asked else None
        batches = generation.stream(
            language_model, tokenizer, texts, *how, calculator, batch_tokens=config.batch_tokens, **narrow
        )
    try:
        for rows, generations in batches:
            counts = calculator.counts if calculator else {}
            yield {"rows": rows, "generations": [asdict(g) for g in generations], "calculator": counts}
            if calculator:
                calculator.reset_counts()
    finally:
        if config.backend == "vllm":
            generation_vllm.close()  # training that follows needs the memory


def judge(problem: Problem, text: str) -> dict:
    """{"answer", "correct", "verified"} of one sample.

    Steps of one right form are compared with those that the question leads to, not with the problem's own, which a
    problem of which the answer alone may be used must not give away.
    """
    problem = solve(problem) or problem
    correct = answers.is_correct(problem, text)
    return {
        "answer": answers.extract(text),
        "correct": correct,
        "verified": correct and answers.is_verified(problem, text),
    }


def read_whole_lines(path: Path) -> list[dict]:
    """The complete lines of a JSON Lines file that may have been cut off while written; what is broken is removed."""
    if not path.exists():
        return []
    whole, _, broken = path.read_bytes().rpartition(b"\n")
    if broken:
        with open(path, "r+b") as file:
            file.truncate(len(whole) + 1 if whole else 0)
    return [json.loads(line) for line in whole.splitlines()]


def add_counts(counts: list[dict]) -> dict:
    """The sum of several calculators' counts."""
    failed: Counter = Counter()
    for count in counts:
        failed.update(count.get("failed", {}))
    sums = {key: sum(count.get(key, 0) for count in counts) for key in ("triggered", "overridden")}
    return {**sums, "failed": dict(failed)}


def read_samples(directory: str | Path) -> dict[str, list[dict]]:
    """{problem id: its samples} of a finished drawing."""
    lines = (Path(directory) / "samples.jsonl").read_text().splitlines()
    return {line["id"]: line["samples"] for line in map(json.loads, lines)}
