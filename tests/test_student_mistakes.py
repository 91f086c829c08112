"""Mistakes that students are known to make: each, made in a committed solution, is caught by the check meant for it.

The table below has all 21 of them. A mistake in code is made by changing the text of the solution that stands in the
notebook; one in data or environment comes with a sentence on how the workbench meets it, and with a test where that is
cheap.
"""

import ast
import re
import tomllib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import pytest

from lib import prompts, sft, stage
from lib.errors import InputError
from lib.lessons import lesson_02, lesson_03, lesson_04
from lib.tasks import units
from tests.test_lessons import caught_by, committed, imported, lenient, lessons  # noqa: F401  (lenient: a fixture)

ROOT = Path(__file__).parents[1]


class Mutation(NamedTuple):
    """Changes of the text of an exercise's solution, each (old, new), and the invariant that must notice them."""

    exercise: str
    invariant: Callable
    changes: tuple[tuple[str, str], ...]


class Mistake(NamedTuple):
    """A mistake in words, with mutations where it is one of code, else with how the workbench meets it."""

    number: int
    name: str
    words: str
    mutations: tuple[Mutation, ...] = ()
    met: str = ""

    @property
    def kind(self) -> str:
        return "code" if self.mutations else "data or environment"


def made(exercise: str, invariant: Callable, *changes: tuple[str, str]) -> Mutation:
    return Mutation(exercise, invariant, changes)


MISTAKES = (
    Mistake(
        1,
        "padding side",
        "Prompts are padded on the right, as for training, and generation goes on from padding.",
        (
            made(
                "2.2",
                lesson_02.batch_pads_on_the_left,
                ("[pad] * gap + prompt", "prompt + [pad] * gap"),
                ("[0] * gap + [1] * (width - gap)", "[1] * (width - gap) + [0] * gap"),
                ("[0] * gap + list(range(width - gap))", "list(range(width - gap)) + [0] * gap"),
            ),
        ),
    ),
    Mistake(
        2,
        "prompt in the text",
        "The prompt is left in front of what was written, and an exemplar's answer is read, or a role word learned.",
        (
            made("2.1", lesson_02.greedy_leaves_the_prompt_alone, ("return new", "return prompt + new")),
            made("2.4", lesson_02.complete_drops_the_prompt, ("text[len(prompt) :]", "text")),
            made("2.4", lesson_02.complete_drops_the_prompt, ("text[len(prompt) :]", 'text.replace(prompt, "")')),
            made("4.3", lesson_04.record_begins_with_the_solution, ('("assistant", "user", "system")', "()")),
        ),
    ),
    Mistake(
        3,
        "length from the pad id",
        "What is a prompt is told by comparing ids with the pad id, which also occurs inside a chat.",
        (
            made(
                "2.2",
                lesson_02.batch_masks_padding_alone,
                ("[[0] * gap + [1] * (width - gap) for gap in gaps]", "[[int(x != pad) for x in row] for row in ids]"),
            ),
            made(
                "2.2",
                lesson_02.batch_counts_from_the_first_token,
                (
                    "[[0] * gap + list(range(width - gap)) for gap in gaps]",
                    "[[max(0, sum(x != pad for x in row[: i + 1]) - 1) for i in range(width)] for row in ids]",
                ),
            ),
        ),
    ),
    Mistake(
        4,
        "one sample as none",
        "A request for one sample a prompt gives a flat list, and the first of its samples is a letter.",
        (
            made("2.4", lesson_02.complete_gives_a_list_for_any_k, ("if k is None else", "if k in (None, 1) else")),
            made("2.4", lesson_02.complete_gives_a_list_for_any_k, ("if k is None else", "if each == 1 else")),
        ),
    ),
    Mistake(
        5,
        "no end in the labels",
        "The end of the sequence is not learned: forgotten, or masked since padding has the same id.",
        (
            made("3.1", lesson_03.labels_end_with_eos, ("+ [eos]", "")),
            made("3.1", lesson_03.labels_end_with_eos, ("+ [eos]", "+ [-100]")),
            made(
                "3.1",
                lesson_03.labels_end_with_eos,
                (
                    "return [-100] * len(prompt) + completion + [eos]",
                    "return [-100] * len(prompt) + [x if x != eos else -100 for x in completion + [eos]]",
                ),
            ),
        ),
    ),
    Mistake(
        6,
        "border of the labels",
        "The labels begin a token too early or too late, or the blank before the answer belongs to neither side.",
        (
            made(
                "3.1",
                lesson_03.labels_skip_the_prompt,
                ("len(prompt) + completion", "(len(prompt) - 1) + prompt[-1:] + completion"),
            ),
            made(
                "3.1", lesson_03.labels_end_with_eos, ("len(prompt) + completion", "(len(prompt) + 1) + completion[1:]")
            ),
            made("3.4", lesson_03.target_is_a_tagged_number, ('f" <answer>', 'f"<answer>')),
        ),
    ),
    Mistake(
        7,
        "adapter thrown away",
        "What get_peft_model returns is not used, so that the base is what is saved.",
        (
            made(
                "3.3",
                lesson_03.adapt_returns_what_saves_the_adapter,
                ("return get_peft_model(model, config)", "get_peft_model(model, config)\n    return model"),
            ),
            made(
                "3.3", lesson_03.adapt_trains_adapters_alone, ("return get_peft_model(model, config)", "return model")
            ),
            made("3.3", lesson_03.adapt_has_the_rank, ("r=rank, ", "")),
            made("3.3", lesson_03.adapt_reaches_every_linear_layer, ('target_modules="all-linear", ', "")),
        ),
    ),
    Mistake(
        8,
        "no gradient at the inputs",
        "Layers are recomputed and the embeddings are frozen, so that no gradient reaches an adapter.",
        (
            made(
                "3.3",
                lesson_03.adapt_learns_where_layers_are_checkpointed,
                ("    model.enable_input_require_grads()\n", ""),
            ),
        ),
    ),
    Mistake(
        9,
        "precision",
        "A model is trained in one precision and measured in another, or in float16, which overflows.",
        met="A training writes its whole config, dtype included, beside the model; unknown dtypes are refused by name; "
        "a model that is trained whole keeps float32 weights.",
    ),
    Mistake(
        10,
        "temperature and greedy",
        "A temperature is given with greedy decoding, or sampling is asked for at temperature 0.",
        (
            made(
                "2.4",
                lesson_02.complete_is_greedy_at_0,
                ("    if temperature > 0:\n        settings", "    settings"),
            ),
            made("2.4", lesson_02.complete_is_greedy_at_0, ('"do_sample": temperature > 0', '"do_sample": True')),
            made("2.4", lesson_02.complete_samples_above_0, ('"do_sample": temperature > 0', '"do_sample": False')),
        ),
    ),
    Mistake(
        11,
        "too few new tokens",
        "The limit of a starter's code, 50, stands in the call and cuts chains before their answer.",
        (made("2.4", lesson_02.complete_passes_the_limit_on, ('"max_new_tokens": limit', '"max_new_tokens": 50')),),
    ),
    Mistake(
        12,
        "budget of prompts",
        "A micro-batch counts prompts, not prompts times samples, and runs out of memory.",
        (
            made("2.4", lesson_02.complete_stays_within_the_budget, ("max(1, budget // each)", "budget")),
            made(
                "2.4",
                lesson_02.complete_asks_for_one_prompt_at_least,
                ("max(1, budget // each)", "max(2, budget // each)"),
            ),
        ),
    ),
    Mistake(
        13,
        "chains without an end",
        "Chains are learned whose tag is not closed, or with text behind it, since the reader of answers forgives it.",
        (
            made(
                "4.3",
                lesson_04.record_wants_the_tag_closed,
                ('tags != [1, 1] or not chain.endswith("</answer>")', '"<answer>" not in chain'),
            ),
            made(
                "4.3",
                lesson_04.record_ends_with_the_answer,
                (' or not chain.endswith("</answer>")', ""),
                ("float(number)", 'float(number.partition("</answer>")[0])'),
            ),
        ),
    ),
    Mistake(
        14,
        "gold overwritten",
        "The model's answer is stored where the source's should stand.",
        (made("4.3", lesson_04.record_keeps_gold, ("[question, gold, chain]", "[question, float(number), chain]")),),
    ),
    Mistake(
        15,
        "right-ish answers",
        "Chains are learned that are within the grader's 5 % only, or whose arithmetic is wrong.",
        (
            made("4.3", lesson_04.record_is_strict, ("0.01 * abs(gold)", "0.05 * abs(gold)")),
            made("4.3", lesson_04.record_checks_the_arithmetic, (" and holds and all(holds)", "")),
            made("4.3", lesson_04.record_checks_the_arithmetic, (" and holds and all(holds)", " and all(holds)")),
        ),
    ),
    Mistake(
        16,
        "learning rate",
        "A LoRA adapter is trained at a rate that suits whole models, and hardly moves.",
        met="sft.Config begins at 1e-3, and 03 draws the loss of every training, where a rate too low is seen.",
    ),
    Mistake(
        17,
        "example off task",
        "The worked example of the prompt is of another task, or the very question that is asked.",
        met="prompts.exemplars draws from the task's own training problems, and never the problem itself.",
    ),
    Mistake(
        18,
        "raw floats",
        "Targets are floats as they are printed, and a model learns 17 digits of noise.",
        (
            made("3.4", lesson_03.target_has_three_figures, ('float(f"{value:.3g}")', "value")),
            made("3.4", lesson_03.target_shows_no_noise, ('f"{rounded:.12f}".rstrip("0").rstrip(".")', "str(rounded)")),
            made("3.4", lesson_03.target_stays_near, ("{value:.3g}", "{value:.1f}")),
            made(
                "3.4",
                lesson_03.target_writes_numbers_out,
                ('float(f"{value:.3g}")', "value"),
                ('f"{rounded:.12f}".rstrip("0").rstrip(".")', 'f"{rounded:.3g}"'),
            ),
        ),
    ),
    Mistake(
        19,
        "size of the model",
        "The work is done with a model that is too large to be handed in.",
        met="A plan names the most parameters that a model may have; `grade` counts them (tests/test_grader.py).",
    ),
    Mistake(
        20,
        "what is handed in",
        "The bundle holds checkpoints and optimizer states, or an adapter of too high a rank, and is too large.",
        met="`bundle` packs what a plan names and nothing else, and refuses what exceeds its limit, as its tests show.",
    ),
    Mistake(
        21,
        "paths and versions",
        "A path is meant from another folder, or a setting's name is that of another version of a library.",
        met="Paths are read from the project's root wherever the work begins, and pyproject.toml pins the libraries.",
    ),
)
BY_NAME = {mistake.name: mistake for mistake in MISTAKES}
MUTATIONS = [
    pytest.param(mutation, id=f"{mistake.number} {mistake.name}, {mutation.exercise} {mutation.invariant.__name__}")
    for mistake in MISTAKES
    for mutation in mistake.mutations
]
SOLUTIONS = {param.values[0]: param.values for param in committed()}


def answer(number: str, changes: tuple[tuple[str, str], ...] = ()) -> Callable:
    """The committed solution of an exercise, with changes in its text, as a function."""
    _, name, source, path = SOLUTIONS[number]
    for old, new in changes:
        assert source.count(old) == 1, f"{old!r} occurs {source.count(old)} times in the solution of {number}"
        source = source.replace(old, new)
    namespace = imported(path)
    exec(source, namespace)
    return namespace[name]


# --- the table ---


def test_all_known_mistakes_are_in_the_table():
    assert [mistake.number for mistake in MISTAKES] == list(range(1, 22))
    assert len(BY_NAME) == 21
    for mistake in MISTAKES:
        assert mistake.words.endswith(".") and "\n" not in mistake.words
        assert bool(mistake.mutations) != bool(mistake.met), f"{mistake.name}: mutations, or how it is met"
        assert mistake.kind in ("code", "data or environment")
    assert {m.number for m in MISTAKES if m.kind != "code"} == {9, 16, 17, 19, 20, 21}


# --- mistakes in code ---


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_the_invariant_meant_for_a_mistake_reports_it(mutation):
    caught_by(mutation.exercise, answer(mutation.exercise, mutation.changes), mutation.invariant)


@pytest.mark.parametrize("number", sorted({mutation.exercise for m in MISTAKES for mutation in m.mutations}))
def test_without_a_mistake_the_solutions_pass(number):
    result = lessons.check(number, answer(number))
    assert result.passed, str(result)


def test_a_change_that_changes_nothing_would_be_noticed():
    with pytest.raises(AssertionError, match="occurs 0 times"):
        answer("3.1", (("no such text", ""),))


# --- mistakes in data or environment ---


def test_9_a_dtype_is_known_and_is_written_down():
    for wrong in ("fp16", "half", ""):
        with pytest.raises(InputError, match="Unknown dtype"):
            sft.Config(dtype=wrong)
    assert asdict(sft.Config(dtype="bfloat16"))["dtype"] == "bfloat16"  # what a training writes to config.json
    tree = ast.parse((ROOT / "lib" / "sft.py").read_text())
    (train,) = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "train"]
    assert "'config.json').write_text(json.dumps(asdict(config)" in ast.unparse(train)


def test_16_the_default_rate_is_one_at_which_adapters_learn():
    assert sft.Config().learning_rate >= 5e-4


def test_17_exemplars_are_of_the_task_and_never_the_problem_itself():
    pool = units.splits(200, seed=0)["train"]
    for problem in pool[:20]:
        shown = prompts.exemplars(problem, pool, 3)
        assert len(shown) == 3 and all(shot in pool and shot.question != problem.question for shot in shown)
    with pytest.raises(InputError, match="the pool holds only 0 other problems"):
        prompts.exemplars(pool[0], pool[:1], 1)


def test_21_libraries_are_pinned_and_paths_begin_at_the_root(tmp_path, monkeypatch):
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    pins = {re.split(r"[<>=]", text)[0]: text for text in wanted}
    for name in ("torch", "transformers", "trl", "peft", "accelerate", "datasets"):
        assert "==" in pins[name] or "<" in pins[name], f"{name} is not pinned"
    monkeypatch.chdir(tmp_path)
    assert stage.from_root("notebooks") == str(ROOT / "notebooks")
