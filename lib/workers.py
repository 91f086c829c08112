"""Several calls at once, each in a process of its own with its share of the cores.

    workers.each({"a": (train, x), "b": (train, y)}, at_once=2)    # {"a": train(x), "b": train(y)}

A small model keeps one core busy and hardly a second one, so two trainings beside one another take little longer than
one. Knows nothing of what is done; functions, arguments and results must be picklable.
"""

import json
import multiprocessing
import os
import tempfile
import traceback
from multiprocessing import connection
from pathlib import Path

from lib import progress

VARIABLE = "WORKBENCH_AT_ONCE"  # how many at most, whatever the machine has
THREADS = "OMP_NUM_THREADS"
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


def each(calls: dict, at_once: int, threads: int = 1) -> dict:
    """{key: function(*arguments)} for {key: (function, *arguments)}, at_once of them at a time with so many threads.

    With at_once 1 they are called here, one after another. The first error is raised, and the others are stopped; a
    process that is killed is a RuntimeError.
    """
    if at_once == 1:
        return {key: function(*arguments) for key, (function, *arguments) in calls.items()}
    waiting, found, running = list(calls), {}, {}
    with tempfile.TemporaryDirectory() as folder, progress.Bar("at once", len(calls)) as bar:
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    key = waiting.pop(0)
                    report = Path(folder) / str(len(waiting))
                    running[key] = (*start(calls[key], threads, report), report)
                ready = connection.wait([results for _, results, _ in running.values()], timeout=0.5)
                for key in [key for key, (_, results, _) in running.items() if results in ready]:
                    process, results, _ = running.pop(key)
                    found[key] = received(process, results)
                    bar.update()
                bar.update(0, now=" | ".join(state(report) for _, _, report in running.values()))
        finally:
            for process, _, _ in running.values():
                process.terminate()
                process.join()
    return {key: found[key] for key in calls}


def start(call: tuple, threads: int, report: Path) -> tuple:
    """(a process at work on `call`, the end of a pipe at which its result arrives)."""
    context = multiprocessing.get_context("spawn")  # a fork would inherit torch's threads, which it cannot use
    results, sender = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(sender, call, report), daemon=True)
    before = os.environ.get(THREADS)
    os.environ[THREADS] = str(threads)  # read by the new process as it starts
    try:
        process.start()
    finally:
        os.environ.pop(THREADS) if before is None else os.environ.update({THREADS: before})
    sender.close()
    return process, results


def work(sender, call: tuple, report: Path) -> None:
    """In the new process: call, and send (result, None) or (None, the error, with where it happened)."""
    from lib.stage import die_with_parent

    die_with_parent()
    os.environ[progress.FILE_VARIABLE] = str(report)
    function, *arguments = call
    try:
        result = function(*arguments), None
    except BaseException as error:
        error.add_note(traceback.format_exc())
        result = None, error
    sender.send(result)


def received(process, results):
    """What a process sent: its result, or its error, raised here."""
    try:
        result, error = results.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"a process ended with {process.exitcode} before its work was done") from None
    process.join()
    if error is not None:
        raise error
    return result


def state(report: Path) -> str:
    """How far a process is, from the file in which lib.progress reports."""
    try:
        told = json.loads(report.read_text())
    except OSError:
        return "starting"
    return f"{told['label']} {told['done']}/{told['total']} {told['note']}".strip()
