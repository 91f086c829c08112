"""Problems as rows: a source that stays clean (question, separator), a canvas that is denoised (chain, answer, end).

    source   <pad> <pad> v3 + n4 ? <sep>      padded on the left, its padding is never attended to
    canvas   r2 ⏎ #### 2 <eos> <pad> <pad>    padded on the right, its padding is part of what is learned

So all canvases of a batch begin at the same column, and a model can say itself how much of its canvas it needs.
"""

from lib import models
from lib.dot.config import Config
from lib.errors import InputError
from lib.problems import Problem
from lib.prompts import solution
from lib.tokenization import build_word_tokenizer


def tokenizer_for(config: Config, problems: list[Problem]):
    """Words and digits of the problems, or the tokenizer that the config names. Raises InputError.

    A named one must have an end, a separator and a padding token of its own; with config.digits it is made to take
    every digit apart, as published. It is saved with the model, so that no other way is used when asking.
    """
    if not config.tokenizer:
        texts = [text for p in problems for text in (p.question, solution(p))]
        return build_word_tokenizer(texts, config.digits)
    tokenizer = models.load_tokenizer(config.tokenizer)
    ends = tokenizer.eos_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id
    if None in ends or len(set(ends)) < 3:
        raise InputError(
            f"{config.tokenizer}: needs an end, a separator and a padding token, three different ones; "
            "name them in its tokenizer_config.json."
        )
    if config.digits:
        from tokenizers.pre_tokenizers import Digits, Sequence

        if not tokenizer.is_fast:
            raise InputError(f"{config.tokenizer}: digits are taken apart in fast tokenizers alone; set digits false.")
        inner, cut = tokenizer.backend_tokenizer, Digits(individual_digits=True)
        inner.pre_tokenizer = Sequence([cut, inner.pre_tokenizer]) if inner.pre_tokenizer else cut
    return tokenizer


def sources(tokenizer, questions: list[str]) -> list[list[int]]:
    """Token ids of each question, with the separator."""
    rows = tokenizer(questions, add_special_tokens=False)["input_ids"] if questions else []
    return [[*row, tokenizer.sep_token_id] for row in rows]


def encode(tokenizer, problems: list[Problem]) -> list[dict[str, list[int]]]:
    """[{"source", "target"}]: question and separator; solution and end."""
    written = tokenizer([solution(p) for p in problems], add_special_tokens=False)["input_ids"] if problems else []
    asked = sources(tokenizer, [p.question for p in problems])
    return [
        {"source": source, "target": [*target, tokenizer.eos_token_id]}
        for source, target in zip(asked, written, strict=True)
    ]


def check_known(tokenizer, encoded: list[dict]) -> None:
    """Raise InputError where most solutions hold tokens that the model's vocabulary lacks."""
    unknown = sum(tokenizer.unk_token_id in e["target"] for e in encoded) if tokenizer.unk_token_id is not None else 0
    if unknown > len(encoded) / 2:
        raise InputError(
            f"{unknown} of {len(encoded)} solutions hold words that the model's vocabulary lacks; go on with a model "
            "of this task, or start from a preset."
        )


def keep_short(encoded: list[dict], max_length: int) -> list[dict]:
    """Those of at most max_length tokens; the others are left out whole, with a printed count. An answer is never cut.

    Raises InputError if none is left.
    """
    kept = [e for e in encoded if len(e["source"]) + len(e["target"]) <= max_length]
    if not kept:
        raise InputError(f"None of {len(encoded)} problems fits into max_length = {max_length} tokens; raise it.")
    if len(kept) < len(encoded):
        print(f"left out {len(encoded) - len(kept)} of {len(encoded)} problems: longer than {max_length} tokens")
    return kept


def pad(rows: list[list[int]], pad_id: int, left: bool, width: int = 0):
    """Rows as a tensor (rows, longest or width) of ids."""
    import torch

    width = max(width, max(map(len, rows)))
    table = torch.full((len(rows), width), pad_id)
    for place, row in zip(table, rows, strict=True):
        if row:
            place[slice(width - len(row), None) if left else slice(0, len(row))] = torch.tensor(row)
    return table


class Rows:
    """Encoded problems as two tables, from which batches are cut; the problems themselves are never changed."""

    def __init__(self, encoded: list[dict], pad_id: int):
        import torch

        self.source = pad([e["source"] for e in encoded], pad_id, left=True)
        self.target = pad([e["target"] for e in encoded], pad_id, left=False)
        self.source_lengths = torch.tensor([len(e["source"]) for e in encoded])
        self.target_lengths = torch.tensor([len(e["target"]) for e in encoded])

    def __len__(self) -> int:
        return len(self.source)

    def batch(self, places, seed: int = 0) -> dict:
        """The rows at `places` (a tensor), as wide as the widest of them; nothing is drawn, so `seed` says nothing.

        source (batch, m), canvas (batch, n): ids; mask (batch, m + n): False at the source's padding, None without any
        """
        lengths = self.source_lengths[places]
        m, n = int(lengths.max()), int(self.target_lengths[places].max())
        source = self.source[places][:, self.source.shape[1] - m :]
        canvas = self.target[places][:, :n]
        return {"source": source, "canvas": canvas, "mask": seen(lengths, m, n)}


def batch(rows: list[dict], pad_id: int) -> dict:
    """[{"source", "target"}] as what `Rows.batch` gives."""
    import torch

    lengths = torch.tensor([len(row["source"]) for row in rows])
    source = pad([row["source"] for row in rows], pad_id, left=True)
    canvas = pad([row["target"] for row in rows], pad_id, left=False)
    return {"source": source, "canvas": canvas, "mask": seen(lengths, source.shape[1], canvas.shape[1])}


def seen(lengths, m: int, n: int):
    """(batch, m + n) bool: False at the padding before sources of these lengths, padded to m; None without any."""
    import torch

    if bool((lengths == m).all()):
        return None
    return torch.arange(m + n) >= m - lengths[:, None]
