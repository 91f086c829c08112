"""Cells that a notebook with bad intent would hold as the exercise 3.1: see `tests.hostile`.

Each defines make_labels(p, c, e), whose right value is [-100] * len(p) + c + [e], or does its harm before that.
"""

import platform
import textwrap

TIME, REFUSED = "^time ", "Permission denied|not permitted"
GOOD = "[-100] * len(p) + c + [e]"


def inside(body: str, value: str = "'escaped'") -> str:
    """A function that does this when it is called, and returns what is no list of labels."""
    return (
        "def make_labels(p, c, e):\n" + textwrap.indent(textwrap.dedent(body).strip(), "    ") + f"\n    return {value}"
    )


def before(body: str, more: str = "") -> str:
    """Code that runs when the cell does, and a function after it that is right, but for what is added to its value."""
    return textwrap.dedent(body).strip() + f"\ndef make_labels(p, c, e):\n    return {GOOD}{more}\n"


def read(path: str) -> str:
    """A function that gives away what it reads."""
    return inside(f"raise RuntimeError(open({path!r}, 'rb').read()[:200])")


def written(path: str) -> str:
    return inside(f"open({path!r}, 'a').write('owned')")


SYSCALL = "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
CALL = """def call(*a):
    assert libc.syscall(*a) == -1, f'escaped: {a}'
    raise OSError(ctypes.get_errno(), 'refused')"""


def called(*arguments: str) -> str:
    """A system call by its number on x86_64."""
    return SYSCALL + CALL + "\n" + inside(f"call({', '.join(arguments)})")


CALLS = """
fork 57
vfork 58
clone 56 17 0 0 0 0
clone3 435 0 0
ptrace 101 16 <GRADER> 0 0
process_vm_readv 310 <GRADER> 0 0 0 0 0
unshare 272 0x10000000
setns 308 0 0
chroot 161 b'/'
pivot_root 155 b'.' b'.'
mount 165 b'none' b'/tmp' b'tmpfs' 0 0
umount 166 b'/proc' 2
bpf 321 0 0 0
io_uring 425 8 0
keyctl 250 0 0
memfd 319 b'x' 0
userfaultfd 323 0
perf_event_open 298 0 0 0 0 0
x32_getpid 0x40000000+39
open_tree 428 -100 b'/' 1
pidfd_open 434 1 0
reboot 169 0 0 0
prctl_that_outlives_the_launcher 157 1 0
shmget 29 0 1<<30 0o1600
"""


REFUSED_CALL = "refused|not permitted|not implemented"
STOPPED = [
    ("endless loop", TIME, inside("while True: pass")),
    ("endless definition", TIME, before("while True: pass")),
    (
        "sleep, deaf to signals",
        TIME,
        before(
            "import signal, time\nfor s in range(1, 65):\n"
            "    try: signal.signal(s, signal.SIG_IGN)\n    except (OSError, ValueError): pass\ntime.sleep(10**6)"
        ),
    ),
    (
        "sleep, all signals blocked",
        TIME,
        before("import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\nsignal.pause()"),
    ),
    (
        "thread that keeps the lock",
        TIME,
        before(
            "import sys, threading\nsys.setswitchinterval(10**8)\n"
            "def spin():\n    while True: pass\nthreading.Thread(target=spin, daemon=True).start()"
        ),
    ),
    (
        "threads bomb",
        "^time |thread|memory",
        inside("import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(10**6,)).start()"),
    ),
    ("an endless iterator", "^time |memory", inside("", "iter(int, 1)")),
    ("an endless generator", "^time |memory", inside("", "(0 for _ in iter(int, 1))")),
    ("endless text", TIME, before("import time\nwhile True: print('x' * 10**6); time.sleep(0)")),
    ("endless errors", TIME, before("import os\nwhile True: os.write(2, b'y' * 10**6)")),
    ("endless message", TIME, before("class E(Exception):\n    def __str__(self):\n        while True: pass\nraise E")),
    ("endless end", TIME, before("class B:\n    def __del__(self):\n        while True: pass\nb = B()\ndel b")),
    ("hashing for ever", TIME, inside("hash(tuple([()] * 10**6)); 7 ** 7 ** 12")),
]
BOMBS = [
    ("memory: list", "memory", inside("x = [0]\nwhile True: x *= 2")),
    ("memory: bytearray", "memory", inside("bytearray(1 << 40)")),
    ("memory: many pieces", "memory", inside("x = []\nwhile True: x.append(bytearray(1 << 20))")),
    ("memory: before", "memory", before("x = b'x' * (1 << 33)")),
    ("memory: shared", "memory", inside("import mmap\nm = mmap.mmap(-1, 1 << 36)\nm.write(b'x' * 1000)")),
    ("memory: torch", "memory", inside("import torch\nx = torch.ones(1 << 36)")),
    ("recursion", "RecursionError", inside("return make_labels(p, c, e)")),
    (
        "recursion without limit",
        "crashed|memory|time",
        inside("import sys\nsys.setrecursionlimit(10**9)\nf = lambda n: f(n + 1)\nf(0)"),
    ),
    ("C recursion", "Recursion|crashed|depth", inside("x = []\nfor _ in range(10**6): x = [x]\nrepr(x)")),
    ("value too deep", "without end|Recursion", inside("x = []\nfor _ in range(10**5): x = [x]\nreturn x")),
    ("value in itself", "without end|Recursion", inside("x = []\nx.append(x)\nreturn x")),
    ("file descriptors", "Too many open files", inside("import os\nwhile True: os.dup(0)")),
    ("pipes", "Too many open files", inside("import os\nwhile True: os.pipe()")),
    ("one large file", "too large|No space", inside("f = open('x', 'wb')\nwhile True: f.write(bytes(1 << 20))")),
    (
        "many large files",
        "No space|too large",
        inside("for i in range(10**6):\n    with open(f'f{i}', 'wb') as f: f.write(bytes(1 << 20))"),
    ),
    (
        "many small files",
        "No space",
        inside("import os\nfor i in range(10**6): os.close(os.open(f'f{i}', os.O_CREAT | os.O_WRONLY))"),
    ),
    ("deep folders", "No space|too long|time", inside("import os\nwhile True:\n    os.mkdir('d')\n    os.chdir('d')")),
    ("much text", "NameError", before("print('z' * 10**7)\nundefined")),
    ("long message", "raised", before("raise ValueError('m' * 10**8)")),
    ("garbled message", "raised", before("raise ValueError('\\ud800\\x1b[2J\\0\\u202e')")),
]
READS = [
    (f"reads {path}", f"{REFUSED}|No such", read(path))
    for path in (
        "/etc/passwd",
        "/etc/shadow",
        "/etc/hostname",
        "<HOME>/.bashrc",
        "<CANARY>",
        "<ROOT>/notebooks/03_sft.ipynb",
        "<ROOT>/tests/hostile.py",
        "<ROOT>/README.md",
        "/proc/self/root/etc/passwd",
        "/proc/1/root/<CANARY>",
        "/proc/self/cwd/../../../../../../..<CANARY>",
        "/proc/<GRADER>/environ",
        "/proc/<GRADER>/mem",
        "/proc/<GRADER>/cmdline",
        "/proc/kcore",
        "/dev/mem",
        "/dev/tty",
        "/dev/shm/x",
    )
] + [
    ("reads the environment", "your function raised", inside("import os\nraise RuntimeError(dict(os.environ))")),
    (
        "reads all environments",
        "nothing",
        inside(
            "import os\nraise RuntimeError('nothing' + str([t for n in "
            "os.listdir('/proc') if n.isdigit() and 'secret-of' in (t := open(f'/proc/{n}/environ').read())]))"
        ),
    ),
    ("lists the outputs", REFUSED, inside("import os\nraise RuntimeError(os.listdir('<ROOT>/outputs'))")),
    ("lists home", REFUSED, inside("import os\nraise RuntimeError(os.listdir('<HOME>'))")),
    ("lists /", REFUSED, inside("import os\nraise RuntimeError(os.listdir('/'))")),
    ("walks up from its folder", REFUSED, inside("import os\nraise RuntimeError(os.listdir('..'))")),
    (
        "link to a secret",
        REFUSED,
        inside("import os\nos.symlink('<CANARY>', 'l')\nraise RuntimeError(open('l').read())"),
    ),
    (
        "hard link to a secret",
        f"{REFUSED}|cross-device",
        inside("import os\nos.link('<CANARY>', 'l')\nraise RuntimeError(open('l').read())"),
    ),
    (
        "maps a secret",
        REFUSED,
        inside(
            "import mmap, os\nf = os.open('<CANARY>', os.O_RDONLY)\n"
            "raise RuntimeError(mmap.mmap(f, 0, prot=mmap.PROT_READ)[:])"
        ),
    ),
    (
        "changes folder",
        REFUSED,
        inside("import os\nos.chdir('<ROOT>/notebooks')\nraise RuntimeError(open('03_sft.ipynb').read())"),
    ),
    ("the solution by import", "Permission|No module", inside("import tests.hostile\nraise RuntimeError('escaped')")),
    ("the secret as a module", "No module", inside("import importlib\nimportlib.import_module('secret_of_grader')")),
]
WRITES = [
    (f"writes {path}", f"{REFUSED}|Read-only", written(path))
    for path in (
        "<CANARY>",
        "<HOME>/.bashrc",
        "/tmp/owned",
        "<ROOT>/lib/lessons/check.py",
        "<ROOT>/owned",
        "/usr/owned",
        "/etc/cron.d/owned",
        "/proc/sys/kernel/core_pattern",
        "/proc/self/oom_score_adj",
        "/sys/kernel/owned",
    )
] + [
    (
        "writes to the packages",
        f"{REFUSED}|Read-only",
        inside("import pytest\n" + "open(pytest.__file__, 'a').write('#')"),
    ),
    ("deletes a file", f"{REFUSED}|Read-only", inside("import os\nos.remove('<CANARY>')")),
    ("moves a file", f"{REFUSED}|Read-only|cross-device", inside("import os\nos.rename('<CANARY>', 'here')")),
    ("truncates a file", f"{REFUSED}|Read-only", inside("import os\nos.truncate('<CANARY>', 0)")),
    ("changes a mode", f"{REFUSED}|Read-only", inside("import os\nos.chmod('<CANARY>', 0)")),
    ("changes an owner", f"{REFUSED}|Read-only", inside("import os\nos.chown('<CANARY>', 1, 1)")),
    ("changes times", f"{REFUSED}|Read-only", inside("import os\nos.utime('<CANARY>', (0, 0))")),
    ("removes lib", f"{REFUSED}|Read-only", inside("import shutil\nshutil.rmtree('<ROOT>/lib')")),
]
OUTSIDE = [
    ("TCP", REFUSED, inside("import socket\nsocket.create_connection(('127.0.0.1', <PORT>), 1).send(b'hello')")),
    (
        "UDP",
        REFUSED,
        inside("import socket\ns = socket.socket(type=socket.SOCK_DGRAM)\ns.sendto(b'hello', ('127.0.0.1', <PORT>))"),
    ),
    (
        "a socket without a name",
        REFUSED,
        inside("import socket\nsocket.socket(socket.AF_UNIX).connect('\\0/tmp/.X11-unix/X0')"),
    ),
    (
        "a socket with a name",
        REFUSED,
        inside("import socket\nsocket.socket(socket.AF_UNIX).connect('/var/run/docker.sock')"),
    ),
    (
        "a name server",
        "resolution|not known|error|denied",
        inside("import socket\nsocket.getaddrinfo('example.org', 80)"),
    ),
    (
        "the web",
        "error|denied|not permitted",
        inside("import urllib.request\nurllib.request.urlopen('http://127.0.0.1:<PORT>/')"),
    ),
    ("fork", REFUSED, inside("import os\nif os.fork() == 0: os._exit(0)")),
    ("fork bomb", REFUSED, inside("import os\nwhile True: os.fork()")),
    ("subprocess", REFUSED, inside("import subprocess\nsubprocess.run(['/bin/true'])")),
    (
        "shell",
        "do not hold|Permission|not permitted|crashed",
        inside("import os\nos.system('touch here; echo escaped')"),
    ),
    ("exec", REFUSED, inside("import os\nos.execv('/bin/sh', ['sh', '-c', 'echo escaped'])")),
    ("spawn", REFUSED, inside("import os\nos.posix_spawn('/bin/true', ['true'], {})")),
    (
        "multiprocessing",
        f"{REFUSED}|lesson",
        inside("import multiprocessing\nmultiprocessing.get_context('fork').Process(target=print).start()"),
    ),
    ("signal to all", "do not hold|killed|status", inside("import os\nos.kill(-1, 9)")),
    ("signal to the grader", "No such process|not permitted", inside("import os\nos.kill(<GRADER>, 9)")),
    ("signal to itself", "do not hold|killed by", inside("import os\nos.kill(os.getpid(), 9)")),
    (
        "signal to its parent",
        "do not hold|killed by|status|not permitted",
        inside("import os\nos.kill(os.getppid(), 9)"),
    ),
] + [
    (f"call of {name.replace('_', ' ')}", REFUSED_CALL, called(number, *arguments))
    for name, number, *arguments in map(str.split, CALLS.strip().splitlines())
    if platform.machine() == "x86_64"
]
ENDS = [
    ("ends at once", "^silent", before("import os\nos._exit(0)")),
    ("ends in the function", "^silent", inside("import os\nos._exit(0)")),
    ("ends with a status", "status 7", inside("import os\nos._exit(7)")),
    ("aborts", "crashed", inside("import os\nos.abort()")),
    ("reads address 0", "crashed.*SIGSEGV", inside("import ctypes\nctypes.string_at(0)")),
    ("sys.exit", "SystemExit", before("import sys\nsys.exit(0)")),
    ("SystemExit in the function", "SystemExit", inside("raise SystemExit(0)")),
    ("KeyboardInterrupt", "KeyboardInterrupt", inside("raise KeyboardInterrupt")),
    ("BaseException", "BaseException", inside("raise BaseException('x')")),
    ("GeneratorExit", "GeneratorExit", before("raise GeneratorExit")),
    (
        "an exception that cannot be shown",
        "cannot be shown|raised",
        inside("class E(BaseException):\n    def __str__(self): raise E\nraise E"),
    ),
    ("closes all", "silent|crashed|do not hold", inside("import os\nos.closerange(0, 64)")),
    ("no function", "defines no function", "x = 1"),
    ("a function that is none", "defines no function", "make_labels = 7"),
    ("a missing module", "ModuleNotFoundError", before("import thismodulewasneverwritten")),
    ("a syntax error", "SyntaxError", "def make_labels(:"),
    ("at exit", "do not hold", before("import atexit, os\natexit.register(os._exit, 3)", " + [0]")),
]
_ROWS = '\'{"rows": [["x", true, ""]], "tampered": false}\\n\''
LESSON = "from lib.lessons import check, lesson_03\n"
EVERYWHERE = "import os\nfor n in range(3, 64):\n    try:\n        {}\n    except OSError: pass\n"
REPLY = EVERYWHERE.format(f"os.write(n, ('x ' + {_ROWS}).encode())")
FORGED = [
    ("replies by itself", "forged", before(REPLY + "os._exit(0)")),
    ("replies and goes on", "forged", before(REPLY)),
    ("replies too much", "forged", before(EVERYWHERE.format("for _ in range(40): os.write(n, bytes(1 << 20))"))),
    ("prints a reply", "do not hold", inside(f"print({_ROWS})")),
    (
        "changes a check's code",
        "changed",
        LESSON + before("lesson_03.labels_end_with_eos.__code__ = (lambda labels: None).__code__", " + [0]"),
    ),
    (
        "changes the list of checks",
        "changed",
        LESSON + before("lesson_03.EXERCISES['3.1'].invariants[:] = [lambda f: None]", " + [0]"),
    ),
    (
        "changes the exercises",
        "changed",
        LESSON + before("lesson_03.EXERCISES['3.1'] = check.Exercise([lambda f: None], [])"),
    ),
    ("changes the data of a check", "changed", LESSON + before("lesson_03.EOS = -100; lesson_03.PROMPT[:] = []")),
    ("changes check", "changed", LESSON + before("check.check = lambda n, f: check.Result(n, [('x', True, '')])")),
    ("changes find", "changed", LESSON + before("check.find = lambda n: check.Exercise([lambda f: None], [])")),
    (
        "changes Result",
        "changed",
        LESSON + before("class R:\n    rows = [('x', True, '')]\ncheck.Result = lambda *a: R"),
    ),
    (
        "changes the worker",
        "changed",
        before("import __main__\n__main__.exercise = None\n__main__.changed = lambda b: []\n__main__.snapshot = dict"),
    ),
    ("changes len", "changed", before("import builtins\nbuiltins.len = lambda x: 6")),
    ("changes list", "changed|raised", before("import builtins\nbuiltins.list = lambda x: [-100] * 3 + [21, 22, 1]")),
    (
        "a builtin of the worker's own",
        "changed",
        before(
            "import __main__\n__main__.list = lambda x: [x[0], True, ''] if type(x) is tuple and len(x) == 3 else [*x]",
            " + [0]",
        ),
    ),
    (
        "a builtin of the lesson's own",
        "changed",
        LESSON + before("lesson_03.list = lambda x: [-100] * 3 + [21, 22, 1]", " + [0]"),
    ),
    (
        "a class put into a library",
        "changed|do not hold",
        "import torch\nclass S(str):\n    __eq__ = lambda *a: True\n    __hash__ = None\n"
        "S.__module__, torch.S = 'torch', S\n" + inside("", "S()"),
    ),
    (
        "a view of something equal to everything",
        "do not hold",
        "import types\nclass D(dict):\n    __eq__ = lambda *a: True\n    __iter__ = lambda s: iter([0] * 6)\n"
        + inside("", "types.MappingProxyType(D())"),
    ),
    ("changes AssertionError", "changed", before("import builtins\nbuiltins.AssertionError = KeyError")),
    (
        "changes json",
        "changed",
        before(
            "import json\njson.dumps = lambda *a, **k: 'x'\n"
            "json.JSONEncoder.encode = lambda *a: 'x'\njson.encoder.encode_basestring_ascii = str"
        ),
    ),
    ("changes os.write", "do not hold", before("import os\nos.write = lambda n, data: len(data)", " + [0]")),
    ("changes what is printed to", "do not hold", before("import sys\nsys.stdout = sys.stderr = None", " + [0]")),
    ("reloads the lesson", "changed", LESSON + before("import importlib\nimportlib.reload(lesson_03)")),
    (
        "takes the lesson's place",
        "changed",
        before("import sys, types\nsys.modules['lib.lessons.lesson_03'] = types.ModuleType('x')"),
    ),
    (
        "equal to everything",
        "do not hold",
        "class E(int):\n    __eq__ = lambda *a: True\n    __hash__ = None\n" + inside("", "[E(0)] * 6"),
    ),
    (
        "a list equal to everything",
        "do not hold",
        "class L(list):\n    __eq__ = lambda *a: True\n    __hash__ = None\n"
        "    __getitem__ = lambda s, k: s\n" + inside("", "L([0] * 6)"),
    ),
    ("its own class", "is wanted", "class A:\n    __iter__ = lambda s: iter([0] * 6)\n" + inside("", "A()")),
    (
        "looks for the nonce",
        "do not hold",
        inside(
            "import gc, json, os\n"
            "for o in gc.get_objects():\n    if isinstance(o, dict) and 'nonce' in o: os.write(5, o['nonce'].encode())"
        ),
    ),
    ("the strict mode", "do not hold", before("import os\nos.environ['WORKBENCH_STRICT'] = '1'", " + [0]")),
    ("a trace", "do not hold|changed", before("import sys\nsys.settrace(lambda *a: None)", " + [0]")),
]
EXERCISES = [*STOPPED, *BOMBS, *READS, *WRITES, *OUTSIDE, *ENDS, *FORGED]
