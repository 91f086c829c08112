"""Slow, obvious graph search, and questions of ProsQA read anew: edges are pairs of names, and that is all there is."""

import re


def edges_of_text(question):
    """(edges, asked root, the two candidates) of a question in sentences."""
    *premises, asked = re.split(r"(?<=\.) ", question)
    edges = [re.fullmatch(r"(?:Every )?(\w+) is a (\w+)\.", premise).groups() for premise in premises]
    root, *candidates = re.fullmatch(r"Is (\w+) a (\w+) or (\w+)\?", asked).groups()
    return edges, root, candidates


def edges_of_symbols(question):
    """(edges, asked root, the two candidates) of a question in symbols."""
    premises, asked = question.split(" ? ")
    candidates, root = asked.split(" : ")
    return [tuple(edge.split(" ")) for edge in premises.split(" | ")], root, candidates.split(" ")


def after(edges, hops, start):
    """The names that a walk of exactly `hops` edges from `start` can end at."""
    ends = {start}
    for _ in range(hops):
        ends = {b for a, b in edges if a in ends}
    return ends


def distance(edges, start, end):
    """Edges on a shortest walk, None where there is no walk."""
    for hops in range(len(edges) + 1):
        if end in after(edges, hops, start):
            return hops
    return None


def paths(edges, start, end):
    """Every path from start to end, as a list of names."""
    if start == end:
        return [[end]]
    return [[start, *rest] for a, b in edges if a == start for rest in paths(edges, b, end)]


def has_cycle(edges):
    """Can some name be reached from itself?"""
    return any(a in after(edges, hops, a) for a in {a for a, _ in edges} for hops in range(1, len(edges) + 1))
