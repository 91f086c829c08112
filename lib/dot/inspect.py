"""Looking at a diffusion model: its schedule, its loss at each time, and one problem's denoising, step by step.

Everything returned is plain data, for lib.dot.pictures and lib.dot.film.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from lib import answers, evaluation
from lib.dot import generation, multi_pass, sequences
from lib.dot.config import Config as Training
from lib.errors import InputError
from lib.problems import Problem, make_problem, write_jsonl
from lib.progress import Bar


def schedule_curve(model, trained: Training, points: int = 101) -> dict[str, list[float]]:
    """{"t", "gamma", "start"}: the model's gamma, and the line that a training without a learned shape would keep."""
    import torch

    t = torch.linspace(0, 1, points, dtype=torch.float64)
    with torch.no_grad():
        gamma, _ = model.gamma(t.to(model.device))
    start = trained.gamma_0 + (trained.gamma_1 - trained.gamma_0) * t
    return {"t": t.tolist(), "gamma": gamma.tolist(), "start": start.tolist()}


def loss_by_time(
    model, tokenizer, trained: Training, problems: list[Problem], bins: int = 20, at_once: int = 128
) -> list[dict]:
    """The diffusion loss, nats a token, at the middle of each bin of time: [{"t", "loss", "low", "high"}], 95 %.

    Each problem is noised once at each time, with its own noise; there is no self-conditioning.
    """
    import torch

    from lib.dot import losses

    if trained.multi_pass:
        raise InputError("The loss by time is drawn for whole chains; this model was trained on one thought a pass.")
    rows, found = sequences.Rows(sequences.encode(tokenizer, problems), tokenizer.pad_token_id), []
    for i in range(bins):
        generator, values = torch.Generator().manual_seed(i), []
        for places in torch.arange(len(rows)).split(at_once):
            batch = rows.batch(places)
            batch = {name: value if value is None else value.to(model.device) for name, value in batch.items()}
            noise = torch.randn(*losses.noised_columns(trained, batch)[0].shape, model.embed_dim, generator=generator)
            t = torch.full((len(places),), (i + 0.5) / bins, dtype=torch.float64, device=model.device)
            with torch.no_grad():
                draw = losses.Draw(t, noise.to(model.device), len(places))
                values += losses.vlb(model, trained, batch, draw)["rows"].tolist()
        mean, low, high = evaluation.mean_interval(values) if len(values) > 1 else (values[0],) * 3
        found.append({"t": (i + 0.5) / bins, "loss": mean, "low": max(0.0, low), "high": high})
    return found


def films(model, tokenizer, trained: Training, canvas: int, problems: list[Problem], ways: list) -> list[dict]:
    """What lib.dot.film shows: each problem denoised in each of `ways` (of lib.dot.generation.Config).

    [{"question", "answer", "runs": [{"sampler", "steps", "frames", "text", "right"}]}]; a frame is one call of the
    model: {"t", "tokens", "confidence"}, its likeliest token at each position and that token's probability. Of a model
    that writes one thought a pass: behind what it has thought before, which is sure, and "pass" counts from 1.
    """
    ends = tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.sep_token_id
    items = [{"question": p.question, "answer": p.answer, "runs": []} for p in problems]
    for how in ways:
        frames: list[list[dict]] = [[] for _ in problems]
        before: list[list[int]] = [[] for _ in problems]  # thoughts of earlier passes
        last: list[list[int]] = [[] for _ in problems]  # the canvas as it was one call ago

        def watch(step, places, ids, sure, frames=frames, before=before, last=last):
            for place, row, likely in zip(places, ids.tolist(), sure.tolist(), strict=True):
                frame = {"t": step.t, "pass": 1}
                if frames[place]:  # time runs backwards, but for a new canvas
                    new = step.t >= frames[place][-1]["t"]
                    frame["pass"] = frames[place][-1]["pass"] + new
                    before[place] += multi_pass.cut(last[place], *ends)[0] if new else []
                last[place] = row
                frame["tokens"] = [tokenizer.decode([i]) if i != ends[1] else "" for i in [*before[place], *row]]
                frames[place].append({**frame, "confidence": [1.0] * len(before[place]) + likely})

        questions = [p.question for p in problems]
        found, _ = generation.generate(model, tokenizer, trained, canvas, questions, how, watch=watch)
        name = "unmask" if trained.loss == "masked" else how.sampler
        for item, problem, own, g in zip(items, problems, frames, found, strict=True):
            right = answers.is_correct(problem, g.text) if problem.answer else None
            run = {"sampler": name, "steps": how.steps, "frames": own, "text": g.text, "right": right}
            item["runs"].append(run)
    return items


@dataclass(frozen=True)
class Ways:
    """Ways to ask the same problems."""

    ways: tuple[generation.Config, ...]


def try_ways(config: Ways, problems: list[Problem], model_dir: str | Path, out_dir: str | Path) -> None:
    """Ask the model at `model_dir` the problems in each way. Writes tried.jsonl, a way a line: see `accuracy`."""
    from lib.dot import model as plaid

    parts = plaid.load(model_dir, config.ways[0].device)
    rows = []
    with Bar("denoising", len(config.ways)) as bar:
        for how in config.ways:
            rows.append(accuracy(*parts, problems, how))
            bar.update(sampler=how.sampler, T=how.steps)
    write_jsonl(Path(out_dir) / "tried.jsonl", rows)


def accuracy(model, tokenizer, trained: Training, canvas: int, problems: list[Problem], how) -> dict:
    """Of one way: {"sampler", "steps", "samples", "temperature", "right", "n", "seconds"}, seconds a problem."""
    found, _ = generation.voted(model, tokenizer, trained, canvas, problems, how)
    right = sum(answers.is_correct(p, g.text) for p, g in zip(problems, found, strict=True))
    what = {name: getattr(how, name) for name in ("sampler", "steps", "samples", "temperature")}
    seconds = statistics.fmean(g.seconds for g in found)
    return {**what, "right": right, "n": len(problems), "seconds": seconds}


def room(model_dir: str | Path, problems: list[Problem]) -> int:
    """Positions that the longest of these solutions needs, with its end, in the model's tokens."""
    from lib import models

    encoded = sequences.encode(models.load_tokenizer(str(model_dir)), problems)
    return max((len(e["target"]) for e in encoded), default=1)


def fewest_steps(rows: list[dict], within: float = 0.01) -> int:
    """The smallest T whose accuracy is at most `within` below the best of `rows` (one sampler)."""
    best = max(row["right"] / row["n"] for row in rows)
    return min(row["steps"] for row in rows if row["right"] / row["n"] >= best - within)


def filmed(model, tokenizer, trained: Training, canvas: int, how) -> Callable[[str, str, int], dict]:
    """What lib.dot.film.live asks: (question, sampler, steps) -> an item with one run."""

    def film(question: str, sampler: str, steps: int) -> dict:
        asked = make_problem(question, [], "", "asked")
        (item,) = films(model, tokenizer, trained, canvas, [asked], [replace(how, sampler=sampler, steps=steps)])
        return item

    return film
