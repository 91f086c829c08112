"""Run one job of `lib.lessons.worker` where it can harm nothing: other people's code and other people's models.

A job is a dict and so is the reply. The job goes in on stdin; the reply comes on a pipe of its own, behind a word that
only this run knows; stdout and stderr are kept, up to a limit. Three processes take part: this one, which watches the
clock; a launcher, which makes new namespaces; and in them, as the first process there, the worker, which confines
itself (`lib.lessons.confine`) before it reads its job. What it can read: the Python installation, lib/ and `readable`.
What it can write: a small file system of its own in memory. No network, no new process, no environment but its own.
"""

import functools
import json
import os
import re
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from lib.errors import InputError
from lib.lessons import confine, worker

ROOT = Path(__file__).resolve().parents[2]
REPLY_MB = 16  # the longest reply
GRACE = 5.0  # seconds for a killed process to be gone
SYSTEM = ["/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/proc"]
SYSTEM += ["/sys/devices/system/cpu", "/sys/devices/system/node", "/dev/urandom", "/dev/random"]
DEVICES = ["/dev/null", "/dev/zero"]
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


@dataclass(frozen=True)
class Limits:
    """What a job may use: wall time, memory, scratch space (also the largest file), kept output, open files."""

    seconds: float = 60.0
    memory_mb: int = 6144
    scratch_mb: int = 64
    output_kb: int = 64
    files: int = 256


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    value    the worker's reply, None where there is none
    verdict  "done": it replied; "refused": it replied that the input is bad; "memory", "time": it went over a limit;
             "crashed": it died; "silent": it ended without a reply; "forged": something else came in the reply's place
    reason   one plain sentence for a report
    output   what it printed, at most output_kb of it, without control characters
    seconds  of wall time
    """

    value: dict | None
    verdict: str
    reason: str
    output: str
    seconds: float


@functools.cache
def missing() -> str | None:
    """Why this machine cannot isolate other people's code, in one sentence; None where it can. Tried once."""
    reason = confine.supported()
    if reason is None:
        outcome = _run({"kind": "probe"}, Limits(seconds=30), [], "cpu", False)
        reason = None if outcome.verdict == "done" else outcome.reason
    return reason and f"This machine cannot isolate other people's code: {reason.rstrip('.')}."


def run(
    job: dict,
    limits: Limits = Limits(),
    readable: Sequence[Path] = (),
    device: str = "cpu",
    trusted: bool = False,
) -> Outcome:
    """Run a job of `lib.lessons.worker` isolated, for at most limits.seconds; whatever it does, there is an Outcome.

    readable  files and directories that it may read besides Python and lib/
    device    "cpu"; any other lets it use the NVIDIA devices, and memory is then watched, not limited
    trusted   no isolation, only limits: for one's own work
    Raises InputError where the machine cannot isolate and trusted is False.
    """
    if not trusted and (reason := missing()):
        raise InputError(f"{reason} For work of your own, which you trust, say --trust.")
    return _run(job, limits, readable, device, trusted)


def environment(scratch: str, device: str) -> dict[str, str]:
    """The worker's whole environment: nothing of ours is in it but where models lie."""
    cache = os.environ.get("HF_HUB_CACHE") or os.path.join(
        os.environ.get("HF_HOME") or os.path.expanduser("~/.cache/huggingface"), "hub"
    )
    places = ("HOME", "TMPDIR", "NUMBA_CACHE_DIR", "MPLCONFIGDIR", "HF_HOME", "XDG_CACHE_HOME")
    return {
        **{name: scratch for name in places},
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": str(ROOT),
        "LANG": "C.UTF-8",
        "USER": "worker",
        "LOGNAME": "worker",
        # two jobs run at once (lib.lessons.grade); with more threads than cores they would wait for one another
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // 2))),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_CACHE": cache,
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONDONTWRITEBYTECODE": "1",
        "WORKBENCH_PROGRESS": f"{scratch}/progress",
    } | ({} if device == "cpu" else {"CUDA_CACHE_PATH": scratch})


def _run(job, limits: Limits, readable, device: str, trusted: bool) -> Outcome:
    began = time.monotonic()
    nonce = secrets.token_hex(16)
    sent = json.dumps({"nonce": nonce, "job": job}).encode() + b"\n"
    scratch = tempfile.mkdtemp(prefix="workbench-")
    pipes = [os.pipe(), os.pipe()]  # reply, control
    (reply, reply_end), (control, control_end) = pipes
    nvidia = [] if device == "cpu" else [*map(str, Path("/dev").glob("nvidia*"))]
    read = [sys.prefix, sys.base_prefix, str(ROOT / "lib"), *SYSTEM, *(str(Path(p).resolve()) for p in readable)]
    setting = {
        "reply": reply_end,
        "control": control_end,
        "trusted": trusted,
        "scratch": scratch,
        "read": read + ([] if device == "cpu" else ["/sys/bus/pci", "/sys/devices", "/sys/module"]),
        "write": DEVICES + nvidia,
        "gpu": device != "cpu",
        "limits": asdict(limits),
    }
    process = None
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-s", "-B", "-u", "-m", "lib.lessons.worker", json.dumps(setting)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=(reply_end, control_end),
            start_new_session=True,
            env=environment(scratch, device),
            cwd="/",
        )
        os.close(reply_end), os.close(control_end)
        watched = _watch(process, reply, control, sent, limits, began + limits.seconds)
    finally:
        for end in (reply, control) if process else (reply, reply_end, control, control_end):
            os.close(end)
        if process:
            _end(process)
        shutil.rmtree(scratch, ignore_errors=True)
    return _judge(job, nonce, limits, *watched, time.monotonic() - began)


def _end(process: subprocess.Popen) -> None:
    """Kill the launcher, which takes the worker along, close its pipes and wait for it."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    for stream in (process.stdin, process.stdout):
        with suppress(OSError):
            stream.close()
    with suppress(subprocess.TimeoutExpired):
        process.wait(GRACE)


def _watch(process, reply: int, control: int, sent: bytes, limits: Limits, deadline: float):
    """(what came on each pipe, why it was killed or None): feeds the job, reads bounded amounts, keeps the time."""
    stdin, stdout = process.stdin.fileno(), process.stdout.fileno()
    most = {reply: REPLY_MB << 20, stdout: limits.output_kb << 10, control: 1 << 16}
    found = {end: bytearray() for end in most}
    for end in (*most, stdin):
        os.set_blocking(end, False)
    open_ends, feeding, killed, looked = set(most), True, None, 0.0
    while control in open_ends:
        now = time.monotonic()
        if killed is None and now >= deadline:
            killed, deadline = "time", now + GRACE
            _kill(process, found[control])
        elif killed is None and now > looked + 0.1:
            looked = now
            if _resident_mb(found[control]) > limits.memory_mb:
                killed = "memory"
            elif len(found[reply]) > most[reply]:
                killed = "flood"
            if killed:
                deadline = now + GRACE
                _kill(process, found[control])
        elif killed and now >= deadline:
            break
        readable, writable, _ = select.select(
            open_ends, [stdin] if feeding else [], [], max(0.0, min(0.1, deadline - now))
        )
        if writable:
            try:
                sent = sent[os.write(stdin, sent[:65536]) :]
            except BlockingIOError:
                pass
            except OSError:
                sent = b""
            if not sent:
                feeding = False
                with suppress(OSError):
                    process.stdin.close()
        for end in readable:
            _read(end, most[end], found[end], open_ends)
    for end in [end for end in open_ends if end != control]:  # what is left in the pipes of a process that has ended
        for _ in range(1 + (most[end] >> 16)):
            if end in open_ends and not _read(end, most[end], found[end], open_ends):
                break
    return bytes(found[reply]), bytes(found[stdout]), bytes(found[control]), killed


def _read(end: int, most: int, found: bytearray, open_ends: set) -> bool:
    """Read once from a pipe and keep what there is room for, one byte more so that too much is seen."""
    try:
        data = os.read(end, 65536)
    except BlockingIOError:
        return False
    if not data:
        open_ends.discard(end)
    found += data[: most + 1 - len(found)]
    return bool(data)


def _lines(control: bytes) -> dict:
    """What the launcher said: {"pid"} of the worker, {"ready"}, {"error"}, {"status"}: one JSON object a line."""
    said = {}
    for line in bytes(control).split(b"\n")[:-1]:
        with suppress(ValueError):
            said |= json.loads(line)
    return said


def _resident_mb(control: bytes) -> float:
    """Memory of the worker in use; 0 where that cannot be told."""
    try:
        pages = Path(f"/proc/{_lines(control)['pid']}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except (OSError, KeyError, ValueError, IndexError):
        return 0.0


def _kill(process, control: bytes) -> None:
    """Kill the worker: the first process of its namespace, with which all of it ends; else the launcher."""
    pid = _lines(control).get("pid")
    if pid and process.poll() is None:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    else:
        process.kill()


def printable(data: bytes, kb: int) -> str:
    """Bytes as text of at most so many KB, without control characters but newline and tab; says where it was cut."""
    text = data[: kb << 10].decode("utf-8", "replace").replace("\r\n", "\n")
    return CONTROL.sub("\ufffd", text) + ("\n[more was printed]" if len(data) > kb << 10 else "")


def _judge(job, nonce: str, limits: Limits, reply: bytes, output: bytes, control: bytes, killed, seconds) -> Outcome:
    """The Outcome of what was seen."""
    said, text = _lines(control), printable(output, limits.output_kb)

    def outcome(verdict: str, reason: str, value: dict | None = None) -> Outcome:
        return Outcome(value, verdict, " ".join(CONTROL.sub("\ufffd", reason).split()), text, seconds)

    if killed == "time":
        return outcome("time", f"it was stopped after {limits.seconds:g} seconds, the time it had")
    if killed == "memory":
        return outcome("memory", f"it was stopped when it used more than {limits.memory_mb} MB of memory")
    if "error" in said:
        return outcome("crashed", f"its sandbox could not be made ({said['error']})")
    if reply:
        return _replied(job, nonce, reply, outcome)
    status = said.get("status")
    if status is None:
        return outcome("crashed", f"its launcher died: {_last(text) or 'without a word'}")
    if any(word in text[-2000:] for word in worker.LACKING):
        return outcome("memory", f"it needed more than the {limits.memory_mb} MB of memory it had")
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number == signal.SIGXCPU:
            return outcome("time", "it was stopped when it had used up its processor time")
        name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
        return outcome("crashed", f"its interpreter was killed by {name}")
    code = os.WEXITSTATUS(status)
    last = f" (it last printed: {_last(text)})" if _last(text) else ""
    if code:
        return outcome("crashed", f"its interpreter ended with status {code} and without a reply{last}")
    return outcome("silent", f"its interpreter ended by itself, without a reply{last}")


def _last(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1][:200]


def _replied(job, nonce: str, reply: bytes, outcome) -> Outcome:
    """The Outcome of a reply, which is one line that begins with the nonce and holds a reply to this job."""
    word, _, line = reply.partition(b" ")
    if len(reply) > REPLY_MB << 20:
        return outcome("forged", f"more than {REPLY_MB} MB came as its reply")
    if not secrets.compare_digest(word, nonce.encode()):
        return outcome("forged", "what came as its reply was not written by the checks")
    if line.count(b"\n") != 1 or not line.endswith(b"\n"):
        return outcome("forged", "its reply was torn, or more than one came")
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return outcome("forged", "its reply cannot be read")
    if not worker.is_reply(job, value):
        return outcome("forged", "its reply is not one to this job")
    note = str(value.pop("note", "")) or "it replied"
    if value.pop("memory", False):
        return outcome("memory", f"it needed more memory than it had: {note}", value)
    return outcome("refused" if "error" in value else "done", note, value)
