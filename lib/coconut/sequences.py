"""Problems as token rows, and rows as batches. Knows the schedule's numbers, no model; torch only in `make_batch`.

    question \\n · [<start>] · <latent> ×n · [<end>] · steps left, each with \\n · #### answer · <eos>

Labels are -100 up to there, then the ids themselves: no model is ever taught to end its own thoughts.
"""

from lib import prompts
from lib.coconut.config import Config
from lib.errors import InputError
from lib.problems import Problem
from lib.tokenization import tokenize

START, END, LATENT = MARKERS = ("<|start-latent|>", "<|end-latent|>", "<|latent|>")  # the published names and order


def encode(config: Config, tokenizer, problems: list[Problem]) -> list[dict]:
    """{"question": ids, "steps": [ids of each], "answer": ids and end-of-sequence} of every problem.

    Tokenised apart, as they are when the model is asked, so that no token straddles a border; the question alone gets
    the tokenizer's first special token, if it has one.
    """
    asked = tokenize(tokenizer, [prompts.prompt(p) for p in problems])
    pieces = [text for p in problems for text in (*(f"{step}\n" for step in p.steps), config.answer_prefix + p.answer)]
    written = iter(tokenizer(pieces, add_special_tokens=False)["input_ids"] if pieces else [])
    return [
        {
            "question": question,
            "steps": [next(written) for _ in p.steps],
            "answer": [*next(written), tokenizer.eos_token_id],
        }
        for question, p in zip(asked, problems, strict=True)
    ]


def keep_short(config: Config, encoded: list[dict], needed: bool = True) -> list[dict]:
    """Problems that fit into max_length with all their steps and thoughts; the others are left out, and counted aloud.

    Raises InputError where none is left, though some are needed.
    """
    room = config.max_length - (config.c_thought * config.max_latent_stage + 2 if config.has_latents else 0)
    kept = [e for e in encoded if sum(map(len, [e["question"], *e["steps"], e["answer"]])) <= room]
    if not kept and needed:
        raise InputError(f"None of {len(encoded)} problems fits into max_length = {config.max_length}; raise it.")
    if len(kept) < len(encoded):
        print(f"left out {len(encoded) - len(kept)} of {len(encoded)} problems: longer than {config.max_length} tokens")
    return kept


def row(encoded: dict, skip: int, thoughts: int, markers: tuple | None) -> dict:
    """One problem with its first `skip` steps left out and `thoughts` latent positions in their place.

    markers   ids of <start>, <end>, <latent>, the first two None where there are none; None: no latent positions
    {"input_ids", "labels", "first": column of the first latent (or of what comes next, if none), "thoughts"}
    """
    before = list(encoded["question"])
    middle = []
    if markers is not None:
        start, end, latent = markers
        before += [start] if start is not None else []
        middle = [*[latent] * thoughts, *([end] if end is not None else [])]
    rest = [i for step in encoded["steps"][skip:] for i in step] + encoded["answer"]
    return {
        "input_ids": [*before, *middle, *rest],
        "labels": [-100] * (len(before) + len(middle)) + rest,
        "first": len(before),
        "thoughts": thoughts if markers is not None else 0,
    }


def make_batch(rows: list[dict], pad_id: int, ends_aligned: bool = False) -> dict:
    """Rows as tensors, padded on the left so that all first thoughts share a column, and on the right to one length.

    input_ids, attention_mask, position_ids, labels   (batch, length); positions count from 0 in every row
    thoughts                                          (batch): latent positions of each row
    first, most                                       int: the column of the first thought; the most thoughts of a row
    A row without thoughts gets no padding on the left: no column of it is a thought.
    ends_aligned   for asking, all rows with as many thoughts: padded on the left alone, so that all end together
    """
    import torch

    first = max((r["first"] for r in rows if r["thoughts"] or ends_aligned), default=0)
    lefts = [first - r["first"] if r["thoughts"] or ends_aligned else 0 for r in rows]
    width = max(left + len(r["input_ids"]) for left, r in zip(lefts, rows, strict=True))
    columns: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "position_ids": [], "labels": []}
    for left, r in zip(lefts, rows, strict=True):
        length = len(r["input_ids"])
        right = width - left - length
        for name, values, filler in (
            ("input_ids", r["input_ids"], pad_id),
            ("attention_mask", [1] * length, 0),
            ("position_ids", list(range(length)), 0),
            ("labels", r["labels"], -100),
        ):
            columns[name].append([*[filler] * left, *values, *[filler] * right])
    batch = {name: torch.tensor(values) for name, values in columns.items()}
    thoughts = [r["thoughts"] for r in rows]
    return {**batch, "thoughts": torch.tensor(thoughts), "first": first, "most": max(thoughts)}
