"""The record, its JSON Lines form and the splits."""

import json
import math
import os
import re
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.errors import InputError
from lib.problems import (
    SPLITS,
    Problem,
    canonical,
    make_problem,
    read_json_lines,
    read_jsonl,
    read_lines,
    read_splits,
    split,
    split_of,
    write_jsonl,
)
from lib.tasks import arithmetic, modular_chain, word_problems

GOOD = {"id": "a", "question": "1 + 1 ?", "steps": ["<<1+1=2>>"], "answer": "2", "source": "made_up"}


# --- the record ---


def test_steps_are_a_tuple_and_the_record_is_frozen():
    problem = Problem("a", "q", ["one", "two"], "2", "made_up")
    assert problem.steps == ("one", "two") and problem.meta == {}
    with pytest.raises(AttributeError):
        problem.answer = "3"


def test_ids_depend_on_source_and_question_alone():
    ids = [
        make_problem("q", ["s"], "1", "made_up").id,
        make_problem("q", [], "2", "made_up", modulus=5).id,
        make_problem("q ", ["s"], "1", "made_up").id,
        make_problem("q", ["s"], "1", "other").id,
    ]
    assert ids[0] == ids[1] and len(set(ids)) == 3
    assert make_problem("1 + 1", [], "2", "made_up").id == "made_up-bce0c0f75e16"


def test_canonical_form_is_the_one_given_else_the_question_without_case_and_blanks():
    assert canonical(make_problem("How  many\nApples ?", [], "1", "made_up")) == "how many apples ?"
    assert canonical(make_problem("How many?", [], "1", "made_up", canonical="1+2")) == "1+2"


def test_an_input_error_is_shown_by_jupyter_in_one_line():
    assert InputError("x.txt, line 3: bad.")._render_traceback_() == ["InputError: x.txt, line 3: bad."]
    assert issubclass(InputError, ValueError)


# --- JSON Lines ---

leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
json_values = st.recursive(leaves, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(), v, max_size=3))
records = st.builds(
    Problem,
    id=st.text(),
    question=st.text(),
    steps=st.lists(st.text(), max_size=4),
    answer=st.text(),
    source=st.text(),
    meta=st.dictionaries(st.text(), json_values, max_size=3),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("problems")


@settings(max_examples=40, deadline=None)
@given(st.lists(records, max_size=4, unique_by=lambda problem: problem.id))
def test_what_is_written_is_read_back(folder, problems):
    path = write_jsonl(folder / "deeper" / "round_trip.jsonl", problems)
    assert read_jsonl(path) == problems
    assert path.read_bytes().count(b"\n") == len(problems)
    assert os.listdir(path.parent) == ["round_trip.jsonl"]


def test_an_id_that_names_two_problems_is_an_error_with_file_and_line(tmp_path):
    one, two = make_problem("1 + 1 ?", [], "2", "t"), make_problem("1 + 2 ?", [], "3", "t")
    path = write_jsonl(tmp_path / "p.jsonl", [one, two, one])
    assert read_jsonl(path) == [one, two, one]
    write_jsonl(path, [one, replace(two, id=one.id)])
    with pytest.raises(InputError, match="p.jsonl, line 2: another problem has the id"):
        read_jsonl(path)


@pytest.mark.parametrize(
    "inside", ["\n", "\r", "\r\n", "\x85", "\u2028", "\x0b", "\x1c", "\ufeff", "é ∑ 🙂", '"', "\\"]
)
def test_no_character_of_a_question_breaks_a_line(tmp_path, inside):
    problems = [make_problem(f"a{inside}b", [inside], inside, "made_up") for _ in range(2)]
    assert read_jsonl(write_jsonl(tmp_path / "p.jsonl", problems)) == problems


def test_plain_dicts_are_written_too_and_text_stays_readable(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [{"text": "é"}, {"text": "b"}])
    assert path.read_text(encoding="utf-8") == '{"text": "é"}\n{"text": "b"}\n'


def test_a_write_that_fails_leaves_the_old_file_whole(tmp_path):
    def half():
        yield GOOD
        raise RuntimeError("power cut")

    path = write_jsonl(tmp_path / "p.jsonl", [GOOD, GOOD])
    with pytest.raises(RuntimeError):
        write_jsonl(path, half())
    assert len(read_jsonl(path)) == 2


def test_blank_lines_and_windows_line_ends_are_passed_over(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_bytes(b"\r\n" + json.dumps(GOOD).encode() + b"\r\n  \r\n")
    assert [p.id for p in read_jsonl(path)] == ["a"]
    path.write_bytes(b"one\r\n\r\ntwo")
    assert list(read_lines(path)) == [(f"{path}, line 1", "one"), (f"{path}, line 3", "two")]


def without(key):
    return json.dumps({k: v for k, v in GOOD.items() if k != key})


def with_(**changes):
    return json.dumps(GOOD | changes)


@pytest.mark.parametrize(
    "line, told",
    [
        *((without(key), f'"{key}" must be .*, found nothing') for key in GOOD),
        (with_(id=7), '"id" must be a str, found a int'),
        (with_(question=None), '"question" must be a str, found a NoneType'),
        (with_(steps="<<1+1=2>>"), '"steps" must be a list, found a str'),
        (with_(steps=["<<1+1=2>>", 2]), 'every entry of "steps" must be a string'),
        (with_(answer=2), '"answer" must be a str, found a int'),
        (with_(source=[]), '"source" must be a str, found a list'),
        (with_(meta=[]), '"meta" must be a dict, found a list'),
        (with_(anwser="2", hint="x"), r"unknown keys \['anwser', 'hint'\]"),
        ("[1, 2]", "expected a JSON object .*, found list"),
        ("null", "expected a JSON object .*, found NoneType"),
        ('{"id": "a",', r"not valid JSON \(.* at column \d+\)"),
        ("id: a", "not valid JSON"),
        (with_(id="é").replace("\\u00e9", "\xe9"), "not UTF-8 text at byte 8"),
    ],
)
def test_an_error_names_file_and_line(tmp_path, line, told):
    path = tmp_path / "broken.jsonl"
    path.write_bytes("\n".join([with_(meta={}), "", line, "{"]).encode("latin-1"))
    with pytest.raises(InputError, match=told) as caught:
        read_jsonl(path)
    assert str(caught.value).startswith(f"{path}, line 3: ")
    assert str(caught.value).count("line") == 1


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    for path in (tmp_path / "missing.jsonl", tmp_path):
        with pytest.raises(InputError, match=re.escape(str(path))):
            read_jsonl(path)


def test_json_lines_yield_any_value_with_its_place(tmp_path):
    path = tmp_path / "values.jsonl"
    path.write_text('1\n\n["é"]\n', encoding="utf-8")
    assert list(read_json_lines(path)) == [(f"{path}, line 1", 1), (f"{path}, line 3", ["é"])]


@pytest.mark.parametrize("value", ["[" * 100_000, "1" * 5000], ids=["too deep", "too many digits"])
def test_json_that_python_cannot_hold_is_an_error_with_file_and_line(tmp_path, value):
    path = tmp_path / "broken.jsonl"
    path.write_text(value)
    with pytest.raises(InputError, match="line 1"):
        read_jsonl(path)


# --- a folder of tasks ---


@pytest.fixture
def tasks_folder(tmp_path):
    """Two tasks to train on and a test set, as 01 leaves them."""
    for task, sizes in {"words": (3, 1, 2), "chains": (2, 0, 1), "svamp": (0, 0, 2)}.items():
        for name, size in zip(SPLITS, sizes, strict=True):
            write_jsonl(
                tmp_path / task / f"{name}.jsonl",
                [make_problem(f"{i}", [], "1", f"{task} {name}") for i in range(size)],
            )
    (tmp_path / "note.txt").write_text("no task")
    return tmp_path


def sizes(found):
    return {task: {name: len(problems) for name, problems in parts.items()} for task, parts in found.items()}


def test_all_tasks_of_a_folder_are_read_by_name_and_split(tasks_folder):
    found = read_splits(tasks_folder)
    assert sizes(found) == {
        "chains": {"train": 2, "valid": 0, "test": 1},
        "svamp": {"train": 0, "valid": 0, "test": 2},
        "words": {"train": 3, "valid": 1, "test": 2},
    }
    assert list(found) == ["chains", "svamp", "words"]
    for task, parts in found.items():
        for name, problems in parts.items():
            assert {p.source for p in problems} <= {f"{task} {name}"}


def test_named_tasks_alone_are_read_in_the_order_in_which_they_are_named(tasks_folder):
    (tasks_folder / "chains" / "valid.jsonl").write_text("not read")
    assert list(read_splits(tasks_folder, ["words"])) == ["words"]
    (tasks_folder / "chains" / "valid.jsonl").write_text("")
    assert list(read_splits(tasks_folder, ["words", "chains"])) == ["words", "chains"]


def test_an_unknown_task_or_one_without_training_problems_is_one_sentence(tasks_folder):
    with pytest.raises(InputError, match="no task 'sums' in this run; 01_data_inspection made chains, svamp, words."):
        read_splits(tasks_folder, ["words", "sums"])
    with pytest.raises(InputError, match="svamp is a set for testing alone"):
        read_splits(tasks_folder, ["svamp"])
    with pytest.raises(InputError, match="no task '../words'"):
        read_splits(tasks_folder / "chains", ["../words"])


# --- splits ---


def plain(n):
    return [make_problem(f"question {i}", [], "1", "made_up") for i in range(n)]


def within_binomial_bounds(count, n, share, sigmas=4.5):
    return abs(count - n * share) <= sigmas * math.sqrt(n * share * (1 - share)) + 1


@pytest.mark.parametrize(
    "question, expected",
    [
        ("Mia has 3 apples.", "train"),
        ("MIA  has 3\tapples.", "train"),
        ("1 + 1", "test"),
        ("17 * 24", "valid"),
        ("Wie viele Äpfel?", "train"),
    ],
)
def test_the_split_of_a_problem_is_the_same_in_every_run(question, expected):
    assert split_of(make_problem(question, [], "1", "made_up")) == expected


@pytest.mark.parametrize("fractions", [(0.8, 0.1, 0.1), (0.5, 0.25, 0.25)])
def test_splits_have_the_sizes_asked_for(fractions):
    parts = split(plain(10_000), fractions)
    assert tuple(parts) == SPLITS and sum(map(len, parts.values())) == 10_000
    for name, share in zip(SPLITS, fractions, strict=True):
        assert within_binomial_bounds(len(parts[name]), 10_000, share)


def test_all_may_go_to_one_split():
    assert len(split(plain(200), (1.0, 0.0, 0.0))["train"]) == 200
    assert len(split(plain(200), (0.0, 0.0, 1.0))["test"]) == 200


def test_problems_keep_their_order_and_duplicates_are_dropped():
    problems = plain(300)
    parts = split(problems + problems[::-1])
    for name in SPLITS:
        assert parts[name] == [p for p in problems if split_of(p) == name]


def test_the_canonical_form_decides_the_split():
    same = [make_problem(f"wording {i}", [str(i)], "3", "made_up", canonical="1+2") for i in range(50)]
    parts = split(same)
    assert sorted(map(len, parts.values())) == [0, 0, 50]


TASKS = {
    "word_problems": word_problems.generate(6000, max_number=30, seed=1),
    "modular_chain": modular_chain.generate(0, n_operations=3),
    "addition": arithmetic.generate(8100, "+", n_digits=2, seed=1),
    "multiplication": arithmetic.generate(6000, "*", n_digits=2, seed=1),
}
every_task = pytest.mark.parametrize("task", TASKS)


def arithmetic_of(problem):
    """The sum itself, read from the solution or the question; operands of a first + or * in order of size."""
    if problem.source == "word_problems":
        moves = [re.match(r"<<(\d+)([-+*/])(\d+)=", step).groups() for step in problem.steps]
    elif problem.source == "modular_chain":
        start, *rest = re.findall(r"\w\d+|[-+*]", problem.question)
        moves = [(start[1:], o, n[1:]) for o, n in zip(rest[::2], rest[1::2], strict=True)]
    else:
        a, o, b = re.split(r" ([+*]) ", problem.question)
        moves = [(a.replace(" ", "")[::-1], o, b.replace(" ", "")[::-1])]
    a, first, b = moves[0]
    a, b = (int(a), int(b))
    start = (*sorted((a, b)), first) if first in "+*" else (a, b, first)
    return start, tuple((o, int(n)) for _, o, n in moves[1:])


@every_task
def test_no_arithmetic_and_no_canonical_form_is_in_two_splits(task):
    parts = split(TASKS[task])
    for key in (canonical, arithmetic_of):
        train, valid, test = ({key(problem) for problem in parts[name]} for name in SPLITS)
        assert train and valid and test
        assert not (train & valid or train & test or valid & test)
    assert len({canonical(p) for p in TASKS[task]}) == len({arithmetic_of(p) for p in TASKS[task]})


@every_task
def test_distinct_canonical_forms_are_split_80_10_10(task):
    names = Counter(split_of(p) for p in {canonical(p): p for p in TASKS[task]}.values())
    for name, share in zip(SPLITS, (0.8, 0.1, 0.1), strict=True):
        assert within_binomial_bounds(names[name], names.total(), share)


@every_task
def test_last_digits_of_answers_are_as_frequent_in_every_split_as_in_all(task):
    distinct = list({canonical(p): p for p in TASKS[task]}.values())

    def last_digit(problem):
        return problem.answer[0] if problem.source in ("addition", "multiplication") else problem.answer[-1]

    overall = Counter(map(last_digit, distinct))
    assert len(overall) == (5 if task == "modular_chain" else 10)
    for problems in split(distinct).values():
        counts = Counter(map(last_digit, problems))
        for digit, count in overall.items():
            assert within_binomial_bounds(counts[digit], len(problems), count / len(distinct)), digit


def test_commuted_operands_share_a_canonical_form_where_order_is_free():
    def word(a, operator, b):
        return word_problems.canonical_chain([(a, operator, b, 0), (40, "/", 4, 10)])

    def chain(a, operator, b):
        return canonical(modular_chain.problem(a, ((operator, b), ("-", 1)), 5))

    def sum_(a, operator, b):
        return canonical(arithmetic.problem(a, b, operator, 2, 2))

    for form, free in ((word, "+*"), (chain, "+*"), (sum_, "+*")):
        assert all(form(3, o, 4) == form(4, o, 3) for o in free)
        assert len({form(3, o, 4) for o in free} | {form(2, o, 4) for o in free}) == 4
    for form in (word, chain):
        assert form(3, "-", 4) != form(4, "-", 3)
    assert word(8, "/", 4) != word(4, "/", 8)


def test_the_same_chain_modulo_another_number_is_another_problem():
    forms = {canonical(modular_chain.problem(1, (("+", 2),), modulus)) for modulus in (5, 7)}
    assert len(forms) == 2
