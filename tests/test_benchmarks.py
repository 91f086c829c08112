"""Published test sets: read as they are published, each equation an annotated step that agrees with its answer."""

import json
import os
import re
from pathlib import Path

import pytest

from lib import tasks
from lib.answers import annotations, check_steps, inspect, is_verified, number
from lib.errors import InputError
from lib.prompts import FORMATS, in_format, solution
from lib.tasks import benchmarks

REAL = Path(os.environ.get("REAL_DATA") or "no such folder")
needs_real_files = pytest.mark.skipif(not REAL.is_dir(), reason="set REAL_DATA to the folder of real files")

SVAMP = {
    "ID": "chal-1",
    "Body": "Ann has 3.5 pens",
    "Question": "How many?",
    "Equation": "( 3.5 + 1.0 )",
    "Answer": 4.5,
}
MULTIARITH = {"iIndex": 1, "sQuestion": " How many? ", "lEquations": ["X=((3.0+1.0)*2.0)"], "lSolutions": [8.0]}
# Invented problems in the published form of ASDiv.
ASDIV = """<?xml version="1.0" encoding="UTF-8"?>
<Machine-Reading-Corpus-File><ProblemSet>
 <Problem ID="made-up-1" Grade="1" Source="none">
  <Body>Nine blue kites and 4 green kites fly &amp; fall.</Body><Question>How many kites
   are there?</Question>
  <Solution-Type>Addition</Solution-Type><Answer>13 (kites)</Answer><Formula>9+4=13</Formula>
 </Problem>
 <Problem ID="made-up-2"><Body>A rope of 3 meters is cut in 4 pieces.</Body><Question>How long is one?</Question>
  <Answer>0.75 (m)</Answer><Formula>3/4=0.75</Formula></Problem>
 <Problem ID="made-up-3"><Body>Who is older, Ann (7) or Ben (9)?</Body><Question>Tell the name.</Question>
  <Answer>Ben</Answer><Formula>9>7</Formula></Problem>
 <Problem ID="made-up-4"><Body>6 red and 4 white roses.</Body><Question>What is their ratio?</Question>
  <Answer>3:2</Answer><Formula>6:4=3:2</Formula></Problem>
 <Problem ID="made-up-5"><Body>3 rows of 5 trees.</Body><Question>How many?</Question>
  <Answer>15</Answer><Formula>3+5=8</Formula></Problem>
 <Problem ID="made-up-2b"><Body>A rope of 3 meters is cut in 4 pieces.</Body><Question>How long is one?</Question>
  <Answer>0.75 (m)</Answer><Formula>3/4=0.75</Formula></Problem>
</ProblemSet></Machine-Reading-Corpus-File>
"""


def read(folder, name, content):
    path = folder / f"{name}.file"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return benchmarks.read(name, path)


# --- the three forms ---


def test_svamp_joins_body_and_question_with_a_stop_and_its_equation_is_a_step(tmp_path):
    rows = [
        SVAMP,
        {
            **SVAMP,
            "Body": " Ann has 3.5 pens. ",
            "Question": "How  many are left?",
            "Equation": "( 3.5 - 1.0 )",
            "Answer": "2.5",
        },
        {**SVAMP, "Body": "", "Question": "How many?", "Equation": "7.0", "Answer": 7.0},
        {**SVAMP, "Body": "Is it so?", "Equation": "( 1.0 - 3.0 )", "Answer": -2},
    ]
    found = read(tmp_path, "svamp", json.dumps(rows))
    assert [(p.question, p.steps, p.answer) for p in found] == [
        ("Ann has 3.5 pens. How many?", ("<<(3.5+1)=4.5>>",), "4.5"),
        ("Ann has 3.5 pens. How many are left?", ("<<(3.5-1)=2.5>>",), "2.5"),
        ("How many?", ("<<7=7>>",), "7"),
        ("Is it so? How many?", ("<<(1-3)=-2>>",), "-2"),
    ]
    assert {p.source for p in found} == {"svamp"} and all(is_verified(p, solution(p)) for p in found)


def test_multiarith_has_its_equation_and_solution_in_lists(tmp_path):
    (found,) = read(tmp_path, "multiarith", json.dumps([MULTIARITH]))
    assert (found.question, found.steps, found.answer) == ("How many?", ("<<((3+1)*2)=8>>",), "8")
    assert is_verified(found, solution(found))


def test_asdiv_drops_units_and_makes_a_step_of_a_formula_that_computes_the_answer(tmp_path):
    found = read(tmp_path, "asdiv", ASDIV)
    assert [(p.question, p.steps, p.answer) for p in found] == [
        ("Nine blue kites and 4 green kites fly & fall. How many kites are there?", ("<<9+4=13>>",), "13"),
        ("A rope of 3 meters is cut in 4 pieces. How long is one?", ("<<3/4=0.75>>",), "0.75"),
        ("Who is older, Ann (7) or Ben (9)? Tell the name.", (), "Ben"),
        ("6 red and 4 white roses. What is their ratio?", (), "3:2"),
        ("3 rows of 5 trees. How many?", (), "15"),
    ]
    assert len({p.id for p in found}) == 5, "a repeated question is read once"


def test_an_equation_that_does_not_give_the_answer_is_no_step(tmp_path):
    rows = [{**SVAMP, "Equation": equation} for equation in ("( 3.5 + 2.0 )", "( 3.5 ? 1.0 )", "", "( 4.5 / 0.0 )")]
    for row in rows:
        (found,) = read(tmp_path, "svamp", json.dumps([row]))
        assert (found.steps, found.answer) == ((), "4.5") and is_verified(found, solution(found))


def test_a_test_set_has_problems_to_be_tested_on_alone(tmp_path):
    (tmp_path / "asdiv.xml").write_text(ASDIV)
    parts = tasks.test_set("asdiv", str(tmp_path / "asdiv.xml"))
    assert (parts["train"], parts["valid"], len(parts["test"])) == ([], [], 5)


# --- broken files: one sentence ---


@pytest.mark.parametrize(
    "name, content, says",
    [
        ("svamp", "", "not valid JSON"),
        ("svamp", "{", "not valid JSON"),
        ("svamp", "\ufeff[]", "not valid JSON"),
        ("svamp", "[" * 100_000, "JSON"),
        ("svamp", "{}", "expected a JSON list of problems"),
        ("svamp", "3", "expected a JSON list of problems"),
        ("svamp", "[3]", "problem 1: a problem of svamp has Body, Question, Equation, Answer"),
        ("svamp", json.dumps([SVAMP, {**SVAMP, "Body": 3}]), "problem 2: a problem of svamp has"),
        ("svamp", json.dumps([{k: v for k, v in SVAMP.items() if k != "Answer"}]), "problem 1: a problem of svamp has"),
        ("svamp", json.dumps([{**SVAMP, "Answer": None}]), "problem 1: a problem of svamp has"),
        ("svamp", json.dumps([{**SVAMP, "Answer": [4.5]}]), "problem 1: a problem of svamp has"),
        ("svamp", json.dumps([{**SVAMP, "Answer": " "}]), "problem 1: a problem of svamp has"),
        ("svamp", json.dumps([{**SVAMP, "Answer": "1" * 5000}]), "problem 1: a problem of svamp has"),
        (
            "multiarith",
            json.dumps([{**MULTIARITH, "lSolutions": []}]),
            "multiarith has sQuestion, lEquations, lSolutions",
        ),
        (
            "multiarith",
            json.dumps([{**MULTIARITH, "lEquations": ["X=1", "X=2"]}]),
            "problem 1: a problem of multiarith",
        ),
        ("multiarith", json.dumps([SVAMP]), "problem 1: a problem of multiarith has"),
        ("asdiv", "", "not valid XML"),
        ("asdiv", ASDIV[:-20], "not valid XML"),
        ("asdiv", "<a>" * 100_000, "not valid XML"),
        ("asdiv", json.dumps([SVAMP]), "not valid XML"),
        (
            "asdiv",
            ASDIV.replace("<Answer>Ben</Answer>", ""),
            "problem 3: a problem of asdiv has Body, Question, Formula",
        ),
        ("asdiv", ASDIV.replace("<Answer>Ben</Answer>", "<Answer/>"), "problem 3: a problem of asdiv has"),
        ("asdiv", '<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', "declares XML entities"),
        ("asdiv", b"\xff\xfe", "Cannot read"),
    ],
)
def test_a_broken_file_is_one_sentence_with_the_file_and_the_place(name, content, says, tmp_path):
    with pytest.raises(InputError, match=re.escape(says)) as caught:
        read(tmp_path, name, content)
    assert str(tmp_path / f"{name}.file") in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("name, content", [("svamp", "[]"), ("multiarith", "[]"), ("asdiv", "<ProblemSet/>")])
def test_a_file_without_a_problem_is_one_sentence(name, content, tmp_path):
    with pytest.raises(InputError):
        read(tmp_path, name, content)


def test_a_file_that_is_not_there_is_one_sentence(tmp_path):
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(InputError, match=re.escape(f"Cannot read {path}")) as caught:
            benchmarks.read("svamp", path)
        assert "\n" not in str(caught.value)


# --- the real files ---


@pytest.fixture(scope="module", params=["svamp", "multiarith"])
def real(request):
    name = request.param
    return name, REAL / name / f"{name}.json"


@needs_real_files
def test_real_problems_are_all_there_but_for_repeated_questions(real):
    name, path = real
    found = benchmarks.read(name, path)
    assert len(json.loads(path.read_text())) == 300
    assert len(found) == len({p.question for p in found}) == {"svamp": 300, "multiarith": 290}[name]


@needs_real_files
def test_every_real_equation_agrees_with_its_answer(real):
    name, path = real
    for problem in benchmarks.read(name, path):
        (step,) = problem.steps
        ((_, stated),) = annotations(step)
        assert stated == problem.answer and number(stated).denominator == 1
        assert [checked.ok for checked in check_steps(problem, solution(problem))] == [True]
        assert is_verified(problem, solution(problem)) and inspect(problem)["answer_extracted"]


@needs_real_files
def test_real_answers_are_those_of_the_file(real):
    """Where a question is asked twice, both rows give the same answer."""
    name, path = real
    question, answer = {"svamp": ("Question", "Answer"), "multiarith": ("sQuestion", "lSolutions")}[name]
    found = benchmarks.read(name, path)
    for row in json.loads(path.read_text()):
        end = " ".join(row[question].split())
        value = row[answer][0] if name == "multiarith" else row[answer]
        mine = [p for p in found if p.question.endswith(end) and number(p.answer) == float(value)]
        assert mine, row


@needs_real_files
def test_real_questions_are_whole_sentences_without_doubled_blanks(real):
    for problem in benchmarks.read(*real):
        assert "  " not in problem.question and problem.question == problem.question.strip()
        assert not re.search(r"\w [A-Z][a-z]* (?:many|much)\b", problem.question), problem.question


@needs_real_files
@pytest.mark.parametrize("form", FORMATS)
def test_real_problems_are_written_and_read_in_every_format(form, real):
    for problem in benchmarks.read(*real):
        written = in_format(problem, form)
        assert problem.question in written.prompt
        assert is_verified(problem, written.completion) or form.endswith("answer")
