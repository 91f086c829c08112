"""The curriculum as data: which stages there are, and what of a problem each of them writes, thinks and leaves out.

Plain numbers; knows no tokens and no model. Stages are numbered as in the published code: stage s leaves out the first
s steps and puts c_thought * s thoughts in their place; the stage after max_latent_stage leaves out all of them.
"""

import random
from dataclasses import dataclass

from lib.coconut.config import Config

ALL = 10**6  # more steps than any problem has


@dataclass(frozen=True)
class Stage:
    """One stage of a curriculum.

    number    as published; a stage that adds a step's thoughts one by one is several with the same number
    skip      steps left out, from the first on (ALL: every one)
    thoughts  latent positions in their place
    """

    number: int
    skip: int
    thoughts: int


def stages(config: Config, longest: int) -> list[Stage]:
    """The stages a training goes through, in order; `longest` is the number of steps of the longest problem.

    The last of the published stages (all steps left out) is dropped where it equals the one before it for all problems.
    """
    c, top = config.c_thought, config.max_latent_stage
    per_step = c if config.has_latents else 0
    final = Stage(top + 1, ALL, per_step * top)
    if not config.has_curriculum:
        return [Stage(0, 0, 0)] if config.method == "cot" else [final]
    found = [Stage(0, 0, 0)]
    for s in range(1, top + 1):
        first = 1 if config.one_at_a_time and per_step else c
        found += [Stage(s, s, per_step * (s - 1) + min(i, per_step)) for i in range(first, c + 1)]
    return found if (config.pad_latent_to_max or not per_step) and longest <= top else [*found, final]


def plan(config: Config, stage: Stage, n_steps: int) -> tuple[int, int]:
    """(steps left out, thoughts) of a problem with `n_steps` steps in this stage.

    As published: a problem with fewer steps than the stage leaves out gets the stage's thoughts all the same; only in
    the last stage, and without pad_latent_to_max, it gets as many as its own steps ask for.
    """
    thoughts = stage.thoughts
    if stage.skip == ALL and not config.pad_latent_to_max and config.has_latents:
        thoughts = config.c_thought * min(n_steps, config.max_latent_stage)
    return min(stage.skip, n_steps), thoughts


def thoughts_to_answer(config: Config, stage: Stage, n_steps: int) -> int:
    """Thoughts that a problem of `n_steps` steps gets when it is asked, after training up to `stage`.

    As published, without pad_latent_to_max this is never more than the problem's own steps ask for, although training
    in a stage before the last gave more.
    """
    if not config.has_latents or config.pad_latent_to_max:
        return stage.thoughts
    return min(stage.thoughts, config.c_thought * min(n_steps, config.max_latent_stage))


def draw(config: Config, known: list[Stage], at: int, n_steps: int, rng: random.Random) -> Stage:
    """The stage that one row is trained in while the curriculum is at known[at]: that, or with chance `mix` another.

    mix_from "earlier": one of the stages before; "all" (as published): steps left out drawn from 0 to all of its own.
    """
    if not (config.has_curriculum and config.mix and rng.random() < config.mix):
        return known[at]
    if config.mix_from == "earlier":
        return known[rng.randrange(at)] if at else known[0]
    skip, per_step = rng.randint(0, n_steps), config.c_thought if config.has_latents else 0
    if skip > config.max_latent_stage:
        return Stage(config.max_latent_stage + 1, ALL, per_step * config.max_latent_stage)
    return Stage(skip, skip, per_step * skip)


def stage_of_epoch(config: Config, known: list[Stage], epoch: int) -> int:
    """The place in `known` of the stage that an epoch belongs to, the published way: epoch // epochs_per_stage."""
    number = epoch // config.epochs_per_stage if config.epochs_per_stage else known[-1].number
    places = [i for i, stage in enumerate(known) if stage.number <= number]
    return places[-1] if places else 0


def deadline(config: Config, known: list[Stage], at: int) -> int:
    """The step by which the stage known[at] ends at the latest: every stage has an equal share of all steps."""
    return config.steps * (at + 1) // len(known)


def table(config: Config, longest: int) -> list[dict]:
    """The schedule as rows to print before training: what each stage leaves out, thinks, mixes in, and when it ends."""
    known = stages(config, longest)
    rows = []
    for place, stage in enumerate(known):
        last = place == len(known) - 1
        if config.epochs_per_stage and config.has_curriculum:
            after = [
                e for e in range(config.first_epoch, config.num_epochs) if stage_of_epoch(config, known, e) == place
            ]
            ends = f"epochs {after[0]} to {after[-1]}" if after else "no epoch"
        elif last:
            ends = "at the end of training"
        else:
            early = f"once {config.switch_at:.0%} are right, " if config.switch_at else ""
            ends = f"{early}by step {deadline(config, known, place)}"
        rows.append(
            {
                "stage": stage.number,
                "steps left out": "all" if stage.skip == ALL else stage.skip,
                "thoughts": stage.thoughts,
                "rows from other stages": f"{config.mix:.0%}"
                if config.has_curriculum and (place or config.mix_from == "all")
                else "none",
                "ends": ends,
            }
        )
    return rows
