"""Where problems come from: one file a source. A task knows `lib.problems` and nothing else of the workbench."""

from pathlib import Path

from lib.errors import InputError
from lib.problems import Problem, read_jsonl, split

DATA = Path(__file__).parents[2] / "data"
SOURCES = ("word_problems", "modular_chain", "addition", "multiplication", "gsm8k")


def load(source: str, path: str, n: int, seed: int, **sizes) -> dict[str, list[Problem]]:
    """{"train", "valid", "test"}: the problems of a source, from a file where one is named or lies in data/.

    path   a file of that source: the published form for addition, multiplication, gsm8k; else JSON Lines of problems;
           empty: generate (gsm8k: look in data/gsm8k, then on the hub)
    n      how many to generate where nothing is read
    sizes  min_steps, max_steps, max_number; n_operations, modulus; n_digits: each generator takes its own
    A source that was published with a test split keeps it, and its training split is cut 90/10 for validation; all else
    is split 80/10/10. Raises InputError for an unknown source or a file that cannot be read.
    """
    if source not in SOURCES:
        raise InputError(f"Unknown source {source!r}; the sources are {', '.join(SOURCES)}.")
    if source == "gsm8k":
        from lib.tasks import gsm8k

        return keep_published(gsm8k.load(path, DATA))
    if source in ("addition", "multiplication"):
        from lib.tasks import arithmetic

        operator = "+" if source == "addition" else "*"
        return split(arithmetic.read(path) if path else arithmetic.generate(n, operator, sizes["n_digits"], seed))
    if path:
        return split(read_jsonl(path))
    if source == "word_problems":
        from lib.tasks import word_problems

        return split(word_problems.generate(n, sizes["min_steps"], sizes["max_steps"], sizes["max_number"], seed))
    from lib.tasks import modular_chain

    return split(modular_chain.generate(n, sizes["n_operations"], sizes["modulus"], seed))


def keep_published(parts: dict[str, list[Problem]]) -> dict[str, list[Problem]]:
    """Published splits as they are; what is missing is cut from the training split by hash."""
    if "valid" in parts and "test" in parts:
        return parts
    if "test" in parts:
        cut = split(parts["train"], (0.9, 0.1, 0.0))
        return {"train": cut["train"], "valid": cut["valid"], "test": parts["test"]}
    cut = split(parts["train"])
    return cut if "valid" not in parts else {**cut, "train": cut["train"] + cut["valid"], "valid": parts["valid"]}
