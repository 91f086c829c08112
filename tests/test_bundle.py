"""Bundles: what is allowed and nothing else, small enough, whole, and tried before it is written."""

import hashlib
import json
import re
import shutil
import zipfile

import pytest

from lib.errors import InputError
from lib.lessons import __main__ as command
from lib.lessons import archive, build, bundle, grade, sandbox
from lib.lessons.bundle import MB
from tests.handing_in import BASE, PROMPT, RFT, ROWS, SFT, save_adapter, save_run, small_plan, with_function

TRUST = sandbox.missing() is not None  # where the machine cannot isolate, what is ours is run without
RIGHT = "def make_labels(prompt, completion, eos):\n    return [-100] * len(prompt) + completion + [eos]"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save_run(tmp_path_factory.mktemp("outputs") / "units")


@pytest.fixture
def run(saved, tmp_path):
    """A run to change."""
    return shutil.copytree(saved, tmp_path / "outputs" / "units")


@pytest.fixture
def work(tmp_path):
    """A student's folder: copies, one of them solved in part and executed, and things of no interest."""
    folder = tmp_path / "work"
    build.build(folder)
    solved = json.loads(with_function("03_sft.ipynb", {"make_labels": RIGHT}))
    for cell in solved["cells"]:
        if cell["cell_type"] == "code":
            cell["execution_count"] = 7
            cell["outputs"] = [{"output_type": "stream", "name": "stdout", "text": ["a secret\n"]}]
    (folder / "03_sft.ipynb").write_text(json.dumps(solved))
    (folder / "notes.txt").write_text("mine")
    (folder / "scratch.ipynb").write_text("mine")
    (folder / "lib").mkdir()
    (folder / "lib" / "answers.py").write_text("def is_correct(*_): return True")
    return folder


@pytest.fixture
def plan(tmp_path):
    return small_plan(tmp_path / "small.toml")


@pytest.fixture
def untried(monkeypatch):
    """Bundles are not graded: for tests of what is in them."""
    monkeypatch.setattr(bundle, "_smoke", lambda *_, **__: None)


def entries(path):
    with zipfile.ZipFile(path) as opened:
        return {entry.filename: opened.read(entry) for entry in opened.infolist()}


# --- what is in it ---


def test_a_bundle_is_written_and_can_be_graded(work, run, plan, tmp_path, capsys):
    """On real models: tried before it is written, with a few questions."""
    before = {path: path.read_bytes() for path in work.rglob("*") if path.is_file()}
    made = bundle.bundle(work, "ada", plan, run, tmp_path / "ada.zip", trusted=TRUST)
    shown = capsys.readouterr().out
    assert made == tmp_path / "ada.zip" and "total" not in shown and str(made) in shown
    assert re.search(r"3\.1 +make_labels +(\d+) of \1 +ok", shown)
    assert len(re.findall(r"right \[.*\] of 8 ", shown)) == 3
    assert [path.name for path in tmp_path.glob("*ada*")] == ["ada.zip"]
    assert {path: path.read_bytes() for path in work.rglob("*") if path.is_file()} == before
    report = grade.grade(made, plan, seed=3, trusted=TRUST, only=["03"])
    assert report.exercises[0].share == 1 and report.models[0].n == 20
    assert report.notes == ("handed in by ada",)
    with pytest.raises(InputError, match="names a plan 'small' that is not known; choose one with --plan"):
        grade.grade(made, trusted=TRUST)


def test_it_holds_lessons_and_the_plans_parts_and_nothing_else(work, run, plan, tmp_path, untried):
    (run / SFT / "optimizer.pt").write_bytes(b"0")
    (run / SFT / "checkpoint-3").mkdir()
    (run / BASE / "training_args.bin").write_bytes(b"0")
    found = entries(bundle.bundle(work, "ada", plan, run, tmp_path / "ada.zip"))
    lessons = {path.name for path in work.glob("0*.ipynb")}
    adapters = {
        f"units/{part}/adapter_{name}" for part in ("sft", "rft") for name in ("config.json", "model.safetensors")
    }
    rest = set(found) - lessons - adapters
    base = {name for name in rest if name.startswith("units/base/")}
    assert rest - base == {"bundle.json", "units/prompt.json", "units/rft.json"} and len(lessons) == 9
    assert base == {f"units/base/{path.name}" for path in (run / BASE).iterdir() if path.suffix not in (".bin",)}
    assert all(map(archive.allowed, found))
    assert b"a secret" not in b"".join(found.values())
    cells = json.loads(found["03_sft.ipynb"])["cells"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)
    sources = [cell["source"] for cell in cells]
    assert sources == [cell["source"] for cell in json.loads((work / "03_sft.ipynb").read_text())["cells"]]
    assert found["units/sft/adapter_model.safetensors"] == (run / SFT / "adapter_model.safetensors").read_bytes()
    assert json.loads(found["units/prompt.json"]) == json.loads((run / PROMPT).read_text())


def test_bundle_json_says_what_it_holds(work, run, plan, tmp_path, untried):
    found = entries(bundle.bundle(work, "ada", plan, run, tmp_path / "ada.zip"))
    told = json.loads(found.pop("bundle.json"))
    assert (told["name"], told["plan"]) == ("ada", "small") and re.fullmatch(r"\d{4}-\d\d-\d\d", told["made"])
    sums = {name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} for name, data in found.items()}
    assert told["files"] == sums and {"torch", "transformers", "peft"} <= set(told["versions"])
    names = archive.unpack(tmp_path / "ada.zip", tmp_path / "unpacked", 50)
    assert names == sorted([*found, "bundle.json"])


def test_the_same_files_make_the_same_bytes(work, run, plan, tmp_path, untried):
    first = bundle.bundle(work, "ada", plan, run, tmp_path / "a.zip").read_bytes()
    for path in [*work.glob("*"), run / SFT / "adapter_config.json"]:
        path.touch()
    assert bundle.bundle(work, "ada", plan, run, tmp_path / "b.zip").read_bytes() == first
    (work / "notes.txt").write_text("other")
    assert bundle.bundle(work, "ada", plan, run, tmp_path / "c.zip").read_bytes() == first
    assert bundle.bundle(work, "bob", plan, run, tmp_path / "d.zip").read_bytes() != first


def test_lessons_alone_need_no_run(work, tmp_path, untried, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = bundle.bundle(work, "ada")
    assert made.name == "ada.zip" and set(entries(made)) == {p.name for p in work.glob("0*.ipynb")} | {"bundle.json"}


def test_models_may_stand_beside_the_lessons(work, run, plan, tmp_path, untried):
    made = bundle.bundle(work, "ada", plan, run, tmp_path / "a.zip")
    archive.unpack(made, tmp_path / "handed", 50)
    (tmp_path / "handed" / "bundle.json").unlink()
    again = bundle.bundle(tmp_path / "handed", "ada", plan, None, tmp_path / "b.zip")
    assert again.read_bytes() == made.read_bytes()


# --- what is refused ---


@pytest.mark.parametrize("name", ["", "../ada", "a b", "-a", ".a", "ada/x", "ä", "a" * 65, "a\n"])
def test_odd_names_are_refused(name, work, tmp_path):
    with pytest.raises(InputError, match="--name .*use letters"):
        bundle.bundle(work, name, out=tmp_path / "x.zip")


@pytest.mark.parametrize(
    "place, part, stage",
    [
        (BASE, "units/base", "02_prompting"),
        (PROMPT, "units/prompt.json", "02_prompting"),
        (SFT, "units/sft", "03_sft"),
        (RFT, "units/rft", "04_rft_generation"),
        (ROWS, "units/rft.json", "04_rft_generation"),
    ],
)
def test_a_missing_part_is_refused_with_the_command_that_makes_it(place, part, stage, work, run, plan, tmp_path):
    (run / place).rename(tmp_path / "away")
    told = f"{part} is missing: .* python run_all.py --profile units --run units --only {stage}$"
    with pytest.raises(InputError, match=told):
        bundle.bundle(work, "ada", plan, run, tmp_path / "ada.zip")
    with pytest.raises(InputError, match="units/base is missing: .* bundle with --run units"):
        bundle.bundle(work, "ada", plan, None, tmp_path / "ada.zip")
    assert not (tmp_path / "ada.zip").exists()


@pytest.mark.parametrize("place, name", [(SFT, "adapter_model.safetensors"), (BASE, "model.safetensors")])
def test_a_part_without_weights_is_refused(place, name, work, run, plan, tmp_path):
    (run / place / name).unlink()
    with pytest.raises(InputError, match=f"is not whole: .* has no {name}"):
        bundle.bundle(work, "ada", plan, run, tmp_path / "ada.zip")


def test_a_folder_without_lessons_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no lesson"):
        bundle.bundle(tmp_path, "ada", out=tmp_path / "ada.zip")
    with pytest.raises(InputError, match="is no folder"):
        bundle.bundle(tmp_path / "nothing", "ada", out=tmp_path / "ada.zip")


# --- whether it fits ---


def files_of(run, ranks):
    """What a bundle of this run would hold, with adapters of these ranks."""
    for place, rank in zip((SFT, RFT), ranks, strict=True):
        shutil.rmtree(run / place)
        save_adapter(run / BASE, run / place, rank)
    found = {f"units/base/{path.name}": path for path in (run / BASE).iterdir()}
    for part, place in (("units/sft", SFT), ("units/rft", RFT)):
        found |= {f"{part}/{name}": run / place / name for name in bundle.ADAPTER}
    return found


def size_of(files):
    return sum(path.stat().st_size for path in files.values())


@pytest.mark.parametrize("ranks", [(16, 16), (24, 8)])
def test_over_the_limit_it_tells_the_highest_rank_that_fits(ranks, run):
    """The ranks that it tells fit; one more of the larger does not."""
    over = files_of(run, ranks)
    limit = (size_of(over) - 100_000) / MB
    with pytest.raises(InputError) as refused:
        bundle._refuse_too_large(over, limit)
    told = re.search(r"rank of at most (\d+) for units/sft and (\d+) for units/rft\.$", str(refused.value))
    allowed = [int(rank) for rank in told.groups()]
    assert 0 < allowed[0] < ranks[0] and allowed[1] / allowed[0] == pytest.approx(ranks[1] / ranks[0], rel=0.2)
    bundle._refuse_too_large(files_of(run, allowed), limit)
    with pytest.raises(InputError):
        bundle._refuse_too_large(files_of(run, (allowed[0] + 1, allowed[1] + 1)), limit)


def test_over_the_limit_it_names_the_largest_files(work, run, plan, tmp_path):
    with pytest.raises(InputError) as refused:
        bundle.bundle(work, "ada", plan, run, tmp_path / "ada.zip", limit_mb=0.5)
    text = str(refused.value)
    named = re.findall(r"(\S+) (\d+\.\d\d) MB", text.partition("(")[2])
    sizes = [float(size) for _, size in named]
    assert len(named) == 10 and sizes == sorted(sizes, reverse=True) and named[0][0] == "units/base/model.safetensors"
    assert "over the limit of 0.5 MB" in text and "no LoRA rank makes them fit" in text
    assert not (tmp_path / "ada.zip").exists()


def test_without_adapters_no_rank_is_spoken_of(work, tmp_path):
    with pytest.raises(InputError, match="leave something out"):
        bundle.bundle(work, "ada", out=tmp_path / "ada.zip", limit_mb=0.1)


def test_what_fits_can_be_unpacked_even_where_nothing_can_be_compressed(tmp_path, untried):
    """The limit on files holds for the zip, too."""
    import os

    folder = tmp_path / "work"
    build.build(folder)
    found = json.loads((folder / "03_sft.ipynb").read_text())
    found["cells"][0]["source"] = os.urandom(1_000_000).hex()
    (folder / "03_sft.ipynb").write_text(build.write_notebook(found))
    size = sum(len(data) for data in bundle._notebooks(folder).values())
    limit = (size + bundle.HEADS) / (1 - bundle.SPARE) / MB + 1e-6
    bundle.bundle(folder, "ada", out=tmp_path / "ada.zip", limit_mb=limit)
    raw = {f"{k:02}_x.ipynb": os.urandom(10**6) for k in range(3)}
    bundle._write_zip(tmp_path / "raw.zip", raw)
    room = (tmp_path / "raw.zip").stat().st_size - 3 * 10**6
    assert room < 3 * 10**6 * bundle.SPARE + bundle.HEADS


# --- tried before it is written ---


def test_a_model_that_does_not_answer_keeps_the_bundle_from_being_written(run, tmp_path):
    build.build(work := tmp_path / "work")
    plan = small_plan(tmp_path / "plan.toml", only="SFT")
    (tmp_path / "ada.zip").write_text("the last one")
    (run / SFT / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="units/sft does not answer, so nothing was written"):
        bundle.bundle(work, "ada", plan, run, tmp_path / "ada.zip", trusted=TRUST)
    assert (tmp_path / "ada.zip").read_text() == "the last one"
    assert not list(tmp_path.glob(".*"))


def test_low_scores_keep_nothing_from_being_written(tmp_path, capsys):
    """Untouched copies, tried for real."""
    folder = tmp_path / "work"
    build.build(folder)
    for path in folder.glob("*.ipynb"):
        if path.name != "01_data_inspection.ipynb":
            path.unlink()
    given = ["bundle", str(folder), "--name", "ada", "--out", str(tmp_path / "ada.zip")]
    assert command.main(given + ["--trust"] * TRUST) == 0
    shown = capsys.readouterr().out
    assert shown.count("not implemented yet") >= 3 and "ada.zip: 2 files" in shown
    assert set(entries(tmp_path / "ada.zip")) == {"01_data_inspection.ipynb", "bundle.json"}


def test_the_command_refuses_bad_input(work, tmp_path, capsys, monkeypatch):
    for given, why in (
        (["--name", "a/b"], "--name 'a/b'"),
        (["--name", "a", "--plan", "none"], "no plan 'none'"),
        (["--name", "a", "--plan", "units", "--run", "nothing"], "units/base is missing"),
        (["--name", "a", "--out", str(tmp_path)], "give a file in a folder"),
        (["--name", "a", "--out", str(tmp_path / "no" / "a.zip")], "give a file in a folder"),
    ):
        assert command.main(["bundle", str(work), *given]) == 2
        error = capsys.readouterr().err
        assert error.startswith("lessons: ") and why in error


def test_help_is_fast_and_loads_nothing_heavy():
    import subprocess
    import sys

    code = (
        "import sys; from lib.lessons import __main__ as m\n"
        "try: m.main(['grade', '--help'])\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'transformers', 'numpy', 'tomllib', 'lib.evaluation'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--trust" in done.stdout and done.stdout.endswith("[]\n")


def test_a_base_model_on_disk_is_tried_as_it_will_be_graded(work, run, plan, tmp_path, monkeypatch):
    """The plan's own base may be a hub id that this machine has not."""
    seen, real = [], grade.grade
    monkeypatch.setattr(grade, "grade", lambda *a, **k: seen.append(k) or real(*a, **{**k, "device": "cpu"}))
    bundle.bundle(work, "ada", plan, run, tmp_path / "ada.zip", trusted=TRUST, base=str(run / BASE), device="cuda")
    assert [(how["base"], how["device"], how["questions"]) for how in seen] == [(str(run / BASE), "cuda", 8)]
