"""New problems: a verifier that trusts nothing, repairs arithmetic, keeps no copy and no test problem, and adds up."""

import json
import re
import time
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lib import answers, calculator, sft, synthetic
from lib.errors import InputError
from lib.problems import canonical, make_problem, split
from lib.prompts import solution
from lib.synthetic import LEDGER, Config, Judged, check, judge, parse, repair, sift, write, writing
from lib.tasks import arithmetic, boolean, modular_chain, word_problems
from tests.oracles import hostile

many = settings(max_examples=100, deadline=None)

WORDS = word_problems.generate(400, 1, 5, 60, seed=11)
SOLVED = {
    "modular_chain": modular_chain.generate(60, seed=11),
    "addition": arithmetic.generate(60, "+", 3, seed=11),
    "multiplication": arithmetic.generate(60, "*", 2, seed=11),
}
LIKE = make_problem("Who?", ["<<1+1=2>>"], "2", "gsm8k")


def draft(problem):
    """A problem as a writer writes it."""
    (written,) = writing([problem])
    return written.completion


def shaped(question, *steps, answer):
    return make_problem(question, steps, answer, "gsm8k")


# --- what a writer learns and writes ---


@pytest.mark.parametrize("task", ["word_problems", *SOLVED])
def test_a_draft_is_read_back_as_the_problem_that_it_states(task):
    problems = WORDS[:60] if task == "word_problems" else SOLVED[task]
    for problem in problems:
        (written,) = writing([problem])
        assert (written.problem, written.prompt, written.form) == (problem, synthetic.REQUEST, "writing")
        found = parse(f"\n {written.completion} \n", problems[0])
        assert (found.question, found.steps, found.answer) == (problem.question, problem.steps, problem.answer)
        assert (found.id, found.source) == (problem.id, problem.source), "it is known by its question"
        assert found.meta == {key: value for key, value in problems[0].meta.items() if key != "canonical"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "How many?",
        "How many?\n<<1+1=2>>",
        "How many?\n#### 2",
        "How many?\n\n#### 2",
        "\n<<1+1=2>>\n#### 2"[1:] + "\n#### 2",
        "How many?\n<<1+1=2>>\n####",
        "How many?\n<<1+1=2>>\n#### .",
        "How many?\n<<1+1=2>>\n#### 2\nNext",
        "How many?\n<<1+1=2>>\n#### 2\n#### 2",
        "How many? #### 2\n<<1+1=2>>",
        "How many? #### 2\n<<1+1=2>>\nThe answer is 2",
        "How many?\n<<1+1=2>>\nThe answer is 2",
        "#### 2",
        "####",
    ],
)
def test_a_text_that_states_no_problem_is_none(text):
    assert parse(text, LIKE) is None
    assert judge(text, LIKE) == Judged(None, 0.0, False, {})


def test_blank_lines_and_blanks_around_lines_are_no_steps():
    found = parse("  How many? \n\n <<1+1=2>> \n\n so\n#### 2 \n\n", LIKE)
    assert (found.question, found.steps, found.answer) == ("How many?", ("<<1+1=2>>", "so"), "2")


# --- checks, by hand ---

ASKED = "Ann has 3 red pens and 4 blue pens, and gives 2 away. How many?"


@pytest.mark.parametrize(
    "steps, answer, shares",
    [
        (["<<3+4=7>>", "<<7-2=5>>"], "5", (1, 1, 1, 1, 1)),
        (["<<3+4-2=5>>"], "5", (1, 1, 1, 1, 1)),
        (["<<3+4=7>>", "<<7-2=6>>"], "6", (1 / 2, 1, 1, 1, 1)),
        (["<<3+4=7>>", "<<7-2=5>>"], "6", (1, 0, 1, 1, 1)),
        (["<<3+4=7>>", "<<7-1=6>>"], "6", (1, 1, 3 / 4, 2 / 3, 1)),
        (["<<3+4=7>>"], "7", (1, 1, 1, 2 / 3, 1)),
        (["<<7-2=5>>", "<<3+4=7>>"], "7", (1, 1, 3 / 4, 1, 0)),  # 7 is used before it is known, 5 never
        (["<<3+4=7>>", "<<3+2=5>>", "<<4-2=2>>"], "2", (1, 1, 1, 1, 0)),
        (["<<3+4=7>>", "<<7-2=5>>", "<<4-2=2>>"], "2", (1, 1, 1, 1, 1 / 2)),
        (["<<8+9=17>>"], "17", (1, 1, 0, 0, 1)),
        (["<<3/0=3>>"], "3", (0, 1, 1 / 2, 1 / 3, 1)),
        (["<<3+4>>"], "7", (0, 0, 1, 2 / 3, 1)),
        (["three and four"], "7", (0, 0, 0, 0, 1)),
    ],
)
def test_the_shares_of_a_score(steps, answer, shares):
    found = check(shaped(ASKED, *steps, answer=answer))
    assert list(found) == ["steps_hold", "answer_agrees", "operands_traceable", "numbers_used", "results_used"]
    assert tuple(found.values()) == pytest.approx(shares)


@pytest.mark.parametrize(
    "question, step",
    [
        ("Ann has three pens and 4 caps?", "<<3*4=12>>"),
        ("Ann has 4 pens, Ben twice as many?", "<<4*2=8>>"),
        ("Half of 8 pens?", "<<8/2=4>>"),
        ("A dozen eggs for 3?", "<<12*3=36>>"),
        ("Two dozens of 3?", "<<12*2*3=72>>"),
        ("20% of 50?", "<<20/100*50=10>>"),
        ("5 percent of 40?", "<<5*40/100=2>>"),
        ("3 hours of 2?", "<<60*3*2=360>>"),
        ("$1,200.50 and 1?", "<<1200.50+1=1201.5>>"),
        ("It costs 3. She has 10.", "<<10-3=7>>"),
        ("It costs .5 and 1.", "<<1+.5=1.5>>"),
    ],
)
def test_an_operand_is_traceable_to_a_number_in_digits_or_in_words(question, step):
    found = check(shaped(question, step, answer=answers.annotations(step)[0][1]))
    assert found == dict.fromkeys(found, 1.0)


def test_what_stands_nowhere_lowers_the_score_and_so_does_what_is_not_used():
    for task in (WORDS[:100],):
        for problem in task:
            unused = replace(problem, question=f"It is 7077 o'clock. {problem.question}")
            foreign = replace(problem, steps=(*problem.steps, f"<<{problem.answer}+5077=5077>>"))
            assert check(problem) == dict.fromkeys(check(problem), 1.0)
            assert check(unused)["numbers_used"] < 1 and check(foreign)["operands_traceable"] < 1
            for worse in (unused, foreign):
                assert judge(draft(worse), LIKE).score < 1


def test_the_score_is_the_product_of_the_shares():
    found = judge(draft(shaped(ASKED, "<<3+4=7>>", "<<7-1=6>>", answer="6")), LIKE)
    assert found.score == pytest.approx(3 / 4 * 2 / 3) and found.checks["operands_traceable"] == 3 / 4


# --- repair ---


@pytest.mark.parametrize("problem", [WORDS[i] for i in range(0, 400, 8)], ids=lambda p: p.id)
def test_a_right_solution_scores_1_and_is_not_touched(problem):
    found = judge(draft(problem), WORDS[0])
    assert (found.score, found.repaired, found.checks) == (1.0, False, dict.fromkeys(check(problem), 1.0))
    assert (found.problem.question, found.problem.steps) == (problem.question, problem.steps)
    assert repair(problem) == problem


def test_every_right_solution_scores_1():
    assert all(judge(draft(p), WORDS[0]).score == 1.0 for p in WORDS)


def numbers(problem):
    return set(re.findall(r"[0-9.]+", " ".join((problem.question, *problem.steps, problem.answer))))


@st.composite
def corrupted(draw):
    """(a right problem, the same with one result wrong): later steps go on with the wrong one, or with the right."""
    problem = draw(st.sampled_from(WORDS))
    at = draw(st.integers(0, len(problem.steps) - 1))
    wrong, notices = str(draw(st.integers(0, 99))), draw(st.booleans())
    behind = draw(st.sampled_from(["", "{}", "{} in all"]))
    steps, value = [], None
    for i, step in enumerate(problem.steps):
        ((expression, stated),) = answers.annotations(step)
        if value is not None and notices:
            expression = re.sub(r"^[0-9]+", value, expression)
            stated = calculator.format_number(calculator.evaluate(expression).value)
        stated = wrong if i == at else stated
        value = stated if i >= at else None
        steps.append(f"so <<{expression}={stated}>>" + behind.format(stated))
    answer = stated if notices or draw(st.booleans()) else problem.answer
    right = [f"so {step}" + behind.format(answers.annotations(step)[0][1]) for step in problem.steps]
    return replace(problem, steps=right), replace(problem, steps=steps, answer=answer)


@many
@given(corrupted())
def test_after_repair_every_step_holds_and_the_answer_follows(case):
    _, broken = case
    found = repair(broken)
    checks = check(found)
    assert checks["steps_hold"] == checks["answer_agrees"] == 1
    assert answers.is_verified(found, solution(found))
    assert found.answer == answers.annotations(found.steps[-1])[0][1]
    assert found.question == broken.question and len(found.steps) == len(broken.steps)
    assert repair(found) == found


@many
@given(corrupted())
def test_a_wrong_result_that_can_be_told_from_all_other_numbers_is_undone(case):
    """In its annotation, in the text right behind it, where later steps use it, and in the answer."""
    right, broken = case
    wrong = {number for number in numbers(broken) if number not in numbers(right)}
    stated = [[answers.annotations(step)[0][1] for step in p.steps] for p in (right, broken)]
    if all(said == meant or said in wrong for meant, said in zip(*stated, strict=True)):
        assert repair(broken) == right


@pytest.mark.parametrize(
    "question, steps, answer, mended, follows",
    [
        # the text behind
        ("6 of 4?", ["<<6*4=25>>25 pens"], "25", ["<<6*4=24>>24 pens"], "24"),
        ("6 of 4?", ["<<6*4=25>>25."], "25", ["<<6*4=24>>24."], "24"),
        ("6 of 4?", ["<<6*4=25>> 25 pens"], "25", ["<<6*4=24>> 25 pens"], "24"),
        ("1,000 twice?", ["<<1,000*2=2,100>>2,100"], "2,100", ["<<1,000*2=2000>>2000"], "2000"),
        # what is right however it is rounded or written stays
        ("1 for 3?", ["<<1/3=0.333>>0.333"], "0.333", ["<<1/3=0.333>>0.333"], "0.333"),
        ("1 for 3?", ["<<1/3=0.5>>0.5"], "0.5", ["<<1/3=0.33>>0.33"], "0.33"),
        ("6 of 4?", ["<<6*4=24.0>>"], "24", ["<<6*4=24.0>>"], "24.0"),
        # later uses
        ("6 of 4, less 1?", ["<<6*4=25>>", "<<25-1=24>>"], "24", ["<<6*4=24>>", "<<24-1=23>>"], "23"),
        ("6 of 4, less 1?", ["<<6*4=25>>", "<<24-1=23>>"], "23", ["<<6*4=24>>", "<<24-1=23>>"], "23"),
        # a wrong result that the question names is that number where it comes again
        ("2 and 3, by 6?", ["<<2+3=6>>", "<<5*6=30>>"], "30", ["<<2+3=5>>", "<<5*6=30>>"], "30"),
        ("2 and 3, by 6.", ["<<2+3=6>>", "<<5*6=30>>"], "30", ["<<2+3=5>>", "<<5*6=30>>"], "30"),
        # a number means the last result that was written so
        (
            "14 and 8, by 2, and 5?",
            ["<<14+8=11>>", "<<22/2=11>>", "<<11+5=16>>"],
            "16",
            ["<<14+8=22>>", "<<22/2=11>>", "<<11+5=16>>"],
            "16",
        ),
        # two results wrong
        ("6 of 4, by 2?", ["<<6*4=25>>", "<<25/2=12>>"], "12", ["<<6*4=24>>", "<<24/2=12>>"], "12"),
        ("6 of 4, by 2?", ["<<6*4=25>>", "<<25/2=13>>"], "13", ["<<6*4=24>>", "<<24/2=12>>"], "12"),
        # nothing to compute, nothing to mend
        ("By 0?", ["<<1/0=3>>"], "3", ["<<1/0=3>>"], "3"),
        ("Six?", ["six"], "6", ["six"], "6"),
        # an answer that was no result stays, for the checks to see
        ("6 of 4?", ["<<6*4=25>>"], "7", ["<<6*4=24>>"], "7"),
    ],
)
def test_repairs_by_hand(question, steps, answer, mended, follows):
    found = repair(shaped(question, *steps, answer=answer))
    assert (list(found.steps), found.answer) == (mended, follows)
    assert found.question == question


def test_a_repaired_draft_says_so_and_one_beyond_repair_does_not_pass():
    found = judge("6 boxes of 4?\n<<6*4=25>>25\n#### 25", LIKE)
    assert (found.score, found.repaired, found.problem.answer) == (1.0, True, "24")
    found = judge("6 boxes of 4?\n<<6/0=25>>25\n#### 25", LIKE)
    assert found.score == 0 and found.repaired


# --- sources that can be solved ---


@pytest.mark.parametrize("task", SOLVED)
def test_where_a_question_can_be_solved_its_draft_is(task):
    problems = SOLVED[task]
    for problem in problems:
        right = judge(draft(problem), problems[0])
        assert right == Judged(problem, 1.0, False, {"solved": 1.0})
        wrong = judge(draft(replace(problem, steps=("r9", *problem.steps[1:]), answer="9")), problems[0])
        assert wrong == Judged(problem, 1.0, True, {"solved": 1.0})


@pytest.mark.parametrize("task", SOLVED)
def test_a_question_that_is_none_of_its_source_does_not_pass(task):
    for question in ("How many?", "v1 / n2 ?", "1 2 - 3"):
        found = judge(f"{question}\nr1\n#### 1", SOLVED[task][0])
        assert found.problem is not None and found.score == 0


# --- any text at all ---

pieces = st.lists(
    st.sampled_from(
        ["<<", ">>", "=", "####", "\n", " ", "1", "24", "1.2.3", ".", ",", "/0", "+", "*", "v1", "n2", "?", "x"]
    ),
    max_size=25,
).map("".join)
anything = st.one_of(st.text(), pieces)
EVERY_LIKE = [LIKE, WORDS[0], *(problems[0] for problems in SOLVED.values())]


def forms(text):
    """A text as a draft, and inside one: as its question, a step, an expression, a result and its answer."""
    return [
        text,
        f"{text}\n<<1+1=2>>\n#### 2",
        f"How many of 2?\n{text}\n#### 2",
        f"How many of 2?\n<<{text}=2>>\n#### 2",
        f"How many of 2?\n<<1+1={text}>>{text}\n#### 2",
        f"How many of 2?\n<<1+1=2>>\n#### {text}",
    ]


def sound(text, like):
    """Judged and sifted without an exception, to a score in [0, 1] and one fate."""
    for shown in forms(text):
        found = judge(shown, like)
        assert 0 <= found.score <= 1 and (found.problem is not None or found.score == 0)
        records, ledger, fates = sift(Config(quality_threshold=0), [shown], [like], [like])
        assert ledger["drawn"] == len(fates) == 1 and ledger["kept"] == len(records)


@many
@given(anything, st.sampled_from(EVERY_LIKE))
@example("1.2.3+4", LIKE)
@example(".+4", WORDS[0])
@example("9" * 5000, LIKE)
@example(f"v{'9' * 5000} + n1 ?", SOLVED["modular_chain"][0])
@example(f"{'9 ' * 5000}+ 1", SOLVED["addition"][0])
def test_no_text_of_a_model_raises(text, like):
    sound(text, like)


@pytest.mark.parametrize("text", hostile.TEXTS, ids=range(len(hostile.TEXTS)))
def test_hostile_text_ends_at_once(text):
    """As long as a draft can be, and longer than a number that Python reads."""
    started = time.process_time()
    for like in EVERY_LIKE:
        sound(text[:6000], like)
    assert time.process_time() - started < 3


# --- sifting ---

KNOWN, HELD, FRESH = WORDS[:20], WORDS[20:30], WORDS[30:60]


def reworded(problem):
    """The same chain in other words, the operands of its first sum or product the other way round."""
    first, *rest = problem.steps
    first = re.sub(r"<<(\d+)([+*])(\d+)=", r"<<\3\2\1=", first)
    digits = " ".join(re.findall(r"\d+", " ".join(problem.steps)))
    return replace(problem, question=f"Now {digits} what?", steps=(first, *rest))


DRAFTS = {
    "kept": [draft(p) for p in FRESH],
    "repaired": [draft(p).replace(f"={p.answer}>>", "=7077>>").replace(f"#### {p.answer}", "#### 7077") for p in FRESH],
    "duplicate": [draft(p) for p in KNOWN] + [draft(replace(p, question=f" {p.question.upper()} ")) for p in KNOWN],
    "leaked": [draft(p) for p in HELD] + [draft(reworded(p)) for p in HELD],
    "below": [draft(replace(p, question=f"At 9077 of 8077: {p.question}")) for p in FRESH if len(p.steps) < 3],
    "garbage": ["", "Who?", "####", "Who?\nme\n#### me\nyou"],
}
mixtures = st.lists(st.sampled_from([text for texts in DRAFTS.values() for text in texts]), max_size=30)


@pytest.mark.parametrize(
    "kind, fate",
    [
        ("kept", "kept"),
        ("repaired", "kept"),
        ("duplicate", "duplicate"),
        ("leaked", "leaked"),
        ("garbage", "not parsed"),
    ],
)
def test_each_kind_of_draft_meets_its_fate(kind, fate):
    for text in DRAFTS[kind]:
        _, ledger, (found,) = sift(Config(), [text], KNOWN, HELD)
        assert found["fate"] == fate, text
        assert ledger["drawn"] == 1 and ledger["repaired"] == (kind == "repaired")


@pytest.mark.parametrize(
    "kind, words",
    [
        ("kept", "all steps hold"),
        ("repaired", "was wrong, and was computed anew"),
        ("duplicate", "known already"),
        ("leaked", "held back"),
        ("below", "all steps hold; numbers_used 0."),
        ("garbage", "no question with steps"),
        ("beyond repair", "could not be repaired"),
    ],
)
def test_each_fate_says_why(kind, words):
    for text in {**DRAFTS, "beyond repair": ["He has 3.\nSo it is <<1/0=3>>3.\n#### 3"]}[kind]:
        (row,) = sift(Config(), [text], KNOWN, HELD)[2]
        assert words in synthetic.why(row), (text, synthetic.why(row))


@pytest.mark.parametrize("source", ["modular_chain", "boolean", "addition", "word_problems"])
@pytest.mark.parametrize("task", ["modular_chain", "boolean", "addition"])
def test_problems_of_one_task_are_not_learned_as_anothers(source, task):
    make = {
        "boolean": boolean.generate,
        "addition": lambda n: arithmetic.generate(n, "+"),
        "modular_chain": modular_chain.generate,
    }
    drafts = [draft(p) for p in {**make, "word_problems": word_problems.generate}[source](20)]
    like = make[task](60)[40:]
    records, _, fates = sift(Config(num_samples_to_generate=99), drafts, like, [])
    assert bool(records) == (source == task)
    assert source == task or all(synthetic.why(row) == "is no question of its task" for row in fates)


def test_a_draft_that_was_solved_anew_says_so():
    p, *more = modular_chain.generate(30)
    wrong = draft(replace(p, steps=("r9",) * 4))
    (row,) = sift(Config(), [wrong], more[:10], more[10:])[2]
    assert (
        row["fate"] == "kept" and synthetic.why(row) == "chain or answer were not the question's, which was solved anew"
    )


@pytest.mark.parametrize(
    "tgt, kept",
    [
        ("<<2*3=7>>7\n#### 7", True),
        ("<<2*3=7>>7\n#### 6", True),
        ("<<2*3=6>>6\n#### 7", False),  # which of the two is meant nobody knows
    ],
)
def test_a_wrong_step_or_another_answer_is_never_kept_as_it_stands(tgt, kept):
    draft = f"He has 2 bags of 3.\n{tgt}"
    p = parse(draft, KNOWN[0])
    assert min(check(p)["steps_hold"], check(p)["answer_agrees"]) == 0
    records, ledger, _ = sift(Config(), [draft], KNOWN, HELD)
    assert [(r["tgt"], r["answer"], r["corrected"]) for r in records] == [("<<2*3=6>>6\n#### 6", "6", True)] * kept
    assert ledger["below the threshold"] == (not kept)


def test_the_threshold_decides_what_is_good_enough():
    for text in DRAFTS["below"]:
        score = judge(text, KNOWN[0]).score
        assert 0 < score < 0.8
        for threshold, fate in ((0.0, "kept"), (score, "kept"), (min(1, score + 1e-6), "below the threshold")):
            assert sift(Config(quality_threshold=threshold), [text], KNOWN, HELD)[2][0]["fate"] == fate


@many
@given(mixtures, st.integers(1, 8))
def test_the_ledger_adds_up_and_nothing_known_or_held_back_is_kept(texts, wanted):
    config = Config(num_samples_to_generate=wanted, round=3)
    records, ledger, fates = sift(config, texts, KNOWN, HELD)
    assert list(ledger) == list(LEDGER)
    assert ledger["drawn"] == len(fates) <= len(texts)
    assert ledger["kept"] == len(records) <= wanted
    assert len(fates) == len(texts) or len(records) == wanted, "it ends when enough is kept, and not before"
    ends = ("duplicate", "leaked", "below the threshold", "kept")
    assert ledger["parsed"] == sum(ledger[name] for name in ends) <= ledger["drawn"]
    assert ledger["verified"] + ledger["repaired"] <= ledger["parsed"]
    for name in ends:
        assert ledger[name] == sum(found["fate"] == name for found in fates)
    assert [found["text"] for found in fates] == texts[: len(fates)]
    known, held = ({synthetic.normal(p.question) for p in problems} for problems in (KNOWN, HELD))
    chains = {synthetic.chain_form(p) for p in HELD}
    questions = [synthetic.normal(row["src"]) for row in records]
    assert len(set(questions)) == len(questions) and not set(questions) & (known | held)
    for row in records:
        assert list(row) == ["id", "src", "tgt", "answer", "score", "checks", "corrected", "round"]
        found = parse(f"{row['src']}\n{row['tgt']}", KNOWN[0])
        assert answers.is_verified(found, row["tgt"]) and synthetic.chain_form(found) not in chains
        assert row["score"] >= 0.8 and row["round"] == 3 and found.answer == row["answer"]
        assert row["corrected"] in (True, False)


def test_a_question_is_known_whatever_its_case_blanks_and_final_marks():
    same = ["How many?", " how  MANY ", "How many.", "How\tmany ?", "how many!"]
    assert {synthetic.normal(text) for text in same} == {"how many"}
    assert synthetic.normal("How many 3?") != synthetic.normal("How many 4?")


@pytest.mark.parametrize("task", ["modular_chain", "addition", "word_problems"])
def test_new_problems_that_share_no_canonical_form_with_a_test_problem_are_not_called_leaked(task):
    """Many chains modulo 5 have the same results; they are other problems all the same."""
    generate = {
        "modular_chain": lambda n, seed: modular_chain.generate(n, seed=seed),
        "addition": lambda n, seed: arithmetic.generate(n, "+", 3, seed),
        "word_problems": lambda n, seed: word_problems.generate(n, 2, 4, 60, seed),
    }[task]
    parts = split(generate(3000, 0))
    held = {canonical(p) for p in parts["test"]}
    new = [p for p in generate(300, 1) if canonical(p) not in held]
    fates = sift(Config(1000), [draft(p) for p in new], parts["train"], parts["test"])[2]
    assert [found["fate"] for found in fates].count("leaked") == 0


@pytest.mark.parametrize("operator", "+*")
def test_a_sum_or_product_of_the_test_set_is_leaked_the_other_way_round_too(operator):
    parts = split(arithmetic.generate(600, operator, 3, seed=0))
    texts = []
    for problem in parts["test"]:
        a, b = (arithmetic.value_of(part) for part in problem.question.split(f" {operator} "))
        texts.append(draft(arithmetic.problem(b, a, operator, 3, 3)))
    fates = sift(Config(1000), texts, parts["train"], parts["test"])[2]
    assert {found["fate"] for found in fates} == {"leaked"}


# --- a real writer ---

ORDER = Config(
    num_samples_to_generate=12,
    budget=400,
    block=40,
    temperature=1.0,
    max_new_tokens=32,
    batch_tokens=4000,
    device="cpu",
)


@pytest.fixture(scope="module")
def writer(sums, annotating, tmp_path_factory):
    """A tiny model that writes sums of two digits, some of them new, some with their right answer."""
    directory = tmp_path_factory.mktemp("writer")
    rate = {"learning_rate": 2e-2, "warmup_steps": 10, "log_steps": 20}
    config = sft.Config(str(annotating), steps=60, batch_size=32, device="cpu", **rate)
    sft.train(config, writing(sums), writing(sums[:8]), directory)
    return directory / "model"


@pytest.fixture(scope="module")
def sets(sums):
    """(known problems, test problems): the writer knows more sums than it is said to."""
    return sums[::3], sums[1::9]


def made(folder):
    return {path.name: json.loads(path.read_text()) for path in folder.glob("*.json")} | {
        "drafts": (folder / "drafts.jsonl").read_text().splitlines()
    }


def write_in(folder, config, sets, writer):
    folder.mkdir(exist_ok=True)
    write(config, *sets, writer, folder)
    return made(folder)


@pytest.fixture(scope="module")
def undisturbed(sets, writer, tmp_path_factory):
    return write_in(tmp_path_factory.mktemp("undisturbed"), ORDER, sets, writer)


def test_a_writer_writes_until_enough_is_kept(undisturbed, sums, sets):
    records, ledger = undisturbed["generated.json"], undisturbed["ledger.json"]
    assert len(records) == ledger["kept"] == 12 and ledger["drawn"] == len(undisturbed["drafts"]) < ORDER.budget
    assert min(ledger["duplicate"], ledger["leaked"]) > 0, f"this writer shows less than it could: {ledger}"
    known = {p.question for p in sets[0] + sets[1]}
    for row in records:
        assert row["src"] not in known and row["score"] >= ORDER.quality_threshold
        a, _, b, _ = row["src"].split()
        assert Fraction(row["answer"]) == int(a) + int(b)


def test_the_budget_ends_it(sets, writer, tmp_path):
    found = write_in(tmp_path / "a", replace(ORDER, num_samples_to_generate=1000, budget=50, block=20), sets, writer)
    assert found["ledger.json"]["drawn"] == len(found["drafts"]) == 50
    assert found["ledger.json"]["kept"] == len(found["generated.json"]) < 1000


def test_a_draft_is_the_same_whatever_the_block_and_the_seed_decides_it(undisturbed, sets, writer, tmp_path):
    assert write_in(tmp_path / "a", replace(ORDER, block=7, batch_tokens=500), sets, writer) == undisturbed
    other = write_in(tmp_path / "b", replace(ORDER, seed=1), sets, writer)
    assert other["generated.json"] != undisturbed["generated.json"]


class Cut(Exception):
    """The power fails."""


@pytest.mark.parametrize("block, cut, torn", [(9, 0, b""), (9, 2, b""), (9, 2, b'["3 + 4'), (40, 1, b"[")])
def test_a_writer_that_was_cut_off_goes_on_where_it_was(
    block, cut, torn, undisturbed, sets, writer, tmp_path, monkeypatch
):
    """Cut while a block is drawn or while its line is written: no draft of a whole block is drawn again."""
    real, numbers = synthetic.generation.generate, []

    def failing(model, tokenizer, prompts, *more, **options):
        if len(numbers) == cut:
            raise Cut
        numbers.append(more[3])
        return real(model, tokenizer, prompts, *more, **options)

    config, folder = replace(ORDER, block=block), tmp_path / "cut"
    with monkeypatch.context() as patch, pytest.raises(Cut):
        patch.setattr(synthetic.generation, "generate", failing)
        write_in(folder, config, sets, writer)
    with open(folder / synthetic.DRAWN, "ab") as file:
        file.write(torn)
    cut = -1  # from here on, only listen
    drawn_before = [n for block in numbers for n in block]
    with monkeypatch.context() as patch:
        patch.setattr(synthetic.generation, "generate", failing)
        assert write_in(folder, config, sets, writer) == undisturbed
    drawn = [n for block in numbers for n in block]
    assert drawn == list(range(len(drawn))) and drawn[: len(drawn_before)] == drawn_before
    assert not (folder / synthetic.DRAWN).exists()


def test_what_is_completely_written_is_not_written_again(undisturbed, sets, writer, tmp_path, monkeypatch):
    """Killed after its last file and before its folder got its final name, the work is complete all the same."""
    write_in(tmp_path / "a", ORDER, sets, writer)
    monkeypatch.setattr(synthetic.generation, "generate", None)
    assert write_in(tmp_path / "a", ORDER, sets, writer) == undisturbed


@pytest.mark.parametrize(
    "wrong, says",
    [
        ({"quality_threshold": 1.1}, "quality_threshold must lie between 0 and 1, not 1.1"),
        ({"quality_threshold": -0.1}, "quality_threshold must lie between 0 and 1"),
        ({"quality_threshold": float("nan")}, "quality_threshold must lie between 0 and 1"),
        ({"temperature": 0.0}, "needs a temperature above 0"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_once(wrong, says):
    with pytest.raises(InputError, match=says):
        Config(**wrong)
