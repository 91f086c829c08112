"""Preference pairs and what is learned, the slow, obvious way: fractions, lists and every combination."""

from fractions import Fraction
from itertools import combinations


def similarity(a, b) -> Fraction:
    """Of all tokens that occur in either, the share that occurs in both."""
    either = [*a, *(x for x in b if x not in a)]
    both = [x for x in a if x in b]
    return Fraction(len(both), len(either)) if either else Fraction(1)


def keep(texts, tokens, limit: str) -> list[str]:
    """The texts of which no earlier kept one is more alike than `limit`, a decimal number as it is written."""
    kept = []
    for text in texts:
        likeness = [similarity(tokens[text], tokens[other]) for other in kept]
        if not any(x > Fraction(limit) for x in likeness):
            kept.append(text)
    return kept


def extremes(chosen, rejected, tokens, n, rule) -> list[Fraction]:
    """The similarities of the `n` pairs that a rule takes, sorted: the smallest or the largest of all."""
    everything = sorted(similarity(tokens[a], tokens[b]) for a in chosen for b in rejected)
    return everything[:n] if rule == "farthest" else everything[max(0, len(everything) - n) :]


def cap(counts: list[int], percentile: str) -> int:
    """The whole part of a percentile: between the two counts around its place, on the straight line that joins them."""
    counts, place = sorted(counts), Fraction(percentile) / 100 * (len(counts) - 1)
    below = place.numerator // place.denominator
    above = min(below + 1, len(counts) - 1)
    value = counts[below] + (counts[above] - counts[below]) * (place - below)
    return value.numerator // value.denominator


def pass_at_k(right: list[bool], k: int) -> Fraction:
    """Of all ways to take k of the samples, the share with at least one that is right."""
    ways = [any(way) for way in combinations(right, k)]
    return Fraction(sum(ways), len(ways))
