"""Bundle a hand-in: one zip with the lessons and, where the plan asks for them, the models of a run.

The zip holds what is allowed and nothing else, the same bytes for the same files on the same day, and is written only
after it was unpacked again and graded with a few questions.
"""

import hashlib
import json
import os
import re
import zipfile
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from lib.errors import InputError
from lib.lessons import archive, build, grade, handin
from lib.lessons.plan import Plan, read_plan

MB = 2**20
SMOKE = 8  # questions a model is asked before the bundle is written
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
SPARE, HEADS = 0.001, 2**14  # of the limit: what a zip of bytes that cannot be compressed has more, bundle.json too
DATE = (1980, 1, 1, 0, 0, 0)  # of every file in the zip, so that the same files make the same zip


def bundle(
    source: Path,
    name: str,
    plan: str = "lessons",
    run: Path | None = None,
    out: Path | None = None,
    limit_mb: float | None = None,
    trusted: bool = False,
    base: str = "",
    device: str = "cpu",
) -> Path:
    """Write the hand-in of `name` to `out` (default: <name>.zip here), and return its path.

    source    a folder with the lessons (NN_title.ipynb); their outputs are left out
    run       where run_all.py left the models that the plan asks for (outputs/<run>); else they stand in `source` as in
              a hand-in
    limit_mb  of all files, unpacked, in MB of 2^20 bytes; the plan's by default
    trusted   try the bundle without isolation; base, device: the base model and where it runs, as in `grade`
    Raises InputError, and writes nothing, for an odd name, a missing part, files over the limit (with the largest, and
    the highest LoRA rank that would fit) and a model that does not answer.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", name):
        raise InputError(f"--name {name!r}: use letters, digits, '-', '_' and '.', beginning with a letter or digit.")
    what = read_plan(plan)
    out = Path(out) if out else Path(f"{name}.zip")
    if out.is_dir() or not out.parent.is_dir():
        raise InputError(f"{out}: give a file in a folder that is there, such as {name}.zip.")
    files = {**_notebooks(Path(source)), **_parts(Path(source), what, run)}
    if not files:
        raise InputError(f"{source} holds no lesson (NN_title.ipynb); give the folder that you worked in.")
    _refuse_too_large(files, what.limit_mb if limit_mb is None else limit_mb)
    data = {path: found if isinstance(found, bytes) else found.read_bytes() for path, found in files.items()}
    data["bundle.json"] = _manifest(name, what, data)
    partial = out.with_name(f".{out.stem}.{os.getpid()}.zip")
    try:
        _write_zip(partial, data)
        _smoke(partial, plan, out.name, trusted=trusted, base=base, device=device)
        os.replace(partial, out)
    finally:
        partial.unlink(missing_ok=True)
    print(f"\n{out}: {len(data)} files, {out.stat().st_size / MB:.2f} MB")
    return out


# ----- what goes in
def _notebooks(source: Path) -> dict[str, bytes]:
    """The lessons of a folder, without outputs; other notebooks stay where they are."""
    if not source.is_dir():
        raise InputError(f"{source} is no folder; give the folder that you worked in.")
    found = {}
    for notebook in sorted({exercise.notebook for exercise in handin.known_exercises().values()}):
        if (source / notebook).is_file():
            content = build.read_notebook(source / notebook)
            for cell in content["cells"]:
                if cell["cell_type"] == "code":
                    cell["outputs"], cell["execution_count"] = [], None
            found[notebook] = build.write_notebook(content).encode()
    return found


def _parts(source: Path, plan: Plan, run: Path | None) -> dict[str, Path]:
    """The files of the plan's parts, by their path in the hand-in."""
    found = {}
    for part, place in plan.files.items():
        at = Path(run) / place if run else source / part
        stage = place.partition("/")[0]
        make = f"python run_all.py --profile {plan.profile} --run {run.name if run else plan.profile} --only {stage}"
        if not at.exists():
            told = "" if run else f", and bundle with --run {plan.profile}"
            raise InputError(f"{part} is missing: there is no {at}; make it with: {make}{told}")
        if at.is_file():
            found[part] = at
            continue
        adapter = (at / ADAPTER[0]).is_file()  # its copy of the tokenizer is the base's
        names = ADAPTER if adapter else sorted(path.name for path in at.iterdir() if path.is_file())
        wanted = {f"{part}/{name}": at / name for name in names if archive.allowed(f"{part}/{name}")}
        missing = [path.name for path in wanted.values() if not path.is_file()]
        if missing or not any(path.suffix == ".safetensors" for path in wanted.values()):
            name = missing[0] if missing else "model.safetensors"
            raise InputError(f"{part} is not whole: {at} has no {name}; make it anew with: {make}")
        found |= wanted
    return found


def _manifest(owner: str, plan: Plan, data: dict[str, bytes]) -> bytes:
    """bundle.json: who, which plan, when, what, and with which versions."""
    listed = {
        path: {"sha256": hashlib.sha256(data[path]).hexdigest(), "bytes": len(data[path])} for path in sorted(data)
    }
    made = datetime.now(UTC).strftime("%Y-%m-%d")
    found = {"name": owner, "plan": plan.name, "made": made, "files": listed, "versions": grade.package_versions()}
    return (json.dumps(found, indent=1, sort_keys=True) + "\n").encode()


# ----- whether it fits
def _refuse_too_large(files: dict[str, Path | bytes], limit_mb: float) -> None:
    """InputError where the files are over the limit: the largest, and the highest rank with which they would not be."""
    sizes = {path: len(found) if isinstance(found, bytes) else found.stat().st_size for path, found in files.items()}
    total = sum(sizes.values())
    most = int(limit_mb * MB * (1 - SPARE)) - HEADS
    if total <= most:
        return
    largest = sorted(sizes, key=lambda path: (-sizes[path], path))[:10]
    told = ", ".join(f"{path} {sizes[path] / MB:.2f} MB" for path in largest)
    ranks = admissible_ranks(files, most - total)
    advice = "leave something out"
    if ranks and all(ranks.values()):
        advice = "train with a LoRA rank of at most " + " and ".join(f"{r} for {part}" for part, r in ranks.items())
    elif ranks:
        advice = "no LoRA rank makes them fit, so leave something else out"
    raise InputError(f"The files come to {total / MB:.2f} MB, over the limit of {limit_mb:g} MB ({told}); {advice}.")


def admissible_ranks(files: dict[str, Path | bytes], room: int) -> dict[str, int]:
    """{adapter: the highest rank with which all files fit}, where `room` bytes are left (below 0: too many).

    An adapter's file grows with its rank, but for its head and what else is saved in it. Several adapters share what
    is left in proportion to what they take.
    """
    grows, ranks = {}, {}
    for path, weights in files.items():
        folder, _, name = path.rpartition("/")
        config = files.get(f"{folder}/{ADAPTER[0]}")
        if name == ADAPTER[1] and isinstance(weights, Path) and isinstance(config, Path):
            grows[folder] = _growing_bytes(weights)
            ranks[folder] = _rank(config)
    whole = sum(grows.values())
    share = max(0.0, (whole + room) / whole) if whole else 0.0
    return {folder: int(ranks[folder] * share + 1e-9) for folder in ranks}


def _rank(config: Path) -> int:
    try:
        rank = json.loads(config.read_text(encoding="utf-8"))["r"]
        assert type(rank) is int and rank > 0
    except (ValueError, KeyError, TypeError, AssertionError):
        raise InputError(f"{config} gives no rank r; make the adapter anew.") from None
    return rank


def _growing_bytes(path: Path) -> int:
    """How many bytes of an adapter's file are LoRA matrices."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            head = json.loads(file.read(min(length, MB * 16)))
        ends = [tensor["data_offsets"] for name, tensor in head.items() if "lora_" in name]
        return sum(end - start for start, end in ends)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{path} is no safetensors file; make the adapter anew.") from None


# ----- written and tried
def _write_zip(path: Path, data: dict[str, bytes]) -> None:
    """A zip that depends on the files' names and bytes alone."""
    with zipfile.ZipFile(path, "w") as packed:
        for name in sorted(data):
            entry = zipfile.ZipInfo(name, DATE)
            entry.external_attr, entry.create_system = 0o644 << 16, 3
            packed.writestr(entry, data[name], zipfile.ZIP_DEFLATED, 6)


def _smoke(packed: Path, plan: str, name: str, **how) -> None:
    """Grade the zip with a few questions and print what came; InputError where a model does not answer."""
    report = replace(grade.grade(packed, plan, seed=0, questions=SMOKE, **how), source=name)
    print(f"Tried as it will be graded, with {SMOKE} questions a model, which say nothing of the grade:\n")
    print(report.text(points=False))
    for found in report.models:
        if found.reason:
            raise InputError(f"{found.model} does not answer, so nothing was written: {found.reason}")
