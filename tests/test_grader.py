"""Grading: solutions get everything and stubs nothing, points follow the plan, and nothing of a hand-in is trusted."""

import json
import re
import shutil
import time
from dataclasses import replace

import pytest

from lib import answers, evaluation, pipeline
from lib.errors import InputError
from lib.lessons import __main__ as command
from lib.lessons import build, grade, handin, sandbox
from lib.lessons import check as lessons
from lib.lessons.plan import PLANS, Part, band, judge, known_plans, read_plan
from lib.lessons.report import ExerciseResult, Measurement, PartResult, Report
from lib.tasks import units
from tests.handing_in import BASE, PROMPT, RFT, ROOT, SFT, save_run, small_plan, with_function

TRUST = sandbox.missing() is not None  # where the machine cannot isolate, what is ours is run without
NUMBERS = [exercise.number for exercise in handin.known_exercises().values()]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return save_run(tmp_path_factory.mktemp("outputs") / "units")


@pytest.fixture
def handed(run, tmp_path):
    """A hand-in of the small plan: the solved third lesson and the models."""
    folder = tmp_path / "handed"
    for name, place in {"base": BASE, "sft": SFT, "rft": RFT}.items():
        shutil.copytree(run / place, folder / "units" / name)
    shutil.copy(run / PROMPT, folder / "units" / "prompt.json")
    shutil.copy(ROOT / "notebooks" / "03_sft.ipynb", folder)
    return folder


@pytest.fixture
def answering(monkeypatch):
    """Let models answer what a function of (job, question's number, problem) says; returns the jobs they were sent."""

    def install(write, seed=7, **more):
        jobs, real = [], sandbox.run

        def run(job, limits, readable, device, trusted):
            if job["kind"] != "answer":
                return real(job, limits, readable, device, trusted)
            jobs.append(job)
            asked = units.hidden(len(job["questions"]), seed)
            texts = [write(job, k, problem) for k, problem in enumerate(asked)]
            reply = {"texts": texts, "finished": [True] * len(texts), "parameters": 1000, "seconds": 1.0, **more}
            return sandbox.Outcome(reply, "done", "", "", 2.0)

        monkeypatch.setattr(sandbox, "run", run)
        return jobs

    return install


def part(report, name):
    (found,) = [part for part in report.parts if part.name == name]
    return found


# --- the lessons ---


def test_the_notebooks_with_the_solutions_get_everything():
    report = grade.grade(ROOT / "notebooks", trusted=TRUST)
    broken = {found.number: found.first_broken() for found in report.exercises if found.share < 1}
    assert not broken and report.share == 1
    assert [found.number for found in report.exercises] == NUMBERS
    assert report.text().splitlines()[-1] == "total 100 % (100.0 of 100 points)"


def test_untouched_copies_get_nothing(tmp_path):
    build.build(tmp_path)
    report = grade.grade(tmp_path, trusted=TRUST)
    assert {found.rows for found in report.exercises} == {(("your function", False, "not implemented yet"),)}
    assert report.reached == 0 and report.text().endswith("total 0 % (0.0 of 100 points)")


def test_known_exercises_are_those_of_the_lessons():
    from importlib import import_module

    lessons = [import_module(f"lib.lessons.{path.stem}") for path in sorted((ROOT / "lib/lessons").glob("lesson_*.py"))]
    assert NUMBERS == [number for lesson in lessons for number in lesson.EXERCISES]


LABELS = "def make_labels(prompt, completion, eos):\n    return {}"
RIGHT, NO_EOS = LABELS.format("[-100] * len(prompt) + completion + [eos]"), LABELS.format("[-100] * len(prompt)")


ONE = 'title = "One"\n[[parts]]\nname = "a"\npoints = 1\nexercises = ["3.1"]'


def grade_labels(tmp_path, source, plan=""):
    """(exercise 3.1, the report) of a hand-in whose cell holds `source`; of the whole lesson where there is no plan."""
    (tmp_path / "03_sft.ipynb").write_text(with_function("03_sft.ipynb", {"make_labels": source}))
    (tmp_path / "plan.toml").write_text(plan)
    report = grade.grade(tmp_path, str(tmp_path / "plan.toml") if plan else None, trusted=TRUST, only=["3"])
    return next(found for found in report.exercises if found.number == "3.1"), report


def test_an_exercise_counts_by_its_invariants_and_lessons_can_be_graded_alone(tmp_path):
    wrong = LABELS.format("[-100] * len(prompt) + completion + [-100]")
    found, report = grade_labels(tmp_path, wrong)
    held = [ok for _, ok, _ in found.rows]
    assert held.count(False) == 1 and found.share == 1 - 1 / len(held) >= 0.7
    assert "EOS" in found.first_broken() and found.first_broken() in " ".join(report.text().split())
    numbers = [number for number in NUMBERS if number.startswith("3.")]
    assert [found.number for found in report.exercises] == numbers and report.only == ("03",)
    assert report.reached == pytest.approx(100 * found.share / len(numbers)) and report.points == 100


FIRST = """def split_of(text):
    from hashlib import blake2b

    point = int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64
    return "train" if point < 0.8 else "valid" if point < 0.9 else "test"
"""


def test_lessons_that_are_not_there_count_as_nothing(tmp_path):
    (tmp_path / "01_data_inspection.ipynb").write_text(with_function("01_data_inspection.ipynb", {"split_of": FIRST}))
    report = grade.grade(tmp_path, trusted=TRUST)
    assert report.reached == pytest.approx(100 / len(NUMBERS))
    assert next(found for found in report.exercises if found.number == "9.1").reason == (
        "09_evaluation.ipynb is not in the hand-in."
    )


def test_a_process_that_ends_and_a_check_that_is_changed_count_as_nothing(tmp_path):
    ended, report = grade_labels(tmp_path, f"import os\n{RIGHT}\nos._exit(0)", ONE)
    assert report.reached == 0 and ended.reason in " ".join(report.text().split())
    assert ended.share == 0 and ended.reason
    patched = "from lib.lessons import lesson_03\nfor i in lesson_03.EXERCISES['3.1'].invariants:\n    i.__code__ = "
    changed, _ = grade_labels(tmp_path, f"{NO_EOS}\n{patched}(lambda labels: None).__code__", ONE)
    assert changed.share == 0 and "changed" in changed.reason


def test_what_a_broken_notebook_holds_counts_as_nothing(tmp_path):
    (tmp_path / "03_sft.ipynb").write_text("{")
    report = grade.grade(tmp_path, trusted=TRUST, only=["03"])
    assert report.reached == 0 and "no notebook that can be read" in report.exercises[0].reason


# --- which cells count ---


def cells_of(*sources):
    """Code cells as `handin.read_cells` gives them; a source in a pair is tagged as an exercise."""
    import tempfile
    from pathlib import Path

    found = [(source, []) if isinstance(source, str) else (source[0], ["exercise"]) for source in sources]
    cells = [
        {"cell_type": "code", "metadata": {"tags": tags}, "source": source, "outputs": []} for source, tags in found
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "03_sft.ipynb"
        path.write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
        return handin.read_cells(path)


EXERCISE = handin.Exercise("3.1", "f", "03_sft.ipynb")


def job_of(*sources, functions=("f", "g")):
    return handin.exercise_job(cells_of(*sources), EXERCISE, functions)


def test_the_last_cell_that_defines_the_function_counts():
    assert job_of(("def f(): 1",), "def f(): 2", "if 1:\n    def f(): 3", "f = 4")["cells"] == ["def f(): 2"]
    assert job_of(("def f(): 1",), "f = lambda: 2")["cells"] == ["f = lambda: 2"]


def test_exercise_cells_before_it_go_along_where_it_builds_on_them():
    built = job_of(("def h(): 0",), ("def g(): h()",), ("def other(): 1 / 0",), ("def f(): g()",), ("def h(): 9",))
    assert built["cells"] == ["def h(): 0", "def g(): h()", "def f(): g()"]
    assert job_of("def g(): 1", "def f(): g()")["cells"] == ["def g(): 1", "def f(): g()"]  # it counts for g
    assert job_of("def k(): 1", "def f(): k()")["cells"] == ["def k(): 1", "def f(): k()"]  # a helper
    assert job_of("def k(): 1\nk()", "def f(): k()")["cells"] == ["def f(): k()"]  # it does something
    assert job_of(("def f(): g()",), ("def g(): 1",))["cells"] == ["def f(): g()"]  # after it


def test_imports_whose_names_are_used_go_along():
    found = job_of(
        "%load_ext autoreload\nimport math, json as j",
        "from lib import answers\nfrom os.path import (\n    join as glue,\n)\nimport xml.dom",
        ("import torch\ndef f(x): return math.pi, glue, xml.dom",),
    )
    wanted = ["import math, json as j", "from os.path import join as glue", "import xml.dom"]
    assert found["imports"].split("\n") == wanted


def test_why_there_is_no_job_is_told():
    assert job_of("x = 1") == "No cell defines f."
    assert "no Python (SyntaxError" in job_of("def f(:\n  pass")
    assert "no Python" in job_of("def f():\n" + "(" * 5000)
    assert job_of("def f(): 1", "def g(:")["cells"] == ["def f(): 1"]


def test_rows_that_no_check_writes_count_as_nothing():
    known = handin.known_exercises()["3.1"]
    invariants = [i.__doc__.strip() for i in build.lessons.find("3.1").invariants]

    def share(rows, **more):
        outcome = sandbox.Outcome({"rows": rows, "tampered": False, **more}, "done", "note", "", 1.0)
        return grade._tried(known, {}, outcome).share

    good = [[what, True, ""] for what in invariants]
    assert share(good) == 1 and share(good[:1]) == 1 / len(good)
    assert share(good, tampered=True) == 0
    assert share([["something", True, ""]] * 4) == share([good[0]] * 4) == share(good + [["more", True, ""]]) == 0
    assert share("rows") == share([[1, 2]]) == share([["a", 1, ""]]) == 0
    assert grade._tried(known, {}, sandbox.Outcome(None, "time", "too slow", "", 1.0)).reason == "too slow"
    died = sandbox.Outcome({"rows": good, "tampered": False}, "memory", "too much", "", 1.0)
    assert grade._tried(known, {}, died).share == 0


# --- models ---


def right(job, k, problem):
    return f"<answer>{problem.answer}</answer>"


def test_models_are_asked_and_their_parts_graded(handed, tmp_path):
    """On real models, in the sandbox: untrained, they know nothing, and twice the same."""
    plan = small_plan(tmp_path / "plan.toml", questions=6)
    first = grade.grade(handed, plan, seed=7, trusted=TRUST)
    assert [found.reason for found in first.models] == ["", "", ""]
    assert [(found.model, found.form, found.n) for found in first.models] == [
        ("base", "chat", 6),
        ("units/sft", "tagged", 6),
        ("units/rft", "tagged", 6),
    ]
    base, sft, _ = first.models
    assert base.parameters < sft.parameters and base.accuracy == 0 and sft.unfinished > 0
    assert part(first, "labels").reached == 20 and part(first, "chat").reached == 0
    again = grade.grade(handed, plan, seed=7, trusted=TRUST, only=["03"])
    assert replace(again.models[0], seconds=0) == replace(sft, seconds=0)
    assert part(again, "SFT") == part(first, "SFT")


def test_what_right_answers_are_worth(handed, tmp_path, answering):
    """The base knows a fifth, SFT half, RFT what SFT knows and two questions more of twenty."""
    known = {None: 4, "sft": 10, "rft": 12}

    def write(job, k, problem):
        name = job["adapter"] and job["adapter"].rpartition("/")[2]
        return right(job, k, problem) if k < known[name] else "<answer>0</answer>" if k < 18 else "I wonder"

    jobs = answering(write)
    report = grade.grade(handed, small_plan(tmp_path / "plan.toml"), seed=7, trusted=TRUST)
    assert {p.name: p.reached for p in report.parts} == pytest.approx(
        {"labels": 20, "chat": 30 * 0.2 / 0.4, "SFT": 25 * 0.5, "RFT": 25 * 0.1 / 0.2}
    )
    assert sorted(job["form"] for job in jobs) == ["chat", "tagged", "tagged"]  # each model is asked once
    sft = next(found for found in report.models if found.model == "units/sft")
    assert sft.accuracy == 0.5 and sft.interval == evaluation.wilson(10, 20) and sft.answered == 0.9
    assert sum(asked for _, asked in sft.by(sft.novelties).values()) == 20
    assert set(sft.by(sft.novelties)) == {"new_number", "new_pair"} and set(sft.by(sft.families)) <= set(units.UNITS)
    text = report.text()
    assert "50.0 % right [29.9 %, 70.1 %] of 20" in text and "+10.0 points [" in text
    assert "1,000 parameters" in text and text.endswith("total 60 % (60.0 of 100 points)")


def test_answers_that_only_a_forgiving_reader_would_take_get_nothing(handed, tmp_path, answering):
    forms = ["{}", "about {}", "It is {}.", "answer: {}", "<answer>about {}</answer>", "<ans>{}</ans>"]
    answering(lambda job, k, problem: forms[k % len(forms)].format(problem.answer))
    report = grade.grade(handed, small_plan(tmp_path / "plan.toml"), seed=7, trusted=TRUST)
    assert [found.accuracy for found in report.models] == [0, 0, 0] and report.reached == 20


def test_answers_out_of_tolerance_get_nothing(handed, tmp_path, answering):
    answering(lambda job, k, problem: f"<answer>{float(problem.answer) * (1.04 if k % 2 else 1.06):.6f}</answer>")
    report = grade.grade(handed, small_plan(tmp_path / "plan.toml"), seed=7, trusted=TRUST)
    assert {found.accuracy for found in report.models} == {0.5}


def test_right_answers_never_go_where_a_hand_in_is(handed, tmp_path, answering):
    jobs = answering(right)
    grade.grade(handed, small_plan(tmp_path / "plan.toml"), seed=7, trusted=TRUST)
    asked, prompt = units.hidden(20, 7), json.loads((handed / "units" / "prompt.json").read_text())
    for job in jobs:
        assert job.pop("questions") == [problem.question for problem in asked]
        assert (job.pop("system"), job.pop("shots")) == (
            (prompt["system"], prompt["shots"]) if job["form"] == "chat" else ("", [])
        )
        settings = "kind base adapter prompts form max_new_tokens max_parameters calculator dtype device seed"
        assert set(job) == set(settings.split()) and job["prompts"] is None
        text = json.dumps(job)
        assert not any(problem.steps[-1] in text or problem.id in text for problem in asked)


def test_the_seed_decides_what_is_asked(handed, tmp_path, answering):
    jobs = answering(right)
    plan = small_plan(tmp_path / "plan.toml")
    reports = [grade.grade(handed, plan, seed=seed, trusted=TRUST) for seed in (7, 7, 8, None, None)]
    asked = [tuple(job["questions"]) for job in jobs]
    first, again, other, *drawn = asked[::3]
    assert first == again and len({first, other, *drawn}) == 4
    assert all(len(set(asked[k : k + 3])) == 1 for k in range(0, 15, 3))  # all models the same
    assert [report.seed for report in reports[:3]] == [7, 7, 8]
    assert reports[3].seed != reports[4].seed and f"seed {reports[3].seed}" in reports[3].text()
    assert [tuple(p.question for p in units.hidden(20, report.seed)) for report in reports[3:]] == drawn


def test_too_many_parameters_get_nothing(handed, tmp_path):
    plan = small_plan(tmp_path / "plan.toml", most=1000, only="SFT")
    report = grade.grade(handed, plan, seed=7, trusted=TRUST)
    assert [part.reached for part in report.parts] == [0]
    (found,) = report.models
    assert re.search(r"[0-9,]+ parameters, and 1,000 are allowed", found.reason)
    assert part(report, "SFT").lines == (f"units/sft: {found.reason}",)


def test_parameters_that_the_reply_tells_are_looked_at_too(handed, tmp_path, answering):
    answering(right, parameters=5_000_001)
    report = grade.grade(handed, small_plan(tmp_path / "plan.toml"), seed=7, trusted=TRUST)
    assert "5,000,001 parameters" in report.models[0].reason and report.reached == 20


@pytest.mark.parametrize(
    "reply",
    [{"texts": ["<answer>1</answer>"]}, {"texts": None}, {"texts": [1] * 20}, {"finished": []}, {"parameters": "few"}],
)
def test_a_reply_that_is_none_gets_nothing(reply, handed, tmp_path, answering):
    answering(right, **reply)
    report = grade.grade(handed, small_plan(tmp_path / "plan.toml"), seed=7, trusted=TRUST)
    assert report.reached == 20 and "not an answer to every question" in report.models[0].reason


@pytest.mark.parametrize(
    "missing, lost",
    [
        ("prompt.json", {"base": "units/prompt.json is not in the hand-in."}),
        ("sft", {"units/sft": "units/sft is not in the hand-in."}),
        ("base", dict.fromkeys(["base", "units/sft", "units/rft"], "units/base is not in the hand-in.")),
    ],
)
def test_a_part_that_is_missing_gets_nothing_and_says_so(missing, lost, handed, tmp_path, answering):
    path = handed / "units" / missing
    path.unlink() if path.is_file() else shutil.rmtree(path)
    answering(right)
    report = grade.grade(handed, small_plan(tmp_path / "plan.toml"), seed=7, trusted=TRUST)
    assert {found.model: found.reason for found in report.models if found.reason} == lost
    if missing == "sft":  # nothing to be better than
        assert part(report, "RFT").reached == part(report, "SFT").reached == 0 and part(report, "chat").reached == 30


@pytest.mark.parametrize("text", ["[]", '{"system": 3}', '{"shots": [["a"]]}', '{"shots": [["a", 3]]}', "{"])
def test_a_prompt_that_is_none_gets_nothing(text, handed, tmp_path, answering):
    (handed / "units" / "prompt.json").write_text(text)
    answering(right)
    report = grade.grade(handed, small_plan(tmp_path / "plan.toml"), seed=7, trusted=TRUST)
    assert "prompt.json" in report.models[0].reason and str(tmp_path) not in report.models[0].reason
    assert not report.models[1].reason


def test_another_base_may_be_given(handed, run, tmp_path, answering):
    jobs = answering(right)
    grade.grade(handed, small_plan(tmp_path / "plan.toml"), seed=7, trusted=TRUST, base=str(run / BASE))
    assert {job["base"] for job in jobs} == {str((run / BASE).resolve())}
    with pytest.raises(InputError, match="Cannot find the base model 'nobody/nothing'.*--base"):
        grade.grade(handed, small_plan(tmp_path / "plan.toml"), seed=7, trusted=TRUST, base="nobody/nothing")


def test_models_go_with_the_lessons_that_make_them(handed, tmp_path, answering):
    answering(right)
    plan = small_plan(tmp_path / "plan.toml")
    report = grade.grade(handed, plan, seed=7, trusted=TRUST, only=["03"])
    assert [part.name for part in report.parts] == ["labels", "SFT"] and report.points == 45
    with pytest.raises(InputError, match="nothing in lesson 05"):
        grade.grade(handed, plan, trusted=TRUST, only=["05"])


# --- a plan's arithmetic ---


def measured(model, correct, n, **more):
    return Measurement(model, "tagged", tuple(k < correct for k in range(n)), **more)


def points(accuracy_of, *, n=100, **more):
    chosen = Part("p", 20, model="m", accuracy=(0.4, 0.6), **more)
    return judge(chosen, {}, {("m", "tagged"): measured("m", accuracy_of, n)}).reached


def test_bands_are_linear_and_cut_off():
    assert [points(k) for k in (0, 40, 45, 50, 60, 61, 100)] == pytest.approx([0, 0, 5, 10, 20, 20, 20])
    assert [band(x, -0.1, 0.1) for x in (-1, -0.1, 0, 0.05, 1)] == pytest.approx([0, 0, 0.5, 0.75, 1])


def test_a_bonus_comes_on_top_from_the_end_of_the_band():
    more = {"bonus_to": 0.8, "bonus_points": 5}
    assert [points(k, **more) for k in (50, 60, 70, 80, 100)] == pytest.approx([10, 20, 22.5, 25, 25])


def test_exercises_have_equal_weights():
    rows = tuple((f"{k}.", k < 3, "") for k in range(4))
    found = {
        "1.1": ExerciseResult("1.1", "f", "01", 4, rows),
        "1.2": ExerciseResult("1.2", "g", "01", 1, (("a.", True, ""),)),
        "1.3": ExerciseResult("1.3", "h", "01", 2, (("a.", True, ""),), reason="it died"),
    }
    assert judge(Part("p", 30, exercises=("1.1", "1.2", "1.3")), found, {}).reached == pytest.approx(30 * 1.75 / 3)
    assert judge(Part("p", 30, exercises=("1.1",)), found, {}).reached == pytest.approx(22.5)


def test_a_difference_is_paired_and_shows_its_interval():
    a, b = measured("a", 60, 100), measured("b", 50, 100)
    chosen = Part("p", 20, model="a", better_than="b", difference=(0.0, 0.2))
    both = {("a", "tagged"): a, ("b", "tagged"): b}
    found = judge(chosen, {}, both)
    mean, low, high = evaluation.paired_difference(list(a.correct), list(b.correct))
    assert found.reached == pytest.approx(10) and mean == pytest.approx(0.1)
    assert f"+10.0 points [{100 * low:+.1f}, {100 * high:+.1f}]" in found.lines[0] and "100 questions" in found.lines[0]
    assert high - low < 0.13  # unpaired it would be twice as wide
    assert judge(replace(chosen, model="b", better_than="a"), {}, both).reached == 0
    richer = replace(chosen, difference=(0.0, 0.05), bonus_to=0.15, bonus_points=4)
    assert judge(richer, {}, both).reached == pytest.approx(22)


def test_a_model_that_was_not_measured_gets_nothing():
    models = {("m", "tagged"): Measurement("m", "tagged", reason="it died"), ("n", "tagged"): measured("n", 9, 10)}
    for chosen in (
        Part("p", 20, model="m", accuracy=(-1.0, 0.5)),
        Part("p", 20, model="n", better_than="m", difference=(-2.0, -1.0)),
        Part("p", 20, model="m", better_than="n", difference=(-2.0, -1.0)),
    ):
        found = judge(chosen, {}, models)
        assert found.reached == 0 and found.lines == ("m: it died",)


# --- plans ---


@pytest.mark.parametrize("name", known_plans())
def test_plans_hold_together(name):
    plan = read_plan(name)
    assert sum(part.points for part in plan.parts) == 100 and plan.title
    for chosen in plan.parts:
        assert set(chosen.exercises) <= {"*", *NUMBERS}
        for model in {chosen.model, chosen.better_than} - {"", "base"}:
            assert model in plan.files
    assert all(place[:2].isdigit() for place in plan.files.values())


def test_the_plans_there_are():
    assert known_plans() == ["lessons", "units", "units_smollm2"] == sorted(path.stem for path in PLANS.iterdir())
    bands = {part.name: (part.points, part.accuracy) for part in read_plan("units_smollm2").parts}
    assert bands["chat and chains"] == (25, (0.0, 0.4)) and bands["SFT"] == (25, (0.4, 0.6))
    assert bands["RFT"] == (25, (0.6, 0.7))


WRONG = {
    'title = "x"': "has no parts",
    "title = ": "is no TOML",
    'title = "x"\ncolour = 1\n[[parts]]\nname = "a"\npoints = 1\nexercises = ["1.1"]': "unknown colour",
    '[[parts]]\nname = "a"\npoints = 1\nexercises = ["1.1"]': "title is missing",
    'title = "x"\n[[parts]]\nname = "a"\nexercises = ["1.1"]': "part 1: points is missing",
    'title = "x"\n[[parts]]\nname = "a"\npoints = "many"\nexercises = ["1.1"]': "points = 'many' is of the wrong kind",
    'title = "x"\n[[parts]]\nname = "a"\npoints = 1': "neither exercises nor a model",
    'title = "x"\n[[parts]]\nname = "a"\npoints = 1\nmodel = "m"': "wants accuracy",
    'title = "x"\n[[parts]]\nname = "a"\npoints = 1\nmodel = "m"\naccuracy = [1.0, 0.5]': "wants accuracy",
    'title = "x"\n[[parts]]\nname = "a"\npoints = 1\nmodel = "m"\nform = "song"\naccuracy = [0, 1]': "unknown form",
    'title = "x"\n[[parts]]\nname = "a"\npoints = 1\nmodel = "m"\naccuracy = [0, 1]\nbonus_points = 5': "a bonus wants",
    'title = "x"\nquestions = 1\n[[parts]]\nname = "a"\npoints = 1\nexercises = ["1.1"]': "questions must be",
}


@pytest.mark.parametrize("text, why", WRONG.items(), ids=WRONG.values())
def test_a_plan_that_is_not_well_made_is_refused(text, why, tmp_path):
    (tmp_path / "plan.toml").write_text(text)
    with pytest.raises(InputError, match=why):
        read_plan(str(tmp_path / "plan.toml"))


def test_a_plan_that_is_not_there_is_refused(tmp_path):
    for name in ("nothing", "../plans/units", str(tmp_path / "nothing.toml")):
        with pytest.raises(InputError, match="no plan|Cannot read"):
            read_plan(name)


def test_a_plan_with_an_exercise_that_no_notebook_has_is_refused(tmp_path):
    (tmp_path / "p.toml").write_text('title = "x"\n[[parts]]\nname = "a"\npoints = 1\nexercises = ["3.99"]')
    with pytest.raises(InputError, match="exercise 3.99, which no notebook has"):
        grade.grade(ROOT / "notebooks", str(tmp_path / "p.toml"), trusted=TRUST)


# --- the report and the command ---


def test_messages_of_a_hand_in_do_not_steer_the_terminal():
    rows = (("your function", False, "raised \x1b[2J\nValueError " + "x" * 2000 + "\udcff"),)
    found = ExerciseResult("1.1", "f", "01", 2, rows)
    report = Report("T", "p", "s\x07", "now", 1, (PartResult("a", 1, 0, ("x\x1b",)),), (found,))
    assert all(line.isprintable() for line in report.text().splitlines()) and max(map(len, report.text().split())) < 310
    assert json.loads(report.json())["exercises"][0]["rows"][0][2].endswith("\udcff")
    report.json().encode()


def test_the_command_grades_and_writes_json(tmp_path, capsys):
    (tmp_path / "01_data_inspection.ipynb").write_text(with_function("01_data_inspection.ipynb", {"split_of": FIRST}))
    given = ["grade", str(tmp_path), "--only", "1", "--json", str(tmp_path / "out.json"), "--seed", "5"]
    assert command.main(given + ["--trust"] * TRUST) == 0
    shown, found = capsys.readouterr().out, json.loads((tmp_path / "out.json").read_text())
    assert re.search(r"1\.1 +split_of +(\d+) of \1 +ok", shown) and re.search(r"total \d+ %", shown.splitlines()[-1])
    assert (found["seed"], found["plan"], found["only"]) == (5, "lessons", ["01"])
    assert found["versions"]["torch"] and found["settings"]["isolated"] is not TRUST
    rows = {row["number"]: row["share"] for row in found["exercises"]}
    assert rows.pop("1.1") == 1 and set(rows.values()) == {0}
    assert found["total"]["share"] == pytest.approx(1 / (1 + len(rows)))


@pytest.mark.parametrize(
    "given, why",
    [
        (["nothing"], "nothing"),
        ([str(ROOT / "notebooks"), "--plan", "none"], "no plan 'none'; use lessons, units, units_smollm2"),
        ([str(ROOT / "notebooks"), "--only", "11"], "no lesson '11'; use 01, 02"),
        ([str(ROOT / "notebooks"), "--json", "/nowhere/x.json"], "--json /nowhere/x.json"),
        ([str(ROOT / "pyproject.toml")], "pyproject.toml"),
    ],
)
def test_bad_input_is_one_sentence_and_2(given, why, capsys):
    assert command.main(["grade", *given] + ["--trust"] * TRUST) == 2
    error = capsys.readouterr().err.splitlines()
    assert error[-1].startswith("lessons: ") and why in error[-1]


def test_a_machine_without_isolation_is_told(monkeypatch, capsys):
    monkeypatch.setattr(sandbox, "missing", lambda: "This machine cannot isolate.")
    assert command.main(["grade", str(ROOT / "notebooks")]) == 2
    assert "This machine cannot isolate. " in capsys.readouterr().err


def test_the_arbiter_is_the_one(handed, tmp_path, answering, monkeypatch):
    asked = []
    monkeypatch.setattr(answers, "is_correct", lambda problem, text: asked.append(problem) is None)
    answering(lambda *_: "whatever")
    report = grade.grade(handed, small_plan(tmp_path / "plan.toml"), seed=7, trusted=TRUST)
    assert len(asked) == 60 and {found.accuracy for found in report.models} == {1}


def test_a_base_by_hub_id_is_read_in_the_sandbox(handed, run, tmp_path, monkeypatch):
    """From a cache as the hub's client lays it out: links to blobs in another folder."""
    from transformers.utils import hub

    cache = tmp_path / "cache"
    model, snapshot = cache / "models--nobody--small", cache / "models--nobody--small" / "snapshots" / "0123abcd"
    for folder in (snapshot, model / "refs", model / "blobs"):
        folder.mkdir(parents=True)
    (model / "refs" / "main").write_text("0123abcd")
    for path in (run / BASE).iterdir():
        shutil.copy(path, model / "blobs" / f"blob-{path.name}")
        (snapshot / path.name).symlink_to(f"../../blobs/blob-{path.name}")
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(cache))
    shutil.rmtree(handed / "units" / "base")
    plan = small_plan(tmp_path / "plan.toml", questions=4, only="SFT")
    report = grade.grade(handed, plan, seed=7, trusted=TRUST, base="nobody/small")
    assert [(found.reason, found.n) for found in report.models] == [("", 4)]
    (model / "blobs" / "blob-tokenizer.json").unlink()
    with pytest.raises(InputError, match="Cannot find the base model 'nobody/small'"):
        grade.grade(handed, plan, seed=7, trusted=TRUST, base="nobody/small")


# --- what a hand-in may do, and what it may not ---

IMPORTS = "import os, json\n" * 20_000
SLOW = "\ndef make_labels(prompt, completion, eos):\n    return os, json\n"


def notebook_of(*cells) -> dict:
    made = [
        {"cell_type": "code", "id": f"c{k}", "metadata": {"tags": ["exercise"] if k else []}, "outputs": []}
        | {"execution_count": None, "source": source}
        for k, source in enumerate(cells)
    ]
    return {"cells": made, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}


def test_a_notebook_of_very_many_imports_is_read_in_seconds(tmp_path):
    began, exercise = time.monotonic(), handin.known_exercises()["3.1"]
    (tmp_path / exercise.notebook).write_text(json.dumps(notebook_of(IMPORTS[:190_000], SLOW)))
    job = handin.exercise_job(handin.read_cells(tmp_path / exercise.notebook), exercise, ["make_labels"])
    assert time.monotonic() - began < 10 and job["imports"] == "import os, json"


@pytest.mark.parametrize("tags", [["exercise"], []])
def test_helpers_of_a_readers_own_go_with_the_exercise(tmp_path, tags):
    exercise = handin.known_exercises()["3.1"]
    helpers = "IGNORE = -100\n\n\ndef hidden(prompt):\n    return [IGNORE] * len(prompt)"
    answer = "def make_labels(prompt, completion, eos):\n    return hidden(prompt) + completion + [eos]"
    content = notebook_of(helpers, "print('a cell that runs something')\nhidden = None", answer)
    content["cells"][1]["metadata"]["tags"] = tags
    (tmp_path / exercise.notebook).write_text(json.dumps(content))
    job = handin.exercise_job(handin.read_cells(tmp_path / exercise.notebook), exercise, ["make_labels"])
    assert job["cells"] == ([helpers, answer] if not tags else [helpers, content["cells"][1]["source"], answer])


TRIVIAL = [lambda *a: None, lambda *a: 0, lambda *a: "", lambda *a: [], lambda *a: False, lambda *a: a[0]]


def test_a_function_that_does_nothing_earns_next_to_nothing():
    best = {}
    for number in handin.known_exercises():
        for answer in TRIVIAL:
            rows = tuple(lessons.check(number, answer).rows)
            share = ExerciseResult(number, "f", "n", len(lessons.find(number).invariants), rows).share
            best[number] = max(best.get(number, 0.0), share)
    assert max(best.values()) <= 0.5 and sum(best.values()) / len(best) < 0.1, best


def test_wordings_of_one_conversion_count_as_one_for_the_interval():
    once = Measurement("m", "tagged", correct=(True, False) * 10, cells=tuple(map(str, range(20))))
    often = Measurement("m", "tagged", correct=(True, False) * 50, cells=tuple(map(str, range(20))) * 5)
    assert once.accuracy == often.accuracy and once.interval == often.interval == evaluation.wilson(10, 20)
    assert (once.conversions, often.conversions, often.n) == (20, 20, 100)


def test_the_adapters_of_a_profile_fit_its_plan_together():
    """SmolLM2 360M: 542,720 parameters a rank, four bytes each."""
    plan, found = read_plan("units_smollm2"), pipeline.resolve("units_smollm2", [])
    ranks = [found[stage]["lora_rank"] for stage in ("03_sft", "04_rft_generation")]
    notebooks = sum(path.stat().st_size for path in (build.ROOT / "notebooks").glob("*.ipynb"))
    assert 4 * 542_720 * sum(ranks) + notebooks + 500_000 < plan.limit_mb * 2**20
    assert 4 * 542_720 * ranks[0] <= found["03_sft"]["max_adapter_mb"] * 1e6


def test_a_single_notebook_is_told_to_come_in_its_folder(tmp_path):
    shutil.copy(ROOT / "notebooks" / "03_sft.ipynb", tmp_path)
    with pytest.raises(InputError, match="a single notebook; give its folder, and the lesson with --only"):
        grade.grade(tmp_path / "03_sft.ipynb", trusted=TRUST)
