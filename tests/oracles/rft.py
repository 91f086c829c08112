"""Rejection sampling the slow, obvious way: lists, loops and an edit distance written out."""

from lib import answers


def edit_distance(a: str, b: str) -> int:
    """The fewest insertions, deletions and substitutions of one character that make `b` of `a`."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        above, row = row, [i]
        for j, y in enumerate(b, 1):
            row.append(min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (x != y)))
    return row[-1]


def before_the_answer(text: str) -> str:
    """What stands before the last `####`, or, without one, before the last "the answer is"."""
    where = text.rfind("####") if "####" in text else text.lower().rfind("the answer is")
    return text if where < 0 else text[:where]


def path(problem, text: str) -> list[str]:
    """Every `<<...>>` without blanks, in order; where each step has one right form, every line."""
    body, found = before_the_answer(text), []
    if problem.meta.get("exact_steps"):
        return [" ".join(line.split()) for line in body.split("\n") if line.strip()]
    for line in body.split("\n"):
        while "<<" in line and ">>" in line.partition("<<")[2]:
            inside, _, line = line.partition("<<")[2].partition(">>")
            found.append(inside.replace(" ", ""))
    return found


def fate(problem, sample: dict) -> str:
    """Why a sample cannot be learned from; "" where it can."""
    text = sample["text"]
    if not sample["finished"]:
        return "unfinished"
    if not answers.is_correct(problem, text):
        return "wrong answer"
    if not answers.is_verified(problem, text):
        return "broken step"
    rest = text[len(before_the_answer(text)) :].strip()
    if "####" in before_the_answer(text) or "\n" in rest:
        return "text after the answer"
    return ""


def keep(problem, texts: list[str], gold: str | None) -> list[str]:
    """One text for each path but gold's own, in the order in which the paths were found.

    When a path comes again in other words, the one stays whose edit distances to all texts kept for other paths, gold's
    own among them, have the larger sum; of equals, the one that was there.
    """
    kept: list[str] = []
    for text in texts:
        if gold is not None and path(problem, text) == path(problem, gold):
            continue
        rivals = [i for i, other in enumerate(kept) if path(problem, other) == path(problem, text)]
        if not rivals:
            kept.append(text)
            continue
        (place,) = rivals
        others = kept[:place] + kept[place + 1 :] + ([gold] if gold is not None else [])
        there, new = (sum(edit_distance(words, other) for other in others) for words in (kept[place], text))
        if new > there:
            kept[place] = text
    return kept


def collect(problem, gold: str | None, samples: list[dict]) -> tuple[list[str], dict[str, int]]:
    """(the texts to learn from, {why not, or "kept": how many samples}) of one problem."""
    ends = [fate(problem, sample) for sample in samples]
    fit = [sample["text"] for sample, end in zip(samples, ends, strict=True) if not end]
    kept = keep(problem, fit, gold)
    counts = {end: ends.count(end) for end in set(ends) - {""}}
    return kept, {**counts, "kept": len(kept), "path known": len(fit) - len(kept)}
