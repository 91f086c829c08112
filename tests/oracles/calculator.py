"""Slow and obvious arithmetic: Python's own grammar reads the text, Fraction and Decimal do the sums. No limits."""

import ast
import operator
import re
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from fractions import Fraction

BINARY = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
UNARY = {ast.UAdd: operator.pos, ast.USub: operator.neg}


def value(text):
    """The value of `text`, or None where it is not made of numbers, + - * /, signs and brackets, or divides by zero.

    Every comma must be a well-placed thousands comma; the oracle does not look.
    """
    for sign, plain in (("×", "*"), ("x", "*"), ("÷", "/"), ("−", "-"), (",", "")):
        text = text.replace(sign, plain)
    text = re.sub(r"(?<![\d.])0+(?=\d)", "", text.strip())  # Python refuses 007
    try:
        return _value(ast.parse(text, mode="eval").body, text)
    except (SyntaxError, ZeroDivisionError):
        return None


def _value(node, text):
    if isinstance(node, ast.BinOp) and type(node.op) in BINARY:
        return BINARY[type(node.op)](_value(node.left, text), _value(node.right, text))
    if isinstance(node, ast.UnaryOp) and type(node.op) in UNARY:
        return UNARY[type(node.op)](_value(node.operand, text))
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        return Fraction(Decimal(ast.get_source_segment(text, node)))
    raise SyntaxError(f"not arithmetic: {ast.dump(node)}")


def rounded(number, decimals=2):
    """A Fraction to `decimals` places, ties to even, as text without trailing zeros and without "-0"."""
    with localcontext() as context:
        context.prec = 200
        exact = Decimal(number.numerator) / Decimal(number.denominator)
        places = exact.quantize(Decimal(1).scaleb(-decimals), rounding=ROUND_HALF_EVEN)
        text = format(places, "f")
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text == "-0" else text
