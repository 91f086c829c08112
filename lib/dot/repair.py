"""Are mistakes mended? A right solution gets some wrong tokens, is noised up to a time t, and denoised from there.

A model that writes one token after another can never take one back. Here every position stays open until the end: the
wrong tokens contradict their neighbours, and the noise leaves room to change them.
"""

import random
from dataclasses import dataclass, replace
from pathlib import Path

from lib import answers
from lib.dot import generation, sequences
from lib.dot.config import Config as Training
from lib.errors import InputError
from lib.problems import Problem, write_jsonl

AT_ONCE = 128  # problems in a batch


@dataclass(frozen=True)
class Config:
    """How to injure and mend.

    errors   tokens replaced by another token that solutions have (never the end or its filler)
    start    the time t in [0, 1] to noise the injured solution up to; for masked diffusion, the share masked
    steps    denoising steps from there
    sampler, temperature, seed, device   as in lib.dot.generation.Config
    """

    errors: int = 1
    start: float = 0.5
    steps: int = 8
    sampler: str = "ddim"
    temperature: float = 1.0
    seed: int = 0
    device: str = "auto"

    def __post_init__(self):
        if not 0 <= self.start <= 1:
            raise InputError(f"start is a time from 0 to 1, not {self.start}.")
        if self.errors < 0 or self.steps < 1:
            raise InputError(f"errors must be at least 0 and steps at least 1, not {self.errors} and {self.steps}.")
        generation.Config(steps=self.steps, sampler=self.sampler, temperature=self.temperature)  # refuses what it does


def injure(ids: list[int], errors: int, choices: list[int], rng: random.Random) -> list[int]:
    """`ids` with `errors` of them replaced, each by another of `choices`; places and tokens are drawn by `rng`."""
    places = rng.sample(range(len(ids)), min(errors, len(ids)))
    return [rng.choice([c for c in choices if c != token]) if i in places else token for i, token in enumerate(ids)]


def mend(config: Config, problems: list[Problem], model_dir: str | Path, out_dir: str | Path) -> None:
    """Injure and mend the solution of each problem. Writes repairs.jsonl, one line a problem:

    problem; injured, mended: the texts; before: is the injured text's answer right and do its steps hold; after: the
    same of the mended one; kept: the share of tokens that were right and stayed so; hit: the share of wrong tokens that
    became right
    """
    import torch

    from lib.dot import model as plaid

    if not problems:
        raise InputError("There is no problem to mend; give some with solutions.")
    model, tokenizer, trained, canvas = plaid.load(model_dir, config.device)
    if trained.multi_pass:
        raise InputError("Whole chains are injured and mended; this model was trained on one thought a pass.")
    encoded = sequences.encode(tokenizer, problems)
    canvas = max(canvas, *(len(e["target"]) for e in encoded))
    choices = sorted({token for e in encoded for token in e["target"]} - set(tokenizer.all_special_ids))
    injured = []
    for problem, e in zip(problems, encoded, strict=True):
        rng = random.Random(f"{config.seed} {problem.id}")
        injured.append([*injure(e["target"][:-1], config.errors, choices, rng), tokenizer.eos_token_id])
    gold = sequences.pad([e["target"] for e in encoded], tokenizer.pad_token_id, False, canvas)
    hurt = sequences.pad(injured, tokenizer.pad_token_id, False, canvas)
    source = sequences.pad([e["source"] for e in encoded], tokenizer.pad_token_id, True)
    lengths = torch.tensor([len(e["source"]) for e in encoded])
    mended = []
    for places in torch.arange(len(problems)).split(AT_ONCE):
        questions = [problems[i].question for i in places.tolist()]
        noise = generation.Noise(questions, config.seed, [0] * len(places), (canvas, model.embed_dim), model.device)
        mask = sequences.seen(lengths[places], source.shape[1], canvas)
        batch = [part if part is None else part.to(model.device) for part in (source[places], mask, hurt[places])]
        mended.append(from_time(config, model, trained, *batch, noise).cpu())
    ids = torch.cat(mended)
    rows = []
    for i, (problem, e) in enumerate(zip(problems, encoded, strict=True)):
        n = len(e["target"])
        right, wrong = (hurt[i, :n] == gold[i, :n]), (hurt[i, :n] != gold[i, :n])
        same = ids[i, :n] == gold[i, :n]
        before = generation.read(tokenizer, hurt[i].tolist(), 0.0).text
        after = generation.read(tokenizer, ids[i].tolist(), 0.0).text
        rows.append(
            {
                "problem": problem.id,
                "injured": before,
                "mended": after,
                "before": answers.is_verified(problem, before),
                "after": answers.is_verified(problem, after),
                "kept": (same & right).sum().item() / max(1, right.sum().item()),
                "hit": (same & wrong).sum().item() / wrong.sum().item() if wrong.any() else None,
            }
        )
    write_jsonl(Path(out_dir) / "repairs.jsonl", rows)


def from_time(config: Config, model, trained: Training, source, mask, ids, noise: generation.Noise):
    """Tokens `ids` (batch, n), noised to config.start and denoised from there in config.steps even steps of time."""
    import torch

    from lib.dot import samplers, schedule

    if config.start == 0:
        return ids
    if trained.loss == "masked":
        begun = torch.where(noise.uniform() < config.start, -1, ids)
        with torch.inference_mode():
            return samplers.unmask(model, source, mask, ids.shape[1], config.steps, None, start=begun)[0]
    grid = [config.start * (1 - i / config.steps) for i in range(config.steps)] + [0.0]
    with torch.inference_mode():
        gammas, _ = model.gamma(torch.tensor(grid, dtype=torch.float64, device=model.device))
        plan = samplers.table(gammas.tolist(), config.sampler, config.temperature)
        plan = [replace(step, t=t) for step, t in zip(plan, grid, strict=False)]
        alpha, sigma = (part.float() for part in schedule.alpha_sigma(gammas[0]))
        z = alpha * model.embedding_matrix()[ids] + sigma * noise(-1, torch.arange(len(ids)))
        return samplers.denoise(model, source, mask, z, plan, noise)[0]


def summary(rows: list[dict], config: Config) -> dict:
    """One point of the picture: shares of problems whose whole chain holds and is right, before and after."""
    hits = [row["hit"] for row in rows if row["hit"] is not None]
    return {
        "errors": config.errors,
        "start": config.start,
        "n": len(rows),
        "before": sum(row["before"] for row in rows) / len(rows),
        "repaired": sum(row["after"] for row in rows) / len(rows),
        "tokens_kept": sum(row["kept"] for row in rows) / len(rows),
        "hit": sum(hits) / len(hits) if hits else None,
    }
