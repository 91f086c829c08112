"""Steps of a proof: every way through the premises holds, and nothing else does."""

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib import proofs, viewers
from lib.answers import check_steps, inspect, is_correct, is_verified
from lib.problems import make_problem
from lib.prompts import solution
from lib.tasks import prontoqa, prosqa
from tests.oracles import graphs

TEXT = make_problem(
    "Tom is a terpus. Every terpus is a brimpus. Every brimpus is a lempus. Tom is a gerpus. Every gerpus is a terpus. "
    "Alex is a impus. Every impus is a scrompus. Every terpus is a impuls. Is Tom a lempus or scrompus?",
    ["Tom is a terpus.", "Every terpus is a brimpus.", "Every brimpus is a lempus."],
    "Tom is a lempus.",
    "a graph",
    proof="path",
    answer_kind="text",
)
SYMBOLS = make_problem(
    "n3 n7 | n0 n4 | n7 n9 | n3 n1 | n1 n7 ? n4 n9 : n3", ["n7", "n9"], "n9", "a graph", proof="symbols"
)
RULES = make_problem(
    "Each zumpus is an impus. Impuses are vumpuses. Vumpuses are not wooden. Every lorpus is wooden. Zumpuses are hot. "
    "Max is a zumpus. Max is a yumpus. True or false: Max is wooden.",
    ["Max is a zumpus. Each zumpus is an impus.", "Max is an impus. Impuses are vumpuses."]
    + ["Max is a vumpus. Vumpuses are not wooden.", "Max is not wooden."],
    "False",
    "rules",
    proof="deduction",
)


def holds(problem, *lines, answer=None):
    return is_verified(problem, "\n".join([*lines, f"#### {answer or problem.answer}"]))


def faults(problem, *lines):
    """The lines that do not hold, "" for an end that is lacking."""
    return [s.text for s in check_steps(problem, "\n".join([*lines, f"#### {problem.answer}"])) if not s.ok]


# --- sentences ---


@pytest.mark.parametrize(
    "sentence, subject, predicate",
    [
        ("Every shumpus is a rempus.", "a shumpus", "a rempus"),
        ("Each shumpus is an impus.", "a shumpus", "a impus"),
        ("Every timpus is a impus.", "a timpus", "a impus"),
        ("Impuses are lempuses.", "a impus", "a lempus"),
        ("Lempuses are not hot.", "a lempus", "not hot"),
        ("Lempuses are hot.", "a lempus", "hot"),
        ("Every lempus is not hot.", "a lempus", "not hot"),
        ("Tom is a terpus.", "Tom", "a terpus"),
        ("Tom is not hot.", "Tom", "not hot"),
        (" Tom is hot ", "Tom", "hot"),
    ],
)
def test_a_sentence_is_an_edge(sentence, subject, predicate):
    assert proofs.claim(sentence) == (subject, predicate)


@pytest.mark.parametrize(
    "text",
    ["", "Tom.", "Tom is", "every x is a y.", "Is Tom a lempus or scrompus?", "Tom is a hot lempus.", "Tom is a b. C"],
)
def test_what_is_no_sentence_of_a_premise_is_none(text):
    assert proofs.claim(text) is None


def test_a_property_is_no_kind_of_thing():
    said = {proofs.claim(f"Tom is {rest}.") for rest in ("a lempus", "lempus", "not lempus", "not a lempus")}
    assert len(said) == 4


# --- paths ---


def test_own_chains_hold_and_so_does_any_other_way():
    assert all(is_verified(p, solution(p)) for p in (TEXT, SYMBOLS, RULES))
    longer = [
        "Tom is a gerpus.",
        "Every gerpus is a terpus.",
        "Every terpus is a brimpus.",
        "Every brimpus is a lempus.",
    ]
    assert holds(TEXT, *longer)
    assert holds(TEXT, " ".join(longer)) and holds(TEXT, *longer[:2], " ".join(longer[2:]))
    assert holds(SYMBOLS, "n1", "n7", "n9")


@pytest.mark.parametrize(
    "lines, wrong",
    [
        (["Tom is a terpus.", "Every terpus is a lempus."], ["Every terpus is a lempus."]),  # no such edge
        (["Tom is a terpus.", "Every brimpus is a lempus."], ["Every brimpus is a lempus."]),  # a gap
        (["Every terpus is a brimpus.", "Every brimpus is a lempus."], ["Every terpus is a brimpus."]),  # wrong start
        (["Alex is a impus.", "Every impus is a scrompus."], ["Alex is a impus.", ""]),  # another's start
        (["Tom is a terpus.", "Every terpus is a brimpus."], [""]),  # ends early
        (["Tom is a terpus.", "Every terpus is a impuls."], [""]),  # ends elsewhere
        (["Tom is a lempus."], ["Tom is a lempus."]),  # the answer is no premise
        (["Tom is a terpus.", "Tom is a brimpus.", "Every brimpus is a lempus."], ["Tom is a brimpus."]),
        (["Tom is a terpus.", "So.", "Every terpus is a brimpus.", "Every brimpus is a lempus."], ["So."]),
        (["Every brimpus is a lempus.", "Every terpus is a brimpus.", "Tom is a terpus."], None),  # backwards
        (["Tom is not a terpus.", "Every terpus is a brimpus.", "Every brimpus is a lempus."], None),
        ([], [""]),
    ],
)
def test_a_broken_chain_of_sentences_is_refused_where_it_breaks(lines, wrong):
    assert not holds(TEXT, *lines)
    assert is_correct(TEXT, "\n".join([*lines, "#### Tom is a lempus."]))
    if wrong is not None:
        assert faults(TEXT, *lines) == wrong


@pytest.mark.parametrize(
    "lines, wrong",
    [
        (["n9"], ["n9"]),
        (["n7"], [""]),
        (["n7", "n4"], ["n4", ""]),
        (["n4"], ["n4", ""]),
        (["n3", "n7", "n9"], ["n3"]),  # one stands there already
        (["n7 n9"], ["n7 n9", ""]),
        (["n7", "n9", "n9"], ["n9"]),
        ([], [""]),
    ],
)
def test_a_broken_chain_of_symbols_is_refused_where_it_breaks(lines, wrong):
    assert not holds(SYMBOLS, *lines)
    assert faults(SYMBOLS, *lines) == wrong


def test_a_right_chain_with_a_wrong_answer_is_not_verified():
    assert not holds(TEXT, *TEXT.steps, answer="Tom is a scrompus.")
    assert not holds(SYMBOLS, *SYMBOLS.steps, answer="n4")
    assert not holds(RULES, *RULES.steps, answer="True")


# --- deductions ---


@pytest.mark.parametrize(
    "lines",
    [
        ["Max is a zumpus.", "Max is an impus.", "Max is a vumpus.", "Max is not wooden."],  # rules left unsaid
        [
            "Max is a zumpus. Each zumpus is an impus. Impuses are vumpuses. Vumpuses are not wooden.",
            "Max is not wooden.",
        ],
        [" ".join(RULES.steps)],
    ],
)
def test_conclusions_and_rules_between_them_may_be_left_unsaid(lines):
    assert holds(RULES, *lines)


@pytest.mark.parametrize(
    "lines",
    [
        ["Max is not wooden."],
        [*RULES.steps[:1], *RULES.steps[2:]],  # a whole step left out
        RULES.steps[:-1],  # the conclusion not drawn
        ["Max is a zumpus.", "Max is a vumpus.", "Max is not wooden."],  # two rules at once
        [
            "Max is a zumpus. Each zumpus is an impus.",
            "Max is an impus. Vumpuses are not wooden.",
            "Max is not wooden.",
        ],
        [*RULES.steps[:-1], "Max is wooden."],
        [*RULES.steps, "Max is wooden."],
        RULES.steps[:-2],
        ["Max is a zumpus. Zumpuses are hot.", "Max is hot."],  # true, and not what is asked
        ["Max is a zumpus.", "Max is a yumpus.", "Max is an impus.", "Max is a vumpus.", "Max is not wooden."],
        ["Each zumpus is an impus. Impuses are vumpuses. Vumpuses are not wooden."],  # begins with no one
        ["Rex is a zumpus.", *RULES.steps[1:]],
    ],
)
def test_what_does_not_follow_is_refused(lines):
    assert not holds(RULES, *lines)


def test_the_answer_decides_where_a_proof_has_to_end():
    true = make_problem(
        RULES.question.replace("Max is wooden", "Max is not wooden"), RULES.steps, "True", "r", **RULES.meta
    )
    assert is_verified(true, solution(true))
    wrong = make_problem(true.question, RULES.steps, "False", "r", **RULES.meta)
    assert not is_verified(wrong, solution(wrong))


# --- against an oracle ---


@pytest.mark.parametrize("form", ["text", "symbol"])
def test_a_chain_holds_exactly_if_it_is_a_path_from_root_to_target(form):
    rng, seen = random.Random(0), {True: 0, False: 0}
    for problem in prosqa.generate(60, "faithful", form, n_nodes=10, min_hops=2, max_hops=3, seed=4):
        read = graphs.edges_of_text if form == "text" else graphs.edges_of_symbols
        edges, root, _ = read(problem.question)
        names = sorted({name for edge in edges for name in edge})
        target = problem.meta["names"][problem.meta["target"]]
        ways = graphs.paths(edges, root, target)
        for _ in range(60):
            way = list(rng.choice(ways))
            for _ in range(rng.randrange(3)):  # bend it
                at = rng.randrange(len(way))
                way[at : at + rng.randrange(2)] = rng.sample(names, rng.randrange(2)) if rng.random() < 0.8 else way[:1]
            if len(way) < 2 or way[0] != root and form == "symbol":
                continue
            pairs = list(zip(way, way[1:], strict=False))
            right = way[0] == root and way[-1] == target and all(pair in edges for pair in pairs)
            roots = {a for a, _ in edges} - {b for _, b in edges}
            lines = [f"{'' if a in roots else 'Every '}{a} is a {b}." for a, b in pairs] if form == "text" else way[1:]
            assert holds(problem, *lines) == right, (problem.question, lines)
            seen[right] += 1
    assert min(seen.values()) > 300


# --- any text at all ---

words = st.text("TomEvry ilsaemnpu3.?|:#\n\\", max_size=60) | st.text(max_size=40)
kinds = st.sampled_from(["path", "deduction", "symbols", "something else"])


@settings(max_examples=300, deadline=None)
@given(kinds, words, words, words)
def test_no_text_breaks_the_arbiter(kind, question, answer, text):
    problem = make_problem(question, ["a"], answer, "s", proof=kind)
    steps = check_steps(problem, text)
    assert all(step.ok == (step.reason is None) for step in steps)
    assert is_verified(problem, text) in (True, False)
    assert len(steps) <= text.count("\n") + 2


def test_a_long_text_is_read_in_no_time():
    import time

    started = time.process_time()
    for text in ("Every " * 50_000, "Tom is a terpus. " * 20_000, "." * 200_000, "n7\n" * 50_000, "(" * 100_000):
        for problem in (TEXT, SYMBOLS, RULES):
            assert not is_verified(problem, text + "\n#### Tom is a lempus.")
    assert time.process_time() - started < 5


# --- what a reader sees ---


def test_only_the_broken_line_is_red():
    html = viewers.solution(TEXT, "Tom is a terpus.\nEvery terpus is a impus.\nEvery impus is a scrompus.\n#### no")
    found = re.findall(r'background:(#\w+);[^"]*" title="([^"]*)">([^<]*)<', str(html))
    assert [(shade == viewers.GOOD, text) for shade, _, text in found] == [
        (True, "Tom is a terpus."),
        (False, "Every terpus is a impus."),
        (True, "Every impus is a scrompus."),
        (False, ""),
        (False, "#### no"),
    ]
    assert found[1][1] == "the question does not say so"
    assert found[3][1] == "the chain ends at a scrompus, not at a lempus"


def test_an_inspection_finds_readable_answers_and_no_annotations():
    for problem in (prosqa.generate(1)[0], prosqa.generate(1, form="symbol")[0], prontoqa.generate(1)[0]):
        assert inspect(problem) == {"problem": problem.id, "answer_extracted": True, "annotations": []}
