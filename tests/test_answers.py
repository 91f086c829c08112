"""The one arbiter: what a text answers, whether that is right, whether its steps hold."""

import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.answers import (
    annotations,
    chain,
    check_annotation,
    check_steps,
    extract,
    inspect,
    is_correct,
    is_verified,
    number,
    same,
    truth,
)
from lib.problems import make_problem
from lib.prompts import solution
from lib.tasks import arithmetic, modular_chain, word_problems
from tests.oracles import hostile

many = settings(max_examples=150, deadline=None)

PROBLEMS = {
    "word_problems": word_problems.generate(150, seed=3),
    "modular_chain": modular_chain.generate(150, seed=3),
    "addition": arithmetic.generate(150, "+", n_digits=3, seed=3),
    "multiplication": arithmetic.generate(150, "*", n_digits=3, seed=3),
}
every_task = pytest.mark.parametrize("task", PROBLEMS)


TAGGED = {
    "<answer>6000</answer>": "6000",
    " <answer> 6000 </answer>\n": "6000",
    "6 * 1000 = <answer>6000</answer>": "6000",
    "<answer>6000": "6000",  # an end that lacks is forgiven
    "<answer>1</answer> no, <answer>2</answer>": "2",
    "<answer>1</answer> <answer></answer>": "1",
    "<answer>1 <answer>2</answer>": "2",
    "<answer>6\n000</answer>": "6",
    "The answer is 5. <answer>6</answer>": "6",
    "<answer>6</answer>\n#### 7": "7",
    "<answer></answer>": None,
    "<answer>.</answer>": None,
    "</answer>6": None,
    "answer 6": None,
}


@pytest.mark.parametrize("text", TAGGED)
def test_an_answer_may_stand_in_tags(text):
    assert extract(text) == TAGGED[text]
    if TAGGED[text] and "####" not in text:
        assert "<answer>" + TAGGED[text] not in chain(text)


@many
@given(st.text(alphabet="<>/answer# 1\n", max_size=60))
def test_no_text_with_tags_breaks_the_arbiter(text):
    found = extract(text)
    assert found is None or (found.strip(".") and "\n" not in found and found in text)
    assert text.startswith(chain(text))


def answering(answer, **meta):
    return make_problem("?", [], answer, "made_up", **meta)


# --- extraction ---


@pytest.mark.parametrize(
    "text, answer",
    [
        ("#### 18", "18"),
        ("<<9+9=18>>\n#### 18\n", "18"),
        ("####18", "18"),
        ("##### 18", "18"),
        ("#### 3\n#### 4", "4"),
        ("#### 3\nno, wait\n#### 4\nmore", "4"),
        ("#### 3\n####", "3"),
        ("#### 3\n#### \n", "3"),
        ("#### 3\n#### .\n", "3"),
        ("#### 3\r\n#### \r\n", "3"),
        ("#### 18.", "18."),
        ("#### .5", ".5"),
        ("#### 18 Next, Mia buys", "18 Next, Mia buys"),
        ("#### 18\nMia has 4 apples.", "18"),
        ("#### Tom is a lempus.", "Tom is a lempus."),
        ("all on one line #### 18", "18"),
        ("#### 5 5 6 0", "5 5 6 0"),
        ("", None),
        ("18", None),
        ("### 18", None),
        ("####", None),
        ("####\n18", None),
        ("#### .", None),
        ("####   \n", None),
    ],
)
def test_extract(text, answer):
    assert extract(text) == answer


@pytest.mark.parametrize(
    "text", ["#### 5 #### 7", "#### #### 7", "The answer is 5. No, the answer is 7", "The answer is the answer is 7"]
)
def test_the_last_of_two_answers_on_one_line_counts(text):
    assert extract(text) == "7"


@pytest.mark.parametrize(
    "text, answer",
    [
        ("The answer is 18", "18"),
        (" The answer is 18", "18"),
        ("so\nThe answer is $1,080.\nthanks", "$1,080."),
        ("the answer is: 18", "18"),
        ("The Answer Is:18", "18"),
        ("THE ANSWER IS 18", "18"),
        ("Therefore the answer is 18 apples.", "18 apples."),
        ("The answer is 3\nNo.\nThe answer is 4\nmore", "4"),
        ("The answer is 3\nThe answer is", "3"),
        ("The answer is 3\nThe answer is .\n", "3"),
        ("The answer is Tom is a lempus.", "Tom is a lempus."),
        ("The answer is ", None),
        ("The answer is\n18", None),
        ("The answer was 18", None),
        ("Theanswer is 18", None),
        ("The answer isn't 18", "n't 18"),  # no number, so it agrees with none
    ],
)
def test_without_a_marker_a_stated_answer_is_read(text, answer):
    assert extract(text) == answer
    before, behind = chain(text), text[len(chain(text)) :]
    assert text.startswith(before) and (behind == "") == (answer is None)
    assert answer is None or (behind.lower().startswith("the answer is") and extract(behind) == answer)


@pytest.mark.parametrize(
    "text, answer",
    [
        ("#### 18\nThe answer is 4", "18"),
        ("The answer is 4\n#### 18", "18"),
        ("The answer is 4\n####", None),
        ("####\nThe answer is 4", None),
    ],
)
def test_where_there_is_a_marker_a_stated_answer_does_not_count(text, answer):
    assert extract(text) == answer


@pytest.mark.parametrize(
    "text, before",
    [
        ("a\n#### 3", "a\n"),
        ("a\n#### 3\n#### 4\nb", "a\n#### 3\n"),
        ("a\nThe answer is 3", "a\n"),
        ("The answer is 3\na\nThe answer is 4\nb", "The answer is 3\na\n"),
        ("The answer is 3\na #### 4", "The answer is 3\na "),
        ("no answer", "no answer"),
        ("", ""),
    ],
)
def test_the_chain_is_what_stands_before_the_last_answer(text, before):
    assert chain(text) == before


# --- numbers ---


@pytest.mark.parametrize(
    "text, value",
    [
        ("18", 18),
        ("-3", -3),
        ("+3", 3),
        ("−3", -3),
        ("- 3", -3),
        ("18.", 18),
        ("18.0", 18),
        (".5", Fraction(1, 2)),
        ("-.5", Fraction(-1, 2)),
        ("1,080", 1080),
        ("$1,080.50", Fraction(2161, 2)),
        ("1,234,567", 1234567),
        ("-$5", -5),
        ("$-5", -5),
        ("$ 5", 5),
        ("€5", 5),
        ("20%", 20),
        ("3/4", Fraction(3, 4)),
        ("-3 / 4", Fraction(-3, 4)),
        ("  7  ", 7),
        ("18 apples.", 18),
        ("18.\tNext", 18),
        ("5, and", 5),
        ("0", 0),
    ],
)
def test_number(text, value):
    assert number(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "about 3",
        "three",
        "x",
        "1 2",
        "5 5 6 0",
        "3 1/2",
        "1,00",
        "1,0000",
        "1000,000",
        "1,000,00",
        "1.2.3",
        "1.5,5",
        "3/4.5",
        "3/0",
        "--3",
        "-$-3",
        "$",
        "-",
        ".",
        "%",
        "٣",
        "1" * 16,
    ],
)
def test_malformed_number(text):
    assert number(text) is None


@many
@given(st.integers(-(10**12), 10**12), st.sampled_from(["{}", "{:,}", "{}.", "{:,}.0", "{} apples", "{}%", " {:,}\n"]))
def test_a_whole_number_is_read_however_it_is_written(value, form):
    assert number(form.format(value)) == value


@many
@given(st.fractions(-(10**6), 10**6, max_denominator=10**6))
def test_a_fraction_is_read_exactly(value):
    assert number(f"{value.numerator}/{value.denominator}") == value


@many
@given(st.decimals(-(10**6), 10**6, places=3))
def test_a_decimal_is_read_exactly(value):
    assert number(f"{value:,f}") == Fraction(value)


def test_a_fraction_with_an_endless_divisor_is_no_number():
    assert number("1/" + "1" * 5000) is None


def test_blanks_after_a_sign_are_read_in_linear_time():
    started = time.process_time()
    assert number("-" + " " * 5000 + "x") is None
    assert time.process_time() - started < 0.1


# --- kinds of answers ---


@pytest.mark.parametrize(
    "text, value",
    [
        ("True", "true"),
        ("yes", "true"),
        ("YES.", "true"),
        (" false. ", "false"),
        ("No", "false"),
        ("nope", None),
        ("true or false", None),
        ("1", None),
        ("", None),
    ],
)
def test_truth(text, value):
    assert truth(text) == value


@pytest.mark.parametrize(
    "gold, answer, agree",
    [
        ("18", "18", True),
        ("18", "18.0", True),
        ("18", "$18.", True),
        ("18", "18 apples", True),
        ("1,080", "1080", True),
        ("0.5", "1/2", True),
        ("18", "18.01", False),
        ("18", "-18", False),
        ("18", "180", False),
        ("18", "eighteen", False),
        ("18", "about 18", False),
        ("True", "yes", True),
        ("no", "False.", True),
        ("True", "False", False),
        ("True", "it is", False),
        ("True", "1", False),
        ("Tom is a lempus.", "tom is a  lempus", True),
        ("Tom is a lempus.", "Tom is a scrompus.", False),
        ("Tom is a lempus.", "lempus", False),
        ("5 5 6 0", "5 5 6 0", True),
        ("5 5 6 0", "5 5 6 1", False),
        ("5 5 6 0", "5 5 6 0 0", False),
        ("5 5 6 0", "5560", False),
    ],
)
def test_the_gold_answer_decides_the_kind(gold, answer, agree):
    assert same(gold, answer) is agree
    assert is_correct(answering(gold), f"so\n#### {answer}") is agree


@pytest.mark.parametrize(
    "gold, answer, agree",
    [
        ("100", "125", True),
        ("100", "75", True),
        ("100", "125.01", False),
        ("100", "74.99", False),
        ("-100", "-125", True),
        ("-100", "-125.01", False),
        ("-100", "100", False),
        ("0", "0.0", True),
        ("0", "0.01", False),
        ("Tom", "Tim", False),
    ],
)
def test_tolerance_is_relative_to_the_gold_number(gold, answer, agree):
    assert same(gold, answer, relative_tolerance=0.25) is agree
    assert is_correct(answering(gold, relative_tolerance=0.25), f"#### {answer}") is agree


def test_the_last_answer_counts_and_none_is_wrong():
    problem = answering("18")
    assert is_correct(problem, "#### 17\n#### 18")
    assert not is_correct(problem, "#### 18\n#### 17")
    assert not is_correct(problem, "18")
    assert not is_correct(problem, "")


# --- steps: annotations ---


@pytest.mark.parametrize(
    "text, found",
    [
        ("<<1+1=2>>", [("1+1", "2")]),
        ("so <<1+1=2>>2 and <<2*3=6>>6", [("1+1", "2"), ("2*3", "6")]),
        ("<<1+1=2=2>>", [("1+1", "2=2")]),
        ("<<1+1\n=2>>", []),
        ("<<1+1=2\n>>", []),
        ("<<1+1>>", [("1+1", "")]),
        ("<<1+1=2>", []),
        ("<<1+<<2=2>>", [("1+<<2", "2")]),
        ("<<=>>", [("", "")]),
    ],
)
def test_annotations(text, found):
    assert annotations(text) == found


@pytest.mark.parametrize(
    "expression, stated, reason",
    [
        ("48/2", "24", None),
        ("1/3", "0.33", None),
        ("1/4", "1/4", None),
        ("10*6", "60.00", None),
        ("1,000*2", "2,000", None),
        ("48/2", "25", "the value is 24"),
        ("1/3", "0.34", "the value is 0.33"),
        ("7/2", "4", "the value is 3.5"),
        ("1+1", "2=2", "the value is 2"),
        ("1+1", "", "the value is 2"),
        ("1+1", "two", "the value is 2"),
        ("10/0", "0", "division by zero"),
        ("560//10", "56", "syntax"),
        ("2^3", "8", "character"),
        ("", "0", "empty"),
    ],
)
def test_annotation_holds_or_says_why_not(expression, stated, reason):
    assert check_annotation(expression, stated) == (f"<<{expression}={stated}>>", reason is None, reason)


APPLES = make_problem("?", ["4 boxes: <<4*6=24>>24", "less 3: <<24-3=21>>21"], "21", "made_up")


@pytest.mark.parametrize(
    "text, ok, verified",
    [
        ("<<4*6=24>>\n<<24-3=21>>\n#### 21", [True, True], True),
        ("<<3*7=21>>\n#### 21", [True], True),
        ("<<4*6=24>> <<24-3=21>> #### 21.", [True, True], True),
        ("<<4*6=25>>\n<<24-3=21>>\n#### 21", [False, True], False),
        ("<<4*6=24>>\n<<24-3=22>>\n#### 21", [True, False], False),
        ("<<4*6=24>>\n<<24-3=21>>\n#### 22", [True, True], False),
        ("<<4*6=24>>\n<<24-3=21>>", [True, True], False),
        ("4*6=24\n24-3=21\n#### 21", [], False),
        ("#### 21", [], False),
        ("", [], False),
        ("<<4*6=24>>\n<<24-3=21>>\n#### 21\nNext <<1+1=3>>", [True, True], True),
        ("4 * 6 = <<4*6=24>>24\n<<24-3=21>>\nThe answer is 21", [True, True], True),
        ("<<4*6=25>>\n<<24-3=21>>\nThe answer is 21", [False, True], False),
        ("<<4*6=24>>\n<<24-3=21>>\nThe answer is 22", [True, True], False),
        ("<<4*6=24>>\n<<24-3=21>>\nThe answer is 21\nNext <<1+1=3>>", [True, True], True),
        ("The answer is 21", [], False),
    ],
)
def test_annotated_chains(text, ok, verified):
    assert [step.ok for step in check_steps(APPLES, text)] == ok
    assert is_verified(APPLES, text) is verified


def test_a_problem_without_steps_needs_only_its_answer():
    assert is_verified(answering("7"), "#### 7")
    assert not is_verified(answering("7"), "#### 8")


def test_a_wrong_step_between_two_answers_is_not_verified():
    assert not is_verified(APPLES, "<<4*6=24>>\n#### 24\n<<24-3=5>>\n#### 21")


def test_annotations_are_checked_as_such_where_the_problem_has_no_steps():
    assert is_verified(answering("7"), "<<3+4=7>>\n#### 7")


def test_inspection_tells_which_annotations_can_be_evaluated_and_which_agree():
    problem = make_problem("?", ["<<1/3=0.33>> and <<7/2=4>>", "<<560//10=56>>"], "56", "made_up")
    assert inspect(problem) == {
        "problem": problem.id,
        "answer_extracted": True,
        "annotations": [
            {"annotation": "<<1/3=0.33>>", "evaluated": True, "agrees": True, "reason": None},
            {"annotation": "<<7/2=4>>", "evaluated": True, "agrees": False, "reason": "the value is 3.5"},
            {"annotation": "<<560//10=56>>", "evaluated": False, "agrees": False, "reason": "syntax"},
        ],
    }
    assert not inspect(answering(" . "))["answer_extracted"]
    assert not inspect(answering("Tom is a lempus."))["answer_extracted"]
    assert inspect(answering("Tom is a lempus.", answer_kind="text"))["answer_extracted"]


# --- steps: chains of which each step has one right form ---

CHAIN = modular_chain.problem(3, (("+", 4), ("*", 2), ("-", 1), ("+", 3)), 5)  # r2 r4 r3 r1
PRODUCT = arithmetic.problem(24, 13, "*", 2, 2)


@pytest.mark.parametrize(
    "text, reasons, verified",
    [
        ("r2\nr4\nr3\nr1\n#### 1", [None] * 4, True),
        ("\n r2 \n\nr4\nr3\nr1\n\n#### 1", [None] * 4, True),
        ("r2\nr0\nr3\nr1\n#### 1", [None, "expected r4", None, None], False),
        ("r4\nr2\nr3\nr1\n#### 1", ["expected r2", "expected r4", None, None], False),
        ("r4\nr3\nr1\n#### 1", ["expected r2", "expected r4", "expected r3", "missing: r1"], False),
        ("r2\nr4\nr3\nr1\nr1\n#### 1", [None] * 4 + ["one step too many"], False),
        ("r2 r4 r3 r1\n#### 1", ["expected r2", "missing: r4", "missing: r3", "missing: r1"], False),
        ("r2\nr4\nr3\nr1\n#### 2", [None] * 4, False),
        ("#### 1", [f"missing: {step}" for step in CHAIN.steps], False),
        ("r2\nr4\nr3\nr1\nThe answer is 1", [None] * 4, True),
        ("r2\nr0\nr3\nr1\nThe answer is 1", [None, "expected r4", None, None], False),
        ("The answer is 1", [f"missing: {step}" for step in CHAIN.steps], False),
    ],
)
def test_modular_chain_steps(text, reasons, verified):
    steps = check_steps(CHAIN, text)
    assert [step.reason for step in steps] == reasons
    assert [step.ok for step in steps] == [reason is None for reason in reasons]
    assert is_verified(CHAIN, text) is verified


@pytest.mark.parametrize(
    "text, ok, verified",
    [
        ("2 7 0\n+ 0 4 2 0\n#### 2 1 3 0", [True, True], True),
        ("2  7 0\n+ 0 4 2 0\n#### 2 1 3 0.", [True, True], True),
        ("2 7 1\n+ 0 4 2 0\n#### 2 1 3 0", [False, True], False),
        ("2 7 0\n0 4 2 0\n#### 2 1 3 0", [True, False], False),
        ("2 7 0\n+ 0 4 2 0\n#### 2 1 3", [True, True], False),
        ("2 7 0\n+ 0 4 2 0\n#### 312", [True, True], False),
    ],
)
def test_multiplication_steps(text, ok, verified):
    assert [step.ok for step in check_steps(PRODUCT, text)] == ok
    assert is_verified(PRODUCT, text) is verified


# --- generated problems ---


@every_task
def test_own_solution_is_verified_and_another_answer_is_not(task):
    for problem in PROBLEMS[task]:
        steps = check_steps(problem, solution(problem))
        assert len(steps) == len(problem.steps) and all(step.ok for step in steps)
        assert is_verified(problem, solution(problem))
        assert not is_correct(problem, f"#### {problem.answer}9")
        assert not is_verified(problem, f"#### {problem.answer}")


@every_task
@many
@given(st.data())
def test_one_corrupted_value_is_caught_and_named_at_its_step(task, data):
    problem = data.draw(st.sampled_from(PROBLEMS[task]))
    i = data.draw(st.integers(0, len(problem.steps) - 1))
    right = problem.steps[i]
    values = right.partition("=")[2] or right  # an annotation's expression stays as it is
    at = len(right) - len(values) + data.draw(st.sampled_from([j for j, c in enumerate(values) if c.isdigit()]))
    digit = data.draw(st.sampled_from([d for d in "0123456789" if d != right[at]]))
    wrong = right[:at] + digit + right[at + 1 :]

    text = "\n".join([*problem.steps[:i], wrong, *problem.steps[i + 1 :], f"#### {problem.answer}"])
    steps = check_steps(problem, text)
    assert [j for j, step in enumerate(steps) if not step.ok] == [i]
    assert steps[i].text == wrong
    told = values.removesuffix(">>") if task == "word_problems" else right
    assert steps[i].reason.endswith(f" {told}")
    assert is_correct(problem, text) and not is_verified(problem, text)


# --- any text at all ---

stated = st.lists(st.sampled_from(["The answer is", " ", "18", "-", ".", ":", "####", "\n", "so"]), max_size=12)
loose = st.one_of(st.text(), st.text("0123456789.,-+/$%#<>=r \n", max_size=60), stated.map("".join))


@many
@given(loose)
def test_arbitrary_text_never_raises(text):
    answer = extract(text)
    assert answer is None or ("\n" not in answer and answer == answer.strip() != "")
    assert "####" in text or "the answer is" in text.lower() or answer is None
    assert text.startswith(chain(text)) and (answer is None or answer in text[len(chain(text)) :] or "####" in text)
    assert number(text) is None or isinstance(number(text), Fraction)
    assert truth(text) in (None, "true", "false")
    assert same(text, text)


@many
@given(loose, st.sampled_from(sorted(PROBLEMS)))
def test_arbitrary_text_has_steps_that_hold_or_a_reason(text, task):
    for completion in (text, f"#### {text}", f"<<{text}>>", f"<<{text}=1>>\n#### 1"):
        steps = check_steps(PROBLEMS[task][0], completion)
        assert all(step.ok == (step.reason is None) for step in steps)
        assert is_verified(PROBLEMS[task][0], completion) in (True, False)


@pytest.mark.parametrize("text", hostile.TEXTS, ids=range(len(hostile.TEXTS)))
def test_hostile_text_ends_at_once(text):
    started = time.process_time()
    for completion in (text, f"#### {text}", f"<<1+1=2>>\n{text}\n#### 2"):
        assert number(completion) is None or isinstance(number(completion), Fraction)
        for task in ("word_problems", "modular_chain"):
            is_verified(PROBLEMS[task][0], completion)
            assert len(check_steps(PROBLEMS[task][0], completion)) <= len(completion) + 4
    assert time.process_time() - started < 2
