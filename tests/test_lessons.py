"""Exercises: the committed solutions pass, typical mistakes are caught by the invariant meant for them."""

import ast
import json
import math
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lib import answers, calculator, evaluation, problems
from lib.errors import InputError
from lib.lessons import check as lessons
from lib.lessons import lesson_01, lesson_03, lesson_09

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
EXERCISES = {**lesson_01.EXERCISES, **lesson_03.EXERCISES, **lesson_09.EXERCISES}


@pytest.fixture(autouse=True)
def lenient(monkeypatch):
    monkeypatch.delenv("WORKBENCH_STRICT", raising=False)


def cells(path):
    """(source, tags) of the code cells."""
    found = json.loads(path.read_text())["cells"]
    return [
        (re.sub(r"(?m)^%.*$", "", "".join(c["source"])), c["metadata"].get("tags", []))
        for c in found
        if c["cell_type"] == "code"
    ]


def imported(path):
    """A namespace that holds what the notebook's cells import at their top level."""
    nodes = [
        n for source, _ in cells(path) for n in ast.parse(source).body if isinstance(n, (ast.Import, ast.ImportFrom))
    ]
    namespace = {}
    exec("\n".join(map(ast.unparse, nodes)), namespace)
    return namespace


def committed():
    """(exercise, the function's name, its source, the notebook) of every exercise in the notebooks."""
    found = []
    for path in NOTEBOOKS:
        everything = cells(path)
        for (source, tags), (following, _) in zip(everything, everything[1:], strict=False):
            if "exercise" in tags:
                number, name = re.search(r'check\("([\d.]+)", (\w+)\)', following).groups()
                found.append(pytest.param(number, name, source, path, id=number))
    return found


def broken(exercise, answer):
    """The docstrings of the invariants that an answer breaks."""
    return [what for what, ok, _ in lessons.check(exercise, answer).rows if not ok]


def caught_by(exercise, answer, invariant):
    """Does the invariant named `invariant` find the answer wrong, without the answer having crashed?"""
    what = invariant.__doc__.strip()
    rows = {row[0]: row for row in lessons.check(exercise, answer).rows}
    assert what in rows, f"{what!r} is not an invariant of {exercise}"
    assert not rows[what][1], f"{what!r} let it pass; broken: {broken(exercise, answer)}"
    assert rows[what][2] and "raised" not in rows[what][2], rows[what][2]


# --- what is committed ---


@pytest.mark.parametrize("number, name, source, path", committed())
def test_committed_solutions_pass(number, name, source, path):
    namespace = imported(path)
    exec(source, namespace)
    result = lessons.check(number, namespace[name])
    assert result.passed, str(result)
    assert len(result.rows) == len(EXERCISES[number].invariants)


@pytest.mark.parametrize("number, name, source, path", committed())
def test_the_stub_a_reader_gets_is_said_to_be_not_implemented_yet(number, name, source, path):
    namespace = imported(path)
    exec(re.sub(r"### BEGIN SOLUTION.*### END SOLUTION", "raise NotImplementedError", source, flags=re.S), namespace)
    result = lessons.check(number, namespace[name])
    assert not result.passed and "not implemented yet" in str(result) and "not implemented yet" in result._repr_html_()
    assert len(result.rows) == 1


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_break_it_cells_fail(path):
    broken_cells = [source for source, tags in cells(path) if "break-it" in tags]
    assert broken_cells
    for source in broken_cells:
        *before, last = ast.parse(source).body
        namespace = imported(path)
        exec("\n".join(map(ast.unparse, before)), namespace)
        result = eval(ast.unparse(last), namespace)
        assert isinstance(result, lessons.Result) and not result.passed
        assert "raised" not in str(result), f"it should break an invariant, not crash: {result}"


def test_every_invariant_says_what_should_hold_and_every_exercise_has_hints():
    for exercise in EXERCISES.values():
        docs = [invariant.__doc__.strip() for invariant in exercise.invariants]
        assert len(set(docs)) == len(docs) and all(doc.endswith(".") for doc in docs)
        assert len(exercise.hints) >= 2


# --- 1.1: a split that holds ---


def by_digest(text):
    from hashlib import blake2b

    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64


def share(point, edges=(0.8, 0.9)):
    return "train" if point < edges[0] else "valid" if point < edges[1] else "test"


def test_a_random_split_is_not_stable():
    caught_by("1.1", lambda text: share(random.random()), lesson_01.split_is_stable)


HASHED = """
from lib.lessons.check import check
def split_of(text):
    point = hash(text) % 1000 / 1000
    return "train" if point < 0.8 else "valid" if point < 0.9 else "test"
for what, ok, why in check("1.1", split_of).rows:
    print(ok, what)
"""


def test_pythons_own_hash_is_not_stable(tmp_path):
    """It differs from session to session, unseen within one; tried as a reader does, in a session of its own."""
    (tmp_path / "hashed.py").write_text(HASHED)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "random"}
    command = [sys.executable, str(tmp_path / "hashed.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert f"False {lesson_01.split_is_stable.__doc__.strip()}" in done.stdout, done.stdout + done.stderr


def test_wrong_shares_are_caught():
    for edges in ((0.6, 0.8), (0.8, 0.8), (0.1, 0.2), (1.0, 1.0), (0.75, 0.9)):
        caught_by("1.1", lambda text, edges=edges: share(by_digest(text), edges), lesson_01.split_has_the_shares)


def test_other_names_of_splits_are_caught():
    names = {"train": "train", "valid": "validation", "test": "test"}
    caught_by("1.1", lambda text: names[share(by_digest(text))], lesson_01.split_has_the_shares)


def test_a_split_by_the_last_digit_of_the_answer_is_caught():
    def by_arithmetic(text):
        a, b = map(int, re.split(r"[+*]", text))
        return ["test", "valid", *["train"] * 8][(7919 * a + 104729 * b) % 10]

    caught_by("1.1", by_arithmetic, lesson_01.split_ignores_the_answer)


def test_another_good_hash_passes():
    from hashlib import md5, sha256

    for digest in (md5, sha256):
        result = lessons.check("1.1", lambda text, d=digest: share(int(d(text.encode()).hexdigest()[:8], 16) / 2**32))
        assert result.passed, str(result)


def test_lib_passes_its_own_exercise():
    def split_of(text):
        return problems.split_of(problems.make_problem(text, [], "0", "addition"))

    result = lessons.check("1.1", split_of)
    assert result.passed, str(result)


# --- 1.2: reading an answer ---


def cleaned(text):
    return text.split("\n")[0].strip().strip("$").replace(",", "").rstrip(".") or None


WRONG_READERS = {
    "the first ####": lambda text: cleaned(text.partition("####")[2]),
    "no marker needed": lambda text: (re.findall(r"-?[\d,.]*\d", text) or [None])[-1],
    "commas end it": lambda text: (re.findall(r"####\s*\$?(-?\d+(?:\.\d+)?)", text) or [None])[-1],
    "no sign": lambda text: (re.findall(r"####\s*\$?-?(\d[\d,]*(?:\.\d+)?)", text) or [None])[-1],
    "no decimals": lambda text: (re.findall(r"####\s*\$?(-?[\d,]+)", text) or [None])[-1],
    "empty instead of none": lambda text: (cleaned(text.rpartition("####")[2]) or "") if "####" in text else None,
    "the whole text without a marker": lambda text: cleaned(text.rpartition("####")[2]),
}


@pytest.mark.parametrize("mistake", WRONG_READERS)
def test_wrong_readers_of_answers_are_caught(mistake):
    caught_by("1.2", WRONG_READERS[mistake], lesson_01.answer_is_the_last_marked)


def test_the_arbiter_passes_its_own_exercise():
    def read_answer(text):
        found = answers.extract(text)
        return None if found is None else str(answers.number(found))

    result = lessons.check("1.2", read_answer)
    assert result.passed, str(result)


# --- 1.3: checking a chain ---


def count_broken(text, holds):
    return sum(not holds(*pair) for pair in answers.annotations(text))


def exact(expression, stated):
    value = calculator.evaluate(expression).value
    return value is not None and calculator.agrees(value, stated)


def test_a_step_without_a_value_must_count_as_broken():
    def forgiving(expression, stated):
        return calculator.evaluate(expression).value is None or exact(expression, stated)

    caught_by("1.3", lambda text: count_broken(text, forgiving), lesson_01.chain_counts_broken_steps)


def test_rounding_must_be_understood():
    def strict(expression, stated):
        value = calculator.evaluate(expression).value
        return value is not None and str(float(value)) == str(float(stated))

    caught_by("1.3", lambda text: count_broken(text, strict), lesson_01.chain_counts_broken_steps)


@pytest.mark.parametrize(
    "mistake",
    [
        lambda text: 0,
        lambda text: int(count_broken(text, exact) == 0),
        lambda text: int(not exact(*answers.annotations(text)[0])),  # looks at the first step alone
        lambda text: len(answers.annotations(text)) - count_broken(text, exact),
    ],
)
def test_wrong_counts_are_caught(mistake):
    caught_by("1.3", mistake, lesson_01.chain_counts_broken_steps)


def test_calling_good_steps_broken_is_caught():
    caught_by("1.3", lambda text: text.count("<<") if "*" in text else 0, lesson_01.chain_accepts_gold)


# --- 3.1: the label mask ---


@pytest.mark.parametrize(
    "mistake, invariant",
    [
        (lambda p, c, eos: [-100] * len(p) + c, lesson_03.labels_have_the_length),
        (lambda p, c, eos: [-100] * len(p) + c, lesson_03.labels_end_with_eos),
        (lambda p, c, eos: p + c + [eos], lesson_03.labels_skip_the_prompt),
        (lambda p, c, eos: [0] * len(p) + c + [eos], lesson_03.labels_skip_the_prompt),
        (lambda p, c, eos: [-100] * (len(p) - 1) + c + [eos, -100], lesson_03.labels_skip_the_prompt),
        (lambda p, c, eos: [-100] * len(p) + c + [-100], lesson_03.labels_end_with_eos),
        (lambda p, c, eos: [-100] * (len(p) + 1) + c[1:] + [eos], lesson_03.labels_end_with_eos),
        (lambda p, c, eos: [-100] * len(p) + c + [0], lesson_03.labels_end_with_eos),
        (lambda p, c, eos: c + [eos], lesson_03.labels_have_the_length),
    ],
)
def test_wrong_label_masks_are_caught(mistake, invariant):
    caught_by("3.1", mistake, invariant)


def test_changing_the_lists_that_come_in_is_caught_and_spoils_no_later_check(monkeypatch):
    for name in ("PROMPT", "COMPLETION"):
        monkeypatch.setattr(lesson_03, name, list(getattr(lesson_03, name)))  # whatever happens, other tests go on

    def appends(prompt, completion, eos):
        completion.append(eos)
        return [-100] * len(prompt) + completion

    caught_by("3.1", appends, lesson_03.labels_leave_inputs_alone)
    assert lessons.check("3.1", lambda p, c, eos: [-100] * len(p) + c + [eos]).passed, "its examples were changed"


# --- 3.2: the loss ---


def nll(logits, labels, shift=1):
    rows, wanted = logits[: len(logits) - shift].log_softmax(-1), labels[shift:]
    keep = wanted != -100
    return -rows[keep, wanted[keep]]


def over_everything(logits, labels):
    return nll(logits, labels).sum() / (len(labels) - 1)


@pytest.mark.parametrize(
    "mistake, invariant",
    [
        (lambda logits, labels: nll(logits, labels, shift=0).mean(), lesson_03.loss_is_shifted),
        (lambda logits, labels: nll(logits, labels, shift=2).mean(), lesson_03.loss_is_right),
        (lambda logits, labels: nll(logits, labels).sum(), lesson_03.loss_is_right),
        (lambda logits, labels: -nll(logits, labels).mean(), lesson_03.loss_is_right),
        (over_everything, lesson_03.loss_is_right),
        (over_everything, lesson_03.loss_agrees_with_the_library),
        (lambda logits, labels: nll(logits.softmax(-1), labels).mean(), lesson_03.loss_is_right),
        (lambda logits, labels: nll(logits, labels.clamp(min=0)).mean(), lesson_03.loss_is_right),
    ],
)
def test_wrong_losses_are_caught(mistake, invariant):
    caught_by("3.2", mistake, invariant)


def test_the_mean_over_masked_positions_is_named_as_the_cause():
    assert "are the -100 positions in your mean?" in str(lessons.check("3.2", over_everything))


def test_the_librarys_loss_passes():
    from torch.nn.functional import cross_entropy

    assert lessons.check("3.2", lambda logits, labels: cross_entropy(logits[:-1], labels[1:])).passed


# --- 9.1: an interval ---


def textbook(correct, n, z=1.96):
    p = correct / n
    half = z * math.sqrt(p * (1 - p) / n)
    return p - half, p + half


def plain_wilson(correct, n, z=1.96):
    """As the books print it, without cutting at 0 and 1."""
    p = correct / n
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return middle - half, middle + half


@pytest.mark.parametrize(
    "mistake, invariant",
    [
        (textbook, lesson_09.interval_stays_inside),
        (textbook, lesson_09.interval_has_width),
        (lambda c, n: tuple(min(1, max(0, x)) for x in textbook(c, n)), lesson_09.interval_has_width),
        (lambda c, n: plain_wilson(c, n, z=1.645), lesson_09.interval_is_right),
        (lambda c, n: plain_wilson(c, n, z=2.576), lesson_09.interval_is_right),
        (lambda c, n: plain_wilson(c + 2, n + 4), lesson_09.interval_is_right),
        (lambda c, n: (0.0, 1.0), lesson_09.interval_is_right),
        (lambda c, n: plain_wilson(c, n)[::-1], lesson_09.interval_stays_inside),
    ],
)
def test_wrong_intervals_are_caught(mistake, invariant):
    caught_by("9.1", mistake, invariant)


@pytest.mark.parametrize("right", [plain_wilson, evaluation.wilson])
def test_right_intervals_pass_however_they_round(right):
    result = lessons.check("9.1", right)
    assert result.passed, str(result)


# --- 9.2: the frontier ---


def frontier(rows, beats):
    points = [(row["accuracy"], row["tokens_per_problem"]) for row in rows]
    return [row for row, a in zip(rows, points, strict=True) if not any(beats(b, a) for b in points)]


@pytest.mark.parametrize(
    "mistake, invariant",
    [
        (lambda b, a: b[0] > a[0] and b[1] < a[1], lesson_09.frontier_keeps_the_unbeaten),
        (lambda b, a: b[0] >= a[0] and b[1] < a[1], lesson_09.frontier_keeps_the_unbeaten),
        (lambda b, a: b[0] > a[0], lesson_09.frontier_keeps_the_unbeaten),
        (lambda b, a: b[0] >= a[0] and b[1] >= a[1] and b != a, lesson_09.frontier_keeps_the_unbeaten),
        (lambda b, a: b[0] >= a[0] and b[1] <= a[1], lesson_09.frontier_keeps_ties),
        (lambda b, a: False, lesson_09.frontier_keeps_the_unbeaten),
    ],
)
def test_wrong_frontiers_are_caught(mistake, invariant):
    caught_by("9.2", lambda rows: frontier(rows, mistake), invariant)


def test_a_frontier_that_drops_equal_methods_is_caught():
    def first_of_equals(rows):
        seen, kept = set(), []
        for row in evaluation.pareto(rows):
            point = (row["accuracy"], row["tokens_per_problem"])
            if point not in seen:
                kept.append(row)
            seen.add(point)
        return kept

    caught_by("9.2", first_of_equals, lesson_09.frontier_keeps_ties)


# --- the machinery ---


@pytest.mark.parametrize("name", ["1.9", "2.1", "99.1", "x.1", "", ".", "3", "-1.1"])
def test_an_unknown_exercise_is_one_sentence(name):
    for call in (lambda: lessons.check(name, len), lambda: lessons.hint(name)):
        with pytest.raises(InputError) as caught:
            call()
        assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


def test_an_unknown_number_of_a_known_lesson_names_the_known_ones():
    with pytest.raises(InputError, match="it has 3.1, 3.2"):
        lessons.check("3.7", len)


@pytest.mark.parametrize("exercise", EXERCISES)
@pytest.mark.parametrize(
    "answer",
    [lambda *a: None, lambda *a: 1 / 0, lambda: 1, lambda *a: "x", lambda *a: [], lambda *a: {}[a], None],
)
def test_whatever_a_reader_writes_is_a_finding_and_never_a_crash(exercise, answer):
    result = lessons.check(exercise, answer)
    assert not result.passed
    assert str(result) and result._repr_html_()


def test_strict_mode_raises_where_a_check_does_not_pass(monkeypatch):
    monkeypatch.setenv("WORKBENCH_STRICT", "1")
    assert lessons.check("9.2", evaluation.pareto).passed
    with pytest.raises(AssertionError, match="Two methods with the same accuracy and cost both stay"):
        lessons.check("9.2", lambda rows: [])

    def stub(rows):
        raise NotImplementedError

    with pytest.raises(AssertionError, match="not implemented yet"):
        lessons.check("9.2", stub)


def test_a_result_is_shown_escaped():
    def answer(text):
        raise ValueError("<script>alert(1)</script>")

    shown = lessons.check("1.2", answer)._repr_html_()
    assert "<script>" not in shown and "&lt;script&gt;" in shown


def test_hints_come_one_by_one_from_vague_to_plain(capsys):
    lessons.hint("1.1")
    first = capsys.readouterr().out
    lessons.hint("1.1", 99)
    everything = capsys.readouterr().out
    assert first.startswith("hint 1 of 3: ") and first.count("\n") == 1
    assert everything.startswith(first) and everything.count("\n") == 3
