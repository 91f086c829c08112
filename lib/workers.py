"""Several calls at once, each in a process of its own with its share of the cores.

    workers.each({"a": (train, x), "b": (train, y)}, at_once=2)    # {"a": train(x), "b": train(y)}

A small model keeps one core busy and hardly a second one, so two trainings beside one another take little longer than
one. Knows nothing of what is done; functions, arguments and results must be picklable.
"""

import json
import multiprocessing
import os
import signal
import tempfile
import threading
import traceback
from multiprocessing import connection
from pathlib import Path

from lib import progress

VARIABLE = "WORKBENCH_AT_ONCE"  # how many at most, whatever the machine has
LIBRARIES = ["torch", "transformers.trainer", "trl.trainer.sft_trainer"]  # slow to import; passed over where missing
MEMORY = 2 * 2**30  # bytes that a process may need: where there are fewer, fewer processes


def cores() -> int:
    """How many threads work may use: OMP_NUM_THREADS, or what torch would take."""
    import torch

    return torch.get_num_threads()


def at_once() -> int:
    """How many calls run at a time on this machine: one a core and one for each 2 GB of memory, or as VARIABLE says."""
    if os.environ.get(VARIABLE, "").isdecimal():
        return max(1, int(os.environ[VARIABLE]))
    return max(1, min(cores(), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // MEMORY))


def shares(calls: int, *devices: str) -> tuple[int, int]:
    """(how many of so many calls run at once, threads of each); one, with all threads, where a device is a GPU."""
    from lib import models

    cpu = all(models.pick_device(device).type == "cpu" for device in devices)
    n = max(1, min(calls, at_once())) if cpu else 1
    return n, max(1, cores() // n)


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
        running = {}  # a worker's pipe -> (its process, its report, which call it is at)
        try:
            for report in reports:
                process, pipe = start(threads, report)
                running[pipe] = process, report, give(pipe, calls, waiting)
            while running:
                for pipe in connection.wait(list(running), timeout=0.5):
                    process, report, key = running.pop(pipe)
                    found[key] = received(process, pipe)
                    bar.update()
                    if waiting:
                        running[pipe] = process, report, give(pipe, calls, waiting)
                    else:
                        pipe.send(None)
                        process.join()
                bar.update(0, now=" | ".join(state(report) for _, report, _ in running.values()))
        finally:
            for process, _, _ in running.values():
                process.terminate()
                process.join()
    return {key: found[key] for key in calls}


def give(pipe, calls: dict, waiting: list):
    """Send the next call to a worker; which one it was."""
    pipe.send(calls[waiting[0]])
    return waiting.pop(0)


def start(threads: int, report: Path) -> tuple:
    """(a process that waits for calls, the pipe to it).

    It is forked from a server that has imported LIBRARIES, once for all, and done nothing else: a fork of this process
    would inherit torch's threads, which it could not use.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LIBRARIES)
    pipe, theirs = context.Pipe()
    process = context.Process(target=work, args=(theirs, report, threads), daemon=True)
    process.start()
    theirs.close()
    return process, pipe


def work(pipe, report: Path, threads: int) -> None:
    """In the new process: for each call that arrives, send (result, None) or (None, the error, with where it was)."""
    import torch

    threading.Thread(target=die_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    os.environ |= {progress.FILE_VARIABLE: str(report), "OMP_NUM_THREADS": str(threads)}
    while (call := pipe.recv()) is not None:
        function, *arguments = call
        try:
            pipe.send((function(*arguments), None))
        except BaseException as error:
            error.add_note(traceback.format_exc())
            pipe.send((None, error))


def die_with_parent() -> None:
    """Wait for the end of the process that wanted the work, in a thread of its own; then end this one, too."""
    multiprocessing.parent_process().join()
    os.kill(os.getpid(), signal.SIGKILL)


def received(process, pipe):
    """What a process sent: its result, or its error, raised here."""
    try:
        result, error = pipe.recv()
    except (EOFError, ConnectionResetError):
        process.join()
        raise RuntimeError(f"a process ended with {process.exitcode} before its work was done") from None
    if error is not None:
        process.terminate()
        process.join()
        raise error
    return result


def state(report: Path) -> str:
    """How far a process is, from the file in which lib.progress reports."""
    try:
        told = json.loads(report.read_text())
    except OSError:
        return "starting"
    return f"{told['label']} {told['done']}/{told['total']} {told['note']}".strip()
