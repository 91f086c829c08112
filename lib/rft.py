"""Rejection-sampling fine-tuning (Yuan et al., 2023): of many sampled solutions, learn from the right and new ones.

Samples come from `lib.sampling`, of one model or several; here they are filtered. The fine-tuning that follows starts
from the base model, not from the one that sampled: it is `lib.sft` with more data.
"""

from collections import Counter
from dataclasses import replace

from lib import answers
from lib.errors import InputError
from lib.problems import Problem
from lib.prompts import solution, tagged

# Why a sample is not learned from, in the order in which it is asked; "kept" is what remains.
FATES = ("unfinished", "wrong answer", "broken step", "text after the answer", "path known", "kept")


def check_plan(
    ks: list[int],
    n_samples: int,
    n_gold: int,
    n_answers: int,
    n_test: int,
    pooled: int,
    train: bool,
    sampler: str,
    chat: bool,
    form: str,
    lora_rank: int,
    verifier_steps: int,
    writer_steps: int,
    writer: str = "",
    generated_json_path: str = "",
) -> None:
    """Raise InputError, with the parameter's name, where a plan of sampling and training can't be carried out."""
    wrong = {
        "with train: false name a sampler": not train and not sampler,
        f"ks must lie between 1 and n_samples = {n_samples}, not {ks}": not all(1 <= k <= n_samples for k in ks),
        "n_gold must be at least 1 to train a sampler on": train and not sampler and n_gold < 1,
        "n_gold and n_answers must be at least 0": min(n_gold, n_answers) < 0,
        "n_test and pooled must be at least 1": min(n_test, pooled) < 1,
        "verifier_steps and writer_steps must be at least 0": min(verifier_steps, writer_steps) < 0,
        "chat: true needs a sampler with a chat template": chat and not sampler,
        'form "t5" needs a sampler trained in that form, train: false, and no chat': form == "t5" and (train or chat),
        'verifier and writer know the form "canonical" alone: set verifier_steps and writer_steps to 0': bool(
            train and form != "canonical" and (verifier_steps or writer_steps)
        ),
        "a writer that is given learns nothing: leave writer or generated_json_path empty": bool(
            writer and generated_json_path
        ),
        "a verifier starts from a whole model: with lora_rank set verifier_steps to 0": bool(
            train and lora_rank and verifier_steps and not sampler
        ),
    }
    for sentence, found in wrong.items():
        if found:
            raise InputError(f"These settings do not go together: {sentence}.")


def equations(problem: Problem, text: str) -> tuple[str, ...]:
    """What makes a path: its equations in order, blanks removed; for steps of one right form, its lines.

    3+4 and 4+3 are two paths, and so are two orders of the same equations: the authors want it so.
    """
    if problem.meta.get("exact_steps") or problem.meta.get("proof"):
        return tuple(" ".join(line.split()) for line in answers.chain(text).split("\n") if line.strip())
    return tuple(f"{a}={b}".replace(" ", "") for a, b in answers.annotations(answers.chain(text)))


def fate(problem: Problem, sample: dict, within: float = 1.0) -> str:
    """Why a sample can't be learned from, one of FATES; "kept" where it can, if its path is new.

    within  the relative error of an answer that may be learned, where the problem's own tolerance is wider: what is
            near enough to count is not always near enough to teach. A tag that is not closed is unfinished.
    """
    text, tolerance = sample["text"], problem.meta.get("relative_tolerance", 0.0)
    in_tags = answers.MARKER not in text and "<answer>" in text
    if not sample["finished"] or (in_tags and "</answer>" not in text):
        return "unfinished"
    if not sample["correct"] or not answers.same(problem.answer, sample["answer"], min(tolerance, within)):
        return "wrong answer"
    if not sample["verified"]:
        return "broken step"
    marker = answers.MARKER if answers.MARKER in text else "<answer>" if in_tags else None
    tail = text.rpartition(marker)[2] if marker else text[len(answers.chain(text)) :]
    stated = text.count(marker) if marker else len(answers.STATED.findall(text))
    if "\n" in tail.strip() or stated > 1 or (in_tags and not text.rstrip().endswith("</answer>")):
        return "text after the answer"
    return "kept"


def distinct_paths(problem: Problem, texts: list[str], known: tuple[str, ...] = ()) -> list[str]:
    """One text for each path, in the order in which the paths were found; `known` texts stay and are not returned.

    Where two texts write the same equations, the one farther from the other kept texts stays (the sum of edit
    distances), since it teaches other words for them.
    """
    from rapidfuzz.distance import Levenshtein

    kept = {equations(problem, text): text for text in known}
    gold = set(kept)
    for text in texts:
        key = equations(problem, text)
        if key in gold:
            continue
        if key in kept and kept[key] != text:
            others = [other for path, other in kept.items() if path != key]
            new, old = (sum(Levenshtein.distance(t, other) for other in others) for t in (text, kept[key]))
            text = text if new > old else kept[key]
        kept[key] = text
    return [text for key, text in kept.items() if key not in gold]


def as_problem(problem: Problem, text: str, number: int) -> Problem:
    """A solution as a training problem: question and answer are the original's, the steps are the text's.

    Where an answer is right within a tolerance it is the text's, too, so that it follows from the steps.
    """
    steps = [line.strip() for line in answers.chain(text).split("\n") if line.strip()]
    own = answers.extract(text) if problem.meta.get("relative_tolerance") else problem.answer
    return replace(problem, id=f"{problem.id}-path{number}", steps=tuple(steps), answer=own)


def as_records(found: list[Problem], source: list[Problem]) -> list[list]:
    """[question, answer, chain] each, as the course on unit conversion keeps what its models wrote (`rft.json`).

    The answer is the source's, a number (what a problem's meta calls "exact", where it has that), whatever the chain
    says; the chain ends in `<answer>n</answer>`. Raises InputError where an answer is no number.
    """
    known, records = {p.question: p for p in source}, []
    for problem in found:
        gold = known[problem.question]
        exact = gold.meta.get("exact", answers.number(gold.answer))
        if exact is None:
            raise InputError(f"{gold.id}: rft.json holds numbers, and {gold.answer!r} is none; use the .jsonl file.")
        records.append([problem.question, float(exact), tagged(problem)])
    return records


def check_found(sets: dict[tuple, tuple[list[Problem], dict[str, int]]]) -> None:
    """Raise InputError, with the fates of the samples, where one of these results of `collect` holds nothing."""
    for key, (found, ledger) in sets.items():
        if not found:
            fates = ", ".join(f"{count} {name}" for name, count in ledger.items() if count) or "none was drawn"
            raise InputError(
                f"There is nothing to learn from ({', '.join(map(str, key))}): of the samples {fates}. Use a better "
                "sampler, more samples, or some gold problems."
            )


def collect(
    problems: list[Problem], gold: list[Problem], pools: list[dict[str, list[dict]]], k: int, within: float = 1.0
) -> tuple[list[Problem], dict[str, int]]:
    """(training set, how many samples met which of FATES).

    problems  those that were sampled; of them only question and answer are looked at, unless they are among `gold`
    gold      problems whose own solution may be learned; they open the training set
    pools     samples by problem id (`sampling.read_samples`), of several models or seeds; the first k of each count
    within    see `fate`
    Raises InputError where fewer than k were drawn.
    """
    solutions = {p.id: solution(p) for p in gold}
    drawn = min((len(samples) for pool in pools for samples in pool.values()), default=k)
    if not 0 <= k <= drawn:
        raise InputError(
            f"The first {k} samples of each problem are asked for, but only {drawn} were drawn; draw more."
        )
    ledger: Counter = Counter()
    found = list(gold)
    for problem in problems:
        texts = []
        for sample in [s for pool in pools for s in pool.get(problem.id, [])[:k]]:
            end = fate(problem, sample, within)
            ledger[end] += end != "kept"
            texts += [sample["text"]] if end == "kept" else []
        known = (solutions[problem.id],) if problem.id in solutions else ()
        paths = distinct_paths(problem, texts, known)
        ledger["kept"] += len(paths)
        ledger["path known"] += len(texts) - len(paths)
        found += [as_problem(problem, text, number) for number, text in enumerate(paths)]
    return found, {name: ledger[name] for name in FATES}
