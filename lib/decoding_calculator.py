"""A calculator inside decoding: when a model has written `<<3+4=`, the result is written for it.

`Calculator` follows the text of every row token by token, never reading anything twice, so that a step costs the same
however long the text is. It works on ids and on the text of each id, so any tokenizer will do: a marker may be split
over several tokens or glued to its neighbours. `CalculatorProcessor` brings it into the library's `model.generate`;
our own `generation.generate` calls it directly. What an expression is worth is `lib.calculator`'s business.
"""

import re
from collections import Counter
from typing import NamedTuple

from lib.calculator import MAX_ANNOTATION, MAX_LENGTH, evaluate, format_number
from lib.errors import InputError


class Form(NamedTuple):
    """How an annotation is written: what opens and closes it, and what stands before the result."""

    open: str
    close: str
    before: str


CANONICAL = Form("<<", ">>", "")
T5 = Form("[", "]", " ")  # T5's vocabulary has no "<"; the form of the DPO-ST authors: [ 3 * 2 = 6]


def marks(form: str) -> Form:
    """How a surface form of `lib.prompts` writes annotations."""
    return T5 if form == "t5" else CANONICAL


class Calculator:
    """Follows rows of tokens and says which token must come next.

    counts  triggered   annotations that asked for a result
            overridden  those where the model itself would have written another token
            failed      {reason: how many annotations the model had to finish alone}
    """

    def __init__(self, tokenizer, form: Form = CANONICAL):
        self.tokenizer, self.form = tokenizer, form
        self.ends = re.compile(f"=|\n|{re.escape(form.close)}")
        self.anchor = tokenizer("0", add_special_tokens=False)["input_ids"]
        self.texts: dict[tuple[int, ...], str] = {}  # ids -> the text they add
        self.plain: set[int] = set()  # ids that cannot begin a marker
        self.results: dict[tuple[str, str], list[int] | None] = {}
        self.reset_counts()
        self.start(0)

    def reset_counts(self) -> None:
        """Count from 0 again."""
        self.counts = {"triggered": 0, "overridden": 0, "failed": Counter()}

    def start(self, rows: int) -> None:
        """Begin with `rows` rows that have written nothing yet; what is counted goes on."""
        self.open: list[str] = [""] * rows  # the text since a marker that may be open; "" where none is
        self.forced: dict[int, list[int]] = {}  # row -> the ids that must come, the next one last
        self.partial: dict[int, list[int]] = {}  # row -> ids that are the beginning of a character's bytes
        self.differed: set[int] = set()  # rows whose present annotation was counted as overridden

    def override(self, chosen: list[int]) -> list[int]:
        """The tokens that the model chose (rows), those replaced that must be others."""
        if not self.forced:
            return chosen
        chosen = list(chosen)
        for row, queue in self.forced.items():
            if chosen[row] != queue[-1]:
                chosen[row] = queue[-1]
                if row not in self.differed:
                    self.differed.add(row)
                    self.counts["overridden"] += 1
        return chosen

    def advance(self, tokens: list[int]) -> None:
        """Take in the token that each row got."""
        plain, opened, forced = self.plain, self.open, self.forced
        for row, token in enumerate(tokens):
            if not opened[row] and token in plain and row not in forced:
                continue
            if row in forced:
                forced[row].pop()
                if not forced[row]:
                    del forced[row]
                    self.differed.discard(row)
            else:
                self._read(row, token)

    def keep(self, rows: list[int]) -> None:
        """Only these rows go on, in this order."""
        self.open = [self.open[row] for row in rows]
        self.forced = {new: list(self.forced[old]) for new, old in enumerate(rows) if old in self.forced}
        self.partial = {new: self.partial[old] for new, old in enumerate(rows) if old in self.partial}
        self.differed = {new for new, old in enumerate(rows) if old in self.differed}

    def text(self, *tokens: int) -> str:
        """What tokens add to a text; nothing for special ones."""
        if tokens not in self.texts:
            before, both = (
                self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
                for ids in (self.anchor, [*self.anchor, *tokens])
            )
            self.texts[tokens] = both[len(before) :]
            if len(tokens) == 1 and self.form.open[0] not in self.texts[tokens]:
                self.plain.add(tokens[0])
        return self.texts[tokens]

    def _read(self, row: int, token: int) -> None:
        """Append a token's text to what is open in its row, and act on what is complete."""
        ids = [*self.partial.pop(row, []), token]
        new, opening = self.text(*ids), self.form.open
        text = self.open[row] + new
        if self.open[row] and new.endswith("\ufffd") and len(ids) < 4:  # the next may complete a character such as ×
            self.partial[row] = ids
            return
        while True:
            start = text.find(opening)
            if start < 0:  # at most the beginning of a marker may be there
                sizes = [n for n in range(1, len(opening)) if text.endswith(opening[:n])]
                self.open[row] = text[-sizes[-1] :] if sizes else ""
                return
            body = text[start + len(opening) :]
            end = self.ends.search(body, 0, MAX_LENGTH + 1)
            if end is None and len(body) <= MAX_LENGTH:
                self.open[row] = text[start:]
                return
            if end is None:
                self._fail("too long")
                text = body[MAX_LENGTH + 1 :]
            elif end[0] != "=":
                self._fail("the line ended" if end[0] == "\n" else "closed without =")
                text = body[end.end() :]
            else:
                text = self._compute(row, body[: end.start()], body[end.end() :])
                if row in self.forced:
                    self.open[row] = ""
                    return

    def _compute(self, row: int, expression: str, rest: str) -> str:
        """Queue the result of `expression`, of which `rest` stands already; returns the text still to be read."""
        self.counts["triggered"] += 1
        value, reason = evaluate(expression)
        if value is None:
            self._fail(reason)
            return rest
        result = self.form.before + format_number(value) + self.form.close
        if len(expression) + 1 + len(result) - len(self.form.close) > MAX_ANNOTATION:
            self._fail("too long")  # the arbiter reads no longer ones
            return rest
        if rest.startswith(result):
            return rest[len(result) :]
        if not result.startswith(rest):
            self._fail("the token of = goes on otherwise")
            return rest
        ids = self._encode(result, rest)
        if ids is None:
            self._fail("the tokenizer cannot write the result")
            return rest
        self.forced[row] = ids[::-1]
        return ""

    def _encode(self, result: str, rest: str) -> list[int] | None:
        """The ids that write `result` after "=", without `rest`, its beginning; None where no ids do."""
        if (result, rest) not in self.results:
            wanted = result[len(rest) :]
            whole = self.tokenizer(f"={result}", add_special_tokens=False)["input_ids"]
            alone = self.tokenizer(wanted, add_special_tokens=False)["input_ids"]
            tails = [whole[n:] for n in range(1, len(whole))]  # as it stands after "=", so with its blanks
            tries = [*tails, alone, alone[1:]]  # alone[1:]: a tokenizer may put a bare blank in front
            fitting = [ids for ids in tries if ids and "".join(map(self.text, ids)) == wanted]
            self.results[result, rest] = fitting[0] if fitting else None
        return self.results[result, rest]

    def _fail(self, reason: str) -> None:
        self.counts["failed"][reason] += 1


class CalculatorProcessor:
    """A `Calculator` as a logits processor of the library: `model.generate(..., logits_processor=[processor])`.

    One device read a step. Use a new one for each call of `generate`. Raises InputError when rows change places
    between steps, as beam search makes them: what was followed would no longer be what stands there.
    """

    def __init__(self, calculator: Calculator):
        self.calculator = calculator
        self.seen = None  # the ids of the step before
        self.own = None  # what the model itself would have written then

    def __call__(self, input_ids, scores):
        """input_ids (rows, positions so far), scores (rows, vocabulary) -> scores with the forced tokens alone."""
        import torch

        if self.seen is None or input_ids.shape != (self.seen.shape[0], self.seen.shape[1] + 1):
            self.calculator.start(len(input_ids))
        else:
            changed = (input_ids[:, :-1] != self.seen).any(-1)
            read = torch.stack([input_ids[:, -1], changed.long(), self.own], 1).tolist()  # (rows, 3)
            if any(row[1] for row in read):
                raise InputError(
                    "The calculator cannot follow rows that change places, as in beam search; use num_beams=1, and a "
                    "new CalculatorProcessor for each call of generate."
                )
            self.calculator.override([row[2] for row in read])  # counts what was overridden
            self.calculator.advance([row[0] for row in read])
        self.seen, self.own = input_ids, scores.argmax(-1)
        if forced := self.calculator.forced:
            rows = torch.tensor(list(forced), device=scores.device)
            ids = torch.tensor([queue[-1] for queue in forced.values()], device=scores.device)
            scores = scores.clone()
            scores[rows] = float("-inf")
            scores[rows, ids] = 0.0
        return scores
