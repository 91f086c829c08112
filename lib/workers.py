"""Several calls at once, each in a process of its own with its share of the cores.

    workers.each({"a": (train, x), "b": (train, y)}, at_once=2)    # {"a": train(x), "b": train(y)}

A small model keeps one core busy and hardly a second one, so two trainings beside one another take little longer than
one. Knows nothing of what is done; functions, arguments and results must be picklable.
"""

import json
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import traceback
from multiprocessing import connection
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

from lib import progress, sources
from lib.errors import InputError

VARIABLE = "WORKBENCH_AT_ONCE"  # how many at most, whatever the machine has
LIBRARIES = ["torch", "transformers.trainer", "trl.trainer.sft_trainer"]  # slow to import; passed over where missing
MEMORY = 2 * 2**30  # bytes that the training of a small model may need
LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # of a container


# ----- how many
def cores() -> int:
    """How many threads work may use: OMP_NUM_THREADS, or what torch would take."""
    import torch

    return torch.get_num_threads()


def memory() -> int:
    """Bytes of the machine, or of the container."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in map(Path, LIMITS):
        text = file.read_text().strip() if file.is_file() else ""
        found += [int(text)] if text.isdecimal() else []
    return min(found)


def shares(calls: int, devices: list[str], needs: int = MEMORY) -> tuple[int, int]:
    """(how many of so many calls run at once, threads of each).

    One a core, and as many as there is memory for at `needs` bytes each; one, with all threads, where a device is a
    GPU. VARIABLE says otherwise.
    """
    from lib import models

    told = os.environ.get(VARIABLE, "")
    if told and not told.isdecimal():
        raise InputError(f"{VARIABLE} is a number of processes, not {told!r}.")
    most = int(told) if told else min(cores(), memory() // max(needs, MEMORY))
    cpu = all(models.pick_device(device).type == "cpu" for device in devices)
    n = max(1, min(calls, most)) if cpu else 1
    return n, max(1, cores() // n)


# ----- here
def each(calls: dict, at_once: int, threads: int = 1) -> dict:
    """{key: function(*arguments)} for {key: (function, *arguments)}, at_once of them at a time with so many threads.

    With at_once 1 they are called here, one after another. The first error is raised, and the others are stopped; a
    process that is killed is a RuntimeError.
    """
    if at_once == 1 or not calls:
        return {key: function(*arguments) for key, (function, *arguments) in calls.items()}
    waiting, found = list(calls), {}
    with tempfile.TemporaryDirectory() as folder, progress.Bar("at once", len(calls)) as bar:
        reports = [Path(folder) / str(i) for i in range(min(at_once, len(calls)))]
        processes, running = [], {}  # a worker's pipe -> (its process, its report, which call it is at)
        try:
            for report in reports:
                pipe = start(threads, report, processes)
                running[pipe] = processes[-1], report, give(processes[-1], pipe, calls, waiting)
            while running:
                for pipe in connection.wait(list(running), timeout=0.5):
                    process, report, key = running.pop(pipe)
                    found[key] = received(process, pipe)
                    bar.update()
                    if waiting:
                        running[pipe] = process, report, give(process, pipe, calls, waiting)
                bar.update(0, now=" | ".join(state(report) for _, report, _ in running.values()))
        finally:
            for process in processes:  # those that are done only wait for more
                process.kill()
            for process in processes:
                process.join()
    return {key: found[key] for key in calls}


def start(threads: int, report: Path, processes: list):
    """Start a process that waits for calls, put it with the others, and return the pipe to it.

    It is forked from a server that has imported LIBRARIES, once for all, and done nothing else: a fork of this process
    would inherit torch's threads, which it could not use. (macOS survives no fork at all.)
    """
    context = multiprocessing.get_context("spawn" if sys.platform == "darwin" else "forkserver")
    if sys.platform != "darwin":
        context.set_forkserver_preload(LIBRARIES)
    pipe, theirs = context.Pipe()
    process = context.Process(target=work, args=(theirs,), daemon=True)
    process.start()
    processes.append(process)
    theirs.close()
    environment = os.environ | {progress.FILE_VARIABLE: str(report), "OMP_NUM_THREADS": str(threads)}
    pipe.send((sources.frozen(), environment, threads))
    return pipe


def give(process, pipe, calls: dict, waiting: list):
    """Send the next call to a worker; which one it was."""
    key = waiting.pop(0)
    try:
        pipe.send(calls[key])
    except OSError:
        raise ended(process) from None
    return key


def received(process, pipe):
    """What a process sent: its result, or its error, raised here."""
    try:
        result, error = pipe.recv()
    except (EOFError, OSError):
        raise ended(process) from None
    if error is not None:
        raise error
    return result


def ended(process) -> RuntimeError:
    """The error of a process that is no more."""
    process.join()
    why = f" (out of memory? {VARIABLE}=1 runs one at a time)" if process.exitcode == -signal.SIGKILL else ""
    return RuntimeError(f"a process ended with {process.exitcode} before its work was done{why}")


def state(report: Path) -> str:
    """How far a process is, from the file in which lib.progress reports."""
    try:
        told = json.loads(report.read_text())
    except OSError:
        return "starting"
    return f"{told['label']} {told['done']}/{told['total']} {told['note']}".strip()


# ----- there
def work(pipe) -> None:
    """In the new process: for each call that arrives, send (result, None) or (None, the error, with where it was)."""
    threading.Thread(target=die_with_parent, daemon=True).start()
    snapshot, environment, threads = pipe.recv()
    sources.freeze(snapshot or None)  # what runs here is what its memo keys name
    os.environ.clear()
    os.environ.update(environment)

    import torch

    torch.set_num_threads(threads)
    while True:
        try:
            function, *arguments = pipe.recv()
            check_sources()
            pipe.send((function(*arguments), None))
        except BaseException as error:
            pipe.send((None, portable(error, traceback.format_exc())))


def check_sources() -> None:
    """Raise InputError where a module that was loaded here is not what the one that wanted the work had loaded."""
    files = {Path(m.__file__) for name, m in list(sys.modules.items()) if name.startswith("lib.") and m.__file__}
    if changed := sorted(file.name for file, text in sources.frozen().items() if file in files and differs(file, text)):
        raise InputError(f"{', '.join(changed)} changed in lib/ while this was running; run it again.")


def differs(file: Path, text: str) -> bool:
    """Is the file on disk another one now?"""
    return not file.is_file() or file.read_text() != text


def portable(error: BaseException, where: str) -> BaseException:
    """The error, with where it was; a RuntimeError of its words in place of one that cannot be sent."""
    try:
        ForkingPickler.loads(ForkingPickler.dumps(error))
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(where)
    return error


def die_with_parent() -> None:
    """Wait for the end of the process that wanted the work, in a thread of its own; then end this one, too."""
    multiprocessing.parent_process().join()
    os.kill(os.getpid(), signal.SIGKILL)
