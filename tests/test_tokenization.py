"""Tokenizers built on the spot: every text survives, and what names one thing is one token."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lib import prompts
from lib.tasks import arithmetic, modular_chain, word_problems
from lib.tokenization import EOS, PAD, build_tokenizer

TASKS = {
    "word_problems": word_problems.generate(300, seed=1),
    "modular_chain": modular_chain.generate(300, seed=1),
    "addition": arithmetic.generate(300, "+", n_digits=3, seed=1),
    "multiplication": arithmetic.generate(300, "*", n_digits=3, seed=1),
}
every_task = pytest.mark.parametrize("task", TASKS)


def texts(problems):
    return [prompts.prompt(p) + prompts.solution(p) for p in problems]


BUILT = {task: build_tokenizer(texts(problems)) for task, problems in TASKS.items()}


def pieces(tokenizer, text):
    """The text of each token."""
    return [tokenizer.decode([i]) for i in tokenizer(text)["input_ids"]]


# --- nothing is lost ---


LOOKS_SPECIAL = ["<eos>", "<pad>", "<<", ">>", "####", "#### ", "v3", " r2", "<unk>", "Ġ", "\n", "\r\n", "  "]
text_or_special = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20), st.sampled_from(LOOKS_SPECIAL)
)


@settings(max_examples=300, deadline=None)
@given(st.lists(text_or_special, max_size=6).map("".join))
@example(" leading and trailing ")
@example("a  b\t\tc\n\n d\r\n")
@example("don 't , stop . now ?")  # the library's clean-up would join these
@example("Ünïcödé 🧮 数学 ½ e\u0301 \u200b\ufeff\x00")
@example("<<3+4=7>>\n#### 7")
@example("####7 ##### #### ")
@example("Ġ Ċ ▁ </w> [UNK] <unk> <s> </s> <|endoftext|> <extra_id_0>")
def test_any_text_survives(text):
    for tokenizer in (BUILT["word_problems"], BUILT["modular_chain"]):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@every_task
def test_every_problem_survives_in_every_tokenizer(task):
    for tokenizer in BUILT.values():
        for text in texts(TASKS[task])[:50]:
            assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_a_small_vocabulary_still_encodes_every_byte():
    tokenizer = build_tokenizer(["a b"], vocab_size=258)
    assert len(tokenizer) == 258
    assert tokenizer.decode(tokenizer("Zürich 42 🧮")["input_ids"]) == "Zürich 42 🧮"


# --- ids ---


@every_task
def test_pad_is_0_and_eos_is_1_and_nothing_is_added_by_itself(task):
    tokenizer = BUILT[task]
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1)
    assert (tokenizer.pad_token, tokenizer.eos_token) == (PAD, EOS)
    assert not {0, 1} & set(tokenizer("a question ?\n")["input_ids"])
    assert tokenizer.decode([5, 1, 0], skip_special_tokens=True) == tokenizer.decode([5])


@every_task
def test_the_vocabulary_is_no_larger_than_asked(task):
    assert len(build_tokenizer(texts(TASKS[task]), vocab_size=300)) <= 300
    ids = BUILT[task].get_vocab().values()
    assert sorted(ids) == list(range(len(BUILT[task]))) and len(BUILT[task]) <= 1024


def test_an_equal_rebuild_has_the_identical_vocabulary():
    for task, problems in TASKS.items():
        again = build_tokenizer(iter(texts(problems)))
        assert again.backend_tokenizer.to_str() == BUILT[task].backend_tokenizer.to_str()


def test_a_saved_tokenizer_is_the_same_after_loading(tmp_path):
    from lib.models import load_tokenizer

    BUILT["word_problems"].save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    assert loaded.get_vocab() == BUILT["word_problems"].get_vocab()
    assert (loaded.pad_token_id, loaded.eos_token_id) == (0, 1)
    for text in [*texts(TASKS["word_problems"])[:50], "don 't , stop . now ?"]:
        assert loaded(text)["input_ids"] == BUILT["word_problems"](text)["input_ids"]
        assert loaded.decode(loaded(text)["input_ids"]) == text


# --- what is one token ---


@every_task
def test_every_digit_is_a_token_of_its_own(task):
    tokenizer = BUILT[task]
    for number in ("0", "17", "71", "1080", "3.14", "1,000", "$25", "x=12", "(3+40)*2", "2**10"):
        shown = [piece.strip() for piece in pieces(tokenizer, number)]
        assert [p for p in shown if any(c.isdigit() for c in p)] == [c for c in number if c.isdigit()]


def test_names_of_values_are_single_tokens():
    tokenizer = BUILT["modular_chain"]
    assert pieces(tokenizer, "v3 + n4 * n2 - n1 ?\n") == ["v3", " +", " n4", " *", " n2", " -", " n1", " ?", "\n"]
    for problem in TASKS["modular_chain"]:
        for step in problem.steps:
            assert len(tokenizer(step)["input_ids"]) == 1, f"{step} is one step and must be one token"
        assert len(tokenizer(problem.question)["input_ids"]) == len(problem.question.split())


def test_a_letter_and_number_inside_a_longer_word_is_no_name():
    tokenizer = build_tokenizer(["v3 r2 n4"] * 5 + ["cov3 v3x"] * 5)
    for text in ("cov3", "v3x"):
        assert "3" in pieces(tokenizer, text), f"the digit of {text} must stay a token of its own"


@every_task
def test_the_answer_marker_is_one_token_before_any_answer(task):
    tokenizer = BUILT[task]
    for answer in ("7", "42", "-3", "1/2"):
        assert pieces(tokenizer, f"#### {answer}")[0] == "#### "
        assert pieces(tokenizer, f"r1\n#### {answer}")[-len(pieces(tokenizer, answer)) - 1] == "#### "


def test_annotation_brackets_are_single_tokens():
    shown = pieces(BUILT["word_problems"], "<<3+4=7>>\n")
    assert shown[0] == "<<" and shown[-2:] == [">>", "\n"]
    assert "".join(shown) == "<<3+4=7>>\n"


# --- the border of prompt and completion ---


@every_task
@pytest.mark.parametrize("style", ["cot", "answer_only"])
def test_prompt_and_completion_tokenised_apart_are_the_whole(task, style):
    """So that what was trained (joined ids) is what a model meets at generation (the prompt's ids alone)."""
    tokenizer = BUILT[task]
    for problem in TASKS[task]:
        prompt, completion = prompts.prompt(problem), prompts.completion(problem, style)
        apart = tokenizer(prompt)["input_ids"] + tokenizer(completion)["input_ids"]
        assert apart == tokenizer(prompt + completion)["input_ids"]
