"""Are two runs the same, timings apart? `python -m tests.same_run outputs/a outputs/b` says where they differ."""

import json
import sys
from pathlib import Path

from lib.pipeline import STAGES

TIMINGS = {"seconds", "seconds_per_problem_batch1", "problems_per_second", "run"}


def without_timings(value):
    """JSON with every timing taken out, at any depth."""
    if isinstance(value, dict):
        return {key: without_timings(inner) for key, inner in value.items() if key not in TIMINGS}
    return [without_timings(inner) for inner in value] if isinstance(value, list) else value


def content(path: Path):
    """What of a file must be the same: JSON without timings, anything else by its bytes."""
    if path.suffix == ".json":
        return without_timings(json.loads(path.read_text()))
    if path.suffix == ".jsonl":
        return [without_timings(json.loads(line)) for line in path.read_text().splitlines()]
    return path.read_bytes()


def artifacts(run: Path) -> dict[str, Path]:
    """The data artifacts of a run's stages, by relative path: no pictures, pages or logs, which show timings."""
    return {
        str(path.relative_to(run)): path
        for stage in STAGES
        for path in sorted((run / stage).rglob("*"))
        if path.suffix in {".json", ".jsonl", ".safetensors"} and path.name != "manifest.json"
    }


def differences(a: Path, b: Path) -> list[str]:
    """The artifacts that only one of two runs has, or in which they differ."""
    left, right = artifacts(a), artifacts(b)
    stages = {path.split("/")[0] for path in left if path.endswith(".safetensors")}
    assert len(stages) > 1 and {path.split("/")[0] for path in left} == set(STAGES), f"{a} is not a finished run"
    changed = [name for name in left if name in right and content(left[name]) != content(right[name])]
    return sorted(set(left) ^ set(right)) + changed


if __name__ == "__main__":
    found = differences(Path(sys.argv[1]), Path(sys.argv[2]))
    print("\n".join(found) or "the same to the bit, timings apart")
    sys.exit(bool(found))
