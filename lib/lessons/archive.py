"""Read what was handed in, a directory or a zip, and trust none of it.

Names, sizes, sums and kinds of files are checked. Nothing is read or written but files whose names are in `ALLOWED`, or
are those of lessons; nothing in them is interpreted here but JSON.
"""

import hashlib
import json
import os
import re
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from lib.errors import InputError

LESSON = re.compile(r"[0-9]{2}_[a-z0-9_]{1,60}\.ipynb")
BASE = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
BASE += ("special_tokens_map.json", "chat_template.jinja")
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
ALLOWED = frozenset(
    ["bundle.json", "units/prompt.json", "units/rft.json"]
    + [f"units/base/{name}" for name in BASE]
    + [f"units/{part}/{name}" for part in ("sft", "rft") for name in ADAPTER]
)
FOLDERS = ("units/", "units/base/", "units/sft/", "units/rft/")  # entries for these may stand in a zip
FACTOR = 2  # files may have this many times the limit on a bundle's size when they are unpacked
ENTRIES = 120  # most entries of a zip
DIRECTORY = 1 << 15  # most bytes of a zip's directory
RATIO = 200  # a file of more than a megabyte may be this many times as large as its compressed bytes
TEXT_MB = 5.0  # most of a JSON file that is not a tokenizer, and of a notebook in a zip
CELLS, SOURCE = 2000, 200_000  # most cells of a notebook, and characters of one
SOME = 1 << 16  # bytes read at a time
ADVICE = "make the bundle again with `python -m lib.lessons bundle`"


def allowed(name: str) -> bool:
    """Is this the name of a file that a hand-in may hold?"""
    return name in ALLOWED or LESSON.fullmatch(name) is not None


def unpack(source: Path, into: Path, limit_mb: float = 50.0) -> list[str]:
    """Put the allowed files of a directory or zip into `into`, an empty or new directory; returns their names, sorted.

    Of a directory the other files are passed over; in a zip there may be none. A zip has at most limit_mb, its files
    unpacked (or those of a directory) at most FACTOR * limit_mb together. Where bundle.json is, its sums must hold.
    Raises InputError, which names the file and what is wrong with it, and then leaves `into` empty.
    """
    source, into = Path(source), Path(into)
    into.mkdir(parents=True, exist_ok=True)
    if any(into.iterdir()):
        raise InputError(f"{into}: not empty; unpack into a new directory.")
    try:
        if source.is_dir():
            names = _copy(source, into, limit_mb)
        elif source.suffix == ".ipynb" and source.is_file():
            raise InputError(f"{source}: a single notebook; give its folder, and the lesson with --only.")
        elif source.is_file():
            names = _unzip(source, into, limit_mb)
        else:
            raise InputError(f"{source}: there is no such directory or zip; check the path.")
        if not names:
            raise InputError(
                f"{source}: holds nothing that can be graded; it should hold lessons such as 03_sft.ipynb."
            )
        if "bundle.json" in names:
            _check_sums(into, names)
        return sorted(names)
    except BaseException:
        for path in into.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        raise


def _most(name: str, limit_mb: float) -> int:
    """Bytes that a file of this name may have."""
    small = name.endswith((".ipynb", ".json", ".jinja")) and not name.endswith("/tokenizer.json")
    return int(min(TEXT_MB, FACTOR * limit_mb) * 2**20) if small else int(FACTOR * limit_mb * 2**20)


def _too_large(name: str, most: int) -> InputError:
    advice = "clear its outputs" if name.endswith(".ipynb") else "hand in less"
    return InputError(f"{name!a}: larger than the {most / 2**20:g} MB that are allowed; {advice}.")


def _write(name: str, chunks: Iterator[bytes], into: Path, limit_mb: float, room: int) -> int:
    """Write a file of `into`, counting as its bytes come; returns their number. `room`: bytes that are left for all."""
    target, size, most = into / name, 0, _most(name, limit_mb)
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target, "xb") as file:
        for data in chunks:
            size += len(data)
            if size > most:
                raise _too_large(name, most)
            if size > room:
                total = FACTOR * limit_mb
                raise InputError(f"{name!a}: with it the files have more than {total:g} MB together; hand in less.")
            file.write(data)
    return size


# ----- a directory
def _copy(source: Path, into: Path, limit_mb: float) -> list[str]:
    """The allowed files of a directory."""
    lessons = [entry.name for entry in os.scandir(source) if LESSON.fullmatch(entry.name)]
    names, room = [], int(FACTOR * limit_mb * 2**20)
    for name in sorted([*ALLOWED, *lessons]):
        *folders, _ = name.split("/")
        place, found = source, True
        for folder in folders:
            place = place / folder
            found = found and _kind(place, name, stat.S_ISDIR, "directory")
        if found and _kind(source / name, name, stat.S_ISREG, "file"):
            room -= _write(name, _chunks(source / name, name), into, limit_mb, room)
            names.append(name)
    return names


def _kind(path: Path, name: str, wanted, what: str) -> bool:
    """Is it there? InputError where it is a link, a device, a pipe or the like."""
    try:
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return False
    if stat.S_ISLNK(mode):
        raise InputError(f"{name!a}: {path.name} is a symbolic link; put the {what} itself there.")
    if not wanted(mode):
        raise InputError(f"{name!a}: {path.name} is not a regular {what}; put one there, or nothing.")
    return True


def _chunks(path: Path, name: str) -> Iterator[bytes]:
    try:
        end = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise InputError(f"{name!a}: cannot be read ({error.strerror}); check the file.") from None
    with open(end, "rb") as file:
        while data := file.read(SOME):
            yield data


# ----- a zip
def _unzip(source: Path, into: Path, limit_mb: float) -> list[str]:
    """The files of a zip, every one of which must be allowed."""
    size = source.stat().st_size
    if size > limit_mb * 2**20:
        raise InputError(f"{source}: {size / 2**20:.1f} MB, where {limit_mb:g} are allowed; hand in less.")
    with open(source, "rb") as file:
        start = _directory(file, source, size)
        try:
            with zipfile.ZipFile(file) as opened:
                entries = opened.infolist()
        except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error, OverflowError, EOFError) as error:
            raise InputError(f"{source}: not a zip that can be read ({error}); {ADVICE}.") from None
        if len(entries) > ENTRIES:
            raise InputError(f"{source}: {len(entries)} entries, where {ENTRIES} are allowed; {ADVICE}.")
        places = _check_entries(entries, file, start, limit_mb)
        names, room = [], int(FACTOR * limit_mb * 2**20)
        for entry in entries:
            name = entry.orig_filename
            if name not in FOLDERS:
                room -= _write(name, _inflated(file, entry, places[name]), into, limit_mb, room)
                names.append(name)
    return names


def _directory(file, source: Path, size: int) -> int:
    """Where a zip's directory begins, by its last record, which must stand at the very end; InputError otherwise."""
    file.seek(max(0, size - (22 + 0xFFFF)))
    tail = file.read()
    at = tail.rfind(b"PK\5\6")
    if at < 0 or len(tail) - at < 22:
        raise InputError(f"{source}: not a zip, or one that was cut short; {ADVICE}.")
    disk, first, here, entries, length, start, comment = struct.unpack("<4H2LH", tail[at + 4 : at + 22])
    if length == 0xFFFFFFFF or start == 0xFFFFFFFF or entries == 0xFFFF or tail.rfind(b"PK\6\7") >= 0:
        raise InputError(f"{source}: a zip64, which only files of 4 GB need; {ADVICE}.")
    if at + 22 + comment != len(tail):
        raise InputError(f"{source}: something stands behind the end of the zip; {ADVICE}.")
    if disk or first or here != entries:
        raise InputError(f"{source}: a zip of several parts; {ADVICE}.")
    if entries > ENTRIES or length > DIRECTORY:
        raise InputError(f"{source}: {entries} entries in {length} bytes, where {ENTRIES} are allowed; {ADVICE}.")
    if start + length != size - len(tail) + at:
        raise InputError(f"{source}: the zip's directory is not where its end says, or something was added; {ADVICE}.")
    return start


def _check_entries(entries: list[zipfile.ZipInfo], file, start: int, limit_mb: float) -> dict[str, int]:
    """{name: where its bytes begin}; InputError that names the first entry that may not be in a bundle."""
    seen: dict[str, str] = {}
    for entry in entries:
        name = entry.orig_filename
        if (other := seen.setdefault(name.lower(), name)) != name:
            raise InputError(f"The entry {name[:100]!a} differs from {other[:100]!a} in case only; {ADVICE}.")
        if reason := _refused(entry, name, limit_mb):
            raise InputError(f"The entry {name[:100]!a} {reason}; {ADVICE}.")
    names = [entry.orig_filename for entry in entries]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"The entry {twice!a} stands there twice; {ADVICE}.")
    total, most = sum(entry.file_size for entry in entries), FACTOR * limit_mb
    if total > most * 2**20:
        name = max(entries, key=lambda entry: entry.file_size).orig_filename
        raise InputError(f"The entries, {name!a} the largest, have more than {most:g} MB together; hand in less.")
    places, before = {}, 0
    for entry in sorted(entries, key=lambda e: e.header_offset):
        name = entry.orig_filename
        file.seek(entry.header_offset)
        header = file.read(30)
        if len(header) < 30 or header[:4] != b"PK\3\4":
            raise InputError(f"The entry {name!a} has no header where the zip says; {ADVICE}.")
        flags, method, length, extra = struct.unpack("<6x2H16x2H", header)
        if file.read(length) != _bytes(entry):
            raise InputError(f"The entry {name!a} has another name in its own header; {ADVICE}.")
        if method != entry.compress_type or flags & 0x2041:
            raise InputError(f"The entry {name!a} is stored otherwise than the zip's directory says; {ADVICE}.")
        places[name] = entry.header_offset + 30 + length + extra
        if entry.header_offset < before or places[name] + entry.compress_size > start:
            raise InputError(f"The entry {name!a} overlaps another, or the zip's directory; {ADVICE}.")
        before = places[name] + entry.compress_size
    return places


def _bytes(entry: zipfile.ZipInfo) -> bytes:
    """An entry's name as the zip holds it."""
    return entry.orig_filename.encode("utf-8" if entry.flag_bits & 0x800 else "cp437")


def _refused(entry: zipfile.ZipInfo, name: str, limit_mb: float) -> str | None:
    """Why an entry may not be in a bundle, or None."""
    kind, folder = stat.S_IFMT(entry.external_attr >> 16), name in FOLDERS
    kinds = {
        stat.S_IFLNK: "a symbolic link",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
    }
    if re.search(r"[\x00-\x1f\x7f]", name):
        return "has a control character in its name"
    if "\\" in name:
        return "has a backslash in its name"
    if re.match(r"[A-Za-z]:", name):
        return "names a drive"
    if name.startswith("/"):
        return "has an absolute path"
    if ".." in name.split("/") or "." in name.split("/"):
        return "leads out of the bundle or nowhere (. or ..)"
    if kind in kinds:
        return f"is {kinds[kind]}, not a file"
    if kind not in (0, stat.S_IFDIR if folder else stat.S_IFREG) or (entry.external_attr & 0x10 and not folder):
        return "is not a regular file"
    if not (folder or allowed(name)):
        return "is not among the files of a bundle (lessons as NN_title.ipynb, bundle.json, and those of units/)"
    if entry.flag_bits & 0x2041:
        return "is encrypted"
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"is compressed by method {entry.compress_type}, where only stored and deflate are read"
    if folder and entry.file_size:
        return "is a directory that holds bytes"
    if entry.compress_type == zipfile.ZIP_STORED and entry.file_size != entry.compress_size:
        return "declares two sizes for bytes that are not compressed"
    if entry.file_size > (most := _most(name, limit_mb)):
        return f"declares {entry.file_size / 2**20:.1f} MB, where {most / 2**20:g} are allowed"
    if entry.file_size > 2**20 and entry.file_size > RATIO * max(1, entry.compress_size):
        return f"unpacks to more than {RATIO} times its size"
    return None


def _inflated(file, entry: zipfile.ZipInfo, place: int) -> Iterator[bytes]:
    """The bytes of an entry, a few at a time; InputError where there are more or fewer than declared, or other ones."""
    name, left, size, sum_ = entry.orig_filename, entry.compress_size, 0, 0
    inflate = zlib.decompressobj(-15) if entry.compress_type == zipfile.ZIP_DEFLATED else None
    file.seek(place)
    pending = b""
    while True:
        if left and not pending:
            pending = file.read(min(SOME, left))
            left -= len(pending)
            if not pending:
                raise InputError(f"The entry {name!a} was cut short; {ADVICE}.")
        try:
            data = inflate.decompress(pending, SOME) if inflate else pending
        except zlib.error as error:
            raise InputError(f"The entry {name!a} cannot be unpacked ({error}); {ADVICE}.") from None
        pending = inflate.unconsumed_tail if inflate else b""
        size, sum_ = size + len(data), zlib.crc32(data, sum_)
        if size > entry.file_size:
            raise InputError(f"The entry {name!a} has more than the {entry.file_size} bytes it declares; {ADVICE}.")
        yield data
        if inflate and inflate.eof and (pending or left or inflate.unused_data):
            raise InputError(f"The entry {name!a} holds more than one compressed file; {ADVICE}.")
        if not (left or pending or (data and inflate and not inflate.eof)):
            break
    if size != entry.file_size or (inflate and not inflate.eof):
        raise InputError(f"The entry {name!a} has fewer than the {entry.file_size} bytes it declares; {ADVICE}.")
    if sum_ != entry.CRC:
        raise InputError(f"The entry {name!a} is damaged: its checksum does not hold; {ADVICE}.")


# ----- JSON
def read_json(path: Path, most_mb: float = TEXT_MB):
    """The JSON of a file; InputError that names it where it is too large, nested too deeply, or not JSON in UTF-8."""
    path = Path(path)
    try:
        with open(path, "rb") as file:
            data = file.read(int(most_mb * 2**20) + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the file.") from None
    if len(data) > most_mb * 2**20:
        raise InputError(f"{path}: larger than the {most_mb:g} MB that are allowed; hand in less.")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 (byte {error.start}); save it again.") from None
    try:
        return json.loads(text)
    except RecursionError:
        raise InputError(f"{path}: JSON nested too deeply; save it again.") from None
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({str(error)[:100]}); save it again.") from None


def _check_sums(into: Path, names: list[str]) -> None:
    """Raise InputError where the files are not those that bundle.json lists, or not as it lists them."""
    listed = read_json(into / "bundle.json")
    listed = listed.get("files") if isinstance(listed, dict) else None
    if not isinstance(listed, dict) or not all(
        isinstance(entry, dict) and isinstance(entry.get("sha256"), str) for entry in listed.values()
    ):
        raise InputError(f"'bundle.json' does not list files as {{path: {{sha256, bytes}}}}; {ADVICE}.")
    for name in sorted({*names, *listed} - {"bundle.json"}):
        if name not in names:
            raise InputError(f"{name[:100]!a} is listed in bundle.json and is missing; {ADVICE}.")
        if name not in listed:
            raise InputError(f"{name!a} is not listed in bundle.json: it was added later; {ADVICE}.")
        with open(into / name, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != listed[name]["sha256"]:
            raise InputError(f"{name!a} was changed after the bundle was made; {ADVICE}.")


def notebook(path: Path) -> list[tuple[str, str, list[str]]]:
    """(kind, source, tags) of each cell of a notebook; InputError that names the file where it is none."""
    found = read_json(path)
    cells = found.get("cells") if isinstance(found, dict) else None
    if not isinstance(cells, list) or not cells:
        raise InputError(f"{path}: a notebook without cells; save it again from JupyterLab.")
    if len(cells) > CELLS:
        raise InputError(f"{path}: {len(cells)} cells, where {CELLS} are allowed; take some out.")
    return [_cell(cell, f"{path}, cell {number}") for number, cell in enumerate(cells, 1)]


def _cell(cell, where: str) -> tuple[str, str, list[str]]:
    """(kind, source, tags) of one cell."""
    wrong = InputError(f"{where}: not a cell of a notebook; save it again from JupyterLab.")
    if not isinstance(cell, dict) or cell.get("cell_type") not in ("code", "markdown", "raw"):
        raise wrong
    source, metadata = cell.get("source", ""), cell.get("metadata", {})
    lines = source if isinstance(source, list) else [source]
    tags = metadata.get("tags", []) if isinstance(metadata, dict) else None
    if not all(isinstance(line, str) for line in lines) or not isinstance(tags, list):
        raise wrong
    if not all(isinstance(tag, str) for tag in tags):
        raise wrong
    text = "".join(lines)
    if len(text) > SOURCE:
        raise InputError(f"{where}: {len(text)} characters, where {SOURCE} are allowed; take some out.")
    if re.search("[\ud800-\udfff\x00]", text):
        raise InputError(f"{where}: holds characters that are none; save it again from JupyterLab.")
    return cell["cell_type"], text, tags
