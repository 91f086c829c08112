"""The sandbox in ordinary use: right solutions pass in it as they do outside, models answer, limits are told."""

import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from lib.errors import InputError
from lib.lessons import check, sandbox, worker
from lib.lessons.sandbox import Limits

ROOT = Path(__file__).parents[1]
isolated = pytest.mark.skipif(bool(sandbox.missing()), reason=str(sandbox.missing()))
SHORT = Limits(seconds=60, memory_mb=4096)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("WORKBENCH_STRICT", raising=False)


def lesson(number: str) -> tuple[str, str]:
    """(the function's name, its cell) of an exercise in the committed notebooks."""
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"]]
        for source, following in zip(cells, cells[1:], strict=False):
            if found := re.search(rf'check\("{re.escape(number)}", (\w+)\)', following):
                return found[1], source
    raise LookupError(number)


def exercise(number: str, *cells: str, name: str = "", **more) -> dict:
    job = {"kind": "exercise", "number": number, "function": name or lesson(number)[0], "cells": list(cells)}
    return job | {"imports": "from lib import sft\nfrom lib.lessons.check import check, hint", "variables": {}} | more


def stub(source: str) -> str:
    return re.sub(r"### BEGIN SOLUTION.*### END SOLUTION", "raise NotImplementedError", source, flags=re.S)


# ----- exercises
@isolated
@pytest.mark.parametrize("number", ["1.1", "2.2", "3.1", "3.2", "6.2"])
def test_a_right_solution_has_the_same_rows_as_outside(number):
    name, source = lesson(number)
    imports = "import math\nfrom lib.dot import samplers as sampling"
    space = {}
    exec(f"{imports}\n{source}", space)
    outside = check.check(number, space[name])
    outcome = sandbox.run(exercise(number, source, imports=imports), SHORT)
    assert outcome.verdict == "done" and outcome.value["tampered"] is False, outcome
    assert outcome.value["rows"] == [list(row) for row in outside.rows] and outside.passed
    assert outcome.reason == "every invariant holds" and outcome.output == ""


@isolated
@pytest.mark.parametrize("number", ["2.2", "3.1"])
def test_a_stub_is_said_to_be_not_implemented_yet(number):
    outcome = sandbox.run(exercise(number, stub(lesson(number)[1])), SHORT)
    assert outcome.verdict == "done" and outcome.value["tampered"] is False
    assert outcome.value["rows"] == [["your function", False, "not implemented yet"]]


@isolated
def test_a_wrong_solution_breaks_the_invariant_that_it_breaks_outside():
    def labels(prompt, completion, eos):
        return [-100] * len(prompt) + completion + [-100]

    source = "def labels(prompt, completion, eos):\n    return [-100] * len(prompt) + completion + [-100]"
    outcome = sandbox.run(exercise("3.1", source, name="labels"), SHORT)
    assert outcome.value["rows"] == [list(row) for row in check.check("3.1", labels).rows]
    assert [ok for _, ok, _ in outcome.value["rows"]] == [True, True, False, True]
    assert outcome.reason.startswith("1 of 4 do not hold: The completion and EOS are learned")


@isolated
def test_cells_share_names_and_what_they_print_is_kept():
    cells = [
        "fill = -100\nprint('first', flush=True)",
        "def make_labels(p, c, e):\n    return [fill] * len(p) + c + [e]",
    ]
    outcome = sandbox.run(
        exercise("3.1", *cells, "import sys\nprint('\x1b[2Jsecond', n, file=sys.stderr)", variables={"n": 7})
    )
    assert outcome.reason == "every invariant holds"
    assert outcome.output == "first\n\ufffd[2Jsecond 7\n"


@isolated
def test_what_is_printed_is_cut():
    source = "print('x' * 10**6)\ndef make_labels(p, c, e):\n    return [-100] * len(p) + c + [e]"
    outcome = sandbox.run(exercise("3.1", source), Limits(output_kb=2))
    assert outcome.reason == "every invariant holds" and outcome.output == "x" * 2048 + "\n[more was printed]"


@isolated
def test_plain_values_of_other_kinds_are_taken():
    """Generators, tuples, numpy and torch numbers are what readers return; none of it is a trick."""
    for value in ("tuple({})", "iter([*{}])", "(x for x in {})", "__import__('numpy').array({})", "map(int, {})"):
        right = "[-100] * len(p) + c + [e]"
        source = f"def make_labels(p, c, e):\n    return {value.format(f'({right})')}"
        outside = {}
        exec(source, outside)
        expected = [list(row) for row in check.check("3.1", outside["make_labels"]).rows]
        outcome = sandbox.run(exercise("3.1", source), SHORT)
        assert outcome.value == {"rows": expected, "tampered": False}, (value, outcome)


@isolated
def test_dataclasses_threads_and_the_scratch_directory_work():
    source = """
    import dataclasses, pathlib, tempfile, threading
    @dataclasses.dataclass
    class Row:
        labels: list
    def make_labels(p, c, e):
        found = []
        thread = threading.Thread(target=lambda: found.append(Row([-100] * len(p) + c + [e])))
        thread.start(); thread.join()
        pathlib.Path('x').write_text('1')
        with tempfile.TemporaryDirectory() as folder:
            pathlib.Path(folder, 'y').write_text('2')
        return found[0].labels
    """
    outcome = sandbox.run(exercise("3.1", textwrap.dedent(source)), SHORT)
    assert outcome.reason == "every invariant holds", outcome


@isolated
def test_the_environment_is_its_own(monkeypatch):
    monkeypatch.setenv("A_TOKEN", "hidden")
    source = "import os\nprint(*os.environ, os.getpid(), os.getuid(), os.listdir(), os.getenv('HOME') == os.getcwd())"
    outcome = sandbox.run(exercise("3.1", source), SHORT)
    assert "A_TOKEN" not in outcome.output and "HOME" in outcome.output
    assert outcome.output.strip().endswith(" 1 1000 [] True")


INSIDE = """
import json, os, resource
spaces = {name: os.readlink(f"/proc/self/ns/{name}") for name in ("user", "net", "pid", "ipc", "mnt", "uts")}
status = dict(line.split(":\\t") for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
limits = {name: resource.getrlimit(getattr(resource, name)) for name in ("RLIMIT_NOFILE", "RLIMIT_CORE", "RLIMIT_AS")}
print(json.dumps([spaces, status, limits, [line.split()[3] for line in open("/proc/self/mounts")]]))
"""


@isolated
def test_every_wall_stands_by_itself():
    """In an attack one covers for another: namespaces, rights, filter, limits, read-only mounts are each looked at."""
    outcome = sandbox.run(exercise("3.1", INSIDE), Limits(files=77, memory_mb=2000))
    spaces, status, limits, mounts = json.loads(outcome.output)
    assert [name for name, space in spaces.items() if space == os.readlink(f"/proc/self/ns/{name}")] == []
    assert {status[name] for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb")} == {"0" * 16}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert limits == {"RLIMIT_NOFILE": [77, 77], "RLIMIT_CORE": [0, 0], "RLIMIT_AS": [2000 << 20] * 2}
    assert sum(options.startswith("rw") for options in mounts) == 1, "the scratch directory alone is writable"


def test_a_machine_that_can_isolate_is_found_to():
    """So that the tests above are not passed over because the sandbox itself is broken."""
    landlock = ctypes.CDLL(None).syscall(444, None, 0, 1) if sys.platform == "linux" else -1
    if not shutil.which("unshare") or landlock < 1:
        pytest.skip("no Landlock, or no command unshare to compare with")
    if subprocess.run(["unshare", "-Urpmniu", "-f", "--mount-proc", "true"], capture_output=True).returncode:
        pytest.skip("namespaces cannot be made here")
    assert sandbox.missing() is None


@isolated
def test_limits_are_told():
    endless = "def make_labels(p, c, e):\n    while True: pass"
    outcome = sandbox.run(exercise("3.1", endless), Limits(seconds=1))
    assert (outcome.verdict, outcome.value) == ("time", None)
    assert outcome.reason == "it was stopped after 1 seconds, the time it had" and outcome.seconds < 4
    outcome = sandbox.run(exercise("3.1", "def make_labels(*a): return [0] * 10**9"), Limits(memory_mb=500))
    assert outcome.verdict == "memory" and not any(ok for _, ok, _ in outcome.value["rows"])
    outcome = sandbox.run(exercise("3.1", "import os\nos._exit(0)"), SHORT)
    assert (outcome.verdict, outcome.value) == ("silent", None)


@isolated
def test_a_job_for_an_exercise_that_is_not_there_is_refused():
    outcome = sandbox.run(exercise("3.99", "x = 1", name="f"), SHORT)
    assert outcome.verdict == "refused" and "has no exercise '3.99'" in outcome.reason


# ----- where there is no isolation
def test_without_isolation_only_trusted_work_runs(monkeypatch):
    monkeypatch.setattr(sandbox, "missing", lambda: "This machine cannot isolate other people's code: it needs Linux.")
    with pytest.raises(InputError, match="it needs Linux. For work of your own, which you trust, say --trust."):
        sandbox.run(exercise("3.1", "x = 1"))
    outcome = sandbox.run(exercise("3.1", lesson("3.1")[1]), trusted=True)
    assert outcome.reason == "every invariant holds"
    outcome = sandbox.run(exercise("3.1", "while True: pass"), Limits(seconds=1), trusted=True)
    assert outcome.verdict == "time" and outcome.seconds < 4


def test_a_machine_that_cannot_isolate_says_why(monkeypatch):
    sandbox.missing.cache_clear()
    try:
        monkeypatch.setattr(sandbox.confine.sys, "platform", "plan9")
        assert re.fullmatch(r"This machine cannot isolate .*: it needs Linux, and this is \w+\.", sandbox.missing())
    finally:
        sandbox.missing.cache_clear()


# ----- replies
@pytest.mark.parametrize(
    "value",
    [
        [],
        {},
        {"rows": []},
        {"rows": [["x", 1, ""]], "tampered": False},
        {"rows": [["x", True, ""]]},
        {"rows": [["x", True, "", ""]], "tampered": False},
        {"rows": [["x", True, "y" * 10**5]], "tampered": False},
        {"rows": [["x", True, ""]], "tampered": False, "note": 3},
    ],
)
def test_replies_of_another_form_are_none(value):
    assert not worker.is_reply({"kind": "exercise"}, value)
    assert worker.is_reply({"kind": "exercise"}, {"rows": [["x", True, ""]], "tampered": False, "note": ""})


def test_answers_are_as_many_as_the_questions():
    job = {"kind": "answer", "questions": ["a", "b"]}
    reply = {"texts": ["1", "2"], "finished": [True, False], "parameters": 3, "seconds": 0.1}
    assert worker.is_reply(job, reply) and not worker.is_reply(job, {})
    for name, wrong in (("texts", ["1"]), ("texts", [1, 2]), ("finished", [1, 0]), ("seconds", "1")):
        assert not worker.is_reply(job, reply | {name: wrong})


# ----- models
@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder with base/, a tiny Llama, and sft/, an adapter that changes what it writes."""
    from peft import get_peft_model

    from lib import models, tokenization

    folder = tmp_path_factory.mktemp("models")
    models.seed_everything(0)
    tokenizer = tokenization.build_tokenizer(["3 yards are 9 feet"] * 3, 300)
    turns = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    tokenizer.chat_template = turns + "{% if add_generation_prompt %}assistant:{% endif %}"
    model = models.from_scratch("llama_tiny", tokenizer)
    models.save_model(model, tokenizer, folder / "base")
    adapted = get_peft_model(model, models.lora_config(model, 4))
    for name, weights in adapted.named_parameters():
        if "lora_B" in name:
            weights.data.normal_()
    models.save_model(adapted, tokenizer, folder / "sft")
    config = json.loads((folder / "sft" / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "/etc/passwd"  # it is not asked
    (folder / "sft" / "adapter_config.json").write_text(json.dumps(config))
    return folder


def question(folder: Path, **more) -> dict:
    job = {"kind": "answer", "base": str(folder / "base"), "adapter": None, "prompts": None, "form": "tagged"}
    job |= {"system": "Be brief.", "shots": [["2?", "two"]], "questions": ["How many?", "3 yards"], "seed": 0}
    return job | {"max_new_tokens": 8, "max_parameters": 10**6, "dtype": "float32", "device": "cpu"} | more


@isolated
def test_models_answer_as_they_do_outside(models):
    from lib import generation
    from lib import models as loading

    model, tokenizer = loading.load_model(str(models / "base"), device="cpu")
    job = question(models, form="chat")
    chat = "system: Be brief.\nuser: 2?\nassistant: two\nuser: {}\nassistant:"
    expected = generation.generate(model, tokenizer, [chat.format(q) for q in job["questions"]], 8)
    outcome = sandbox.run(job, SHORT, [models])
    assert outcome.verdict == "done", outcome
    assert outcome.value["texts"] == [found.text for found in expected]
    assert outcome.value["finished"] == [found.finished for found in expected]
    assert outcome.value["parameters"] == sum(p.numel() for p in model.parameters()) and outcome.value["seconds"] > 0


@isolated
def test_an_adapter_is_laid_on_our_base(models):
    plain = sandbox.run(question(models), SHORT, [models])
    adapted = sandbox.run(question(models, adapter=str(models / "sft")), SHORT, [models])
    assert plain.verdict == adapted.verdict == "done", (plain, adapted)
    assert plain.value["texts"] != adapted.value["texts"]
    assert adapted.value["parameters"] > plain.value["parameters"]


@isolated
def test_what_a_check_reads_in_a_functions_code_it_reads_in_the_sandbox_too():
    """Python's own hash() is seen by its name alone: it differs from session to session, unseen within one."""
    cell = "def split_of(text):\n    return ['train', 'valid', 'test'][hash(text) % 3]"
    job = {"kind": "exercise", "number": "1.1", "function": "split_of", "imports": "", "cells": [cell]}
    rows = sandbox.run(job, SHORT).value["rows"]
    assert not rows[0][1] and "differs from session to session" in rows[0][2]


def test_results_are_computed_where_the_job_says_so(models, monkeypatch):
    from lib import generation
    from lib.decoding_calculator import Calculator

    seen, generate = [], generation.generate
    monkeypatch.setattr(generation, "generate", lambda *a, **k: seen.append(k["calculator"]) or generate(*a, **k))
    for more in ({}, {"calculator": False}, {"calculator": True}):
        worker.answer(question(models, **more))
    assert seen[:2] == [None, None] and isinstance(seen[2], Calculator)


@isolated
def test_models_that_cannot_be_asked_are_refused(models, tmp_path):
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "config.json").write_text((models / "base" / "config.json").read_text())
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"x")
    for more, said in (
        ({"max_parameters": 1000}, "1,000 are allowed"),
        ({"base": str(models / "sft")}, "an adapter stands where"),
        ({"base": str(tmp_path / "pickled")}, "there is no model.safetensors"),
        ({"adapter": str(models / "base")}, "there is no adapter_config.json"),
    ):
        outcome = sandbox.run(question(models, **more), SHORT, [models, tmp_path])
        assert outcome.verdict == "refused" and said in outcome.reason, outcome


@isolated
def test_a_model_that_needs_too_much_memory_is_told_so(models):
    outcome = sandbox.run(question(models), Limits(memory_mb=400), [models])
    assert outcome.verdict == "memory", outcome


@isolated
def test_a_model_is_read_only_where_that_is_allowed(models):
    outcome = sandbox.run(question(models), SHORT, [])
    assert outcome.verdict == "refused" and "Permission denied" in outcome.reason


# ----- another user
AS_AN_ORDINARY_USER = """
import ctypes, os, sys
how, *rest = sys.argv[1:]
if how == "namespace":  # user 1000 with our files and none of our rights
    uid, gid = os.geteuid(), os.getegid()
    assert ctypes.CDLL(None).unshare(0x10000000) == 0
    for name, text in (("setgroups", "deny"), ("uid_map", f"1000 {uid} 1"), ("gid_map", f"1000 {gid} 1")):
        open(f"/proc/self/{name}", "w").write(text)
else:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
os.execv(sys.executable, [sys.executable, "-P", "-c", *rest])
"""
TRY = """
import os, sys
from lib.lessons import sandbox
effective = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("CapEff"))
print(os.getuid(), int(effective, 16), sandbox.missing())
print(sandbox.run({"kind": "exercise", "number": "3.1", "function": "f", "imports": "", "cells": [sys.argv[1]]}).reason)
"""


@isolated
@pytest.mark.parametrize("how, uid", [("namespace", 1000), ("nobody", 65534)])
def test_it_needs_no_rights(how, uid):
    if os.geteuid():
        pytest.skip("the tests run as an ordinary user, and so did all above")
    here = [ROOT, *Path(sys.prefix).resolve().parents, *Path(sys.base_prefix).resolve().parents]
    if how == "nobody" and not all(path.stat().st_mode & 1 for path in here):
        pytest.skip("other users cannot read this Python")
    source = "def f(p, c, e):\n    return [-100] * len(p) + c + [e]"
    done = subprocess.run(
        [sys.executable, "-P", "-c", AS_AN_ORDINARY_USER, how, TRY, source],
        env={"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"], "HOME": "/nonexistent"},
        capture_output=True,
        text=True,
        cwd="/",
    )
    assert done.stdout.splitlines() == [f"{uid} 0 None", "every invariant holds"], done.stdout + done.stderr
