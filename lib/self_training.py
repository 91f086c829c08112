"""Self-training, with and without preference optimisation (DPO-ST, Wang et al., 2024, Algorithms 1 and 2).

    sft-0    fine-tune the base model on the gold solutions
    round i  [dpo-i: pairs from all samples of sft-0 .. sft-(i-1), DPO on sft-(i-1)]
             sample from dpo-i (without DPO: from sft-(i-1)); gold and right samples so far are what is learned
             sft-i: fine-tune the base model again

The delivered model is always a fine-tuned one: DPO only improves who writes the data. With one round and no DPO this is
rejection-sampling fine-tuning. Every step goes through `memo`, so that a loop which was killed goes on where it was.
"""

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from lib import dpo, evaluation, models, preferences, prompts, sampling, sft
from lib.errors import InputError
from lib.preferences import Opinion, Pair
from lib.problems import Problem, canonical
from lib.prompts import Example

METHODS = ("self_training", "dpo_self_training")


@dataclass(frozen=True)
class Plan:
    """All settings of a loop.

    method        "self_training" or "dpo_self_training"
    iterations    rounds after sft-0
    tuning        of every SFT, from the base model
    preferring    of every DPO
    choosing      how samples become pairs and solutions to learn
    pairing       how sft-(i-1) is sampled for pairs
    labelling     how solutions to learn are drawn
    epochs        above 0: passes over what is learned, in place of tuning.steps; a tenth of them is warm-up
    watched_share  share of the problems whose pairs are only watched
    """

    method: str
    iterations: int
    tuning: sft.Config
    preferring: dpo.Config
    choosing: preferences.Config
    pairing: sampling.Config
    labelling: sampling.Config
    epochs: float = 0.0
    watched_share: float = 0.1

    def __post_init__(self):
        if self.method not in METHODS:
            raise InputError(f"Unknown method {self.method!r}; use {' or '.join(METHODS)}.")
        if self.iterations < 1:
            raise InputError(f"iterations must be at least 1, not {self.iterations}.")
        if not 0 <= self.watched_share <= 0.5:
            raise InputError(f"watched_share must lie between 0 and 0.5, not {self.watched_share}.")
        if self.tuning.style != "cot":
            raise InputError("A loop learns chains of thought; leave the style of its fine-tuning at cot.")
        if self.epochs < 0:
            raise InputError(f"epochs must be at least 0, not {self.epochs}.")
        if self.tuning.lora_rank and self.preferring.lora_rank:
            raise InputError("With lora_rank, DPO goes on with SFT's adapter; set dpo_lora_rank to 0.")

    def tuning_on(self, learned: list) -> sft.Config:
        """The settings of fine-tuning on these solutions."""
        if not self.epochs:
            return self.tuning
        steps = max(1, round(self.epochs * len(learned) / self.tuning.batch_size))
        return replace(self.tuning, steps=steps, warmup_steps=steps // 10)


@dataclass(frozen=True)
class Data:
    """What a loop may see, as Problems, or as Examples in another surface form.

    gold   problems with their solutions; asked  problems of which the answer alone is used (gold ones among them)
    valid  to watch the loss on; held_out  problems that must not be learned from: those of validation and test
    """

    gold: list[Problem] | list[Example]
    asked: list[Problem] | list[Example]
    valid: list[Problem] | list[Example]
    held_out: list[Problem]

    def __post_init__(self):
        gold, asked = prompts.examples(self.gold), prompts.examples(self.asked)
        check_apart([e.problem for e in gold + asked], self.held_out)
        if missing := {e.problem.id for e in gold} - {e.problem.id for e in asked}:
            raise InputError(f"{len(missing)} problems with solutions are not among those to be asked; ask them too.")


@dataclass(frozen=True)
class Round:
    """What a round left: the fine-tuned model, and on the way to it the tuned sampler, pairs and training set.

    start    the model that the round began from (None for sft-0)
    tuned    where DPO left its work (None without DPO), and the pairs that it learned from and watched
    compared, drawn  the samples so far that pairs, and solutions to learn, were made of
    learned  what the model was fine-tuned on
    counts   questions; of all rounds so far: samples (drawn to be learned), correct, distinct, pairs, labels
    """

    method: str
    iteration: int
    model: Path
    start: Path | None = None
    tuned: Path | None = None
    compared: tuple[Path, ...] = ()
    drawn: tuple[Path, ...] = ()
    pairs: list[Pair] | list[Opinion] = field(default_factory=list)
    watched: list[Pair] | list[Opinion] = field(default_factory=list)
    learned: list[Example] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)


def check_model(model: str, loss: str, backend: str) -> None:
    """Raise InputError where a kind of model can't be trained or sampled so; better now than after hours."""
    if backend == "vllm" and importlib.util.find_spec("vllm") is None:
        raise InputError('backend "vllm" needs vLLM, which is not installed; use hf, or pip install -e ".[vllm]".')
    if (loss == "kto" or backend == "vllm") and models.is_encoder_decoder(model):
        what = "Loss kto" if loss == "kto" else "vLLM"
        raise InputError(f"{what} is for causal models, and {model} is an encoder-decoder model; choose another.")


def check_sizes(
    n_gold: int,
    n_answers: int,
    n_pair_samples: int,
    n_valid: int,
    n_test: int,
    pass_samples: int,
    pass_ks: list[int],
) -> None:
    """Raise InputError, with the parameter's name, where a loop of these sizes can't be carried out or measured."""
    if n_pair_samples < 1:
        raise InputError(f"n_pair_samples must be at least 1, not {n_pair_samples}.")
    if n_gold < 1 or n_answers < 0:
        raise InputError(f"n_gold must be at least 1 and n_answers at least 0, not {n_gold} and {n_answers}.")
    if n_valid < 1 or n_test < 1:
        raise InputError(f"n_valid and n_test must be at least 1, not {n_valid} and {n_test}.")
    if not all(1 <= k <= pass_samples for k in pass_ks):
        raise InputError(f"pass_ks must lie between 1 and pass_samples = {pass_samples}, not {pass_ks}.")


def check_apart(problems: list[Problem], held_out: list[Problem]) -> None:
    """Raise InputError where a problem is one of those held out, by id, by question or but for commuted operands."""
    ids, questions = {p.id for p in held_out}, {" ".join(p.question.lower().split()) for p in held_out}
    forms = {canonical(p) for p in held_out}
    for p in problems:
        if p.id in ids or " ".join(p.question.lower().split()) in questions or canonical(p) in forms:
            raise InputError(
                f"Problem {p.id} is to be learned from, but validation or test holds it too ({p.question[:60]!r}); "
                "split the problems again with 01_data_inspection."
            )


def rounds(memo: Callable[..., Path], plan: Plan, data: Data) -> Iterator[Round]:
    """One Round after another, sft-0 first.

    memo  `memo(function, config, *inputs)` is the directory in which function(config, *inputs, directory) left its
          work (`Stage.memo`)
    """
    gold, asked = prompts.examples(data.gold), prompts.examples(data.asked)
    first = memo(sft.train, plan.tuning_on(gold), data.gold, data.valid) / "model"
    yield Round(plan.method, 0, first, learned=gold, counts={"questions": len(asked)})
    tokenizer = models.load_tokenizer(str(first))  # one for all rounds: what is alike is the same in all
    solutions = {e.problem.id: e.completion for e in gold}
    by_id = {e.problem.id: e.problem for e in asked}
    model, compared, drawn = first, [], []
    for iteration in range(1, plan.iterations + 1):
        sampler, tuned, made, watched = model, None, [], []
        if plan.method == "dpo_self_training":
            compared.append(memo(sampling.draw, reseeded(plan.pairing, iteration), data.asked, model))
            made, watched = pairs(plan, asked, solutions, compared, tokenizer)
            check_apart([by_id[item.problem] for item in made + watched], data.held_out)
            tuned = memo(dpo.train, plan.preferring, made, watched, model)
            sampler = tuned / "model"
        drawn.append(memo(sampling.draw, reseeded(plan.labelling, iteration), data.asked, sampler))
        pools = [sampling.read_samples(folder) for folder in drawn]
        learned, counts = preferences.labels(plan.choosing, asked, solutions, pools, tokenizer)
        check_apart([e.problem for e in learned], data.held_out)
        start, model = model, memo(sft.train, plan.tuning_on(learned), learned, data.valid) / "model"
        samples = sum(len(found) for pool in pools for found in pool.values())
        counts = {"questions": len(asked), "samples": samples, **counts, "pairs": len(made)}
        places = {"compared": tuple(compared), "drawn": tuple(drawn)}
        yield Round(
            plan.method,
            iteration,
            model,
            start,
            tuned,
            **places,
            pairs=made,
            watched=watched,
            learned=learned,
            counts=counts,
        )


def reseeded(drawing: sampling.Config, iteration: int) -> sampling.Config:
    """Each round draws with random numbers of its own, so that two models that are much alike don't write the same."""
    return replace(drawing, seed=drawing.seed + 1000 * (iteration - 1))


def pairs(plan: Plan, asked: list[Example], solutions: dict[str, str], compared: list[Path], tokenizer):
    """(pairs to learn, pairs of other problems to watch); with loss "kto" opinions in place of pairs."""
    pools = [sampling.read_samples(folder) for folder in compared]
    if plan.preferring.loss == "kto":
        made = preferences.make_opinions(plan.choosing, asked, pools, tokenizer)
    else:
        made = preferences.make_pairs(plan.choosing, asked, solutions, pools, tokenizer)
    return preferences.held_out_share(made, plan.watched_share)


def ledger(
    memo: Callable[..., Path],
    found: Round,
    asking: evaluation.Config,
    drawing: sampling.Config,
    ks: list[int],
    problems: list[Problem] | list[Example],
) -> list[dict]:
    """One row a model of a round: the sampler that DPO made, if any, and the fine-tuned model, measured on `problems`.

    method, model ("dpo-1", "sft-1"), round (a sampler's is half a round before), the counts (of the fine-tuned model),
    accuracy (greedy), pass@k for each of ks from `drawing.n_samples` samples
    """
    models_of = [(f"sft-{found.iteration}", found.iteration, found.model, found.counts)]
    if found.tuned:
        models_of.insert(0, (f"dpo-{found.iteration}", found.iteration - 0.5, found.tuned / "model", {}))
    rows = []
    for name, place, folder, counts in models_of:
        asked = memo(evaluation.evaluate, asking, problems, folder)
        right = [p["correct"] for p in evaluation.read_rows(asked / "predictions.jsonl")]
        passed = evaluation.mean_pass_at_k(memo(sampling.draw, drawing, problems, folder), ks)
        shares = {"accuracy": sum(right) / len(right), **{f"pass@{k}": share for k, share in passed.items()}}
        rows.append({"method": found.method, "model": name, "round": place, **counts, **shares})
    return rows
