"""Inside a stage: work done once, where artifacts go, and what an interruption leaves."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from lib import sources, stage
from lib.errors import InputError
from lib.problems import make_problem
from lib.prompts import Example, prompt, solution

ROOT = Path(__file__).parents[1]
PROBLEMS = [make_problem("1 + 1 ?", ["<<1+1=2>>"], "2", "made_up"), make_problem("2 + 2 ?", [], "4", "made_up")]


@dataclass(frozen=True)
class Config:
    rate: float = 0.1
    sizes: tuple[int, ...] = (1, 2)


@pytest.fixture
def s(tmp_path, monkeypatch):
    """A stage at work in JupyterLab's way, its outputs in an empty folder."""
    monkeypatch.setattr(stage, "OUTPUTS", tmp_path / "outputs")
    monkeypatch.delenv(stage.DIRECTORY_VARIABLE, raising=False)
    return stage.begin("03_sft", "test")


class Work:
    """A function to memoise that remembers its calls; `fail` makes it raise when half of its work is done."""

    def __init__(self, module="made_up", fail=False):
        self.__module__, self.__name__ = module, "train"
        self.calls, self.fail = [], fail

    def __call__(self, config, *inputs_and_directory):
        *_, directory = inputs_and_directory
        self.calls.append(sorted(path.name for path in directory.iterdir()))
        (directory / "half.txt").write_text("half")
        if self.fail:
            raise RuntimeError("the power failed")
        (directory / "model.txt").write_text(f"model {config.rate}")


# --- memo: the same work is done once ---


def test_the_same_work_is_done_once_and_found_again(s):
    train = Work()
    first = s.memo(train, Config(), PROBLEMS)
    again = stage.begin("09_evaluation", "test").memo(train, Config(), list(PROBLEMS))
    assert first == again and train.calls == [[]]
    assert (first / "model.txt").read_text() == "model 0.1"


def test_each_run_has_a_memo_of_its_own(s):
    train = Work()
    s.memo(train, Config(), PROBLEMS)
    stage.begin("03_sft", "other").memo(train, Config(), PROBLEMS)
    assert len(train.calls) == 2


@pytest.mark.parametrize(
    "config, inputs",
    [
        (Config(rate=0.2), [PROBLEMS]),
        (Config(sizes=(2, 1)), [PROBLEMS]),
        (Config(), [PROBLEMS[:1]]),
        (Config(), [PROBLEMS[::-1]]),
        (Config(), [[make_problem("1 + 1 ?", ["<<1+1=2>>"], "3", "made_up"), PROBLEMS[1]]]),
        (Config(), [[make_problem("1 + 1 ?", ["1+1=2"], "2", "made_up"), PROBLEMS[1]]]),
        (Config(), [PROBLEMS, PROBLEMS]),
        (Config(), [PROBLEMS, []]),
        (Config(), []),
    ],
)
def test_another_config_or_other_problems_are_other_work(s, config, inputs):
    train = Work()
    before = s.memo(train, Config(), PROBLEMS)
    after = s.memo(train, config, *inputs)
    assert before != after and len(train.calls) == 2


def test_another_function_is_other_work(s):
    train, evaluate = Work(), Work()
    evaluate.__name__ = "evaluate"
    assert s.memo(train, Config(), PROBLEMS) != s.memo(evaluate, Config(), PROBLEMS)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_file_or_folder_is_known_by_its_bytes_not_by_its_place_or_age(s, tmp_path, kind):
    def write(place, text):
        file = tmp_path / place / "deep" / "a.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file if kind == "file" else tmp_path / place

    train = Work()
    first = s.memo(train, Config(), write("one", "A"))
    os.utime(tmp_path / "one" / "deep" / "a.txt", (1, 1))
    assert s.memo(train, Config(), tmp_path / "one" / ("deep/a.txt" if kind == "file" else "")) == first
    assert s.memo(train, Config(), str(write("two", "A"))) == first
    assert s.memo(train, Config(), write("one", "B")) != first
    assert len(train.calls) == 2


def test_a_file_added_to_or_renamed_in_a_folder_is_other_work(s, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "a.txt").write_text("A")
    train = Work()
    found = {s.memo(train, Config(), folder)}
    (folder / "a.txt").rename(folder / "b.txt")
    found.add(s.memo(train, Config(), folder))
    (folder / "c.txt").write_text("")
    found.add(s.memo(train, Config(), folder))
    assert len(found) == 3


def test_work_on_a_memo_is_other_work_where_that_memo_is_another(s):
    train, evaluate = Work(), Work()
    evaluate.__name__ = "evaluate"
    models = [s.memo(train, Config(rate)) for rate in (0.1, 0.2)]
    found = {s.memo(evaluate, Config(), model / "model.txt") for model in models + models}
    assert len(found) == 2 and len(evaluate.calls) == 2


def example(p, **changes):
    return replace(Example(p, prompt(p), solution(p), "cot"), **changes)


def test_examples_are_known_by_problem_prompt_completion_and_form(s):
    train = Work()
    given = [[example(p) for p in PROBLEMS], [example(p) for p in reversed(PROBLEMS)], PROBLEMS]
    for changed in ({"prompt": "Q: "}, {"completion": ""}, {"form": "chat"}, {"problem": PROBLEMS[1]}):
        given.append([example(PROBLEMS[0], **changed), example(PROBLEMS[1])])
    found = [s.memo(train, Config(), items) for items in given]
    assert len(set(found)) == len(train.calls) == 7
    assert s.memo(train, Config(), [example(p) for p in PROBLEMS]) == found[0] and len(train.calls) == 7


def test_a_models_hub_id_is_known_by_its_text_and_a_local_folder_of_that_name_by_its_bytes(s, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train = Work()
    first = s.memo(train, Config(), "someone/model")
    assert s.memo(train, Config(), "someone/model") == first != s.memo(train, Config(), "someone/other")
    fill(tmp_path / "someone" / "model", weights="1")
    assert s.memo(train, Config(), "someone/model") != first


def test_no_path_at_all_is_known_by_its_text_whatever_lies_in_the_folder_where_we_work(s, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train = Work()
    first = s.memo(train, Config(), "")
    (tmp_path / "new.txt").write_text("new")
    assert s.memo(train, Config(), "") == first and len(train.calls) == 1


@pytest.mark.parametrize("other", [[1, 2], [PROBLEMS[0], 1], ["a"], 3, None, {"a": 1}])
def test_what_is_neither_a_path_nor_a_list_of_dataclasses_is_refused_as_an_input(s, other):
    with pytest.raises(AssertionError, match=f"identity of a {type(other).__name__}"):
        s.memo(Work(), Config(), other)


def test_work_is_done_again_when_the_code_it_imports_changed_but_not_for_a_comment_or_a_plot(s, tmp_path, monkeypatch):
    package = tmp_path / "lib"
    package.mkdir()
    monkeypatch.setattr(sources, "LIB", package)
    (package / "method.py").write_text("def train():\n    from lib import layers, plots\n")
    (package / "layers.py").write_text("WIDTH = 1\n")
    (package / "plots.py").write_text("COLOUR = 1\n")
    train = Work("lib.method")
    first = s.memo(train, Config())
    (package / "layers.py").write_text("# Wide enough.\nWIDTH = 1\n")
    (package / "plots.py").write_text("COLOUR = 2\n")
    assert s.memo(train, Config()) == first and len(train.calls) == 1
    (package / "layers.py").write_text("WIDTH = 2\n")
    assert s.memo(train, Config()) != first and len(train.calls) == 2


# --- memo: interrupted work ---


def test_interrupted_work_finds_what_it_had_done_and_is_not_taken_for_finished(s):
    train = Work(fail=True)
    for _ in range(2):
        with pytest.raises(RuntimeError):
            s.memo(train, Config(), PROBLEMS)
    train.fail = False
    done = s.memo(train, Config(), PROBLEMS)
    assert train.calls == [[], ["half.txt"], ["half.txt"]]
    assert sorted(path.name for path in done.iterdir()) == ["half.txt", "model.txt"]
    assert not list(done.parent.glob("*.partial"))


def test_interrupted_work_with_another_config_starts_afresh(s):
    train = Work(fail=True)
    with pytest.raises(RuntimeError):
        s.memo(train, Config(), PROBLEMS)
    train.fail = False
    s.memo(train, Config(rate=0.2), PROBLEMS)
    assert train.calls == [[], []]


# A notebook in a process of its own: its work announces itself, then waits for a file that sets it free.
NOTEBOOK = """
import signal, time
from dataclasses import dataclass
from pathlib import Path
from lib import stage

@dataclass(frozen=True)
class Config:
    rate: float = 0.1

def train(config, directory):
    seen = sorted(path.name for path in directory.iterdir())
    (directory / "half.txt").write_text("half")
    print("training", seen, flush=True)
    while not Path("go").exists():
        time.sleep(0.01)
    (directory / "model.txt").write_text("model")

signal.alarm(60)
s = stage.begin("03_sft", "test")
found = s.memo(train, Config())
print("found", found, (found / "model.txt").read_text(), flush=True)
"""


@pytest.fixture
def notebook(tmp_path):
    """Start NOTEBOOK in a process; whatever is still running at the end of the test is killed."""
    (tmp_path / "notebook.py").write_text(NOTEBOOK)
    started = []

    def start(**variables):
        process = subprocess.Popen(
            [sys.executable, "notebook.py"],
            cwd=tmp_path,
            env={**environment(tmp_path), **variables},
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def environment(folder):
    mine = {name: value for name, value in os.environ.items() if not name.startswith("WORKBENCH_")}
    return {**mine, "PYTHONPATH": str(ROOT), "WORKBENCH_OUTPUTS": str(folder / "outputs")}


def test_two_processes_that_ask_for_the_same_work_at_once_do_it_once(notebook, tmp_path):
    first = notebook()
    assert first.stdout.readline() == "training []\n"
    second = notebook()
    assert second.stdout.readline().startswith("another process is at work on __main__.train-")
    (tmp_path / "go").touch()
    ends = [process.communicate(timeout=30)[0] for process in (first, second)]
    assert ends[0] == ends[1] and ends[0].startswith("found ") and ends[0].endswith(" model\n")


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM])
def test_when_a_process_at_work_is_killed_the_one_that_waits_goes_on_from_there(notebook, tmp_path, sign):
    first = notebook()
    assert first.stdout.readline() == "training []\n"
    second = notebook()
    assert second.stdout.readline().startswith("another process is at work")
    first.send_signal(sign)
    assert second.stdout.readline() == "training ['half.txt']\n"
    (tmp_path / "go").touch()
    assert second.communicate(timeout=30)[0].endswith(" model\n")


def test_a_notebook_in_jupyterlab_and_one_under_the_pipeline_share_their_memo(notebook, tmp_path):
    (tmp_path / "go").touch()
    live = notebook().communicate(timeout=30)[0].splitlines()
    piped = notebook(WORKBENCH_STAGE_DIR=str(tmp_path / "03_sft.partial")).communicate(timeout=30)[0].splitlines()
    assert live[0] == "training []" and live[1:] == piped


# --- where a stage reads and writes ---


def test_in_jupyterlab_a_stage_writes_beside_the_results_and_does_not_say_that_it_finished(s, tmp_path):
    assert s.live and s.directory == tmp_path / "outputs" / "test" / "03_sft.live"
    s.finish(accuracy=0.5)
    assert [path.name for path in s.directory.iterdir()] == ["metrics.json"]
    assert json.loads((s.directory / "metrics.json").read_text()) == {"accuracy": 0.5}


def test_under_the_pipeline_a_stage_writes_where_it_is_told_and_says_that_it_finished(tmp_path):
    code = "from lib import stage; s = stage.begin('03_sft', 'test'); print(s.live); s.finish(accuracy=0.5)"
    folder = tmp_path / "03_sft.partial"
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment(tmp_path), stage.DIRECTORY_VARIABLE: str(folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.splitlines()[0] == "False"
    assert sorted(path.name for path in folder.iterdir()) == [stage.FINISHED, "metrics.json"]
    assert not (tmp_path / "outputs").exists()


def test_a_folder_for_outputs_named_relatively_is_the_same_wherever_a_process_works(tmp_path):
    code = "import os; from lib import stage; os.chdir('/'); print(stage.OUTPUTS.absolute())"
    mine = {**environment(tmp_path), "WORKBENCH_OUTPUTS": "out"}
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=mine, capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == str(tmp_path / "out")


def test_folders_on_the_way_to_an_artifact_are_made(s):
    assert s.path("a/b/c.txt") == s.directory / "a" / "b" / "c.txt"
    s.path("a/b/c.txt").write_text("c")


def finished(s, name):
    directory = s.run_directory / name
    directory.mkdir(parents=True)
    (directory / "manifest.json").write_text('{"plan": {"inputs": {}}, "artifacts": {}}')
    return directory


def test_upstream_is_the_directory_of_a_finished_stage(s):
    directory = finished(s, "01_data_inspection")
    assert s.upstream("01_data_inspection") == directory


def test_upstream_that_is_missing_or_unfinished_is_one_sentence_with_the_command_that_makes_it(s):
    for unfinished in ("01_data_inspection.live", "01_data_inspection.partial", "01_data_inspection"):
        (s.run_directory / unfinished).mkdir(parents=True)
        with pytest.raises(InputError, match="python run_all.py --run test --only 01_data_inspection ") as caught:
            s.upstream("01_data_inspection")
        assert "03_sft reads" in str(caught.value) and "\n" not in str(caught.value)


def test_a_stage_made_from_another_result_than_the_run_now_holds_is_refused(s):
    data = finished(s, "01_data_inspection")
    artifacts = {"problems/t/train.jsonl": {"sha256": "new"}, "shapes.png": {"sha256": "any"}}
    (data / "manifest.json").write_text(json.dumps({"plan": {"inputs": {}}, "artifacts": artifacts}))
    other = finished(s, "09_evaluation")
    for digest, fits in ((stage.data_digest(artifacts), True), ("old", False), (None, False)):
        made_from = {"plan": {"inputs": {"01_data_inspection": digest}}, "artifacts": {}}
        (other / "manifest.json").write_text(json.dumps(made_from))
        if fits:
            assert s.finished_stages() == ["01_data_inspection", "09_evaluation"]
            continue
        with pytest.raises(InputError, match="python run_all.py --run test --only 09_evaluation "):
            s.finished_stages()


def test_a_config_that_names_a_folder_is_another_one_when_the_folder_changes(s, tmp_path):
    place = fill(tmp_path / "model", weights="1")
    first = s._identity(str(place))
    fill(place, weights="2")
    assert s._identity(str(place)) != first and stage.is_place(str(place)) and not stage.is_place("llama_tiny")


def test_finished_stages_are_those_with_a_manifest_but_this_one(s):
    for name in ("09_evaluation", "01_data_inspection", "03_sft", "04_rft_generation.partial", "06_dot_training.old"):
        finished(s, name)
    (s.run_directory / "05_dpo_self_training").mkdir()
    assert s.finished_stages() == ["01_data_inspection", "09_evaluation"]


def test_a_path_below_the_project_becomes_absolute_and_a_preset_stays_as_it_is():
    assert stage.from_root("lib/stage.py") == str(ROOT / "lib" / "stage.py")
    assert stage.from_root(str(ROOT / "lib")) == str(ROOT / "lib")
    for other in ("", "llama_tiny", "openai-community/gpt2", "lib/not_there.py"):
        assert stage.from_root(other) == other


# --- publish ---


def tree(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def fill(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def test_publish_copies_files_and_folders(s, tmp_path):
    source = fill(tmp_path / "outputs" / "model" / "deep", a="A").parent
    file = s.publish(source / "deep" / "a", "models/a")
    folder = s.publish(source, "models/cot")
    assert file == s.directory / "models" / "a" and tree(folder) == {"deep/a": "A"}
    assert file.read_text() == "A" and tree(source) == {"deep/a": "A"}


def test_publish_replaces_what_had_the_name_and_leaves_the_older_source_alone(s, tmp_path):
    old, new = fill(tmp_path / "old", a="old", b="old"), fill(tmp_path / "new", a="new")
    for source, expected in (
        (old, {"x/a": "old", "x/b": "old"}),
        (new, {"x/a": "new"}),
        (old / "a", {"x": "old"}),
        (new / "a", {"x": "new"}),
        (old, {"x/a": "old", "x/b": "old"}),
    ):
        s.publish(source, "x")
        assert tree(s.directory) == expected
    assert tree(old) == {"a": "old", "b": "old"} and tree(new) == {"a": "new"}


def test_an_artifact_changed_in_place_does_not_change_the_memo_it_was_published_from(s, tmp_path):
    source = fill(tmp_path / "outputs" / "memo", a="A")
    s.publish(source, "models/cot")
    (s.directory / "models" / "cot" / "a").write_text("changed")
    assert tree(source) == {"a": "A"}


# --- write_json ---


def test_write_json_writes_what_json_reads(tmp_path):
    value = {"a": [1, 2.5, None, True], "é": "\n"}
    stage.write_json(tmp_path / "a.json", value)
    assert json.loads((tmp_path / "a.json").read_text()) == value
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_write_json_that_fails_halfway_leaves_the_old_file(tmp_path):
    stage.write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(TypeError):
        stage.write_json(tmp_path / "a.json", {"a": list(range(9999)), "b": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1}


def test_a_reader_of_write_json_never_sees_half_a_file(tmp_path):
    file = tmp_path / "a.json"
    code = (
        "from pathlib import Path; from lib.stage import write_json\n"
        f"for n in range(10**9): write_json(Path({str(file)!r}), [n] * 20000)"
    )
    stage.write_json(file, [-1] * 20000)
    writer = subprocess.Popen([sys.executable, "-c", code], env=environment(tmp_path))
    try:
        seen = set()
        while len(seen) < 5 and writer.poll() is None:
            value = json.loads(file.read_text())
            assert len(value) == 20000 and len(set(value)) == 1
            seen.add(value[0])
        assert len(seen) == 5
    finally:
        writer.kill()
        writer.wait()
    assert len(json.loads(file.read_text())) == 20000


def test_a_kernel_of_the_pipeline_keeps_the_modules_that_it_loaded(tmp_path):
    """Autoreload, which the notebooks load for JupyterLab, is off: else what runs is not what its memo keys name."""
    (tmp_path / "edited.py").write_text("value = 'old'\n")
    code = f"""
import os, sys, time
sys.path.insert(0, {str(tmp_path)!r})
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
shell.run_cell("%load_ext autoreload\\n%autoreload 2\\nimport edited")
os.environ["WORKBENCH_STAGE_DIR"] = {str(tmp_path)!r} if sys.argv[1] == "pipeline" else ""
os.environ["WORKBENCH_OUTPUTS"] = {str(tmp_path)!r}
shell.run_cell("from lib import stage; s = stage.begin('03_sft', 'toy')")
time.sleep(0.05)
open({str(tmp_path / "edited.py")!r}, "w").write("value = 'new and longer'\\n")
shell.run_cell("print('it says', edited.value)")
"""
    for way, value in (("pipeline", "old"), ("live", "new and longer")):
        (tmp_path / "edited.py").write_text("value = 'old'\n")
        found = subprocess.run([sys.executable, "-c", code, way], capture_output=True, text=True, cwd=ROOT)
        assert f"it says {value}" in found.stdout, found.stdout + found.stderr
