"""Exact arithmetic on text: rationals by recursive descent, bounded, and never Python's own evaluator.

    evaluate("(3+4)*2")   -> Evaluation(value=Fraction(14), reason=None)
    evaluate("10/0")      -> Evaluation(value=None, reason="division by zero")

The one rounding rule of the workbench lives here, for the calculator that writes numbers and the verifier that reads
them: `format_number` rounds to DECIMALS places, and `agrees` accepts what it writes.
"""

import re
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

MAX_LENGTH = 64  # characters
MAX_ANNOTATION = 80  # characters between << and >>: expression, =, result
MAX_DIGITS = 15  # digits of one number
MAX_TOKENS = 32  # numbers, operators and brackets
MAX_NESTING = 16  # brackets and signs inside one another
DECIMALS = 2

NUMBER = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+"
TOKEN = re.compile(rf"\s*(?:({NUMBER})|([-+*/()]))")
SAME = str.maketrans({"×": "*", "x": "*", "÷": "/", "−": "-"})  # other ways to write the four operators


class Evaluation(NamedTuple):
    """A value, or the reason why there is none: exactly one of the two is None."""

    value: Fraction | None
    reason: str | None


class _Refused(Exception):
    """Raised inside the parser with the reason; never leaves this module."""


@lru_cache(maxsize=65536)
def evaluate(expression: str) -> Evaluation:
    """The exact value of numbers joined by + - * /, signs and brackets.

    Thousands commas count where they are well placed (1,000). Refused, with a reason instead of a value: anything else
    (powers, //, names, %, $, 2(3)), division by zero, and whatever exceeds the limits above. Never raises.
    """
    try:
        return Evaluation(_parse(expression), None)
    except _Refused as refused:
        return Evaluation(None, str(refused))


def _parse(expression: str) -> Fraction:
    if len(expression) > MAX_LENGTH:
        raise _Refused("too long")
    tokens = _tokens(expression.translate(SAME).strip())
    if not tokens:
        raise _Refused("empty")
    value, position = _sum(tokens, 0, 0)
    if position != len(tokens):
        raise _Refused("syntax")
    return value


def _tokens(text: str) -> list[Fraction | str]:
    tokens, position = [], 0
    while position < len(text):
        match = TOKEN.match(text, position)
        if match is None:
            raise _Refused("character")
        number, operator = match.groups()
        if number is None:
            tokens.append(operator)
        else:
            digits = number.replace(",", "")
            if len(digits.replace(".", "")) > MAX_DIGITS:
                raise _Refused("too many digits")
            if tokens and isinstance(tokens[-1], Fraction):
                raise _Refused("syntax")  # two numbers in a row, such as 1,00
            tokens.append(Fraction(digits if digits[-1] != "." else digits[:-1]))
        if len(tokens) > MAX_TOKENS:
            raise _Refused("too many tokens")
        position = match.end()
    return tokens


def _sum(tokens: list, position: int, depth: int) -> tuple[Fraction, int]:
    """sum := product (("+" | "-") product)*"""
    value, position = _product(tokens, position, depth)
    while position < len(tokens) and tokens[position] in ("+", "-"):
        sign = 1 if tokens[position] == "+" else -1
        term, position = _product(tokens, position + 1, depth)
        value += sign * term
    return value, position


def _product(tokens: list, position: int, depth: int) -> tuple[Fraction, int]:
    """product := factor (("*" | "/") factor)*"""
    value, position = _factor(tokens, position, depth)
    while position < len(tokens) and tokens[position] in ("*", "/"):
        operator = tokens[position]
        factor, position = _factor(tokens, position + 1, depth)
        if operator == "/" and factor == 0:
            raise _Refused("division by zero")
        value = value * factor if operator == "*" else value / factor
    return value, position


def _factor(tokens: list, position: int, depth: int) -> tuple[Fraction, int]:
    """factor := number | ("+" | "-") factor | "(" sum ")" """
    if depth > MAX_NESTING:
        raise _Refused("too deep")
    if position == len(tokens):
        raise _Refused("syntax")
    token = tokens[position]
    if isinstance(token, Fraction):
        return token, position + 1
    if token in ("+", "-"):
        value, position = _factor(tokens, position + 1, depth + 1)
        return (value if token == "+" else -value), position
    if token == "(":
        value, position = _sum(tokens, position + 1, depth + 1)
        if position < len(tokens) and tokens[position] == ")":
            return value, position + 1
    raise _Refused("syntax")


def format_number(value: Fraction, decimals: int = DECIMALS) -> str:
    """A whole number as it is; else `decimals` places, ties to even, without trailing zeros (1/3 -> 0.33)."""
    scaled = round(value * 10**decimals)
    whole, part = divmod(abs(scaled), 10**decimals)
    text = f"{whole}.{part:0{decimals}d}".rstrip("0").rstrip(".") if part else str(whole)
    return f"-{text}" if scaled < 0 else text


def agrees(value: Fraction, printed: str, decimals: int = DECIMALS) -> bool:
    """Does `printed` state `value`, rounded at most to the last place it prints?

    0.33 and 0.333 agree with 1/3, 0.34 does not. A number printed without decimals may hide trimmed zeros, so it counts
    as printed to `decimals` places: 3 agrees with 2.999 but 4 does not agree with 7/2. An expression (3/4) is exact.
    """
    text = printed.translate(SAME).strip()
    if len(text) > MAX_LENGTH or not re.fullmatch(rf"[-+]?(?:{NUMBER})", text):
        return evaluate(printed).value == value
    places = len(text.partition(".")[2]) or decimals
    return abs(Fraction(text.replace(",", "").rstrip(".")) - value) <= Fraction(1, 2 * 10**places)
