"""Seconds of a denoised chain and of one written token by token: alone, and many at once, measured in turns.

The writer is asked in two ways, and the faster one counts: by the library's own `generate`, and by this workbench's
cached loop (lib.generation).
"""

import statistics
import time
from dataclasses import replace
from pathlib import Path

from lib import generation as writing
from lib import models
from lib.dot import generation
from lib.problems import Problem
from lib.prompts import prompt, solution


def compare(
    dot_dir: str | Path, writer_dir: str | Path, problems: list[Problem], how: generation.Config, alone: int = 10
) -> list[dict]:
    """Two rows, {"method", "length", "passes", "seconds", "problems_per_second"}: `how` against the language model.

    seconds   the median of `alone` problems asked one at a time, in turns, after one to warm up
    length    tokens of a chain with its answer, on average
    problems_per_second   all `problems` in one batch, the mean of two times
    """
    from lib.dot import model as plaid

    denoiser, words, trained, canvas = plaid.load(dot_dir, how.device)
    writer, tokenizer = models.load_model(str(writer_dir), dtype=how.dtype, device=how.device)
    writer.eval()
    questions = [p.question for p in problems]
    prompts = {p.question: prompt(p) for p in problems}
    longest = max(len(ids) for ids in tokenizer(list(prompts.values()))["input_ids"])
    most = 2 + max(len(ids) for ids in tokenizer([solution(p) for p in problems])["input_ids"])

    def denoised(asked: list[str]) -> list:
        most = canvas * ((how.max_thoughts or trained.max_thoughts or 12) if trained.multi_pass else 1)
        config = replace(how, batch_tokens=max(how.batch_tokens, len(asked) * (most + longest)))
        return generation.generate(denoiser, words, trained, canvas, asked, config)

    def written(asked: list[str]) -> list:
        budget = len(asked) * (most + longest)
        return writing.generate(writer, tokenizer, [prompts[q] for q in asked], most, batch_tokens=budget)

    def library(asked: list[str]) -> None:
        import torch

        tokenizer.padding_side = "left"
        batch = tokenizer([prompts[q] for q in asked], return_tensors="pt", padding=True).to(writer.device)
        ids = dict(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        with torch.inference_mode():
            writer.generate(**ids, max_new_tokens=most, do_sample=False, pad_token_id=tokenizer.pad_token_id)

    ways = (denoised, written, library)
    times: dict = {way: [] for way in ways}
    for question in [questions[0], *questions[:alone]]:
        for way in ways:
            times[way].append(seconds(way, [question]))
    single = {way: statistics.median(found[1:]) for way, found in times.items()}
    many: dict = {way: [] for way in ways}
    for _ in range(3):  # the first time warms up
        for way in ways:
            many[way].append(len(questions) / seconds(way, questions))
    together = {way: statistics.median(found[1:]) for way, found in many.items()}
    length = statistics.fmean(g.tokens for g in written(questions[:50]))
    found, calls = denoised(questions[:50])
    cost = {"length": statistics.fmean(g.tokens for g in found), "passes": statistics.fmean(calls)}
    name = "dot_multi_pass" if trained.multi_pass else "dot"
    row = {"method": f"{name} T={how.steps}", **cost, "seconds": single[denoised]}
    other = {"method": "cot", "length": length, "passes": length, "seconds": min(single[written], single[library])}
    row["problems_per_second"] = together[denoised]
    other["problems_per_second"] = max(together[written], together[library])
    return [row, other]


def seconds(way, asked: list[str]) -> float:
    """How long one call takes."""
    began = time.perf_counter()
    way(asked)
    return time.perf_counter() - began
