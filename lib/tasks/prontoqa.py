"""ProntoQA: does a property follow from what is told about invented kinds of things? A proof along a chain of concepts.

    Lempuses are hot. Each zumpus is a vumpus. ... Max is a zumpus. Max is a lorpus. True or false: Max is not wooden.
        Max is a zumpus. Each zumpus is a vumpus.
        Max is a vumpus. Vumpuses are not wooden.
        Max is not wooden.
        #### True

The structure is that of the published generator (arXiv:2210.01240) as Coconut (arXiv:2412.06769) runs it, with 5 hops:
a chain of hops + 1 concepts; a second, idle parent beside each next concept; a property for each of these concepts but
the last idle one, all of different families; a separate pair of concepts, one of them with a property, of which the one
asked about is an instance too; and an unused concept with the opposite of the property that is asked for. Sentences
stand in random order, the two about the one asked for at the end. The query is the opposite of what follows half of
the time, and then the answer is False. A property is negated in a third of all rules; the one that is asked for in
half of them, lest a "not" in the query speak for False.

Coconut's preparation of a published file is followed (the query after the premises, the sentences of the proof in
pairs), but not its split, the first 9,000 to train on, the next 200 and the last 800 to hold back: problems go to their
splits by hash, as everywhere here (lib.problems.split).
"""

import random
from pathlib import Path

from lib.errors import InputError
from lib.problems import Problem, make_problem, read_json

ENTITIES = "Alex Fae Max Polly Rex Sally Sam Stella Wren".split()
CONCEPTS = (
    "brimpus dumpus gorpus grimpus impus jompus lempus lorpus numpus rompus shumpus sterpus tumpus vumpus wumpus "
    "yumpus zumpus"
).split()
FAMILIES = [
    family.split()
    for family in (
        "blue red brown orange",
        "small large",
        "metallic wooden luminous liquid",
        "transparent opaque",
        "nervous happy feisty shy",
        "bright dull",
        "sweet sour spicy bitter",
        "floral fruity earthy",
        "hot cold temperate",
        "kind mean angry amenable aggressive",
        "melodic muffled discordant loud",
        "slow moderate fast",
        "windy sunny overcast rainy snowy",
    )
]
MAX_HOPS = 6  # with more, the families run out
QUERY = "True or false: "


def generate(n: int, n_hops: int = 5, seed: int = 0) -> list[Problem]:
    """`n` problems with different questions, their proofs `n_hops` rules long (1 to 6); as published, 5.

    Raises InputError for any other number of hops.
    """
    if not 1 <= n_hops <= MAX_HOPS:
        raise InputError(f"prontoqa wants n_hops from 1 to {MAX_HOPS}, got {n_hops}; change it.")
    rng, problems = random.Random(seed), {}
    while len(problems) < n:
        new = problem(rng, n_hops)
        problems[new.id] = new
    return list(problems.values())


def problem(rng: random.Random, n_hops: int) -> Problem:
    """One problem; of 5 hops, it has 25 sentences before the query and 11 in its proof."""
    concepts = iter(rng.sample(CONCEPTS, len(CONCEPTS)))
    properties = iter([(rng.choice(family), rng.random() < 1 / 3) for family in rng.sample(FAMILIES, len(FAMILIES))])
    chain = [next(concepts) for _ in range(n_hops + 1)]
    idle = [next(concepts) for _ in range(n_hops)]
    apart, above, unused = next(concepts), next(concepts), next(concepts)
    entity, asked = rng.choice(ENTITIES), chain[n_hops - 1]
    bearers = [*chain, *idle[:-1], apart]
    borne = {concept: next(properties) for concept in bearers}
    borne[asked] = (borne[asked][0], rng.random() < 0.5)
    links = {a: is_kind(rng, a, b) for a, b in zip(chain, chain[1:], strict=False)}
    told = {concept: is_property(rng, concept, *borne[concept]) for concept in bearers}
    rules = [*links.values(), *told.values(), is_kind(rng, apart, above)]
    rules += [is_kind(rng, concept, parent) for concept, parent in zip(chain, idle, strict=False)]
    word, negative = borne[asked]
    rules.append(is_property(rng, unused, word, not negative))
    rng.shuffle(rules)
    facts = [f"{entity} is {article(concept)}." for concept in rng.sample([chain[0], apart], 2)]

    proof = []
    for concept in chain[:n_hops]:
        proof += [f"{entity} is {article(concept)}.", told[concept] if concept == asked else links[concept]]
    proof.append(f"{entity} is {'not ' if negative else ''}{word}.")
    right = rng.random() < 0.5
    query = f"{entity} is {'not ' if negative == right else ''}{word}."
    return prepare(" ".join(rules + facts), QUERY + query, proof, str(right))


def article(concept: str) -> str:
    """ "a lempus", "an impus"."""
    return f"{'an' if concept[0] in 'aeiou' else 'a'} {concept}"


def is_kind(rng: random.Random, concept: str, parent: str) -> str:
    """ "Each lempus is an impus.", "Every ...", or, as often as both together, "Lempuses are impuses."."""
    if rng.random() < 0.5:
        return f"{concept.capitalize()}es are {parent}es."
    return f"{rng.choice(('Each', 'Every'))} {concept} is {article(parent)}."


def is_property(rng: random.Random, concept: str, word: str, negative: bool) -> str:
    """ "Each lempus is not hot.", "Every ...", or, as often as both together, "Lempuses are not hot."."""
    shown = f"{'not ' if negative else ''}{word}"
    if rng.random() < 0.5:
        return f"{concept.capitalize()}es are {shown}."
    return f"{rng.choice(('Each', 'Every'))} {concept} is {shown}."


def prepare(question: str, query: str, proof: list[str], answer: str) -> Problem:
    """A Problem as Coconut prepares it: the query joins the question, each step holds two sentences of the proof."""
    steps = [" ".join(proof[i : i + 2]) for i in range(0, len(proof), 2)]
    return make_problem(f"{question} {query}", steps, answer, "prontoqa", proof="deduction")


# ----- the official generator's file
def read(path: str | Path) -> list[Problem]:
    """The problems of a file of the official generator: one JSON object, {"example1": {"test_example": ...}, ...}.

    Examples that it gives to be shown in a context are left out. Raises InputError, with the file and the example's
    name, at the first that is malformed.
    """
    examples = read_json(path)
    if not isinstance(examples, dict) or not examples:
        raise InputError(f'{path}: expected a JSON object {{"example1": ...}}, as ProntoQA writes it; check the file.')
    return [parse_example(example, f"{path}, {name!r}") for name, example in examples.items()]


def parse_example(example: object, where: str) -> Problem:
    """A Problem from one example; InputError where a part is missing or of another kind."""
    record = example.get("test_example") if isinstance(example, dict) else None
    if not isinstance(record, dict):
        raise InputError(f'{where}: expected an object with a "test_example"; mend or drop the example.')
    question, query, answer, proof = map(record.get, ("question", "query", "answer", "chain_of_thought"))
    for key, text in {"question": question, "query": query}.items():
        if not is_text(text):
            raise InputError(f'{where}: "{key}" must be a text on one line; mend or drop the example.')
    if answer not in ("True", "False"):
        raise InputError(f'{where}: "answer" must be "True" or "False", as text; mend or drop the example.')
    if not (isinstance(proof, list) and proof and all(map(is_text, proof))):
        raise InputError(f'{where}: "chain_of_thought" must be a list of sentences; mend or drop the example.')
    return prepare(question.strip(), query.strip(), [sentence.strip() for sentence in proof], answer)


def is_text(value: object) -> bool:
    """Is it a text on one line, not an empty one?"""
    return isinstance(value, str) and value.isprintable() and value.strip() != ""
