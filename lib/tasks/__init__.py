"""Where problems come from: one file a source. A task knows `lib.problems` and nothing else of the workbench.

(units_inspection.py is no source: it looks at one, and asks the arbiter what a lookup would get right.)
"""

from pathlib import Path

from lib.errors import InputError
from lib.problems import Problem, read_jsonl, split
from lib.tasks import benchmarks

DATA = Path(__file__).parents[2] / "data"
SOURCES = (
    "word_problems",
    "modular_chain",
    "boolean",
    "addition",
    "multiplication",
    "prosqa",
    "prontoqa",
    "units",
    "gsm8k",
)


def load(source: str, path: str, n: int, seed: int, **sizes) -> dict[str, list[Problem]]:
    """{"train", "valid", "test"}: the problems of a source, from a file where one is named or lies in data/.

    path   a file of that source: the published form for addition, multiplication, prosqa, prontoqa, units, gsm8k; else
           JSON Lines of problems; empty: generate (gsm8k: look in data/gsm8k, then on the hub)
    n      how many to generate where nothing is read
    sizes  min_steps, max_steps, max_number; n_operations, modulus; n_digits; n_leaves, max_depth, n_nots, operators
           (boolean); graphs, graph_form, n_nodes, min_hops, max_hops (prosqa); n_hops (prontoqa); practice (units):
           each generator takes its own
    A source that was published with a test split keeps it, and its training split is cut 90/10 for validation; all else
    is split 80/10/10 (generated units by what training may not know: units.splits). Raises InputError for an unknown
    source or a file that cannot be read.
    """
    if source not in SOURCES and not path:
        raise InputError(
            f"Unknown source {source!r}; the sources are {', '.join(SOURCES)}, or any name with a path to its file."
        )
    if source in benchmarks.NAMES:
        raise InputError(f"{source} is a test set, not to be trained on; give its file as 01_data_inspection.{source}.")
    parts = find(source, path, n, seed, **sizes)
    if not parts["train"]:
        raise InputError(f"{source}: {path or 'what was asked for'} holds no problem to train on; ask for more.")
    return parts


def test_set(name: str, path: str) -> dict[str, list[Problem]]:
    """A published test set (lib.tasks.benchmarks) as splits, of which only "test" holds problems."""
    return {"train": [], "valid": [], "test": benchmarks.read(name, path)}


def find(source: str, path: str, n: int, seed: int, **sizes) -> dict[str, list[Problem]]:
    """`load` without its checks."""
    if source == "gsm8k":
        from lib.tasks import gsm8k

        return keep_published(gsm8k.load(path, DATA))
    if source in ("addition", "multiplication"):
        from lib.tasks import arithmetic

        operator = "+" if source == "addition" else "*"
        return split(arithmetic.read(path) if path else arithmetic.generate(n, operator, sizes["n_digits"], seed))
    if source == "prosqa":
        from lib.tasks import prosqa

        if path:
            return split(prosqa.read(path))
        own = [sizes[key] for key in ("graphs", "graph_form", "n_nodes", "min_hops", "max_hops")]
        return split(prosqa.generate(n, *own, seed))
    if source == "prontoqa":
        from lib.tasks import prontoqa

        return split(prontoqa.read(path) if path else prontoqa.generate(n, sizes["n_hops"], seed))
    if source == "units":
        from lib.tasks import units

        return split(units.read(path)) if path else units.splits(n, seed, sizes.get("practice", 0))
    if path:
        problems = read_jsonl(path)
        if other := {p.source for p in problems} - {source}:
            raise InputError(
                f"{path}: its records say source {sorted(other)[0]!r}, the parameter says {source!r}; agree."
            )
        return split(problems)
    if source == "word_problems":
        from lib.tasks import word_problems

        return split(word_problems.generate(n, sizes["min_steps"], sizes["max_steps"], sizes["max_number"], seed))
    if source == "boolean":
        from lib.tasks import boolean

        own = [sizes[key] for key in ("n_leaves", "max_depth", "n_nots", "operators")]
        return split(boolean.generate(n, *own, seed))
    from lib.tasks import modular_chain

    return split(modular_chain.generate(n, sizes["n_operations"], sizes["modulus"], seed))


# Whose problems are solved from their question alone, and have one size.
SOLVABLE = ("modular_chain", "boolean", "addition", "multiplication")


def longer(known: list[Problem], n: int, size: int, seed: int = 0) -> list[Problem]:
    """`n` problems like those known but of more steps; size: operations (modular_chain), leaves (boolean), or digits.

    Raises InputError where they are not longer, where there are not so many, and for a source without one size.
    """
    like = known[0]
    if like.source == "modular_chain":
        from lib.tasks import modular_chain

        found = modular_chain.generate(n, size, like.meta["modulus"], seed)
    elif like.source == "boolean":
        from lib.tasks import boolean

        words = [word for p in known for word in p.question.split()]
        used = " ".join(word for word in boolean.OPERATORS if word in words)
        nots = like.question.split().count("not")
        found = boolean.generate(n, size, max(3, size.bit_length()), nots, used, seed)
    elif like.source in ("addition", "multiplication"):
        from lib.tasks import arithmetic

        found = arithmetic.generate(n, "+" if like.source == "addition" else "*", size, seed)
    else:
        raise InputError(f"{like.source} has no one size by which its problems are longer; {', '.join(SOLVABLE)} have.")
    if min(len(p.steps) for p in found) <= max(len(p.steps) for p in known):
        raise InputError(f"{like.source}: problems of size {size} are not longer than those that are known; name more.")
    return found


def keep_published(parts: dict[str, list[Problem]]) -> dict[str, list[Problem]]:
    """Published splits as they are; what is missing is cut from the training split by hash."""
    if "valid" in parts and "test" in parts:
        return parts
    if "test" in parts:
        cut = split(parts["train"], (0.9, 0.1, 0.0))
        return {"train": cut["train"], "valid": cut["valid"], "test": parts["test"]}
    cut = split(parts["train"])
    return cut if "valid" not in parts else {**cut, "train": cut["train"] + cut["valid"], "valid": parts["valid"]}


def solve(problem: Problem) -> Problem | None:
    """`problem` solved anew from its question, where its source can do that and the question is one of its own."""
    if len(problem.question) > 1000:  # no generated question is; Python reads no number of thousands of digits
        return None
    if problem.source == "modular_chain":
        from lib.tasks import modular_chain

        return modular_chain.solve(problem.question, problem.meta.get("modulus", 5))
    if problem.source == "boolean":
        from lib.tasks import boolean

        return boolean.solve(problem.question)
    if problem.source in ("addition", "multiplication"):
        from lib.tasks import arithmetic

        return arithmetic.solve(problem) if arithmetic.QUESTION.fullmatch(problem.question) else None
    if problem.source == "units":
        from lib.tasks import units

        return units.solve(problem.question)
    return None
