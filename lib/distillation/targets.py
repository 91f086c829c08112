"""What a student should find likely at each of its own positions, from a teacher that cuts the same text elsewhere.

Two rules. The published one (`dtw`, `dtw_normalised`) carries a distribution over where one token stands opposite one
token that is written the same, and teaches the token itself, a point mass, everywhere else. The chunk-correct one
(`offsets`) asks of every group of tokens that say the same how likely the teacher found each way to write it.

A distribution is k of the student's tokens with their probabilities, and a tail: the mass of all other tokens.
"""

import re
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property

import numpy

from lib import alignment
from lib.alignment import Tokens
from lib.distillation.teacher import Scored, steps_of
from lib.errors import InputError

WAYS = ("samples", "dtw", "dtw_normalised", "offsets")  # what to match: samples are point masses
UNDERSTOOD = {"ByteLevel", "ByteFallback", "Fuse", "Metaspace", "Replace", "Sequence", "Strip"}  # kinds of decoders
CONTEXT = 64  # letters in front of a group that its cutting may depend on, at most
REMEMBERED = 2**18  # ways to write something that are kept, cut
LEAST = 1e-4  # probabilities below go to the tail: they cost more to carry over than they teach


@dataclass(frozen=True)
class Targets:
    """One student's completion, the end of the sequence included.

    ids    (length, k) the student's tokens, 0 where there are fewer than k
    mass   (length, k) their probabilities, 0 where there are fewer than k
    tail   (length) the rest: mass.sum(1) + tail is 1
    kinds  what became of each position, to count: one of KINDS
    """

    ids: numpy.ndarray
    mass: numpy.ndarray
    tail: numpy.ndarray
    kinds: tuple[str, ...]


# soft: a distribution, one token opposite one; chunk: a distribution, of a group of tokens; point: the token itself
KINDS = ("soft", "chunk", "point")


@dataclass
class Vocabularies:
    """A teacher's and a student's tokenizer, and what each of the teacher's tokens becomes in the student's."""

    teacher: object
    student: object
    known: dict = field(default_factory=dict)

    @cached_property
    def written(self) -> list[str | None]:
        """What each of the teacher's tokens writes; None for special tokens and parts of letters."""
        return pieces(self.teacher)

    @cached_property
    def places(self) -> dict[str, int]:
        """What each of the student's tokens writes, blanks as ▁, to its id; of two alike the first."""
        found: dict[str, int] = {}
        for i, written in enumerate(pieces(self.student)):
            if written is not None:
                found.setdefault(alignment.surface(written), i)
        return found

    def continued(self, before: str, text: str) -> tuple[int, ...] | None:
        """The student's tokens of `text` after `before`; None where a token crosses the border between the two."""
        key = before, text
        if len(self.known) > REMEMBERED:
            self.known.clear()
        if key not in self.known:
            found = self.student(before + text, add_special_tokens=False, return_offsets_mapping=True)
            first, end = 0, len(before)
            for first, (start, stop) in enumerate(found["offset_mapping"]):
                if start >= end and stop > start:
                    break
                if stop > end:
                    first = -1
                    break
            else:
                first = -1
            self.known[key] = tuple(found["input_ids"][first:]) if first >= 0 else None
        return self.known[key]


def pieces(tokenizer) -> list[str | None]:
    """What each token of a tokenizer writes in the middle of a text; None for special ones and parts of letters.

    Raises InputError for a tokenizer of which that is not known (as WordPiece, whose tokens hide their blanks).
    """
    if strange := alignment.decoders(tokenizer) - UNDERSTOOD:
        raise InputError(
            f"What tokens of a {', '.join(sorted(strange))} tokenizer write is not known here; use a byte-level "
            "tokenizer, or one that writes blanks as ▁."
        )
    special = set(tokenizer.all_special_ids)
    names = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    found = [name.replace("▁", " ") for name in alignment.written(tokenizer, names)]
    return [None if i in special or not name or "\ufffd" in name else name for i, name in enumerate(found)]


def build(way: str, both: Vocabularies, taught: str, scored: Scored, completion: str) -> Targets:
    """The student's targets for `completion`, of which the teacher wrote `taught`, or its steps, with `scored`.

    Raises InputError for an unknown way, and where the teacher's tokenizer no longer gives the tokens that were scored.
    """
    if way not in WAYS:
        raise InputError(f"Unknown way of matching {way!r}; use {', '.join(WAYS)}.")
    student = alignment.tokens(both.student, completion)
    ids = [*student.ids, both.student.eos_token_id]
    rows = [({token: 1.0}, "point") for token in ids]
    if way != "samples":
        teacher = alignment.tokens(both.teacher, taught)
        if (*teacher.ids, both.teacher.eos_token_id) != tuple(scored.ids.tolist()):
            raise InputError(
                "The teacher's tokenizer cuts a solution otherwise than when it was scored; score it again."
            )
        placed = place(teacher, student, taught, completion)
        rule = chunked if way == "offsets" else published
        for position, row in rule(way, both, scored, placed) if placed else ():
            rows[position] = row
    return packed(rows)


def packed(rows: list[tuple[dict[int, float], str]]) -> Targets:
    """Distributions {token: probability}, with their kinds, as arrays; what they leave of 1 is the tail."""
    width = max(len(mass) for mass, _ in rows)
    ids, masses = numpy.zeros((len(rows), width), numpy.int32), numpy.zeros((len(rows), width))
    for at, (mass, _) in enumerate(rows):
        best = sorted(mass.items(), key=lambda item: -item[1])
        ids[at, : len(best)], masses[at, : len(best)] = zip(*best, strict=True)
    masses /= numpy.maximum(1.0, masses.sum(1, keepdims=True))  # what rounding adds
    tail = 1.0 - masses.sum(1)
    tail[tail < LEAST] = 0.0
    whole = masses.sum(1) + tail
    kinds = tuple(kind for _, kind in rows)
    return Targets(ids, numpy.float32(masses / whole[:, None]), numpy.float32(tail / whole), kinds)


@dataclass(frozen=True)
class Placed:
    """Tokens of both sides over the part of the student's text that both wrote.

    teacher, student  their tokens in that part, with spans in the student's whole text
    first, other      where those begin in their whole sequences
    ended             both texts are the same, so that the end of the sequence is shared, too
    """

    teacher: Tokens
    student: Tokens
    first: int
    other: int
    ended: bool


def place(teacher: Tokens, student: Tokens, taught: str, completion: str) -> Placed | None:
    """Where the student's text holds what the teacher wrote: all, or its steps as whole lines of both; else None."""
    if taught == completion:
        return Placed(teacher, student, 0, 0, True)
    shared = steps_of(taught)
    here, there = (re.search(rf"(?:^|\n)({re.escape(shared)})(?:\n|$)", text) for text in (taught, completion))
    if not shared or not here or not there:
        return None
    here, there = here.start(1), there.start(1)
    left, first = between(teacher, here, here + len(shared), there - here, completion)
    right, other = between(student, there, there + len(shared), 0, completion)
    return Placed(left, right, first, other, False)


def between(side: Tokens, start: int, end: int, by: int, text: str) -> tuple[Tokens, int]:
    """(the tokens whose letters lie in [start, end), moved by `by` into `text`; the first one's place)."""
    inside = [i for i, a, b in zip(*side.solid, strict=True) if start <= a and b <= end]
    if not inside:
        return Tokens(text, (), (), ()), 0
    first, last = inside[0], inside[-1]
    spans = tuple((max(a + by, 0), b + by) for a, b in side.spans[first : last + 1])
    return Tokens(text, side.ids[first : last + 1], side.written[first : last + 1], spans), first


# ----- the published rule
def published(way: str, both: Vocabularies, scored: Scored, placed: Placed):
    """(position, (distribution, kind)) where one token is opposite one that is written the same (Fu et al., 2023).

    A teacher's token becomes the student's that is written alike, blanks as ▁; the first of two that become the same
    stays. What becomes nothing was dropped there, and the rest used as it was; here it is the tail.
    """
    partners: dict[int, list[int]] = {}
    for i, j in alignment.align(placed.teacher, placed.student, way).links:
        partners.setdefault(j, []).append(i)
    for j, own in partners.items():
        i = own[0]
        same = alignment.surface(placed.teacher.written[i]) == alignment.surface(placed.student.written[j])
        if len(own) > 1 or not same:
            continue
        mass = {placed.student.ids[j]: float(numpy.exp(scored.logps[placed.first + i]))}
        for token, p in candidates(scored, placed.first + i):
            text = both.written[token]
            name = None if text is None else both.places.get(alignment.surface(text))
            if name is not None:
                mass.setdefault(name, p)
        yield placed.other + j, (mass, "soft")


def candidates(scored: Scored, position: int) -> list[tuple[int, float]]:
    """The teacher's tokens at a position with their probabilities, the likeliest first; the one that stands there too.

    Those below LEAST are left to the tail.
    """
    pairs = zip(scored.top[position].tolist(), numpy.exp(scored.top_logps[position]).tolist(), strict=True)
    found = [(token, p) for token, p in pairs if p >= LEAST]
    own = int(scored.ids[position])
    if own not in dict(found):
        found.append((own, float(numpy.exp(scored.logps[position]))))
    return found


# ----- the chunk-correct rule
def chunked(way: str, both: Vocabularies, scored: Scored, placed: Placed):
    """(position, (distribution, kind)) of every group of tokens that say the same.

    The teacher wrote t_1 .. t_n where the student's text has s_1 .. s_m. Each token t that the teacher might have
    written last is another way to write the group, t_1 .. t_(n-1) t, which the student cuts in its own way; other ways
    are not known. What a position is taught is conditional on the student's tokens before it in the group:

        p(s_j = x) = p(t_k) .. p(t_(n-1)) (1 - u) (ways that go on with x) / (ways that begin alike)

    with t_k the first of the teacher's tokens that those do not hold whole, and u what the teacher gives tokens beyond
    its k likeliest, or that the student has no way to cut. The rest is the tail: other beginnings, ways that end early
    (which begin alike: what follows them is not known), u. (A way is cut as if nothing more of its last word followed:
    1 is the number 1, though 12 might have come.)
    """
    end = 0  # where the student's tokens before this group end
    for (i, top), (j, other) in merged(placed):
        before = placed.student.spans[j - 1][1] if j else boundary(placed)
        end = max(end, before)
        yield from chunk(both, scored, placed, (i, top), (j, other), end)


def boundary(placed: Placed) -> int:
    """The letter at which the student's first token of the shared part begins, the blank before it included."""
    return placed.student.spans[0][0] if len(placed.student) else 0


def merged(placed: Placed):
    """Groups ((i, top), (j, other)) in order, blanks counted; orphans, blanks of one side, go with the next group.

    With a shared end the two ends of sequence are a group, the last; they take the orphans before them.
    """
    i = j = 0
    for group in alignment.align(placed.teacher, placed.student, "offsets_strict").groups:
        if "0" in group.kind:
            continue
        yield (i, group.teacher[1]), (j, group.student[1])
        i, j = group.teacher[1], group.student[1]
    if placed.ended:
        yield (i, len(placed.teacher) + 1), (j, len(placed.student) + 1)


def chunk(both: Vocabularies, scored: Scored, placed: Placed, left: tuple, right: tuple, border: int):
    """(position, (distribution, kind)) of one group, which begins at the letter `border` of the student's text."""
    (i, top), (j, other) = left, right
    text = placed.student.text
    own = (*placed.student.ids, both.student.eos_token_id)[j:other]
    last = placed.first + top - 1
    start = (*placed.teacher.spans, (len(text), len(text)))[top - 1][0]
    before, stands, taken = text[word_before(text, border) : border], text[border:start], text[start:border]
    if last == 0 and both.written[scored.ids[0]] and both.written[scored.ids[0]][0] == " " != text[start : start + 1]:
        taken = " "  # which the teacher's tokenizer puts before every text
    ways: Counter = Counter()
    for token, p in candidates(scored, last):
        ids = own if token == scored.ids[last] else written_as(both, before, stands, taken, token)
        if ids:
            ways[ids] += p
    kind = "soft" if top - i == other - j == 1 else "chunk"
    for at, token in enumerate(own):
        held = placed.student.spans[j + at - 1][1] if at else border  # what the student's tokens so far write, ends
        open_ones = [q for q in range(i, top - 1) if placed.teacher.spans[q][1] > held]
        certain = float(numpy.exp(sum(scored.logps[placed.first + q] for q in open_ones)))
        alike = {ids: p for ids, p in ways.items() if ids[:at] == own[: min(at, len(ids))]}
        total = sum(alike.values())  # 0 where the teacher held what stands there for impossible
        share = certain * (sum(ways.values()) / total if at and total else 1.0)
        mass = Counter({token: 0.0})
        for ids, p in alike.items():
            if len(ids) > at:
                mass[ids[at]] += p * share
        yield placed.other + j + at, (mass, kind)


def written_as(both: Vocabularies, before: str, stands: str, taken: str, token: int) -> tuple[int, ...] | None:
    """The student's tokens of a group that ends in the teacher's `token`; None where they are not known.

    before  the student's text in front of the group; stands: what the group's earlier tokens write
    taken   blanks of the teacher's last token that the student's token before the group has written already
    """
    if token == both.teacher.eos_token_id:
        ids = both.continued(before, stands) if stands else ()
        return None if ids is None else (*ids, both.student.eos_token_id)
    text = both.written[token]
    if text is None or not text.startswith(taken):
        return None
    ids = both.continued(before, stands + text.removeprefix(taken))
    return None if ids is None or both.student.unk_token_id in ids else ids


def word_before(text: str, border: int) -> int:
    """Where the word before the one at `border` begins: what stands farther back does not change how it is cut.

    CONTEXT letters before the border at most, for languages without blanks.
    """
    at, least = border, max(0, border - CONTEXT)
    for _ in range(2):
        while at > least and text[at - 1].isspace():
            at -= 1
        while at > least and not text[at - 1].isspace():
            at -= 1
    return at
