"""What test_workers calls in other processes."""

import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from lib.errors import InputError
from lib.progress import FILE_VARIABLE, Bar


@dataclass(frozen=True)
class Config:
    size: int
    log: str  # what a file begins with in which calls are counted


def work(config, base, out_dir):
    if config.size < 0:
        time.sleep(2)
        raise InputError(f"size {config.size}")
    with open(f"{config.log}.txt", "a") as file:
        file.write(f"{config.size}\n")
    (out_dir / "size.txt").write_text(str(config.size))
    (out_dir / "threads.txt").write_text(str(torch.get_num_threads()))


def tell(name):
    return {"name": name, "process": os.getpid(), "threads": torch.get_num_threads()}


def fail(message, folder):
    while not list(folder.glob("here.*")):
        time.sleep(0.05)
    raise InputError(message)


class Unsendable(Exception):
    def __init__(self, *, story):
        super().__init__(f"it is a {story}")


def fail_unsendably():
    raise Unsendable(story="long story")


def stay(folder, seconds):
    (folder / f"here.{os.getpid()}").touch()
    time.sleep(seconds)


def suicide():
    os.kill(os.getpid(), signal.SIGKILL)


def leave(path, seconds):
    """Leave a file at once, and another one so much later."""
    Path(f"{path}.begun").touch()
    time.sleep(seconds)
    path.touch()


def meet(folder, wanted):
    """How many calls were at work at once; waits until so many were."""
    own, most = folder / f"{os.getpid()}.here", 0
    own.touch()
    for _ in range(100):
        most = max(most, len(list(folder.glob("*.here"))))
        if most >= wanted:
            break
        time.sleep(0.1)
    time.sleep(0.5)
    most = max(most, len(list(folder.glob("*.here"))))
    own.unlink()
    return most


def told(folder, name):
    """Report progress; the first waits until it sees both reports in the file of the one who waits, and keeps it."""
    with Bar(name, 5) as bar:
        bar.update(3, loss="0.1")
        bar._write()
        for _ in range(100):
            seen = json.loads((folder / "all.json").read_text())
            if seen["note"].count("3/5") == 2:
                (folder / f"{name}.json").write_text(json.dumps(seen))
                break
            time.sleep(0.1)
    return os.environ[FILE_VARIABLE]
