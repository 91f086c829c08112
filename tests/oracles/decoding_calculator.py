"""A calculator inside decoding, slow and obvious: at every step each row is decoded whole and scanned from its start.

No state to get wrong but the ids written so far: what must come next is read off the text by one regular expression.
"""

import re
from collections import Counter

from lib import calculator


class RescanCalculator:
    """The four methods and the counts of `lib.decoding_calculator.Calculator`; `due` holds each row's next id, or None.

    An annotation opens with the first marker that stands outside another one, and goes on to the first "=", line break
    or closing marker within its next 65 characters.
    """

    def __init__(self, tokenizer, form=("<<", ">>", "")):
        opening, closing, self.before = form
        self.tokenizer, self.closing = tokenizer, closing
        inside = rf"(?:(?!{re.escape(closing)})[^=\n])"
        self.annotation = re.compile(
            re.escape(opening) + rf"(?:(?P<expression>{inside}{{0,64}})="
            rf"|(?P<line>{inside}{{0,64}}\n)"
            rf"|(?P<closed>{inside}{{0,{65 - len(closing)}}}{re.escape(closing)})"
            rf"|(?P<long>(?s:.){{65}}))"
        )
        self.counts = {"triggered": 0, "overridden": 0, "failed": Counter()}

    def start(self, rows):
        self.written = [[] for _ in range(rows)]
        self.due = [None] * rows
        self.found = [0] * rows  # how many annotations were counted
        self.differed = [0] * rows  # the last one, by number, in which the model was overridden

    def override(self, chosen):
        for row, (token, due) in enumerate(zip(chosen, self.due, strict=True)):
            if due is not None and token != due and self.differed[row] != self.found[row]:
                self.differed[row] = self.found[row]
                self.counts["overridden"] += 1
        return [token if due is None else due for token, due in zip(chosen, self.due, strict=True)]

    def advance(self, tokens):
        for row, token in enumerate(tokens):
            self.written[row].append(token)
            text = self.decode(self.written[row]).rstrip("\ufffd")  # a character of which not all bytes are there
            found = list(self.annotation.finditer(text))
            for match in found[self.found[row] :]:
                self.count(self.written[row], text, match)
            self.found[row] = len(found)
            self.due[row] = self.next_id(self.written[row], text, found[-1]) if found else None

    def keep(self, rows):
        for name in ("written", "due", "found", "differed"):
            setattr(self, name, [getattr(self, name)[row] for row in rows])

    def decode(self, ids):
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def result(self, match):
        """What must stand behind the "=" of an annotation, to its closing marker; None where there is no value."""
        value = calculator.evaluate(match["expression"]).value
        if value is None or self.too_long(match):
            return None
        return self.before + calculator.format_number(value) + self.closing

    def too_long(self, match):
        """Is the annotation with its result longer than 80 characters, the most that the arbiter reads?"""
        value = calculator.evaluate(match["expression"]).value
        return value is not None and len(match["expression"] + "=" + self.before + calculator.format_number(value)) > 80

    def count(self, ids, text, match):
        """One more annotation has come to its "=" or to another end, with the last of `ids`."""
        if match["expression"] is None:
            reasons = {"line": "the line ended", "closed": "closed without =", "long": "too long"}
            self.counts["failed"][reasons[match.lastgroup]] += 1
            return
        self.counts["triggered"] += 1
        result, there = self.result(match), text[match.end() :]
        if result is None:
            reason = calculator.evaluate(match["expression"]).reason
            self.counts["failed"][reason or "too long"] += 1
        elif there.startswith(result):
            pass
        elif not result.startswith(there):
            self.counts["failed"]["the token of = goes on otherwise"] += 1
        elif self.queue(ids, result, there) is None:
            self.counts["failed"]["the tokenizer cannot write the result"] += 1

    def next_id(self, ids, text, match):
        """The id that must follow, if the last annotation of the text waits for more of its result."""
        result = self.result(match) if match["expression"] is not None else None
        there = text[match.end() :]
        if result is None or there == result or not result.startswith(there):
            return None
        since = 0  # ids behind the one that holds the "="
        while len(self.decode(ids[: len(ids) - since - 1])) >= match.end():
            since += 1
        ids, rest = ids[: len(ids) - since], ids[len(ids) - since :]
        queue = self.queue(ids, result, self.decode(ids)[match.end() :])
        return queue[since] if queue and queue[:since] == rest else None

    def queue(self, ids, result, there):
        """The ids that, behind `ids`, complete `result`, of which `there` stands already; None where none do.

        As the tokenizer writes it behind a "=", else as it writes it alone, but for blanks it puts in front.
        """
        wanted = result[len(there) :]
        behind = self.tokenizer("=" + result, add_special_tokens=False)["input_ids"]
        alone = self.tokenizer(wanted, add_special_tokens=False)["input_ids"]
        for queue in [*(behind[n:] for n in range(1, len(behind))), alone, alone[1:]]:
            if queue and self.decode([*ids, *queue]) == self.decode(ids) + wanted:
                return queue
        return None
