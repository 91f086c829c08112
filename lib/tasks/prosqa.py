"""ProsQA: which of two things can be reached from here? A graph that has to be searched, not just followed.

As published with Coconut (arXiv:2412.06769), in text; the chain is a shortest path from what is asked about:

    Tom is a terpus. Every brimpus is a lempus. Alex is a rempus. ... Is Tom a lempus or scrompus?
        Tom is a terpus.
        Every terpus is a brimpus.
        Every brimpus is a lempus.
        #### Tom is a lempus.

Or in symbols (after arXiv:2505.12514), for small models: edges, two candidates, the root to start from:

    n3 n7 | n0 n4 | n7 n9 ? n9 n4 : n3
        n7
        n9
        #### n9

Every symbol is one token of lib.tokenization, which joins it to the blank before it, if there is one: so a node is the
token " n7" inside a question, and "n7" where a line begins (a step, an answer, the first word of all).

Two modes. "faithful" has the statistics of the released files, and their shortcut: of the two candidates, the deeper
one is right nine times in ten, whoever is asked about. "balanced" leaves nothing to find without the root that is asked
about: two leaves equally deep, one below each root, and a fair coin between the roots.
"""

import random
import re
from bisect import bisect
from collections import Counter
from collections.abc import Iterable
from hashlib import blake2b
from itertools import accumulate
from math import exp, factorial
from pathlib import Path
from typing import NamedTuple

from lib.errors import InputError
from lib.problems import Problem, make_problem, read_json

ENTITIES = "Alex Bob Carol Davis Eva Fae Gabriel Jack Max Oliver Polly Rex Sally Sam Stella Tom Wren".split()
CONCEPTS = (
    "bompus boompus brimpus chorpus dumpus felpus fompus gerpus gorpus grimpus gwompus hilpus impus jelpus jompus "
    "kerpus lempus lorpus numpus quimpus rempus rompus rorpus scrompus shumpus sterpus storpus terpus timpus tumpus "
    "vumpus worpus wumpus yerpus yimpus yumpus zhorpus zumpus"
).split()
PARENTS = 1.5  # the mean number of parents that a node asks for
FIRST, SECOND = 1, 2  # labels of what root 0 and root 1 reach; their sum where both do, 0 where neither
POISSON = list(accumulate(exp(-PARENTS) * PARENTS**k / factorial(k) for k in range(12)))
KEYS, ROLES = ("question", "steps", "answer", "idx_to_symbol", "edges"), ("root", "target", "neg_target")
TRIES = 20_000  # graphs drawn for the first problem, and for every 64 more, before the sizes are called impossible


class Graph(NamedTuple):
    """A drawn graph: parents and children of each node in the order drawn (the roots are 0 and 1), and its label."""

    parents: list[list[int]]
    children: list[list[int]]
    labels: list[int]


# ----- drawing graphs
def draw_graph(rng: random.Random, n_nodes: int) -> Graph:
    """A random acyclic graph of at most `n_nodes` nodes, as the released files seem to be drawn.

    After the two roots, each node draws how many parents it asks for (Poisson of mean 1.5) and from whom: nodes that
    only root 0 reaches (0.4), only root 1 (0.4), or all (0.2); each with a weight of 1.5 times its depth plus 1, where
    depth is the distance from the nearest node without parents. Nodes without any edge are dropped at the end.
    """
    parents, labels, depth = [[], []], [FIRST, SECOND], [0, 0]
    pools = {FIRST: ([0], [1.0]), SECOND: ([1], [1.0]), None: ([0, 1], [1.0, 2.0])}  # nodes, sums of their weights
    for node in range(2, n_nodes):
        point = rng.random()
        pool, sums = pools[FIRST if point < 0.4 else SECOND if point < 0.8 else None]
        wanted, chosen = min(bisect(POISSON, rng.random()), len(pool)), []
        while len(chosen) < wanted:
            parent = pool[bisect(sums, rng.random() * sums[-1])]
            if parent not in chosen:
                chosen.append(parent)
        label = sum({labels[parent] & bit for parent in chosen for bit in (FIRST, SECOND)})
        parents.append(chosen)
        labels.append(label)
        depth.append(1 + min(depth[p] for p in chosen) if chosen else 0)
        for key in (label, None):
            if key in pools:
                pools[key][0].append(node)
                pools[key][1].append(pools[key][1][-1] + 1.5 * depth[node] + 1)
    used = sorted({n for n, ps in enumerate(parents) if ps} | {p for ps in parents for p in ps})
    place = {node: i for i, node in enumerate(used)}
    above = [[place[p] for p in parents[n]] for n in used]
    edges = [(parent, node) for node, some in enumerate(above) for parent in some]
    return Graph(above, _lists(len(used), edges), [labels[n] for n in used])


def ask(rng: random.Random, graph: Graph, mode: str, min_hops: int, max_hops: int) -> tuple[int, int, int] | None:
    """What to ask of a graph, as (root, right leaf, wrong leaf), or None where nothing fits; hops are the shortest.

    faithful  the root whose deepest leaf of its own lies deeper (root 1 in a tie), that leaf, any leaf of the other
    balanced  a leaf of each root, as many hops from it as the other is (the most there are), if possible with equally
              many parents and equally far from any entity; a coin decides last which root is asked about
    """
    if graph.labels[:2] != [FIRST, SECOND]:  # a root without any edge was dropped
        return None
    hops = distances(graph.children, [0]), distances(graph.children, [1])
    leaves = [(n, graph.labels[n]) for n, after in enumerate(graph.children) if not after]
    own = [[n for n, label in leaves if label == wanted] for wanted in (FIRST, SECOND)]
    if not (own[0] and own[1]):
        return None
    if mode == "faithful":
        deepest = [max(hops[root][n] for n in own[root]) for root in (0, 1)]
        root = 0 if deepest[0] > deepest[1] else 1
        if not min_hops <= deepest[root] <= max_hops:
            return None
        target = rng.choice([n for n in own[root] if hops[root][n] == deepest[root]])
        return root, target, rng.choice(own[1 - root])
    pairs = [(a, b) for a in own[0] for b in own[1] if hops[0][a] == hops[1][b] and min_hops <= hops[0][a] <= max_hops]
    if not pairs:
        return None
    depth = max(hops[0][a] for a, _ in pairs)
    pairs = [(a, b) for a, b in pairs if hops[0][a] == depth]
    away = distances(graph.children, [n for n, before in enumerate(graph.parents) if not before])
    for alike in (lambda n: len(graph.parents[n]), lambda n: away[n]):
        pairs = [(a, b) for a, b in pairs if alike(a) == alike(b)] or pairs
    pair, root = rng.choice(pairs), rng.randrange(2)
    return root, pair[root], pair[1 - root]


def shortest_path(rng: random.Random, graph: Graph, root: int, target: int) -> list[int]:
    """The nodes of a shortest path from root to target, both included; any of several, by `rng`."""
    hops, path = distances(graph.children, [root]), [target]
    while path[-1] != root:
        path.append(rng.choice([p for p in graph.parents[path[-1]] if hops.get(p) == hops[path[-1]] - 1]))
    return path[::-1]


# ----- problems
def generate(
    n: int,
    mode: str = "balanced",
    form: str = "text",
    n_nodes: int = 28,
    min_hops: int = 3,
    max_hops: int = 6,
    seed: int = 0,
    permute: bool = True,
) -> list[Problem]:
    """`n` problems with different questions.

    mode      "balanced" or "faithful", form "text" or "symbol": see the top of this file
    n_nodes   drawn for a graph; those left without an edge (about a fifth) are dropped
    min_hops, max_hops  bounds of the distance from the asked root to the right answer
    permute   symbols only: the numbers of the nodes are drawn at random from 0..n_nodes-1; False counts them in the
              order in which they were drawn, as published, and so tells how deep a node lies
    Raises InputError for sizes that make no sense, or of which there are no (more) problems.
    """
    if mode not in ("balanced", "faithful") or form not in ("text", "symbol"):
        raise InputError(f'prosqa knows "balanced" and "faithful", "text" and "symbol"; got {mode!r} and {form!r}.')
    needed = 2 + (2 * min_hops if mode == "balanced" else min_hops + 1)
    if not (1 <= min_hops <= max_hops and needed <= n_nodes):
        raise InputError(
            f"prosqa wants 1 <= min_hops <= max_hops and, for {mode} graphs of {min_hops} hops, at least "
            f"{max(needed, 4)} nodes; got {min_hops}, {max_hops} and {n_nodes}; change them."
        )
    if form == "text" and n_nodes > len(CONCEPTS) + 2:
        raise InputError(f"prosqa has names for {len(CONCEPTS) + 2} nodes, not {n_nodes}; ask for symbols or fewer.")
    rng, problems, drawn = random.Random(seed), {}, 0
    while len(problems) < n:
        drawn += 1
        graph = draw_graph(rng, n_nodes)
        choice = ask(rng, graph, mode, min_hops, max_hops)
        names = choice and _names(rng, graph, form, n_nodes if permute else 0)
        new = names and _problem(rng, graph, choice, names, form)
        if new and new.id not in problems:
            problems[new.id] = new
        elif drawn > TRIES * (1 + len(problems) / 64):
            raise InputError(
                f"prosqa finds only {len(problems)} of {n} {mode} graphs of {n_nodes} nodes with {min_hops} to "
                f"{max_hops} hops; ask for fewer, for more nodes or for fewer hops."
            )
    return list(problems.values())


def _names(rng: random.Random, graph: Graph, form: str, permuted: int) -> list[str] | None:
    """A name for each node, None where the words run out; `permuted` symbols are drawn from (0: in order)."""
    if form == "symbol":
        size = len(graph.parents)
        return [f"n{i}" for i in (rng.sample(range(permuted), size) if permuted else range(size))]
    n_entities = sum(not before for before in graph.parents)
    if n_entities > len(ENTITIES):
        return None
    entities, concepts = iter(rng.sample(ENTITIES, n_entities)), iter(rng.sample(CONCEPTS, len(CONCEPTS)))
    return [next(concepts if before else entities) for before in graph.parents]


def _problem(rng: random.Random, graph: Graph, choice: tuple, names: list[str], form: str) -> Problem:
    edges = [[parent, node] for node, before in enumerate(graph.parents) for parent in before]
    root, target, wrong = choice
    path = shortest_path(rng, graph, root, target)
    shown = rng.sample(edges, len(edges))
    first, second = rng.sample([names[target], names[wrong]], 2)
    meta = _meta(edges, *choice, names, "path" if form == "text" else "symbols")
    if form == "symbol":
        premises = " | ".join(f"{names[a]} {names[b]}" for a, b in shown)
        question = f"{premises} ? {first} {second} : {names[root]}"
        return make_problem(question, [names[node] for node in path[1:]], names[target], "prosqa", **meta)

    def sentence(a: int, b: int) -> str:
        return f"{'Every ' if graph.parents[a] else ''}{names[a]} is a {names[b]}."

    asked = f"Is {names[root]} a {first} or {second}?"
    steps = [sentence(a, b) for a, b in zip(path, path[1:], strict=False)]
    answer = sentence(root, target)
    return make_problem(" ".join([sentence(a, b) for a, b in shown] + [asked]), steps, answer, "prosqa", **meta)


def _meta(edges: list, root: int, target: int, wrong: int, names: list[str], proof: str) -> dict:
    """A problem's meta. Its split is decided by the graph and what is asked of it, whatever the nodes are called."""
    form = repr((sorted(map(tuple, edges)), root, *sorted((target, wrong))))
    canonical = f"prosqa {blake2b(form.encode(), digest_size=16).hexdigest()}"
    graph = {"names": names, "edges": edges, "root": root, "target": target, "neg_target": wrong}
    return {**graph, "answer_kind": "text", "proof": proof, "canonical": canonical}


# ----- the published file
def read(path: str | Path) -> list[Problem]:
    """The problems of a published file, prosqa_train.json and its like: a JSON list of objects.

    Raises InputError, with the file and the item's number, at the first that is malformed.
    """
    records = read_json(path)
    if not isinstance(records, list) or not records:
        raise InputError(f"{path}: expected a JSON list of problems, as ProsQA is published; check the file.")
    return [parse_record(record, f"{path}, item {number}") for number, record in enumerate(records, 1)]


def parse_record(record: object, where: str) -> Problem:
    """A Problem from one published object; InputError where a part is missing or the graph contradicts itself."""

    def wants(holds: bool, what: str):
        if not holds:
            raise InputError(f"{where}: {what}; mend or drop the item.")

    def is_text(value: object) -> bool:
        return isinstance(value, str) and value.isprintable() and value.strip() != ""

    wants(isinstance(record, dict), "expected an object with question, steps, answer and a graph")
    question, steps, answer, names, edges, *asked = map(record.get, (*KEYS, *ROLES))
    wants(is_text(question) and is_text(answer), '"question" and "answer" must be plain texts')
    for key, texts in (("steps", steps), ("idx_to_symbol", names)):
        wants(isinstance(texts, list) and texts and all(map(is_text, texts)), f'"{key}" must be a list of plain texts')
    wants(len(set(names)) == len(names), '"idx_to_symbol" names two nodes alike')
    pairs = isinstance(edges, list) and all(isinstance(edge, list) and len(edge) == 2 for edge in edges)
    wants(pairs, '"edges" must be a list of pairs of node numbers')
    numbers = asked + [number for edge in edges for number in edge]
    right = all(type(number) is int and 0 <= number < len(names) for number in numbers)
    wants(right, f'"edges", "root", "target" and "neg_target" must hold numbers of nodes, below {len(names)}')
    following = _lists(len(names), edges)
    reached = distances(following, asked[:1])
    wants(len(_sorted(following)) == len(names), "the graph has a cycle")
    wants(asked[1] in reached and asked[2] not in reached, '"root" must reach "target" and not "neg_target"')
    meta = _meta(edges, *asked, names, "path")
    return make_problem(question.strip(), steps, answer.strip(), "prosqa", **meta)


# ----- a problem's graph; nodes are numbers, places in meta["names"]
def distances(following: list[list[int]], starts: list[int]) -> dict[int, int]:
    """{node: edges on a shortest way to it from the nearest of `starts`}, breadth first; what is not reached lacks."""
    found = dict.fromkeys(starts, 0)
    queue = list(starts)
    for node in queue:
        for after in following[node]:
            if after not in found:
                found[after] = found[node] + 1
                queue.append(after)
    return found


def _lists(size: int, edges: Iterable[tuple[int, int]]) -> list[list[int]]:
    """For each of `size` nodes, where its edges lead."""
    lists = [[] for _ in range(size)]
    for a, b in edges:
        lists[a].append(b)
    return lists


def _sorted(following: list[list[int]]) -> list[int]:
    """Nodes in an order in which parents come first; those on a cycle, or below one, are missing."""
    missing = [0] * len(following)
    for after in (after for some in following for after in some):
        missing[after] += 1
    order = [node for node, count in enumerate(missing) if not count]
    for node in order:
        for after in following[node]:
            missing[after] -= 1
            if not missing[after]:
                order.append(after)
    return order


def parents(problem: Problem) -> list[list[int]]:
    """The parents of each node."""
    return _lists(len(problem.meta["names"]), ((b, a) for a, b in problem.meta["edges"]))


def children(problem: Problem) -> list[list[int]]:
    """The children of each node."""
    return _lists(len(problem.meta["names"]), problem.meta["edges"])


def frontier(problem: Problem, hop: int) -> list[str]:
    """The names of the nodes at exactly this distance from the root: what a breadth-first search finds at its `hop`th
    step, and what Coconut-BFS (arXiv:2505.12514) draws the target of that stage from."""
    found = distances(children(problem), [problem.meta["root"]])
    return [name for node, name in enumerate(problem.meta["names"]) if found.get(node) == hop]


def heights(problem: Problem, longest: bool = False) -> dict[str, int]:
    """{name: edges from the node down to a leaf}: along the shortest way, or along the longest.

    Coconut's paper means the longest in its figure 7, and the shortest in its section 5.4.
    """
    following, found = children(problem), {}
    for node in reversed(_sorted(following)):
        below = [found[after] + 1 for after in following[node]]
        found[node] = (max if longest else min)(below, default=0)
    return {name: found[node] for node, name in enumerate(problem.meta["names"])}


def statistics(problems: list[Problem]) -> dict:
    """What the graphs are like, on average over problems; every share is in [0, 1].

    nodes, edges, entities (nodes without parents), shortest_paths (from root to target), hops (on one of them)
    hops_share      {hops: share of problems}, every key a text
    in_degree       {number of parents, "5+" from 5: share of the nodes other than the two roots}
    labels          share of these nodes that the asked root alone reaches ("own"), the other root alone, both, neither
    frontier        [mean number of nodes at distance 1, 2, ... from the asked root]
    wrong_distance  {edges from the other root to the wrong candidate: share of problems}
    asked_second    share of problems about the root that was drawn second
    within_3_hops   accuracy of a search of 3 hops that tosses a coin where it has not met the right answer
    characters      of the question
    The other root is the first node without parents, in the order of `names`, that reaches the wrong candidate.
    """
    total, front, size = Counter(), Counter(), len(problems) or 1
    shares = {name: Counter() for name in ("hops_share", "in_degree", "labels", "wrong_distance")}
    for problem in problems:
        before, following = parents(problem), children(problem)
        root, target, wrong = (problem.meta[role] for role in ROLES)
        above = distances(before, [wrong])
        other = min((n for n in above if not before[n] and n != root), default=root)
        own, others = distances(following, [root]), distances(following, [other])
        paths = [1 if node == root else 0 for node in range(len(before))]
        for node in own:  # nearest first
            paths[node] += sum(paths[p] for p in before[node] if own.get(p, -1) == own[node] - 1)
        front.update(hop for hop in own.values() if hop)
        rest = set(range(len(before))) - {root, other}
        shares["hops_share"][own[target]] += 1
        shares["in_degree"].update("5+" if len(before[n]) >= 5 else str(len(before[n])) for n in rest)
        shares["labels"].update(("neither", "own", "other", "both")[(n in own) + 2 * (n in others)] for n in rest)
        shares["wrong_distance"][others[wrong]] += 1
        total.update(
            nodes=len(before),
            edges=len(problem.meta["edges"]),
            entities=sum(not some for some in before),
            shortest_paths=paths[target],
            hops=own[target],
            asked_second=root > other,
            within_3_hops=1 if own[target] <= 3 else 0.5,
            characters=len(problem.question),
        )
    return {
        **{key: value / size for key, value in total.items()},
        "frontier": [front[hop] / size for hop in sorted(front)],
        **{name: {str(key): count[key] / count.total() for key in sorted(count)} for name, count in shares.items()},
    }


def shortcuts(problems: list[Problem]) -> dict[str, float]:
    """How often a rule that never looks at the asked root picks the right candidate; ties count half, chance is 0.5.

    deeper             the candidate farther from the entity (node without parents) nearest to it
    smaller_in_degree  the candidate with fewer parents
    more_ancestors     the candidate that more nodes lead to
    larger_id          the candidate with the larger number: a symbol's own, else its place in `names`
    listed_first       the candidate named first
    """
    names, won = ("deeper", "smaller_in_degree", "more_ancestors", "larger_id", "listed_first"), Counter()
    for problem in problems:
        before, following = parents(problem), children(problem)
        away = distances(following, [node for node, some in enumerate(before) if not some])
        shown = re.findall(r"\w+", problem.question)[-3:]
        scores = []
        for node in (problem.meta["target"], problem.meta["neg_target"]):
            name = problem.meta["names"][node]
            number = int(name[1:]) if problem.meta["proof"] == "symbols" else node
            above = len(distances(before, [node]))
            scores.append((away[node], -len(before[node]), above, number, -shown.index(name)))
        for rule, right, wrong in zip(names, *scores, strict=True):
            won[rule] += (right > wrong) + 0.5 * (right == wrong)
    return {rule: won[rule] / (len(problems) or 1) for rule in names}
