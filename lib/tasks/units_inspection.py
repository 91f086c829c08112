"""What questions on units are made of, and what a lookup in the training questions is worth: little, or nothing."""

import re
from collections import Counter
from functools import cache

from lib import answers
from lib.problems import Problem
from lib.tasks.units import FAMILY, significant, size


def shares(problems: list[Problem]) -> dict[str, dict[str, float]]:
    """{what: {value: share of the problems}}: family, number, word order, steps and novelty; of wordings the extremes.

    Only what the problems' meta holds: a published file says nothing of its wordings.
    """
    kinds = {"family": "family", "word order": "word_order", "what is new": "novelty"}
    found = {"steps": Counter(str(len(p.steps)) for p in problems)}
    found["number"] = Counter(min(p.meta["n"], 11) for p in problems if "n" in p.meta)
    for title, key in kinds.items():
        found[title] = Counter(p.meta[key] for p in problems if key in p.meta)
    wordings = Counter(p.meta["template"] for p in problems if "template" in p.meta)
    if wordings:
        rare, common = min(wordings.values()), max(wordings.values())
        found["wording"] = {f"rarest of {len(wordings)}": rare, "most common": common}
    return {
        title: {"more" if value == 11 else str(value): counts[value] / len(problems) for value in sorted(counts)}
        for title, counts in found.items()
        if counts
    }


def lookups(train: list[Problem], asked: list[Problem]) -> list[dict]:
    """What two lookups get right of `asked`, by what is new in a question: one row a kind.

    {"what is new", "n", "nearest question": its answer is copied, "same pair, scaled": multiplied by the number}
    """
    rows = []
    for kind in sorted({p.meta["novelty"] for p in asked if "novelty" in p.meta}):
        own = [p for p in asked if p.meta["novelty"] == kind]
        row = {"what is new": kind, "n": len(own)}
        for title, scaled in (("nearest question", False), ("same pair, scaled", True)):
            right = [answers.is_correct(p, f"#### {nearest_neighbour(train, p, scaled)}") for p in own]
            row[title] = sum(right) / len(right)
        rows.append(row)
    return rows


@cache
def _words(question: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w(?:[\w^*/.]*\w)?", question))


def _sizes(problem: Problem) -> tuple:
    source, target = problem.meta["from_unit"], problem.meta["to_unit"]
    return FAMILY[source], size(source), size(target)


def nearest_neighbour(train: list[Problem], problem: Problem, scaled: bool = False) -> str:
    """The answer of the training question most like `problem`'s (shared words over all words of both), the first such.

    scaled  look among the questions about the same pair, or one of the same sizes (mL is cm^3), where there are any,
            and multiply by the ratio of the numbers
    """
    same = [p for p in train if scaled and "n" in p.meta and _sizes(p) == _sizes(problem)]
    words = _words(problem.question)
    found = max(same or train, key=lambda p: len(words & _words(p.question)) / len(words | _words(p.question)))
    return significant(found.meta["exact"] * problem.meta["n"] / found.meta["n"]) if same else found.answer
