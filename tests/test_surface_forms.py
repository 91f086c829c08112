"""T5's surface form and the layout of instructions: nothing that counts is lost, twice is as once."""

import os
import re
import time
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lib import answers, calculator, prompts, sampling
from lib.decoding_calculator import Calculator, marks
from lib.errors import InputError
from lib.problems import make_problem
from lib.prompts import Example, as_instruction, canonical_text, in_surface_form, in_t5_form, solution, t5_text
from lib.tasks import gsm8k, word_problems
from lib.tokenization import build_tokenizer
from tests.oracles.hostile import TEXTS as HOSTILE
from tests.test_decoding_calculator import tokenizer_of

REAL = Path(os.environ.get("REAL_DATA") or "no such folder")
needs_real_files = pytest.mark.skipif(not REAL.is_dir(), reason="set REAL_DATA to the folder of real files")
many = settings(max_examples=200, deadline=None)

TRIVIAL = re.compile(r"<<([0-9]+)=\1>>")
TRAYS = make_problem("Six trays of 4: $2 each?", ["6*4 is <<6*4=24>>24 jars", "24*$2=$<<24*2=48>>48."], "$48", "gsm8k")
POOL = word_problems.generate(60, seed=5)


def equations(text):
    """The annotations of a text in the canonical form, blanks removed."""
    return [(a.replace(" ", ""), b.replace(" ", "")) for a, b in answers.annotations(text)]


# --- examples ---


@pytest.mark.parametrize(
    "text, written",
    [
        ("16-3-4", "16 - 3 - 4."),
        ("<<16-3-4=9>>9 eggs", "[ 16 - 3 - 4 = 9] 9 eggs."),
        (
            "He needs <<3*2=6>>6 pages.\nSo <<6*104=624>>624\n#### 624",
            "He needs [ 3 * 2 = 6] 6 pages. So [ 6 * 104 = 624] 624. #### 624",
        ),
        ("#### 27", "#### 27"),
        ("Done.\n#### 27", "Done. #### 27"),
        ("<<6=6>>6 eggs\n<<6*6=36>>36", "6 eggs. [ 6 * 6 = 36] 36."),
        ("<<6=66>> <<60=6>> <<6=6+0>>", "[ 6 = 66] [ 60 = 6] [ 6 = 6 + 0]."),
        ("<<3-10=-7>>-7\n#### -7", "[ 3 - 10 = -7] -7. #### -7"),
        ("<<3--2=5>> <<-3*-2=6>>", "[ 3 - -2 = 5] [ -3 * -2 = 6]."),
        ("<<-(3+4)*2=-14>>", "[ -(3 + 4) * 2 = -14]."),
        ("<<(3+4)/(2-1)=7>>", "[ (3 + 4) / (2 - 1) = 7]."),
        ("<< 3 * 2 = 6 >>6", "[ 3 * 2 = 6] 6."),
        ("<<.5*.2=.1>>", "[ .5 * .2 = .1]."),
        ("Pay $5-$3=$2: $1,000", "Pay $ 5 - $ 3 = $ 2: $ 1,000."),
        ("In May:5 or: 6", "In May: 5 or: 6."),
        ("20%-5%=15%", "20% - 5% = 15%."),
        ("Why? Yes!\nOr?", "Why? Yes! Or?"),
        ("one-time x*3", "one-time x*3."),
        (" a \n\n\t b  c\r\n#### 1 0 ", "a. b c. #### 1 0"),
        ("a ####", "a. ####"),
        ("6*2 #### 12\nNo:5-3 #### 2", "6 * 2 #### 12. No: 5 - 3. #### 2"),
        ("", ""),
    ],
)
def test_a_solution_in_t5s_form(text, written):
    assert t5_text(text) == written == t5_text(written)


def test_the_equals_sign_before_an_annotation_has_its_blanks_too():
    """As published: an operator between any two characters, of which the bracket is one."""
    assert t5_text("6*4=<<6*4=24>>24") == "6 * 4 = [ 6 * 4 = 24] 24."
    assert t5_text("3*$5=$<<3*5=15>>15") == "3 * $ 5 = $[ 3 * 5 = 15] 15."


@pytest.mark.parametrize(
    "written, text",
    [
        ("[ 3 * 2 = 6] 6 pages. #### 6", "<<3*2=6>> 6 pages. #### 6"),
        ("[3*2=6][ 1 + 1 =2 ]", "<<3*2=6>><<1+1=2>>"),
        ("see [sic] and [] [ 3 + 4 ]", "see [sic] and [] [ 3 + 4 ]"),
        ("[ 3 * 2 = 6", "[ 3 * 2 = 6"),
        ("[ 3 *\n2 = 6]", "[ 3 *\n2 = 6]"),
        ("[ 3 = 3 = 3]", "<<3=3=3>>"),
        ("<<3*2=6>>", "<<3*2=6>>"),
    ],
)
def test_what_the_arbiter_reads_of_a_text_in_t5s_form(written, text):
    assert canonical_text(written, "t5") == text == canonical_text(text, "t5")
    for form in ("cot", "canonical", "instruction", "chat", "zero_shot_cot"):
        assert canonical_text(written, form) == written


# --- generated chains ---

numbers = st.one_of(st.integers(0, 5000).map(str), st.sampled_from([".5", "0.25", "1,000", "12.5", "3.0"]))
expressions = st.recursive(
    numbers,
    lambda inner: st.one_of(
        st.builds("{}{}{}".format, inner, st.sampled_from("+-*/"), inner),
        inner.map("-{}".format),
        inner.map("({})".format),
    ),
    max_leaves=5,
)
blanks = st.sampled_from(["", " "])


@st.composite
def annotations(draw):
    """`<<expression=value>>` with the value that the calculator gives, or any number; now and then a trivial one."""
    if draw(st.integers(0, 4)) == 0:
        n = draw(st.integers(0, 999))
        return f"<<{n}={n}>>"
    expression = draw(expressions)
    value = calculator.evaluate(expression).value
    stated = draw(numbers) if value is None else calculator.format_number(value)
    return f"<<{expression}={stated}>>".replace("=", f"{draw(blanks)}={draw(blanks)}")


words = st.sampled_from(
    ["He has ", "eggs", ": ", ":", "$", "so ", " ", "-", "20%", "3/4 cup", ". ", "24", "x", "= ", "(", "?"]
)
lines = st.lists(words | annotations(), min_size=1, max_size=6).map("".join)
chains = st.builds(lambda said, answer: "\n".join([*said, f"#### {answer}"]), st.lists(lines, max_size=4), numbers)


@many
@given(chains)
@example("He is at <<2-16=-14>>-14 degrees.\n-14/2=<<-14/2=-7>>-7\n#### -7")  # as a chain of GSM8K goes
@example("3 years * $<<3*30=90>>90,/\nMore.\n#### 90")
def test_rewriting_a_chain_again_changes_nothing(chain):
    assert t5_text(t5_text(chain)) == t5_text(chain)


blanks_and_all = st.text(st.sampled_from("0159 .,:$%-+*/=()[]<>#!?ax\n\t\r\u00a0"), max_size=24)


@settings(max_examples=500, deadline=None)
@given(st.text(max_size=40) | blanks_and_all)
@example("5\t-3")
@example("3 +\n4")
@example("5\n=3")
@example("so 5. -3 left")
def test_rewriting_any_text_again_changes_nothing_unless_lines_that_were_joined_made_an_annotation(text):
    written = t5_text(text)
    assert "\n" not in written
    if "<<" not in written:
        assert t5_text(written) == written


@many
@given(chains)
def test_annotations_and_the_answer_survive_t5s_form(chain):
    back = canonical_text(t5_text(chain), "t5")
    assert equations(back) == equations(TRIVIAL.sub("", chain))
    assert answers.extract(back) == answers.extract(chain)


@many
@given(chains)
def test_every_operator_inside_an_annotation_has_its_blanks_and_every_sign_its_number(chain):
    for inside in re.findall(r"\[([^\]]*)\]", t5_text(chain)):
        assert inside.startswith(" ") and inside == " " + " ".join(inside.split())
        assert not re.search(r"[0-9).][-+*/=]|[-+*/=] [-+][^-+0-9.(]|[*/=][0-9(.]", inside), inside


def test_a_problem_in_t5s_form_is_its_bare_question_and_its_solution_on_one_line():
    written = "6 * 4 is [ 6 * 4 = 24] 24 jars. 24 * $ 2 = $[ 24 * 2 = 48] 48. #### $48"
    assert in_t5_form(TRAYS) == Example(TRAYS, "Six trays of 4: $2 each?", written, "t5")
    for problem in POOL:
        found = in_t5_form(problem)
        assert answers.is_verified(problem, canonical_text(found.completion, "t5"))
        assert found.completion.endswith(f" #### {problem.answer}") and "\n" not in found.completion


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: repr(text[:12]))
def test_hostile_texts_are_rewritten_and_read_in_no_time(text):
    text, started = text[:20000], time.process_time()
    assert "\n" not in t5_text(text)
    assert isinstance(canonical_text(text.replace("<<", "[").replace(">>", "]"), "t5"), str)
    assert time.process_time() - started < 1


# --- the calculator ---


def due(tokenizer, before):
    """What the calculator wants to follow `before` in T5's form, as text; None where it wants nothing."""
    calculator = Calculator(tokenizer, marks("t5"))
    calculator.start(1)
    for token in tokenizer(before, add_special_tokens=False)["input_ids"]:
        calculator.advance([token])
    forced = calculator.forced.get(0)
    return None if forced is None else "".join(map(calculator.text, forced[::-1]))


PROJECTS = build_tokenizer([in_t5_form(p).completion for p in POOL], 400)


@many
@given(expressions, st.booleans())
def test_the_calculator_writes_what_t5s_form_has_behind_the_equals_sign(expression, projects):
    value = calculator.evaluate(expression).value
    text = "" if value is None else t5_text(f"So <<{expression}={calculator.format_number(value)}>>6 eggs")
    before, equals, rest = text.partition("=")
    if not equals or len(before.partition("[")[2]) > calculator.MAX_LENGTH or TRIVIAL.search(text):
        return
    result, closing, _ = rest.partition("]")
    assert due(PROJECTS if projects else tokenizer_of("T5's"), before + "=") == result + closing


# --- the layout of instructions, and which form ---


def test_an_instruction_has_the_question_and_the_canonical_solution():
    found = as_instruction(TRAYS)
    assert found.prompt == (
        "Here is a task in words. Write a response that solves it step by step.\n\n"
        "### Instruction:\nSix trays of 4: $2 each?\n\n### Response:\n"
    )
    assert (found.problem, found.completion, found.form) == (TRAYS, solution(TRAYS), "instruction")
    assert prompts.canonical_text(found.completion, found.form) == found.completion


def test_problems_are_written_in_the_form_that_is_asked_for():
    problems = [TRAYS, *POOL[:3]]
    assert in_surface_form(problems, "canonical") is problems
    assert in_surface_form(problems, "t5") == [in_t5_form(p) for p in problems]
    assert in_surface_form(problems, "instruction") == [as_instruction(p) for p in problems]
    assert prompts.examples(in_surface_form(problems, "t5")) == in_surface_form(problems, "t5")
    with pytest.raises(InputError, match="^Unknown form 'T5'; use canonical, t5, instruction, tagged.$"):
        in_surface_form(problems, "T5")


# --- the real GSM8K ---


@pytest.fixture(scope="module")
def real_gsm8k():
    """(problem, its solution, the same in T5's form) of all 7,473 rows."""
    found = gsm8k.read(REAL / "gsm8k" / "train.jsonl")
    assert len(found) == 7473
    return [(p, solution(p), in_t5_form(p).completion) for p in found]


@needs_real_files
def test_answers_annotations_and_verdicts_of_gsm8k_survive(real_gsm8k):
    bare = 0
    for problem, own, written in real_gsm8k:
        back = canonical_text(written, "t5")
        assert answers.extract(back) == answers.extract(own) == problem.answer
        assert equations(back) == equations(TRIVIAL.sub("", own))
        verdict = answers.is_verified(problem, own)
        if equations(own) and not equations(back):  # nothing but n=n, which says nothing
            bare += 1
        else:
            assert answers.is_verified(problem, back) == verdict
        assert sampling.judge(problem, back)["correct"]
    assert bare == 88


@needs_real_files
def test_rewriting_gsm8k_again_changes_nothing(real_gsm8k):
    assert [written for _, _, written in real_gsm8k if t5_text(written) != written] == []


@needs_real_files
def test_no_operator_inside_an_annotation_of_gsm8k_lacks_its_blanks(real_gsm8k):
    inside = [found for _, _, written in real_gsm8k for found in re.findall(r"\[([^\]]*=[^\]]*)\]", written)]
    assert len(inside) == sum(len(equations(TRIVIAL.sub("", own))) for _, own, _ in real_gsm8k)
    glued = r"[0-9).][-+*/=]|[*/=][0-9(.]|[0-9)][ ]?[-+][0-9(.]"
    assert {x for x in inside if re.search(glued, x.replace("//", " // "))} == set(), "// is no operator of ours"


@needs_real_files
def test_the_calculator_agrees_with_the_annotations_of_gsm8k_in_t5s_form(real_gsm8k):
    inside = {found for _, _, written in real_gsm8k for found in re.findall(r"\[[^\]]*=[^\]]*\]", written)}
    wanted = [text for text in inside if printed_as_computed(text)]
    assert len(wanted) > 0.9 * len(inside)
    for text in wanted:
        before, _, result = text.partition("=")
        assert due(PROJECTS, f"{before}=") == result


def printed_as_computed(text):
    """Is an annotation's value what the calculator would print?"""
    expression, _, stated = text[1:-1].partition("=")
    value = calculator.evaluate(expression).value
    return value is not None and stated.strip() == calculator.format_number(value)
