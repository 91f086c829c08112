"""The published FlanT5 data, `processed_data/*.pkl`, read without running what a pickle may hold, and as JSON Lines.

    python -m lib.distillation.published FILE.pkl OUT.jsonl

A pickle is a program. Two locks stand before this one: its opcodes are looked through first, and only those pass that
a list of maps of texts and numbers needs; then an unpickler reads it that knows one name, `collections.OrderedDict`,
and makes a plain dict of it. NumPy's numbers, tuples, sets and all classes are refused. So are files that would write
out far larger than they are (many references to one text). Not guarded: reading takes memory in proportion to the
file, up to a hundred times its size where somebody means harm; limit the process where a stranger's file is large.

Knows no tokenizer and no model: whether the steps are the tokens of the answer is for the caller to check, and so is
whether an answer is right.
"""

import argparse
import gc
import io
import pickle
import re
import sys
from collections import Counter
from itertools import chain
from pathlib import Path

from lib.errors import InputError
from lib.problems import write_jsonl

FORMS = {  # the published name of a format: ours, in lib.prompts
    "zero_shot_answer_only": "zero_shot_answer",
    "zero_shot_chain_of_thought": "zero_shot_cot",
    "in_context_answer_only": "in_context_answer",
    "in_context_chain_of_thought": "in_context_cot",
    "in_context_chain_of_thought_negative": "in_context_cot",  # wrong chains: answer_label is 0
}
TEXTS = ("question", "answer", "answer_gold")
SLACK = 1e-3  # above 1, for the sum of probabilities rounded to four digits
GROWTH, FLOOR = 64, 2**26  # how much a file may hold, in characters and probabilities: by byte, and whatever its size

PLAIN = rb"|".join(  # opcodes with their arguments, all but the texts of 256 bytes and more
    [
        rb"\(t|[]})(ldaesuRN\x88\x89\x94]|[Khq\x80].|M..|[Jj].{4}|[G\x95].{8}",  # no tuple but the empty one, see below
        rb"V[^\n]*\n|F[^\n]{1,32}\n|[IL]-?\d{1,10}L?\n|g\d{1,12}\n|ccollections\nOrderedDict\n",
        rb"\x8c(?:\x0bcollections\x94?\x8c\x0bOrderedDict\x94?\x93|\0|%s)"
        % b"|".join(rb"%s.{%d}" % (re.escape(bytes([n])), n) for n in range(1, 256)),
    ]
)


class Plain(pickle.Unpickler):
    """Makes texts, numbers, lists and dicts; raises UnpicklingError for any name but collections.OrderedDict."""

    def find_class(self, module: str, name: str) -> type:
        if (module, name) == ("collections", "OrderedDict"):
            return dict  # ordered too, and without attributes that a file could set
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def read(path: str | Path) -> list[dict]:
    """The records of one of the published files, as they are in it, each OrderedDict as a dict.

    A record has question, answer and answer_gold (texts), answer_label (0 or 1), type (a key of FORMS), and in a
    chain-of-thought format per_step_probs: for each token of the student {token: probability}, in the file's order.
    Probabilities may be 0: they were rounded to four digits. A step's sum is at most 1.001; the rest is other tokens'.
    Raises InputError, with the file and the record (from 1) or the byte, for anything else.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}; check the path.") from None
    _look_through(data, path)
    collecting = gc.isenabled()
    gc.disable()  # there is nothing to collect, and looking for it takes as long as reading
    try:
        records = Plain(io.BufferedReader(io.BytesIO(data))).load()
    except Exception as error:  # broken files fail in many ways
        raise InputError(f"{path}: not a pickle that can be read ({error}).") from None
    finally:
        if collecting:
            gc.enable()
    if type(records) is not list:
        raise InputError(f"{path}: expected a list of records, found a {type(records).__name__}.")
    room = max(GROWTH * len(data), FLOOR)
    for number, record in enumerate(records, 1):
        room -= _check(record, f"{path}, record {number}", room)
    return records


def convert(path: str | Path, out_path: str | Path) -> dict[str, int]:
    """Write a published file as JSON Lines, one record a line, at once or not at all; how many, in all and by "form".

    A line has the record's keys, but for "type": in its place stands "form", one of `lib.prompts.FORMATS`.
    Raises InputError as `read` does, and where `out_path` can't be written.
    """
    path, out_path = Path(path), Path(out_path)
    records = read(path)
    lines = ({"form": FORMS[r["type"]], **{key: r[key] for key in r if key != "type"}} for r in records)
    try:
        if out_path.is_dir() or (out_path.exists() and out_path.samefile(path)):
            raise InputError(f"Cannot write {out_path}: it is {'a folder' if out_path.is_dir() else 'what is read'}.")
        write_jsonl(out_path, lines)
    except OSError as error:
        raise InputError(f"Cannot write {out_path}: {error.strerror}.") from None
    return {"records": len(records), **Counter(FORMS[r["type"]] for r in records)}


def _look_through(data: bytes, path: str | Path) -> None:
    """Raises InputError at the first opcode that the published lists don't need, or where the file is cut off.

    That keeps out what the unpickler itself would stumble over: tuples in tuples, which overflow the stack when they
    are hashed, and a slot of the memo so high that the memo takes all memory. No honest file numbers more objects than
    a quarter of its bytes.
    """
    slots = len(data) // 4
    puts = rb"r.{3}[\0-%s]|p\d{1,%d}\n" % (re.escape(bytes([min(slots >> 24, 255)])), len(str(slots)))
    plain = re.compile(b"(?:%s|%s)*+" % (PLAIN, puts), re.DOTALL)
    at = plain.match(data).end()
    while data[at : at + 1] == b"X":  # a text of any length
        at = plain.match(data, at + 5 + int.from_bytes(data[at + 1 : at + 5], "little")).end()
    opcode = data[at : at + 1]
    if at == len(data):
        raise InputError(f"{path}: {'cut off' if data else 'empty'}; get the file again.")
    at += opcode == b"."  # the end
    if opcode != b"." or at < len(data):
        raise InputError(
            f"{path}: byte {at} begins something other than a list of maps of texts and plain numbers; it may be "
            "no pickle, a broken one, or one that holds NumPy numbers, tuples or objects, which are never made."
        )


def _check(record: object, where: str, room: int) -> int:
    """The size of a record, in characters and probabilities; InputError where it is none or larger than `room`."""
    if type(record) is not dict:
        raise InputError(f"{where}: expected a dict, found a {type(record).__name__}.")
    kind = record.get("type")
    if type(kind) is not str or kind not in FORMS:
        raise InputError(f'{where}: "type" must be one of {", ".join(FORMS)}.')
    keys = {*TEXTS, "answer_label", "type"}
    if "chain_of_thought" in kind and (kind != "in_context_chain_of_thought_negative" or "per_step_probs" in record):
        keys.add("per_step_probs")
    if set(record) != keys:
        raise InputError(f"{where}: a record of type {kind} has the keys {', '.join(sorted(keys))}, and no others.")
    for key in TEXTS:
        if type(record[key]) is not str:
            raise InputError(f'{where}: "{key}" must be a str, found a {type(record[key]).__name__}.')
    if type(record["answer_label"]) is not int or record["answer_label"] not in (0, 1):
        raise InputError(f'{where}: "answer_label" must be 0 or 1.')
    steps = record.get("per_step_probs", [{"": 1}])
    if type(steps) is not list or set(map(type, steps)) != {dict}:
        raise InputError(f'{where}: "per_step_probs" must be a list of maps from token to probability, at least one.')
    size = sum(len(record[key]) for key in TEXTS) + len(steps) + sum(map(len, steps))
    if size <= room and not _sound(steps):
        number = next(n for n, step in enumerate(steps, 1) if not _sound([step]))
        raise InputError(
            f'{where}: step {number} of "per_step_probs" must map tokens to plain numbers of 0 to 1 with a sum up to 1.'
        )
    size += sum(map(len, chain.from_iterable(steps))) if size <= room else 0
    if size > room:
        raise InputError(f"{where}: the file refers to the same texts too often; written out it would be far larger.")
    return size


def _sound(steps: list[dict]) -> bool:
    """Whether every step maps at least one token to a probability, all in [0, 1] and their sums up to 1 + SLACK."""
    chances = list(chain.from_iterable(map(dict.values, steps)))
    return (
        all(steps)
        and set(map(type, chain.from_iterable(steps))) == {str}
        and set(map(type, chances)) <= {float, int}
        and min(chances) >= 0
        and max(chances) <= 1
        and all(total <= 1 + SLACK for total in map(sum, map(dict.values, steps)))  # false for NaN
    )


def main(arguments: list[str] | None = None) -> int:
    """The command; its exit code is 0, or 2 for bad input, told in one sentence on stderr."""
    parser = argparse.ArgumentParser(prog="python -m lib.distillation.published", description=__doc__.split("\n")[0])
    parser.add_argument("file", metavar="FILE", help="one of processed_data/*.pkl")
    parser.add_argument("out", metavar="OUT", help="the JSON Lines file to write")
    args = parser.parse_args(arguments)
    try:
        counts = convert(args.file, args.out)
    except InputError as error:
        print(f"published: {error}", file=sys.stderr)
        return 2
    print(f"{args.out}: " + ", ".join(f"{name} {n}" for name, n in counts.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
