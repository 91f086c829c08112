"""Aligning two tokenisations of one text: which tokens of a teacher say what a student's token says.

    teacher    She | ' baked' | ' 12' | ' buns' | '.'
    student    '▁She' | '▁ba' | 'ked' | '▁1' | '2' | '▁bun' | 's' | '.'

Two ways. Dynamic time warping (Fu et al. 2023, 2301.12726: specialising FlanT5) compares how tokens are written and
knows nothing of where they stand. Offsets ask the tokenizers which characters each token covers, and are exact. Knows
no model and no loss (lib.distillation).
"""

import json
import re
from collections import defaultdict
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from itertools import count

import numpy

from lib.errors import InputError

METHODS = ("dtw", "dtw_normalised", "offsets", "offsets_strict")
BLANKS = ("▁", " ")  # how tokenizers write a blank
BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # how they name a byte that is no token of its own


@dataclass(frozen=True)
class Tokens:
    """A text in tokens: ids, how the tokenizer writes each, and which characters [start, end) of the text it covers.

    A token of bytes that are no whole character is written as the replacement character; its span is the character's.
    """

    text: str
    ids: tuple[int, ...]
    written: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def solid(self) -> tuple[list[int], list[int], list[int]]:
        """(tokens, starts, ends) of all that are not white space alone, without white space at their ends."""
        kept, starts, ends = [], [], []
        for i, (start, end) in enumerate(self.spans):
            piece = self.text[start:end]
            if bare := piece.strip():
                if len(bare) < end - start:
                    start += piece.index(bare)
                kept.append(i)
                starts.append(start)
                ends.append(start + len(bare))
        return kept, starts, ends

    @cached_property
    def covering(self) -> tuple[list[int], list[int], list[int]]:
        """(tokens, starts, ends) of all that cover a character, be it white space."""
        kept = [i for i, (start, end) in enumerate(self.spans) if start < end]
        return kept, [self.spans[i][0] for i in kept], [self.spans[i][1] for i in kept]

    @cached_property
    def plain(self) -> tuple[list[str], numpy.ndarray]:
        """(writings, places): the different writings, `stripped`, and the place of every token's own, an array (n,)."""
        number = defaultdict(count().__next__)
        places = numpy.fromiter(map(number.__getitem__, self.written), numpy.int64, len(self))
        return list(map(stripped, number)), places


@dataclass(frozen=True)
class Group:
    """Tokens [start, end) of the teacher and of the student that say the same; one side is empty for an orphan."""

    teacher: tuple[int, int]
    student: tuple[int, int]

    @property
    def kind(self) -> str:
        """ "1:1", "1:n", "n:1", "n:m"; "1:0", "n:0", "0:1", "0:n" for orphans."""
        sizes = [end - start for start, end in (self.teacher, self.student)]
        left, right = (str(size) if size < 2 else letter for size, letter in zip(sizes, "nm", strict=True))
        return f"{left}:{right}" if min(sizes) > 1 else f"{left}:{right}".replace("m", "n")


@dataclass(frozen=True)
class Alignment:
    """How n tokens of a teacher and m of a student belong together: `links`, sorted pairs (teacher's, student's)."""

    method: str
    n: int
    m: int
    links: tuple[tuple[int, int], ...]

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """Both sequences cut into the smallest runs that no link leaves; tokens without a link are orphans."""
        found, i, j, at = [], 0, 0, 0
        while at < len(self.links):
            left, right = self.links[at]
            found += orphans((i, left), (j, right))
            i, j, start = left, right, at
            top, other = left, right
            while at < len(self.links) and (self.links[at][0] <= top or self.links[at][1] <= other):
                top, other = max(top, self.links[at][0]), max(other, self.links[at][1])
                at += 1
            assert at > start
            found.append(Group((i, top + 1), (j, other + 1)))
            i, j = top + 1, other + 1
        return (*found, *orphans((i, self.n), (j, self.m)))


def orphans(teacher: tuple[int, int], student: tuple[int, int]) -> list[Group]:
    """Groups of tokens between two links that belong to nothing."""
    found = [Group(teacher, (student[0], student[0]))] if teacher[0] < teacher[1] else []
    return found + ([Group((teacher[1], teacher[1]), student)] if student[0] < student[1] else [])


# ----- tokens
def tokens(tokenizer, text: str) -> Tokens:
    """The tokens of `text`, without special ones.

    Raises InputError for a tokenizer that knows no offsets, and for a text that spells one of its special tokens.
    """
    if not tokenizer.is_fast:
        raise InputError(
            f"{type(tokenizer).__name__} cannot say which characters a token covers; use a fast tokenizer."
        )
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids = tuple(found["input_ids"])
    if special := set(ids) & set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}:
        name = tokenizer.convert_ids_to_tokens(min(special))
        raise InputError(f"A text holds {name!r}, which ends or begins texts in one of the tokenizers; take it out.")
    names = tokenizer.convert_ids_to_tokens(list(ids))
    spans = tuple(tuple(span) for span in found["offset_mapping"])
    if "ByteLevel" in decoders(tokenizer):
        spans = spans_of_bytes([len(name) for name in names], text) or spans
    return Tokens(text, ids, tuple(written(tokenizer, names)), spans)


@lru_cache(8)  # by the object: writing a tokenizer out takes longer than cutting a text
def decoders(tokenizer) -> frozenset[str]:
    """The kinds of decoders that a tokenizer puts its tokens together with, at any depth."""
    found, waiting = set(), [json.loads(tokenizer.backend_tokenizer.to_str())["decoder"]]
    while waiting:
        one = waiting.pop()
        if one:
            found.add(one["type"])
            waiting += one.get("decoders", [])
    return frozenset(found)


def written(tokenizer, names: list[str]) -> list[str]:
    """What tokens of these names write; those that are no whole character, the replacement character.

    Byte-level tokenizers spell bytes in an alphabet of their own; others name single bytes <0x0A>.
    """
    return list(map(of_bytes if "ByteLevel" in decoders(tokenizer) else of_letters, names))


@cache
def of_bytes(name: str) -> str:
    """What a byte-level tokenizer's token writes."""
    from tokenizers.decoders import ByteLevel

    return ByteLevel().decode([name])


@cache
def of_letters(name: str) -> str:
    """What a token of any other tokenizer writes, ▁ left as it is."""
    if not BYTE.fullmatch(name):
        return name
    byte = int(name[3:5], 16)
    return chr(byte) if byte < 128 else "\ufffd"


def spans_of_bytes(sizes: list[int], text: str) -> tuple[tuple[int, int], ...] | None:
    """Spans of byte-level tokens of so many bytes each, blanks included; of part of a character, the character's.

    (The tokenizers' own leave blanks out where `trim_offsets` is set.) None where the bytes are not the text's: a blank
    that is put before the text aside, it was normalised.
    """
    places = list(range(len(text)))
    if not text.isascii():
        places = [i for i, character in enumerate(text) for _ in character.encode(errors="surrogatepass")]
    more = sum(sizes) - len(places)
    if more not in (0, 1):
        return None
    places, end, found = [0] * more + places, 0, []
    for size in sizes:
        start, end = end, end + size
        first = max(start, more) if size > more else start
        found.append((places[first], places[end - 1] + 1) if end > max(first, more) else (0, 0))
    return tuple(found)


@cache
def stripped(written: str) -> str:
    """A token as the warping compares it: without the signs for blanks."""
    for blank in BLANKS:
        written = written.replace(blank, "")
    return written


# ----- both ways
def align(teacher: Tokens, student: Tokens, method: str = "offsets") -> Alignment:
    """Which tokens belong together.

    dtw             the published way: Levenshtein distance of the written tokens, blanks taken out, summed along the
                    cheapest path; ties go diagonally, then the teacher moves, then the student
    dtw_normalised  the share of the shorter token's letters that the longer one lacks, in their order: 0 for parts of a
                    token, so that a long one does not cost more than a short one
    offsets         tokens whose characters overlap, white space at their ends aside; error-free by definition
    offsets_strict  white space counts, too
    Raises InputError where offsets are asked for of two different texts, or the method is unknown.
    """
    if method not in METHODS:
        raise InputError(f"Unknown way of aligning {method!r}; use {', '.join(METHODS)}.")
    if method.startswith("dtw"):
        links = warp(*costs(teacher, student, method == "dtw_normalised"))
    elif teacher.text != student.text:
        raise InputError("Offsets align two tokenisations of one text; these are of two. Use dtw for unequal texts.")
    elif method == "offsets":
        links = overlaps(teacher.solid, student.solid)
    else:
        links = overlaps(teacher.covering, student.covering)
    return Alignment(method, len(teacher), len(student), tuple(links))


def overlaps(teacher, student) -> list[tuple[int, int]]:
    """Pairs of tokens that share a character, of (tokens, starts, ends) of each side, in order, none of them empty.

    Two fingers, one step each: O(n + m), but for pieces of one character, which all have its span: each is linked to
    each.
    """
    others, begins, stops = student
    begins, stops = [*begins, numpy.inf], [*stops, numpy.inf]  # so that a finger never leaves
    found, first = [], 0
    for i, start, end in zip(*teacher, strict=True):
        while stops[first] <= start:
            first += 1
        at = first
        while begins[at] < end:
            found.append((i, others[at]))
            at += 1
    return found


# ----- dynamic time warping
def costs(teacher: Tokens, student: Tokens, normalised: bool) -> tuple:
    """(table, rows, columns): table[rows[i], columns[j]] is how differently tokens i and j are written, float64.

    Each pair of different writings is compared once.
    """
    from rapidfuzz.distance import LCSseq, Levenshtein
    from rapidfuzz.process import cdist

    (left, rows), (right, columns) = teacher.plain, student.plain
    if not normalised:
        return cdist(left, right, scorer=Levenshtein.distance, dtype=numpy.float64), rows, columns
    common = cdist(left, right, scorer=LCSseq.similarity, dtype=numpy.float64)
    lengths = (numpy.array([max(1, len(writing)) for writing in side]) for side in (left, right))
    return 1 - common / numpy.minimum.outer(*lengths), rows, columns


def warp(table: numpy.ndarray, rows: numpy.ndarray, columns: numpy.ndarray) -> list[tuple[int, int]]:
    """The cheapest way from the first pair of tokens to the last, in steps (1, 1), (1, 0), (0, 1).

    A cell's total is its cost, of `costs`, and the least of its three predecessors' totals. No tokens, no way.
    """
    if not len(rows) or not len(columns):
        return []
    return list(zip(*compiled()(table, rows, columns).T.tolist(), strict=True))


@cache
def compiled():
    """The recursion and the way back, as machine code (numba keeps it for the next process)."""
    from numba import njit

    return njit(cache=True)(walk)


def walk(table, rows, columns):
    """`warp`, cell by cell: an array (steps, 2).

    A cell waits for the one to its left, so four rows go side by side, each with the one above a cell ahead of it. Rows
    past the last repeat it, and are not read.
    """
    n, m = len(rows), len(columns)
    total = numpy.empty((n + 4, m + 1))
    total[0, :], total[:, 0], total[0, 0] = numpy.inf, numpy.inf, 0.0
    for i in range(0, n, 4):
        first, second = table[rows[i]], table[rows[min(i + 1, n - 1)]]
        third, fourth = table[rows[min(i + 2, n - 1)]], table[rows[min(i + 3, n - 1)]]
        a = b = c = d = numpy.inf  # the totals to the left
        for j in range(m):
            place = columns[j]
            new_a = first[place] + min(min(total[i, j], total[i, j + 1]), a)
            new_b = second[place] + min(min(a, new_a), b)
            new_c = third[place] + min(min(b, new_b), c)
            d = fourth[place] + min(min(c, new_c), d)
            a, b, c = new_a, new_b, new_c
            total[i + 1, j + 1], total[i + 2, j + 1], total[i + 3, j + 1], total[i + 4, j + 1] = a, b, c, d
    way = numpy.empty((n + m - 1, 2), numpy.int64)
    i, j, at = n, m, n + m - 1
    while i and j:
        at -= 1
        way[at, 0], way[at, 1] = i - 1, j - 1
        across, down, right = total[i - 1, j - 1], total[i - 1, j], total[i, j - 1]
        if across <= down and across <= right:
            i, j = i - 1, j - 1
        elif down <= right:
            i -= 1
        else:
            j -= 1
    return way[at:]


# ----- how good
def error_rate(alignment: Alignment, teacher: Tokens, student: Tokens) -> float:
    """1 - 2 |D and G| / (|D| + |G|): D its links and G those of the offsets, between tokens that are not white space.

    0 where nothing is to be linked, and nothing is.
    """
    left, other = set(teacher.solid[0]), set(student.solid[0])
    found = {(i, j) for i, j in alignment.links if i in left and j in other}
    right = set(overlaps(teacher.solid, student.solid))
    return 1 - 2 * len(found & right) / (len(found) + len(right)) if found or right else 0.0


def soft_share(alignment: Alignment, teacher: Tokens, student: Tokens) -> float:
    """The share of the student's tokens that a teacher's distribution can be put on.

    Warping (published): it has one partner, written the same but for the sign for a blank. Offsets: its group is 1:1.
    (Groups of several can be taught, too: `lib.distillation.targets`.)
    """
    if not len(student):
        return 0.0
    if alignment.method.startswith("offsets"):
        return sum(group.kind == "1:1" for group in alignment.groups) / len(student)
    return alike_share(alignment, teacher, student)


def alike_share(alignment: Alignment, teacher: Tokens, student: Tokens) -> float:
    """The share of the student's tokens with one partner, which is written the same but for the sign for a blank."""
    if not len(student):
        return 0.0
    partners: dict[int, list[int]] = {}
    for i, j in alignment.links:
        partners.setdefault(j, []).append(i)
    same = [
        len(own) == 1 and surface(teacher.written[own[0]]) == surface(student.written[j]) for j, own in partners.items()
    ]
    return sum(same) / len(student)


def compare(texts: list[tuple[Tokens, Tokens]], methods: tuple[str, ...] = METHODS[:3]) -> list[dict]:
    """How good each method is on (teacher's tokens, student's) of several texts.

    A row a method: error_rate, a mean over texts; texts_with_errors, their share; alike_share and soft_share of the
    student's tokens. (Warping carries over what is alike, offsets whatever is 1:1; alike_share knows no such rule.)
    """
    rows = []
    for method in methods:
        found = [(align(left, right, method), left, right) for left, right in texts]
        rates = [error_rate(*each) for each in found]
        alike, soft = (sum(of(*each) * len(each[2]) for each in found) for of in (alike_share, soft_share))
        total = max(1, sum(len(right) for _, right in texts))
        rows.append(
            {
                "method": method,
                "texts": len(texts),
                "error_rate": sum(rates) / max(1, len(rates)),
                "texts_with_errors": sum(rate > 0 for rate in rates) / max(1, len(rates)),
                "alike_share": alike / total,
                "soft_share": soft / total,
            }
        )
    return rows


def surface(written: str) -> str:
    """A token as it is written, with one sign for a blank."""
    return written.replace(" ", "▁")
