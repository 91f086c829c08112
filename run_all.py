#!/usr/bin/env python
"""Run the notebooks as a pipeline: each stage whose result no longer stands, in order, through papermill."""

import argparse
import json
import shutil
import signal
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from lib import launch, pipeline
from lib.errors import InputError
from lib.pipeline import STAGES
from lib.stage import FINISHED, OUTPUTS

EXAMPLES = """examples:
  python run_all.py                                    the embedded default: small models, a laptop CPU, minutes
  python run_all.py --explain                          what would run, and why; runs nothing
  python run_all.py --only 03 -p 03_sft.steps=300      one stage with one parameter changed
  python run_all.py --profile seeds                    three seeds, in outputs/seeds
  python run_all.py --list                             stages, parameters and profiles

exit codes: 0 done, 1 a stage failed, 2 bad input (one sentence says what), 130 interrupted
"""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--profile", help="parameters from notebooks/profiles/NAME.yaml")
    parser.add_argument("--run", help="write to outputs/NAME (default: the profile's name, else 'default')")
    parser.add_argument("--only", action="append", metavar="STAGE", help="run this stage alone; may be repeated")
    parser.add_argument("--from", dest="first", metavar="STAGE", help="begin with this stage")
    parser.add_argument("--until", dest="last", metavar="STAGE", help="end with this stage")
    parser.add_argument("-p", action="append", default=[], metavar="STAGE.NAME=JSON", help="set one parameter")
    parser.add_argument("--explain", action="store_true", help="say what would run and why, and run nothing")
    parser.add_argument("--list", action="store_true", help="list stages with their parameters, and profiles")
    return parser.parse_args()


def main() -> int:
    args = arguments()
    signal.signal(signal.SIGTERM, interrupt)
    try:
        if args.list:
            return show_list()
        stages = choose(args)
        parameters = pipeline.resolve(args.profile, args.p)
        directory = OUTPUTS / run_name(args.run if args.run is not None else args.profile or "default")
        if args.explain:
            return explain(stages, parameters, directory)
        return run(stages, parameters, directory)
    except InputError as error:
        print(f"run_all: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"run_all: {error}; results already complete still stand", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("run_all: interrupted; the same command goes on from here", file=sys.stderr)
        return 130


def interrupt(*_) -> None:
    """SIGTERM ends a run as Ctrl-C does: children first."""
    raise KeyboardInterrupt


def run_name(name: str) -> str:
    if not 0 < len(name) <= 100 or not all(c.isalnum() or c in "-_." for c in name) or name.startswith("."):
        raise InputError(f"--run {name!r}: use letters, digits, '-', '_' and '.', not starting with a '.'.")
    return name


def choose(args) -> list[str]:
    """The stages to look at, in order."""
    names = list(STAGES)
    if args.only and (args.first, args.last) != (None, None):
        raise InputError("--only names the stages; it does not go with --from or --until.")
    if args.only:
        wanted = {pipeline.full_name(name, "--only") for name in args.only}
        return [name for name in names if name in wanted]
    first = names.index(pipeline.full_name(args.first, "--from")) if args.first is not None else 0
    last = names.index(pipeline.full_name(args.last, "--until")) if args.last is not None else len(names) - 1
    if first > last:
        raise InputError(f"--from {names[first]} comes after --until {names[last]}; swap them.")
    return names[first : last + 1]


def show_list() -> int:
    for stage in STAGES:
        print(stage)
        for name, (value, kind) in pipeline.defaults(stage).items():
            if name != "run":
                print(f"    {name}: {kind} = {json.dumps(value)}")
    profiles = ", ".join(sorted(path.stem for path in pipeline.PROFILES.glob("*.yaml")))
    print(f"profiles: {profiles}")
    return 0


def explain(stages: list[str], parameters: dict, directory: Path) -> int:
    """What a run would do. A stage after one that would run can only say that it depends on what comes of it."""
    stale: list[str] = []
    for stage in stages:
        before = [name for name in stale if name in [s.strip("()") for s in pipeline.reads(stage, parameters[stage])]]
        try:
            why = pipeline.why_stale(stage, directory / stage, pipeline.plan(stage, parameters[stage], directory))
        except InputError as error:
            if not before:
                raise
            why = "it has no result yet" if pipeline.read_manifest(directory / stage) is None else str(error)
        if why is None and not before:
            print(f"{stage}: stands")
            continue
        after = f"if {' or '.join(before)} gives something else"
        print(f"{stage}: runs ({why})" if why else f"{stage}: runs {after}")
        stale.append(stage)
    return 0


def run(stages: list[str], parameters: dict, directory: Path) -> int:
    """Run the stages that need it; 0 if all went well, 1 at the first that failed."""
    import fcntl
    from importlib.util import find_spec

    if find_spec("papermill") is None:
        raise InputError("papermill is not installed for this Python; use .venv/bin/python, which `make` sets up.")

    created = not directory.exists()
    if not created and not directory.is_dir():
        raise InputError(f"{directory} is a file; move it, or use --run NAME.")
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / ".lock", "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"Another run_all.py is at work in {directory}; wait for it, or use --run NAME.") from None
        for stage in STAGES:
            pipeline.recover(directory / stage)
        try:
            for number, stage in enumerate(stages, 1):
                if not run_stage(stage, parameters[stage], directory, f"{number}/{len(stages)}"):
                    return 1
        except InputError:
            if created and all(path.name in (".lock", "memo") for path in directory.iterdir()):
                shutil.rmtree(directory)  # bad input leaves nothing behind
            raise
    report = directory / "09_evaluation" / "report.html"
    if "09_evaluation" in stages and report.exists():
        print(f"report: {report}")
    return 0


def run_stage(stage: str, parameters: dict, run_directory: Path, position: str) -> bool:
    """Run one stage unless its result stands. False if it failed; InputError if its input was bad."""
    directory = run_directory / stage
    partial = run_directory / f"{stage}.partial"
    plan = pipeline.plan(stage, parameters, run_directory)
    why = pipeline.why_stale(stage, directory, plan)
    if why is None:
        print(f"[{position}] {stage}: stands")
        return True
    print(f"[{position}] {stage}: running ({why})", flush=True)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    started, clock = now(), time.monotonic()
    execute(stage, partial, {**parameters, "run": run_directory.name}, f"[{position}] {stage}")
    result = outcome(partial)
    if not result["ok"]:
        report_failure(stage, partial, result)
        return False
    pipeline.commit(stage, directory, plan, started, now())
    print(f"[{position}] {stage}: done in {time.monotonic() - clock:.0f} s")
    return True


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def execute(stage: str, partial: Path, parameters: dict, title: str) -> None:
    """Run the notebook's process to its end, showing its progress; end it if we are interrupted."""
    with tempfile.TemporaryDirectory() as scratch:
        progress_file = Path(scratch) / "progress.json"
        process = launch.start_notebook(stage, partial, parameters, progress_file)
        try:
            watch(process, progress_file, partial / launch.CELL, title)
        finally:
            launch.stop(process)


def watch(process, progress_file: Path, cell_file: Path, title: str) -> None:
    """On a terminal, draw one bar that follows the stage's own steps; elsewhere, just wait."""
    if not sys.stderr.isatty():
        process.wait()
        return
    from tqdm import tqdm

    with tqdm(desc=title, leave=False, bar_format="{desc} {bar:20} {n_fmt}/{total_fmt}", total=1) as bar:
        while process.poll() is None:
            state = read_json(progress_file)
            if state and state["done"] < state["total"]:
                bar.total, bar.n = state["total"], state["done"]
                bar.set_description_str(f"{title} {state['label']} {state['note']}")
            elif cell := read_json(cell_file):
                bar.set_description_str(f"{title} cell {cell['cell']}")
            time.sleep(0.3)


def read_json(path: Path):
    """The JSON in a file that another process writes at once or not at all; None while it is not there."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None


def outcome(partial: Path) -> dict:
    """How the notebook's process ended, whether or not it lived to say so."""
    at = read_json(partial / launch.CELL) or {"cell": 0, "line": ""}
    result = read_json(partial / launch.RESULT)
    if result is None:
        message = "its process was killed or ran into an error before it could say more"
        return {"ok": False, **at, "kind": "Ended", "message": message, "traceback": ""}
    if result["ok"] and not (partial / FINISHED).exists():
        message = "the notebook ended without reaching its last cell's finish()"
        return {"ok": False, **at, "kind": "Unfinished", "message": message, "traceback": ""}
    return result


def report_failure(stage: str, partial: Path, result: dict) -> None:
    """Say what failed and where; raises InputError instead where the user's input was at fault."""
    if result["kind"] == "InputError":
        shutil.rmtree(partial)
        raise InputError(f"{stage}: {result['message']}")
    good = partial.with_name(stage).exists()
    if result["traceback"]:
        print("\n".join(result["traceback"].splitlines()[-15:]), file=sys.stderr)
    print(
        f"run_all: {stage} failed in cell {result['cell']} of its notebook ({result['line']}): "
        f"{result['kind']}: {result['message']}\n"
        f"  {'the last good result stands; ' if good else ''}"
        f"see {partial / 'notebook.ipynb'} and {partial / launch.LOG}\n"
        f"  the same command tries again, going on with work already done",
        file=sys.stderr,
    )


if __name__ == "__main__":
    sys.exit(main())
