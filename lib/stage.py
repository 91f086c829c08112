"""Inside a stage: where a notebook reads, where it writes, and how long work is done only once.

    s = stage.begin("03_sft", run)
    problems = s.upstream("01_data_inspection") / "problems"
    trained = s.memo(sft.train, config, train, valid)     # a directory; found again if nothing it depends on changed
    s.publish(trained / "model", "models/cot")
    s.finish(accuracy=0.9)

Under `run_all.py` a notebook writes to `outputs/<run>/<stage>.partial/`, which becomes `<stage>/` when all went well.
In JupyterLab it writes to `<stage>.live/` and shares the memo: work that either of them did, both have.
"""

import ctypes
import fcntl
import gc
import hashlib
import json
import os
import shutil
import signal
import sys
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path

from lib import sources
from lib.errors import InputError

ROOT = Path(__file__).parents[1]
OUTPUTS = Path(os.environ.get("WORKBENCH_OUTPUTS", ROOT / "outputs")).resolve()
DATA = ROOT / "data"
DIRECTORY_VARIABLE = "WORKBENCH_STAGE_DIR"  # set by the pipeline: where its notebook writes
FINISHED = "finished.json"
FOR_EYES = {".png", ".html", ".svg", ".ipynb"}  # no stage computes with these, so a new colour makes none stale


class Stage:
    """One notebook at work. `directory` is where its artifacts go; `live` is True outside the pipeline."""

    def __init__(self, name: str, run: str, directory: Path, live: bool):
        self.name, self.run, self.directory, self.live = name, run, directory, live
        self.run_directory = OUTPUTS / run

    def upstream(self, name: str) -> Path:
        """The directory of a finished stage of this run. Raises InputError, with the command that makes it."""
        directory = self.run_directory / name
        if not (directory / "manifest.json").exists():
            raise InputError(
                f"{self.name} reads {directory}, which is not there; make it with: "
                f"python run_all.py --run {self.run} --only {name} (and the run's --profile, if it has one)"
            )
        return directory

    def finished_stages(self) -> list[str]:
        """The names of this run's finished stages but this one, in order.

        Raises InputError where one was made from other problems than the run's first stage now holds.
        """
        found = sorted(path.parent.name for path in self.run_directory.glob("*/manifest.json"))
        found = [name for name in found if "." not in name and name != self.name]
        plans = {name: json.loads((self.run_directory / name / "manifest.json").read_text()) for name in found}
        for name, manifest in plans.items():
            for read, digest in manifest["plan"]["inputs"].items():
                if read in plans and digest != data_digest(plans[read]["artifacts"]):
                    raise InputError(
                        f"{name} was made from another result of {read} than the run now holds; make it again with: "
                        f"python run_all.py --run {self.run} --only {name} (and the run's --profile, if it has one)"
                    )
        return found

    def path(self, name: str) -> Path:
        """Where to write the artifact `name`; folders on the way are made."""
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def memo(self, function, config, *inputs) -> Path:
        """The directory in which `function(config, *inputs, out_dir)` left its work, done now or found done before.

        Found where the function's name, the sources it depends on, the config and the inputs are the same. Interrupted
        work goes on in the same directory, so `function` can resume from what it finds there.
        config   a dataclass; where a field is the absolute path of a file or folder, its bytes count too
        inputs   lists of dataclasses (Problem, Example), or paths: of a memo (known by its name), of a file or folder
                 (by its bytes), or a model's hub id
        """
        done = self._place(function, config, *inputs)
        partial = done.with_name(done.name + ".partial")
        with locked(done.with_name(done.name + ".lock")):
            if not done.exists():
                partial.mkdir(parents=True, exist_ok=True)
                function(config, *inputs, partial)
                gc.collect()  # a trainer and its model hold one another; the next step needs the memory
                sync(partial)
                partial.rename(done)
        return done

    def memo_all(self, calls: dict) -> dict:
        """{key: memo(function, config, *inputs)} for {key: (function, config, *inputs)} that do not need one another.

        On a CPU as many at once as there are cores, each in a process of its own (lib.workers); on a GPU one by one.
        A call's share of the cores hangs on how many calls there are, not on how many are done already.
        """
        from lib import workers

        configs = [config for _, config, *_ in calls.values()]
        devices = [getattr(config, "device", "auto") for config in configs]
        at_once, threads = workers.shares(len(calls), devices, max(map(memory_for, configs), default=0))
        if at_once == 1:
            return {key: self.memo(*call) for key, call in calls.items()}
        places = {key: self._place(*call) for key, call in calls.items()}
        missing = {key: (self.memo, *call) for key, call in calls.items() if not places[key].exists()}
        return places | workers.each(missing, at_once, threads)

    def _place(self, function, config, *inputs) -> Path:
        """The directory of a piece of work, named by everything that it depends on."""
        key = sources.digest(
            [
                f"{function.__module__}.{function.__name__}",
                sources.of_function(function),
                asdict(config),
                {name: self._identity(value) for name, value in asdict(config).items() if is_place(value)},
                [self._identity(value) for value in inputs],
            ]
        )
        name = f"{function.__module__.removeprefix('lib.')}.{function.__name__}-{key}"
        return self.run_directory / "memo" / name

    def _identity(self, value) -> object:
        if isinstance(value, (str, Path)):
            path = Path(value)
            if path.is_relative_to(self.run_directory / "memo"):
                return str(path.relative_to(self.run_directory / "memo"))
            if not str(value) or not path.exists():
                return str(value)
            files = sorted(path.rglob("*")) if path.is_dir() else [path]
            found = [[str(file.relative_to(path)), file_hash(file)] for file in files if file.is_file()]
            if (path / "adapter_config.json").is_file():  # an adapter is nothing without its base model
                base = json.loads((path / "adapter_config.json").read_text()).get("base_model_name_or_path")
                found.append(["base", self._identity(base) if base and Path(base) != path else base])
            return found
        known = isinstance(value, list) and all(is_dataclass(item) for item in value)
        assert known, f"cannot tell the identity of a {type(value).__name__}"
        return sources.digest([asdict(item) for item in value])

    def publish(self, source: Path, name: str) -> Path:
        """Copy `source` (a file or folder of the memo) to the artifact `name`: no edit of it reaches the memo."""
        target = self.path(name)
        if target.is_dir():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copy2(source, target)
        return target

    def finish(self, **metrics) -> None:
        """The notebook's last word: writes metrics.json and says that every cell ran."""
        write_json(self.path("metrics.json"), metrics)
        if not self.live:
            write_json(self.path(FINISHED), True)
        print(f"{self.name}: done" + (f"; artifacts are in {self.directory}" if self.live else ""))


def begin(name: str, run: str = "default") -> Stage:
    """Start the stage `name` of the run `run`; under the pipeline, in the directory that it made."""
    directory = os.environ.get(DIRECTORY_VARIABLE)
    if directory:
        die_with_parent()
        stop_reloading()
        sources.freeze()
        return Stage(name, run, Path(directory), live=False)
    directory = OUTPUTS / run / f"{name}.live"
    directory.mkdir(parents=True, exist_ok=True)
    return Stage(name, run, directory, live=True)


def origin(stages: list[Path]) -> list[dict]:
    """Where each stage's figures come from, read from its manifest: commit, date, device, packages."""
    rows = []
    for directory in stages:
        manifest = json.loads((directory / "manifest.json").read_text())
        packages = manifest["packages"]
        rows.append(
            {
                "stage": manifest["stage"],
                "commit": (manifest["code"]["commit"] or "unknown")[:10] + ("+" if manifest["code"]["changed"] else ""),
                "started": manifest["started"],
                "ended": manifest["ended"],
                "device": json.loads((directory / "metrics.json").read_text()).get("device"),
                "packages": f"torch {packages['torch']}, transformers {packages['transformers']}",
            }
        )
    return rows


def stop_reloading() -> None:
    """Have a notebook's kernel keep the modules that it loaded: what runs is what its memo keys name.

    The notebooks load autoreload for those who edit lib/ beside JupyterLab.
    """
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is not None and "autoreload" in shell.magics_manager.magics["line"]:
        shell.run_line_magic("autoreload", "0")


def memory_for(config) -> int:
    """Bytes that a training of the config's model may need; 0 for a preset, which is small."""
    model = str(getattr(config, "model", ""))
    if is_place(model):
        return 6 * sum(file.stat().st_size for file in Path(model).rglob("*") if file.is_file())
    return 2**60 if "/" in model else 0  # of a hub's model nobody knows before it is there


def is_place(value: object) -> bool:
    """Is it the absolute path of a file or folder that is there?"""
    return isinstance(value, str) and value.startswith("/") and Path(value).exists()


def data_digest(artifacts: dict) -> str:
    """One hash over the artifacts of a manifest that another stage can compute with."""
    return sources.digest({name: a["sha256"] for name, a in artifacts.items() if Path(name).suffix not in FOR_EYES})


def from_root(path: str) -> str:
    """A user's path made absolute where it exists below the project's folder; anything else (a preset, "") as it is."""
    return str(ROOT / path) if path and (ROOT / path).exists() else path


def die_with_parent() -> None:
    """Have the kernel of Linux kill this process when the one that started it is killed; elsewhere, do nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1 = PR_SET_PDEATHSIG


def write_json(path: Path, value: object) -> None:
    """Write JSON at once or not at all."""
    partial = path.with_name(path.name + ".tmp")
    with open(partial, "w") as file:
        json.dump(value, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(directory: Path) -> None:
    """Flush every file below `directory` to disk, so that a rename that follows promises whole files."""
    for path in directory.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())


@contextmanager
def locked(path: Path):
    """Hold a file lock; wait, saying so, while another process holds it. The system frees it when a process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another process is at work on {path.stem}; waiting for it", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
