"""Exact arithmetic on text, its limits, and the one rounding rule."""

import re
import time
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from lib.calculator import agrees, evaluate, format_number
from tests.oracles import calculator as oracle
from tests.oracles import hostile

many = settings(max_examples=200, deadline=None)

ACCEPTED = [
    ("2+3*4", 14),
    ("(2+3)*4", 20),
    ("8-4-2", 2),
    ("8/4/2", 1),
    ("8/(4/2)", 4),
    ("6/3*2", 4),
    ("2-3+4", 3),
    ("3-5", -2),
    ("2*-3", -6),
    ("2--3", 5),
    ("-(3+4)", -7),
    ("+3", 3),
    ("1,000*2", 2000),
    ("12,345,678.5", Fraction(24691357, 2)),
    ("0.1+0.2", Fraction(3, 10)),
    ("1/3*3", 1),
    ("2/.5", 4),
    ("5.*2", 10),
    ("007", 7),
    (" 1 +\t2 ", 3),
    ("2×3", 6),
    ("2x3", 6),
    ("6÷4", Fraction(3, 2)),
    ("5−7", -2),
]
REFUSED = [
    ("10/0", "division by zero"),
    ("1/(2-2)", "division by zero"),
    ("0/0", "division by zero"),
    ("5(3)", "syntax"),
    ("(5)(3)", "syntax"),
    ("3+", "syntax"),
    ("*3", "syntax"),
    ("(3", "syntax"),
    ("3)", "syntax"),
    ("()", "syntax"),
    ("1 2", "syntax"),
    ("1 000", "syntax"),
    ("1.2.3", "syntax"),
    ("9**9**9", "syntax"),
    ("7//2", "syntax"),
    ("$5*2", "character"),
    ("20%*50", "character"),
    ("2^3", "character"),
    ("1e5", "character"),
    ("1_000", "character"),
    ("3=3", "character"),
    ("abs(3)", "character"),
    (".", "character"),
    ("٣", "character"),
    ("²", "character"),
    ("1,00*2", "character"),
    ("1,0000", "character"),
    ("1000,000", "character"),
    ("1,000,00", "character"),
    (",100", "character"),
    ("", "empty"),
    ("  ", "empty"),
]


@pytest.mark.parametrize("text, value", ACCEPTED)
def test_value(text, value):
    assert evaluate(text) == (value, None)


@pytest.mark.parametrize("text, reason", REFUSED)
def test_refused_with_the_reason(text, reason):
    assert evaluate(text) == (None, reason)


SIXTEEN_ONES = "+".join("1" * 16)  # 31 tokens


@pytest.mark.parametrize(
    "allowed, beyond, reason",
    [
        ("1+1".ljust(64), "1+1".ljust(65), "too long"),
        ("9" * 15, "9" * 16, "too many digits"),
        ("0.12345678901234", "0.123456789012345", "too many digits"),
        ("999,999,999,999,999", "1,000,000,000,000,000", "too many digits"),
        ("-" + SIXTEEN_ONES, "--" + SIXTEEN_ONES, "too many tokens"),
        ("-" * 16 + "1", "-" * 17 + "1", "too deep"),
        ("(" * 8 + "-" * 8 + "1" + ")" * 8, "(" * 8 + "-" * 9 + "1" + ")" * 8, "too deep"),
    ],
)
def test_limits_hold_at_their_edge(allowed, beyond, reason):
    assert evaluate(allowed).value == oracle.value(allowed) is not None
    assert evaluate(beyond) == (None, reason)


numbers = st.one_of(
    st.integers(0, 99).map(str),
    st.integers(0, 9_999_999).map("{:,}".format),
    st.decimals(0, 99, places=2).map(str),
    st.sampled_from(["0", ".5", "5.", "007", "0.0"]),
)
operators = st.sampled_from(["+", "-", "*", "/", " + ", " / ", "×", "x", "÷", "−"])
expressions = st.recursive(
    numbers,
    lambda part: st.one_of(
        st.tuples(part, operators, part).map("".join),
        part.map("({})".format),
        st.tuples(st.sampled_from("-+"), part).map("".join),
    ),
    max_leaves=12,
)


@many
@given(expressions)
@example("1/(0.5-.5)")
def test_expressions_have_the_value_of_the_oracle(text):
    assume(len(text) <= 64)
    assert evaluate(text).value == oracle.value(text)


@settings(max_examples=600, deadline=None)
@given(st.lists(st.sampled_from(["1", "0", ".5", "3+", "2.-", "7*", "4/", " ", *"+-*/()"]), max_size=9).map("".join))
def test_what_the_oracle_refuses_is_refused_and_nothing_else(text):
    assert evaluate(text).value == oracle.value(text)


@many
@given(st.one_of(st.text(), st.text("0123456789.,+-*/()x× \n", max_size=80)))
def test_any_text_gives_a_value_or_a_reason_but_never_both(text):
    value, reason = evaluate(text)
    assert (value is None) != (reason is None)
    assert isinstance(value, Fraction) or reason


@pytest.mark.parametrize("text", hostile.TEXTS, ids=range(len(hostile.TEXTS)))
def test_hostile_text_ends_at_once(text):
    started = time.process_time()
    value, reason = evaluate(text)
    assert time.process_time() - started < 0.2
    assert (value is None) != (reason is None)


@pytest.mark.parametrize(
    "value, text",
    [
        (Fraction("2.99999"), "3"),
        (Fraction(1, 3), "0.33"),
        (Fraction(2, 3), "0.67"),
        (Fraction(1, 8), "0.12"),
        (Fraction(3, 8), "0.38"),
        (Fraction(-1, 8), "-0.12"),
        (Fraction(-7, 2), "-3.5"),
        (Fraction(-1, 1000), "0"),
        (Fraction(101, 10), "10.1"),
        (Fraction(1, 20), "0.05"),
        (Fraction(100), "100"),
    ],
)
def test_number_is_written_with_two_places_at_most(value, text):
    assert format_number(value) == text


ties = st.builds(lambda odd, places: Fraction(odd, 2 * 10**places), st.integers(-(10**4), 10**4), st.integers(0, 5))
values = st.one_of(st.fractions(-(10**6), 10**6, max_denominator=1000), ties)


@many
@given(values, st.integers(0, 5))
def test_number_is_rounded_as_decimal_rounds_half_even(value, decimals):
    assert format_number(value, decimals) == oracle.rounded(value, decimals)


@many
@given(values, st.integers(0, 5))
def test_what_is_written_agrees_with_the_value(value, decimals):
    assert agrees(value, format_number(value, decimals), decimals)


@many
@given(values)
def test_neighbours_of_what_is_written_do_not_agree(value):
    printed = Decimal(format_number(value))
    places = -printed.as_tuple().exponent or 2
    assume((value * 2 * 10**places).denominator != 1)  # no tie: half a unit away on both sides
    for step in (Decimal(1).scaleb(-places), -Decimal(1).scaleb(-places)):
        assert not agrees(value, str(printed + step))


@pytest.mark.parametrize(
    "value, printed",
    [
        (Fraction(1, 3), "0.33"),
        (Fraction(1, 3), "0.333"),
        (Fraction(1, 3), ".3"),
        (Fraction(-1, 3), "-0.33"),
        (Fraction(60), "60.00"),
        (Fraction(2999, 1000), "3"),
        (Fraction(7, 2), " 3.50 "),
        (Fraction(1080), "1,080"),
        (Fraction(3, 4), "3/4"),
        (Fraction(1, 8), "0.12"),
        (Fraction(1, 8), "0.13"),
    ],
)
def test_agrees(value, printed):
    assert agrees(value, printed)


@pytest.mark.parametrize(
    "value, printed",
    [
        (Fraction(7, 2), "4"),
        (Fraction(7, 2), "3"),
        (Fraction(1, 3), "0.34"),
        (Fraction(1, 3), "0.334"),
        (Fraction(1, 3), "0.33/1"),  # an expression must be exact
        (Fraction(1, 3), "-0.33"),
        (Fraction(299, 100), "3"),
        (Fraction(2), "2=2"),
        (Fraction(2), "$2"),
        (Fraction(2), "two"),
        (Fraction(0), ""),
    ],
)
def test_does_not_agree(value, printed):
    assert not agrees(value, printed)


@pytest.mark.parametrize("expression", ["999999999999999+1", "99999999999999.5+0.25"])
def test_what_is_written_of_a_large_value_agrees(expression):
    value = evaluate(expression).value
    assert agrees(value, format_number(value))


def test_typographic_minus_rounds_like_the_plain_one():
    assert re.match("−", "−0.33") and agrees(Fraction(-1, 3), "−0.33")
