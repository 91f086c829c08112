"""Exercises: the committed solutions pass, typical mistakes are caught by the invariant meant for them."""

import ast
import json
import math
import os
import random
import re
import subprocess
import sys
from collections import Counter
from decimal import Decimal
from functools import partial
from pathlib import Path

import pytest

from lib import answers, calculator, evaluation, models, preferences, problems, rft, selection, synthetic
from lib.errors import InputError
from lib.lessons import check as lessons
from lib.lessons import (
    lesson_01,
    lesson_02,
    lesson_03,
    lesson_04,
    lesson_05,
    lesson_06,
    lesson_07,
    lesson_08,
    lesson_09,
)
from lib.tasks import units

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LESSONS = (lesson_01, lesson_02, lesson_03, lesson_04, lesson_05, lesson_06, lesson_07, lesson_08, lesson_09)
EXERCISES = {number: exercise for lesson in LESSONS for number, exercise in lesson.EXERCISES.items()}


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


def test_every_lesson_on_disk_is_tested_here():
    found = {path.stem for path in (ROOT / "lib" / "lessons").glob("lesson_*.py")}
    assert found == {lesson.__name__.rpartition(".")[2] for lesson in LESSONS}


# An optional cell; of the notebooks that have one, what it shows breaks an invariant and does not just crash.
WITH_BREAK_IT = [path for path in NOTEBOOKS if any("break-it" in tags for _, tags in cells(path))]


def test_most_notebooks_have_something_to_break():
    assert len(WITH_BREAK_IT) > len(NOTEBOOKS) / 2


@pytest.mark.parametrize("path", WITH_BREAK_IT, ids=lambda path: path.stem)
def test_break_it_cells_fail(path):
    everything = cells(path)
    for place, (broken_cell, broken_tags) in enumerate(everything):
        if "break-it" not in broken_tags:
            continue
        *before, last = ast.parse(broken_cell).body
        namespace = imported(path)
        solved = [source for source, tags in everything[:place] if "exercise" in tags]  # a reader has solved them
        exec("\n".join([*solved, *map(ast.unparse, before)]), namespace)
        result = eval(ast.unparse(last), namespace)
        assert isinstance(result, lessons.Result) and not result.passed
        assert "raised" not in str(result), f"it should break an invariant, not crash: {result}"


def test_every_invariant_says_what_should_hold_and_every_exercise_has_hints():
    for exercise in EXERCISES.values():
        docs = [invariant.__doc__.strip() for invariant in exercise.invariants]
        assert len(set(docs)) == len(docs) and all(doc.endswith(".") for doc in docs)
        assert len(exercise.hints) >= 2


def test_a_forgotten_return_is_said_where_an_invariant_trips_over_it():
    row = lessons.check("5.2", lambda *arguments: None).rows[0]
    assert not row[1] and "is its `return` missing?" in row[2], row
    row = lessons.check("5.2", lambda *arguments: 1 / 0).rows[0]
    assert row[2].startswith("your function raised ZeroDivisionError")


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


def test_a_split_by_the_sum_of_the_letters_is_caught():
    def by_letters(text):
        return ["test", "valid", *["train"] * 8][sum(map(ord, text)) % 10]

    caught_by("1.1", by_letters, lesson_01.split_ignores_the_answer)


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
    "all that follows": lambda text: (
        text.rpartition("####")[2].strip(" $.").replace(",", "") if "####" in text else None
    ),
}


@pytest.mark.parametrize("mistake", WRONG_READERS)
def test_wrong_readers_of_answers_are_caught(mistake):
    caught_by("1.2", WRONG_READERS[mistake], lesson_01.answer_is_the_last_marked)


UNCLEAN = {
    "a comma": lambda text: "1,080" if "1,080" in text else right_reader(text),
    "the $": lambda text: "$5.50" if "$" in text else right_reader(text),
    "the stop": lambda text: "-3." if "-3." in text else right_reader(text),
    "a blank": lambda text: right_reader(text) and " " + right_reader(text),
    "a number": lambda text: right_reader(text) and float(right_reader(text)),
}


def right_reader(text):
    return cleaned(text.rpartition("####")[2]) if "####" in text else None


@pytest.mark.parametrize("mistake", UNCLEAN)
def test_answers_that_are_not_cleaned_are_caught(mistake):
    caught_by("1.2", UNCLEAN[mistake], lesson_01.answer_is_cleaned)
    assert lessons.check("1.2", right_reader).passed


def test_the_arbiter_passes_its_own_exercise():
    """Asked about texts with a ####, that is: without one, the arbiter also reads "The answer is"."""

    def read_answer(text):
        found = answers.extract(text) if answers.MARKER in text else None
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
        (lambda logits, labels: nll(logits[1:], labels[:-1], shift=0).mean(), lesson_03.loss_is_shifted),
        (lambda logits, labels: 0.0, lesson_03.loss_is_shifted),
        (lambda logits, labels: 50.0, lesson_03.loss_is_shifted),
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


def test_which_way_a_loss_was_shifted_is_said():
    for mistake, said in (
        (lambda logits, labels: nll(logits, labels, shift=0).mean(), "row k was compared with label k:"),
        (lambda logits, labels: nll(logits[1:], labels[:-1], shift=0).mean(), "row k was compared with label k - 1"),
    ):
        assert said in str(lessons.check("3.2", mistake))
    assert "is it a sum" in str(lessons.check("3.2", lambda logits, labels: nll(logits, labels).sum()))


def test_the_mean_over_masked_positions_is_named_as_the_cause():
    assert "are the -100 positions in your mean?" in str(lessons.check("3.2", over_everything))


def test_the_librarys_loss_passes():
    from torch.nn.functional import cross_entropy

    assert lessons.check("3.2", lambda logits, labels: cross_entropy(logits[:-1], labels[1:])).passed


# --- 3.3: an adapter ---


def adapting(model, rank, inputs=True, give=lambda model, adapted: adapted, **changed):
    """An adapter by the book but for what is given by name."""
    from peft import LoraConfig, get_peft_model

    if inputs:
        model.enable_input_require_grads()
    wanted = {"r": rank, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | changed
    return give(model, get_peft_model(model, LoraConfig(**wanted)))


def all_training(model, adapted):
    adapted.requires_grad_(True)
    return adapted


PROJECTIONS = [f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")]
WRONG_ADAPTERS = {
    "none": (lambda model, rank: model, lesson_03.adapt_trains_adapters_alone),
    "merged at once": (
        partial(adapting, give=lambda model, adapted: adapted.merge_and_unload()),
        lesson_03.adapt_trains_adapters_alone,
    ),
    "the base trains, too": (partial(adapting, give=all_training), lesson_03.adapt_trains_adapters_alone),
    "the head trains, too": (partial(adapting, modules_to_save=["lm_head"]), lesson_03.adapt_trains_adapters_alone),
    "nothing trains": (partial(adapting, inference_mode=True), lesson_03.adapt_trains_adapters_alone),
    "peft's choice": (partial(adapting, target_modules=None), lesson_03.adapt_reaches_every_linear_layer),
    "attention alone": (
        partial(adapting, target_modules=PROJECTIONS[:4]),
        lesson_03.adapt_reaches_every_linear_layer,
    ),
    "the head, too": (
        partial(adapting, target_modules=[*PROJECTIONS, "lm_head"]),
        lesson_03.adapt_reaches_every_linear_layer,
    ),
    "the first layer alone": (
        partial(adapting, layers_to_transform=[0], target_modules=PROJECTIONS),
        lesson_03.adapt_reaches_every_linear_layer,
    ),
    "peft's rank": (lambda model, rank: adapting(model, 8), lesson_03.adapt_has_the_rank),
    "the rank is alpha": (partial(adapting, r=2, lora_alpha=5), lesson_03.adapt_has_the_rank),
    "random from the start": (partial(adapting, init_lora_weights=False), lesson_03.adapt_starts_as_the_base),
    "no gradient at the inputs": (
        partial(adapting, inputs=False),
        lesson_03.adapt_learns_where_layers_are_checkpointed,
    ),
    "the result thrown away": (
        partial(adapting, give=lambda model, adapted: model),
        lesson_03.adapt_returns_what_saves_the_adapter,
    ),
    "the inner model": (
        partial(adapting, give=lambda model, adapted: adapted.get_base_model()),
        lesson_03.adapt_returns_what_saves_the_adapter,
    ),
}


@pytest.mark.parametrize("mistake", WRONG_ADAPTERS)
def test_wrong_adapters_are_caught(mistake):
    caught_by("3.3", *WRONG_ADAPTERS[mistake])


def test_an_adapter_that_is_not_returned_is_said_to_be_missing():
    result = lessons.check("3.3", lambda model, rank: None)
    assert all("return the model that is to be trained" in why for _, _, why in result.rows)


def by_transformers_itself(model, rank):
    from peft import LoraConfig

    model.add_adapter(LoraConfig(r=rank, target_modules="all-linear", task_type="CAUSAL_LM"))
    model.enable_input_require_grads()
    return model


def by_a_hook(model, rank):
    model.get_input_embeddings().register_forward_hook(lambda module, inputs, output: output.requires_grad_())
    return adapting(model, rank, inputs=False, target_modules=PROJECTIONS)


def as_the_workbench_does(model, rank):
    from peft import get_peft_model

    model.gradient_checkpointing_enable()  # which says it, too
    return get_peft_model(model, models.lora_config(model, rank))


@pytest.mark.parametrize(
    "right",
    [adapting, by_transformers_itself, by_a_hook, as_the_workbench_does, partial(adapting, lora_dropout=0.1)],
)
def test_right_adapters_pass(right):
    result = lessons.check("3.3", right)
    assert result.passed, str(result)


def test_checking_an_adapter_leaves_the_readers_random_numbers_alone():
    import torch

    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    lesson_03._base(), lesson_03._ids()
    assert torch.rand(1) == expected


# --- 3.4: what to write for a number ---


def plain(value, figures=3):
    """The digits of a number, rounded and written out."""
    text = format(Decimal(f"{value:.{figures - 1}e}"), "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def tagged(number, form=" <answer>{}</answer>"):
    return lambda value: form.format(number(value))


WRONG_TARGETS = {
    "no blank": (tagged(plain, "<answer>{}</answer>"), lesson_03.target_is_a_tagged_number),
    "two blanks": (tagged(plain, "  <answer>{}</answer>"), lesson_03.target_is_a_tagged_number),
    "a line of its own": (tagged(plain, "\n<answer>{}</answer>"), lesson_03.target_is_a_tagged_number),
    "not closed": (tagged(plain, " <answer>{}"), lesson_03.target_is_a_tagged_number),
    "blanks inside": (tagged(plain, " <answer> {} </answer>"), lesson_03.target_is_a_tagged_number),
    "more behind it": (tagged(plain, " <answer>{}</answer>\n"), lesson_03.target_is_a_tagged_number),
    "no tags": (tagged(plain, " {}"), lesson_03.target_is_a_tagged_number),
    "a number": (lambda value: float(plain(value)), lesson_03.target_is_a_tagged_number),
    "raw floats": (tagged(str), lesson_03.target_has_three_figures),
    "two decimals": (tagged(lambda value: plain(round(value, 2), 15)), lesson_03.target_has_three_figures),
    "four figures": (tagged(partial(plain, figures=4)), lesson_03.target_has_three_figures),
    "two figures": (tagged(partial(plain, figures=2)), lesson_03.target_stays_near),
    "whole numbers": (tagged(round), lesson_03.target_stays_near),
    "nothing": (tagged(lambda value: ""), lesson_03.target_stays_near),
    "always a point": (tagged(lambda value: float(plain(value))), lesson_03.target_shows_no_noise),
    "zeros stay": (
        tagged(lambda value: format(Decimal(f"{value:.2e}"), "f")),
        lesson_03.target_shows_no_noise,
    ),
    "all zeros go": (tagged(lambda value: plain(value).rstrip("0")), lesson_03.target_shows_no_noise),
    "commas": (tagged(lambda value: f"{float(plain(value)):,.12g}"), lesson_03.target_shows_no_noise),
    "exponents": (tagged(lambda value: f"{value:.3g}"), lesson_03.target_writes_numbers_out),
    "small exponents": (
        tagged(lambda v: str(int(float(plain(v)))) if v >= 100 else repr(float(plain(v))).removesuffix(".0")),
        lesson_03.target_writes_numbers_out,
    ),
}


@pytest.mark.parametrize("mistake", WRONG_TARGETS)
def test_wrong_targets_are_caught(mistake):
    caught_by("3.4", *WRONG_TARGETS[mistake])


def by_logarithm(value):
    places = 2 - math.floor(math.log10(value))
    text = f"{round(value, places):.{max(places, 0)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


@pytest.mark.parametrize("right", [plain, by_logarithm, units.significant], ids=["decimal", "logarithm", "workbench"])
def test_right_targets_pass_and_the_arbiter_reads_them(right):
    result = lessons.check("3.4", tagged(right))
    assert result.passed, str(result)
    for value in (5999.999999999999, 0.125, 20870.982787499997):
        assert answers.number(answers.extract(f"What is it?{tagged(right)(value)}")) == answers.number(plain(value))


# --- 2.1: one prompt after another ---


def likeliest(logits):
    return max(range(len(logits)), key=lambda token: logits[token])


def right_greedy(next_logits, prompt, eos, limit, choose=likeliest):
    new = []
    while len(new) < limit and (not new or new[-1] != eos):
        new.append(choose(next_logits([*prompt, *new])))
    return new


def into_the_prompt_itself(next_logits, prompt, eos, limit):
    size = len(prompt)
    while len(prompt) - size < limit and prompt[-1] != eos:
        prompt.append(likeliest(next_logits(prompt)))
    return prompt[size:]


WRONG_GREEDY = {
    "the least likely": (
        lambda *a: right_greedy(*a, choose=lambda x: x.index(min(x))),
        lesson_02.greedy_takes_the_likeliest,
    ),
    "one token too many": (
        lambda f, p, eos, n: right_greedy(f, p, eos, n + 1),
        lesson_02.greedy_takes_the_likeliest,
    ),
    "the limit counts the prompt": (
        lambda f, p, eos, n: right_greedy(f, p, eos, n - len(p)),
        lesson_02.greedy_takes_the_likeliest,
    ),
    "only the last token is read": (
        lambda f, p, eos, n: right_greedy(lambda ids: f(ids[-1:]), p, eos, n),
        lesson_02.greedy_reads_everything,
    ),
    "only the prompt is read": (
        lambda f, p, eos, n: right_greedy(lambda ids: f(p), p, eos, n),
        lesson_02.greedy_reads_everything,
    ),
    "the prompt is read once": (
        lambda f, p, eos, n: right_greedy(lambda ids: f(ids[len(p) :] or p), p, eos, n),
        lesson_02.greedy_reads_everything,
    ),
    "on to the limit": (
        lambda f, p, eos, n: right_greedy(f, p, None, n),
        lesson_02.greedy_stops_at_the_end,
    ),
    "eos dropped": (
        lambda f, p, eos, n: [token for token in right_greedy(f, p, eos, n) if token != eos],
        lesson_02.greedy_stops_at_the_end,
    ),
    "at least one token": (
        lambda f, p, eos, n: right_greedy(f, p, eos, max(1, n)),
        lesson_02.greedy_stops_at_the_end,
    ),
    "the prompt is changed": (into_the_prompt_itself, lesson_02.greedy_leaves_the_prompt_alone),
    "the prompt is returned": (
        lambda f, p, eos, n: p + right_greedy(f, p, eos, n),
        lesson_02.greedy_leaves_the_prompt_alone,
    ),
}


@pytest.mark.parametrize("mistake", WRONG_GREEDY)
def test_wrong_greedy_loops_are_caught(mistake):
    caught_by("2.1", *WRONG_GREEDY[mistake])


def test_another_right_greedy_loop_passes():
    assert lessons.check("2.1", right_greedy).passed


# --- 2.2: many prompts at once ---


def batch_of(prompts, pad, side="left", on=lambda row, real: real, first=lambda gap: 0):
    """A batch made by the book but for what is asked: the side of the padding, the mask, the first position."""
    width = max(map(len, prompts))
    rows = []
    for prompt in prompts:
        gap = width - len(prompt)
        ids, real = [pad] * gap + prompt, [0] * gap + [1] * len(prompt)
        places = [0] * gap + [first(gap) + i for i in range(len(prompt))]
        if side == "right":
            ids, real, places = prompt + [pad] * gap, real[::-1], places[gap:] + places[:gap]
        rows.append((ids, on(ids, real), places))
    return tuple(map(list, zip(*rows, strict=True)))


WRONG_BATCHES = {
    "right padding": (lambda p, pad: batch_of(p, pad, "right"), lesson_02.batch_pads_on_the_left),
    "sorted by length": (
        lambda p, pad: batch_of(sorted(p, key=len), pad),
        lesson_02.batch_pads_on_the_left,
    ),
    "another pad": (lambda p, pad: batch_of(p, -1), lesson_02.batch_pads_on_the_left),
    "mask from ids": (
        lambda p, pad: batch_of(p, pad, on=lambda ids, real: [int(token != pad) for token in ids]),
        lesson_02.batch_masks_padding_alone,
    ),
    "mask upside down": (
        lambda p, pad: batch_of(p, pad, on=lambda ids, real: [1 - bit for bit in real]),
        lesson_02.batch_masks_padding_alone,
    ),
    "nothing masked": (
        lambda p, pad: batch_of(p, pad, on=lambda ids, real: [1] * len(ids)),
        lesson_02.batch_gives_the_logits_of_each_alone,
    ),
    "mask of right padding": (
        lambda p, pad: batch_of(p, pad, on=lambda ids, real: real[::-1]),
        lesson_02.batch_gives_the_logits_of_each_alone,
    ),
    "positions count the padding": (
        lambda p, pad: batch_of(p, pad, first=lambda gap: gap),
        lesson_02.batch_counts_from_the_first_token,
    ),
    "positions from 1": (
        lambda p, pad: batch_of(p, pad, first=lambda gap: 1),
        lesson_02.batch_counts_from_the_first_token,
    ),
    "no padding": (
        lambda p, pad: (p, [[1] * len(x) for x in p], [list(range(len(x))) for x in p]),
        lesson_02.batch_is_a_rectangle,
    ),
    "cut to the shortest": (
        lambda p, pad: batch_of([x[-1:] for x in p], pad),
        lesson_02.batch_is_a_rectangle,
    ),
}


@pytest.mark.parametrize("mistake", WRONG_BATCHES)
def test_wrong_batches_are_caught(mistake):
    caught_by("2.2", *WRONG_BATCHES[mistake])


def test_a_right_batch_passes_as_lists_or_tensors_and_what_stands_under_padding_counts():
    import torch

    def tensors(prompts, pad):
        return tuple(map(torch.tensor, batch_of(prompts, pad)))

    def with_ones(prompts, pad):
        ids, mask, positions = tensors(prompts, pad)
        return ids, mask, positions.masked_fill(mask == 0, 1)

    def without_pad(prompts, pad):
        return batch_of(prompts, 0)

    for right in (batch_of, tensors):
        result = lessons.check("2.2", right)
        assert result.passed, str(result)
    for wrong in (with_ones, without_pad):
        assert broken("2.2", wrong) == [lesson_02.batch_uses_the_pad_that_it_is_given.__doc__]


def test_a_loop_without_a_limit_is_told_so_and_ends():
    def endless(next_logits, prompt, eos, limit):
        new = []
        while eos not in new:
            logits = next_logits(prompt + new)
            new.append(logits.index(max(logits)))
        return new

    caught_by("2.1", endless, lesson_02.greedy_reads_everything)


def test_paths_are_told_apart_by_whole_equations():
    def by_expressions(texts):
        return list({tuple(a for a, _ in answers.annotations(t)): t for t in reversed(texts)}.values())[::-1]

    def joined(texts):
        paths = {}
        for text in texts:
            paths.setdefault("".join(a + "=" + b for a, b in answers.annotations(text)).replace(" ", ""), text)
        return list(paths.values())

    for wrong in (by_expressions, joined):
        caught_by("4.4", wrong, lesson_04.distinct_looks_at_whole_equations)


# --- 2.3: reading a stated answer ---


def after(text, cut=str.rpartition, clean=lambda answer: answer.replace("$", "").replace(",", "").rstrip(".")):
    _, marker, rest = cut(text, "The answer is ")
    answer = clean(rest.split("\n")[0].strip())
    return answer if marker and answer else None


WRONG_STATED = {
    "the first": (lambda text: after(text, cut=str.partition), lesson_02.stated_takes_the_last),
    "all that follows": (
        lambda text: text.rpartition("The answer is ")[2].strip() or None,
        lesson_02.stated_takes_the_last,
    ),
    "decoration stays": (
        lambda text: after(text, clean=lambda answer: answer),
        lesson_02.stated_drops_decoration,
    ),
    "decimal points go": (
        lambda text: after(text, clean=lambda a: re.sub("[$,.]", "", a)),
        lesson_02.stated_drops_decoration,
    ),
    "digits alone": (
        lambda text: (re.findall(r"The answer is \$?(\d+)", text) or [None])[-1],
        lesson_02.stated_drops_decoration,
    ),
    "no sign": (
        lambda text: (re.findall(r"The answer is -?([\d.]*\d)", text) or [None])[-1],
        lesson_02.stated_reads_the_number,
    ),
    "a number": (lambda text: float(after(text) or "nan"), lesson_02.stated_reads_the_number),
    "the last number of the text": (
        lambda text: (re.findall(r"-?\d+", text) or [None])[-1],
        lesson_02.stated_admits_there_is_none,
    ),
    "empty instead of none": (lambda text: after(text) or "", lesson_02.stated_admits_there_is_none),
}


@pytest.mark.parametrize("mistake", WRONG_STATED)
def test_wrong_readers_of_stated_answers_are_caught(mistake):
    caught_by("2.3", *WRONG_STATED[mistake])


def test_the_arbiter_passes_the_exercise_on_stated_answers():
    def stated(text):
        found = answers.extract(text)
        if found is not None:
            assert answers.same(found, after(text)), "the arbiter and the exercise read different answers"
        return found and after(text)

    result = lessons.check("2.3", stated)
    assert result.passed, str(result)


# --- 2.4: many prompts, many samples ---


def asking(
    generate,
    prompts,
    limit,
    k=None,
    temperature=0.0,
    budget=32,
    *,
    order=lambda prompts: prompts,
    size=lambda budget, each: max(1, budget // each),
    settings=lambda given, temperature: given,
    of=lambda texts, i, each, n: texts[i * each : (i + 1) * each],
    cut=lambda text, prompt: text[len(prompt) :],
    give=lambda found, k: [samples[0] for samples in found] if k is None else found,
):
    """Completions by the book but for what is given by name."""
    each, found, prompts = k or 1, [], order(prompts)
    given = {"max_new_tokens": limit, "num_return_sequences": each, "do_sample": temperature > 0}
    given |= {"temperature": temperature} if temperature else {}
    n = size(budget, each)
    for batch in (prompts[i : i + n] for i in range(0, len(prompts), n)):
        texts = generate(batch, **settings(given, temperature))
        found += [[cut(x, p) for x in of(texts, i, each, len(batch))] for i, p in enumerate(batch)]
    return give(found, k)


def flat(found, k):
    return [text for samples in found for text in samples]


WRONG_COMPLETIONS = {
    "lists without k": ({"give": lambda found, k: found}, lesson_02.complete_gives_a_text_without_k),
    "k=1 as None": (
        {"give": lambda found, k: found if (k or 1) > 1 else flat(found, k)},
        lesson_02.complete_gives_a_list_for_any_k,
    ),
    "flat for every k": ({"give": flat}, lesson_02.complete_gives_a_list_for_any_k),
    "the first sample alone": (
        {"of": lambda texts, i, each, n: texts[i * each : i * each + 1]},
        lesson_02.complete_gives_a_list_for_any_k,
    ),
    "the prompt stays": ({"cut": lambda text, prompt: text}, lesson_02.complete_drops_the_prompt),
    "the prompt replaced": (
        {"cut": lambda text, prompt: text.replace(prompt, "")},
        lesson_02.complete_drops_the_prompt,
    ),
    "split at the prompt": (
        {"cut": lambda text, prompt: text.split(prompt)[-1]},
        lesson_02.complete_drops_the_prompt,
    ),
    "cut at one width": ({"cut": lambda text, prompt: text[27:]}, lesson_02.complete_drops_the_prompt),
    "stripped": (
        {"cut": lambda text, prompt: text[len(prompt) :].strip()},
        lesson_02.complete_drops_the_prompt,
    ),
    "every nth": ({"of": lambda texts, i, each, n: texts[i::n]}, lesson_02.complete_keeps_what_belongs_together),
    "by length": (
        {"order": lambda prompts: sorted(prompts, key=len)},
        lesson_02.complete_keeps_what_belongs_together,
    ),
    "the last batch dropped": (
        {"order": lambda prompts: prompts[:4]},
        lesson_02.complete_keeps_what_belongs_together,
    ),
    "a budget of prompts": ({"size": lambda budget, each: budget}, lesson_02.complete_stays_within_the_budget),
    "all at once": ({"size": lambda budget, each: 1000}, lesson_02.complete_stays_within_the_budget),
    "one by one": ({"size": lambda budget, each: 1}, lesson_02.complete_fills_the_budget),
    "no limit": (
        {"settings": lambda s, t: {name: s[name] for name in s if name != "max_new_tokens"}},
        lesson_02.complete_passes_the_limit_on,
    ),
    "always 50": ({"settings": lambda s, t: s | {"max_new_tokens": 50}}, lesson_02.complete_passes_the_limit_on),
    "at least 50": (
        {"settings": lambda s, t: s | {"max_new_tokens": max(50, s["max_new_tokens"])}},
        lesson_02.complete_passes_the_limit_on,
    ),
    "a temperature beside greedy": (
        {"settings": lambda s, t: s | {"temperature": t}},
        lesson_02.complete_is_greedy_at_0,
    ),
    "sampling at 0": ({"settings": lambda s, t: s | {"do_sample": True}}, lesson_02.complete_is_greedy_at_0),
    "left to the library": (
        {"settings": lambda s, t: {name: s[name] for name in s if name != "do_sample" or t}},
        lesson_02.complete_is_greedy_at_0,
    ),
    "never sampled": ({"settings": lambda s, t: s | {"do_sample": False}}, lesson_02.complete_samples_above_0),
    "no temperature": (
        {"settings": lambda s, t: {name: s[name] for name in s if name != "temperature"}},
        lesson_02.complete_samples_above_0,
    ),
    "always 0.7": (
        {"settings": lambda s, t: s | ({"temperature": 0.7} if t else {})},
        lesson_02.complete_samples_above_0,
    ),
    "two at least": (
        {"size": lambda budget, each: max(2, budget // each)},
        lesson_02.complete_asks_for_one_prompt_at_least,
    ),
}


@pytest.mark.parametrize("mistake", WRONG_COMPLETIONS)
def test_wrong_ways_to_ask_a_library_are_caught(mistake):
    changes, invariant = WRONG_COMPLETIONS[mistake]
    caught_by("2.4", partial(asking, **changes), invariant)


def test_a_batch_of_no_prompts_is_a_finding_and_not_an_endless_loop():
    def unguarded(generate, prompts, limit, k=None, temperature=0.0, budget=32):
        found, n = [], budget // (k or 1)
        while len(found) < len(prompts):
            found += asking(generate, prompts[len(found) :][:n], limit, k, temperature)
            generate([])
        return found

    caught_by("2.4", unguarded, lesson_02.complete_asks_for_one_prompt_at_least)


RIGHT_COMPLETIONS = {
    "plainly": {},
    "by its prefix": {"cut": lambda text, prompt: text.removeprefix(prompt)},
    "tuples": {"give": lambda found, k: tuple(x[0] if k is None else tuple(x) for x in found)},
    "no temperature is None": {"settings": lambda s, t: s | {"temperature": t or None}},
    "one sample is the default": {
        "settings": lambda s, t: {name: s[name] for name in s if name != "num_return_sequences" or s[name] > 1}
    },
}


@pytest.mark.parametrize("way", RIGHT_COMPLETIONS)
def test_right_ways_to_ask_a_library_pass(way):
    result = lessons.check("2.4", partial(asking, **RIGHT_COMPLETIONS[way]))
    assert result.passed, str(result)


# --- 4.1: a calculator step ---


def forced(text, cut=str.rpartition, closing=">>", write=calculator.format_number, waits=True):
    _, marker, annotation = cut(text, "<<")
    expression, equals, rest = annotation.partition("=")
    if not marker or not equals or (rest and waits):
        return None
    value = calculator.evaluate(expression).value
    return None if value is None else write(value) + closing


def by_regular_expression(text):
    found = re.search(r"<<([^<=]*)=$", text)
    value = calculator.evaluate(found[1]).value if found else None
    return None if value is None else f"{calculator.format_number(value)}>>"


def forgiving(text):
    """A value where there is none."""
    found = re.search(r"<<([^<=]*)=$", text)
    return found and f"{calculator.format_number(calculator.evaluate(found[1]).value or 0)}>>"


WRONG_FORCED = {
    "not closed": (lambda text: forced(text, closing=""), lesson_04.forced_writes_the_result),
    "closed by one": (lambda text: forced(text, closing=">"), lesson_04.forced_writes_the_result),
    "the whole annotation": (
        lambda text: forced(text) and text + forced(text),
        lesson_04.forced_writes_the_result,
    ),
    "a float": (
        lambda text: forced(text, write=lambda value: str(float(value))),
        lesson_04.forced_writes_the_result,
    ),
    "not rounded": (
        lambda text: forced(text, write=lambda v: str(v) if v.denominator == 1 else repr(float(v))),
        lesson_04.forced_rounds_as_the_verifier_does,
    ),
    "a fraction": (lambda text: forced(text, write=str), lesson_04.forced_rounds_as_the_verifier_does),
    "two decimals always": (
        lambda text: forced(text, write=lambda v: str(v) if v.denominator == 1 else f"{float(v):.2f}"),
        lesson_04.forced_rounds_as_the_verifier_does,
    ),
    "no marker needed": (
        lambda text: forced("<<" + text.rpartition("<<")[2]),
        lesson_04.forced_leaves_the_model_alone,
    ),
    "before the equals sign": (
        lambda text: forced(text if "=" in text or "<<" not in text else text + "="),
        lesson_04.forced_leaves_the_model_alone,
    ),
    "after the annotation": (
        lambda text: forced(text, waits=False),
        lesson_04.forced_leaves_the_model_alone,
    ),
    "behind a result": (lambda text: forced(text, waits=False), lesson_04.forced_waits_for_the_equals_sign),
    "0 for nonsense": (forgiving, lesson_04.forced_survives_nonsense),
    "the first annotation": (
        lambda text: forced(text, cut=str.partition),
        lesson_04.forced_reads_the_last_annotation,
    ),
}


@pytest.mark.parametrize("mistake", WRONG_FORCED)
def test_wrong_calculator_steps_are_caught(mistake):
    caught_by("4.1", *WRONG_FORCED[mistake])


def test_executing_the_expression_is_caught():
    def executed(text):
        found = re.search(r"<<([^<=]*)=$", text)
        if not found:
            return None
        try:
            value = eval(found[1])
        except (ArithmeticError, NameError, SyntaxError):
            return None
        return f"{value:.2f}".rstrip("0").rstrip(".") + ">>" if isinstance(value, (int, float)) else f"{value}>>"

    caught_by("4.1", executed, lesson_04.forced_survives_nonsense)


def test_another_right_calculator_step_passes():
    assert lessons.check("4.1", by_regular_expression).passed


# --- 4.2: the vote ---


def most(found, tie=lambda answers: answers[0], none=None):
    stated = [answer for answer in found if answer is not None]
    if not stated:
        return none
    counts = {answer: stated.count(answer) for answer in stated}
    return tie([answer for answer in counts if counts[answer] == max(counts.values())])


WRONG_VOTES = {
    "none votes": (
        lambda found: Counter(found).most_common(1)[0][0] if found else None,
        lesson_04.vote_ignores_missing_answers,
    ),
    "the first": (lambda found: next(filter(None, found), None), lesson_04.vote_takes_the_most_frequent),
    "the last": (lambda found: next(filter(None, found[::-1]), None), lesson_04.vote_takes_the_most_frequent),
    "the largest": (lambda found: max(filter(None, found), default=None), lesson_04.vote_breaks_ties_by_order),
    "ties to the last": (lambda found: most(found, tie=lambda a: a[-1]), lesson_04.vote_breaks_ties_by_order),
    "ties in alphabetical order": (lambda found: most(found, tie=min), lesson_04.vote_breaks_ties_by_order),
    "ties to the largest": (lambda found: most(found, tie=max), lesson_04.vote_breaks_ties_by_order),
    "ties to who got there first": (
        lambda found: next(
            (
                a
                for i, a in enumerate(found)
                if a and found[: i + 1].count(a) == max(map(found.count, filter(None, found)))
            ),
            None,
        ),
        lesson_04.vote_breaks_ties_by_order,
    ),
    "empty instead of none": (lambda found: most(found, none=""), lesson_04.vote_admits_there_is_none),
    "a number": (lambda found: most(found) and float(most(found)), lesson_04.vote_takes_the_most_frequent),
}


@pytest.mark.parametrize("mistake", WRONG_VOTES)
def test_wrong_votes_are_caught(mistake):
    caught_by("4.2", *WRONG_VOTES[mistake])


def test_right_votes_pass():
    """A Counter gives equally frequent answers in the order in which they came."""

    def counted(found):
        counts = Counter(answer for answer in found if answer is not None).most_common(1)
        return counts[0][0] if counts else None

    def by_the_workbench(found):
        place = selection.vote(found)
        return None if place is None else found[place]

    for right in (most, counted, by_the_workbench):
        result = lessons.check("4.2", right)
        assert result.passed, str(result)


# --- 4.3: what may be learned ---


def recorded(
    question,
    gold,
    text,
    *,
    counts=lambda chain: [chain.count("<answer>"), chain.count("</answer>")] == [1, 1],
    ends=lambda chain: chain.endswith("</answer>"),
    role=lambda chain: chain.split("\n")[0].strip() in ("assistant", "user", "system"),
    read=float,
    near=lambda number, gold: abs(number - gold) <= 0.01 * abs(gold),
    holds=lambda pairs: bool(pairs) and all(answers.check_annotation(*pair).ok for pair in pairs),
    give=lambda question, gold, chain, number: [question, gold, chain],
):
    """A record by the book but for what is given by name."""
    chain = text.strip()
    if not counts(chain) or not ends(chain) or role(chain):
        return None
    body, _, stated = chain.partition("<answer>")
    try:
        number = read(stated.partition("</answer>")[0])
    except ValueError:
        return None
    good = near(number, gold) and holds(answers.annotations(body))
    return give(question, gold, chain, number) if good else None


def anything(chain):
    return True


WRONG_RECORDS = {
    "the text as it came": (lambda q, g, t: recorded(q, g, t) and [q, g, t], lesson_04.record_keeps_what_holds),
    "the question in front": (
        partial(recorded, give=lambda q, g, c, n: [q, g, f"{q}\n{c}"]),
        lesson_04.record_keeps_what_holds,
    ),
    "without its tag": (
        partial(recorded, give=lambda q, g, c, n: [q, g, c.partition("<answer>")[0]]),
        lesson_04.record_keeps_what_holds,
    ),
    "the order of the text": (
        partial(recorded, give=lambda q, g, c, n: [q, c, g]),
        lesson_04.record_keeps_what_holds,
    ),
    "the model's answer": (partial(recorded, give=lambda q, g, c, n: [q, n, c]), lesson_04.record_keeps_gold),
    "gold rounded": (partial(recorded, give=lambda q, g, c, n: [q, round(g), c]), lesson_04.record_keeps_gold),
    "chains without an end": (
        partial(recorded, counts=lambda chain: "<answer>" in chain, ends=anything),
        lesson_04.record_wants_the_tag_closed,
    ),
    "the first of several": (
        partial(recorded, counts=anything, holds=anything),
        lesson_04.record_wants_the_tag_closed,
    ),
    "text after the tag": (partial(recorded, ends=anything), lesson_04.record_ends_with_the_answer),
    "any number in it": (
        partial(
            recorded, read=lambda text: float(re.findall(r"[\d.]+", text.replace(",", ""))[0] if text.strip() else 0)
        ),
        lesson_04.record_reads_a_bare_number,
    ),
    "an expression": (
        partial(recorded, read=lambda text: calculator.evaluate(text).value or 0),
        lesson_04.record_reads_a_bare_number,
    ),
    "as the arbiter reads": (
        partial(recorded, read=lambda text: float(answers.number(text) or 0)),
        lesson_04.record_reads_a_bare_number,
    ),
    "far is what is more than 1 % off, and nan is not": (
        partial(recorded, near=lambda number, gold: not abs(number - gold) > 0.01 * gold),
        lesson_04.record_reads_a_bare_number,
    ),
    "another error than float's": (
        partial(recorded, read=lambda text: float(Decimal(text))),
        lesson_04.record_reads_a_bare_number,
    ),
    "raises on junk": (
        lambda q, g, t: (t.split("<answer>")[1], recorded(q, g, t))[1],
        lesson_04.record_survives_junk,
    ),
    "5 %": (partial(recorded, near=lambda n, gold: abs(n - gold) < 0.05 * gold), lesson_04.record_is_strict),
    "exactly": (partial(recorded, near=lambda n, gold: abs(n - gold) < 1e-6 * gold), lesson_04.record_is_strict),
    "1 up or down": (partial(recorded, near=lambda n, gold: abs(n - gold) < 1), lesson_04.record_is_strict),
    "not above": (partial(recorded, near=lambda n, gold: n - gold < 0.01 * gold), lesson_04.record_is_strict),
    "no sign": (partial(recorded, near=lambda n, g: abs(abs(n) - g) < 0.01 * g), lesson_04.record_is_strict),
    "arithmetic not looked at": (partial(recorded, holds=anything), lesson_04.record_checks_the_arithmetic),
    "nothing checked is right": (
        partial(recorded, holds=lambda pairs: all(answers.check_annotation(*pair).ok for pair in pairs)),
        lesson_04.record_checks_the_arithmetic,
    ),
    "the last annotation alone": (
        partial(recorded, holds=lambda pairs: bool(pairs) and answers.check_annotation(*pairs[-1]).ok),
        lesson_04.record_checks_the_arithmetic,
    ),
    "one that holds is enough": (
        partial(recorded, holds=lambda pairs: any(answers.check_annotation(*pair).ok for pair in pairs)),
        lesson_04.record_checks_the_arithmetic,
    ),
    "no value agrees with no value": (
        partial(
            recorded,
            holds=lambda pairs: (
                bool(pairs) and all(calculator.evaluate(a).value == calculator.evaluate(b).value for a, b in pairs)
            ),
        ),
        lesson_04.record_checks_the_arithmetic,
    ),
    "the role in front": (partial(recorded, role=lambda chain: False), lesson_04.record_begins_with_the_solution),
    "assistant alone": (
        partial(recorded, role=lambda chain: chain.startswith("assistant")),
        lesson_04.record_begins_with_the_solution,
    ),
    "the role cut off": (
        lambda q, g, t: recorded(q, g, re.sub(r"\A(assistant|user|system)\n", "", t)),
        lesson_04.record_begins_with_the_solution,
    ),
}


@pytest.mark.parametrize("mistake", WRONG_RECORDS)
def test_wrong_records_are_caught(mistake):
    caught_by("4.3", *WRONG_RECORDS[mistake])


def by_one_expression(question, gold, text):
    """A whole record in a regular expression, as a tuple."""
    found = re.fullmatch(r"\s*((?:(?!</?answer>).)*)<answer>\s*(-?\d+(?:\.\d*)?)\s*</answer>\s*", text, re.S)
    if not found or found[1].split("\n")[0] in ("assistant", "user", "system"):
        return None
    pairs = answers.annotations(found[1])
    values = [calculator.evaluate(expression).value for expression, _ in pairs]
    held = [v is not None and calculator.agrees(v, stated) for v, (_, stated) in zip(values, pairs, strict=True)]
    near = abs(float(found[2]) / gold - 1) < 0.01
    return (question, gold, text.strip()) if near and held and all(held) else None


@pytest.mark.parametrize("right", [recorded, by_one_expression])
def test_right_records_pass(right):
    result = lessons.check("4.3", right)
    assert result.passed, str(result)


@pytest.mark.parametrize("number", ["2.4", "3.3", "3.4", "4.3"])
def test_every_invariant_of_the_exercises_on_units_is_what_some_mistake_breaks(number):
    tables = {"2.4": WRONG_COMPLETIONS, "3.3": WRONG_ADAPTERS, "3.4": WRONG_TARGETS, "4.3": WRONG_RECORDS}
    assert {invariant for _, invariant in tables[number].values()} == set(EXERCISES[number].invariants)
    assert len(EXERCISES[number].hints) == 3


# --- 4.4: distinct paths ---


def kept(texts, path=lambda pairs: tuple(f"{a}={b}".replace(" ", "") for a, b in pairs), keep=dict.setdefault):
    found = {}
    for text in texts:
        keep(found, path(answers.annotations(text)), text)
    return list(found.values())


def drops_in_place(texts):
    for text in texts[:]:
        if text not in kept(texts):
            texts.remove(text)
    return texts


WRONG_KEEPERS = {
    "all of them": (lambda texts: list(texts), lesson_04.distinct_drops_the_same_equations),
    "equal texts": (lambda texts: list(dict.fromkeys(texts)), lesson_04.distinct_drops_the_same_equations),
    "blanks stay": (lambda texts: kept(texts, path=tuple), lesson_04.distinct_drops_the_same_equations),
    "the last of each path": (
        lambda texts: kept(texts, keep=dict.__setitem__),
        lesson_04.distinct_drops_the_same_equations,
    ),
    "equations sorted": (
        lambda texts: kept(texts, path=lambda pairs: tuple(sorted(f"{a}={b}".replace(" ", "") for a, b in pairs))),
        lesson_04.distinct_keeps_other_orders,
    ),
    "equations as a set": (
        lambda texts: kept(texts, path=lambda pairs: frozenset(f"{a}={b}".replace(" ", "") for a, b in pairs)),
        lesson_04.distinct_keeps_other_orders,
    ),
    "operands sorted": (
        lambda texts: kept(texts, path=lambda pairs: tuple("".join(sorted(a.replace(" ", ""))) for a, _ in pairs)),
        lesson_04.distinct_keeps_other_orders,
    ),
    "results alone": (
        lambda texts: kept(texts, path=lambda pairs: tuple(b.strip() for _, b in pairs)),
        lesson_04.distinct_keeps_other_orders,
    ),
    "by the answer": (
        lambda texts: kept(texts, path=lambda pairs: pairs[-1][1].strip()),
        lesson_04.distinct_keeps_other_orders,
    ),
    "sorted": (lambda texts: sorted(kept(texts)), lesson_04.distinct_keeps_the_order),
    "backwards": (lambda texts: kept(texts)[::-1], lesson_04.distinct_keeps_the_order),
    "the list that came in": (drops_in_place, lesson_04.distinct_keeps_the_order),
}


@pytest.mark.parametrize("mistake", WRONG_KEEPERS)
def test_wrong_keepers_of_paths_are_caught(mistake):
    caught_by("4.4", *WRONG_KEEPERS[mistake])


def test_the_paths_of_the_workbench_are_those_of_the_exercise():
    problem = problems.make_problem("?", ["<<6*4=24>>", "<<24-5=19>>"], "19", "gsm8k")

    def keep(texts):
        found = {}
        for text in texts:
            found.setdefault(rft.equations(problem, text), text)
        return list(found.values())

    result = lessons.check("4.4", keep)
    assert result.passed, str(result)


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


@pytest.mark.parametrize("name", ["1.9", "2.9", "10.1", "99.1", "x.1", "", ".", "3", "-1.1"])
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


# --- 4.5: a scoring rule ---


def traceable(given, chain):
    known, traced = set(given), []
    for operands, result in chain:
        traced += [x in known for x in operands]
        known.add(result)
    return sum(traced) / len(traced) if traced else 0.0


def all_or_nothing(given, chain):
    return float(traceable(given, chain) == 1)


def by_step(given, chain):
    known, traced = set(given), []
    for operands, result in chain:
        traced.append(sum(x in known for x in operands) / len(operands))
        known.add(result)
    return sum(traced) / len(traced) if traced else 0.0


def results_known_at_once(given, chain):
    known = set(given) | {result for _, result in chain}
    traced = [x in known for operands, _ in chain for x in operands]
    return sum(traced) / len(traced) if traced else 0.0


def result_known_too_soon(given, chain):
    known, traced = set(given), []
    for operands, result in chain:
        known.add(result)
        traced += [x in known for x in operands]
    return sum(traced) / len(traced) if traced else 0.0


def question_alone(given, chain):
    return traceable(given, [(operands, None) for operands, _ in chain])


def used_up(given, chain):
    left, traced = list(given), []
    for operands, result in chain:
        for x in operands:
            traced.append(x in left)
            left.remove(x) if x in left else None
        left.append(result)
    return sum(traced) / len(traced) if traced else 0.0


WRONG_SCORES = {
    "all or nothing": (all_or_nothing, lesson_04.score_is_a_share),
    "a mean over steps": (by_step, lesson_04.score_is_a_share),
    "the question alone": (question_alone, lesson_04.score_knows_earlier_results),
    "results known at once": (results_known_at_once, lesson_04.score_knows_no_later_result),
    "a step's own result": (result_known_too_soon, lesson_04.score_knows_no_later_result),
    "numbers used up": (used_up, lesson_04.score_lets_numbers_be_used_again),
    "an empty chain is perfect": (lambda g, c: traceable(g, c) if c else 1.0, lesson_04.score_of_nothing_is_nothing),
}


@pytest.mark.parametrize("mistake", WRONG_SCORES)
def test_wrong_scores_are_caught(mistake):
    caught_by("4.5", *WRONG_SCORES[mistake])


def test_a_right_score_passes_and_is_the_one_of_the_verifier():
    assert lessons.check("4.5", traceable).passed
    p = problems.make_problem("5 cats and 3 dogs", ["<<5+3=8>>8", "<<8*7=56>>56"], "56", "made_up")
    assert synthetic.check(p)["operands_traceable"] == traceable([5, 3], [([5, 3], 8), ([8, 7], 56)]) == 0.75


# --- 5.1: the pair rule ---


def all_pairs(right, wrong):
    return [(i, j) for i in range(len(right)) for j in range(len(wrong))]


def by_similarity(right, wrong, n, alike=lambda a, b: len(a & b) / len(a | b), **order):
    return sorted(all_pairs(right, wrong), key=lambda p: alike(right[p[0]], wrong[p[1]]), **order)[:n]


WRONG_PAIRS = {
    "nearest": (lambda r, w, n: by_similarity(r, w, n, reverse=True), lesson_05.farthest_prefers_the_least_alike),
    "backwards": (lambda r, w, n: by_similarity(r, w, n)[::-1], lesson_05.farthest_prefers_the_least_alike),
    "the first": (lambda r, w, n: all_pairs(r, w)[:n], lesson_05.farthest_prefers_the_least_alike),
    "all": (lambda r, w, n: by_similarity(r, w, 99), lesson_05.farthest_returns_pairs_of_places),
    "one a right text": (
        lambda r, w, n: [by_similarity([a], w, 1)[0] for a in r][:n],
        lesson_05.farthest_returns_pairs_of_places,
    ),
    "tokens in common": (
        lambda r, w, n: by_similarity(r, w, n, alike=lambda a, b: len(a & b)),
        lesson_05.farthest_divides_by_the_union,
    ),
    "share of the chosen": (
        lambda r, w, n: by_similarity(r, w, n, alike=lambda a, b: len(a & b) / len(a)),
        lesson_05.farthest_divides_by_the_union,
    ),
    "over the shorter": (
        lambda r, w, n: by_similarity(r, w, n, alike=lambda a, b: len(a & b) / min(len(a), len(b))),
        lesson_05.farthest_divides_by_the_union,
    ),
    "padded": (lambda r, w, n: (by_similarity(r, w, n) + [(0, 0)] * n)[:n], lesson_05.farthest_takes_what_there_is),
}


@pytest.mark.parametrize("mistake", WRONG_PAIRS)
def test_wrong_pair_rules_are_caught(mistake):
    caught_by("5.1", *WRONG_PAIRS[mistake])


def test_the_pairs_of_the_workbench_are_those_of_the_exercise():
    def farthest(right, wrong, n):
        names = {f"r{i}": frozenset(a) for i, a in enumerate(right)} | {
            f"w{j}": frozenset(b) for j, b in enumerate(wrong)
        }
        sides = ([name for name in names if name[0] == side] for side in "rw")
        found = preferences.choose_pairs(*sides, names, preferences.Config(n), random.Random(0))
        return [(int(a[1:]), int(b[1:])) for a, b, _ in found]

    assert lessons.check("5.1", farthest).passed


# --- 5.2: the DPO loss ---


def dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta, start=0.0, sign=1.0):
    margin = beta * ((chosen - ref_chosen) - (rejected - ref_rejected))
    return start + math.log1p(math.exp(-sign * margin))


WRONG_DPO = {
    "no reference": (
        lambda c, r, rc, rr, b: math.log1p(math.exp(-b * (c - r))),
        lesson_05.loss_starts_at_log_two,
    ),
    "the margin itself": (lambda c, r, rc, rr, b: -b * ((c - rc) - (r - rr)), lesson_05.loss_starts_at_log_two),
    "sigmoid without log": (
        lambda c, r, rc, rr, b: 1 / (1 + math.exp(-b * ((c - rc) - (r - rr)))),
        lesson_05.loss_starts_at_log_two,
    ),
    "upside down": (lambda *x: dpo_loss(*x, sign=-1), lesson_05.loss_falls_when_the_chosen_gains),
    "the chosen alone": (
        lambda c, r, rc, rr, b: math.log1p(math.exp(-b * (c - rc))),
        lesson_05.loss_looks_at_the_difference_alone,
    ),
    "no beta": (lambda c, r, rc, rr, b: dpo_loss(c, r, rc, rr, 1.0), lesson_05.loss_is_the_published_one),
    "beta on one side": (
        lambda c, r, rc, rr, b: math.log1p(math.exp(-(b * (c - rc) - (r - rr)))),
        lesson_05.loss_is_the_published_one,
    ),
}


@pytest.mark.parametrize("mistake", WRONG_DPO)
def test_wrong_dpo_losses_are_caught(mistake):
    caught_by("5.2", *WRONG_DPO[mistake])


def test_the_loss_of_the_workbench_is_that_of_the_exercise():
    import torch

    from lib import dpo, seq2seq_dpo

    def ours(chosen, rejected, ref_chosen, ref_rejected, beta):
        logps, reference = (
            torch.tensor([[a], [b]], dtype=torch.float64) for a, b in ((chosen, rejected), (ref_chosen, ref_rejected))
        )
        config = dpo.Config(beta=beta)
        return seq2seq_dpo.losses(config, logps, reference, torch.ones(2, 1))[0].item()

    assert lessons.check("5.2", ours).passed


# --- 5.3: pass@k ---


WRONG_ESTIMATES = {
    "with replacement": (lambda n, c, k: 1 - (1 - c / n) ** k, lesson_05.pass_is_coverage_and_mean),
    "coverage": (lambda n, c, k: float(c > 0), lesson_05.pass_is_coverage_and_mean),
    "the share right": (lambda n, c, k: c / n, lesson_05.pass_is_coverage_and_mean),
    "all of them right": (lambda n, c, k: math.comb(c, k) / math.comb(n, k), lesson_05.pass_is_coverage_and_mean),
    "with replacement but for the end": (
        lambda n, c, k: float(c > 0) if k == n else 1 - (1 - c / n) ** k,
        lesson_05.pass_counts_every_choice,
    ),
    "a product that runs below 0": (
        lambda n, c, k: 1 - math.prod((n - c - i) / (n - i) for i in range(k)) if n - c != 2 or k < 3 else 0.5,
        lesson_05.pass_handles_few_wrong,
    ),
}


@pytest.mark.parametrize("mistake", WRONG_ESTIMATES)
def test_wrong_estimates_of_pass_at_k_are_caught(mistake):
    caught_by("5.3", *WRONG_ESTIMATES[mistake])


def test_the_estimate_of_the_workbench_passes():
    assert lessons.check("5.3", evaluation.pass_at_k).passed


# --- 6.1: signal and noise ---


def shares(gamma):
    """alpha² and sigma², without overflow."""
    small = math.exp(-abs(gamma))
    many, few = 1 / (1 + small), small / (1 + small)
    return (few, many) if gamma > 0 else (many, few)


def alpha_sigma(gamma):
    alpha2, sigma2 = shares(gamma)
    return math.sqrt(alpha2), math.sqrt(sigma2)


WRONG_SHARES = {
    "no root": (shares, lesson_06.shares_make_one),
    "alpha and 1 - alpha": (
        lambda g: (alpha_sigma(g)[0], 1 - alpha_sigma(g)[0]),
        lesson_06.shares_make_one,
    ),
    "exponentials alone": (
        lambda g: (math.exp(-min(g, 50) / 2), 1.0) if g > -50 else (1.0, 0.0),
        lesson_06.shares_make_one,
    ),
    "no root, at 0": (shares, lesson_06.shares_are_even_at_zero),
    "shifted": (lambda g: alpha_sigma(g + 1), lesson_06.shares_are_even_at_zero),
    "the wrong way round": (lambda g: alpha_sigma(-g), lesson_06.shares_have_the_ratio_of_gamma),
    "gamma of the standard deviations": (
        lambda g: alpha_sigma(2 * g),
        lesson_06.shares_have_the_ratio_of_gamma,
    ),
    "the same for all": (lambda g: (0.5**0.5, 0.5**0.5), lesson_06.shares_have_the_ratio_of_gamma),
    "overflow": (
        lambda g: ((1 / (1 + math.exp(g))) ** 0.5, (1 / (1 + math.exp(-g))) ** 0.5),
        lesson_06.shares_hold_at_the_ends,
    ),
    "cut too early": (
        lambda g: alpha_sigma(max(-15, min(15, g))),
        lesson_06.shares_hold_at_the_ends,
    ),
}


@pytest.mark.parametrize("mistake", WRONG_SHARES)
def test_wrong_shares_of_signal_and_noise_are_caught(mistake):
    caught_by("6.1", *WRONG_SHARES[mistake])


def by_numpy(gamma):
    import numpy as np

    with np.errstate(over="ignore"):
        return np.sqrt(1 / (1 + np.exp(gamma))), np.sqrt(1 / (1 + np.exp(-gamma)))


def by_the_rest(gamma):
    alpha = alpha_sigma(gamma)[0]
    return alpha, math.sqrt(1 - alpha**2)


def by_torch(gamma):
    import torch

    gamma = torch.tensor(gamma)
    return (-gamma).sigmoid().sqrt(), gamma.sigmoid().sqrt()


@pytest.mark.parametrize("right", [alpha_sigma, by_numpy, by_the_rest, by_torch])
def test_right_shares_of_signal_and_noise_pass_however_they_are_written(right):
    result = lessons.check("6.1", right)
    assert result.passed, str(result)


def test_the_shares_of_the_workbench_are_those_of_the_exercise():
    import torch

    from lib.dot import schedule

    def ours(gamma):
        return tuple(share.item() for share in schedule.alpha_sigma(torch.tensor(gamma, dtype=torch.float64)))

    assert lessons.check("6.1", ours).passed


# --- 6.2: one step of the sampler ---


def stepping(z, x_hat, gamma_t, gamma_s):
    (alpha_t, sigma_t), (alpha_s, sigma_s) = alpha_sigma(gamma_t), alpha_sigma(gamma_s)
    return alpha_s * x_hat + sigma_s * (z - alpha_t * x_hat) / sigma_t


def expected_step(z, x_hat, gamma_t, gamma_s):
    """The mean of ancestral sampling."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = alpha_sigma(gamma_t), alpha_sigma(gamma_s)
    kept = alpha_t / alpha_s * sigma_s**2 / sigma_t**2
    return kept * z + alpha_s * (1 - alpha_t**2 * sigma_s**2 / (alpha_s**2 * sigma_t**2)) * x_hat


WRONG_STEPS = {
    "the guess alone": (lambda z, x, t, s: x, lesson_06.step_of_no_length_stays),
    "the guess is not scaled": (
        lambda z, x, t, s: alpha_sigma(s)[0] * x + alpha_sigma(s)[1] * (z - x) / alpha_sigma(t)[1],
        lesson_06.step_of_no_length_stays,
    ),
    "not divided by sigma": (
        lambda z, x, t, s: alpha_sigma(s)[0] * x + alpha_sigma(s)[1] * (z - alpha_sigma(t)[0] * x),
        lesson_06.step_of_no_length_stays,
    ),
    "no noise put back": (lambda z, x, t, s: alpha_sigma(s)[0] * x, lesson_06.step_of_no_length_stays),
    "back in time": (lambda z, x, t, s: stepping(z, x, s, t), lesson_06.step_stays_on_the_noise_line),
    "the mean of ancestral sampling": (expected_step, lesson_06.step_stays_on_the_noise_line),
    "straight to the guess": (
        lambda z, x, t, s: x + alpha_sigma(s)[1] / alpha_sigma(t)[1] * (z - x),
        lesson_06.step_stays_on_the_noise_line,
    ),
    "nothing at all": (lambda z, x, t, s: z, lesson_06.step_stays_on_the_noise_line),
    "a share for each step": (
        lambda z, x, t, s: z + (x - z) * (t - s) / (t + 70),
        lesson_06.step_stays_on_the_noise_line,
    ),
    "along the slope": (
        lambda z, x, t, s: z + (s - t) * (stepping(z, x, t, t + 1e-4) - stepping(z, x, t, t - 1e-4)) / 2e-4,
        lesson_06.step_is_two_half_steps,
    ),
    "all the noise stays": (
        lambda z, x, t, s: z + (alpha_sigma(s)[0] - alpha_sigma(t)[0]) * x,
        lesson_06.step_ends_at_the_guess,
    ),
    "the first position alone": (lambda z, x, t, s: stepping(z, x, t, s)[:1], lesson_06.step_of_no_length_stays),
}


@pytest.mark.parametrize("mistake", WRONG_STEPS)
def test_wrong_steps_of_the_sampler_are_caught(mistake):
    caught_by("6.2", *WRONG_STEPS[mistake])


def rewriting(z, x_hat, gamma_t, gamma_s):
    """The same step, in place."""
    z -= alpha_sigma(gamma_t)[0] * x_hat
    z *= alpha_sigma(gamma_s)[1] / alpha_sigma(gamma_t)[1]
    z += alpha_sigma(gamma_s)[0] * x_hat
    return z


@pytest.mark.parametrize("right", [stepping, rewriting, lambda *x: stepping(*x).tolist()])
def test_right_steps_of_the_sampler_pass(right):
    result = lessons.check("6.2", right)
    assert result.passed, str(result)


# --- 6.3: one pass of many ---


def next_pass(source, canvas, sep, pad, end):
    thought = []
    for token in canvas:
        if token in (pad, end):
            return source[:-1] + thought + [sep], token == end
        thought.append(token)
    return source[:-1] + thought + [sep], False


def in_place(source, canvas, sep, pad, end):
    found, ended = next_pass(source, canvas, sep, pad, end)
    source[:] = found
    return source, ended


WRONG_PASSES = {
    "the whole canvas": (
        lambda s, c, sep, pad, end: (s[:-1] + c + [sep], end in c),
        lesson_06.pass_ends_at_the_padding,
    ),
    "padding taken out": (
        lambda s, c, sep, pad, end: (s[:-1] + [t for t in c if t not in (pad, end)] + [sep], end in c),
        lesson_06.pass_ends_at_the_padding,
    ),
    "the source alone": (lambda *a: next_pass(*a)[0], lesson_06.pass_ends_at_the_padding),
    "in place": (in_place, lesson_06.pass_ends_at_the_padding),
    "behind the separator": (
        lambda s, c, sep, pad, end: (s + next_pass([sep], c, sep, pad, end)[0], next_pass([sep], c, sep, pad, end)[1]),
        lesson_06.pass_ends_at_the_padding,
    ),
    "a full canvas is lost": (
        lambda s, c, *a: next_pass(s, c, *a) if a[1] in c or a[2] in c else (s, False),
        lesson_06.pass_fills_its_canvas,
    ),
    "the question and this thought alone": (
        lambda s, c, sep, *a: next_pass(s[:4] + [sep], c, sep, *a),
        lesson_06.pass_keeps_what_was_there,
    ),
    "never done": (lambda *a: (next_pass(*a)[0], False), lesson_06.pass_knows_the_end),
    "the end is kept": (
        lambda s, c, sep, pad, end: next_pass(s, c, sep, pad, "no") if end not in c else (s[:-1] + c + [sep], True),
        lesson_06.pass_knows_the_end,
    ),
    "an end anywhere": (lambda s, c, *a: (next_pass(s, c, *a)[0], a[2] in c), lesson_06.pass_believes_what_comes_first),
}


@pytest.mark.parametrize("mistake", WRONG_PASSES)
def test_wrong_passes_are_caught(mistake):
    caught_by("6.3", *WRONG_PASSES[mistake])


@pytest.mark.parametrize("right", [next_pass, lambda *a: (tuple(next_pass(*a)[0]), next_pass(*a)[1])])
def test_right_passes_pass(right):
    result = lessons.check("6.3", right)
    assert result.passed, str(result)


# --- 6.4: the diffusion loss ---


def diffusion_loss(x, x_hat, gamma, gamma_prime, weight=None):
    weight = 0.5 * math.exp(-gamma) * gamma_prime if weight is None else weight
    return weight * ((x - x_hat) ** 2).sum(-1).mean()


WRONG_LOSSES = {
    "the text, not the error": (
        lambda x, y, g, d: 0.5 * math.exp(-g) * d * (x**2).sum(-1).mean(),
        lesson_06.loss_of_a_perfect_guess_is_zero,
    ),
    "the likelihood's constant": (
        lambda *a: diffusion_loss(*a) + math.log(2 * math.pi),
        lesson_06.loss_of_a_perfect_guess_is_zero,
    ),
    "absolute": (
        lambda x, y, g, d: 0.5 * math.exp(-g) * d * abs(x - y).sum(-1).mean(),
        lesson_06.loss_is_quadratic,
    ),
    "a distance": (
        lambda x, y, g, d: 0.5 * math.exp(-g) * d * ((x - y) ** 2).sum(-1).mean() ** 0.5,
        lesson_06.loss_is_quadratic,
    ),
    "mean of the width": (
        lambda x, y, g, d: 0.5 * math.exp(-g) * d * ((x - y) ** 2).mean(),
        lesson_06.loss_sums_over_the_width,
    ),
    "sum of the positions": (
        lambda x, y, g, d: 0.5 * math.exp(-g) * d * ((x - y) ** 2).sum(),
        lesson_06.loss_averages_over_positions,
    ),
    "axes exchanged": (
        lambda x, y, g, d: 0.5 * math.exp(-g) * d * ((x - y) ** 2).sum(0).mean(),
        lesson_06.loss_sums_over_the_width,
    ),
    "one a position": (
        lambda x, y, g, d: 0.5 * math.exp(-g) * d * ((x - y) ** 2).sum(-1),
        lesson_06.loss_averages_over_positions,
    ),
    "no speed": (
        lambda x, y, g, d: diffusion_loss(x, y, g, 1.0),
        lesson_06.loss_follows_the_speed_of_gamma,
    ),
    "no weight": (lambda x, y, g, d: diffusion_loss(x, y, g, d, 1), lesson_06.loss_follows_the_speed_of_gamma),
    "no half": (lambda *a: 2 * diffusion_loss(*a), lesson_06.loss_is_half_of_what_snr_loses),
    "the wrong sign": (lambda *a: -diffusion_loss(*a), lesson_06.loss_is_half_of_what_snr_loses),
    "weighed by the noise": (
        lambda x, y, g, d: diffusion_loss(x, y, -g, d),
        lesson_06.loss_is_half_of_what_snr_loses,
    ),
    "weighed as the noise's error is": (
        lambda x, y, g, d: diffusion_loss(x, y, g, d, 0.5 * d),
        lesson_06.loss_is_half_of_what_snr_loses,
    ),
}


@pytest.mark.parametrize("mistake", WRONG_LOSSES)
def test_wrong_diffusion_losses_are_caught(mistake):
    caught_by("6.4", *WRONG_LOSSES[mistake])


def test_a_right_diffusion_loss_passes():
    result = lessons.check("6.4", diffusion_loss)
    assert result.passed, str(result)


@pytest.mark.parametrize(
    "number, right", [("6.1", alpha_sigma), ("6.2", stepping), ("6.3", next_pass), ("6.4", diffusion_loss)]
)
def test_every_invariant_of_lesson_6_is_what_some_mistake_breaks(number, right):
    mistakes = {"6.1": WRONG_SHARES, "6.2": WRONG_STEPS, "6.3": WRONG_PASSES, "6.4": WRONG_LOSSES}[number]
    assert {invariant for _, invariant in mistakes.values()} == set(EXERCISES[number].invariants)
    assert lessons.check(number, right).passed and len(EXERCISES[number].hints) == 3


# --- 7.1: the stage table ---


WRONG_TABLES = {
    "one thought a step": (
        lambda top, c: [*((s, s) for s in range(top + 1)), (None, top)],
        lesson_07.table_puts_c_thoughts_for_a_step,
    ),
    "from stage 1": (
        lambda top, c: [*((s, s * c) for s in range(1, top + 1)), (None, top * c)],
        lesson_07.table_starts_with_a_whole_chain,
    ),
    "thoughts from the start": (
        lambda top, c: [*((s, (s + 1) * c) for s in range(top + 1)), (None, top * c)],
        lesson_07.table_starts_with_a_whole_chain,
    ),
    "no last stage": (
        lambda top, c: [(s, s * c) for s in range(top + 1)],
        lesson_07.table_ends_without_language,
    ),
    "more thoughts at last": (
        lambda top, c: [*((s, s * c) for s in range(top + 1)), (None, (top + 1) * c)],
        lesson_07.table_ends_without_language,
    ),
    "a number for all": (
        lambda top, c: [*((s, s * c) for s in range(top + 1)), (top + 1, top * c)],
        lesson_07.table_ends_without_language,
    ),
}


@pytest.mark.parametrize("mistake", WRONG_TABLES)
def test_wrong_stage_tables_are_caught(mistake):
    caught_by("7.1", *WRONG_TABLES[mistake])


def test_the_stages_of_the_workbench_are_those_of_the_exercise():
    from lib.coconut import schedule
    from lib.coconut.config import Config

    def table(top, c):
        config = Config(max_latent_stage=top, c_thought=c, one_at_a_time=False, pad_latent_to_max=True)
        found = schedule.stages(config, longest=top + 5)
        return [(None if stage.skip == schedule.ALL else stage.skip, stage.thoughts) for stage in found]

    assert lessons.check("7.1", table).passed


# --- 7.2: thinking ---


def thinking(read, question, n, last=True, whole=False, of=lambda state: state):
    state, thoughts = read(question), []
    for i in range(n):
        thoughts.append(of(state))
        if last or i < n - 1:
            state = read([*question, *thoughts] if whole else [thoughts[-1]])
    return thoughts, state


WRONG_THINKING = {
    "always thinks once": (lambda *x: thinking(*x[:2], max(1, x[2])), lesson_07.thinking_nothing_is_reading),
    "never reads the question": (
        lambda read, q, n: thinking(read, q[-1:], n),
        lesson_07.thinking_nothing_is_reading,
    ),
    "a token is chosen": (lambda *x: thinking(*x, of=lambda state: state % 7), lesson_07.thinking_feeds_the_state_back),
    "the question's state each time": (
        lambda read, q, n: (lambda s: ([s] * n, [s, *[read([s]) for _ in range(n)]][-1]))(read(q)),
        lesson_07.thinking_feeds_the_state_back,
    ),
    "the last thought is not read": (
        lambda *x: thinking(*x, last=False),
        lesson_07.thinking_ends_after_the_last_thought,
    ),
    "all is read anew": (lambda *x: thinking(*x, whole=True), lesson_07.thinking_reads_one_position_a_thought),
}


@pytest.mark.parametrize("mistake", WRONG_THINKING)
def test_wrong_thinking_is_caught(mistake):
    caught_by("7.2", *WRONG_THINKING[mistake])


# --- 7.3: the label mask ---


WRONG_MASKS = {
    "the question too": (lambda q, n, r: [*q, *[-100] * n, *r], lesson_07.labels_none_on_the_question),
    "the thoughts too": (lambda q, n, r: [-100] * len(q) + [0] * n + r, lesson_07.labels_none_on_thoughts),
    "the last thought too": (
        lambda q, n, r: [-100] * (len(q) + n - 1) + [r[0]] * min(1, n) + r if n else [-100] * len(q) + r,
        lesson_07.labels_none_on_thoughts,
    ),
    "shifted": (lambda q, n, r: [-100] * (len(q) + n - 1) + r + [-100], lesson_07.labels_all_of_the_rest),
    "not the first": (lambda q, n, r: [-100] * (len(q) + n + 1) + r[1:], lesson_07.labels_all_of_the_rest),
    "not the end": (lambda q, n, r: [-100] * (len(q) + n) + r[:-1] + [-100], lesson_07.labels_all_of_the_rest),
    "the rest alone": (lambda q, n, r: list(r), lesson_07.labels_one_a_position),
    "the thoughts forgotten": (lambda q, n, r: [-100] * len(q) + r, lesson_07.labels_one_a_position),
}


@pytest.mark.parametrize("mistake", WRONG_MASKS)
def test_wrong_masks_of_thoughts_are_caught(mistake):
    caught_by("7.3", *WRONG_MASKS[mistake])


def test_the_labels_of_the_workbench_are_those_of_the_exercise():
    from lib.coconut import sequences

    def labels(question, thoughts, rest):
        encoded = {"question": question, "steps": [], "answer": rest}
        return sequences.row(encoded, 0, thoughts, (None, None, 99))["labels"]

    assert lessons.check("7.3", labels).passed


# --- 8.1: the warping's table ---


def warping(costs, steps=((1, 1), (1, 0), (0, 1)), choose=min, own=1):
    """Totals by the recursion, or nearly."""
    table = {}
    for i in range(len(costs)):
        for j in range(len(costs[0])):
            before = [table[i - a, j - b] for a, b in steps if (i - a, j - b) in table]
            table[i, j] = own * costs[i][j] + choose(before, default=0)
    return [[table[i, j] for j in range(len(costs[0]))] for i in range(len(costs))]


WRONG_WARPING = {
    "transposed": (lambda c: [list(row) for row in zip(*warping(c), strict=True)], lesson_08.totals_of_every_pair),
    "with the border": (
        lambda c: [[0] * (len(c[0]) + 1), *([0, *row] for row in warping(c))],
        lesson_08.totals_of_every_pair,
    ),
    "one number": (lambda c: [[warping(c)[-1][-1]]], lesson_08.totals_of_every_pair),
    "the first pair is free": (
        lambda c: [[x - c[0][0] for x in row] for row in warping(c)],
        lesson_08.totals_begin_with_the_first_cost,
    ),
    "no waiting": (lambda c: warping(c, steps=((1, 1),)), lesson_08.totals_along_the_edges),
    "no waiting for the student": (lambda c: warping(c, steps=((1, 1), (0, 1))), lesson_08.totals_along_the_edges),
    "the dearest": (lambda c: warping(c, choose=max), lesson_08.totals_are_the_cheapest),
    "never both": (lambda c: warping(c, steps=((1, 0), (0, 1))), lesson_08.totals_are_the_cheapest),
    "every cost twice": (lambda c: warping(c, own=2), lesson_08.totals_begin_with_the_first_cost),
}


@pytest.mark.parametrize("mistake", WRONG_WARPING)
def test_wrong_warpings_are_caught(mistake):
    caught_by("8.1", *WRONG_WARPING[mistake])


# --- 8.2: the walk along offsets ---


def walk(left, right, touch=0, forget=True):
    """The pairs that overlap, or nearly."""
    found, first = [], 0
    for i, (start, end) in enumerate(left):
        while first < len(right) and right[first][1] <= start - touch:
            first += 1
        j = first if forget else 0
        while j < len(right) and right[j][0] < end + touch:
            if right[j][1] > start - touch:
                found.append((i, j))
            j += 1
    return found


def merging(left, right):
    """A walk that moves both fingers on when one of them is used up, and so misses the rest of the longer token."""
    return [(i, i) for i in range(min(len(left), len(right)))]


def two_fingers(left, right):
    """A walk that moves on in one text at a time, and on a tie in the teacher's."""
    found, i, j = [], 0, 0
    while i < len(left) and j < len(right):
        if max(left[i][0], right[j][0]) < min(left[i][1], right[j][1]):
            found.append((i, j))
        if left[i][1] <= right[j][1]:
            i += 1
        else:
            j += 1
    return found


WRONG_WALKS = {
    "the other way round": (lambda a, b: [(j, i) for i, j in walk(a, b)], lesson_08.links_miss_nothing),
    "one for each": (merging, lesson_08.links_miss_nothing),
    "the first partner alone": (
        lambda a, b: list({i: (i, j) for i, j in reversed(walk(a, b))}.values()),
        lesson_08.links_miss_nothing,
    ),
    "neighbours too": (lambda a, b: walk(a, b, touch=1), lesson_08.links_of_equal_texts),
    "all that follow": (
        lambda a, b: walk(a, b) + [(i, i + 1) for i in range(len(a) - 1) if len(a) != len(b)],
        lesson_08.links_do_not_touch,
    ),
    "from the start each time": (lambda a, b: walk(a, b, forget=False), lesson_08.links_walk),
    "every pair": (
        lambda a, b: [(i, j) for i, x in enumerate(a) for j, y in enumerate(b) if x[0] < y[1] and y[0] < x[1]],
        lesson_08.links_walk,
    ),
    "every pair of copies": (lambda a, b: walk(list(a), list(b), forget=False), lesson_08.links_walk),
    "a tie moves the teacher alone": (lambda a, b: two_fingers(a, b), lesson_08.links_miss_nothing),
    "equal spans alone": (
        lambda a, b: [(i, j) for i, x in enumerate(a) for j, y in enumerate(b) if tuple(x) == tuple(y)],
        lesson_08.links_miss_nothing,
    ),
}


@pytest.mark.parametrize("mistake", WRONG_WALKS)
def test_wrong_walks_are_caught(mistake):
    caught_by("8.2", *WRONG_WALKS[mistake])


def test_the_walk_of_the_workbench_is_that_of_the_exercise():
    from lib.alignment import overlaps

    def links(left, right):
        sides = [(range(len(side)), [a for a, _ in side], [b for _, b in side]) for side in (left, right)]
        return overlaps(*sides)

    assert lessons.check("8.2", links).passed


# --- 8.3: a divergence with a tail ---


def terms(teacher, student):
    """p log(p / q) of the teacher's tokens."""
    return sum(p * math.log(p / student[token]) for token, p in teacher.items())


WRONG_DIVERGENCES = {
    "no tail": (terms, lesson_08.divergence_is_never_negative),
    "renormalised": (
        lambda t, q: terms({k: p / sum(t.values()) for k, p in t.items()}, q),
        lesson_08.divergence_of_equals_is_0,
    ),
    "the other way round": (
        lambda t, q: sum(q[k] * math.log(q[k] / p) for k, p in t.items()),
        lesson_08.divergence_of_a_point_mass,
    ),
    "cross-entropy": (
        lambda t, q: -sum(p * math.log(q[k]) for k, p in t.items()),
        lesson_08.divergence_of_equals_is_0,
    ),
    "not below 0": (lambda t, q: max(0.0, terms(t, q)), lesson_08.divergence_is_that_of_the_tail_too),
    "the student's tail is all it does not name": (
        lambda t, q: (
            terms(t, q) + sum(p * math.log(p / (1 - sum(q.values()))) for p in [1 - sum(t.values())] if p > 1e-12)
        ),
        lesson_08.divergence_is_that_of_the_tail_too,
    ),
    "base 2": (lambda t, q: lesson_08.exact(t, q) / math.log(2), lesson_08.divergence_of_a_point_mass),
    "absolute": (lambda t, q: abs(terms(t, q)), lesson_08.divergence_is_that_of_the_tail_too),
}


@pytest.mark.parametrize("mistake", WRONG_DIVERGENCES)
def test_wrong_divergences_are_caught(mistake):
    caught_by("8.3", *WRONG_DIVERGENCES[mistake])


def test_the_sparse_loss_of_the_workbench_is_that_of_the_exercise():
    import torch

    from lib.distillation.training import sparse_kl

    def divergence(teacher, student):
        names = [*student, "any other"]
        q = torch.tensor([*student.values(), 1 - sum(student.values())], dtype=torch.double)
        ids = torch.tensor([[names.index(token) for token in teacher]])
        mass = torch.tensor([list(teacher.values())], dtype=torch.double)
        return sparse_kl(q.log()[None], ids, mass, 1 - mass.sum(1)).item()

    assert lessons.check("8.3", divergence).passed


# --- what is said of a mistake ---

SAID = [
    ("1.2", UNCLEAN["a comma"], "a comma should be gone"),
    (
        "1.3",
        lambda text: count_broken(text, lambda e, stated: calculator.agrees(calculator.evaluate(e).value, stated)),
        "a step without a value does not hold",
    ),
    ("5.1", WRONG_PAIRS["nearest"][0], "those are the most alike"),
    ("5.1", lambda r, w, n: [(j, i) for i, j in by_similarity(r, w, n)], "right comes first"),
    ("5.2", WRONG_DPO["no reference"][0], "is each text's reference subtracted"),
    ("5.2", WRONG_DPO["sigmoid without log"][0], "take -log of it"),
    ("5.2", WRONG_DPO["no beta"][0], "beta is missing"),
    ("5.3", lambda n, c, k: math.comb(n - c, k) / math.comb(n, k), "the chance of none"),
    ("5.3", WRONG_ESTIMATES["with replacement"][0], "draws with replacement"),
    ("6.1", WRONG_SHARES["no root"][0], "take roots"),
    ("6.1", WRONG_SHARES["the wrong way round"][0], "alpha and sigma are exchanged"),
    ("6.2", WRONG_STEPS["back in time"][0], "gamma_t and gamma_s are exchanged"),
    ("6.2", WRONG_STEPS["no noise put back"][0], "no noise is put back"),
    ("6.2", lambda z, x, t, s: stepping(z, x, t, s) + random.random(), "DDIM draws no new noise"),
    ("6.4", WRONG_LOSSES["no half"][0], "the half is missing"),
    ("6.4", WRONG_LOSSES["weighed by the noise"][0], "SNR is e^-gamma"),
    ("7.1", lambda top, c: [s * c for s in range(top + 1)], "a list of pairs"),
    ("7.2", WRONG_THINKING["all is read anew"][0], "hand it the new thought alone"),
    ("7.2", lambda *x: thinking(*x)[::-1], "(list of thoughts, state) was expected"),
    ("8.1", WRONG_WARPING["no waiting"][0], "the first row is"),
    ("8.2", WRONG_WALKS["the other way round"][0], "the teacher's place comes first"),
    ("8.2", WRONG_WALKS["a tie moves the teacher alone"][0], "did a finger move on"),
    ("8.3", WRONG_DIVERGENCES["no tail"][0], "the tail is missing"),
    ("8.3", WRONG_DIVERGENCES["base 2"][0], "the logarithm is the natural one"),
    ("8.3", lambda t, q: terms(t, q) + math.log(1 - sum(t.values())), "an event of probability 0 adds nothing"),
    ("9.1", lambda c, n: plain_wilson(c, n)[::-1], "the low end comes first"),
    ("9.2", lambda rows: rows, "beats it"),
    ("9.2", lambda rows: [], "of two equal rows you keep 0"),
]


@pytest.mark.parametrize("number, mistake, words", SAID, ids=[f"{number} {words}" for number, _, words in SAID])
def test_the_likely_cause_of_a_mistake_is_said(number, mistake, words):
    result = lessons.check(number, mistake)
    assert not result.passed and words in str(result), str(result)


@pytest.mark.parametrize("number", ["5.1", "6.1", "6.3", "6.4", "7.1", "7.2", "8.1", "8.2", "8.3", "9.1", "9.2"])
def test_a_forgotten_return_is_said_without_a_crash(number):
    shown = str(lessons.check(number, lambda *a: None))
    assert "expected" in shown and "raised" not in shown, shown
