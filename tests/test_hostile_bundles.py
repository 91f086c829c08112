"""More than a hundred hand-ins that mean harm are met: each is refused or stopped, and nothing outside is touched."""

import os
import re
import socket
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lib.errors import InputError
from lib.lessons import archive, sandbox
from tests import hostile

isolated = pytest.mark.skipif(bool(sandbox.missing()), reason=str(sandbox.missing()))
LIMIT_MB = 2.0


class Listener:
    """A TCP and a UDP socket of one port on this machine, which should hear nothing."""

    def __init__(self):
        self.tcp, self.udp = socket.socket(), socket.socket(type=socket.SOCK_DGRAM)
        self.tcp.bind(("127.0.0.1", 0))
        self.port = self.tcp.getsockname()[1]
        self.udp.bind(("127.0.0.1", self.port))
        self.tcp.listen()
        self.tcp.setblocking(False)
        self.udp.setblocking(False)

    def heard(self) -> list[str]:
        found = []
        for name, listen in (("TCP", self.tcp.accept), ("UDP", lambda: self.udp.recv(99))):
            try:
                listen()
                found.append(name)
            except BlockingIOError:
                pass
        return found


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def left_over(mark: str) -> list[str]:
    """Command lines of processes that name this place: the sandboxes of these tests."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found += (
                [text] if mark in (text := path.read_text(errors="replace")) and "lib.lessons.worker" in text else []
            )
        except OSError:
            pass
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(folder, listener, bundles)."""
    folder, listener = tmp_path_factory.mktemp("hostile"), Listener()
    return folder, listener, hostile.bundles(folder, listener.port)


def of(made, kind):
    return [(name, path, said) for name, path, said in made[2] if name.startswith(kind)]


def test_there_are_many_and_all_differ(made):
    names, contents = [name for name, _, _ in made[2]], {path.read_bytes() for _, path, _ in made[2]}
    print(len(names), "hostile bundles")
    assert len(names) == len(set(names)) == len(contents) >= 100
    assert min(len(of(made, kind)) for kind in ("archive", "exercise")) >= 50


def test_archives_are_refused_and_leave_nothing(made, tmp_path):
    before, wrong = tree(made[0]), []
    for number, (name, path, said) in enumerate(of(made, "archive")):
        into = tmp_path / str(number) / "deep" / "into"
        try:
            wrong.append(f"{name}: unpacked {archive.unpack(path, into, LIMIT_MB)}")
        except InputError as error:
            if not re.search(said, str(error)) or "\n" in str(error):
                wrong.append(f"{name}: {error}")
        wrong += [f"{name}: left {found}" for found in tree(tmp_path)]
        wrong += [f"{name}: left a folder" for _ in into.iterdir()]
    assert not wrong, "\n".join(wrong)
    assert tree(made[0]) == before


def test_a_good_bundle_is_none_of_these(tmp_path):
    (tmp_path / "good.zip").write_bytes(hostile.PLAIN)
    assert archive.unpack(tmp_path / "good.zip", tmp_path / "into", LIMIT_MB) == [hostile.LESSON]
    assert (tmp_path / "into" / hostile.LESSON).read_text() == hostile.GOOD


def test_notebooks_that_are_none_are_refused(made, tmp_path):
    wrong = []
    for number, (name, path, said) in enumerate(of(made, "notebook")):
        archive.unpack(path, into := tmp_path / str(number), LIMIT_MB)
        try:
            wrong.append(f"{name}: read {len(archive.notebook(into / hostile.LESSON))} cells")
        except InputError as error:
            if not re.search(said, str(error)) or hostile.LESSON not in str(error) or "\n" in str(error):
                wrong.append(f"{name}: {error}")
    assert not wrong, "\n".join(wrong)


def job(path: Path, into: Path) -> dict:
    """The job of the exercise in a bundle, as it is handed in."""
    archive.unpack(path, into)
    cells = [source for kind, source, tags in archive.notebook(into / hostile.LESSON) if "exercise" in tags]
    return {"kind": "exercise", "number": "3.1", "function": "make_labels", "imports": "", "cells": cells}


def run(name: str, path: Path, said: str, into: Path) -> list[str]:
    """What is wrong with how the sandbox met an exercise; one sentence each."""
    stopped = said.startswith("^time")
    limits = sandbox.Limits(seconds=2.5 if stopped else 20, memory_mb=1200, scratch_mb=8, output_kb=16, files=64)
    outcome = sandbox.run(job(path, into), limits)
    value = outcome.value or {}
    passed = all(ok for _, ok, _ in value.get("rows", [["", False, ""]]))
    wrong = []
    if outcome.verdict == "done" and passed and not value.get("tampered"):
        wrong.append("it passed")
    if not re.search(said, f"{outcome.verdict} {outcome.reason}"):
        wrong.append(f"said {outcome.verdict}: {outcome.reason}")
    if outcome.seconds > limits.seconds + 3:
        wrong.append(f"took {outcome.seconds:.1f} s")
    if not outcome.verdict or not outcome.reason or "\n" in outcome.reason:
        wrong.append(f"no sentence: {outcome.reason!r}")
    if len(outcome.output.encode()) > (16 << 10) * 3 + 100 or hostile.SECRET in repr(outcome):
        wrong.append("too much was printed, or the secret")
    if "escaped" in repr(outcome):
        wrong.append(f"it got out: {outcome}")
    return [f"{name}: {sentence}" for sentence in wrong]


@isolated
def test_exercises_are_stopped_and_touch_nothing(made, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADER_SECRET", hostile.SECRET)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    folder, listener, _ = made
    watched = [Path("/etc"), hostile.ROOT, hostile.ROOT / "lib" / "lessons", Path.home(), Path("/usr")]
    before, names = tree(folder), {place: set(os.listdir(place)) for place in watched}
    checks = tree(hostile.ROOT / "lib" / "lessons")
    exercises = sorted(of(made, "exercise"), key=lambda item: not item[2].startswith("^time"))
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(run, *item, tmp_path / f"into{i}") for i, item in enumerate(exercises)]
        wrong = [sentence for done in jobs for sentence in done.result()]
    assert not wrong, "\n".join(wrong)
    assert tree(folder) == before and (folder / "canary").stat().st_mode & 0o600 == 0o600
    assert not any("owned" in name for place in watched for name in set(os.listdir(place)) - names[place])
    assert not Path("/tmp/owned").exists()
    changed = {path for path, data in tree(hostile.ROOT / "lib" / "lessons").items() if b"owned" in data} - set(checks)
    assert not changed
    assert listener.heard() == []
    assert left_over(str(tmp_path)) == []
    assert not list(tmp_path.glob("workbench-*")), "a scratch directory was left"
