"""What a reader's function returned, rebuilt from plain values: what is equal to everything passes no check."""

import functools
import itertools
import sys
import types
from collections.abc import Callable

PLAIN = (bool, int, float, complex, str, bytes)
HEAP = 1 << 9  # the flag of a class made by Python code, Py_TPFLAGS_HEAPTYPE
KNOWN = ("array", "collections", "decimal", "fractions", "itertools", "numpy", "torch")  # whose objects are taken
KNOWN += ("peft", "transformers")


def plainly(function: Callable) -> Callable:
    """The function, with what it returns made of plain values: objects that are equal to everything pass no check."""

    @functools.wraps(function)
    def called(*arguments, **named):
        return plain(function(*arguments, **named))

    return called


def plain(value, depth: int = 0):
    """A value rebuilt from exact int, float, str, list ...; arrays and tensors as they are; else AssertionError."""
    kind = type(value)
    assert depth < 50, "your function returned lists in lists without end"
    if kind in PLAIN or value is None:
        return value
    if kind in (list, tuple, set, frozenset):
        return kind(plain(item, depth + 1) for item in value)
    if kind is dict:
        return {plain(key, depth + 1): plain(item, depth + 1) for key, item in value.items()}
    if kind is types.MappingProxyType:
        return plain(dict(value), depth)
    if not isinstance(value, (list, tuple, set, frozenset, dict)) and (not kind.__flags__ & HEAP or of_library(kind)):
        if hasattr(kind, "__next__"):
            return (plain(item, depth + 1) for item in value)
        if kind.__module__ in ("builtins", "collections") and kind not in (range, bytearray, memoryview):
            return plain(list(value), depth) if hasattr(kind, "__iter__") else value
        return plain(value.tolist(), depth) if str(getattr(value, "dtype", "")) == "object" else value
    for base in PLAIN:
        if isinstance(value, base):
            return base.__new__(base, value) if base is not bytes else bytes(memoryview(value))
    for base in (list, tuple, set, dict):
        if isinstance(value, base):
            parts = base.items(value) if base is dict else base.__iter__(value)
            return plain(base(itertools.islice(parts, 10**6)), depth)
    raise AssertionError(f"your function returned a {kind.__name__}: a number, text, list or array is wanted")


def of_library(kind: type) -> bool:
    """Is it a class of a known library, and none that a cell has put there?"""
    home = sys.modules.get(kind.__module__)
    codes = [getattr(part, "__code__", None) for base in kind.__mro__ for part in vars(base).values()]
    own = any(code is not None and code.co_filename.startswith("<") for code in codes)
    return kind.__module__.partition(".")[0] in KNOWN and getattr(home, kind.__qualname__, None) is kind and not own
