"""Where problems come from: generators, published files, and every chain solved anew from its question."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib import tasks
from lib.answers import annotations, check_annotation, check_steps, is_correct, is_verified, number
from lib.errors import InputError
from lib.problems import SPLITS, make_problem, split, split_of, write_jsonl
from lib.prompts import in_format, solution
from lib.tasks import arithmetic, benchmarks, boolean, gsm8k, modular_chain, word_problems
from tests.oracles import chains

ROOT = Path(__file__).parents[1]
REAL = Path(os.environ.get("REAL_DATA") or "no such folder")
needs_real_files = pytest.mark.skipif(not REAL.is_dir(), reason="set REAL_DATA to the folder of real files")

GENERATORS = {
    "word_problems": word_problems.generate,
    "modular_chain": modular_chain.generate,
    "boolean": boolean.generate,
    "addition": lambda n, **more: arithmetic.generate(n, "+", **more),
    "multiplication": lambda n, **more: arithmetic.generate(n, "*", **more),
}
every_generator = pytest.mark.parametrize("task", GENERATORS)


def run_python(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# --- every generator ---


@every_generator
def test_a_generator_gives_the_number_asked_for_with_unique_ids(task):
    for n in (1, 7, 300):
        problems = GENERATORS[task](n, seed=1)
        assert len(problems) == len({p.id for p in problems}) == len({p.question for p in problems}) == n
        assert {p.source for p in problems} == {task}


@every_generator
def test_the_seed_decides_the_problems(task):
    generate = GENERATORS[task]
    assert generate(50, seed=3) == generate(50, seed=3)
    ids = [{p.id for p in generate(50, seed=seed)} for seed in (3, 4)]
    assert len(ids[0] & ids[1]) < 10


def test_problems_are_the_same_in_another_process():
    code = (
        "from lib.tasks import arithmetic as a, modular_chain as m, word_problems as w\n"
        "for g in (a, m, w): print([p.id for p in g.generate(40, seed=5)])"
    )
    assert run_python(code, PYTHONHASHSEED="1") == run_python(code, PYTHONHASHSEED="2")


def test_tasks_load_no_heavy_library():
    code = (
        "import sys\nfrom lib import answers, calculator, problems, prompts\n"
        "from lib.tasks import arithmetic, boolean, gsm8k, modular_chain, word_problems\n"
        "print(sorted({'torch', 'transformers', 'datasets', 'numpy'} & set(sys.modules)))"
    )
    assert run_python(code) == "[]"


@every_generator
def test_meta_survives_json(task):
    for problem in GENERATORS[task](20):
        assert json.loads(json.dumps(problem.meta)) == problem.meta


# --- word problems ---


@pytest.mark.parametrize("min_steps, max_steps, max_number", [(1, 3, 99), (2, 2, 10), (1, 6, 999)])
def test_every_word_problem_says_what_its_steps_compute(min_steps, max_steps, max_number):
    for problem in word_problems.generate(1500, min_steps, max_steps, max_number, seed=2):
        assert (list(problem.steps), problem.answer) == chains.word_problem(problem.question), problem.question


def test_word_problems_tell_every_kind_of_event_with_every_operator():
    problems = word_problems.generate(3000, seed=2)
    assert {event for p in problems for event, _ in chains.events(p.question)} == set(chains.EVENTS)
    signs = Counter(sign for p in problems for step in p.steps for sign in re.findall(r"\d([-+*/])\d", step))
    assert min(signs[sign] for sign in "+-*/") > 0.1 * signs.total()


def test_numbers_of_steps_are_spread_evenly_over_those_asked_for():
    problems = word_problems.generate(90, min_steps=2, max_steps=4)
    assert Counter(len(p.steps) for p in problems) == {2: 30, 3: 30, 4: 30}


@pytest.mark.parametrize("max_number", [10, 25, 500])
def test_numbers_of_word_problems_stay_within_bounds_and_use_them(max_number):
    problems = word_problems.generate(600, max_steps=4, max_number=max_number)
    numbers = [int(n) for p in problems for text in (p.question, *p.steps) for n in re.findall(r"\d+", text)]
    assert 1 <= min(numbers) and 0.9 * max_number <= max(numbers) <= max_number


def test_every_operand_matters():
    for problem in word_problems.generate(600, max_steps=4):
        for step in problem.steps:
            before, operand, after = (int(n) for n in re.findall(r"\d+", step))
            assert operand >= 2 and before != after


# --- modular chains ---


@pytest.fixture(scope="module")
def all_chains():
    return modular_chain.generate(0, n_operations=4, modulus=5)


def test_there_are_73205_chains_of_4_operations_modulo_5(all_chains):
    assert len(all_chains) == len({p.id for p in all_chains}) == len({p.question for p in all_chains}) == 73205


def test_every_chain_is_solved_as_its_question_says(all_chains):
    for problem in all_chains:
        assert (list(problem.steps), problem.answer) == chains.modular_chain(problem.question, 5)


def test_no_operation_leaves_the_value_or_forgets_it(all_chains):
    parts = Counter(part for p in all_chains for part in re.findall(r"[-+*] n\d", p.question))
    assert set(parts) == {f"{o} n{n}" for o in "+-" for n in range(1, 5)} | {f"* n{n}" for n in range(2, 5)}
    assert len(set(parts.values())) == 1


@pytest.mark.parametrize("n_operations, modulus", [(1, 3), (2, 7), (6, 5), (3, 11)])
def test_parameters_of_chains_are_honoured(n_operations, modulus):
    for problem in modular_chain.generate(15, n_operations, modulus):
        assert re.fullmatch(rf"v\d+( [-+*] n\d+){{{n_operations}}} \?", problem.question)
        assert len(problem.steps) == n_operations and problem.meta["modulus"] == modulus
        assert (list(problem.steps), problem.answer) == chains.modular_chain(problem.question, modulus)
        assert all(int(n) < modulus for n in re.findall(r"\d+", problem.question))


def test_all_chains_may_be_asked_for_and_no_more():
    drawn, listed = modular_chain.generate(15, 1, 3, seed=8), modular_chain.generate(0, 1, 3)
    assert len(listed) == 15 and {p.id for p in drawn} == {p.id for p in listed}
    with pytest.raises(InputError, match="15 problems of 1 operations, not 16"):
        modular_chain.generate(16, 1, 3)


@pytest.mark.parametrize("n_operations, modulus", [(0, 5), (-1, 5), (4, 2), (4, 0)])
def test_chains_that_make_no_sense_are_refused(n_operations, modulus):
    with pytest.raises(InputError, match=f"got {n_operations} and {modulus}"):
        modular_chain.generate(10, n_operations, modulus)


# --- arithmetic ---

SOLVERS = {"+": chains.addition, "*": chains.multiplication}
widths = st.integers(1, 6)


@st.composite
def sums(draw):
    operator, n, m = draw(st.sampled_from("+*")), draw(widths), draw(widths)
    a, b = draw(st.integers(0, 10**n - 1)), draw(st.integers(0, 10**m - 1))
    return arithmetic.problem(a, b, operator, n, m)


@settings(max_examples=250, deadline=None)
@given(sums())
def test_sums_are_solved_as_the_oracle_does_and_survive_a_line(problem):
    operator = "+" if problem.source == "addition" else "*"
    assert (list(problem.steps), problem.answer) == SOLVERS[operator](problem.question)
    assert arithmetic.parse(arithmetic.to_line(problem), "f, line 1") == problem
    assert arithmetic.solve(problem) == problem


def test_a_product_reads_as_in_the_published_form():
    line = "6 0 2 * 3 2 1||8 1 6 0 + 0 2 1 4 0 ( 8 3 7 4 0 ) + 0 0 6 0 2 0 #### 8 3 3 5 2 0"  # 206 * 123
    problem = arithmetic.problem(206, 123, "*", 3, 3)
    assert arithmetic.to_line(problem) == line
    assert problem.steps == ("8 1 6 0", "+ 0 2 1 4 0 ( 8 3 7 4 0 )", "+ 0 0 6 0 2 0")


def test_a_sum_shows_its_carries():
    problem = arithmetic.problem(85, 17, "+", 2, 2)
    assert problem.question == "5 8 + 7 1" and problem.answer == "2 0 1"
    assert problem.steps == ("5 + 7 ( 0 ) = 2 ( 1 )", "8 + 1 ( 1 ) = 0 ( 1 )")


@settings(deadline=None)
@given(st.integers(0, 10**9), st.integers(1, 12))
def test_digits_are_written_backwards_and_read_back(value, width):
    text = arithmetic.digits(value, width)
    assert arithmetic.value_of(text) == value
    assert text.replace(" ", "")[::-1] == str(value).zfill(width)


@pytest.mark.parametrize("operator", "+*")
@pytest.mark.parametrize("n_digits", [1, 2, 4])
def test_operands_have_the_digits_asked_for(operator, n_digits):
    for problem in arithmetic.generate(60, operator, n_digits):
        a, _, b = re.split(r" ([+*]) ", problem.question)
        assert len(a.split()) == len(b.split()) == n_digits
        assert n_digits == 1 or "0" not in (a[-1], b[-1])


def test_all_sums_of_one_digit_may_be_asked_for_and_no_more():
    assert len(arithmetic.generate(100, "+", n_digits=1)) == 100
    with pytest.raises(InputError, match="only 100 problems of 1 digits, not 101"):
        arithmetic.generate(101, "+", n_digits=1)


def test_a_wrong_line_is_kept_as_written_and_solve_mends_it():
    line = arithmetic.to_line(arithmetic.problem(24, 13, "*", 2, 2))
    wrong = arithmetic.parse(line.replace("2 1 3 0", "2 1 4 0"), "f, line 1")
    assert wrong.answer == "2 1 4 0"
    assert arithmetic.to_line(arithmetic.solve(wrong)) == line


@pytest.mark.parametrize(
    "broken",
    [
        "4 2 * 3 1",
        "4 2 * 3 1||2 7 0 + 0 4 2 0",
        "4 2 * 3 1||2 7 0 + 0 4 2 0 #### ",
        "4 2 - 3 1||1 1 #### 1 1",
        "4 2 * x 1||2 7 0 #### 2 1 3 0",
        "4 2 * 3 1|2 7 0 #### 2 1 3 0",
        "* 3 1||2 7 0 #### 2 1 3 0",
        "-4 2 * 3 1||2 7 0 #### 2 1 3 0",
    ],
)
def test_a_broken_line_is_named_by_file_and_line(tmp_path, broken):
    path = tmp_path / "sums.txt"
    path.write_text(f"{arithmetic.to_line(arithmetic.problem(24, 13, '*', 2, 2))}\n\n{broken}\n")
    with pytest.raises(InputError) as caught:
        arithmetic.read(path)
    assert str(caught.value).startswith(f"{path}, line 3: expected ")


@pytest.mark.parametrize("line", ["1 * ||1 #### 1", "12 3 * 4||2 9 4 #### 2 9 4 0"])
def test_an_operand_without_or_with_joined_digits_is_refused(line):
    with pytest.raises(InputError, match="f, line 1"):
        arithmetic.parse(line, "f, line 1")


@pytest.mark.parametrize(
    "generate",
    [
        lambda: word_problems.generate(1, min_steps=3, max_steps=1),
        lambda: word_problems.generate(1, max_number=9),
        lambda: arithmetic.generate(1, "-"),
    ],
    ids=["steps", "numbers", "operator"],
)
def test_parameters_that_make_no_sense_are_input_errors(generate):
    with pytest.raises(InputError):
        generate()


# --- GSM8K: the two local forms ---


def row(question, answer):
    return json.dumps({"question": question, "answer": answer}) + "\n"


BOXES = row(" Four boxes of six, é? ", "4*6 = <<4*6=24>>24 things.\n\nLess 3: <<24-3=21>>21\n#### 21")
COINS = row("How many coins?", "He has\n#### 1,080 ")


def test_published_json_lines_are_read(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text(BOXES + "\n" + COINS + row("Last?", "#### 4, no:\n#### 5"), encoding="utf-8")
    boxes, coins, last = gsm8k.read(path)
    assert boxes.question == "Four boxes of six, é?"
    assert boxes.steps == ("4*6 = <<4*6=24>>24 things.", "Less 3: <<24-3=21>>21")
    assert (boxes.answer, boxes.source) == ("21", "gsm8k")
    assert (coins.steps, coins.answer) == (("He has",), "1,080")
    assert last.answer == "5"


def test_the_augmented_text_form_is_read(tmp_path):
    path = tmp_path / "valid.txt"
    path.write_text("How  many?||<<3 + 4=7>> <<7*.5=3.5>> #### 3.5\nNone?||#### 1\nGlued?||<<1+1=2>><<2+1=3>> #### 3\n")
    blank, none, glued = gsm8k.read(path)
    assert (blank.question, blank.answer) == ("How  many?", "3.5")
    assert blank.steps == ("<<3 + 4=7>>", "<<7*.5=3.5>>")
    assert (none.steps, none.answer) == ((), "1")
    assert glued.steps == ("<<1+1=2>>", "<<2+1=3>>")
    assert all(is_verified(p, solution(p)) for p in (blank, none, glued))


@pytest.mark.parametrize(
    "name, broken",
    [
        ("a.jsonl", '{"question": "q"}'),
        ("a.jsonl", '{"question": "q", "answer": 3}'),
        ("a.jsonl", '["q", "#### 3"]'),
        ("a.jsonl", '{"question": "q", "answer": "3"}'),
        ("a.jsonl", '{"question": "q", "answer": "3 #### "}'),
        ("a.jsonl", "{"),
        ("a.txt", "q <<1+1=2>> #### 2"),
        ("a.txt", "q||<<1+1=2>>"),
        ("a.txt", "q||<<1+1=2>> ####"),
    ],
)
def test_a_broken_row_is_named_by_file_and_line(tmp_path, name, broken):
    path = tmp_path / name
    path.write_text((COINS if name == "a.jsonl" else "q||#### 1\n") + "\n" + broken)
    with pytest.raises(InputError) as caught:
        gsm8k.read(path)
    assert str(caught.value).startswith(f"{path}, line 3: ")


# --- GSM8K: where it is looked for ---


@pytest.fixture
def no_hub(monkeypatch):
    def contacted(local):
        raise AssertionError("the hub was contacted")

    monkeypatch.setattr(gsm8k, "from_hub", contacted)


def answers(parts):
    return {name: [p.answer for p in problems] for name, problems in parts.items()}


def test_a_named_file_comes_before_the_data_folder(tmp_path, no_hub):
    (tmp_path / "gsm8k").mkdir()
    (tmp_path / "gsm8k" / "train.jsonl").write_text(BOXES)
    (tmp_path / "mine.jsonl").write_text(COINS)
    (tmp_path / "mine.txt").write_text("q||#### 5\n")
    assert answers(gsm8k.load(str(tmp_path / "mine.jsonl"), tmp_path)) == {"train": ["1,080"]}
    assert answers(gsm8k.load(str(tmp_path / "mine.txt"), tmp_path)) == {"train": ["5"]}
    assert answers(gsm8k.load("", tmp_path)) == {"train": ["21"]}


def test_a_folder_keeps_the_published_splits(tmp_path, no_hub):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "train.jsonl").write_text(BOXES)
    (folder / "test.jsonl").write_text(COINS)
    assert answers(gsm8k.load(str(folder), tmp_path)) == {"train": ["21"], "test": ["1,080"]}
    (folder / "valid.jsonl").write_text(COINS + BOXES)
    assert answers(gsm8k.load(str(folder), tmp_path))["valid"] == ["1,080", "21"]


def test_a_missing_file_or_an_empty_folder_is_an_error_and_no_reason_to_ask_the_hub(tmp_path, no_hub):
    with pytest.raises(InputError, match=re.escape(str(tmp_path / "missing.jsonl"))):
        gsm8k.load(str(tmp_path / "missing.jsonl"), tmp_path)
    (tmp_path / "gsm8k").mkdir()
    (tmp_path / "gsm8k" / "test.jsonl").write_text(COINS)
    with pytest.raises(InputError, match=re.escape(f"{tmp_path / 'gsm8k'} holds no train.jsonl")):
        gsm8k.load("", tmp_path)


OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}


def test_without_file_and_hub_one_sentence_says_where_to_put_the_file(tmp_path):
    other = tmp_path / "another data set"
    other.mkdir()
    (other / "train.jsonl").write_text(BOXES)  # no configuration "main"
    code = (
        "from pathlib import Path\nfrom lib.errors import InputError\nfrom lib.tasks import gsm8k\n"
        f"for gsm8k.HUB in (gsm8k.HUB, {str(other)!r}):\n"
        f"    try: gsm8k.load('', Path({str(tmp_path)!r}))\n"
        "    except InputError as error: print(error)"
    )
    told = run_python(code, HF_HOME=str(tmp_path / "hf"), **OFFLINE)
    place = re.escape(str(tmp_path / "gsm8k"))
    sentence = rf"GSM8K is neither at {place} nor to be had from the hub \(\w+\); put its train.jsonl .* into {place}\."
    assert re.fullmatch(f"{sentence}\n{sentence}", told), told


def test_the_hub_gives_train_and_test(tmp_path):
    hub = tmp_path / "hub"  # `datasets` reads a local folder of this form as it reads the hub's
    hub.mkdir()
    files = "\n".join(f"  - split: {name}\n    path: {name}.jsonl" for name in ("train", "test"))
    (hub / "README.md").write_text(f"---\nconfigs:\n- config_name: main\n  data_files:\n{files}\n---\n")
    (hub / "train.jsonl").write_text(BOXES + COINS)
    (hub / "test.jsonl").write_text(COINS)
    code = (
        f"from pathlib import Path\nfrom lib.tasks import gsm8k\ngsm8k.HUB = {str(hub)!r}\n"
        f"parts = gsm8k.load('', Path({str(tmp_path)!r}))\n"
        "print({name: [p.answer for p in problems] for name, problems in parts.items()})"
    )
    told = run_python(code, HF_HOME=str(tmp_path / "hf"), **OFFLINE)
    assert told == str({"train": ["21", "1,080"], "test": ["1,080"]})


# --- any source, by its name ---

SIZES = {"min_steps": 2, "max_steps": 2, "max_number": 40, "n_operations": 2, "modulus": 7, "n_digits": 3}
SIZES |= {"n_leaves": 5, "max_depth": 3, "n_nots": 2, "operators": "and xor"}


@every_generator
def test_a_source_is_generated_with_its_own_sizes_and_split(task):
    parts = tasks.load(task, "", 200, 6, **SIZES)
    assert list(parts) == list(SPLITS)
    for name, problems in parts.items():
        assert {split_of(p) for p in problems} == {name}
    loaded = [p for problems in parts.values() for p in problems]
    own = {
        "word_problems": {"min_steps": 2, "max_steps": 2, "max_number": 40},
        "modular_chain": {"n_operations": 2, "modulus": 7},
        "boolean": {"n_leaves": 5, "max_depth": 3, "n_nots": 2, "operators": "and xor"},
    }.get(task, {"n_digits": 3})
    assert sorted(p.id for p in loaded) == sorted(p.id for p in GENERATORS[task](200, seed=6, **own))


def test_a_named_file_is_read_in_the_form_of_its_source(tmp_path):
    problems = word_problems.generate(30)
    path = write_jsonl(tmp_path / "mine.jsonl", problems)
    assert tasks.load("word_problems", str(path), 0, 0) == split(problems)
    products = arithmetic.generate(30)
    path = tmp_path / "mine.txt"
    path.write_text("".join(arithmetic.to_line(p) + "\n" for p in products))
    assert tasks.load("multiplication", str(path), 0, 0) == split(products)


def test_an_unknown_source_is_refused_with_the_known_names():
    with pytest.raises(
        InputError, match="'algebra'; the sources are word_problems, modular_chain, boolean, addition, .*gsm8k"
    ):
        tasks.load("algebra", "", 10, 0)


def test_a_source_without_a_problem_to_train_on_is_refused(tmp_path):
    tests_alone = [p for p in word_problems.generate(60) if split_of(p) == "test"]
    path = write_jsonl(tmp_path / "mine.jsonl", tests_alone)
    with pytest.raises(InputError, match=re.escape(f"word_problems: {path} holds no problem to train on")):
        tasks.load("word_problems", str(path), 0, 0)


def test_a_published_test_set_is_refused_as_a_source_and_says_how_to_name_it(tmp_path):
    for name in benchmarks.NAMES:
        with pytest.raises(InputError, match=f"{name} is a test set, .* give its file as 01_data_inspection.{name}"):
            tasks.load(name, str(tmp_path / "any.json"), 0, 0)


# --- solved anew from the question ---


@pytest.mark.parametrize("task", ["modular_chain", "boolean", "addition", "multiplication"])
def test_solving_a_generated_problem_anew_gives_it_back_whatever_its_steps_said(task):
    for problem in GENERATORS[task](60, seed=4):
        assert tasks.solve(problem) == problem
        wrong = replace(problem, steps=("r9",), answer="9")
        assert tasks.solve(wrong) == problem


def test_what_cannot_be_solved_from_its_question_is_none():
    assert all(tasks.solve(p) is None for p in word_problems.generate(20))
    assert tasks.solve(make_problem("Four boxes?", [], "4", "gsm8k")) is None


@pytest.mark.parametrize(
    "question",
    [
        "",
        "v1 ?",
        "v1 + n1",
        "v1 + n1 ? ",
        " v1 + n1 ?",
        "v1 + n1 ?\n",
        "v1  + n1 ?",
        "v1 / n1 ?",
        "v5 + n1 ?",
        "v1 + n0 ?",
        "v1 - n0 ?",
        "v1 * n1 ?",
        "v1 + n5 ?",
        "v1 + 1 ?",
        "v1 + n1 + ?",
        "v\u0661 + n1 ?",
    ],
)
def test_a_question_that_no_chain_modulo_5_asks_is_not_solved(question):
    assert modular_chain.solve(question) is None


@settings(deadline=None)
@given(st.integers(3, 9), st.data())
def test_a_chain_of_any_length_and_modulus_is_solved_as_the_oracle_does(modulus, data):
    moves = data.draw(st.lists(st.sampled_from(modular_chain.operations(modulus)), min_size=1, max_size=7))
    question = " ".join([f"v{data.draw(st.integers(0, modulus - 1))}", *(f"{o} n{n}" for o, n in moves), "?"])
    found = modular_chain.solve(question, modulus)
    assert (list(found.steps), found.answer) == chains.modular_chain(question, modulus)
    assert (found.question, found.meta["modulus"]) == (question, modulus)


@pytest.mark.parametrize("question", ["", "1 + ", "1 - 1", "12 + 3", "1 2 + 3 ?", "a + b", "+ 1", "1 +  2"])
def test_a_question_that_is_no_sum_of_digits_is_not_solved(question):
    for source in ("addition", "multiplication"):
        assert tasks.solve(make_problem(question, [], "0", source)) is None


@pytest.mark.parametrize("published", [("train",), ("train", "test"), ("train", "valid"), ("train", "valid", "test")])
def test_published_splits_are_kept_and_missing_ones_cut_from_train(tmp_path, monkeypatch, no_hub, published):
    (tmp_path / "gsm8k").mkdir()
    for name in published:
        rows = "".join(row(f"{name} {i}?", f"#### {i}") for i in range(400))
        (tmp_path / "gsm8k" / f"{name}.jsonl").write_text(rows)
    monkeypatch.setattr(tasks, "DATA", tmp_path)
    parts = tasks.load("gsm8k", "", 0, 0)
    came_from = {name: Counter(p.question.split()[0] for p in problems) for name, problems in parts.items()}
    assert set(came_from) == set(SPLITS)
    assert sum(map(Counter.total, came_from.values())) == 400 * len(published)
    for name in SPLITS:
        assert set(came_from[name]) == {name if name in published else "train"}
        if name not in published:
            assert 20 <= came_from[name]["train"] <= 65


# --- the real files ---


@pytest.fixture(scope="module")
def real_gsm8k():
    return gsm8k.read(REAL / "gsm8k" / "train.jsonl")


@needs_real_files
def test_gsm8k_has_7473_problems_and_every_answer_is_a_whole_number(real_gsm8k):
    assert len(real_gsm8k) == 7473
    assert all(number(p.answer) is not None and number(p.answer).denominator == 1 for p in real_gsm8k)
    assert sum("," in p.answer for p in real_gsm8k) == 79


@needs_real_files
def test_of_23716_annotations_of_gsm8k_only_the_two_with_floor_division_fail(real_gsm8k):
    pairs = [pair for p in real_gsm8k for step in p.steps for pair in annotations(step)]
    failed = [pair for pair in pairs if not check_annotation(*pair).ok]
    assert len(pairs) == 23716
    assert len(failed) == 2 and failed == [pair for pair in pairs if "//" in pair[0]]


@needs_real_files
def test_7471_of_7473_gsm8k_chains_are_verified_and_the_others_divide_by_two_slashes(real_gsm8k):
    rest = [p for p in real_gsm8k if not is_verified(p, solution(p))]
    assert len(real_gsm8k) - len(rest) == 7471
    for problem in rest:
        broken = [step for step in check_steps(problem, solution(problem)) if not step.ok]
        assert is_correct(problem, solution(problem))
        assert [(step.reason, "//" in step.text) for step in broken] == [("syntax", True)]


@needs_real_files
def test_gsm8k_chains_in_the_published_answer_form_are_verified_alike(real_gsm8k):
    """ "The answer is n" in place of "#### n": the same chains hold, and 95 have no annotation to check."""
    forms = [in_format(p, "zero_shot_cot").completion for p in real_gsm8k]
    assert sum(is_verified(p, text) for p, text in zip(real_gsm8k, forms, strict=True)) == 7471
    assert sum(not check_steps(p, text) for p, text in zip(real_gsm8k, forms, strict=True)) == 95


@needs_real_files
def test_gsm8k_aug_has_500_problems_of_which_6_have_no_step():
    problems = gsm8k.read(REAL / "gsm8k_aug" / "valid.txt")
    assert len(problems) == len({p.id for p in problems}) == 500
    assert sum(not p.steps for p in problems) == 6
    assert all(re.fullmatch("<<[^<>]+=[^<>]+>>", step) for p in problems for step in p.steps)
    assert all(is_verified(p, solution(p)) for p in problems)


@needs_real_files
def test_every_question_of_gsm8k_aug_is_in_gsm8k(real_gsm8k):
    known = {"".join(p.question.split()) for p in real_gsm8k}
    assert {"".join(p.question.split()) for p in gsm8k.read(REAL / "gsm8k_aug" / "valid.txt")} <= known


@needs_real_files
@pytest.mark.parametrize("size", ["4_by_4", "5_by_5"])
def test_published_products_round_trip_and_are_solved_alike(size):
    path = REAL / "multiplication" / f"{size}_valid.txt"
    problems = arithmetic.read(path)
    assert "".join(arithmetic.to_line(p) + "\n" for p in problems).encode() == path.read_bytes()
    assert len(problems) == 1000
    for problem in problems:
        assert arithmetic.solve(problem) == problem
        assert is_verified(problem, solution(problem))


# --- longer problems ---


@pytest.mark.parametrize(
    "task, sizes, count",
    [
        ("modular_chain", (5, 6, 9), lambda p: len(p.steps)),
        ("boolean", (8, 9, 15, 20), lambda p: len(p.steps) + 1),
        ("addition", (5, 6), lambda p: len(p.question.split("+")[0].split())),
    ],
)
def test_longer_problems_are_of_the_same_source_longer_and_right(task, sizes, count):
    known = GENERATORS[task](30)
    for size in sizes:
        found = tasks.longer(known, 40, size, seed=1)
        assert len({p.id for p in found}) == 40 and not {p.id for p in found} & {p.id for p in known}
        assert {(p.source, count(p)) for p in found} == {(known[0].source, size)}
        assert min(len(p.steps) for p in found) > max(len(p.steps) for p in known)
        assert all(is_verified(p, solution(p)) and tasks.solve(p).answer == p.answer for p in found)


def test_they_are_made_as_the_known_ones_were():
    assert {p.meta["modulus"] for p in tasks.longer(modular_chain.generate(3, modulus=7), 20, 6)} == {7}
    known = boolean.generate(60, 5, 3, 2, "or xor")
    words = Counter(word for p in tasks.longer(known, 60, 9) for word in p.question.split())
    assert words["not"] == 120 and words["xor"] and words["or"] and not words["and"]


@pytest.mark.parametrize(
    "known, size, says",
    [
        (word_problems.generate(1), 5, "no one size"),
        (boolean.generate(9, 7), 7, "not longer"),
        (modular_chain.generate(9), 3, "not longer"),
    ],
)
def test_what_cannot_be_longer_is_refused(known, size, says):
    with pytest.raises(InputError, match=says):
        tasks.longer(known, 3, size)
