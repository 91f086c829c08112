"""Tokenizers built on the spot: every text survives, and what names one thing is one token."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lib import prompts
from lib.tasks import arithmetic, modular_chain, word_problems
from lib.tokenization import EOS, PAD, SEP, UNKNOWN, build_tokenizer, build_word_tokenizer

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


# --- as few tokens as a task needs ---


WORDS = {
    (task, digits): build_word_tokenizer(texts(problems), digits)
    for task, problems in TASKS.items()
    for digits in (True, False)
}
KNOWN = [
    "Ann",
    " has",
    "has",
    " 12",
    "7",
    " +",
    "+",
    "=",
    "<<",
    ">>",
    "\n",
    "####",
    " ####",
    " v3",
    "r2",
    " ?",
    ".",
    " ",
]
BY_DIGITS = {
    digits: build_word_tokenizer(["".join(KNOWN), *KNOWN, *"0123456789", *(f" {n}" for n in range(10))], digits)
    for digits in (True, False)
}


@pytest.mark.parametrize("digits", [True, False])
@every_task
def test_every_problem_survives_in_its_own_words(task, digits):
    tokenizer = WORDS[task, digits]
    for text in texts(TASKS[task]):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text and tokenizer.unk_token_id not in ids


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(KNOWN), max_size=12).map("".join))
@example("don't")
@example("####\n\n####")
@example("v3r2")
@example("12 12127")
def test_a_text_of_known_pieces_survives(text):
    """Pieces put together may be a longer word that never occurred; then it is one unknown token, and no other."""
    tokenizer = BY_DIGITS[True]
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if tokenizer.unk_token_id in ids:
        found = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
        unknown = [piece for piece, _ in found if piece not in tokenizer.get_vocab()]
        assert len(unknown) == ids.count(tokenizer.unk_token_id)
        assert all(piece not in KNOWN for piece in unknown)
    else:
        assert tokenizer.decode(ids) == text


@settings(max_examples=200, deadline=None)
@given(st.lists(text_or_special, max_size=5).map("".join))
@example("數学 🧮 \x00 Zürich")
@example("\ud7ff\u200b")
def test_no_text_is_refused_and_what_is_known_of_it_survives(text):
    tokenizer = BY_DIGITS[True]
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    vocabulary = tokenizer.get_vocab()
    pieces_of = [piece for piece, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)]
    assert "".join(pieces_of) == text
    if not any(special in text for special in (PAD, EOS, SEP, UNKNOWN)):
        assert ids == [vocabulary.get(piece, tokenizer.unk_token_id) for piece in pieces_of]


@pytest.mark.parametrize("digits, expected", [(True, [" 1", "2", "+", "7", "1", "2"]), (False, [" 12", "+", "712"])])
def test_a_number_is_its_digits_or_one_token(digits, expected):
    tokenizer = build_word_tokenizer([" 12+712", "x"], digits)
    assert pieces(tokenizer, " 12+712") == expected
    assert len(tokenizer) == 4 + len(set(expected)) + 1


def test_the_four_special_tokens_come_first_and_are_never_added_by_themselves():
    for tokenizer in WORDS.values():
        assert tokenizer.convert_ids_to_tokens([0, 1, 2, 3]) == [PAD, EOS, SEP, UNKNOWN]
        ids = [tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.sep_token_id, tokenizer.unk_token_id]
        assert ids == [0, 1, 2, 3]
        assert min(tokenizer("3 + 4")["input_ids"]) >= 3, "no end, no separator"
        assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))
        assert tokenizer.decode([4, 1, 0, 2], skip_special_tokens=True) == tokenizer.decode([4])


def test_a_vocabulary_holds_what_occurred_and_nothing_else():
    tokenizer = build_word_tokenizer(["v1 + n2 ?\n", "r3\n#### 3"])
    known = {"v1", " +", " n2", " ?", "\n", "r3", "####", " 3"}
    assert set(tokenizer.get_vocab()) == known | {PAD, EOS, SEP, UNKNOWN}
    assert pieces(tokenizer, "v1 + n9 ?") == ["v1", " +", UNKNOWN, " ?"], "a name that never occurred is unknown"
    assert len(build_word_tokenizer([])) == 4
    again = build_word_tokenizer(iter(["v1 + n2 ?\n", "r3\n#### 3"]))
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()


@pytest.mark.parametrize("digits", [True, False])
def test_a_saved_tokenizer_of_words_is_the_same_after_loading(digits, tmp_path):
    from lib.models import load_tokenizer

    built = WORDS["addition", digits]
    built.save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    assert loaded.get_vocab() == built.get_vocab()
    assert loaded.backend_tokenizer.to_str() == built.backend_tokenizer.to_str()
    specials = ("pad_token_id", "eos_token_id", "sep_token_id", "unk_token_id")
    assert [getattr(loaded, name) for name in specials] == [0, 1, 2, 3]
    for text in [*texts(TASKS["addition"])[:50], "12 + 34 ?", "never seen"]:
        ids = built(text, add_special_tokens=False)["input_ids"]
        assert loaded(text, add_special_tokens=False)["input_ids"] == ids and loaded.decode(ids) == built.decode(ids)
