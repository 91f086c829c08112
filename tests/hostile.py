"""Hand-ins that mean harm, written by this program: archives, notebooks that are none, and exercises.

`bundles(folder)` writes them all. An exercise is a plain attempt at the thing that its name tells; it is run in the
sandbox alone.
"""

import io
import json
import os
import stat
import struct
import textwrap
import zipfile
import zlib
from pathlib import Path

ROOT = Path(__file__).parents[1]
SECRET = "the-secret-of-the-grader-5c1f"  # in the environment of the grader, and in the file `canary`
LESSON = "03_sft.ipynb"


def notebook(*sources: str) -> str:
    """A notebook whose exercise 3.1 holds these cells."""
    cells = [{"cell_type": "code", "metadata": {"tags": ["exercise"]}, "source": source} for source in sources]
    return json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})


GOOD = notebook("def make_labels(prompt, completion, eos):\n    return [-100] * len(prompt) + completion + [eos]\n")


# ----- archives
def packed(entries, method=zipfile.ZIP_DEFLATED, comment=b"") -> bytes:
    """A zip of (name or ZipInfo, text or bytes)."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", method) as made:
        for name, data in entries:
            if isinstance(name, str):
                name = zipfile.ZipInfo(name)
                name.compress_type = method
            made.writestr(name, data)
        made.comment = comment
    return target.getvalue()


def named(name: str) -> bytes:
    """A zip with a good lesson and a file of another name, which the zip holds as it is."""
    stand_in = "X" * len(name.encode())
    return packed([(LESSON, GOOD), (stand_in, GOOD)]).replace(stand_in.encode(), name.encode())


def of_kind(mode: int, name: str = LESSON, data: str = "/etc/passwd") -> bytes:
    """A zip with an entry whose attributes say what kind of file it is."""
    entry = zipfile.ZipInfo(name)
    entry.create_system, entry.external_attr = 3, mode << 16
    return packed([(entry, data)])


def patched(data: bytes, mark: bytes, offset: int, value: bytes, last: bool = False) -> bytes:
    """Bytes with some replaced, counted from the first (or last) place of a mark."""
    at = (data.rindex(mark) if last else data.index(mark)) + offset
    return data[:at] + value + data[at + len(value) :]


CENTRAL, LOCAL, END = b"PK\1\2", b"PK\3\4", b"PK\5\6"
PLAIN = packed([(LESSON, GOOD)])


def both(local: int, central: int, value: bytes, data: bytes = PLAIN) -> bytes:
    """The zip with a field replaced in the entry's own header and in the directory."""
    return patched(patched(data, LOCAL, local, value), CENTRAL, central, value)


def overlapping() -> bytes:
    """Two entries, the second of which lies in the bytes of the first."""
    names = [b"03_sft.ipynb", b"04_rft.ipynb"]

    def header(name, data):
        return struct.pack("<4s5H3L2H", LOCAL, 20, 0, 0, 0, 33, zlib.crc32(data), len(data), len(data), 12, 0) + name

    inner = header(names[1], b"{}") + b"{}"
    outer, directory = header(names[0], inner) + inner, b""
    for name, data, place in ((names[0], inner, 0), (names[1], b"{}", len(outer) - len(inner))):
        fields = (20, 20, 0, 0, 0, 33, zlib.crc32(data), len(data), len(data), 12, 0, 0, 0, 0, 0, place)
        directory += struct.pack("<4s6H3L5H2L", CENTRAL, *fields) + name
    return outer + directory + struct.pack("<4s4H2LH", END, 0, 0, 2, 2, len(directory), len(outer), 0)


def of_stream(stream: bytes, size: int, sum_: int) -> bytes:
    """A zip whose one entry holds this deflated stream and declares so many bytes with that sum."""
    found = packed([(LESSON, stream)], zipfile.ZIP_STORED)
    for mark, at in ((LOCAL, 8), (CENTRAL, 10)):
        found = patched(found, mark, at, struct.pack("<H", 8))
        found = patched(found, mark, at + 6, struct.pack("<3L", sum_, len(stream), size))
    return found


def deflated(data: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(data) + packer.flush()


def listed(files, *entries) -> bytes:
    """A zip with a bundle.json that lists these files."""
    return packed([("bundle.json", files if isinstance(files, str) else json.dumps({"files": files})), *entries])


def archives() -> list[tuple[str, bytes, str]]:
    """(name, bytes, what must be said) of archives."""
    import hashlib

    zeros, good = bytes(3 << 20), hashlib.sha256(GOOD.encode()).hexdigest()
    right, lesson = {LESSON: {"sha256": good, "bytes": len(GOOD)}}, (LESSON, GOOD)
    noise = os.urandom(1 << 20)
    names = [
        ("absolute", "/etc/cron.d/x", "absolute"),
        ("absolute lesson", "/03_sft.ipynb", "absolute"),
        ("server path", "//server/03_sft.ipynb", "absolute"),
        ("parent", "../03_sft.ipynb", r"'\.\./03_sft.ipynb' leads out"),
        ("parent deep", "units/sft/../../../x", "leads out"),
        ("parent inside", "units/../04_rft.ipynb", "leads out"),
        ("here", "./04_rft.ipynb", "leads out"),
        ("backslash", "units\\sft\\adapter_config.json", "backslash"),
        ("backslash parent", "..\\..\\x", "backslash"),
        ("drive", "C:/04_rft.ipynb", "drive"),
        ("drive relative", "c:04_rft.ipynb", "drive"),
        ("newline", "04_rft.ipynb\n", "control"),
        ("escape", "\x1b[2J04_rft.ipynb", "control"),
        ("NUL", "04_rft.ipynb\0.exe", "control"),
        ("delete", "04_\x7frft.ipynb", "control"),
        ("case", "03_SFT.ipynb", "case only"),
        ("dot file", ".env", "not among"),
        ("source", "lib/lessons/check.py", "not among"),
        ("startup file", "sitecustomize.py", "not among"),
        ("pickle", "units/base/pytorch_model.bin", "not among"),
        ("model code", "units/base/modeling_llama.py", "not among"),
        ("checkpoint", "units/sft/checkpoint-9/optimizer.pt", "not among"),
        ("nested zip", "more.zip", "not among"),
        ("Mac", "__MACOSX/._03_sft.ipynb", "not among"),
        ("wide digits", "\uff10\uff14_rft.ipynb", "not among"),
        ("right to left", "04_\u202erft.ipynb", "not among"),
        ("long name", "0" * 5000, "not among"),
        ("below a lesson", "03_sft.ipynb/x", "not among"),
    ]
    kinds = [(stat.S_IFLNK, "symbolic"), (stat.S_IFCHR, "device"), (stat.S_IFBLK, "device"), (stat.S_IFIFO, "pipe")]
    found = [(name, named(entry), said) for name, entry, said in names]
    found += [(f"kind {mode:o}", of_kind(mode | 0o777), said) for mode, said in [*kinds, (stat.S_IFSOCK, "socket")]]
    return found + [
        ("linked folder", of_kind(stat.S_IFLNK | 0o777, "units/sft", "/etc"), "symbolic"),
        ("folder of a file's name", of_kind(stat.S_IFDIR | 0o777), "not a regular file"),
        ("DOS folder", patched(PLAIN, CENTRAL, 38, struct.pack("<L", 0x10)), "not a regular file"),
        ("encrypted", both(6, 8, b"\1\0"), "encrypted"),
        ("strongly encrypted", both(6, 8, b"\x41\0"), "encrypted"),
        ("hidden encryption", patched(PLAIN, LOCAL, 6, b"\1\0"), "stored otherwise"),
        ("bzip2", packed([lesson], zipfile.ZIP_BZIP2), "method 12"),
        ("lzma", packed([lesson], zipfile.ZIP_LZMA), "method 14"),
        ("unknown method", both(8, 10, b"\x63\0"), "method 99"),
        ("two methods", patched(PLAIN, LOCAL, 8, b"\0\0"), "stored otherwise"),
        ("twice", packed([lesson, ("04_aaa.ipynb", GOOD)]).replace(b"04_aaa.ipynb", LESSON.encode()), "twice"),
        ("many", packed([(f"{i % 100:02}_{'a' * (1 + i // 100)}.ipynb", "{}") for i in range(300)]), "300 entries"),
        ("many unknown", packed([(f"f{i}", "") for i in range(5000)]), "entries in"),
        ("counts too few", patched(packed([(f"f{i}", "") for i in range(5000)]), END, 8, b"\1\0\1\0"), "1 entries in"),
        ("large", packed([("units/base/model.safetensors", noise * 5)]), "5.0 MB, where 4|largest|allowed"),
        ("large lesson", packed([(LESSON, noise * 3 + zeros)], zipfile.ZIP_STORED), "allowed"),
        (
            "large together",
            packed([(f"0{i}_a.ipynb", noise[: 1 << 18] + bytes(3 << 18)) for i in range(6)]),
            "together",
        ),
        ("declares 4 GB", both(22, 24, b"\xfe\xff\xff\xff"), "declares 4096.0 MB"),
        ("declares little", of_stream(deflated(zeros), 10, zlib.crc32(zeros)), "more than the 10 bytes"),
        ("declares nothing", of_stream(deflated(zeros), 0, 0), "more than the 0 bytes"),
        ("declares too much", of_stream(deflated(b"{}"), 3, zlib.crc32(b"{}")), "fewer than the 3 bytes"),
        ("bomb", packed([(LESSON, zeros)]), "more than 200 times"),
        ("bomb of a model", packed([("units/base/model.safetensors", zeros)]), "more than 200 times"),
        ("overlap", overlapping(), "overlaps"),
        ("same place", patched(packed([lesson, ("04_rft.ipynb", GOOD)]), CENTRAL, 42, bytes(4), True), "another name"),
        ("bad sum", both(14, 16, b"\1\2\3\4"), "checksum"),
        ("changed byte", patched(packed([lesson], zipfile.ZIP_STORED), b"make_labels", 0, b"M"), "checksum"),
        ("garbage", of_stream(b"\xff" * 50, 50, 0), "cannot be unpacked"),
        ("half a stream", of_stream(deflated(GOOD.encode())[:-9], len(GOOD), zlib.crc32(GOOD.encode())), "fewer than"),
        ("two streams", of_stream(deflated(b"{}") * 2, 2, zlib.crc32(b"{}")), "more than one"),
        ("other name inside", patched(PLAIN, LOCAL, 30, b"09"), "another name"),
        ("no header", patched(PLAIN, LOCAL, 0, b"QQQQ"), "no header"),
        ("cut at half", PLAIN[: len(PLAIN) // 2], "not a zip"),
        ("cut by a byte", PLAIN[:-1], "not a zip|cut short"),
        ("only an end", PLAIN[-22:], "is not where its end says"),
        ("text", GOOD.encode(), "not a zip"),
        ("nothing", b"", "not a zip"),
        ("gzip", b"\x1f\x8b\x08\0" + os.urandom(500), "not a zip"),
        ("in front", b"%PDF-1.4\n" + PLAIN, "something was added|not where"),
        ("behind", PLAIN + b"#!/bin/sh\n", "behind the end"),
        ("two zips", PLAIN + PLAIN, "something was added|not where"),
        ("zip64", patched(PLAIN, END, 16, b"\xff\xff\xff\xff"), "zip64"),
        ("parts", patched(PLAIN, END, 4, b"\1\0"), "several parts"),
        ("long comment", patched(packed([lesson], comment=b"c" * 99), END, 20, b"\1\0"), "behind the end"),
        ("empty zip", packed([]), "holds nothing"),
        ("two sizes", patched(packed([lesson], zipfile.ZIP_STORED), CENTRAL, 24, b"\1\0\0\0"), "two sizes"),
        ("sums: missing", listed({**right, "04_rft.ipynb": right[LESSON]}, lesson), "'04_rft.ipynb' is listed"),
        ("sums: added", listed({}, lesson), "'03_sft.ipynb' is not listed"),
        ("sums: changed", listed({LESSON: {"sha256": "0" * 64}}, lesson), "'03_sft.ipynb' was changed"),
        ("sums: outside", listed({**right, "../../etc/passwd": right[LESSON]}, lesson), "is missing"),
        ("sums: no list", listed("[]", lesson), "does not list"),
        ("sums: wrong types", listed({LESSON: 3}, lesson), "does not list"),
        ("sums: not JSON", listed("{'", lesson), "not JSON"),
        ("sums: deep", listed("[" * 100_000, lesson), "too deep"),
    ]


# ----- notebooks that are none
def notebooks() -> list[tuple[str, bytes, str]]:
    """(name, what 03_sft.ipynb holds, what must be said)."""
    deep = '{"cells": ' + "[" * 50_000 + "]" * 50_000 + "}"
    cell = {"cell_type": "code", "metadata": {}, "source": ""}
    made = [
        ("no JSON", "{'cells': []}", "not JSON"),
        ("nothing", "", "not JSON"),
        ("deep", deep, "too deeply"),
        ("deep names", '{"a":' * 5000 + "1" + "}" * 5000, "too deeply"),
        ("no cells", '{"nbformat": 4}', "without cells"),
        ("empty", '{"cells": []}', "without cells"),
        ("a list", "[1, 2]", "without cells"),
        ("cells a text", '{"cells": "x"}', "without cells"),
        ("a cell a number", '{"cells": [7]}', "cell 1"),
        ("an unknown kind", json.dumps({"cells": [cell, cell | {"cell_type": "evil"}]}), "cell 2"),
        ("a source of numbers", json.dumps({"cells": [cell | {"source": [1, 2]}]}), "cell 1"),
        ("tags a text", json.dumps({"cells": [cell | {"metadata": {"tags": "exercise"}}]}), "cell 1"),
        ("metadata a list", json.dumps({"cells": [cell | {"metadata": []}]}), "cell 1"),
        ("a huge cell", json.dumps({"cells": [cell | {"source": "#" + os.urandom(150_000).hex()}]}), "characters"),
        ("many cells", json.dumps({"cells": [cell] * 3000}), "3000 cells"),
        ("half a letter", json.dumps({"cells": [cell | {"source": "x = '\ud800'"}]}), "characters that are none"),
        ("a huge number", '{"cells": [' + "9" * 5000 + "]}", "not JSON"),
    ]
    return [(name, text.encode(), said) for name, text, said in made] + [("bytes", b'{"cells": "\xff"}', "not UTF-8")]


def bundles(folder: Path, port: int = 9) -> list[tuple[str, Path, str]]:
    """Write all hand-ins to `folder`, and a file `canary` with a secret; returns (name, zip, what must be said).

    Names begin with "archive: " (unpacking refuses it), "notebook: " (reading the notebook does) or "exercise: " (it
    is run, and verdict and reason must match). `port`: where on this machine somebody listens who must hear nothing.
    """
    from tests.hostile_code import EXERCISES

    (folder / "canary").write_text(SECRET)
    known = {"CANARY": str(folder / "canary"), "ROOT": str(ROOT), "HOME": os.path.expanduser("~")}
    known |= {"PORT": str(port), "GRADER": str(os.getpid())}
    made = [(f"archive: {name}", data, said) for name, data, said in archives()]
    made += [(f"notebook: {name}", packed([(LESSON, data)]), said) for name, data, said in notebooks()]
    for name, said, code in EXERCISES:
        code = textwrap.dedent(code)
        for word, value in known.items():
            code = code.replace(f"<{word}>", value)
        made.append((f"exercise: {name}", packed([(LESSON, notebook(code))]), said))
    found = []
    for number, (name, data, said) in enumerate(made):
        path = folder / f"{number:03}.zip"
        path.write_bytes(data)
        found.append((name, path, said))
    return found
