"""Several calls at once: real processes, real kills."""

import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

from lib import progress, sft, stage, workers
from lib.errors import InputError
from tests.working import Config, fail, fail_unsendably, meet, stay, suicide, tell, told, work

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


def alive(folder):
    """The processes that said they were there and still are."""
    names = [int(path.name.partition(".")[2]) for path in folder.glob("here.*")]
    return [n for n in names if Path(f"/proc/{n}").exists() and "Z (" not in Path(f"/proc/{n}/status").read_text()]


def test_an_error_keeps_its_kind_says_where_and_stops_the_others(tmp_path):
    began = time.monotonic()
    with pytest.raises(InputError, match="no such number") as caught:
        workers.each({"slow": (stay, tmp_path, 60), "bad": (fail, "no such number", tmp_path)}, at_once=2)
    assert time.monotonic() - began < 40
    assert "in fail" in "".join(caught.value.__notes__)
    assert list(tmp_path.glob("here.*")) and not alive(tmp_path)


def test_a_killed_process_is_an_error():
    with pytest.raises(RuntimeError, match="ended with -9.*WORKBENCH_AT_ONCE"):
        workers.each({i: (suicide,) for i in range(2)}, at_once=2)


def test_an_error_that_cannot_be_sent_is_told_in_words():
    with pytest.raises(RuntimeError, match="Unsendable: it is a long story"):
        workers.each({i: (fail_unsendably,) for i in range(2)}, at_once=2)


def test_a_call_that_cannot_be_read_there_is_an_error_that_says_so(tmp_path, monkeypatch):
    """A function that only this process knows, as one of a notebook's cell would be."""
    here = types.ModuleType("only_here")
    exec("def function(): return 1", here.__dict__)
    monkeypatch.setitem(sys.modules, "only_here", here)
    with pytest.raises(ModuleNotFoundError, match="only_here"):
        workers.each({i: (here.function,) for i in range(2)}, at_once=2)


def test_an_interrupt_leaves_no_process_behind(tmp_path):
    """As Jupyter interrupts: every process of the group is told at once."""
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)  # a test in the background has none\n"
        "from pathlib import Path; from lib import workers; from tests.working import stay\n"
        f"workers.each({{i: (stay, Path({str(tmp_path)!r}), 60) for i in range(2)}}, at_once=2)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, start_new_session=True, stderr=subprocess.PIPE)
    while len(list(tmp_path.glob("here.*"))) < 2:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    assert b"KeyboardInterrupt" in process.communicate(timeout=30)[1]
    assert not alive(tmp_path)


def test_workers_have_the_environment_of_now(monkeypatch):
    for value in ("one", "two"):
        monkeypatch.setenv("WORKBENCH_TEST", value)
        found = workers.each({i: (os.getenv, "WORKBENCH_TEST") for i in range(2)}, at_once=2)
        assert found == {0: value, 1: value}


def test_code_that_changed_since_is_refused(tmp_path):
    """A run knows the sources it began with; a worker that would load others says so instead of working."""
    code = (
        "from pathlib import Path; from lib import sources, workers; from tests.working import tell\n"
        "sources.freeze()\n"
        "file = sources.LIB / 'errors.py'\n"
        "sources._frozen[file] = sources._frozen[file] + 'x = 1'\n"
        "workers.each({i: (tell, '') for i in range(2)}, at_once=2)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "errors.py changed in lib/ while this was running; run it again." in done.stderr


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


def test_how_many_run_at_once(monkeypatch):
    monkeypatch.setattr(workers, "cores", lambda: 8)
    monkeypatch.setattr(workers, "memory", lambda: 12 * 2**30)
    monkeypatch.delenv(workers.VARIABLE, raising=False)
    assert workers.shares(3, ["cpu"]) == (3, 2)
    assert workers.shares(20, ["cpu"]) == (6, 1), "2 GB each"
    assert workers.shares(3, ["cpu"], needs=7 * 2**30) == (1, 8), "no room for two"
    assert workers.shares(0, []) == (1, 8)
    monkeypatch.setenv(workers.VARIABLE, "2")
    assert workers.shares(20, ["cpu"]) == (2, 4)
    monkeypatch.setenv(workers.VARIABLE, "many")
    with pytest.raises(InputError, match="WORKBENCH_AT_ONCE is a number"):
        workers.shares(2, ["cpu"])


def test_the_memory_of_a_container_counts(tmp_path, monkeypatch):
    whole = workers.memory()
    (tmp_path / "max").write_text("max\n")
    (tmp_path / "some").write_text("1000000\n")
    monkeypatch.setattr(workers, "LIMITS", (str(tmp_path / "max"), str(tmp_path / "none")))
    assert workers.memory() >= whole, "no limit is none"
    monkeypatch.setattr(workers, "LIMITS", (str(tmp_path / "max"), str(tmp_path / "some")))
    assert workers.memory() == 1000000


def test_a_model_of_unknown_size_trains_alone(tmp_path):
    (tmp_path / "weights").write_bytes(bytes(1000))
    assert stage.memory_for(sft.Config(model="llama_tiny")) == 0
    assert stage.memory_for(sft.Config(model=str(tmp_path))) == 6000
    assert stage.memory_for(sft.Config(model="somebody/large")) > 2**50
