"""How problems are written for a model: the published formats to the letter, exemplars that give nothing away."""

import json
import math
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib import answers, models, prompts, sft, tokenization
from lib.answers import annotations, extract, is_correct, same
from lib.errors import InputError
from lib.problems import canonical, make_problem
from lib.prompts import FORMATS, Example, exemplars, in_format, mixture, written
from lib.tasks import gsm8k, modular_chain, word_problems
from lib.tokenization import build_tokenizer

ROOT = Path(__file__).parents[1]
REAL = Path(os.environ.get("REAL_DATA") or "no such folder")
needs_real_files = pytest.mark.skipif(not REAL.is_dir(), reason="set REAL_DATA to the folder of real files")
every_form = pytest.mark.parametrize("form", FORMATS)
many = settings(max_examples=80, deadline=None)

CLIPS = make_problem(
    "Ann sold 48 clips: half of them in May. How many?",
    ["In May: 48/2 = <<48/2=24>>24 clips.", "So: <<24+0=24>>24, not <<24+1=25>>25."],
    "24",
    "gsm8k",
)
TRAYS = make_problem("Six trays of four?", ["6*4=<<6*4=24>>24 jars."], "24", "gsm8k")
PENS = make_problem("What do 2 pens at $540 cost?", ["$540*2=$<<540*2=1080>>1,080"], "1,080", "gsm8k")
POOL = word_problems.generate(60, seed=5)


# --- the published templates ---


@pytest.mark.parametrize(
    "form, prompt, completion",
    [
        ("zero_shot_answer", "Q: Ann sold 48 clips: half of them in May. How many? A:", " The answer is 24"),
        (
            "zero_shot_cot",
            "Q: Ann sold 48 clips: half of them in May. How many?\nLet's think step by step",
            "\nIn May: 48/2 = 24 clips.\nSo: 24, not 25.\nThe answer is 24",
        ),
        (
            "in_context_answer",
            "Q: Six trays of four?\nA: The answer is 24\n\n"
            "Q: What do 2 pens at $540 cost?\nA: The answer is 1,080\n\n"
            "Q: Ann sold 48 clips: half of them in May. How many?\nA:",
            " The answer is 24",
        ),
        (
            "in_context_cot",
            "Q: Six trays of four?\nLet's think step by step\n6*4=24 jars.\nThe answer is 24\n\n"
            "Q: What do 2 pens at $540 cost?\nLet's think step by step\n$540*2=$1,080\nThe answer is 1,080\n\n"
            "Q: Ann sold 48 clips: half of them in May. How many?\nLet's think step by step",
            "\nIn May: 48/2 = 24 clips.\nSo: 24, not 25.\nThe answer is 24",
        ),
    ],
)
def test_a_format_is_the_published_one_to_the_letter(form, prompt, completion):
    """Also where a question or a step holds ": ", which the published parser deletes."""
    assert in_format(CLIPS, form, [TRAYS, PENS], annotated=False) == Example(CLIPS, prompt, completion, form)


@every_form
@many
@given(st.data())
def test_what_stands_in_front_are_the_exemplars_own_prompts_and_completions(form, data):
    problems = data.draw(st.lists(st.sampled_from([CLIPS, TRAYS, PENS, *POOL[:5]]), min_size=1, max_size=4))
    annotated = data.draw(st.booleans())
    query, *shots = problems
    bare = in_format(query, form, (), annotated)
    one_by_one = [in_format(shot, form, (), annotated) for shot in shots]
    found = in_format(query, form, shots, annotated)
    front = "".join(f"{e.prompt}{e.completion}\n\n" for e in one_by_one) if form.startswith("in_context") else ""
    assert found == replace(bare, prompt=front + bare.prompt)
    assert found.problem == query and found.form == form


@every_form
def test_annotations_are_kept_unless_they_are_to_go(form):
    kept, gone = (in_format(CLIPS, form, [TRAYS], annotated) for annotated in (True, False))
    assert annotations(gone.prompt + gone.completion) == [] and "<<" not in gone.prompt + gone.completion
    if form.endswith("cot"):
        assert annotations(kept.completion) == [("48/2", "24"), ("24+0", "24"), ("24+1", "25")]
        assert len(annotations(kept.prompt)) == ("in_context" in form)
    else:
        assert kept == gone


def test_an_unknown_format_or_style_is_refused_with_the_known_ones():
    with pytest.raises(AssertionError, match="zero_shot_answer, zero_shot_cot"):
        in_format(CLIPS, "zero_shot")
    with pytest.raises(AssertionError, match="cot or answer_only"):
        prompts.completion(CLIPS, "prose")


# --- the canonical form ---


def test_the_canonical_prompt_ends_with_a_newline_and_the_solution_with_the_answer():
    assert prompts.prompt(TRAYS) == "Six trays of four?\n"
    assert prompts.solution(TRAYS) == "6*4=<<6*4=24>>24 jars.\n#### 24"
    assert prompts.completion(TRAYS, "cot") == prompts.solution(TRAYS)
    assert prompts.completion(TRAYS, "answer_only") == "#### 24"


@pytest.mark.parametrize("style", ["cot", "answer_only"])
def test_problems_become_examples_and_examples_stay_as_they_are(style):
    own = in_format(PENS, "zero_shot_cot")
    found = prompts.examples([TRAYS, own, CLIPS], style)
    assert found[1] is own
    for problem, example in ((TRAYS, found[0]), (CLIPS, found[2])):
        assert example == Example(problem, f"{problem.question}\n", prompts.completion(problem, style), style)


# --- exemplars ---


def twin(problem, kind):
    """Another record of the same problem: the very same, or under another id, in other letters or other words."""
    return {
        "same": problem,
        "id": replace(problem, id=problem.id + "-path0"),
        "letters": make_problem("  ".join(problem.question.upper().split()), problem.steps, problem.answer, "gsm8k"),
        "words": make_problem(f"Now: {problem.question}", [], "1", "t", canonical=canonical(problem)),
    }[kind]


def gives_away(query, shot):
    return shot.id == query.id or shot.question == query.question or canonical(shot) == canonical(query)


pools = st.lists(
    st.builds(
        twin, st.sampled_from([CLIPS, TRAYS, PENS, *POOL[:4]]), st.sampled_from(["same", "id", "letters", "words"])
    ),
    max_size=14,
)


@many
@given(pools, st.sampled_from([CLIPS, TRAYS, *POOL[:2]]), st.integers(0, 5), st.integers(0, 3))
def test_no_exemplar_is_the_query_in_any_dress_and_a_pool_too_small_is_one_sentence(pool, query, n, seed):
    others = {shot.id for shot in pool if not gives_away(query, shot)}
    if len(others) < n:
        with pytest.raises(InputError, match=f"{n} exemplars are asked for, but the pool holds only {len(others)} oth"):
            exemplars(query, pool, n, seed)
        return
    found = exemplars(query, pool, n, seed)
    assert len(found) == len({shot.id for shot in found}) == n, "n different ones"
    assert all(shot in pool and not gives_away(query, shot) for shot in found)
    assert found == exemplars(query, list(pool), n, seed)


def test_exemplars_are_found_where_nearly_all_of_the_pool_is_the_query():
    pool = [twin(CLIPS, "same")] * 500 + [TRAYS] + [twin(CLIPS, "letters")] * 500 + [PENS]
    assert {shot.id for shot in exemplars(CLIPS, pool, 2)} == {TRAYS.id, PENS.id}


def test_exemplars_depend_on_the_problem_and_the_seed_and_nothing_else():
    forwards = {p.id: exemplars(p, POOL, 4, 7) for p in POOL}
    backwards = {p.id: exemplars(p, POOL, 4, 7) for p in reversed(POOL)}
    assert forwards == backwards
    code = (
        "import json\nfrom lib.prompts import exemplars\nfrom lib.tasks import word_problems\n"
        "pool = word_problems.generate(60, seed=5)\n"
        "print(json.dumps({p.id: [x.id for x in exemplars(p, pool, 4, 7)] for p in pool}))"
    )
    environment = os.environ | {"PYTHONHASHSEED": "3"}
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, check=True)
    assert json.loads(told.stdout) == {name: [x.id for x in found] for name, found in forwards.items()}
    other_seed = {p.id: exemplars(p, POOL, 4, 8) for p in POOL}
    assert sum(forwards[name] == other_seed[name] for name in forwards) < 3
    assert len({tuple(x.id for x in found) for found in forwards.values()}) > 55, "each problem draws its own"


def test_every_problem_of_the_pool_is_as_likely_to_be_shown_as_any_other():
    asked = word_problems.generate(2000, seed=9)
    shown = Counter(shot.id for p in asked for shot in exemplars(p, POOL[:20], 4))
    share = 4 / 20
    assert len(shown) == 20
    assert all(abs(n - 2000 * share) < 5 * math.sqrt(2000 * share * (1 - share)) for n in shown.values())


# --- the mixture ---

shares = st.lists(st.integers(0, 6) | st.floats(0.01, 1), min_size=4, max_size=4).filter(any)


@many
@given(st.integers(0, 60), shares, st.integers(0, 2))
def test_shares_are_exact_but_for_rounding_and_every_problem_comes_once_in_its_place(n, ratios, seed):
    mixed = mixture(POOL[:n], POOL, ratios, 2, seed)
    assert [e.problem for e in mixed] == POOL[:n]
    counts = Counter(e.form for e in mixed)
    for form, ratio in zip(FORMATS, ratios, strict=True):
        assert abs(counts[form] - n * ratio / sum(ratios)) <= 1
        assert ratio or not counts[form]
    for example in mixed:
        assert example == written(example.problem, POOL, example.form, 2, seed)


def test_the_seed_decides_which_problem_gets_which_format():
    forms = [[e.form for e in mixture(POOL, POOL, [1, 1, 1, 1], 1, seed)] for seed in (0, 0, 1)]
    assert forms[0] == forms[1] != forms[2]
    assert Counter(forms[0]) == Counter(forms[2]) == dict.fromkeys(FORMATS, 15)
    assert len({tuple(forms[0][i : i + 15]) for i in range(0, 60, 15)}) == 4 and len(set(forms[0][:15])) > 1, "shuffled"


@pytest.mark.parametrize(
    "ratios",
    [
        [],
        [1, 1, 1],
        [1, 1, 1, 1, 1],
        [0, 0, 0, 0],
        [1, 1, -0.1, 1],
        [float("nan"), 1, 1, 1],
        [1, 1, 1, float("nan")],
        [float("inf"), 1, 1, 1],
    ],
)
def test_ratios_that_make_no_shares_are_one_sentence(ratios):
    with pytest.raises(InputError, match="ratios wants 4 numbers of at least 0, for zero_shot_answer, zero_shot_cot"):
        mixture(POOL, POOL, ratios, 1)


def test_a_format_that_is_not_wanted_needs_no_exemplars():
    assert len(mixture(POOL[:4], [], [1, 1, 0, 0], 3)) == 4
    with pytest.raises(InputError, match="3 exemplars are asked for, but the pool holds only 2 other problems"):
        mixture(POOL[:4], POOL[:3], [0, 0, 1, 1], 3)


# --- chat ---


@pytest.fixture
def chatty(tiny_llama):
    """A tokenizer with a chat template and a token that begins every text, as instruct models have them."""
    tokenizer = models.load_tokenizer(str(tiny_llama))
    tokenizer.chat_template = "{{ bos_token }}" + prompts.CHATML
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    return tokenizer


def test_a_chat_is_the_models_own_template_and_ends_where_the_assistant_is_to_speak(chatty):
    found = prompts.chat(CLIPS, chatty, "Think.", [TRAYS])
    assert found == Example(
        CLIPS,
        "<s><|im_start|>system\nThink.<|im_end|>\n"
        "<|im_start|>user\nSix trays of four?<|im_end|>\n"
        "<|im_start|>assistant\n6*4=<<6*4=24>>24 jars.\n#### 24<|im_end|>\n"
        "<|im_start|>user\nAnn sold 48 clips: half of them in May. How many?<|im_end|>\n"
        "<|im_start|>assistant\n",
        prompts.solution(CLIPS),
        "chat",
    )
    bare = prompts.chat(TRAYS, chatty)
    assert bare.prompt == "<s><|im_start|>user\nSix trays of four?<|im_end|>\n<|im_start|>assistant\n"


def test_a_chat_begins_with_one_token_of_beginning_and_not_two(chatty):
    from tokenizers.processors import TemplateProcessing

    begin = chatty.bos_token_id
    chatty.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", begin)])
    chats = [prompts.chat(p, chatty).prompt for p in (CLIPS, TRAYS)]
    for ids in tokenization.tokenize(chatty, chats):
        assert ids[0] == begin and ids.count(begin) == 1
    for ids in tokenization.tokenize(chatty, [prompts.prompt(CLIPS)]):
        assert ids[0] == begin and ids.count(begin) == 1


def test_a_tokenizer_without_a_chat_template_is_one_sentence(tiny_llama):
    tokenizer = models.load_tokenizer(str(tiny_llama))
    with pytest.raises(InputError, match="has no chat template; use an instruct model, or another format.") as caught:
        prompts.chat(CLIPS, tokenizer)
    assert str(tiny_llama) in str(caught.value)


# --- tokens ---


@every_form
def test_no_token_straddles_the_border_of_prompt_and_completion(form):
    """A tokenizer that learned from whole texts cuts each exactly where its prompt ends, as at generation."""
    everything = [CLIPS, TRAYS, PENS, *POOL, *modular_chain.generate(40)]
    asked = [written(p, everything, form, 1) for p in everything]
    tokenizer = tokenization.build_tokenizer([e.prompt + e.completion for e in asked] * 3, 600)
    for example in asked:
        (prompt,) = tokenization.tokenize(tokenizer, [example.prompt])
        completion = tokenizer(example.completion, add_special_tokens=False)["input_ids"]
        assert tokenizer(example.prompt + example.completion)["input_ids"] == prompt + completion
        row = sft.encode(tokenizer, example, "cot")
        assert row["input_ids"] == [*prompt, *completion, tokenizer.eos_token_id]
        assert row["labels"] == [-100] * len(prompt) + [*completion, tokenizer.eos_token_id]


# --- the real GSM8K ---


@pytest.fixture(scope="module")
def real_gsm8k():
    return gsm8k.read(REAL / "gsm8k" / "train.jsonl")


@needs_real_files
def test_no_prompt_of_gsm8k_shows_its_own_problem(real_gsm8k):
    """The authors drew theirs without looking: 4 of 7,473 for each of 207,135 prompts leaks about 111 times."""
    for problem in real_gsm8k:
        shots = exemplars(problem, real_gsm8k, 4)
        assert len({shot.id for shot in shots}) == 4 and not any(gives_away(problem, shot) for shot in shots)
        assert problem.question not in in_format(problem, "in_context_answer", shots).prompt.rpartition("\n\n")[0]


@needs_real_files
@every_form
@pytest.mark.parametrize("annotated", [True, False])
def test_the_answer_of_every_gsm8k_completion_is_read_back(form, annotated, real_gsm8k):
    for problem in real_gsm8k:
        completion = in_format(problem, form, (), annotated).completion
        assert extract(completion) == problem.answer and same(problem.answer, extract(completion))
        assert is_correct(problem, completion)
        assert annotated or "<<" not in completion


@needs_real_files
def test_what_stands_behind_a_colon_in_gsm8k_is_kept(real_gsm8k):
    """The published parser deletes every ": " of a question after the first, and cuts answers at the second."""
    asked = [p for p in real_gsm8k if ": " in p.question]
    reasoned = [p for p in real_gsm8k if any(": " in step for step in p.steps)]
    assert (len(asked), len(reasoned)) == (48, 664)
    for form in FORMATS:
        assert all(f"Q: {p.question}" in in_format(p, form).prompt for p in asked)
    for problem in reasoned:
        kept = in_format(problem, "zero_shot_cot", annotated=True).completion
        assert kept == "\n" + "\n".join(problem.steps) + f"\nThe answer is {problem.answer}"


@needs_real_files
def test_the_gsm8k_mixture_has_its_shares_and_every_problem_once(real_gsm8k):
    mixed = mixture(real_gsm8k, real_gsm8k, [0.1, 0.4, 0.1, 0.4], 4, annotated=False)
    counts = Counter(e.form for e in mixed)
    assert [e.problem.id for e in mixed] == [p.id for p in real_gsm8k]
    assert [counts[form] for form in FORMATS] == pytest.approx([747.3, 2989.2, 747.3, 2989.2], abs=1)


def test_a_chat_is_the_same_tomorrow(tmp_path):
    """A template that tells the model the date is given a fixed one: prompts, and all that follows, can be repeated."""
    tokenizer = build_tokenizer(["a"])
    tokenizer.chat_template = (
        "{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
        "Today: {{ date_string }}\n{% for m in messages %}{{ m.content }}\n{% endfor %}"
    )
    assert prompts.chat(POOL[0], tokenizer).prompt.startswith(f"Today: {prompts.CHAT_DATE}\n")


def test_no_fewer_exemplars_than_none():
    with pytest.raises(InputError, match="n_shots must be at least 0"):
        exemplars(POOL[0], POOL, -1)


def test_conversations_have_exemplars_of_their_own_and_never_the_problem_itself(chatty):
    pool = word_problems.generate(40, seed=2)
    talks = prompts.conversations(pool[:20], pool, chatty, "Be brief.", 1, seed=3, form="tagged")
    for talk, problem in zip(talks, pool[:20], strict=True):
        assert talk.prompt.count(problem.question) == 1 and talk.prompt.count("<answer>") == 1
        assert talk.completion == prompts.tagged(problem) and talk.form == "chat"
    assert len({talk.prompt.split("user")[1] for talk in talks}) > 10


@pytest.mark.parametrize("share, wanted", [(0.0, 0), (0.7, 28), (1.0, 40)])
def test_the_share_of_conversations_is_exact_and_evenly_spread(chatty, share, wanted):
    pool = word_problems.generate(40, seed=2)
    mixed = prompts.mixture(pool, pool, [0, 1, 0, 0], 1)
    found = prompts.with_conversations(mixed, share, pool, chatty, "", 1)
    assert [e.problem for e in found] == pool
    assert sum(e.form == "chat" for e in found) == wanted
    assert abs(sum(e.form == "chat" for e in found[:20]) - wanted / 2) <= 1
    assert all(e == other for e, other in zip(found, mixed, strict=True) if e.form != "chat")


def test_a_share_that_is_none_is_refused(chatty):
    for share in (-0.1, 1.1):
        with pytest.raises(InputError, match="chat_share must lie between 0 and 1"):
            prompts.with_conversations([], share, [], chatty)


def test_the_tagged_form_is_the_bare_question_and_the_answer_in_tags():
    found = prompts.in_tagged_form(TRAYS)
    assert (found.prompt, found.form) == (TRAYS.question, "tagged")
    assert found.completion == " " + "\n".join(TRAYS.steps) + f"\n<answer>{TRAYS.answer}</answer>"
    assert prompts.in_tagged_form(TRAYS, "answer_only").completion == f" <answer>{TRAYS.answer}</answer>"
    assert prompts.in_surface_form([TRAYS], "tagged", "answer_only") == [prompts.in_tagged_form(TRAYS, "answer_only")]
    assert answers.is_verified(TRAYS, found.completion) and answers.chain(found.completion).split("\n")[-2:-1]
    with pytest.raises(InputError, match="writes chains of thought"):
        prompts.in_surface_form([TRAYS], "t5", "answer_only")
