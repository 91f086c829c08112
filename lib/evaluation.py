"""Accuracy and cost of a model on a set of problems, in the one schema of results.

What is correct is `lib.answers`' business; this module counts, times and gives intervals.
"""

import json
import math
import statistics
from dataclasses import dataclass, replace
from pathlib import Path

from lib import answers, prompts, selection
from lib.decoding_calculator import Calculator, marks
from lib.errors import InputError
from lib.generation import Generation, generate
from lib.models import load_model
from lib.problems import Problem, write_jsonl
from lib.prompts import Example
from lib.sampling import read_samples

# A result row, in this order; a figure that was not measured is None, never a guess.
ROW_KEYS = (
    "method task split model train_set train_n setting seed n accuracy ci_low ci_high answer_rate tokens_per_problem "
    "forward_passes_per_problem seconds_per_problem_batch1 problems_per_second"
).split()


@dataclass(frozen=True)
class Config:
    """How to ask.

    max_new_tokens    longest completion, in tokens
    batch_tokens      positions of a micro-batch when measuring accuracy and throughput
    calculator        have the results of annotations computed while the model writes
    latency_problems  how many problems are asked one at a time to measure latency
    """

    max_new_tokens: int = 128
    batch_tokens: int = 16384
    calculator: bool = False
    latency_problems: int = 20
    dtype: str = "float32"
    device: str = "auto"


@dataclass(frozen=True)
class ChoiceConfig:
    """Which samples to choose from, the first `n_samples` of each problem, and how.

    by  "vote": the answer that most state; "verifier": the sample with the highest score; "weighted_vote": the answer
        whose samples have the highest sum of scores (Li et al., 2023)
    """

    by: str = "vote"
    n_samples: int = 8

    def __post_init__(self):
        if self.n_samples < 1:
            raise InputError(f"n_samples must be at least 1, not {self.n_samples}.")
        if self.by not in ("vote", "verifier", "weighted_vote"):
            raise InputError(f"Unknown way to choose {self.by!r}; use vote, verifier or weighted_vote.")


def wilson(correct: float, n: int, z: float = 1.96) -> tuple[float, float]:
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
    return mean_interval([int(x) - int(y) for x, y in zip(a, b, strict=True)], z)


def mean_interval(values: list[float], z: float = 1.96) -> tuple[float, float, float]:
    """(mean, low, high) of at least two values: the 95 % normal interval of their mean."""
    mean = statistics.fmean(values)
    half = z * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


# Student's t at 97.5 % for 1 to 10 degrees of freedom; more are treated as 10, which is a little too wide.
T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


def over_seeds(rows: list[dict]) -> list[dict]:
    """The mean accuracy of each task, method and setting, with its 95 % t-interval over seeds (None for one seed)."""
    groups: dict[str, list[dict]] = {}
    for row in rows:
        groups.setdefault(json.dumps([row["task"], row["method"], row["setting"]]), []).append(row)
    found = []
    for group in groups.values():
        values, row = [row["accuracy"] for row in group], {k: group[0][k] for k in ("task", "method", "setting")}
        row |= {"seeds": len(values), "accuracy": statistics.fmean(values), "low": None, "high": None}
        if len(values) > 1:
            _, row["low"], row["high"] = mean_interval(values, T[min(len(values), 11) - 2])
        found.append(row)
    return found


def evaluate(
    config: Config, problems: list[Problem] | list[Example], model_dir: str | Path, out_dir: str | Path
) -> None:
    """Ask the model saved at `model_dir` every problem (greedy) and write what came to `out_dir`.

    problems           asked by their plain prompt; Examples by their own
    predictions.jsonl  one line a problem: problem, text, correct, steps_hold, answered, tokens, seconds
    timing.json        problems_per_second (batched), seconds_per_problem_batch1 (median, one at a time)
    calculator.json    with a calculator: what it did (triggered, overridden, failed by reason)
    """
    if not problems:
        raise InputError("There is no problem to ask; give test problems, and n_test of at least 1.")
    model, tokenizer = load_model(str(model_dir), dtype=config.dtype, device=config.device)
    asked = prompts.examples(problems)
    calculator = Calculator(tokenizer, marks(asked[0].form)) if config.calculator else None

    def ask(examples: list[Example], batch_tokens: int, calculator: Calculator | None = None) -> list[Generation]:
        texts = [e.prompt for e in examples]
        return generate(
            model, tokenizer, texts, config.max_new_tokens, calculator=calculator, batch_tokens=batch_tokens
        )

    found = [
        replace(g, text=prompts.canonical_text(g.text, example.form))
        for g, example in zip(ask(asked, config.batch_tokens, calculator), asked, strict=True)
    ]
    alone = asked[: config.latency_problems]
    ask(alone[:1], 1)
    single = ask(alone, 1, Calculator(tokenizer, marks(asked[0].form)) if config.calculator else None)
    if calculator:
        (Path(out_dir) / "calculator.json").write_text(json.dumps(calculator.counts) + "\n")
    write_predictions(Path(out_dir), asked, found, [g.seconds for g in single])


def choose(config: ChoiceConfig, problems: list[Problem] | list[Example], samples_dir, scores_dir, out_dir) -> None:
    """One of the samples of each problem: by vote, or by the scores that `selection.rate` left in `scores_dir`.

    Writes what `evaluate` writes. A choice costs what its samples cost, tokens and seconds of all n, and what it costs
    to rate them: one forward pass a sample, and its seconds.
    """
    asked, samples = prompts.examples(problems), read_samples(samples_dir)
    if config.by != "vote" and not str(scores_dir):
        raise InputError("Choosing with a verifier needs its scores; rate the samples with selection.rate first.")
    scores = selection.read_scores(scores_dir) if config.by != "vote" else {}
    chosen, passes = [], []
    for example in asked:
        found = samples[example.problem.id][: config.n_samples]
        if len(found) < config.n_samples:
            raise InputError(
                f"{config.n_samples} samples are to be chosen from, but {len(found)} were drawn; draw more."
            )
        row = [score for score, _ in scores[example.problem.id][: config.n_samples]] if scores else None
        stated = [s["answer"] if s["finished"] else None for s in found]
        place = row.index(max(row)) if config.by == "verifier" else selection.vote(stated, row)
        best = found[place or 0]
        tokens, seconds = sum(s["tokens"] for s in found), sum(s["seconds"] for s in found)
        rated = [cost for _, cost in scores[example.problem.id][: config.n_samples]] if scores else []
        passes.append(tokens + len(rated))
        seconds += sum(rated)
        chosen.append(Generation(best["text"], tokens, best["finished"], seconds))
    write_predictions(Path(out_dir), asked, chosen, [], passes)


def write_predictions(
    out_dir: Path,
    asked: list[Example],
    found: list[Generation],
    alone: list[float | None],
    passes: list[int] | None = None,
) -> None:
    """predictions.jsonl and timing.json of what was found.

    alone   seconds of problems asked one at a time; passes  forward passes, where they are more than the tokens
    """
    passes = [g.tokens for g in found] if passes is None else passes
    write_jsonl(
        out_dir / "predictions.jsonl",
        (
            {
                "problem": problem.id,
                "text": g.text,
                "correct": answers.is_correct(problem, g.text),
                "steps_hold": answers.is_verified(problem, g.text),
                "answered": answers.extract(g.text) is not None,
                "tokens": g.tokens,
                "passes": made,
                "seconds": g.seconds,
            }
            for problem, g, made in zip([e.problem for e in asked], found, passes, strict=True)
        ),
    )
    timing = {
        "problems_per_second": len(found) / sum(g.seconds for g in found) if found else None,
        "seconds_per_problem_batch1": statistics.median(alone) if alone else None,
    }
    (out_dir / "timing.json").write_text(json.dumps(timing) + "\n")


def merge(stages: list[Path]) -> tuple[list[dict], list[dict]]:
    """(rows, predictions) of every stage that has some, in order; predictions get a "label" (see `labels`).

    Where two used the same settings, both say in "stage" whose results they are. Raises InputError if none has.
    """
    stages = [stage for stage in stages if (stage / "rows.jsonl").exists()]
    if not any((stage / "rows.jsonl").stat().st_size for stage in stages):
        raise InputError("This run has no results to show yet; make some first: python run_all.py --until 03.")
    names, whose = ("rows.jsonl", "predictions.jsonl"), {}
    read = [(stage.name[:2], name, row) for name in names for stage in stages for row in read_rows(stage / name)]
    for stage, _, row in read:
        whose.setdefault(json.dumps([row["task"], row["method"], row["setting"]]), {}).setdefault(stage, []).append(row)
    for stage, row in [(s, row) for own in whose.values() if len(own) > 1 for s in own for row in own[s]]:
        row["setting"] = row["setting"] | {"stage": stage}
    rows, predictions = ([row for _, name, row in read if name == wanted] for wanted in names)
    return rows, [{**p, "label": label} for p, label in zip(predictions, labels(predictions), strict=True)]


def read_rows(path: str | Path) -> list[dict]:
    """The rows of a JSON Lines file that this workbench wrote."""
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def result_row(predictions: list[dict], timing: dict, **what) -> dict:
    """One row of the results from the predictions of one model; `what` holds method, task, split, model and so on.

    Each generated token of an autoregressive model is one forward pass; "passes" of a prediction count others too.
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
        "forward_passes_per_problem": statistics.fmean(p.get("passes", p["tokens"]) for p in predictions)
        if n
        else None,
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


def labels(rows: list[dict]) -> list[str]:
    """A short name for each row (or prediction): its method, with those settings that part it from others of a task."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        group = groups.setdefault((row["task"], row["method"]), [])
        group += [row["setting"]] if row["setting"] not in group else []
    found = []
    for row in rows:
        group = groups[row["task"], row["method"]]
        parting = [key for key in row["setting"] if len({json.dumps(other.get(key)) for other in group}) > 1]
        settings = ", ".join(f"{key} {row['setting'][key]}" for key in parting)
        found.append(f"{row['method']} {settings}".strip())
    return found


def matches(prediction: dict, which: str | dict) -> bool:
    """Is a prediction of the method (or label) `which`, or has it the method and settings that `which` names?"""
    if isinstance(which, str):
        return prediction.get("label", prediction["method"]) == which
    return {"method": prediction["method"], **prediction["setting"]}.items() >= which.items()


def paired(predictions: list[dict], a: str | dict, b: str | dict) -> list[dict]:
    """For each task and seed with both: accuracy of `a` minus accuracy of `b` on the problems both were asked.

    predictions  rows of predictions.jsonl, with task, method, setting, seed, problem and correct
    a, b         a method, or {"method": ..., setting: value, ...} where a method has several settings
    Where there are several seeds, a last row for each task, seed "all", has the mean of a problem's differences over
    the seeds in place of its difference.
    """
    right: dict[tuple, dict[str, bool]] = {}
    for p in predictions:
        for side, which in ((0, a), (1, b)):
            if matches(p, which):
                answered = right.setdefault((p["task"], p["seed"], side), {})
                assert p["problem"] not in answered, f"several settings of {which}: name the one that is meant"
                answered[p["problem"]] = p["correct"]
    found, name = [], " - ".join(which if isinstance(which, str) else spelled(which) for which in (a, b))
    for task in sorted({key[0] for key in right}):
        by_problem: dict[str, list[int]] = {}
        seeds = [s for s in sorted({key[1] for key in right}) if {(task, s, 0), (task, s, 1)} <= set(right)]
        for seed in seeds:
            left, other = right[task, seed, 0], right[task, seed, 1]
            shared = [problem for problem in left if problem in other]
            for problem in shared:
                by_problem.setdefault(problem, []).append(int(left[problem]) - int(other[problem]))
            if len(shared) > 1:
                mean, low, high = paired_difference([left[p] for p in shared], [other[p] for p in shared])
                row = {"task": task, "seed": seed, "n": len(shared), "difference": mean, "low": low, "high": high}
                found.append({"comparison": name, **row})
        means = [statistics.fmean(differences) for differences in by_problem.values()]
        if len(seeds) > 1 and len(means) > 1:
            mean, low, high = mean_interval(means)
            row = {"task": task, "seed": "all", "n": len(means), "difference": mean, "low": low, "high": high}
            found.append({"comparison": name, **row})
    return found


def against_cot(rows: list[dict], predictions: list[dict]) -> list[dict]:
    """`paired`, task by task: every label against the chain-of-thought model it should be measured by.

    That is one from the same gold chains (setting "gold"), asked with the calculator where the label was, and trained
    for as many steps, in this order of weight; of several, the one with the most training problems. A task without any
    is compared with its first label. predictions come from `merge`.
    """
    found, named = [], list(zip(rows, labels(rows), strict=True))
    for task in dict.fromkeys(row["task"] for row in rows):
        own = sorted(
            [x for x in named if x[0]["task"] == task], key=lambda x: (x[0]["method"] != "cot", -x[0]["train_n"])
        )
        asked = [p for p in predictions if p["task"] == task]
        chains = [x for x in own if x[0]["method"] in ("cot", "cot_calculator")] or own[:1]
        for label, row in {label: row for row, label in own}.items():
            calculates = row["setting"].get("calculator", False) and row["method"] != "cot_calculator"

            def distance(chain, row=row, calculates=calculates):
                other, setting = chain[0]["setting"], row["setting"]
                with_it = chain[0]["method"] == "cot_calculator"
                differs = [other.get(key) != setting.get(key) for key in ("gold", "steps")]
                return differs[0], with_it != calculates, differs[1], -chain[0]["train_n"]

            base = min(chains, key=distance)[1]
            found += paired(asked, label, base) if label != base else []
    return found


def spelled(which: dict) -> str:
    """{"method": "rft", "k": 8} as "rft k 8"."""
    return " ".join(str(v) if k == "method" else f"{k} {v}" for k, v in which.items())


def any_right(samples_dir: str | Path, n: int) -> float:
    """The share of problems with at least one right answer among their first `n` samples: what choosing can reach."""
    samples = read_samples(samples_dir).values()
    return sum(any(s["correct"] for s in found[:n]) for found in samples) / len(samples)


def pass_at_k(n: int, correct: int, k: int) -> float:
    """The chance that at least one of k samples is right, estimated without bias from n samples of a problem.

    1 - C(n - correct, k) / C(n, k) (Chen et al., 2021): the share of all choices of k of them with a right one.
    """
    assert 0 <= correct <= n and 1 <= k <= n, f"{correct} right of {n} samples, k = {k}"
    return 1 - math.comb(n - correct, k) / math.comb(n, k)


def mean_pass_at_k(samples_dir: str | Path, ks: list[int]) -> dict[int, float]:
    """{k: pass@k} over the problems of a drawing, with a text right where its answer is."""
    found = [[s["correct"] for s in samples] for samples in read_samples(samples_dir).values()]
    return {k: statistics.fmean(pass_at_k(len(row), sum(row), k) for row in found) for k in ks}


def collect(found: str | Path, **what) -> dict:
    """The result row of what `evaluate` left in the directory `found`."""
    predictions = read_rows(Path(found) / "predictions.jsonl")
    return result_row(predictions, json.loads((Path(found) / "timing.json").read_text()), **what)


def by_steps(predictions: list[dict], tests: dict[str, Problem], task: str, meta: str = "") -> dict[str, dict]:
    """{label: {steps a problem needs, or its meta[meta]: (right, asked)}} over all seeds of one task."""
    counts: dict[str, dict] = {}
    for p in predictions:
        if p["task"] == task:
            method, problem = counts.setdefault(p.get("label", p["method"]), {}), tests[p["problem"]]
            kind = problem.meta.get(meta) if meta else len(problem.steps)
            right, asked = method.get(kind, (0, 0))
            method[kind] = (right + p["correct"], asked + 1)
    return counts


def side_by_side(predictions: list[dict], tests: dict[str, Problem], task: str, n: int) -> list[tuple[Problem, dict]]:
    """Up to `n` problems of a task that every method was asked, with {label: {"text", "correct"}} (first seed)."""
    outputs: dict[str, dict] = {}
    methods = {p["label"] for p in predictions if p["task"] == task}
    for p in predictions:
        if p["task"] == task:
            outputs.setdefault(p["problem"], {}).setdefault(p["label"], {"text": p["text"], "correct": p["correct"]})
    return [(tests[problem], found) for problem, found in outputs.items() if set(found) == methods][:n]
