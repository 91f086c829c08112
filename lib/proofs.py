"""Chains of steps through a graph of premises: does each step stand in the question, and continue the one before?

Three kinds of proof are read; a problem names its own in `meta["proof"]`. The premises are those of the question.

    path        Alex is a rorpus. Every rorpus is a lempus. ... Is Alex a lempus or wumpus?
                each sentence is a premise; the first is about Alex, the last reaches the answer "Alex is a lempus."
    deduction   Each rorpus is a lempus. Lempuses are not hot. Alex is a rorpus. ... True or false: Alex is hot.
                as above, and a sentence about Alex may also state what follows from the last one about him, by one
                premise, or from a premise just named; the last sentence does, and settles what is asked
    symbols     n3 n7 | n7 n9 | n3 n4 ? n9 n4 : n3
                a step is one node: from n3 along an edge to n7, from there to n9, which is the answer

Any way through the premises counts, not only the problem's own. Knows no task, only sentences.
"""

import re
from typing import NamedTuple

# "Every X is a Y.", "Each X is not Y.", "Xes are Ys.", "Xes are not Y.", "Tom is a Y."
SENTENCE = re.compile(r"(?:(?:Every|Each) (\w+) is|(\w+us)es are|([A-Z]\w*) is) (not )?(an? )?(\w+)\.?")
CHOICE = re.compile(r"Is ([A-Z]\w*) an? \w+ or (?:an? )?\w+\?")
TRUTH = "True or false: "
TRUE = ("true", "yes")


class Claim(NamedTuple):
    """What a sentence says, as an edge of the graph: from `subject` ("a lempus", "Tom") to `predicate` ("not hot")."""

    subject: str
    predicate: str


class Task(NamedTuple):
    """What is to be proved: from `start` to `goal` along `premises`; `goal` is None where nothing readable is asked."""

    premises: frozenset[Claim]
    start: str | None
    goal: str | None


def claim(sentence: str) -> Claim | None:
    """The edge that a sentence states, else None; "Every impus is a lempus." and "Impuses are lempuses." are one.

    A concept is written "a lempus" whatever its article, a property as it is; plurals are those of names in -us.
    """
    match = SENTENCE.fullmatch(sentence.strip())
    if match is None:
        return None
    singular, plural, name, negation, article, word = match.groups()
    subject = name if name else f"a {(singular or plural).lower()}"
    if plural and not article and word.endswith("uses"):
        article, word = "a ", word.removesuffix("es")
    return Claim(subject, f"{negation or ''}{'a ' if article else ''}{word}")


def sentences(text: str) -> list[str]:
    """A text cut after each full stop or question mark."""
    return [part.strip() for part in re.findall(r"[^.?]+[.?]?", text) if part.strip()]


def read(kind: str, question: str, answer: str) -> Task:
    """The premises of a question with what they are to prove, given the right answer."""
    if kind == "symbols":
        edges, _, asked = question.partition("?")
        pairs = [edge.split() for edge in edges.split("|")]
        premises = frozenset(Claim(*pair) for pair in pairs if len(pair) == 2)
        return Task(premises, asked.rpartition(":")[2].strip() or None, answer.strip() or None)
    *given, asked = sentences(question) or [""]
    premises = frozenset(filter(None, map(claim, given)))
    if choice := CHOICE.fullmatch(asked):
        stated = claim(answer)
        return Task(premises, choice[1], stated.predicate if stated and stated.subject == choice[1] else None)
    query = claim(asked.removeprefix(TRUTH)) if asked.startswith(TRUTH) else None
    if query is None:
        return Task(premises, None, None)
    holds = answer.strip().rstrip(".").lower() in TRUE
    return Task(premises, query.subject, query.predicate if holds else negated(query.predicate))


def negated(predicate: str) -> str:
    """ "not hot" for "hot", and the other way round."""
    return predicate.removeprefix("not ") if predicate.startswith("not ") else f"not {predicate}"


def check(kind: str, question: str, answer: str, lines: list[str]) -> tuple[list[str | None], str | None]:
    """What is wrong with each line of a chain (None: it holds), and what the chain still lacks after its last line.

    kind    "path", "deduction" or "symbols"
    answer  the right one, which decides where the chain has to end
    After a broken step the walk goes on from what that step claims, so that one mistake is marked once.
    """
    task = read(kind, question, answer)
    last, reasons = Claim(task.start, task.start), []  # what was said last: one stands at its predicate
    for line in lines:
        last, reason = _symbol(task, last, line) if kind == "symbols" else _line(task, last, line, kind == "deduction")
        reasons.append(reason)
    if task.goal is None:
        return reasons, "the question asks nothing that its answer could settle"
    if last.predicate != task.goal:
        return reasons, f"the chain ends at {last.predicate}, not at {task.goal}"
    concluded = kind != "deduction" or last.subject == task.start
    return reasons, None if concluded else f"the conclusion about {task.start} is not drawn"


def _symbol(task: Task, last: Claim, line: str) -> tuple[Claim, str | None]:
    """What a step of one symbol says, and why it may not."""
    said = Claim(last.predicate, line.strip())
    return said, None if said in task.premises else f"there is no edge from {said.subject} to {said.predicate}"


def _line(task: Task, last: Claim, line: str, deduce: bool) -> tuple[Claim, str | None]:
    """What the last sentence of a line says, and what is wrong with the first that does not hold."""
    reason = None
    for sentence in sentences(line):
        said = claim(sentence)
        if said is None:
            return last, reason or "not a sentence of the form of a premise"
        reason = reason or _fault(task, last, said, deduce)
        last = said
    return last, reason


def _fault(task: Task, last: Claim, said: Claim, deduce: bool) -> str | None:
    """Why a sentence may not follow the one said last, None where it may."""
    at = last.predicate
    if deduce and said.subject == task.start and at != task.start:  # a conclusion about the one asked for
        known = last.subject == task.start and Claim(at, said.predicate) in task.premises
        return None if known or said.predicate == at else f"{said.predicate} does not follow from {at} in one step"
    if said not in task.premises:
        return "the question does not say so"
    return None if said.subject == at else f"the chain has reached {at}, this speaks of {said.subject}"
