"""Kill -9 at a random moment, then run again: the result is the one of an undisturbed run, bit for bit."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.same_run import differences

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, "run_all.py", "--profile", "smoke"]


def children(pid: int) -> list[int]:
    """The direct children of a process."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == pid:
            found.append(int(stat.parent.name))
    return found


def start(outputs: Path) -> subprocess.Popen:
    environment = os.environ | {"WORKBENCH_OUTPUTS": str(outputs)}
    return subprocess.Popen(
        COMMAND, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(outputs: Path) -> None:
    process = start(outputs)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The smoke run left alone, and how many seconds it took."""
    outputs = tmp_path_factory.mktemp("undisturbed")
    started = time.monotonic()
    finish(outputs)
    return outputs / "smoke", time.monotonic() - started


def victim(process: subprocess.Popen, which: str) -> int | None:
    """The process to kill, once it is there."""
    papermill = next(iter(children(process.pid)), None)
    if which == "run_all":
        return process.pid
    return papermill if which == "papermill" or papermill is None else next(iter(children(papermill)), None)


@pytest.mark.slow
@pytest.mark.parametrize("trial", range(5))
@pytest.mark.parametrize("which", ["kernel", "papermill", "run_all"])
def test_a_killed_run_ends_as_an_undisturbed_one(which, trial, undisturbed, tmp_path):
    expected, seconds = undisturbed
    moment = random.Random(f"{which} {trial}").uniform(0.05, 0.9) * seconds
    process = start(tmp_path)
    time.sleep(moment)
    while process.poll() is None and (pid := victim(process, which)) is None:
        time.sleep(0.01)
    if process.poll() is None:
        os.kill(pid, signal.SIGKILL)
    process.communicate(timeout=120)
    finish(tmp_path)
    assert differences(expected, tmp_path / "smoke") == []
