"""The calculator inside decoding: it forces what a plain rescan forces, for any tokenizer, alone or in a batch."""

import functools
import json
import os
import random
import re
import string
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib import answers
from lib.calculator import evaluate, format_number
from lib.decoding_calculator import CANONICAL, T5, Calculator, CalculatorProcessor
from lib.errors import InputError
from lib.generation import generate
from lib.problems import make_problem
from lib.tasks import word_problems
from lib.tokenization import build_tokenizer
from tests.oracles.decoding_calculator import RescanCalculator

REAL = Path(os.environ.get("REAL_DATA") or "no such folder")
needs_real_files = pytest.mark.skipif(not REAL.is_dir(), reason="set REAL_DATA to the folder of real files")

# --- tokenizers ---

CHARACTERS = sorted({*string.printable, *"×÷−éß🧮"})
TWO = [f"{n:02d}" for n in range(100)]
THREE = [f"{n:03d}" for n in range(1000)]
GLUED = [
    "<<",
    ">>",
    "=1",
    "=7",
    "= ",
    "==",
    "=>",
    "+=",
    "<<3",
    "<<<",
    "< ",
    ">>\n",
    ">><<",
    "=1>>",
    "7>>",
    "=\n",
    "\n<",
]
GLUED += ["<<3+4=", "<<3+4=7", "<<3+4=7>>", "3+4=7>> <<1", "=-", "-7", ".5", "0.", "0.33>>", "=0.", "12", "=14"]
GLUED += ["1=", "11=", "1>>", "11<<"]


def of_pieces(pieces, blank=None):
    """A tokenizer that writes a text with as few of `pieces` as it can; `blank` stands for a blank, also in front."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import Unigram
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "</s>", "<unk>"]
    tokenizer = Tokenizer(Unigram([(piece, -1.0) for piece in [*special, *dict.fromkeys(pieces)]], unk_id=2))
    tokenizer.decoder = decoders.Metaspace(blank) if blank else decoders.Fuse()
    if blank:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(blank)
    names = dict(zip(("pad_token", "eos_token", "unk_token"), special, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **names)


TOKENIZERS = {
    "the project's": lambda: build_tokenizer(["3 + 4 ?\n<<3+4=7>>7\n<<10*2=20>>20\n#### 20"] * 9, 300),
    "characters": lambda: of_pieces(CHARACTERS),
    "2 digits": lambda: of_pieces([*CHARACTERS, *TWO]),
    "3 digits": lambda: of_pieces([*CHARACTERS, *TWO, *THREE]),
    "glued": lambda: of_pieces([*CHARACTERS, *GLUED]),
    "no 7": lambda: of_pieces([*(set(CHARACTERS) - {"7"}), "=7", "<<", ">>"]),
    "no end alone": lambda: of_pieces([*(set(CHARACTERS) - {">"}), "<<", ">>\n", "5>>"]),
    "blanks in front": lambda: of_pieces([*CHARACTERS, "<<", ">>", "▁", "▁<<", *(f"▁{n}" for n in range(100))], "▁"),
    "T5's": lambda: of_pieces(
        [*CHARACTERS, *TWO, "▁", *(f"▁{x}" for x in [*"[]=+*/-(0123456789", *TWO]), "6]", "=▁6", "▁=▁", "▁6]"], "▁"
    ),
}
FORMS = {name: T5 if name == "T5's" else CANONICAL for name in TOKENIZERS}
every_tokenizer = pytest.mark.parametrize("name", TOKENIZERS)


@functools.cache
def tokenizer_of(name):
    return TOKENIZERS[name]()


def pieces_of(name, text, chooser):
    """Ids that write `text`, cut at random into any pieces that the vocabulary has, now and then a special one."""
    from tokenizers import pre_tokenizers

    tokenizer = tokenizer_of(name)
    vocabulary = {piece: i for piece, i in tokenizer.get_vocab().items() if i not in tokenizer.all_special_ids}
    if name == "the project's":
        alphabet = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        text = "".join(piece for piece, _ in alphabet.pre_tokenize_str(text))
    elif name in ("T5's", "blanks in front"):
        text = text.replace(" ", "▁")
    longest, ids, start = max(map(len, vocabulary)), [], 0
    while start < len(text):
        ends = [end for end in range(start + 1, start + longest + 1) if text[start:end] in vocabulary]
        end = chooser.choice(ends or [start + 1])
        ids.append(vocabulary.get(text[start:end], tokenizer.unk_token_id))
        ids += [tokenizer.pad_token_id] * (chooser.random() < 0.03)
        start = min(end, len(text))
    return ids


# --- rows that are written together ---


def due(calculator):
    """The id that must come next in each row, None where the model is free."""
    if isinstance(calculator, RescanCalculator):
        return calculator.due
    return [calculator.forced[row][-1] if row in calculator.forced else None for row in range(len(calculator.open))]


def write(calculators, scripts, end):
    """What rows become whose model wants the ids of its script one after another, and then `end`: (row, ids) by row.

    Each of `calculators` follows them, and all must agree at every step on the tokens, on what is due and on counts.
    """
    first, *others = calculators
    for calculator in calculators:
        calculator.start(len(scripts))
    written, active, step = [[] for _ in scripts], list(range(len(scripts))), 0
    while active:
        wanted = [scripts[row][step] if step < len(scripts[row]) else end for row in active]
        chosen = first.override(wanted)
        for other in others:
            assert other.override(wanted) == chosen
        for calculator in calculators:
            calculator.advance(chosen)
        for row, token in zip(active, chosen, strict=True):
            written[row].append(token)
        going = [i for i, token in enumerate(chosen) if token != end]
        if len(going) < len(active):
            active = [active[i] for i in going]
            for calculator in calculators:
                calculator.keep(going)
        for other in others:
            assert due(other) == due(first)
            assert other.counts == first.counts
        step += 1
    return written


def compare_with_a_rescan(name, scripts):
    """The rows together, against a rescan of each at every step, and against the calculator on each row alone."""
    tokenizer, form, end = tokenizer_of(name), FORMS[name], tokenizer_of(name).eos_token_id
    together, alone = Calculator(tokenizer, form), Calculator(tokenizer, form)
    written = write([together, RescanCalculator(tokenizer, form)], scripts, end)
    assert [write([alone], [script], end)[0] for script in scripts] == written
    assert alone.counts == together.counts
    return [tokenizer.decode(ids, skip_special_tokens=True) for ids in written], together.counts


EXPRESSIONS = ["3+4", "10/0", "5(3)", "$5*2", "20%*50", "1,000*2", "2.99999*1", "1/3", "3-10", "9**9**9", "", "3=3"]
EXPRESSIONS += ["12*12", " 3 * 2 ", "999*999", "4-4.5", "100/8", "(1+2", "9" * 16, "1+" * 20 + "1", "3 +\n4", "7-2>>"]


@st.composite
def annotation_texts(draw, form):
    """An annotation, whole or broken, its result right, wrong or not there."""
    expression = draw(st.one_of(st.sampled_from(EXPRESSIONS), st.text("0123456789+-*/(). ", max_size=7)))
    value = evaluate(expression).value
    right = form.before + format_number(value) if value is not None else "1"
    stated = draw(st.sampled_from([right, "7", "12", f"{form.before}14", right[:1], "", f"{right} ", "="]))
    opening, closing = draw(st.sampled_from([form.open] * 9 + [form.open[:1], ""])), form.close
    return opening + expression + draw(st.sampled_from(["=", "=", "=", " =", ""])) + stated + closing


def texts(form):
    junk = st.text(f"{form.open}{form.close}=\n 17+a", max_size=5)
    long = st.integers(60, 68).map(lambda n: form.open + "1" * n)
    return st.lists(st.one_of(annotation_texts(form), annotation_texts(form), junk, long), max_size=4).map("".join)


@every_tokenizer
def test_forced_ids_and_counts_are_those_of_a_rescan(name):
    """Whatever the text and however it is cut into tokens; and a batch is its rows alone, while rows leave."""

    @settings(max_examples=60, deadline=None)
    @given(st.lists(texts(FORMS[name]), min_size=1, max_size=3), st.integers(0, 2**32))
    def compare(rows, seed):
        chooser = random.Random(seed)
        compare_with_a_rescan(name, [pieces_of(name, row, chooser) for row in rows])

    compare()


def with_some_results_wrong(text, form, seed):
    """A solution in a form of annotation, the results of half its annotations, and so the texts behind, other ones."""
    chooser = random.Random(seed)

    def annotation(match):
        result = match[2] if chooser.random() < 0.5 else str(chooser.randrange(10 ** chooser.randrange(1, 6)))
        blank = form.before
        return f"{form.open}{blank}{match[1]}{blank}={blank}{result}{form.close}"

    return re.sub(r"<<([^<>=\n]*)=([^<>=\n]*)>>", annotation, text)


def solutions(source):
    """Solutions in words by people, or made up."""
    if source == "word_problems":
        return ["\n".join(p.steps) + f"\n#### {p.answer}" for p in word_problems.generate(12, seed=3)]
    with open(REAL / "gsm8k" / "train.jsonl", encoding="utf-8") as file:
        lines = [json.loads(line)["answer"] for line in file]
    return [text for text in random.Random(0).sample(lines, 24) if text.isascii()]


@pytest.mark.parametrize("source", ["word_problems", pytest.param("gsm8k", marks=needs_real_files)])
@pytest.mark.parametrize("name", ["the project's", "characters", "3 digits", "glued", "blanks in front", "T5's"])
def test_wrong_results_in_solutions_become_right_as_a_rescan_would_make_them(name, source):
    tokenizer, form = tokenizer_of(name), FORMS[name]
    wrong = [with_some_results_wrong(text, form, seed) for seed, text in enumerate(solutions(source))]
    found, counts = compare_with_a_rescan(
        name, [tokenizer(text, add_special_tokens=False)["input_ids"] for text in wrong]
    )
    steps = [step for text in found for step in annotations_of(text, form)]
    assert counts["triggered"] == sum(text.count(form.open) for text in wrong) == len(steps)
    assert 0.2 < counts["overridden"] / counts["triggered"] < (1 if name == "glued" else 0.7)
    still_wrong = sum(not step.ok for step in steps)  # where one token writes "=" and a part of the wrong result
    assert counts["failed"] == ({"the token of = goes on otherwise": still_wrong} if still_wrong else {})
    assert (still_wrong > 0) == (name == "glued")


def annotations_of(text, form):
    """The annotations of a text, judged by the arbiter."""
    inside = rf"{re.escape(form.open)} ?([^\n]{{0,80}}?) ?= ?([^\n]{{0,80}}?){re.escape(form.close)}"
    return answers.check_steps(make_problem("?", [], "0", "mine"), re.sub(inside, r"<<\1=\2>>", text))


# --- the edge cases, one by one ---


def go_on(name, before, wish):
    """(text, counts): what comes of a text `before` whose model wants to go on with `wish` and then to end."""
    tokenizer, form = tokenizer_of(name), FORMS[name]
    calculator = Calculator(tokenizer, form)
    ids = [i for text in (before, wish) for i in tokenizer(text, add_special_tokens=False)["input_ids"]]
    (written,) = write([calculator], [ids], tokenizer.eos_token_id)
    assert written[-1] == tokenizer.eos_token_id and not calculator.forced
    return tokenizer.decode(written, skip_special_tokens=True), calculator.counts


CASES = {
    "division by zero": ("<<10/0=", "5>>", "<<10/0=5>>", "division by zero"),
    "no expression": ("<<=", "5>>", "<<=5>>", "empty"),
    "two operators": ("<<3+/4=", "5>>", "<<3+/4=5>>", "syntax"),
    "an open bracket": ("<<(3+4=", "5>>", "<<(3+4=5>>", "syntax"),
    "a number before a bracket": ("<<5(3)=", "15>>", "<<5(3)=15>>", "syntax"),
    "a currency sign": ("<<$5*2=", "10>>", "<<$5*2=10>>", "character"),
    "a percentage": ("<<20%*50=", "10>>", "<<20%*50=10>>", "character"),
    "a name": ("<<x=", "1>>", "<<x=1>>", "syntax"),
    "thousands": ("<<1,000*2=", "9>>", "<<1,000*2=2000>>", None),
    "a misplaced comma": ("<<1,00*2=", "9>>", "<<1,00*2=9>>", "character"),
    "nearly whole": ("<<2.99999*1=", "2", "<<2.99999*1=3>>", None),
    "a third": ("<<1/3=", "1>>", "<<1/3=0.33>>", None),
    "below nothing": ("<<3-10=", "7>>", "<<3-10=-7>>", None),
    "nothing, from below": ("<<0-1/1000=", "-", "<<0-1/1000=0>>", None),
    "powers": ("<<9**9**9=", "1>>", "<<9**9**9=1>>", "syntax"),
    "Python": ("<<__import__('os').abort()=", "1>>", "<<__import__('os').abort()=1>>", "character"),
    "a second =": ("<<3+4", "=3=7", "<<3+4=7>>", None),
    "blanks": ("<< 3 + 4 =", " 9>>", "<< 3 + 4 =7>>", None),
    "the first marker counts": ("<<<3+4=", "9>>", "<<<3+4=9>>", "character"),
    "an annotation in another": ("<<1+<<3+4=", "9>>", "<<1+<<3+4=9>>", "character"),
    "the line ends first": ("<<3+4\n=", "9>>", "<<3+4\n=9>>", "the line ended"),
    "the annotation ends first": ("<<3+4>>=", "9>>", "<<3+4>>=9>>", "closed without ="),
    "64 characters": (f"<<{'1+' * 8}{' ' * 47}1=", "5>>", f"<<{'1+' * 8}{' ' * 47}1=9>>", None),
    "65 characters": (f"<<{'1+' * 8}{' ' * 48}1=", "5>>", f"<<{'1+' * 8}{' ' * 48}1=5>>", "too long"),
    "never an =": (f"<<{'many words ' * 9}", "<<3+4=9>>", f"<<{'many words ' * 9}<<3+4=7>>", "too long"),
    "4 digits": ("<<1234+8766=", "5>>", "<<1234+8766=10000>>", None),
    "9 digits": ("<<12345*67890=", "1>>", "<<12345*67890=838102050>>", None),
    "the model wants to end": ("<<12*12=", "", "<<12*12=144>>", None),
    "the model is right": ("<<12*12=", "144>>", "<<12*12=144>>", None),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["the project's", "characters", "2 digits", "3 digits"])
def test_edge_case(name, case):
    before, wish, outcome, reason = CASES[case]
    text, counts = go_on(name, before, wish)
    asked = reason not in ("the line ended", "closed without =", "too long")
    assert text.startswith(outcome)
    assert counts["failed"] == ({reason: 1} if reason else {})
    assert counts["triggered"] == (asked or case == "never an =")
    assert counts["overridden"] == (case == "never an =" or (not reason and case != "the model is right"))


@pytest.mark.parametrize(
    "before, wish, outcome",
    [
        ("[ 3 * 2 =", " 7", "[ 3 * 2 = 6]"),
        ("[ 3 * 2 =", " 6]", "[ 3 * 2 = 6]"),
        ("He has [ 24 / 2 =", " 24] eggs", "He has [ 24 / 2 = 12] eggs"),
        ("[ 3 - 10 =", "", "[ 3 - 10 = -7]"),
        ("[ 12345 * 67890 =", "", "[ 12345 * 67890 = 838102050]"),
        ("[3*2=", "7", "[3*2= 6]"),
        ("[ 3 / 0 =", " 0]", "[ 3 / 0 = 0]"),
        ("[ 3 ] =", " 0", "[ 3 ] = 0"),
    ],
)
def test_the_form_of_t5_has_a_blank_before_the_result(before, wish, outcome):
    assert go_on("T5's", before, wish)[0] == outcome


@pytest.mark.parametrize(
    "pieces, outcome, counts",
    [
        (["<<3+4=", "7>>"], "<<3+4=7>>", (1, 0, {})),
        (["<<", "3", "+4", "=7", ">>"], "<<3+4=7>>", (1, 0, {})),
        (["<", "<3", "+4=", "1", "2"], "<<3+4=7>>", (1, 1, {})),
        (["<<3+4=7>>"], "<<3+4=7>>", (1, 0, {})),
        (["<<3+4=7>>", "1"], "<<3+4=7>>1", (1, 0, {})),
        (["<<3+4=7>> <<1", "+1=", "9", ">>"], "<<3+4=7>> <<1+1=2>>", (2, 1, {})),
        (["<<3+4=1", "2>>"], "<<3+4=12>>", (1, 0, {"the token of = goes on otherwise": 1})),
        (["<<3+4=7", "7", ">>"], "<<3+4=7>>>>", (1, 1, {})),
        (["<<3+4=8<<", "1+1=", "9"], "<<3+4=8<<1+1=2>>", (2, 1, {"the token of = goes on otherwise": 1})),
        (["<<1\n<<2>><<3+3=", "5"], "<<1\n<<2>><<3+3=6>>", (1, 1, {"the line ended": 1, "closed without =": 1})),
        (["<", "<pad>", "<1+1", "</s>", "=", "5"], "<<1+1=2>>", (1, 1, {})),
        (["< <1+1=5>>"], "< <1+1=5>>", (0, 0, {})),
        (["<<", "1" * 63, "1="], f"<<{'1' * 64}=", (1, 0, {"too many digits": 1})),
        (["<<", "1" * 63, "11="], f"<<{'1' * 65}=", (0, 0, {"too long": 1})),
        (["<<", "1" * 63, ">>"], f"<<{'1' * 63}>>", (0, 0, {"closed without =": 1})),
        (["<<", "1" * 63, "1>>"], f"<<{'1' * 64}>>", (0, 0, {"too long": 1})),
        (["<<", "1" * 63, "111<<3+4=", "9"], f"<<{'1' * 66}<<3+4=7>>", (1, 1, {"too long": 1})),
    ],
)
def test_markers_may_be_split_over_tokens_or_glued_to_their_neighbours(pieces, outcome, counts):
    tokenizer = of_pieces([*CHARACTERS, *(piece for piece in pieces if piece not in ("<pad>", "</s>"))])
    calculator, end = Calculator(tokenizer), tokenizer.unk_token_id
    (written,) = write([calculator, RescanCalculator(tokenizer)], [tokenizer.convert_tokens_to_ids(pieces)], end)
    assert tokenizer.decode(written, skip_special_tokens=True) == outcome
    assert tuple(calculator.counts.values()) == counts


def test_large_tokens_of_digits_are_forced_as_the_tokenizer_writes_them():
    tokenizer = tokenizer_of("3 digits")
    calculator = Calculator(tokenizer)
    before, free = tokenizer("<<999999*999=")["input_ids"], tokenizer.convert_tokens_to_ids("a")
    (written,) = write([calculator], [before + [free] * 20], tokenizer.eos_token_id)
    forced = written[len(before) : written.index(free)]
    assert tokenizer.convert_ids_to_tokens(forced[-2:]) == [">", ">"] and len(forced) == 3 + 2
    assert tokenizer.decode(forced) == "998999001>>"


@pytest.mark.parametrize("name, wish", [("no 7", "8>>"), ("no end alone", "8>>\n")])
def test_a_result_that_no_tokens_write_is_left_to_the_model(name, wish):
    text, counts = go_on(name, "<<3+4=" if name == "no 7" else "<<3+3=", wish)
    assert text.endswith(f"={wish}")
    assert counts == {"triggered": 1, "overridden": 0, "failed": {"the tokenizer cannot write the result": 1}}


@pytest.mark.parametrize("expression", ["3×4", "8÷2", "3−1"])
@pytest.mark.parametrize("name", ["characters", "the project's"])
def test_other_signs_for_the_operators_count_even_where_a_sign_is_several_tokens(name, expression):
    text, counts = go_on(name, f"<<{expression}=", "99>>")
    assert text.startswith(f"<<{expression}={format_number(evaluate(expression).value)}>>")
    assert counts == {"triggered": 1, "overridden": 1, "failed": {}}


@every_tokenizer
def test_text_of_any_script_around_an_annotation_changes_nothing(name):
    form = FORMS[name]
    before = f"Ünïcödé 🧮é {form.open}3+3="
    text, counts = go_on(name, before, f"{form.before}5{form.close}🧮")
    if name != "no end alone":
        assert f"{form.open}3+3={form.before}6{form.close}" in text and counts["overridden"] == 1
    assert counts["triggered"] == 1


def test_counts_go_on_over_several_starts_and_reasons_are_counted_apart():
    tokenizer = tokenizer_of("characters")
    calculator = Calculator(tokenizer)
    rows = ["<<1/0=1>><<3+4=9>>", "<<3+4=7>><<x=1>><<y=2>>", "nothing"]
    for _ in range(2):
        write([calculator], [tokenizer(row)["input_ids"] for row in rows], tokenizer.eos_token_id)
    failed = {"division by zero": 2, "syntax": 2, "character": 2}
    assert calculator.counts == {"triggered": 10, "overridden": 2, "failed": failed}


def test_a_new_start_forgets_what_stood_half_written():
    tokenizer = tokenizer_of("characters")
    calculator, one = Calculator(tokenizer), tokenizer.convert_tokens_to_ids
    calculator.start(2)
    for column in zip("<<12*12=", "<<<<3+4 ", strict=True):
        calculator.advance(one(column))
    assert calculator.override(one(["a", "a"])) == one(["1", "a"])
    calculator.advance(one(["1", "a"]))
    calculator.start(2)
    for column in zip("=<<1+1=", "=<<2+2=", strict=True):
        assert calculator.override(one(column)) == one(column)
        calculator.advance(one(column))
    assert calculator.override(one(["a", "4"])) == one(["2", "4"])
    assert calculator.counts == {"triggered": 3, "overridden": 2, "failed": {}}


def test_an_annotation_is_counted_as_overridden_once_and_only_where_the_model_differs():
    tokenizer = tokenizer_of("characters")
    for wish, overridden in [("144>>", 0), ("999>>", 1), ("149>>", 1), ("144..", 1), ("144>>" + "<<2*2=5>>", 1)]:
        assert go_on("characters", "<<12*12=", wish)[1]["overridden"] == overridden, wish
    assert go_on("characters", "<<12*12=", "9" * 5 + "<<2*2=5>>")[1]["overridden"] == 2
    assert tokenizer.decode(tokenizer("144>>")["input_ids"]) == "144>>"


def test_rows_may_leave_and_change_places_in_the_middle_of_a_result():
    tokenizer = tokenizer_of("characters")
    calculator, one = Calculator(tokenizer), tokenizer.convert_tokens_to_ids
    calculator.start(4)
    for column in zip("<<10*10=", "<<20*20=", "<<30*30=", "<<40*40 ", strict=True):
        calculator.advance(one(column))
    calculator.keep([2, 0, 3])
    assert calculator.override(one(["a", "a", "="])) == one(["9", "1", "="])
    calculator.advance(one(["9", "1", "="]))
    calculator.keep([1, 2])
    steps = []
    for _ in range(7):
        steps.append(calculator.override(one(["a", "a"])))
        calculator.advance(steps[-1])
    assert ["".join(tokenizer.convert_ids_to_tokens(row)) for row in zip(*steps, strict=True)] == ["00>>aaa", "1600>>a"]
    assert calculator.counts == {"triggered": 4, "overridden": 3, "failed": {}}


# --- hostile texts ---

MANY = 100_000


@pytest.mark.parametrize(
    "text, counts",
    [
        ("<<" + "(" * MANY + "=", (0, {"too long": 1})),
        ("<<" * MANY, (0, {"too long": 2 * MANY // 67})),
        ("<<" + "9" * MANY + "=", (0, {"too long": 1})),
        ("<<1=1>>" * (MANY // 7), (MANY // 7, {})),
        ("<<9" * (MANY // 3), (0, {"too long": 1449})),
        ("<<(=" * (MANY // 4), (MANY // 4, {"syntax": MANY // 4})),
    ],
    ids=["brackets", "markers", "digits", "annotations", "markers and digits", "broken annotations"],
)
def test_hostile_text_ends_and_is_counted(text, counts):
    tokenizer = tokenizer_of("characters")
    calculator, ids = (
        Calculator(tokenizer),
        {character: tokenizer.convert_tokens_to_ids(character) for character in set(text)},
    )
    calculator.start(1)
    for character in text:
        calculator.advance([ids[character]])
    triggered, failed = counts
    assert calculator.counts == {"triggered": triggered, "overridden": 0, "failed": failed}


# --- models ---

PAIRS = [(f"{a} {sign} {b} ?\n", a, sign, b) for a, sign, b in [(3, "+", 4), (12, "*", 12), (7, "-", 9), (8, "/", 3)]]
PAIRS += [(f"{a} and {b} ?\n", a, "+", b) for a, b in [(1, 2), (50, 60), (33, 8), (9, 9)]]


def wrong_solution(form, chooser, a, sign, b):
    """Two annotations with made-up results."""
    results = [chooser.choice(["", "", "-"]) + str(chooser.randrange(10 ** chooser.randrange(1, 5))) for _ in range(2)]
    steps = [f"{a} {sign} {b} = {results[0]}", f"{b} * 2 = {results[1]}"]
    if not form.before:
        steps = [step.replace(" ", "") for step in steps]
    return " so ".join(f"{form.open}{form.before}{step}{form.close}" for step in steps)


def taught(form, tokenizer, make, steps):
    """A model that learned to write annotations of which the result is any number."""
    from torch.nn.utils.rnn import pad_sequence

    chooser, examples = random.Random(0), []
    for prompt, *task in PAIRS * 8:
        text = wrong_solution(form, chooser, *task)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        examples.append((tokenizer(prompt)["input_ids"], ids))
    torch.manual_seed(0)
    model = make(
        dict(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id)
    )

    def padded(rows, value):
        return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)

    if model.config.is_encoder_decoder:
        given, labels = padded([p for p, _ in examples], 0), padded([c for _, c in examples], -100)
        inputs = dict(input_ids=given, attention_mask=(given != 0).long(), labels=labels)
    else:
        inputs = dict(input_ids=padded([p + c for p, c in examples], 0))
        inputs["labels"] = padded([[-100] * len(p) + c for p, c in examples], -100)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(steps):
        model(**inputs).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def small_llama(ids):
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = dict(hidden_size=48, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    return LlamaForCausalLM(
        LlamaConfig(**sizes, tie_word_embeddings=True, initializer_range=0.15, bos_token_id=None, **ids)
    )


def small_t5(ids):
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = dict(d_model=48, d_kv=24, d_ff=64, num_layers=1, num_heads=2, feed_forward_proj="gated-gelu")
    return T5ForConditionalGeneration(T5Config(**sizes, dropout_rate=0.0, decoder_start_token_id=0, **ids))


@pytest.fixture(scope="module")
def wrong_llama():
    return taught(CANONICAL, tokenizer_of("the project's"), small_llama, 120), tokenizer_of("the project's"), CANONICAL


@pytest.fixture(scope="module")
def wrong_t5():
    return taught(T5, tokenizer_of("T5's"), small_t5, 240), tokenizer_of("T5's"), T5


@pytest.fixture(params=["wrong_llama", "wrong_t5"])
def wrong(request):
    """(model, tokenizer, form): a model whose annotations are all wrong."""
    return request.getfixturevalue(request.param)


ASKED = [prompt for prompt, *_ in PAIRS]


def by_the_library(wrong, processors, **arguments):
    """The texts of ASKED by the library's own decoding loop, in one batch."""
    model, tokenizer, _ = wrong
    tokenizer.padding_side = "right" if model.config.is_encoder_decoder else "left"
    inputs = tokenizer(ASKED, return_tensors="pt", padding=True, return_token_type_ids=False)
    ids = model.generate(**inputs, max_new_tokens=60, logits_processor=processors, **arguments)
    new = ids if model.config.is_encoder_decoder else ids[:, inputs["input_ids"].shape[1] :]
    return tokenizer.batch_decode(new, skip_special_tokens=True)


def judged(found, form):
    """Does it hold? Of every annotation of the texts that asks for the result of an expression that has one."""
    inside = rf"{re.escape(form.open)}([^\n]{{0,80}}?){re.escape(form.close)}"
    pairs = [body.partition("=")[::2] for text in found for body in re.findall(inside, text) if "=" in body]
    steps = [answers.check_annotation(expression.strip(), stated.strip()) for expression, stated in pairs]
    return [
        step.ok for step, (expression, _) in zip(steps, pairs, strict=True) if evaluate(expression).value is not None
    ]


def test_a_model_that_writes_any_number_for_a_result_writes_the_right_ones(wrong):
    model, tokenizer, form = wrong
    without = judged([g.text for g in generate(model, tokenizer, ASKED, 60)], form)
    assert len(without) > 8 and sum(without) < len(without) / 4
    calculator = Calculator(tokenizer, form)
    found = [g.text for g in generate(model, tokenizer, ASKED, 60, calculator=calculator)]
    holds = judged(found, form)
    assert len(holds) > 8 and all(holds)
    if form == CANONICAL:
        problem = make_problem("?", [], "0", "mine")
        assert all(step.ok for text in found for step in answers.check_steps(problem, text))
    assert calculator.counts["triggered"] == len(holds) and calculator.counts["overridden"] > len(holds) / 2


def test_samples_hold_wherever_their_annotations_have_a_value(wrong):
    """Hot enough to break annotations too; and every text is that of its own prompt, seed and index."""
    model, tokenizer, form = wrong
    asked, indices = ASKED * 6, [i for i in range(6) for _ in ASKED]
    found, counts = [], []
    for batch_tokens in (500, 10**6):
        calculator = Calculator(tokenizer, form)
        arguments = dict(seed=2, indices=indices, calculator=calculator, batch_tokens=batch_tokens)
        found.append([g.text for g in generate(model, tokenizer, asked, 60, 1.3, **arguments)])
        counts.append(calculator.counts)
    assert found[0] == found[1] and counts[0] == counts[1]
    holds, failed = judged(found[0], form), counts[0]["failed"]
    given_up = sum(failed.values()) - failed["closed without ="]  # say '= 6' as one token, or a bracket in a bracket
    assert holds.count(True) > 40 and holds.count(False) <= min(given_up, 4)
    assert len(set(found[0])) > 12 and counts[0]["failed"], "too cold"


def test_the_library_s_greedy_with_the_processor_writes_the_same_and_counts_the_same(wrong):
    model, tokenizer, form = wrong
    ours, theirs = Calculator(tokenizer, form), Calculator(tokenizer, form)
    found = [g.text for g in generate(model, tokenizer, ASKED, 60, calculator=ours)]
    assert by_the_library(wrong, [CalculatorProcessor(theirs)], do_sample=False) == found
    assert theirs.counts == ours.counts


@pytest.mark.parametrize("arguments", [dict(top_k=1), dict(top_k=3), dict(top_p=0.1), dict(temperature=0.1)])
def test_forced_tokens_survive_the_library_s_sampling(wrong, arguments):
    model, tokenizer, form = wrong
    calculator = Calculator(tokenizer, form)
    torch.manual_seed(1)
    holds = judged(by_the_library(wrong, [CalculatorProcessor(calculator)], do_sample=True, **arguments), form)
    assert len(holds) > 8 and all(holds)
    assert calculator.counts["overridden"] > len(holds) / 2


@pytest.mark.parametrize("padding", ["</s>", "<pad>"])
def test_rows_that_ended_and_prompts_are_not_followed(wrong_t5, padding):
    """The pad token may be the end token, begins what T5 writes, and fills up rows that ended."""
    model, tokenizer, form = wrong_t5
    model.generation_config.pad_token_id = tokenizer.convert_tokens_to_ids(padding)
    try:
        calculator = Calculator(tokenizer, form)
        found = by_the_library(wrong_t5, [CalculatorProcessor(calculator)], do_sample=False)
    finally:
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    assert found == [g.text for g in generate(model, tokenizer, ASKED, 60, calculator=Calculator(tokenizer, form))]
    assert calculator.counts["triggered"] == sum(text.count("=") for text in found)


def test_an_annotation_that_the_prompt_left_open_is_not_followed(wrong_llama):
    model, tokenizer, _ = wrong_llama
    calculators = [Calculator(tokenizer), Calculator(tokenizer)]
    inputs = tokenizer("<<1+1=", return_tensors="pt", return_token_type_ids=False)
    processors = [CalculatorProcessor(calculators[0])]
    model.generate(**inputs, max_new_tokens=2, do_sample=False, logits_processor=processors)
    generate(model, tokenizer, ["<<1+1="], 2, calculator=calculators[1])
    assert [c.counts["triggered"] for c in calculators] == [0, 0]


def test_beam_search_is_refused_with_a_sentence(wrong):
    model, tokenizer, form = wrong
    with pytest.raises(InputError, match="num_beams=1"):
        by_the_library(wrong, [CalculatorProcessor(Calculator(tokenizer, form))], num_beams=2, do_sample=False)


def step_by_step(tokenizer, rows, dtype=torch.float32, calculator=None):
    """Drive a processor as a decoding loop does, each row wanting its text: yields (input_ids, scores, new scores)."""
    processor = CalculatorProcessor(calculator or Calculator(tokenizer))
    ids = torch.zeros(len(rows), 3, dtype=torch.long)
    for column in zip(*(tokenizer(row)["input_ids"] for row in rows), strict=True):
        scores = torch.randn(len(rows), len(tokenizer), generator=torch.Generator().manual_seed(0)).to(dtype)
        scores[range(len(rows)), column] = torch.finfo(dtype).max / 4
        given = scores.clone()
        after = processor(ids, given)
        assert torch.equal(given, scores), "the scores that were handed in belong to the caller"
        yield ids, scores, after
        ids = torch.cat([ids, after.argmax(-1, keepdim=True)], 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_scores_of_any_precision_leave_the_forced_token_alone(dtype):
    tokenizer, forced, free = tokenizer_of("characters"), "", 0
    for _, scores, after in step_by_step(tokenizer, ["<<12*12=8888aa<<1+1=9999", "and this row is free all"], dtype):
        assert after.dtype == dtype and torch.equal(after[1], scores[1])
        if torch.equal(after[0], scores[0]):
            free += 1
            continue
        chances = after[0].softmax(-1)
        assert sorted(chances.tolist())[-2:] == [0, 1]
        forced += tokenizer.decode([chances.argmax().item()])
    assert (forced, free) == ("144>>2>>", 16)


def test_the_processor_counts_as_overridden_only_what_the_scores_would_not_have_chosen():
    tokenizer = tokenizer_of("characters")
    calculator = Calculator(tokenizer)
    for _ in step_by_step(tokenizer, ["<<12*12=144>>a", "<<12*12=149>>a", "<<10*10=100>>a"], calculator=calculator):
        pass
    assert calculator.counts == {"triggered": 3, "overridden": 1, "failed": {}}


def test_half_precision_models_write_right_results(wrong_llama):
    model, tokenizer, form = wrong_llama
    for dtype in (torch.bfloat16, torch.float16):
        half = small_llama(dict(vocab_size=len(tokenizer), pad_token_id=0, eos_token_id=1))
        half.load_state_dict(model.state_dict())
        half = half.to(dtype).eval()
        calculator = Calculator(tokenizer)
        for temperature in (0.0, 0.7):
            found = generate(half, tokenizer, ASKED, 60, temperature, calculator=calculator)
            assert all(judged([g.text for g in found], form))
        assert calculator.counts["overridden"] > 20


@pytest.fixture
def device_reads(monkeypatch):
    """Counts every way in which values come from a tensor to Python."""
    reads = Counter()
    for name in ("tolist", "item", "__bool__", "__int__", "__float__", "__index__", "cpu", "numpy"):
        original = getattr(torch.Tensor, name)

        def counted(self, *arguments, name=name, original=original, **more):
            reads[name] += 1
            return original(self, *arguments, **more)

        monkeypatch.setattr(torch.Tensor, name, counted)
    return reads


def test_the_processor_reads_the_device_once_a_step_however_many_rows(device_reads):
    tokenizer = tokenizer_of("characters")
    steps = list(step_by_step(tokenizer, ["<<12*12=8888aa<<1+1=9999", "<<1/0=88 <<3*3=88 and on"] * 8))
    assert device_reads == {"tolist": len(steps) - 1}, "none before the first token"


def test_generation_reads_the_device_once_a_step_however_many_rows(wrong_llama, device_reads):
    model, tokenizer, _ = wrong_llama
    found = generate(model, tokenizer, ASKED, 60, calculator=Calculator(tokenizer))
    assert device_reads["tolist"] == max(g.tokens for g in found)
    device_reads.clear()
    generate(model, tokenizer, ASKED[:1], 60, calculator=Calculator(tokenizer))
    assert set(device_reads) <= {"tolist", "__bool__"}, "the library looks at its attention mask"
