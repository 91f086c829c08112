"""The pipeline as its user meets it: real runs of toy notebooks in a copy of the project, some of them killed."""

import hashlib
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import termios
import time
from contextlib import suppress
from pathlib import Path

import pytest

from lib import pipeline

ROOT = Path(__file__).parents[1]
DATA, SFT, EVALUATION = "01_data_inspection", "03_sft", "09_evaluation"
STAGES = {DATA: [], SFT: [DATA], EVALUATION: [DATA, f"({SFT})"]}  # of the toy project
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for surviving processes in /proc")

# ----- the toy project: the real lib/ and run_all.py, and three small notebooks as its only stages

TOY = '''
import os, resource, sys, time
from dataclasses import dataclass
from lib import plots, progress, stage
from lib.errors import InputError

@dataclass(frozen=True)
class Config:
    mode: str
    rate: float

def train(config, problems, out_dir):
    """What 03 memoises: counts its calls, and misbehaves as `mode` says."""
    with open(stage.ROOT / "calls.txt", "a") as file:
        file.write(f"{config.mode} {config.rate}\\n")
    if config.mode == "input error":
        raise InputError("problems.txt, line 3: no answer; add one.")
    if config.mode == "exit":
        sys.exit(0)
    if config.mode == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    if config.mode == "fail once" and not (out_dir / "half.txt").exists():
        (out_dir / "half.txt").write_text("half")
        raise RuntimeError("out of luck")
    with progress.Bar("training", 2) as bar:
        bar.update()
        if config.mode == "sleep":
            stage.write_json(stage.ROOT / "at_work.json", {"kernel": os.getpid(), "papermill": os.getppid()})
            time.sleep(120)
        bar.update(loss="0.5")
    found = sorted(path.name for path in out_dir.iterdir())
    (out_dir / "model.txt").write_text(f"{config.rate} {len(problems)} {found}")
'''
NOTEBOOKS = {
    DATA: [
        ("", "# 1 Toy data"),
        ("parameters", 'run: str = "default"\nn: int = 4\nseeds: list[int] = [0]'),
        ("", f'from lib import problems, stage\nfrom lib.errors import InputError\ns = stage.begin("{DATA}", run)'),
        ("", 'if n < 1:\n    raise InputError(f"n is {n}; ask for one problem or more.")'),
        ("", 'made = [problems.make_problem(f"{i} + 1 ?", [], str(i + 1), "toy") for i in range(n)]'),
        ("", 'problems.write_jsonl(s.path("problems/toy/train.jsonl"), made)\ns.finish(n=n)'),
    ],
    SFT: [
        ("", "# 3 Toy training"),
        (
            "parameters",
            "from typing import Optional\n\n"
            'run: str = "default"\nmode: str = "good"\nrate: float = 0.5\nsizes: list[int] = [1]\nn_bytes: int = 10\n'
            "flag: bool = False\nlabel: Optional[str] = None\nseeds: list[int] = [0]",
        ),
        (
            "",
            f'from lib import plots, problems, stage, toy\ns = stage.begin("{SFT}", run)\n'
            f'data = problems.read_jsonl(s.upstream("{DATA}") / "problems/toy/train.jsonl")',
        ),
        ("", "found = s.memo(toy.train, toy.Config(mode, rate), data)"),
        ("", 's.publish(found / "model.txt", "models/toy.txt")\ns.path("text.txt").write_text("x" * n_bytes)'),
        ("", 's.path("colour.html").write_text(plots.COLOURS[0])'),
        ("exercise", "def double(x):\n    return 2 * x"),
        ("check", "assert double(2) == 4"),
        ("break-it", 'raise RuntimeError("this cell is to be skipped")'),
        ("", "s.finish(n_bytes=n_bytes)"),
    ],
    EVALUATION: [
        ("parameters", 'run: str = "default"\nnote: str = ""\nseeds: list[int] = [0]'),
        ("", f'from lib import stage\ns = stage.begin("{EVALUATION}", run)\ns.upstream("{DATA}")'),
        ("", 'seen = {name: (s.run_directory / name / "metrics.json").read_text() for name in s.finished_stages()}'),
        ("", 's.path("report.html").write_text(note)\nstage.write_json(s.path("results.json"), seen)\ns.finish()'),
    ],
}
TRAINING_CELL = 4  # of 03, counted from 1
PROFILES = {
    "both": f"{SFT}:\n  rate: 0.1\n  n_bytes: 11\n",
    "not_yaml": f"{SFT}: [1, 2\n",
    "a_list": f"- {SFT}\n",
    "no_parameters": f"{SFT}: 3\n",
    "unknown_stage": "03_stf:\n  rate: 0.1\n",
    "unknown_parameter": f"{SFT}:\n  ratte: 0.1\n",
    "wrong_type": f"{SFT}:\n  rate: 1e-3\n",
    "date": f"{SFT}:\n  rate: 2026-01-01\n",
    "latin_1": f"{SFT}:\n  mode: \u00e9\n",
}


def write_notebook(project, stage, cells):
    metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    content = []
    for number, (tag, source) in enumerate(cells):
        cell = {"id": f"cell-{number}", "metadata": {"tags": [tag]} if tag else {}, "source": source}
        kind = {"cell_type": "markdown"} if source.startswith("#") else {"cell_type": "code", "outputs": []}
        content.append({**cell, **kind} | ({"execution_count": None} if kind["cell_type"] == "code" else {}))
    notebook = {"cells": content, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    (project / "notebooks" / f"{stage}.ipynb").write_text(json.dumps(notebook))


def environment(project):
    """Ours without what steers the workbench or git; IPython keeps its files in the project. TOY_PROJECT is a mark."""
    steering = ("WORKBENCH_", "PYTHONPATH", "GIT_")
    mine = {name: value for name, value in os.environ.items() if not name.startswith(steering)}
    scratch = {name: str(project / ".jupyter") for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR")}
    return {**mine, **scratch, "TOY_PROJECT": str(project)}


def start(project, *arguments, **options):
    """run_all.py in a process group of its own, with Ctrl-C as a shell's foreground has it."""
    return subprocess.Popen(
        [sys.executable, "run_all.py", *arguments],
        cwd=project,
        env=environment(project),
        stdin=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
    )


def run_all(project, *arguments, **options):
    process = start(project, *arguments, **options)
    try:
        out, err = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def survivors(project):
    """The processes that run_all.py of this project started, directly or not, and itself; zombies do not count."""
    mark, found = f"TOY_PROJECT={project}".encode(), []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                if (folder / "stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX":
                    found.append(int(folder.name))
        except OSError:
            continue  # it ended while we looked
    return found


def git(project, *arguments):
    settings = {"user.name": "toy", "user.email": "toy@localhost", "commit.gpgsign": "false"}
    command = ["git", *(part for name, value in settings.items() for part in ("-c", f"{name}={value}")), *arguments]
    ran = subprocess.run(command, cwd=project, env=environment(project), capture_output=True, text=True, check=True)
    return ran.stdout.strip()


def wait_until(holds, seconds):
    end = time.monotonic() + seconds
    while not (value := holds()) and time.monotonic() < end:
        time.sleep(0.05)
    return value


def all_gone(project):
    return wait_until(lambda: not survivors(project), 5)


def at_work(project):
    """The process ids of the kernel and papermill, once the training of 03 (mode "sleep") is under way."""
    file = project / "at_work.json"
    assert wait_until(file.exists, 60), "the training never began"
    return json.loads(file.read_text())


def files(folder):
    """{path: (bytes, time of change)} of a folder, without what Python, IPython and git keep for themselves."""
    theirs = {".jupyter", ".git", "__pycache__"}
    paths = [path for path in folder.rglob("*") if path.is_file() and not theirs & set(path.parts)]
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}


def results(project, run="default"):
    """The files of a run's finished stages."""
    folder = project / "outputs" / run
    return {name: file for name, file in files(folder).items() if name.split("/")[0] in STAGES}


def manifest(project, stage, run="default"):
    return json.loads((project / "outputs" / run / stage / "manifest.json").read_text())


def calls(project):
    return (project / "calls.txt").read_text().splitlines()


def fates(ran):
    """{stage: "stands" or the reason why it runs} from what run_all.py printed."""
    lines = [
        re.fullmatch(r"(?:\[.*\] )?(\w+): (?:runs |running )?\(?(.*?)\)?", line) for line in ran.stdout.splitlines()
    ]
    found = [line.groups() for line in lines if line and line[1] in STAGES]
    return {stage: text for stage, text in found if not text.startswith("done in")}


def test_a_stage_may_read_another_only_where_a_parameter_says_so(monkeypatch, tmp_path):
    monkeypatch.setitem(pipeline.STAGES, "03_sft", ["01_data_inspection", "02_prompting if from_prompting", "(04)"])
    assert pipeline.reads("03_sft", {"from_prompting": False}) == ["01_data_inspection", "(04)"]
    assert pipeline.reads("03_sft", {"from_prompting": True}) == ["01_data_inspection", "02_prompting", "(04)"]


STANDING = dict.fromkeys(STAGES, "stands")


@pytest.fixture(scope="session")
def template(tmp_path_factory):
    """(the toy project after its first run, what that run printed)."""
    project = tmp_path_factory.mktemp("template") / "project"
    shutil.copytree(ROOT / "lib", project / "lib", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "run_all.py", project)
    (project / "lib" / "toy.py").write_text(TOY)
    with open(project / "lib" / "pipeline.py", "a") as file:
        file.write(f"\nSTAGES = {STAGES}\n")
    # jsonschema makes a grammar of URLs at import, a second a process; where it is not installed, it does without.
    (project / "rfc3987_syntax.py").write_text("raise ImportError")
    (project / "notebooks" / "profiles").mkdir(parents=True)
    for stage, cells in NOTEBOOKS.items():
        write_notebook(project, stage, cells)
    for name, text in PROFILES.items():
        (project / "notebooks" / "profiles" / f"{name}.yaml").write_text(text, encoding="latin-1")
    (project / ".gitignore").write_text("outputs\n.jupyter\n__pycache__\ncalls.txt\n")
    for command in (["init", "-q", "--template="], ["add", "."], ["commit", "-q", "--no-verify", "-m", "toy"]):
        git(project, *command)
    ran = run_all(project)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return project, ran


@pytest.fixture
def untouched(template):
    """The toy project itself, with its results, for tests in which nothing may be written."""
    return template[0]


@pytest.fixture
def project(template, tmp_path):
    """A copy of the toy project with its results; its processes end with the test."""
    shutil.copytree(template[0], tmp_path / "project")
    yield tmp_path / "project"
    for pid in survivors(tmp_path / "project"):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


# ----- what runs and what stands


def test_a_first_run_runs_every_stage_and_says_so(template):
    project, ran = template
    assert fates(ran) == dict.fromkeys(STAGES, "it has no result yet")
    assert [line.split(": done in ")[0] for line in ran.stdout.splitlines() if "done in" in line] == [
        f"[{number}/3] {stage}" for number, stage in enumerate(STAGES, 1)
    ]
    assert ran.stdout.splitlines()[-1] == f"report: {project / 'outputs' / 'default' / EVALUATION / 'report.html'}"
    assert ran.stderr == "" and calls(project) == ["good 0.5"] and not survivors(project)
    assert {path.name for path in (project / "outputs" / "default").iterdir()} == {*STAGES, "memo", ".lock"}


def test_a_manifest_tells_how_its_result_was_made(template):
    project, _ = template
    made = manifest(project, SFT)
    assert made["stage"] == SFT and made["started"] <= made["ended"]
    assert made["plan"]["parameters"] == {
        "mode": "good",
        "rate": 0.5,
        "sizes": [1],
        "n_bytes": 10,
        "flag": False,
        "label": None,
        "seeds": [0],
    }
    assert made["seeds"] == [0]
    assert {"lib.toy", "lib.plots", "lib.problems"} <= set(made["plan"]["sources"])
    assert set(made["plan"]["inputs"]) == {DATA}
    assert made["code"] == {"commit": git(project, "rev-parse", "HEAD"), "changed": False}
    assert made["machine"]["cores"] == os.cpu_count()
    assert made["packages"]["python"].startswith("3.") and "papermill" in made["packages"]


def test_a_manifest_names_every_artifact_with_its_hash_and_size(template):
    folder = template[0] / "outputs" / "default" / SFT
    artifacts = manifest(template[0], SFT)["artifacts"]
    assert set(artifacts) == {"colour.html", "metrics.json", "models/toy.txt", "text.txt"}
    for name, artifact in artifacts.items():
        data = (folder / name).read_bytes()
        assert (artifact["sha256"], artifact["bytes"]) == (hashlib.sha256(data).hexdigest(), len(data))
    beside = {path.name for path in folder.iterdir()} - {name.split("/")[0] for name in artifacts}
    assert beside == {"manifest.json", "notebook.ipynb", "notebook.html", "log.txt"}
    assert f"{SFT}: done" in (folder / "log.txt").read_text()  # what cells print
    assert "models/toy.txt" in (folder / "notebook.html").read_text()  # what they hold


def test_a_second_run_says_that_all_stands_and_changes_no_file(project):
    before = files(project)
    ran = run_all(project)
    assert ran.returncode == 0 and fates(ran) == STANDING
    assert files(project) == before


def test_a_changed_parameter_reruns_its_stage_and_what_reads_it(project):
    """An assignment wins over the profile, and the profile over the notebook's default."""
    ran = run_all(project, "--profile", "both", "--run", "default", "-p", "03.n_bytes=12")
    assert ran.returncode == 0
    assert fates(ran) == {
        DATA: "stands",
        SFT: "parameter rate: 0.5 -> 0.1",
        EVALUATION: f"{SFT} gave something else",
    }
    parameters = manifest(project, SFT)["plan"]["parameters"]
    assert (parameters["rate"], parameters["n_bytes"], parameters["mode"]) == (0.1, 12, "good")
    assert (project / "outputs" / "default" / SFT / "text.txt").read_text() == "x" * 12
    assert calls(project) == ["good 0.5", "good 0.1"]


def edit(file, old, new):
    text = file.read_text()
    assert text.count(old) == 1, f"{old!r} occurs {text.count(old)} times in {file}"
    file.write_text(text.replace(old, new))


def test_a_new_colour_in_the_plots_reruns_the_stage_but_not_its_training_nor_what_reads_it(project):
    edit(project / "lib" / "plots.py", '"#0072B2"', '"#0072B3"')
    ran = run_all(project)
    assert fates(ran) == {**STANDING, SFT: "lib.plots changed"}
    assert (project / "outputs" / "default" / SFT / "colour.html").read_text() == "#0072B3"
    assert calls(project) == ["good 0.5"]


def test_what_no_result_depends_on_reruns_nothing(project):
    notebook = project / "notebooks" / f"{SFT}.ipynb"
    edit(notebook, "# 3 Toy training", "# 3 Toy training, explained")
    edit(notebook, "return 2 * x", "return x + x")
    edit(notebook, "double(2) == 4", "double(3) == 6")
    edit(notebook, "to be skipped", "skipped")
    edit(notebook, "found = s.memo", "# Once.\\n\\nfound = s.memo")
    for module, change in {"viewers": "NEW = 1\n", "stage": "NEW = 1\n", "plots": "# A comment.\n"}.items():
        with open(project / "lib" / f"{module}.py", "a") as file:
            file.write(change)
    before = files(project)
    assert fates(run_all(project)) == STANDING
    assert files(project) == before


def test_a_new_default_reruns_nothing_where_the_value_is_assigned(project):
    edit(project / "notebooks" / f"{SFT}.ipynb", "rate: float = 0.5", "rate: float = 0.6")
    assert fates(run_all(project, "--explain", "-p", "03.rate=0.5")) == STANDING


@pytest.mark.parametrize(
    "file, old, new, stage, why",
    [
        (f"notebooks/{SFT}.ipynb", "s.path(", "s.path('a/' + ", SFT, "the notebook's code changed"),
        (f"notebooks/{SFT}.ipynb", "rate: float = 0.5", "rate: float = 0.6", SFT, "parameter rate: 0.5 -> 0.6"),
        (f"notebooks/{SFT}.ipynb", "flag: bool = False\\n", "", SFT, "its parameters have other names"),
        ("lib/toy.py", "time.sleep(120)", "time.sleep(121)", SFT, "lib.toy changed"),
        (f"notebooks/{EVALUATION}.ipynb", "write_text(note)", "write_text(note * 2)", EVALUATION, "code changed"),
    ],
)
def test_explain_says_why_a_stage_would_run_and_runs_nothing(project, file, old, new, stage, why):
    text = (project / file).read_text()
    assert old in text
    (project / file).write_text(text.replace(old, new))
    before = files(project)
    ran = run_all(project, "--explain")
    found = fates(ran)
    assert ran.returncode == 0 and why in found[stage]
    names = list(STAGES)
    assert {found[name] for name in names[: names.index(stage)]} <= {"stands"}
    assert all(f"if {stage} gives something else" in found[name] for name in names[names.index(stage) + 1 :])
    assert files(project) == before


def test_a_tampered_artifact_reruns_its_stage_which_writes_it_anew(project):
    file = project / "outputs" / "default" / SFT / "text.txt"
    file.write_text("y" * 10)
    ran = run_all(project)
    assert fates(ran) == {**STANDING, SFT: "its artifact text.txt is missing or was changed"}
    assert file.read_text() == "x" * 10 and calls(project) == ["good 0.5"]


@pytest.mark.parametrize("name", [f"{SFT}/text.txt", f"{SFT}/models", f"{DATA}/problems/toy/train.jsonl"])
def test_a_deleted_artifact_makes_its_stage_stale(project, name):
    path = project / "outputs" / "default" / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    found = fates(run_all(project, "--explain"))
    assert "is missing or was changed" in found[name.split("/")[0]]


def test_a_damaged_manifest_makes_its_stage_stale(project):
    (project / "outputs" / "default" / SFT / "manifest.json").write_text("{")
    ran = run_all(project, "--explain")
    assert ran.returncode == 0 and fates(ran)[SFT] != "stands"


def test_a_result_that_was_only_touched_stands(project):
    for file in (project / "outputs").rglob("*.*"):
        os.utime(file, (1, 1))
    assert fates(run_all(project)) == STANDING


def test_explain_of_a_new_run_writes_nothing(untouched):
    before = files(untouched)
    ran = run_all(untouched, "--explain", "--run", "fresh")
    assert ran.returncode == 0 and fates(ran)[DATA] == "it has no result yet" and len(fates(ran)) == 3
    assert files(untouched) == before and not (untouched / "outputs" / "fresh").exists()


@pytest.mark.parametrize(
    "arguments, chosen",
    [
        (["--only", "03"], [SFT]),
        (["--only", SFT, "--only", "01"], [DATA, SFT]),
        (["--from", "03_s"], [SFT, EVALUATION]),
        (["--until", "03"], [DATA, SFT]),
        (["--from", "03", "--until", "03"], [SFT]),
    ],
)
def test_stages_are_chosen_by_name_or_by_the_beginning_of_it(untouched, arguments, chosen):
    assert list(fates(run_all(untouched, "--explain", *arguments))) == chosen


def test_a_run_is_named_after_its_profile(untouched):
    assert "run_all.py --run both --only" in run_all(untouched, "--profile", "both", "--only", "03").stderr


def test_list_shows_stages_with_their_parameters_and_profiles(untouched):
    ran = run_all(untouched, "--list")
    lines = ran.stdout.splitlines()
    assert [line for line in lines if line in STAGES] == list(STAGES)
    assert "    rate: float = 0.5" in lines and "    label: Optional[str] = null" in lines
    assert lines[-1] == "profiles: " + ", ".join(sorted(PROFILES)) and not any("run:" in line for line in lines)


# ----- bad input: one sentence, exit code 2, nothing written


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["-p", "03_sft.ratte=0.1"], f"{SFT} has no parameter 'ratte'; it has mode, rate, sizes, n_bytes, flag, label"),
        (["-p", '03.run="x"'], "no parameter 'run'"),
        (["-p", "03.n_bytes=true"], f"{SFT}.n_bytes must be int, not true"),
        (["-p", "03.n_bytes=1.0"], "must be int, not 1.0"),
        (["-p", "03.flag=1"], f"{SFT}.flag must be bool, not 1"),
        (["-p", '03.rate="fast"'], f'{SFT}.rate must be float, not "fast"'),
        (["-p", "03.rate=true"], "must be float, not true"),
        (["-p", "03.rate=null"], "must be float, not null"),
        (["-p", '03.sizes=[1, "2"]'], f'{SFT}.sizes must be list[int], not [1, "2"]'),
        (["-p", "03.sizes=1"], "must be list[int], not 1"),
        (["-p", "03.label=3"], "must be Optional[str], not 3"),
        (["-p", "03.label=fast"], "is not JSON; a text needs quotes: -p '03.label=\"text\"'"),
        (["-p", "03.rate"], "expected stage.name=JSON"),
        (["-p", "rate=0.1"], "expected stage.name=JSON"),
        (["-p", "07.rate=0.1"], "there is no stage '07'; the stages are " + ", ".join(STAGES)),
        (["--only", "07"], "--only: there is no stage '07'; the stages are " + ", ".join(STAGES)),
        (["--only", "0"], "there is no stage '0'"),
        (["--from", "sft"], "--from: there is no stage 'sft'"),
        (["--until", "3"], "--until: there is no stage '3'"),
        (["--profile", "bothh"], "There is no profile 'bothh'; the profiles are a_list, both,"),
        (["--profile", "not_yaml"], "not_yaml.yaml: not valid YAML"),
        (["--profile", "a_list"], "a_list.yaml: expected stages with their parameters, found a list"),
        (["--profile", "no_parameters"], f"profile no_parameters: {SFT} must hold parameters"),
        (["--profile", "unknown_stage"], "profile unknown_stage: there is no stage '03_stf'"),
        (["--profile", "unknown_parameter"], f"profile unknown_parameter: {SFT} has no parameter 'ratte'"),
        (["--profile", "wrong_type"], f'profile wrong_type: {SFT}.rate must be float, not "1e-3"'),
        (["--run", "../fresh"], "--run '../fresh': use letters"),
        (["--run", ".fresh"], "--run '.fresh': use letters"),
        (["--run", "a b"], "--run 'a b': use letters"),
        pytest.param(["--profile", "date"], "rate must be float"),
        pytest.param(["--profile", "latin_1"], "latin_1.yaml: "),
        pytest.param(["--until", "", "--explain"], "--until: there is no stage ''"),
        pytest.param(["-p", "03.rate=NaN", "--explain"], "is not JSON"),
        (["--only", "03"], f"make it with: python run_all.py --run fresh --only {DATA}"),
        (["--from", "09"], f"make it with: python run_all.py --run fresh --only {DATA}"),
        (["-p", "01.n=0"], f"{DATA}: n is 0; ask for one problem or more."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_sentence_and_exit_code_2_and_leaves_nothing_behind(untouched, arguments, says):
    before = files(untouched)
    ran = run_all(untouched, *([] if "--run" in arguments else ["--run", "fresh"]), *arguments)
    assert ran.returncode == 2
    assert len(ran.stderr.splitlines()) == 1 and ran.stderr.startswith("run_all: ") and says in ran.stderr
    assert files(untouched) == before and not (untouched / "outputs" / "fresh").exists()


def test_a_file_that_a_parameter_names_is_part_of_what_a_stage_depends_on(project):
    named = project / "mine.txt"
    named.write_text("one")
    command = ["--only", "03", "-p", '03.label="mine.txt"']
    assert run_all(project, *command).returncode == 0
    assert fates(run_all(project, *command)) == {SFT: "stands"}
    named.write_text("other")
    assert fates(run_all(project, "--explain", *command)) == {SFT: "a file that its parameters name changed"}


def test_a_value_that_fits_its_type_is_taken(untouched):
    given = ["03.rate=2", "03.sizes=[7]", "03.flag=true", '03.label="a.b=c"', "03.seeds=[1, 2]", "03.n_bytes=-1"]
    ran = run_all(untouched, "--only", "03", "--explain", *[part for text in given for part in ("-p", text)])
    assert ran.returncode == 0 and fates(ran) == {SFT: "parameter rate: 0.5 -> 2"}


def test_bad_input_found_by_a_notebook_is_one_sentence_and_leaves_the_results_as_they_were(project):
    before = results(project)
    ran = run_all(project, "-p", '03.mode="input error"')
    assert ran.returncode == 2
    assert ran.stderr == f"run_all: {SFT}: problems.txt, line 3: no answer; add one.\n"
    assert results(project) == before and not list((project / "outputs" / "default").glob("*.partial"))


# ----- failures: exit code 1, the cell named, the previous result in place


def test_a_failing_cell_is_named_the_last_result_stands_and_the_same_command_goes_on_from_there(project):
    before = results(project)
    command = ["--only", "03", "-p", '03.mode="fail once"']
    failed = run_all(project, *command)
    assert failed.returncode == 1
    assert re.search(
        rf"{SFT} failed in cell {TRAINING_CELL} of its notebook \(.+\): RuntimeError: out of luck", failed.stderr
    )
    assert 'raise RuntimeError("out of luck")' in failed.stderr  # the end of the traceback
    partial = project / "outputs" / "default" / f"{SFT}.partial"
    for name in ("notebook.ipynb", "log.txt"):
        assert str(partial / name) in failed.stderr and (partial / name).exists()
    assert results(project) == before
    again = run_all(project, *command)
    assert again.returncode == 0 and fates(again) == {SFT: 'parameter mode: "good" -> "fail once"'}
    assert (project / "outputs" / "default" / SFT / "models" / "toy.txt").read_text() == "0.5 4 ['half.txt']"
    assert not list((project / "outputs" / "default").glob("*.partial"))


@pytest.mark.parametrize("mode, says", [("exit", "without reaching its last cell"), ("limit", "File too large")])
def test_a_notebook_that_stops_early_or_cannot_write_is_no_success(project, mode, says):
    before = results(project)
    ran = run_all(project, "-p", f'03.mode="{mode}"', "-p", "03.n_bytes=100000", "-p", '09.note="new"')
    assert ran.returncode == 1 and says in ran.stderr
    assert list(fates(ran)) == [DATA, SFT]  # what comes after it is not begun
    assert f"failed in cell {TRAINING_CELL + (mode == 'limit')} " in ran.stderr
    assert results(project) == before


# ----- processes killed


@pytest.mark.parametrize("victim", ["kernel", "papermill"])
def test_when_a_process_is_killed_the_cell_is_named_and_nothing_changes_or_survives(project, victim):
    before = results(project)
    process = start(project, "-p", '03.mode="sleep"')
    os.kill(at_work(project)[victim], signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1 and f"{SFT} failed in cell {TRAINING_CELL} of its notebook" in err
    assert results(project) == before and all_gone(project)


def test_when_run_all_is_killed_its_children_die_with_it_and_the_next_run_is_as_ever(project):
    before = results(project)
    process = start(project, "-p", '03.mode="sleep"')
    assert {process.pid, *at_work(project).values()} <= set(survivors(project))
    process.kill()
    process.communicate()
    assert all_gone(project)
    assert fates(run_all(project)) == STANDING and results(project) == before


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_run_ends_its_children_first_and_refuses_a_second_one_beside_it(project, sign):
    before = results(project)
    process = start(project, "-p", '03.mode="sleep"')
    at_work(project)
    second = run_all(project)
    assert second.returncode == 2 and len(second.stderr.splitlines()) == 1
    assert "Another run_all.py is at work in" in second.stderr
    os.killpg(process.pid, sign)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err == "run_all: interrupted; the same command goes on from here\n"
    assert not survivors(project) and results(project) == before


def test_on_a_terminal_a_bar_follows_the_work_of_the_stage(project):
    terminal, inside = pty.openpty()
    termios.tcsetwinsize(inside, (24, 120))
    process = start(project, "--only", "03", "-p", '03.mode="sleep"', stderr=inside)
    at_work(project)
    drawn = ""
    while "training" not in drawn and select.select([terminal], [], [], 10)[0]:
        drawn += os.read(terminal, 10_000).decode()
    assert f"[1/1] {SFT}" in drawn and "/2" in drawn
    process.terminate()
    process.communicate(timeout=60)
    os.close(inside)
    os.close(terminal)
    assert process.returncode == 130 and all_gone(project)


# ----- the last step: a new result takes the place of the old


def test_a_commit_killed_between_its_two_renames_is_recovered(project):
    before, folder = results(project), project / "outputs" / "default"
    shutil.copytree(folder / SFT, folder / f"{SFT}.partial")  # the new result, complete
    (folder / SFT).rename(folder / f"{SFT}.old")
    assert fates(run_all(project)) == STANDING
    assert results(project) == before and not (folder / f"{SFT}.old").exists()


def test_a_commit_killed_before_it_removed_the_old_result_keeps_the_new(project):
    before, folder = results(project), project / "outputs" / "default"
    shutil.copytree(folder / SFT, folder / f"{SFT}.old")
    (folder / f"{SFT}.old" / "manifest.json").unlink()  # it was being removed
    assert fates(run_all(project)) == STANDING
    assert results(project) == before and not (folder / f"{SFT}.old").exists()


def test_a_stage_whose_upstream_was_killed_in_its_commit_reads_the_recovered_result(project):
    (project / "outputs" / "default" / SFT).rename(project / "outputs" / "default" / f"{SFT}.old")


# Commits "new" in place of "old" and kills itself at the n-th time that it renames or removes something.
COMMIT = """
import os, signal, sys
from pathlib import Path
from lib import pipeline
n = [int(sys.argv[1])]
def count(event, _):
    if event in ("os.rename", "os.remove", "os.rmdir", "shutil.rmtree"):
        n[0] -= 1
        if n[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(count)
pipeline.commit("03_sft", Path("03_sft"), {"parameters": {}}, "then", "now")
"""


def test_a_commit_killed_at_any_of_its_steps_leaves_the_old_or_the_new_result_whole(tmp_path):
    from lib import pipeline

    directory, partial = tmp_path / "03_sft", tmp_path / "03_sft.partial"

    def make(text):
        (partial / "deep").mkdir(parents=True)
        for name in ("a.txt", "deep/b.txt", "finished.json", "result.json"):
            (partial / name).write_text(text)

    seen, steps, killed = [], 0, True
    while killed:
        steps += 1
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(directory, ignore_errors=True)
        make("old")
        pipeline.commit("03_sft", directory, {"parameters": {}}, "then", "now")
        make("new")
        command = [sys.executable, "-c", COMMIT, str(steps)]
        ran = subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True)
        assert ran.returncode in (0, -signal.SIGKILL), ran.stderr
        killed = ran.returncode != 0
        pipeline.recover(directory)
        artifacts = pipeline.read_manifest(directory)["artifacts"]
        assert set(artifacts) == {"a.txt", "deep/b.txt"}
        assert all(pipeline.same_file(directory / name, artifact) for name, artifact in artifacts.items())
        seen.append((directory / "deep" / "b.txt").read_text())
        assert not (tmp_path / "03_sft.old").exists()
    assert "old" in seen and "new" in seen and seen == sorted(seen, reverse=True) and steps > 5


# ----- speed


def seconds(*command):
    """Wall time of a command, best of three."""
    times = []
    for _ in range(3):
        clock = time.perf_counter()
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        times.append(time.perf_counter() - clock)
    return min(times)


def test_help_answers_in_under_a_second_and_import_lib_in_under_a_fifth():
    assert seconds(sys.executable, "run_all.py", "--help") < 1
    assert seconds(sys.executable, "-c", "import lib") < 0.2
