"""Boolean expressions: drawn within their sizes, worked out as Python reads the brackets, and found again from a text.

And the published products, through 01 as its user starts it.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lib import tasks
from lib.answers import check_steps, inspect, is_correct, is_verified
from lib.errors import InputError
from lib.problems import SPLITS, canonical, make_problem, split_of
from lib.prompts import solution
from lib.tasks import boolean
from tests.oracles import chains

ROOT = Path(__file__).parents[1]
REAL = Path(os.environ.get("REAL_DATA") or "no such folder")
needs_real_files = pytest.mark.skipif(not REAL.is_dir(), reason="set REAL_DATA to the folder of real files")
SIZES = [(7, 4, 1), (2, 1, 0), (2, 9, 2), (4, 2, 3), (5, 4, 8), (8, 3, 0), (16, 4, 5), (40, 39, 78)]
every_size = pytest.mark.parametrize("n_leaves, max_depth, n_nots", SIZES)


@pytest.fixture(scope="module")
def default():
    return boolean.generate(3000, 7, 4, 1, "and or xor")


def depth(tree):
    """Pairs on the longest way down; a `not` is no pair."""
    return 0 if isinstance(tree, str) else max(map(depth, tree[1:])) + (tree[0] != "not")


def unordered(tree):
    """The same for trees that differ by the order of operands alone: pairs as multisets."""
    if isinstance(tree, str):
        return tree
    return (tree[0], frozenset(Counter(unordered(operand) for operand in tree[1:]).items()))


@st.composite
def trees(draw):
    """Any expression of this task: every node but the root may have one `not`."""

    def node(n, root=False):
        if n == 1:
            tree = draw(st.sampled_from(["true", "false"]))
        else:
            left = draw(st.integers(1, n - 1))
            tree = (draw(st.sampled_from(["and", "or", "xor"])), node(left), node(n - left))
        return ("not", tree) if not root and draw(st.booleans()) else tree

    return node(draw(st.integers(2, 9)), root=True)


# --- what is generated ---


@every_size
def test_expressions_have_the_leaves_depth_and_nots_asked_for(n_leaves, max_depth, n_nots):
    n = 1 if n_leaves == 40 else 12
    problems = boolean.generate(n, n_leaves, max_depth, n_nots, "and or xor", seed=3)
    assert len(problems) == len({p.id for p in problems}) == len({p.question for p in problems}) == n
    for problem in problems:
        words = problem.question.split(" ")
        assert words.count("true") + words.count("false") == n_leaves
        assert words.count("not") == n_nots and "not not" not in problem.question
        assert depth(chains.boolean_tree(problem.question)) <= max_depth
        assert len(problem.steps) == n_leaves - 1 + n_nots
        assert problem.source == "boolean" and len(problem.question) <= 1000


def test_the_question_is_written_in_one_way(default):
    for problem in default:
        assert chains.boolean_text(chains.boolean_tree(problem.question)) == problem.question


def test_every_step_and_answer_is_what_python_reads_left_operand_first(default):
    for problem in default + boolean.generate(200, 12, 6, 5, "and or xor", seed=1):
        assert (list(problem.steps), problem.answer) == chains.boolean(problem.question), problem.question


def test_the_arbiter_verifies_every_chain_and_no_other(default):
    for problem in default[:300]:
        assert is_verified(problem, solution(problem)) and inspect(problem)["answer_extracted"]
        assert len(check_steps(problem, solution(problem))) == 7
        wrong = {"true": "false", "false": "true"}[problem.answer]
        assert not is_correct(problem, f"#### {wrong}")
        assert not is_verified(problem, solution(replace(problem, steps=problem.steps[1:])))
        assert not is_verified(problem, solution(replace(problem, steps=problem.steps[::-1] + ("true",))))


@pytest.mark.parametrize("n_leaves, max_depth, n_nots", [(7, 4, 1), (5, 3, 0), (9, 8, 4)])
def test_about_half_of_the_answers_are_true(n_leaves, max_depth, n_nots):
    problems = boolean.generate(1500, n_leaves, max_depth, n_nots, "and or xor", seed=5)
    assert 0.4 < sum(p.answer == "true" for p in problems) / 1500 < 0.6


def test_operators_truth_values_shapes_and_places_of_nots_are_evenly_drawn(default):
    words = Counter(word for p in default for word in p.question.split())
    for evenly in (("and", "or", "xor"), ("true", "false")):
        total = sum(words[word] for word in evenly)
        assert all(abs(words[word] / total - 1 / len(evenly)) < 0.02 for word in evenly)
    shapes = Counter(re.sub("not | and| x?or", "", re.sub("true|false", "t", p.question)) for p in default)
    assert len(shapes) == 44 and min(shapes.values()) > 35  # of 68 expected
    before = Counter("(" in p.question.split("not ")[1][0] for p in default)
    assert abs(before[True] / 3000 - 5 / 12) < 0.04  # 5 of the 12 places are brackets


def test_all_problems_of_a_size_may_be_asked_for_and_no_more():
    assert (
        len(boolean.generate(24, 2, 1, 1, "and or xor")) == 24
    )  # 4 pairs of truth values, 3 operators, 2 places for `not`
    assert (
        len(boolean.generate(576, 3, 2, 1, "and or xor")) == 576
    )  # 8 triples of truth values, 9 pairs of operators, 4 places, 2 shapes
    assert boolean.generate(0) == []


@pytest.mark.parametrize(
    "sizes, words",
    [
        ((1, 1, 4, 0), "n_leaves from 2 to 40, got 1; change"),
        ((1, 0, 4, 0), "n_leaves from 2 to 40, got 0"),
        ((1, 41, 40, 0), "n_leaves from 2 to 40, got 41"),
        ((1, 5, 2, 0), "depth 2 cannot hold 5 leaves; ask for fewer leaves (n_leaves) or more depth (max_depth)"),
        ((1, 2, 0, 0), "depth 0 cannot hold 2 leaves"),
        ((1, 2, -3, 0), "depth -3 cannot hold 2 leaves"),
        ((1, 7, 4, 13), "7 leaves leave room for 0 to 12 nots, not 13; change n_nots"),
        ((1, 7, 4, -1), "room for 0 to 12 nots, not -1"),
        ((25, 2, 1, 1), "boolean has 24 problems of this size, not 25; ask for fewer"),
    ],
)
def test_sizes_that_cannot_be_are_refused(sizes, words):
    with pytest.raises(InputError, match=re.escape(words)):
        boolean.generate(*sizes, "and or xor")


def test_the_seed_decides_the_problems_also_in_another_process(default):
    assert boolean.generate(3000, 7, 4, 1, "and or xor") == default
    assert len({p.id for p in default} & {p.id for p in boolean.generate(3000, 7, 4, 1, "and or xor", seed=1)}) < 10
    code = "from lib.tasks import boolean\nprint([p.id for p in boolean.generate(40, 7, 4, 1, 'and or xor')])"
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == str([p.id for p in default[:40]])


def test_thousands_are_made_in_a_second(default):
    begun = time.process_time()
    boolean.generate(2000, 7, 4, 1, "and or xor", seed=9)
    assert time.process_time() - begun < 2


# --- solved anew ---


@settings(max_examples=200, deadline=None)
@given(trees())
def test_any_expression_is_solved_as_the_oracle_does(tree):
    problem = boolean.solve(chains.boolean_text(tree))
    assert (list(problem.steps), problem.answer) == chains.boolean(chains.boolean_text(tree))
    assert problem.question == chains.boolean_text(tree)


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 12), st.integers(0, 10**6), st.data())
def test_a_generated_problem_is_found_again_from_its_question(n_leaves, seed, data):
    n_nots = data.draw(st.integers(0, 2 * n_leaves - 2))
    max_depth = data.draw(st.integers((n_leaves - 1).bit_length(), n_leaves + 2))
    for problem in boolean.generate(3, n_leaves, max_depth, n_nots, "and or xor", seed):
        assert boolean.solve(problem.question) == problem
        assert tasks.solve(replace(problem, steps=("true",), answer="?")) == problem


WORDS = st.lists(st.sampled_from("true false and or xor not ( )".split()), max_size=12).map(" ".join)


@settings(max_examples=500, deadline=None)
@given(st.text(max_size=60) | WORDS)
@example("( " * 100_000)
@example("not " * 100_000)
@example("( " * 10_000 + "true and true" + " )" * 10_000)
@example("true" + " and true" * 10_000)
def test_any_other_text_is_not_solved_and_never_raises(text):
    problem = boolean.solve(text)
    if problem is not None:
        tree = chains.boolean_tree(text)
        assert chains.boolean_text(tree) == text and depth(tree) >= 1


@pytest.mark.parametrize(
    "question",
    [
        "",
        "true",
        "not true",
        "( true and false )",
        "not ( true and false )",
        "true and false or true",
        "( true and false ) or",
        "( true and false or true",
        "true and false )",
        "true and not not false",
        "true and ( false )",
        "true nand false",
        "true  and false",
        "true and false ?",
        " true and false",
        "true and false\n",
        "True and false",
        "true ( and ) false",
        ") and (",
    ],
)
def test_what_is_not_written_in_this_form_is_not_solved(question):
    assert boolean.solve(question) is None
    assert tasks.solve(make_problem(question, [], "true", "boolean")) is None


def test_nesting_is_followed_as_deep_as_it_is_generated():
    def nested(pairs):
        return f"true xor ( {nested(pairs - 1)} )" if pairs > 1 else "true and true"

    assert len(boolean.solve(nested(39)).steps) == 39
    assert boolean.solve(nested(40)) is None


# --- the canonical form ---


@settings(max_examples=200, deadline=None)
@given(trees(), st.data())
def test_commuting_any_pairs_keeps_the_canonical_form_and_the_split(tree, data):
    def commuted(tree):
        if isinstance(tree, str):
            return tree
        operands = [commuted(operand) for operand in tree[1:]]
        return (tree[0], *(operands[::-1] if data.draw(st.booleans()) else operands))

    one, other = (boolean.solve(chains.boolean_text(t)) for t in (tree, commuted(tree)))
    assert canonical(one) == canonical(other) and split_of(one) == split_of(other)


def test_expressions_share_a_canonical_form_only_if_they_differ_by_order_alone():
    every = (
        boolean.generate(576, 3, 2, 1, "and or xor")
        + boolean.generate(864, 3, 2, 2, "and or xor")
        + boolean.generate(3000, 7, 4, 1, "and or xor")
    )
    forms = defaultdict(set)
    for problem in every:
        forms[unordered(chains.boolean_tree(problem.question))].add(canonical(problem))
    assert all(len(found) == 1 for found in forms.values())
    assert len({form for found in forms.values() for form in found}) == len(forms) < len(every)


def test_splits_share_no_canonical_form():
    parts = tasks.load("boolean", "", 2000, 3, n_leaves=4, max_depth=3, n_nots=1, operators="and or xor")
    assert list(parts) == list(SPLITS) and sum(map(len, parts.values())) == 2000
    forms = [{canonical(p) for p in parts[name]} for name in SPLITS]
    assert not forms[0] & forms[1] and not forms[0] & forms[2] and not forms[1] & forms[2]
    assert all(len(p.steps) == 4 for items in parts.values() for p in items)
    assert 0.75 < len(parts["train"]) / 2000 < 0.85


# --- 01, as its user starts it ---


def inspected(outputs, *parameters):
    """What 01 says it found: its metrics."""
    told = [part for name, value in parameters for part in ("-p", f"01_data_inspection.{name}={json.dumps(value)}")]
    ran = subprocess.run(
        [sys.executable, "run_all.py", "--run", "mine", "--only", "01", *told],
        cwd=ROOT,
        env=os.environ | {"WORKBENCH_OUTPUTS": str(outputs)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return json.loads((outputs / "mine" / "01_data_inspection" / "metrics.json").read_text())


def test_01_writes_the_source_the_common_task_and_more_tasks_each_once(tmp_path):
    more = ["addition", "modular_chain", "boolean"]
    found = inspected(tmp_path, ("source", "boolean"), ("more_tasks", more), ("n_problems", 60), ("n_leaves", 5))
    assert {task: sum(parts.values()) for task, parts in found["tasks"].items()} == {
        "boolean": 60,
        "modular_chain": 60,
        "addition": 60,
    }
    assert (found["problems"], found["answers_extracted"], found["chains_verified"]) == (60, 60, 60)


@needs_real_files
def test_01_verifies_the_1000_published_products(tmp_path):
    path = REAL.resolve() / "multiplication" / "4_by_4_valid.txt"
    of_a_file = (("source", "multiplication"), ("path", str(path)), ("common_task", ""), ("more_tasks", [""]))
    found = inspected(tmp_path, *of_a_file)
    assert list(found["tasks"]) == ["multiplication"] and sum(found["tasks"]["multiplication"].values()) == 1000
    assert (found["problems"], found["answers_extracted"], found["chains_verified"]) == (1000, 1000, 1000)


def test_only_the_operators_asked_for():
    for operators in ("and or", "xor", "or"):
        found = {word for p in boolean.generate(60, 7, 4, 1, operators) for word in p.question.split()}
        assert found & set(boolean.OPERATORS) == set(operators.split())
    for wrong in ("", "nand", "and, or"):
        with pytest.raises(InputError, match="boolean knows the operators and, or, xor"):
            boolean.generate(5, operators=wrong)
