"""ProsQA: graphs as published or without their shortcut, questions that say what the graph is, files read safely."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib import tasks
from lib.answers import is_verified
from lib.errors import InputError
from lib.problems import SPLITS, canonical, read_jsonl, split_of, write_jsonl
from lib.prompts import prompt, solution
from lib.tasks import gsm8k, prosqa
from lib.tokenization import build_tokenizer
from tests.oracles import graphs

REAL = Path(os.environ.get("REAL_DATA") or "no such folder")
needs_real_files = pytest.mark.skipif(not REAL.is_dir(), reason="set REAL_DATA to the folder of real files")
SMALL = {"n_nodes": 11, "min_hops": 2, "max_hops": 3}
every_kind = pytest.mark.parametrize("mode", ["faithful", "balanced"])
every_form = pytest.mark.parametrize("form", ["text", "symbol"])
READ = {"text": graphs.edges_of_text, "symbol": graphs.edges_of_symbols}

# Over the 800 published validation and test problems: the figure, and how far 5,000 generated graphs may lie from it.
PUBLISHED = {
    "nodes": (22.8, 0.25),
    "edges": (36.0, 0.8),
    "entities": (2.56, 0.08),
    "hops": (3.77, 0.06),
    "shortest_paths": (1.6, 0.08),
    "asked_second": (0.63, 0.04),
    "within_3_hops": (0.70, 0.025),
    "characters": (930, 20),
}
PUBLISHED_SHARES = {
    "hops_share": ({"3": 0.41, "4": 0.44, "5": 0.13, "6": 0.02}, 0.04),
    "in_degree": ({"0": 0.027, "1": 0.48, "2": 0.305, "3": 0.134, "4": 0.042, "5+": 0.012}, 0.015),
    "labels": ({"own": 0.535, "other": 0.37, "both": 0.06, "neither": 0.03}, 0.03),
    "wrong_distance": ({"1": 0.19, "2": 0.53, "3": 0.25, "4": 0.03}, 0.04),
}
PUBLISHED_FRONTIER = [2.9, 4.4, 3.35, 1.33, 0.30, 0.04]
PUBLISHED_SHORTCUTS = {"deeper": 0.92, "smaller_in_degree": 0.66, "more_ancestors": 0.70, "larger_id": 0.60}


@pytest.fixture(scope="module")
def faithful():
    return prosqa.generate(5000, "faithful", seed=1)


@pytest.fixture(scope="module")
def balanced():
    return prosqa.generate(5000, "balanced", seed=1)


@pytest.fixture(scope="module")
def published():
    return prosqa.read(REAL / "prosqa" / "valid.json")


def near(found, wanted, tolerance):
    assert abs(found - wanted) <= tolerance, (found, wanted, tolerance)


def name(problem, role):
    return problem.meta["names"][problem.meta[role]]


# --- what the graphs are like ---


def check_statistics(problems, slack=1.0):
    found = prosqa.statistics(problems)
    for key, (value, tolerance) in PUBLISHED.items():
        near(found[key], value, slack * tolerance)
    for key, (shares, tolerance) in PUBLISHED_SHARES.items():
        near(sum(found[key].values()), 1, 1e-9)
        for value, share in shares.items():
            near(found[key].get(value, 0), share, slack * tolerance)
    for ours, theirs in zip(found["frontier"], PUBLISHED_FRONTIER, strict=False):
        near(ours, theirs, slack * 0.15)


def test_faithful_graphs_have_the_published_statistics(faithful):
    check_statistics(faithful)


def test_faithful_graphs_have_the_published_shortcut(faithful):
    found = prosqa.shortcuts(faithful)
    for rule, accuracy in PUBLISHED_SHORTCUTS.items():
        near(found[rule], accuracy, 0.035)
    near(found["listed_first"], 0.5, 0.03)


@needs_real_files
def test_the_published_file_has_the_published_statistics(published):
    """The same bands, wider for a file of 300 of the 800 problems."""
    assert len(published) == 300
    check_statistics(published, slack=2)
    for rule, accuracy in PUBLISHED_SHORTCUTS.items():
        near(prosqa.shortcuts(published)[rule], accuracy, 0.03)
    near(prosqa.shortcuts(published)["deeper"], 0.925, 0.0005)


@pytest.mark.parametrize("form, sizes", [("text", {}), ("symbol", SMALL), ("symbol", {"n_nodes": 40})])
def test_balanced_graphs_have_no_shortcut(form, sizes):
    problems = prosqa.generate(4000, "balanced", form, seed=2, **sizes)
    assert all(abs(accuracy - 0.5) <= 0.03 for accuracy in prosqa.shortcuts(problems).values())
    near(prosqa.statistics(problems)["asked_second"], 0.5, 0.03)


def test_balanced_leaves_are_equally_deep_with_equally_many_parents_where_there_are_such(balanced):
    uneven = 0
    for problem in balanced[:200]:
        edges, root, _ = graphs.edges_of_text(problem.question)
        leaves, hops = {b for _, b in edges} - {a for a, _ in edges}, len(problem.steps)
        far = {n: {leaf: graphs.distance(edges, n, leaf) for leaf in leaves} for n in problem.meta["names"][:2]}
        ((other, theirs),) = ((n, found) for n, found in far.items() if n != root)
        assert theirs[name(problem, "neg_target")] == far[root][name(problem, "target")] == hops
        mine = {leaf for leaf in leaves if far[root][leaf] == hops and theirs[leaf] is None}
        others = {leaf for leaf in leaves if theirs[leaf] == hops and far[root][leaf] is None}
        parents = Counter(b for _, b in edges)
        if parents[name(problem, "target")] != parents[name(problem, "neg_target")]:
            uneven += 1
            assert not {parents[leaf] for leaf in mine} & {parents[leaf] for leaf in others}
    assert 0 < uneven < 120


def test_statistics_and_shortcuts_count_what_they_say():
    """One graph by hand: Tom a b, a b c, c d; Ann e, e f; c is asked about Tom against f, of which d has no part."""
    names = ["Ann", "Tom", "a", "b", "c", "e", "f", "g"]
    edges = [[1, 2], [1, 3], [2, 4], [3, 4], [0, 5], [5, 6], [5, 7], [2, 7]]
    record = {
        "question": "Tom is a a. Is Tom a f or c?",
        "steps": ["?"],
        "answer": "?",
        "idx_to_symbol": names,
        "edges": edges,
        "root": 1,
        "target": 4,
        "neg_target": 6,
    }
    problem = prosqa.parse_record(record, "here")
    found = prosqa.statistics([problem])
    assert (found["nodes"], found["edges"], found["entities"]) == (8, 8, 2)
    assert (found["hops"], found["shortest_paths"], found["asked_second"], found["within_3_hops"]) == (2, 2, 1, 1)
    assert found["hops_share"] == {"2": 1} and found["wrong_distance"] == {"2": 1}
    assert found["in_degree"] == {"1": 4 / 6, "2": 2 / 6}
    assert found["labels"] == {"own": 3 / 6, "other": 2 / 6, "both": 1 / 6}
    assert found["frontier"] == [2, 2]
    rules = {"deeper": 0.5, "smaller_in_degree": 0, "more_ancestors": 1, "larger_id": 0, "listed_first": 0}
    assert prosqa.shortcuts([problem]) == rules
    assert prosqa.frontier(problem, 1) == ["a", "b"] and prosqa.frontier(problem, 2) == ["c", "g"]
    assert prosqa.frontier(problem, 0) == ["Tom"] and prosqa.frontier(problem, 3) == []
    assert prosqa.heights(problem) == dict(zip(names, (2, 2, 1, 1, 0, 1, 0, 0), strict=True))
    assert prosqa.children(problem)[1] == [2, 3] and prosqa.parents(problem)[7] == [5, 2]


def test_nothing_to_count_is_no_error():
    assert set(prosqa.shortcuts([]).values()) == {0} and prosqa.statistics([])["hops_share"] == {}


def test_heights_along_the_longest_and_the_shortest_way():
    edges = [[0, 2], [2, 3], [3, 4], [0, 4], [1, 5], [2, 6]]
    record = {"question": "?", "steps": ["?"], "answer": "?", "idx_to_symbol": list("RSabcde"), "edges": edges}
    problem = prosqa.parse_record({**record, "root": 0, "target": 4, "neg_target": 5}, "here")
    assert prosqa.heights(problem) == {"R": 1, "S": 1, "a": 1, "b": 1, "c": 0, "d": 0, "e": 0}
    assert prosqa.heights(problem, longest=True) == {"R": 3, "S": 1, "a": 2, "b": 1, "c": 0, "d": 0, "e": 0}


# --- every problem ---


@every_kind
@every_form
@pytest.mark.parametrize("sizes", [{}, SMALL, {"n_nodes": 12, "min_hops": 3, "max_hops": 3}], ids=["28", "11", "12"])
def test_every_problem_is_what_its_question_says(mode, form, sizes):
    for problem in prosqa.generate(25, mode, form, seed=5, **sizes):
        edges, root, candidates = READ[form](problem.question)
        names, target, wrong = problem.meta["names"], name(problem, "target"), name(problem, "neg_target")
        assert sorted(edges) == sorted((names[a], names[b]) for a, b in problem.meta["edges"])
        assert root == name(problem, "root") and sorted(candidates) == sorted([target, wrong])
        assert not graphs.has_cycle(edges) and {n for edge in edges for n in edge} == set(names)
        hops = graphs.distance(edges, root, target)
        assert graphs.distance(edges, root, wrong) is None and hops == len(problem.steps)
        assert sizes.get("min_hops", 3) <= hops <= sizes.get("max_hops", 6)
        assert not {target, wrong} & {a for a, _ in edges}, "candidates are leaves"
        assert len(names) <= sizes.get("n_nodes", 28)
        for hop in range(hops + 2):
            at = {n for n in names if graphs.distance(edges, root, n) == hop}
            assert set(prosqa.frontier(problem, hop)) == at
        assert problem.meta["answer_kind"] == "text" and json.loads(json.dumps(problem.meta)) == problem.meta
        assert is_verified(problem, solution(problem))
        assert problem.answer in (target, f"{root} is a {target}.")


def test_faithful_targets_are_deepest_leaves_of_their_own_root(faithful):
    for problem in faithful[:150]:
        edges, root, _ = graphs.edges_of_text(problem.question)
        following = dict(edges)
        other = problem.meta["names"][1 - problem.meta["root"]]
        assert problem.meta["root"] in (0, 1) and name(problem, "root") == root
        leaves = {b for _, b in edges if b not in following}
        mine = {leaf: graphs.distance(edges, root, leaf) for leaf in leaves}
        theirs = {leaf: graphs.distance(edges, other, leaf) for leaf in leaves}
        deepest = max(d for leaf, d in mine.items() if d and theirs[leaf] is None)
        assert len(problem.steps) == deepest
        assert deepest >= max(d for leaf, d in theirs.items() if d and mine[leaf] is None)


@every_kind
@every_form
def test_questions_differ_and_the_seed_decides(mode, form):
    draw = [prosqa.generate(300, mode, form, seed=seed, **SMALL) for seed in (3, 3, 4)]
    assert draw[0] == draw[1] and len({p.question for p in draw[0]}) == len({p.id for p in draw[0]}) == 300
    assert not {p.id for p in draw[0]} & {p.id for p in draw[2]}
    assert prosqa.generate(100, mode, form, seed=3, **SMALL) == draw[0][:100]


def test_problems_are_the_same_in_another_process_and_load_no_heavy_library():
    code = (
        "import sys\nfrom lib.tasks import prosqa\nprint([p.id for p in prosqa.generate(30, seed=5)])\n"
        "print(sorted({'torch', 'numpy', 'networkx'} & set(sys.modules)))"
    )
    told = set()
    for salt in "12":
        environment = os.environ | {"PYTHONHASHSEED": salt}
        command, folder = [sys.executable, "-c", code], Path(__file__).parents[1]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)
        told.add(done.stdout)
    (lines,) = told
    assert lines.endswith("[]\n") and lines.startswith("['prosqa-")


def test_the_wording_is_the_published_one(balanced):
    for problem in balanced[:100]:
        *premises, asked = re.split(r"(?<=\.) ", problem.question)
        for sentence in (*premises, *problem.steps, problem.answer):
            assert re.fullmatch(r"(Every [a-z]+pus|[A-Z][a-z]+) is a [a-z]+pus\.", sentence)
        assert re.fullmatch(r"Is [A-Z][a-z]+ a [a-z]+pus or [a-z]+pus\?", asked)
        assert set(problem.steps) <= set(premises) and problem.answer.startswith(asked.split()[1])
    assert len(prosqa.ENTITIES) == 17 and len(prosqa.CONCEPTS) == 38


def test_sentences_stand_in_random_order(balanced):
    """The first premise is part of the chain as often as any other."""
    first = sum(p.question.startswith(p.steps[0]) for p in balanced)
    share = sum(1 / len(p.meta["edges"]) for p in balanced)
    assert 0.7 * share < first < 1.3 * share


# --- symbols ---


def test_every_symbol_is_one_token():
    problems = prosqa.generate(400, form="symbol", seed=3)
    tokenizer = build_tokenizer([prompt(p) + solution(p) for p in problems], 512)
    for problem in problems[:100]:
        ids = tokenizer(problem.question)["input_ids"]
        assert len(ids) == len(problem.question.split(" ")), tokenizer.convert_ids_to_tokens(ids)
        assert all(len(tokenizer(step)["input_ids"]) == 1 for step in (*problem.steps, problem.answer))
        assert tokenizer.decode(ids) == problem.question


def correlation(pairs):
    xs, ys = zip(*pairs, strict=True)
    x, y = sum(xs) / len(xs), sum(ys) / len(ys)
    spread = sum((a - x) ** 2 for a in xs) * sum((b - y) ** 2 for b in ys)
    return sum((a - x) * (b - y) for a, b in pairs) / spread**0.5


@pytest.mark.parametrize("permute, low, high", [(True, -0.02, 0.02), (False, 0.4, 1.0)])
def test_permuted_numbers_tell_nothing_of_depth(permute, low, high):
    pairs = []
    for problem in prosqa.generate(800, "faithful", "symbol", permute=permute):
        found = prosqa.distances(prosqa.children(problem), [problem.meta["root"]])
        pairs += [(int(problem.meta["names"][node][1:]), hops) for node, hops in found.items()]
    assert low < correlation(pairs) < high


def test_numbers_in_the_order_drawn_are_those_of_the_graph_and_others_are_spread_evenly():
    for problem in prosqa.generate(20, form="symbol", permute=False):
        assert problem.meta["names"] == [f"n{i}" for i in range(len(problem.meta["names"]))]
        assert all(a < b for a, b in problem.meta["edges"])
    counts = Counter(n for p in prosqa.generate(2000, form="symbol", **SMALL) for n in p.meta["names"])
    assert len(counts) == 11 and max(counts.values()) < 1.1 * min(counts.values())


# --- splits ---


def test_what_a_graph_is_called_moves_no_problem_to_another_split():
    (problem,) = prosqa.generate(1, form="symbol")
    edges, roles = problem.meta["edges"], {role: problem.meta[role] for role in prosqa.ROLES}
    names = [f"x{i}" for i in range(len(problem.meta["names"]))]
    record = {"question": "?", "steps": ["?"], "answer": "?", "idx_to_symbol": names, "edges": edges[::-1], **roles}
    renamed = prosqa.parse_record(record, "here")
    assert canonical(renamed) == canonical(problem) and split_of(renamed) == split_of(problem)
    assert len({canonical(p) for p in prosqa.generate(300, form="symbol")}) == 300


SIZES = {"graphs": "balanced", "graph_form": "symbol", "n_nodes": 11, "min_hops": 2, "max_hops": 3}


def test_the_source_is_loaded_by_its_name_and_comes_back_from_disk(tmp_path):
    parts = tasks.load("prosqa", "", 200, 6, **SIZES)
    assert list(parts) == list(SPLITS) and sum(map(len, parts.values())) == 200 and min(map(len, parts.values())) > 5
    assert {p.id for part in parts.values() for p in part} == {
        p.id for p in prosqa.generate(200, "balanced", "symbol", 11, 2, 3, 6)
    }
    assert read_jsonl(write_jsonl(tmp_path / "a.jsonl", parts["test"])) == parts["test"]


# --- bad sizes ---


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"mode": "fair"}, "got 'fair' and 'text'"),
        ({"form": "picture"}, "got 'balanced' and 'picture'"),
        ({"min_hops": 0}, "got 0, 6 and 28"),
        ({"min_hops": 4, "max_hops": 3}, "got 4, 3 and 28"),
        ({"n_nodes": 7}, "at least 8 nodes; got 3, 6 and 7"),
        ({"n_nodes": 5, "mode": "faithful"}, "at least 6 nodes; got 3, 6 and 5"),
        ({"n_nodes": 41}, "names for 40 nodes, not 41"),
        (
            {"min_hops": 9, "max_hops": 9, "mode": "balanced"},
            "finds only 0 of 5 balanced graphs of 28 nodes with 9 to 9",
        ),
        ({"min_hops": 13, "max_hops": 20, "mode": "faithful"}, "finds only 0 of 5 faithful graphs"),
    ],
)
def test_sizes_that_make_no_sense_are_refused_in_a_sentence(arguments, words):
    with pytest.raises(InputError, match=re.escape(words)) as caught:
        prosqa.generate(5, **arguments)
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


def test_more_problems_than_there_are_is_an_error_and_no_endless_search():
    with pytest.raises(InputError, match=r"finds only \d+ of 9000 faithful graphs of 4 nodes"):
        prosqa.generate(9000, "faithful", "symbol", 4, 1, 1, permute=False)


# --- the published file ---


@needs_real_files
def test_every_published_problem_loads_and_its_chain_is_verified(published):
    for problem in published:
        assert is_verified(problem, solution(problem))
        edges, root, _ = graphs.edges_of_text(problem.question)
        names = problem.meta["names"]
        assert sorted(edges) == sorted((names[a], names[b]) for a, b in problem.meta["edges"])
        assert root == name(problem, "root") and len(problem.steps) == graphs.distance(
            edges, root, name(problem, "target")
        )
    assert len({p.id for p in published}) == len({canonical(p) for p in published}) == 300


@needs_real_files
def test_a_published_chain_with_a_foreign_edge_a_gap_or_another_end_is_refused(published):
    for problem, other in zip(published, published[1:], strict=False):
        gold, end = list(problem.steps), f"#### {problem.answer}"
        wrong = f"{gold[-1].rpartition(' ')[0]} {name(problem, 'neg_target')}."
        foreign = next(step for step in other.steps if step not in problem.question)
        for broken in (gold[1:], gold[:-1], [gold[0], *gold[2:]], [*gold[:-1], wrong], [foreign, *gold[1:]]):
            assert not is_verified(problem, "\n".join([*broken, end]))


def record():
    (problem,) = prosqa.generate(1, seed=9, **SMALL)
    meta, graph = problem.meta, {role: problem.meta[role] for role in ("edges", *prosqa.ROLES)}
    texts = {"question": problem.question, "steps": list(problem.steps), "answer": problem.answer}
    return problem, {**texts, "idx_to_symbol": meta["names"], **graph}


def test_what_is_written_as_published_reads_as_it_was(tmp_path):
    problem, written = record()
    (tmp_path / "a.json").write_text(json.dumps([written]))
    assert prosqa.read(tmp_path / "a.json") == [problem]
    assert tasks.find("prosqa", str(tmp_path / "a.json"), 0, 0)[split_of(problem)] == [problem]


@pytest.mark.parametrize(
    "change, words",
    [
        ({"question": 3}, '"question" and "answer" must be'),
        ({"question": "a\nb"}, '"question" and "answer" must be'),
        ({"answer": "\ud800"}, '"question" and "answer" must be'),
        ({"steps": []}, '"steps" must be a list'),
        ({"steps": [1]}, '"steps" must be a list'),
        ({"idx_to_symbol": ["a", "a"]}, "names two nodes alike"),
        ({"edges": [[0, 1, 2]]}, '"edges" must be a list of pairs'),
        ({"edges": None}, '"edges" must be a list of pairs'),
        ({"edges": [[0, 99]]}, "must hold numbers of nodes, below"),
        ({"edges": [[0, "1"]]}, "must hold numbers of nodes, below"),
        ({"root": True}, "must hold numbers of nodes, below"),
        ({"target": -1}, "must hold numbers of nodes, below"),
        ({"edges": [[0, 1], [1, 2], [2, 1]]}, "the graph has a cycle"),
        ({"edges": [[1, 1]]}, "the graph has a cycle"),
        ({"edges": []}, '"root" must reach "target"'),
    ],
)
def test_a_malformed_item_is_named_by_file_and_number(tmp_path, change, words):
    path = tmp_path / "prosqa.json"
    path.write_text(json.dumps([record()[1], record()[1] | change]))
    with pytest.raises(InputError, match=re.escape(words)) as caught:
        prosqa.read(path)
    assert str(caught.value).startswith(f"{path}, item 2: ") and str(caught.value).endswith("mend or drop the item.")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "3", "[" * 100_000, "[3]", '[{"a": 1}]', "[" + "9" * 9999 + "]"])
def test_a_file_of_another_form_is_one_sentence(tmp_path, text):
    path = tmp_path / "prosqa.json"
    path.write_text(text)
    with pytest.raises(InputError, match=re.escape(str(path))):
        prosqa.read(path)
    with pytest.raises(InputError, match="Cannot read .*missing.json.*check the path"):
        prosqa.read(tmp_path / "missing.json")
    path.write_bytes(b"[\xff]")
    with pytest.raises(InputError, match="not UTF-8 text at byte 1"):
        prosqa.read(path)


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 12) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=6,
)
GOOD = record()[1]


@settings(max_examples=400, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(GOOD)), anything, max_size=3), st.sets(st.sampled_from(sorted(GOOD))))
def test_an_item_reads_or_is_refused_in_a_sentence(changes, dropped):
    item = {key: value for key, value in (GOOD | changes).items() if key not in dropped or len(dropped) > 2}
    try:
        problem = prosqa.parse_record(json.loads(json.dumps(item)), "f, item 1")
    except InputError as error:
        assert str(error).startswith("f, item 1: ")
    else:
        prosqa.statistics([problem]), prosqa.heights(problem), prosqa.frontier(problem, 2)
        assert is_verified(problem, solution(problem)) in (True, False)


# --- Coconut's other file: GSM8k-Aug as it preprocesses it ---


def test_coconuts_form_of_gsm8k_is_read(tmp_path):
    path = tmp_path / "gsm_valid.json"
    rows = [{"question": "Two?", "steps": ["<<1+1=2>>", "<<2*2=4>>"], "answer": "4"}]
    path.write_text(json.dumps([*rows, {"question": "One?", "steps": [], "answer": "1"}]))
    two, one = gsm8k.load(str(path), tmp_path)["train"]
    assert (two.steps, two.answer, two.source, one.steps) == (("<<1+1=2>>", "<<2*2=4>>"), "4", "gsm8k", ())
    assert is_verified(two, solution(two)) and is_verified(one, solution(one))
    (tmp_path / "lines.json").write_text('{"question": "q", "answer": "#### 3"}\n')
    assert gsm8k.read(tmp_path / "lines.json")[0].answer == "3"


@pytest.mark.parametrize(
    "item",
    [3, {}, {"question": "q", "answer": "1"}, {"question": "", "steps": [], "answer": "1"}]
    + [{"question": "q", "steps": [2], "answer": "1"}, {"question": "q\ud800", "steps": [], "answer": "1"}],
)
def test_a_broken_item_of_coconuts_form_is_named_by_file_and_number(tmp_path, item):
    path = tmp_path / "gsm.json"
    path.write_text(json.dumps([{"question": "q", "steps": [], "answer": "1"}, item]))
    with pytest.raises(InputError, match=re.escape(f"{path}, item 2: expected the texts")):
        gsm8k.read(path)
