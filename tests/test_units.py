"""Unit conversion: pint's sizes against a table of fractions, chains that hold, cells that splits don't share.

And questions in anyone's words, the published form, and what a lookup would get.
"""

import json
import re
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lib import tasks
from lib.answers import annotations, check_steps, inspect, is_correct, is_verified
from lib.calculator import evaluate, format_number
from lib.errors import InputError
from lib.problems import SPLITS, canonical, make_problem, read_jsonl, write_jsonl
from lib.prompts import solution
from lib.tasks import units, units_inspection
from tests.oracles import hostile
from tests.test_boolean import inspected

ROOT = Path(__file__).parents[1]
GALLON = 231 * Fraction("25.4") ** 3  # cubic inches, in mm^3
YEAR, MILE, POUND = Fraction("31556925.9747"), Fraction("1609344"), Fraction("453.59237")
# Family -> its dimensions in pint's words, and every name with its size, in s, g, mm^3, mm, mm/s and bit.
SIZES = {
    "time": (
        {"[time]": 1},
        dict.fromkeys(("s", "sec", "second", "seconds"), 1)
        | dict.fromkeys(("min", "minute"), 60)
        | dict.fromkeys(("h", "hour", "hours"), 3600)
        | dict.fromkeys(("day", "days"), 86400)
        | dict.fromkeys(("week", "weeks"), 604800)
        | dict.fromkeys(("month", "months"), YEAR / 12)
        | dict.fromkeys(("year", "years"), YEAR)
        | dict.fromkeys(("decade", "decades"), YEAR * 10)
        | dict.fromkeys(("century", "centuries"), YEAR * 100),
    ),
    "mass": (
        {"[mass]": 1},
        {"g": 1, "gram": 1, "kg": 1000, "pound": POUND, "ounce": POUND / 16}
        | dict.fromkeys(("tonne", "ton", "metric ton"), 1_000_000),
    ),
    "volume": (
        {"[length]": 3},
        dict.fromkeys(("L", "l", "liter", "litre"), 1_000_000)
        | dict.fromkeys(("mL", "ml", "milliliter", "millilitre", "cm^3", "cc", "cm**3"), 1000)
        | dict.fromkeys(("m^3", "m**3"), 10**9)
        | {"mm^3": 1, "mm**3": 1, "gallon": GALLON, "quart": GALLON / 4, "pint": GALLON / 8}
        | dict.fromkeys(("fluid ounce", "ounce"), GALLON / 128),
    ),
    "length": (
        {"[length]": 1},
        {"mm": 1, "cm": 10, "m": 1000, "meter": 1000, "km": 1_000_000}
        | {"in": Fraction("25.4"), "ft": Fraction("304.8"), "yd": Fraction("914.4")}
        | dict.fromkeys(("mile", "mi", "miles"), MILE),
    ),
    "speed": (
        {"[length]": 1, "[time]": -1},
        {"m/s": 1000, "ft/s": Fraction("304.8"), "in/s": Fraction("25.4")}
        | dict.fromkeys(("km/h", "kmh"), Fraction(10**6, 3600))
        | dict.fromkeys(("mph", "mi/h"), MILE / 3600),
    ),
    "data": (
        {},  # bits have no dimension in pint
        {"bit": 1, "byte": 8, "B": 8}
        | dict.fromkeys(("kB", "KB"), 8000)
        | {"MB": 8 * 10**6, "M": 8 * 10**6}
        | dict.fromkeys(("GB", "G"), 8 * 10**9),
    ),
}
SCALE = {"time": 1, "mass": 1000, "volume": 10**9, "length": 1000, "speed": 1000, "data": 1}  # of pint's base units
EVERY = [(family, name) for family, (_, sizes) in SIZES.items() for name in sizes]
CELLS = [(n, a, b) for family in units.UNITS for a, b in units.pairs(family) for n in units.NUMBERS]


def factor(family, source, target):
    return Fraction(SIZES[family][1][source]) / Fraction(SIZES[family][1][target])


def exactly(problem, value):
    assert problem is not None and abs(Fraction(problem.meta["exact"]) - value) <= value * Fraction(1, 10**12), problem


@pytest.fixture(scope="module")
def drawn():
    return units.generate(6000)


@pytest.fixture(scope="module")
def parts():
    return units.splits(4000, seed=1)


@pytest.fixture(scope="module")
def solved_cells():
    return [units.solve(f"Turn {n} {a} into {b}.") for n, a, b in CELLS]


# --- units ---


@pytest.mark.parametrize("family, name", EVERY)
def test_every_name_has_the_dimension_and_size_of_its_family(family, name):
    found = units.quantity(name, family)
    assert dict(found.dimensionality) == SIZES[family][0]
    assert found.to_base_units().magnitude * SCALE[family] == SIZES[family][1][name]  # exactly


def test_the_names_are_those_of_the_published_data_and_no_others():
    assert {(family, name) for family, labels in units.LABELS.items() for name in labels} == set(EVERY)
    assert len(units.SURFACES) == 75  # "ounce" belongs to two units
    for family, labels in units.LABELS.items():
        assert all(SIZES[family][1][name] == SIZES[family][1][label] for name, label in labels.items())


def test_bare_pint_would_read_some_names_otherwise():
    """What the table is for: each entry changes a size, or is needed for there to be one."""
    compared = 0
    for name, meant in units.PINT.items():
        try:
            bare = units._registry().parse_expression(name).to_base_units()
        except Exception:
            continue  # unknown, or a logarithm
        assert bare != units._registry().parse_expression(meant).to_base_units(), name
        compared += 1
    assert compared >= 3, "some names mean something else to pint"


def test_pairs_are_those_whose_factor_lies_between_a_tenth_and_ten_thousand():
    found = {pair for family in units.UNITS for pair in units.pairs(family)}
    expected = {
        (a, b)
        for family, labels in units.LABELS.items()
        for a in set(labels.values())
        for b in set(labels.values()) - {a}
        if Fraction(1, 10) < factor(family, a, b) < 10_000
    }
    assert found == expected and len(found) == 116
    assert ("mm", "cm") not in found and ("year", "decade") not in found and ("L", "mL") in found  # 0.1 itself is out


def test_every_pair_is_solved_exactly(solved_cells):
    for problem, (n, a, b) in zip(solved_cells, CELLS, strict=True):
        exactly(problem, n * factor(problem.meta["family"], a, b))
        assert (problem.meta["n"], problem.meta["from_unit"], problem.meta["to_unit"]) == (n, a, b)


@pytest.mark.parametrize(
    "question, answer",
    [
        ("Turn 3 ton into kg.", "3000"),  # metric, not 2720
        ("Turn 1 ton into pound.", "2200"),
        ("Turn 1 year into hour.", "8770"),
        ("Turn 10 century into week.", "52200"),
        ("Turn 4 years into days.", "1460"),
        ("Turn 1 month into days.", "30.4"),
        ("Turn 2 KB into B.", "2000"),
        ("Turn 7 M into KB.", "7000"),
        ("Turn 7 G into M.", "7000"),
        ("Turn 16 ounce into pint.", "1"),  # of volume
        ("Turn 16 ounce into pound.", "1"),  # of mass
        ("How many ounce make 2 liter?", "67.6"),
        ("How many ounce make 2 kg?", "70.5"),
        ("Turn 1 gallon into L.", "3.79"),  # US
        ("Turn 5 decade into centuries.", "0.5"),
        ("Turn 9 m**3 into L", "9000"),
    ],
)
def test_conventions_hold(question, answer):
    assert units.solve(question).answer == answer


def test_the_year_is_the_courses_and_not_the_julian():
    assert units.solve("Turn 1 year into s.").meta["exact"] == 31556925.9747
    exactly(units.solve("Turn 1 century into days."), Fraction("36524.219878125"))


# --- chains and rounding ---


def test_every_chain_holds_and_leads_to_its_answer_in_one_or_two_steps(solved_cells):
    for problem in solved_cells:
        assert 1 <= len(problem.steps) <= 2
        assert is_verified(problem, solution(problem)), problem
        assert len(check_steps(problem, solution(problem))) == len(problem.steps)
        assert inspect(problem)["answer_extracted"] and all(a["agrees"] for a in inspect(problem)["annotations"])
        values = [stated for step in problem.steps for _, stated in annotations(step)]
        assert units.significant(Fraction(values[-1])) == problem.answer
        if len(values) == 2:
            assert annotations(problem.steps[1])[0][0].startswith((f"{values[0]}*", f"{values[0]}/"))


@pytest.mark.parametrize(
    "question, last, answer",
    [("Turn 233 quart into L.", "220.5", "221"), ("Turn 379 km into mile.", "235.5", "235")],  # 220.5002, 235.4997
)
def test_a_fact_of_six_figures_may_shift_the_third_of_a_larger_number_but_not_the_answer(question, last, answer):
    problem = units.solve(question)
    assert (annotations(problem.steps[-1])[0][1], problem.answer) == (last, answer)
    assert is_verified(problem, solution(problem))


def test_a_broken_chain_or_a_wrong_answer_is_found_out(solved_cells):
    for problem in solved_cells[::7]:
        text = solution(problem)
        assert not is_verified(problem, re.sub(r"=([0-9.]+)>>", lambda m: f"={float(m[1]) * 1.01:.4f}>>", text))
        assert not is_correct(problem, f"#### {problem.meta['exact'] * 1.06:.6f}")
        assert is_correct(problem, f"#### {problem.meta['exact'] * 1.04:.6f}")


def test_the_facts_of_chains_are_right_to_six_figures(solved_cells):
    fact = re.compile(r"1 (.+) = ([0-9.]+) (.+?), so ([0-9.]+) (.+) = <<.*>>([0-9.]+) (.+)")
    for problem in solved_cells:
        at = problem.meta["from_unit"]
        for step in problem.steps:
            big, k, small, _, source, _, target = fact.fullmatch(step).groups()
            right = factor(problem.meta["family"], big, small)
            assert abs(Fraction(k) - right) <= right / 200_000 and Fraction(k) > Fraction(1, 4)
            assert {source, target} == {big, small} and source == at
            at = target
        assert at == problem.meta["to_unit"]


def test_chains_still_lead_within_the_tolerance_where_the_calculator_writes_two_decimals(solved_cells):
    """The decoding calculator knows the workbench's one rounding rule, and not how many figures are needed."""
    for problem in solved_cells:
        value = None
        for expression, _ in (annotations(step)[0] for step in problem.steps):
            expression = expression if value is None else re.sub(r"^[0-9.]+", value, expression)
            value = format_number(evaluate(expression).value)
        assert is_correct(problem, f"#### {value}"), problem


def test_answers_have_three_figures_and_are_at_most_half_a_percent_off(drawn):
    errors = []
    for problem in drawn:
        assert re.fullmatch(r"[1-9][0-9]*|[0-9]+\.[0-9]*[1-9]", problem.answer)
        assert len(problem.answer.replace(".", "").strip("0")) <= 3
        errors.append(abs(float(problem.answer) / problem.meta["exact"] - 1))
    assert 0.003 < max(errors) <= 0.005


@settings(max_examples=300, deadline=None)
@given(st.fractions(min_value=Fraction(1, 10**8), max_value=10**9))
def test_any_number_is_rounded_to_three_figures_without_an_exponent(value):
    text = units.significant(value)
    assert re.fullmatch(r"[0-9]+(\.[0-9]*[1-9])?", text)
    assert abs(Fraction(text) - value) <= value / 200 and len(text.replace(".", "").strip("0")) <= 3


# --- generated ---


def test_families_numbers_and_wordings_are_evenly_drawn(drawn):
    assert len({p.id for p in drawn}) == len({p.question for p in drawn}) == 6000
    for key, values, bound in (
        ("family", units.UNITS, 0.02),
        ("n", units.NUMBERS, 0.025),
        ("template", range(20), 0.01),
    ):
        counts = Counter(p.meta[key] for p in drawn)
        assert set(counts) == set(values)
        assert all(abs(count / 6000 - 1 / len(values)) < bound for count in counts.values()), (key, counts)
    assert len({p.meta["word_order"] for p in drawn}) == 3
    names = Counter(name for p in drawn for name in re.split(r"[ ,.:?]+", p.question))
    assert all(names[name] for name in units.SURFACES if " " not in name)
    assert len({(p.meta["from_unit"], p.meta["to_unit"]) for p in drawn}) == 116


def test_the_seed_decides_the_problems_also_in_another_process(drawn):
    assert units.generate(6000) == drawn
    assert len({p.id for p in drawn} & {p.id for p in units.generate(6000, seed=1)}) < 1500
    code = "from lib.tasks import units\nprint([p.id for p in units.splits(50, 3)['test'] + units.hidden(20, 3)])"
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == str([p.id for p in units.splits(50, 3)["test"] + units.hidden(20, 3)])


def test_pint_is_not_loaded_before_it_is_used():
    code = "import sys, lib.tasks, lib.tasks.units\nprint('pint' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "False"


def test_thousands_are_made_in_a_second():
    begun = time.process_time()
    assert len(units.generate(4000, seed=9)) == 4000
    assert time.process_time() - begun < 2


def test_more_than_there_are_is_refused_and_none_is_none():
    with pytest.raises(InputError, match="units has [0-9]+ questions of this kind, not 1000000; ask for fewer"):
        units.generate(1_000_000)
    assert units.generate(0) == [] and units.splits(0, 0) == {"train": [], "valid": [], "test": []}


# --- splits ---


def cell(problem):
    return problem.meta["n"], problem.meta["from_unit"], problem.meta["to_unit"]


def pair(problem):
    return frozenset(cell(problem)[1:])


def test_no_cell_and_no_new_pair_of_a_held_split_occurs_in_training_whatever_the_seed(parts):
    train = [p for seed in (1, 2, 3) for p in units.splits(4000, seed)["train"]]
    every = {"train": train, "valid": parts["valid"], "test": parts["test"], "hidden": units.hidden(400, 5)}
    cells = {name: {cell(p) for p in problems} for name, problems in every.items()}
    forms = {name: {canonical(p) for p in problems} for name, problems in every.items()}
    for one in every:
        for other in set(every) - {one}:
            assert not cells[one] & cells[other] and not forms[one] & forms[other]
    known = {pair(p) for p in train}
    for name in ("valid", "test", "hidden"):
        kinds = Counter(p.meta["novelty"] for p in every[name])
        assert kinds == {"new_number": len(every[name]) // 2, "new_pair": len(every[name]) // 2}
        for problem in every[name]:
            assert (pair(problem) in known) == (problem.meta["novelty"] == "new_number")
    assert {p.meta["novelty"] for p in train} == {"known"}
    assert not {pair(p) for p in parts["valid"]} & {pair(p) for p in parts["test"]} - known
    assert not {cell(p) for p in units.generate(6000, 4)} & cells["hidden"]


def test_the_splits_have_the_sizes_of_the_house(parts):
    assert {name: len(problems) for name, problems in parts.items()} == {"train": 3200, "valid": 400, "test": 400}
    for name, families in (("train", 6), ("valid", 5), ("test", 6)):  # data has no pair to spare for valid
        assert len({p.meta["family"] for p in parts[name] if p.meta["novelty"] != "new_number"}) == families
    assert len({p.id for problems in parts.values() for p in problems}) == 4000


def test_training_meets_every_name_and_leads_from_every_unit_to_every_other():
    train = units.splits(12000, 0)["train"]
    words = Counter(word for p in train for word in re.split(r"[ ,.:?]+", p.question))
    assert min(words[name] for name in units.SURFACES if " " not in name) >= 10
    for family, labels in units.LABELS.items():
        known = {pair(p) for p in train if p.meta["family"] == family}
        reached = set(next(iter(known)))
        for _ in known:
            reached = reached.union(*(edge for edge in known if edge & reached))
        assert reached == set(labels.values())


def test_a_lookup_fails_where_it_should(parts, record_property):
    """Nearest question, as it stands and scaled: scaling solves new numbers, so only new pairs tell more than that."""
    found = {}
    for scaled in (False, True):
        for kind in ("new_number", "new_pair"):
            asked = [p for p in parts["test"] if p.meta["novelty"] == kind][:120]
            answers = [units_inspection.nearest_neighbour(parts["train"], p, scaled) for p in asked]
            found[scaled, kind] = sum(map(lambda p, a: is_correct(p, f"#### {a}"), asked, answers)) / len(asked)
    print("nearest neighbour, (scaled, kind): accuracy", found)
    assert found[False, "new_number"] < 0.15 and found[False, "new_pair"] < 0.15
    assert found[True, "new_number"] == 1 and found[True, "new_pair"] < 0.15
    assert units_inspection.nearest_neighbour(parts["train"], parts["train"][7]) == parts["train"][7].answer


def test_no_pair_that_is_held_back_has_a_twin_in_training():
    """mL is cm^3: who knows one of them knows the other, and two names of one size are no conversion to work out."""
    for family in units.UNITS:
        held = units.held_out(family)
        for pair in units.pairs(family):
            a, b = map(units.size, pair)
            like = [o for o in units.pairs(family) if {units.size(o[0]), units.size(o[1])} == {a, b}]
            assert len({held.get(frozenset(o)) for o in like}) == 1
            assert a != b or frozenset(pair) not in held


def test_what_lookups_are_worth_on_hidden_questions(parts):
    """The table of 01: copying is worth next to nothing; scaling solves a new number and nothing of a new pair."""
    rows = {row["what is new"]: row for row in units_inspection.lookups(parts["train"], units.hidden(160, 5))}
    print("hidden questions, right by lookup:", rows)
    assert {kind: row["n"] for kind, row in rows.items()} == {"new_number": 80, "new_pair": 80}
    assert max(row["nearest question"] for row in rows.values()) < 0.15
    assert rows["new_pair"]["same pair, scaled"] < 0.15 and rows["new_number"]["same pair, scaled"] == 1


def test_the_shares_of_what_questions_are_made_of_are_stated(parts):
    found = units_inspection.shares(parts["train"])
    assert set(found) == {"family", "number", "word order", "what is new", "steps", "wording"}
    for title, shares in found.items():
        assert title == "wording" or abs(sum(shares.values()) - 1) < 1e-9
    brute = sum(p.meta["family"] == "mass" for p in parts["train"]) / len(parts["train"])
    assert found["family"]["mass"] == brute and set(found["what is new"]) == {"known"}
    assert 0.03 < found["wording"]["rarest of 20"] <= found["wording"]["most common"] < 0.07
    assert list(found["number"]) == [str(n) for n in range(1, 11)]
    wide = units_inspection.shares(units.splits(1200, 0, 99)["train"])["number"]
    assert wide["more"] == 0.5 and len(wide) == 11
    plain = make_problem("6 kg in g?", [], "6000", "units")
    assert units_inspection.shares([plain]) == {"steps": {"0": 1.0}}


def test_practice_has_larger_numbers_of_known_pairs_and_leaves_the_tests_alone(parts):
    wide = units.splits(3000, 0, 99)
    assert [wide[name] for name in SPLITS[1:]] == [units.splits(3000, 0)[name] for name in SPLITS[1:]]
    assert len(wide["train"]) == 2400 == len({p.question for p in wide["train"]})
    large = [p for p in wide["train"] if p.meta["n"] > 10]
    assert len(large) == 1200 and {p.meta["n"] for p in large} == set(range(11, 100))
    assert {p.meta["novelty"] for p in wide["train"]} == {"known"}
    pairs = {frozenset((p.meta["from_unit"], p.meta["to_unit"])) for p in large}
    assert not pairs & {pair for family in units.UNITS for pair in units.held_out(family)}
    assert all(is_verified(p, solution(p)) for p in large)
    assert large != [p for p in units.splits(3000, 1, 99)["train"] if p.meta["n"] > 10]
    with pytest.raises(InputError, match="practises 100 questions up to 11, not 1200; raise practice"):
        units.splits(3000, 0, 11)


def test_memorising_scores_nothing(parts):
    memory = {cell(p): p.answer for p in parts["train"]} | {p.question: p.answer for p in parts["train"]}
    held = parts["valid"] + parts["test"] + units.hidden(200, 0)
    assert sum(cell(p) in memory or p.question in memory for p in held) == 0


# --- questions in any words ---


WORDS = (
    "Convert {n} {a} to {b}",
    "How much is {n} {a} as a number of {b}?",
    "Tell me how many {b} there are in {n} {a}.",
    "What do {n} {a} come to in {b} terms?",
    "How would one put {n} {a} in terms of {b}?",
    "What value results from converting {a} to {b} for {n} units?",
    "Conversion from {a} to {b}, given {n}",
)


def test_every_pair_of_names_is_understood_in_every_word_order():
    count = 0
    for family, labels in units.LABELS.items():
        for a, b in units.pairs(family):
            for x in (name for name in labels if labels[name] == a):
                for y in (name for name in labels if labels[name] == b):
                    for text in (*WORDS, *(text for _, text in units.WORDINGS)):
                        exactly(units.solve(text.format(n=7, a=x, b=y)), 7 * factor(family, a, b))
                        count += 1
    assert count > 10_000


NUMBERS = st.integers(1, 99_999).map(str) | st.decimals("0.01", "999", places=2).map(str) | st.just("1,250")


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 5999), NUMBERS, st.sampled_from(units.WORDINGS))
def test_a_generated_question_is_solved_to_its_exact_value_with_any_number(drawn, place, n, wording):
    problem = drawn[place]
    found = units.solve(problem.question)
    exactly(found, Fraction(problem.meta["exact"]))
    assert (found.id, found.steps, found.answer) == (problem.id, problem.steps, problem.answer)
    assert found.meta.items() <= problem.meta.items() and canonical(found) == canonical(problem)
    assert tasks.solve(replace(problem, steps=("1",), answer="?")) == found
    _, a, b = cell(problem)
    wide = units.solve(wording[1].format(n=n, a=a, b=b))
    exactly(wide, Fraction(n.replace(",", "")) * factor(problem.meta["family"], a, b))
    assert is_verified(wide, solution(wide)), wide


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60) | st.lists(st.sampled_from([*units.SURFACES, "7", "2.5", "-", "in", "to"])).map(" ".join))
@example("Turn 1 s into century.")
@example("Turn 999999999999999 GB into bit.")
@example("Turn 0.00000000000001 mm into mile.")
@example("Turn 0 m into cm.")
def test_any_text_is_solved_with_a_chain_that_holds_or_not_at_all(text):
    problem = units.solve(text)
    assert problem is None or is_verified(problem, solution(problem)), problem


@pytest.mark.parametrize("text", hostile.TEXTS, ids=range(len(hostile.TEXTS)))
def test_hostile_texts_are_not_solved(text):
    assert units.solve(text) is None
    asked = tasks.solve(make_problem(f"Turn {text} m into cm.", [], "1", "units"))
    assert asked is None or (canonical(asked) == "1 m > cm" and "1" in text)


@pytest.mark.parametrize(
    "question, cells",
    [
        ("How many in are in 5 ft?", "5 ft > in"),
        ("How many cm are in 5 in?", "5 in > cm"),
        ("Give 5 in in cm", "5 in > cm"),
        ("Give 5 cm in in", "5 cm > in"),
        ("From in to mm: 4", "4 in > mm"),
        ("In m, what is 4 km?", "4 km > m"),
        ("Turn 4 m^3 into l", "4 m^3 > L"),
        ("Turn 4 m/s into mi/h!", "4 m/s > mph"),
        ("Turn 1,250 m into km.", "1250 m > km"),
        ("Turn 0.50 m into cm.", "0.5 m > cm"),
    ],
)
def test_in_is_an_inch_only_where_one_is_lacking_and_the_longest_name_counts(question, cells):
    assert canonical(units.solve(question)) == cells


@pytest.mark.parametrize(
    "question",
    [
        "",
        "Turn 5 m into kg.",
        "Turn 5 m into meter.",
        "Turn m into cm.",
        "Turn 5 m into 6 cm.",
        "Turn -5 m into cm.",
        "Turn 5 m.",
        "Turn 5 m/hour into km.",
        "Turn 5 M into m.",
        "Turn 0 m into cm.",
        "Turn 5 m into cm or mm.",
        "Turn 1.2.3 m into cm.",
        "Turn 5 m into cm." + " " * 1000,
        f"Turn {'9' * 400} m into cm.",
        f"Turn {'9' * 15} GB into bit.",
    ],
)
def test_what_is_no_conversion_is_not_solved(question):
    assert units.solve(question) is None


# --- the published form, and the workbench ---


def published(path, rows):
    path.write_text(rows if isinstance(rows, str) else json.dumps(rows))
    return str(path)


def test_a_published_file_round_trips(tmp_path, drawn):
    rows = [[p.question, p.meta["exact"]] for p in drawn[:500]]
    found = units.read(published(tmp_path / "train.json", rows))
    keys = ("id", "question", "steps", "answer", "source")
    for problem, like in zip(found, drawn, strict=False):
        assert all(getattr(problem, key) == getattr(like, key) for key in keys)
        assert problem.meta.items() <= like.meta.items() and is_verified(problem, solution(problem))
    assert [[p.question, p.meta["exact"]] for p in found] == rows
    assert read_jsonl(write_jsonl(tmp_path / "own.jsonl", found)) == found


def test_chains_of_a_file_stand_and_answers_that_differ_get_none_of_ours(tmp_path):
    chain = "1 kg = 1000 g.\n 6 * 1000 = <answer>6000</answer>"
    rows = [["How many g make 6 kg?", 5999.999999999999, chain], ["How many g make 6 kg?", 6500], ["Six?", 2, ""]]
    first, second, third = units.read(published(tmp_path / "rft.json", rows))
    assert first.steps == ("1 kg = 1000 g.", "6 * 1000 = 6000") and first.answer == "6000"
    assert (second.steps, second.answer, canonical(second)) == ((), "6500", "6 kg > g")
    assert (third.steps, third.answer, canonical(third)) == ((), "2", "six?")
    assert is_correct(second, "The answer is 6200") and not is_correct(second, "#### 6100")


ROW = "expected [question, answer] or [question, answer, chain]"
ANSWER = "the answer must be a number from 1e-9 to 1e15, found "


@pytest.mark.parametrize(
    "rows, says",
    [
        ({"a": 1}, "expected a JSON list of [question, answer] pairs, found a dict."),
        ("null", "found a NoneType."),
        ("[[1, 2", "not valid JSON"),
        ("[" * 100_000, "JSON that cannot be held"),
        (["text"], f"item 2: {ROW}, found a str."),
        ([["q"]], f"item 2: {ROW}, found a list of 1."),
        ([["q", 1, "c", 2]], "found a list of 4."),
        ([[3, 1]], "item 2: the question must be a text that is not empty, found '3'"),
        ([[" ", 1]], "the question must be a text that is not empty"),
        ([["q", "6000"]], f"item 2: {ANSWER}'6000'"),
        ([["q", True]], f"{ANSWER}'True'"),
        ([["q", None]], f"{ANSWER}'None'"),
        ('[["a", 1], ["q", NaN]]', f"item 2: {ANSWER}'nan'"),
        ('[["a", 1], ["q", Infinity]]', f"{ANSWER}'inf'"),
        ([["q", -6]], f"{ANSWER}'-6'"),
        ([["q", 0]], f"{ANSWER}'0'"),
        ([["q", 1e15]], f"{ANSWER}'1000000000000000.0'"),
        (f'[["a", 1], ["q", 1{"0" * 4000}]]', f"{ANSWER}'1{'0' * 39}'"),
        ([["q", 1, ["chain"]]], "item 2: the chain must be a text, found a list."),
    ],
)
def test_a_file_of_another_form_is_refused_in_one_sentence(tmp_path, rows, says):
    rows = [["Turn 1 m into cm.", 100], *rows] if isinstance(rows, list) else rows
    path = published(tmp_path / "bad.json", rows)
    with pytest.raises(InputError) as caught:
        units.read(path)
    told = str(caught.value)
    assert says in told and path in told and "\n" not in told and len(told) < len(path) + 200


def test_a_file_is_split_by_its_cells(tmp_path, drawn):
    path = published(tmp_path / "train.json", [[p.question, p.meta["exact"]] for p in drawn[:3000]])
    found = tasks.load("units", path, 0, 0)
    forms = [{canonical(p) for p in found[name]} for name in SPLITS]
    assert not forms[0] & forms[1] and not forms[0] & forms[2] and not forms[1] & forms[2]
    assert sum(map(len, found.values())) == 3000


def test_01_generates_units_and_verifies_every_chain(tmp_path):
    assert tasks.load("units", "", 300, 2) == units.splits(300, 2)
    found = inspected(tmp_path, ("source", "units"), ("common_task", ""), ("more_tasks", [""]), ("n_problems", 300))
    assert found["tasks"] == {"units": {"train": 240, "valid": 30, "test": 30}}
    assert (found["problems"], found["answers_extracted"], found["chains_verified"]) == (300, 300, 300)
