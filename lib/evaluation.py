"""Accuracy and cost of a model on a set of problems, in the one schema of results.

What is correct is `lib.answers`' business; this module counts, times and gives intervals.
"""

import json
import math
import statistics
from dataclasses import dataclass
from pathlib import Path

from lib import answers, prompts
from lib.errors import InputError
from lib.generation import generate
from lib.models import load_model
from lib.problems import Problem, write_jsonl

# A result row, in this order; a figure that was not measured is None, never a guess.
ROW_KEYS = (
    "method task split model train_set train_n setting seed n accuracy ci_low ci_high answer_rate tokens_per_problem "
    "forward_passes_per_problem seconds_per_problem_batch1 problems_per_second"
).split()


@dataclass(frozen=True)
class Config:
    """How to ask.

    max_new_tokens    longest completion, in tokens
    batch_size        prompts at once when measuring accuracy and throughput
    latency_problems  how many problems are asked one at a time to measure latency
    """

    max_new_tokens: int = 128
    batch_size: int = 64
    latency_problems: int = 20
    dtype: str = "float32"
    device: str = "auto"


def wilson(correct: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % Wilson score interval of correct / n; (0, 1) when n is 0."""
    if n == 0:
        return 0.0, 1.0
    share = correct / n
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))  # rounding never parts them


def paired_difference(a: list[bool], b: list[bool], z: float = 1.96) -> tuple[float, float, float]:
    """(mean, low, high) of accuracy a - accuracy b on the same problems: 95 % normal interval, paired by problem."""
    assert len(a) == len(b) and len(a) > 1, f"want two lists of the same length > 1, got {len(a)} and {len(b)}"
    differences = [int(x) - int(y) for x, y in zip(a, b, strict=True)]
    mean = statistics.fmean(differences)
    half = z * statistics.stdev(differences) / math.sqrt(len(differences))
    return mean, mean - half, mean + half


def evaluate(config: Config, problems: list[Problem], model_dir: str | Path, out_dir: str | Path) -> None:
    """Ask the model saved at `model_dir` every problem (greedy) and write what came to `out_dir`.

    predictions.jsonl  one line a problem: problem, text, correct, steps_hold, answered, tokens, seconds
    timing.json        problems_per_second (batched), seconds_per_problem_batch1 (median, one at a time)
    """
    if not problems:
        raise InputError("There is no problem to ask; give test problems, and n_test of at least 1.")
    model, tokenizer = load_model(str(model_dir), dtype=config.dtype, device=config.device)
    asked = [prompts.prompt(p) for p in problems]
    found = generate(model, tokenizer, asked, config.max_new_tokens, batch_size=config.batch_size)
    alone = asked[: config.latency_problems]
    generate(model, tokenizer, alone[:1], config.max_new_tokens, batch_size=1)
    single = generate(model, tokenizer, alone, config.max_new_tokens, batch_size=1)
    write_jsonl(
        Path(out_dir) / "predictions.jsonl",
        (
            {
                "problem": problem.id,
                "text": g.text,
                "correct": answers.is_correct(problem, g.text),
                "steps_hold": answers.is_verified(problem, g.text),
                "answered": answers.extract(g.text) is not None,
                "tokens": g.tokens,
                "seconds": g.seconds,
            }
            for problem, g in zip(problems, found, strict=True)
        ),
    )
    timing = {
        "problems_per_second": len(found) / sum(g.seconds for g in found) if found else None,
        "seconds_per_problem_batch1": statistics.median(g.seconds for g in single) if single else None,
    }
    (Path(out_dir) / "timing.json").write_text(json.dumps(timing) + "\n")


def merge(stages: list[Path]) -> tuple[list[dict], list[dict]]:
    """(rows, predictions) of every stage that has some, in order. Raises InputError if none has."""
    stages = [stage for stage in stages if (stage / "rows.jsonl").exists()]
    if not stages:
        raise InputError("This run has no results to show yet; make some first: python run_all.py --until 03.")
    rows = [row for stage in stages for row in read_rows(stage / "rows.jsonl")]
    return rows, [row for stage in stages for row in read_rows(stage / "predictions.jsonl")]


def read_rows(path: str | Path) -> list[dict]:
    """The rows of a JSON Lines file that this workbench wrote."""
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def result_row(predictions: list[dict], timing: dict, **what) -> dict:
    """One row of the results from the predictions of one model; `what` holds method, task, split, model and so on.

    Each generated token of an autoregressive model is one forward pass.
    """
    n, correct = len(predictions), sum(p["correct"] for p in predictions)
    low, high = wilson(correct, n)
    tokens = statistics.fmean(p["tokens"] for p in predictions) if n else None
    row = {
        **what,
        "n": n,
        "accuracy": correct / n if n else None,
        "ci_low": low,
        "ci_high": high,
        "answer_rate": sum(p["answered"] for p in predictions) / n if n else None,
        "tokens_per_problem": tokens,
        "forward_passes_per_problem": tokens,
        **timing,
    }
    assert set(row) == set(ROW_KEYS), f"missing or unknown keys: {sorted(set(row) ^ set(ROW_KEYS))}"
    return {key: row[key] for key in ROW_KEYS}


def pareto(rows: list[dict], cost: str = "tokens_per_problem") -> list[dict]:
    """The rows that no other row beats: none is at least as accurate and as cheap, and better in one of the two."""

    def beats(a: dict, b: dict) -> bool:
        no_worse = a["accuracy"] >= b["accuracy"] and a[cost] <= b[cost]
        return no_worse and (a["accuracy"] > b["accuracy"] or a[cost] < b[cost])

    return [row for row in rows if not any(beats(other, row) for other in rows)]


def paired(predictions: list[dict], a: str, b: str) -> list[dict]:
    """For each task and seed with both methods: accuracy of `a` minus accuracy of `b` on the problems both were asked.

    predictions  rows of predictions.jsonl, with task, method, seed, problem and correct
    """
    found = []
    for task, seed in sorted({(p["task"], p["seed"]) for p in predictions}):
        right = {
            method: {
                p["problem"]: p["correct"]
                for p in predictions
                if (p["task"], p["seed"], p["method"]) == (task, seed, method)
            }
            for method in (a, b)
        }
        shared = [problem for problem in right[a] if problem in right[b]]
        if len(shared) > 1:
            mean, low, high = paired_difference([right[a][p] for p in shared], [right[b][p] for p in shared])
            row = {"task": task, "seed": seed, "n": len(shared), "difference": mean, "low": low, "high": high}
            found.append({"comparison": f"{a} - {b}", **row})
    return found


def collect(found: str | Path, **what) -> dict:
    """The result row of what `evaluate` left in the directory `found`."""
    predictions = read_rows(Path(found) / "predictions.jsonl")
    return result_row(predictions, json.loads((Path(found) / "timing.json").read_text()), **what)


def by_steps(predictions: list[dict], tests: dict[str, Problem], task: str) -> dict[str, dict[int, tuple[int, int]]]:
    """{method: {steps a problem needs: (right, asked)}} over all seeds of one task."""
    counts: dict[str, dict[int, tuple[int, int]]] = {}
    for p in predictions:
        if p["task"] == task:
            method = counts.setdefault(p["method"], {})
            steps = len(tests[p["problem"]].steps)
            right, asked = method.get(steps, (0, 0))
            method[steps] = (right + p["correct"], asked + 1)
    return counts


def side_by_side(predictions: list[dict], tests: dict[str, Problem], task: str, n: int) -> list[tuple[Problem, dict]]:
    """Up to `n` problems of a task that every method was asked, with {method: {"text", "correct"}} (first seed)."""
    outputs: dict[str, dict] = {}
    methods = {p["method"] for p in predictions if p["task"] == task}
    for p in predictions:
        if p["task"] == task:
            outputs.setdefault(p["problem"], {}).setdefault(p["method"], {"text": p["text"], "correct": p["correct"]})
    return [(tests[problem], found) for problem, found in outputs.items() if set(found) == methods][:n]


def origin(stages: list[Path]) -> list[dict]:
    """Where each stage's figures come from, read from its manifest: commit, date, device, packages."""
    rows = []
    for directory in stages:
        manifest = json.loads((directory / "manifest.json").read_text())
        packages = manifest["packages"]
        rows.append(
            {
                "stage": manifest["stage"],
                "commit": (manifest["code"]["commit"] or "unknown")[:10] + ("+" if manifest["code"]["changed"] else ""),
                "started": manifest["started"],
                "ended": manifest["ended"],
                "device": json.loads((directory / "metrics.json").read_text()).get("device"),
                "packages": f"torch {packages['torch']}, transformers {packages['transformers']}",
            }
        )
    return rows
