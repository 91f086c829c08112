"""What a model's own samples teach (DPO-ST, Wang et al., 2024): preference pairs, and new solutions to learn.

Two texts are near-duplicates where their sets of tokens overlap; of each group one stays. Knows samples
(`lib.sampling`) and texts, no model: whatever turns a text into its set of tokens will do.
"""

import random
from collections import Counter
from dataclasses import dataclass

from lib import rft
from lib.errors import InputError
from lib.prompts import Example, canonical_text

RULES = ("farthest", "nearest", "random")
Tokens = frozenset[int]


@dataclass(frozen=True)
class Config:
    """How samples become pairs and solutions to learn. The defaults are the published ones.

    pairs_per_problem  pairs of one problem at most
    rule               which of all (right, wrong) pairs of a problem: "farthest", those with the fewest tokens in
                       common (as published), "nearest", or "random"
    max_similarity     texts more alike than this (Jaccard similarity of their token sets) are near-duplicates
    labels             which right samples are learned: "jaccard", no near-duplicates, steps unchecked (as published);
                       "paths", every step holds and the equations are new (the rule of `lib.rft`)
    cap_percentile     no problem gets more solutions than this percentile of their number over the problems
    """

    pairs_per_problem: int = 3
    rule: str = "farthest"
    max_similarity: float = 0.7
    labels: str = "jaccard"
    cap_percentile: float = 90.0
    seed: int = 0

    def __post_init__(self):
        if self.rule not in RULES:
            raise InputError(f"Unknown pair rule {self.rule!r}; use {', '.join(RULES)}.")
        if self.labels not in ("jaccard", "paths"):
            raise InputError(f"Unknown labels {self.labels!r}; use jaccard or paths.")
        if self.pairs_per_problem < 1:
            raise InputError(f"pairs_per_problem must be at least 1, not {self.pairs_per_problem}.")
        if not (0 <= self.max_similarity <= 1 and 0 <= self.cap_percentile <= 100):
            raise InputError("max_similarity must lie between 0 and 1, cap_percentile between 0 and 100.")


@dataclass(frozen=True)
class Pair:
    """Two completions of one prompt, of which the first is to be preferred.

    problem     the id of the problem
    finished    did the rejected one come to its end? Only then is its end-of-sequence token part of it
    similarity  Jaccard similarity of the two token sets
    """

    problem: str
    prompt: str
    chosen: str
    rejected: str
    finished: bool
    similarity: float


@dataclass(frozen=True)
class Opinion:
    """One completion, right or wrong, for learning from samples that have no counterpart (KTO)."""

    problem: str
    prompt: str
    completion: str
    finished: bool
    right: bool


def token_sets(tokenizer, texts: list[str]) -> dict[str, Tokens]:
    """{text: the set of its token ids}, special tokens left out."""
    texts = list(dict.fromkeys(texts))
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    return {text: frozenset(row) for text, row in zip(texts, ids, strict=True)}


def jaccard(a: Tokens, b: Tokens) -> float:
    """The share of the tokens of either set that both have; 1 for two empty sets."""
    return len(a & b) / len(a | b) if a or b else 1.0


def distinct(texts: list[str], tokens: dict[str, Tokens], max_similarity: float) -> list[str]:
    """The texts in order, without those that are near-duplicates of one kept before."""
    kept: list[str] = []
    for text in dict.fromkeys(texts):
        if all(jaccard(tokens[text], tokens[other]) <= max_similarity for other in kept):
            kept.append(text)
    return kept


def written(sample: dict) -> str:
    """A sample's text as the model wrote it."""
    return sample.get("written", sample["text"])


def is_right(sample: dict) -> bool:
    """Does a sample come to its end with the right answer?"""
    return sample["correct"] and sample["finished"]


def choose_pairs(
    chosen: list[str], rejected: list[str], tokens: dict[str, Tokens], config: Config, rng: random.Random
) -> list[tuple[str, str, float]]:
    """Up to pairs_per_problem (chosen, rejected, similarity) of all that the two lists allow, by the rule."""
    pairs = [(a, b, jaccard(tokens[a], tokens[b])) for a in chosen for b in rejected]
    rng.shuffle(pairs)  # who comes first among the equally similar
    if config.rule != "random":
        pairs.sort(key=lambda pair: pair[2], reverse=config.rule == "nearest")
    return pairs[: config.pairs_per_problem]


def make_pairs(
    config: Config, asked: list[Example], gold: dict[str, str], pools: list[dict[str, list[dict]]], tokenizer
) -> list[Pair]:
    """Preference pairs from the samples of one or several models, problem by problem in the order of `asked`.

    gold   {problem id: a solution that is known}; it comes first among the right ones, and makes a problem count that
           no sample solved. A problem without a wrong sample, or without any right one, gives no pair
    pools  samples by problem id (`sampling.read_samples`). A right answer in a text that never ends is neither
    """
    texts = {written(s) for pool in pools for e in asked for s in pool.get(e.problem.id, [])}
    tokens = token_sets(tokenizer, [*gold.values(), *sorted(texts)])
    found = []
    for example in asked:
        samples = [s for pool in pools for s in pool.get(example.problem.id, [])]
        right = sorted({written(s) for s in samples if is_right(s)})
        wrong = {written(s): s["finished"] for s in sorted(samples, key=lambda s: s["finished"]) if not s["correct"]}
        known = [gold[example.problem.id]] if example.problem.id in gold else []
        rng = random.Random(f"{config.seed} {example.problem.id}")
        pairs = choose_pairs(
            distinct([*known, *right], tokens, config.max_similarity),
            distinct(sorted(wrong), tokens, config.max_similarity),
            tokens,
            config,
            rng,
        )
        found += [Pair(example.problem.id, example.prompt, a, b, wrong[b], alike) for a, b, alike in pairs]
    return found


def make_opinions(config: Config, asked: list[Example], pools: list[dict[str, list[dict]]], tokenizer) -> list[Opinion]:
    """Every right and every wrong sample of its own, near-duplicates of the same problem and kind left out."""
    texts = {written(s) for pool in pools for e in asked for s in pool.get(e.problem.id, [])}
    tokens = token_sets(tokenizer, sorted(texts))
    found = []
    for example in asked:
        samples = [s for pool in pools for s in pool.get(example.problem.id, [])]
        for right in (True, False):
            ended = {written(s): s["finished"] for s in samples if (is_right(s) if right else not s["correct"])}
            kept = distinct(sorted(ended), tokens, config.max_similarity)
            found += [Opinion(example.problem.id, example.prompt, text, ended[text], right) for text in kept]
    return found


def labels(
    config: Config, asked: list[Example], gold: dict[str, str], pools: list[dict[str, list[dict]]], tokenizer
) -> tuple[list[Example], dict[str, int]]:
    """(what to learn: gold solutions and right samples, {"correct", "distinct", "labels"}).

    Of each problem its gold solution comes first. No problem gets more than the cap, the cap_percentile of the number
    of solutions over the problems that have any; "distinct" counts the samples before the cap, "labels" those after.
    """
    import numpy

    texts = {written(s) for pool in pools for e in asked for s in pool.get(e.problem.id, [])}
    tokens = token_sets(tokenizer, [*gold.values(), *sorted(texts)])
    solved: list[tuple[Example, list[str]]] = []
    counts: Counter = Counter()
    for example in asked:
        samples = [s for pool in pools for s in pool.get(example.problem.id, [])]
        known = [gold[example.problem.id]] if example.problem.id in gold else []
        if config.labels == "paths":
            fits = [s for s in samples if rft.fate(example.problem, s) == "kept"]
            forms = {s["text"]: written(s) for s in fits}
            own = tuple(canonical_text(text, example.form) for text in known)
            paths = rft.distinct_paths(example.problem, [s["text"] for s in fits], own)
            kept = known + [forms[path] for path in paths]
        else:
            right = sorted({written(s) for s in samples if is_right(s)})
            kept = distinct([*known, *right], tokens, config.max_similarity)
        counts["correct"] += sum(map(is_right, samples))
        counts["distinct"] += len(kept) - len(known)
        solved += [(example, kept)] if kept else []
    cap = int(numpy.percentile([len(kept) for _, kept in solved], config.cap_percentile) + 1e-9) if solved else 0
    learned = []
    for example, kept in solved:
        learned += [Example(example.problem, example.prompt, text, example.form) for text in kept[:cap]]
        counts["labels"] += sum(text != gold.get(example.problem.id) for text in kept[:cap])
    return learned, {name: counts[name] for name in ("correct", "distinct", "labels")}


def held_out_share(items: list[Pair] | list[Opinion], share: float) -> tuple[list, list]:
    """(items to train on, items to watch), parted by problem: every so many problems' items are only watched."""
    ids = list(dict.fromkeys(item.problem for item in items))
    every = round(1 / share) if share else len(ids) + 1
    watched = set(ids[every - 1 :: every])
    return [x for x in items if x.problem not in watched], [x for x in items if x.problem in watched]
