"""The hybrid loop: a language model writes problems, a verifier keeps the good ones, a diffusion model learns of them.

    round r   writer    fine-tune the language model on gold + pool: asked for a problem, it writes one with its chain
              written   it writes; lib.synthetic judges, repairs and sifts what it wrote; the pool grows
              reasoner  train the diffusion model on gold + pool
              agreed    it solves the pool: how often it agrees with a record is part of the score that keeps that one
                        in the next round (it was trained on these: what it contradicts all the same fits badly)

The fast writer is System 1, the diffusion model, which may think again, System 2 (the course project on Diffusion of
Thoughts). Every step goes through `memo`, so that a loop which was killed goes on where it was.
"""

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from lib import answers, evaluation, sft, synthetic
from lib.dot import generation, training
from lib.dot.config import Config as Reasoning
from lib.errors import InputError
from lib.problems import Problem, write_jsonl
from lib.self_training import check_apart
from lib.tasks import solve


@dataclass(frozen=True)
class Plan:
    """All settings of a loop.

    rounds     at most
    tuning     of the writer, from its base model, every round
    drafting   how it writes and what is kept: num_samples_to_generate new problems a round, quality_threshold
    reasoning  of the diffusion model, from scratch, every round
    asking     how it answers; with several samples, agreement is the share of them
    weight     of agreement in a record's score: score * (1 - weight + weight * agreement), for the next round; 0: none
    min_gain   stop when accuracy on validation problems rose by less than this in a round; below -1: never
    """

    rounds: int
    tuning: sft.Config
    drafting: synthetic.Config
    reasoning: Reasoning
    asking: generation.Config
    weight: float = 0.5
    min_gain: float = 0.0

    def __post_init__(self):
        if self.rounds < 1:
            raise InputError(f"rounds must be at least 1, not {self.rounds}.")
        if not 0 <= self.weight <= 1:
            raise InputError(f"weight must lie between 0 and 1, not {self.weight}.")
        if self.tuning.style != "cot":
            raise InputError("A writer learns chains of thought; leave the style of its fine-tuning at cot.")


@dataclass(frozen=True)
class Data:
    """Gold problems with solutions, validation problems to stop by, and others that must stay unseen (the test's)."""

    gold: list[Problem]
    valid: list[Problem]
    held_out: list[Problem]

    def __post_init__(self):
        if not self.gold or not self.valid:
            raise InputError("A loop needs gold problems to learn from and validation problems to stop by.")
        check_apart(self.gold, self.unseen)

    @property
    def unseen(self) -> list[Problem]:
        """What nothing may be learned from."""
        return [*self.valid, *self.held_out]


@dataclass(frozen=True)
class Round:
    """What a round left.

    model    the diffusion model's folder; written  what lib.synthetic.write left (None in round 0, on gold alone)
    pool     records that it learned from beside gold: "score" is the verifier's, "agreement" (of those that were there
             a round before) the last reasoner's
    counts   of the drafts (synthetic.LEDGER), pool (records learned from), dropped (for want of agreement), accuracy
             (on validation problems), wrong (of a control's pool: what judging would have repaired or left out)
    believed true for a control that learned drafts as they were written
    """

    number: int
    model: Path
    written: Path | None = None
    pool: list[dict] = field(default_factory=list)
    counts: dict = field(default_factory=dict)
    believed: bool = False


def gold_subset(problems: list[Problem], sample_num: int, seed: int | None = None) -> list[Problem]:
    """SAMPLE_NUM of the problems, the smaller subsets inside the larger ones; 0: all.

    seed  None: the first ones, which are gold in 04 and 05, too; else drawn by it
    """
    if sample_num < 0 or sample_num > len(problems):
        raise InputError(f"SAMPLE_NUM must lie between 0 (all) and {len(problems)}, not {sample_num}.")
    if not sample_num or seed is None:
        return problems[: sample_num or None]
    return random.Random(seed).sample(problems, len(problems))[:sample_num]


def gold_of(train: dict[str, list[Problem]], task: str, sample_num: int, seed: int) -> list[Problem]:
    """`gold_subset` of one of several tasks; raises InputError where there is none of that name."""
    if task not in train:
        raise InputError(f"A loop was asked for on {task!r}, which is none of the tasks {', '.join(train)}.")
    return gold_subset(train[task], sample_num, seed)


def lessons(
    train: list[Problem], unseen: list[Problem], sample_num: int, generate: int, paths: list, judging: synthetic.Config
) -> tuple[list[Problem], dict]:
    """(what a reasoner learns from, ledger of the files), as the course's trainer has it.

    SAMPLE_NUM gold problems (`gold_subset`); with GENERATE also all problems of the generated files at `paths` that
    are verified here, new and not among `unseen`. Without it the files are not read, and a line says so.
    """
    if generate not in (0, 1):
        raise InputError(f"GENERATE is 0 or 1, not {generate}.")
    gold = gold_subset(train, sample_num)
    if not generate:
        if paths:
            print(f"GENERATE is 0: {', '.join(map(str, paths))} is not read")
        return gold, {}
    if not paths:
        raise InputError(
            f"GENERATE is 1, but no file was generated for {train[0].source}; give generate_data_path, or run 04 on it."
        )
    check_apart(gold, unseen)
    records, ledger = synthetic.from_files(judging, paths, gold, unseen)
    return [*gold, *learnable(records, gold[0])], ledger


def learnable(records: list[dict], like: Problem) -> list[Problem]:
    """The problems that records state, of the source of `like`; raises InputError where one states none."""
    found = []
    for r in records:
        problem = synthetic.parse(f"{r['src']}\n{r['tgt']}", like)
        if problem is None:
            raise InputError(f"A record to learn from holds no problem: {r['src'][:60]!r}; judge its file with 04.")
        solved = solve(problem)  # knows the form that decides whether two problems are the same
        found.append(replace(problem, meta=solved.meta) if solved else problem)
    return found


def agree(config: generation.Config, problems: list[Problem], model_dir: str | Path, out_dir: str | Path) -> None:
    """Let the diffusion model solve problems that were written. Writes agreement.jsonl: {"problem", "agreement"}.

    agreement  the share of its config.samples answers that are the problem's
    """
    from lib.dot import model as plaid

    parts, k = plaid.load(model_dir, config.device), config.samples
    asked = [p.question for p in problems for _ in range(k)]
    found = generation.generate(*parts, asked, config, list(range(k)) * len(problems))[0] if asked else []
    rows = []
    for i, problem in enumerate(problems):
        right = [g.finished and answers.is_correct(problem, g.text) for g in found[i * k : (i + 1) * k]]
        rows.append({"problem": problem.id, "agreement": sum(right) / k})
    write_jsonl(Path(out_dir) / "agreement.jsonl", rows)


def rescored(record: dict, agreement: float, weight: float) -> float:
    """A record's score once a reasoner has tried to solve it."""
    return record["score"] * (1 - weight + weight * agreement)


def rounds(memo: Callable[..., Path], plan: Plan, data: Data) -> Iterator[Round]:
    """One Round after another: round 0 knows gold alone; the last is plan.rounds, or the first that gained too little.

    memo  `memo(function, config, *inputs)` is the directory in which function(config, *inputs, directory) left its
          work (`Stage.memo`)
    """
    like, pool, ever = data.gold[0], [], []
    model, accuracy = reasoner(memo, plan, data, pool)
    yield Round(0, model, counts={"pool": 0, "accuracy": accuracy})
    for number in range(1, plan.rounds + 1):
        pool, dropped = kept(memo, plan, pool, like, model)
        lessons = synthetic.writing([*data.gold, *learnable(pool, like)])
        known = [*data.gold, *learnable(ever, like)]  # what was dropped does not come back as new
        writer = memo(sft.train, plan.tuning, lessons, synthetic.writing(data.valid)) / "model"
        drafting = replace(plan.drafting, round=number, seed=plan.drafting.seed + 1000 * (number - 1))
        written = memo(synthetic.write, drafting, known, data.unseen, writer)
        new = json.loads((written / "generated.json").read_text())
        drafted = json.loads((written / "ledger.json").read_text())
        pool, ever = [*pool, *new], [*ever, *new]
        check_apart(learnable(pool, like), data.unseen)
        before = accuracy
        model, accuracy = reasoner(memo, plan, data, learnable(pool, like))
        counts = {**drafted, "pool": len(pool), "dropped": dropped, "accuracy": accuracy}
        yield Round(number, model, written, pool, counts)
        if accuracy - before < plan.min_gain:
            return


def run(memo: Callable[..., Path], plan: Plan, data: Data, control: bool = False) -> list[Round]:
    """All of `rounds`; with `control` also what round 1 would have been without verification."""
    found = list(rounds(memo, plan, data))
    compared = control and len(found) > 1 and found[1].pool
    return [*found, believed(memo, plan, data, found[1])] if compared else found


def believed(memo: Callable[..., Path], plan: Plan, data: Data, first: Round) -> Round:
    """The control of round 1: the same drafts, each taken as it was written, as many of them as were kept there.

    Copies and what is held back are left out here too: what it shows is what judging the solutions is worth.
    """
    assert first.pool, "where nothing was kept there is nothing to compare with"
    drafts = [row["text"] for row in evaluation.read_rows(first.written / "drafts.jsonl")]
    config = replace(plan.drafting, round=1, verify=False, num_samples_to_generate=len(first.pool))
    pool, counts, _ = synthetic.sift(config, drafts, data.gold, data.unseen)
    learned = learnable(pool, data.gold[0])
    check_apart(learned, data.unseen)
    model, accuracy = reasoner(memo, plan, data, learned)
    judged = [synthetic.judge(f"{r['src']}\n{r['tgt']}", data.gold[0]) for r in pool]
    wrong = sum(j.repaired or j.score < config.quality_threshold for j in judged)
    counts = {**counts, "pool": len(pool), "wrong": wrong, "dropped": 0, "accuracy": accuracy}
    return Round(1, model, first.written, pool, counts, believed=True)


def reasoner(memo: Callable[..., Path], plan: Plan, data: Data, learned: list[Problem]) -> tuple[Path, float]:
    """(the diffusion model trained on gold and these, its accuracy on the validation problems)."""
    model = memo(training.train, plan.reasoning, [*data.gold, *learned], data.valid) / "model"
    rows = evaluation.read_rows(memo(generation.evaluate, plan.asking, data.valid, model) / "predictions.jsonl")
    return model, sum(row["correct"] for row in rows) / len(rows)


def kept(memo: Callable[..., Path], plan: Plan, pool: list[dict], like: Problem, model: Path) -> tuple[list[dict], int]:
    """(the records that still score enough once `model` has tried to solve them, how many no longer do)."""
    if not pool or not plan.weight:
        return pool, 0
    problems = learnable(pool, like)
    rows = evaluation.read_rows(memo(agree, plan.asking, problems, model) / "agreement.jsonl")
    scores = [rescored(record, row["agreement"], plan.weight) for record, row in zip(pool, rows, strict=True)]
    still = [
        {**record, "agreement": row["agreement"]}
        for record, row, score in zip(pool, rows, scores, strict=True)
        if score >= plan.drafting.quality_threshold
    ]
    return still, len(pool) - len(still)
