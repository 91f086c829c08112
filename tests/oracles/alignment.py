"""Alignment, slowly: the textbook's dynamic time warping, and every pair of tokens compared character by character."""

import itertools


def levenshtein(a: str, b: str) -> int:
    """How many letters to insert, delete or replace, by the textbook's table."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]


def common(a: str, b: str) -> int:
    """How many letters of one stand in the other, in their order: the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for x in a:
        before = 0
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], before + 1 if x == y else max(row[j], row[j - 1])
    return row[-1]


def cost(a: str, b: str, normalised: bool) -> float:
    """Of two written tokens, blanks and their signs taken out."""
    for sign in "▁ ":
        a, b = a.replace(sign, ""), b.replace(sign, "")
    return 1 - common(a, b) / max(1, min(len(a), len(b))) if normalised else levenshtein(a, b)


def warp(costs: list[list[float]]) -> list[tuple[int, int]]:
    """The published recursion, with a border of infinities, and its way back: diagonal, then the teacher, then back."""
    n, m = len(costs), len(costs[0])
    endless = float("inf")
    total = [[endless] * (m + 1) for _ in range(n + 1)]
    total[0][0] = 0.0
    for i, j in itertools.product(range(1, n + 1), range(1, m + 1)):
        total[i][j] = costs[i - 1][j - 1] + min(total[i - 1][j], total[i][j - 1], total[i - 1][j - 1])
    i, j, way = n - 1, m - 1, [(n - 1, m - 1)]
    while i or j:
        steps = [(total[i][j], 1, 1), (total[i][j + 1], 1, 0), (total[i + 1][j], 0, 1)]
        _, down, right = min(steps, key=lambda step: step[0])  # the first of the cheapest
        i, j = i - down, j - right
        way.append((i, j))
    return way[::-1]


def every_way(n: int, m: int):
    """All ways from (0, 0) to (n - 1, m - 1)."""
    if n == 1 and m == 1:
        yield [(0, 0)]
        return
    for down, right in ((1, 1), (1, 0), (0, 1)):
        if n - down >= 1 and m - right >= 1:
            for way in every_way(n - down, m - right):
                yield [*way, (n - 1, m - 1)]


def links(text: str, left, right, blanks: bool) -> set[tuple[int, int]]:
    """Pairs of spans that share a character of the text; blanks: white space is a character, too."""
    said = [
        {c for c in range(start, end) if blanks or not text[c].isspace()} if blanks else inner(text, start, end)
        for start, end in left
    ]
    told = [set(range(start, end)) if blanks else inner(text, start, end) for start, end in right]
    return {(i, j) for i, a in enumerate(said) for j, b in enumerate(told) if a & b}


def inner(text: str, start: int, end: int) -> set[int]:
    """The characters of a span, without white space at its ends."""
    places = [c for c in range(start, end) if not text[c].isspace()]
    return set(range(places[0], places[-1] + 1)) if places else set()
