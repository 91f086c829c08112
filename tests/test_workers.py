"""Several calls at once: real processes, real kills."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lib import progress, stage, workers
from lib.errors import InputError
from tests.working import Config, fail, leave, meet, suicide, tell, told, work

ROOT = Path(__file__).parents[1]


def test_results_come_back_by_name_from_processes_of_their_own():
    calls = {name: (tell, name) for name in "cab"}
    found = workers.each(calls, at_once=2, threads=3)
    assert list(found) == list("cab")
    assert all(found[name]["name"] == name and found[name]["threads"] == 3 for name in "cab")
    assert len({found[name]["process"] for name in "cab"} | {os.getpid()}) == 3  # two processes share three calls


def test_one_at_a_time_stays_here():
    assert workers.each({"a": (tell, "a")}, at_once=1)["a"]["process"] == os.getpid()


def test_as_many_at_a_time_as_asked_for_and_no_more(tmp_path):
    found = workers.each({i: (meet, tmp_path, 2) for i in range(4)}, at_once=2)  # each waits for another one
    assert set(found.values()) == {2}


def test_an_error_keeps_its_kind_says_where_and_stops_the_others(tmp_path):
    began = time.monotonic()
    with pytest.raises(InputError, match="no such number") as caught:
        workers.each({"slow": (leave, tmp_path / "slow", 60), "bad": (fail, "no such number")}, at_once=2)
    assert time.monotonic() - began < 30
    assert "in fail" in "".join(caught.value.__notes__)
    assert not (tmp_path / "slow").exists()


def test_a_killed_process_is_an_error():
    with pytest.raises(RuntimeError, match="ended with -9"):
        workers.each({i: (suicide,) for i in range(2)}, at_once=2)


def test_results_larger_than_a_pipe_arrive():
    assert workers.each({i: (bytes, 10**7) for i in range(2)}, at_once=2)[1] == bytes(10**7)


def test_progress_of_all_stands_beside_the_count(tmp_path, monkeypatch):
    monkeypatch.setenv(progress.FILE_VARIABLE, str(tmp_path / "all.json"))
    workers.each({name: (told, tmp_path, name) for name in ("first", "second")}, at_once=2)
    seen = json.loads((tmp_path / "first.json").read_text())
    assert "first 3/5 loss 0.1" in seen["note"] and "second 3/5 loss 0.1" in seen["note"]
    assert json.loads((tmp_path / "all.json").read_text())["done"] == 2


def test_processes_die_with_the_one_that_started_them(tmp_path):
    code = (
        "from pathlib import Path; from lib import workers; from tests.working import leave; folder = Path('{}')\n"
        "workers.each({{i: (leave, folder / str(i), 5) for i in range(2)}}, at_once=2)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code.format(tmp_path)], cwd=ROOT)
    while not {tmp_path / "0.begun", tmp_path / "1.begun"} <= set(tmp_path.iterdir()):
        time.sleep(0.05)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    time.sleep(7)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.begun", "1.begun"]


# --- the memo of a stage ---
@pytest.fixture
def s(tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "OUTPUTS", tmp_path)
    monkeypatch.setenv(workers.VARIABLE, "2")
    return stage.begin("03_sft", "test")


def test_a_memo_of_several_is_the_memo_of_each(s, tmp_path):
    calls = {size: (work, Config(size, f"{tmp_path}/calls"), "base") for size in (1, 2, 3)}
    found = s.memo_all(calls)
    assert [(found[size] / "size.txt").read_text() for size in calls] == ["1", "2", "3"]
    assert found == {size: s.memo(*call) for size, call in calls.items()} == s.memo_all(calls)
    assert len((tmp_path / "calls.txt").read_text().split()) == 3  # each was done once


def test_threads_hang_on_all_calls_not_on_those_that_are_left(s, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "cores", lambda: 6)
    monkeypatch.setenv(workers.VARIABLE, "3")
    calls = {size: (work, Config(size, f"{tmp_path}/calls"), "base") for size in (1, 2, 3)}
    s.memo(*calls[1])
    s.memo(*calls[2])
    assert (s.memo_all(calls)[3] / "threads.txt").read_text() == "2"


def test_what_is_done_when_another_fails_is_done(s, tmp_path):
    calls = {size: (work, Config(size, f"{tmp_path}/calls"), "base") for size in (1, -1)}
    with pytest.raises(InputError, match="size -1"):
        s.memo_all(calls)
    s.memo(*calls[1])
    assert (tmp_path / "calls.txt").read_text().split().count("1") == 1


def test_how_many_at_once_can_be_said(monkeypatch):
    monkeypatch.setenv(workers.VARIABLE, "5")
    assert workers.at_once() == 5
    monkeypatch.setenv(workers.VARIABLE, "0")
    assert workers.at_once() == 1
    monkeypatch.delenv(workers.VARIABLE)
    assert 1 <= workers.at_once() <= workers.cores()
