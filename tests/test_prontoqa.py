"""ProntoQA: theories of the published structure, proofs that hold, files of the official generator read safely."""

import json
import os
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib import tasks
from lib.answers import inspect, is_correct, is_verified
from lib.errors import InputError
from lib.problems import SPLITS
from lib.prompts import solution
from lib.tasks import prontoqa

REAL = Path(os.environ.get("REAL_DATA") or "no such folder")
needs_real_files = pytest.mark.skipif(not REAL.is_dir(), reason="set REAL_DATA to the folder of real files")
SENTENCE = re.compile(r"(?:(?:Each|Every) ([a-z]+) is|([A-Z][a-z]+pus)es are) (not )?(?:(an?) )?([a-z]+)\.")


@pytest.fixture(scope="module")
def problems():
    return prontoqa.generate(3000, seed=1)


@pytest.fixture(scope="module")
def published():
    return prontoqa.read(REAL / "prontoqa" / "5hop_sample.json")


def sentences(problem):
    """(rules, facts, query): the sentences of a question."""
    text, query = problem.question.split(" True or false: ")
    told = re.split(r"(?<=\.) ", text)
    return told[:-2], told[-2:], query


def theory(problem):
    """(parents of each concept, {concept: property or "not property"}), read from the question anew."""
    parents, properties = {}, {}
    for rule in sentences(problem)[0]:
        each, plural, negation, article, word = SENTENCE.fullmatch(rule).groups()
        concept = each or plural.lower()
        if word.endswith(("pus", "puses")):
            assert bool(article) == bool(each) and not negation
            assert article in (None, "an" if word[0] in "aeiou" else "a")
            parents.setdefault(concept, []).append(word if each else word.removesuffix("es"))
        else:
            assert concept not in properties and not article
            properties[concept] = (negation or "") + word
    return parents, properties


def concluded(problem):
    """The queried property as it follows: up from the first concepts that the one asked about is said to be."""
    parents, properties = theory(problem)
    _, facts, query = sentences(problem)
    entity, asked = re.fullmatch(r"(\w+) is (?:not )?(\w+)\.", query).groups()
    known = [re.fullmatch(rf"{entity} is an? (\w+)\.", fact)[1] for fact in facts]
    for concept in known:
        known += parents.get(concept, [])
    found = {properties[c] for c in known if properties.get(c, "").removeprefix("not ") == asked}
    (result,) = found
    return f"{entity} is {result}."


def check_structure(items, n_hops=5):
    for problem in items:
        rules, facts, query = sentences(problem)
        assert len(rules) + len(facts) == 4 * n_hops + 5 and len(problem.steps) == n_hops + 1
        parents, properties = theory(problem)
        path = [re.search(r"\w+ is an? (\w+)\.", step)[1] for step in problem.steps[:-1]]
        assert [len(parents[concept]) for concept in path] == [2] * n_hops
        assert all(b in parents[a] for a, b in zip(path, path[1:], strict=False))
        (apart,) = {re.search(r"an? (\w+)\.", fact)[1] for fact in facts} - {path[0]}
        assert len(parents[apart]) == 1 and set(parents) == {*path, apart}
        above = {parent for concept in path for parent in parents[concept]} - set(path)
        assert len(above) == n_hops + 1 and len(above - set(properties)) == 1
        bare = above - set(properties)
        assert bare <= set(parents[path[-1]]), "the one without a property stands beside the last"
        (unused,) = set(properties) - above - set(path) - {apart}
        last = properties[path[-1]]
        assert {properties[unused], last} == {last.removeprefix("not "), f"not {last.removeprefix('not ')}"}
        words = [value.removeprefix("not ") for concept, value in properties.items() if concept != unused]
        families = [i for word in words for i, family in enumerate(prontoqa.FAMILIES) if word in family]
        assert len(set(families)) == len(families) == len(words) == 2 * n_hops + 1
        assert problem.answer == str(concluded(problem) == query) and problem.steps[-1] == concluded(problem)


def check_texts(problem):
    """Two sentences a step, each a premise or about the one asked for; the last alone."""
    rules, facts, query = sentences(problem)
    entity = query.split()[0]
    assert entity in prontoqa.ENTITIES
    for step in problem.steps[:-1]:
        claim, rule = re.split(r"(?<=\.) ", step)
        assert rule in rules and claim.startswith(f"{entity} is a")
    assert problem.steps[0].startswith(tuple(facts)) and len(re.findall(r"\.", problem.steps[-1])) == 1


# --- the generator ---


def test_every_theory_has_the_published_structure(problems):
    check_structure(problems[:1000])
    for problem in problems[:1000]:
        check_texts(problem)


@pytest.mark.parametrize("n_hops", range(1, 7))
def test_any_number_of_hops_up_to_six(n_hops):
    items = prontoqa.generate(60, n_hops, seed=2)
    check_structure(items, n_hops)
    assert all(is_verified(p, solution(p)) for p in items)


def test_every_own_proof_is_verified_and_no_other_answer_is(problems):
    for problem in problems[:1000]:
        assert is_verified(problem, solution(problem)) and inspect(problem)["answer_extracted"]
        other = {"True": "False", "False": "True"}[problem.answer]
        assert not is_correct(problem, f"#### {other}")
        wrong = problem.steps[-1].replace(" is not ", " is ")
        wrong = wrong if wrong != problem.steps[-1] else wrong.replace(" is ", " is not ")
        for broken in (problem.steps[1:], problem.steps[:-1], [*problem.steps[:2], *problem.steps[3:]]):
            text = "\n".join([*broken, f"#### {problem.answer}"])
            assert not is_verified(problem, text)
        assert not is_verified(problem, "\n".join([*problem.steps[:-1], wrong, f"#### {problem.answer}"]))


def test_statistics_are_the_published_ones(problems):
    """Measured on 300 problems of the official generator: 25 sentences, 11 in a proof, 622 characters, True 49 %."""
    n = len(problems)
    rules = [rule for p in problems for rule in sentences(p)[0]]
    assert abs(sum(len(p.question) for p in problems) / n - 622) < 8
    assert abs(sum(p.answer == "True" for p in problems) / n - 0.5) < 0.03
    assert abs(sum(" not " in sentences(p)[2] for p in problems) / n - 0.5) < 0.04
    forms = Counter(rule.split()[0] if rule.split()[0] in ("Each", "Every") else "" for rule in rules)
    shares = {form: count / len(rules) for form, count in forms.items()}
    assert abs(shares[""] - 0.5) < 0.02 and abs(shares["Each"] - 0.25) < 0.02 and abs(shares["Every"] - 0.25) < 0.02
    stated = [value for p in problems[:500] for value in theory(p)[1].values()]
    negated = sum(value.startswith("not ") for value in stated) / len(stated)
    assert abs(negated - (10 / 3 + 1) / 12) < 0.02, "a third of ten, and one of the two that contradict each other"
    own = sum(sentences(p)[1][0] == p.steps[0].partition(". ")[0] + "." for p in problems)
    assert abs(own / n - 0.5) < 0.03


def test_neither_answer_nor_query_tells_the_other(problems):
    pairs = Counter((p.answer, " not " in sentences(p)[2]) for p in problems)
    assert all(abs(count / len(problems) - 0.25) < 0.03 for count in pairs.values())
    place = [sentences(p)[0].index(p.steps[0].partition(". ")[2]) for p in problems]
    assert abs(sum(place) / len(place) - 11) < 0.6, "the first rule of the proof stands anywhere"


def test_questions_differ_and_the_seed_decides():
    a, b, c = (prontoqa.generate(300, seed=seed) for seed in (3, 3, 4))
    assert a == b and len({p.id for p in a} | {p.id for p in c}) == 600
    assert all(json.loads(json.dumps(p.meta)) == p.meta for p in a[:20])


def test_words_are_the_published_ones():
    assert len(prontoqa.ENTITIES) == 9 and len(prontoqa.CONCEPTS) == 17 and len(prontoqa.FAMILIES) == 13
    assert len({word for family in prontoqa.FAMILIES for word in family}) == sum(map(len, prontoqa.FAMILIES))


@pytest.mark.parametrize("n_hops", [0, -1, 7])
def test_other_numbers_of_hops_are_refused(n_hops):
    with pytest.raises(InputError, match=f"n_hops from 1 to 6, got {n_hops}; change it"):
        prontoqa.generate(5, n_hops)


def test_the_source_is_loaded_by_its_name():
    parts = tasks.load("prontoqa", "", 200, 6, n_hops=3)
    assert list(parts) == list(SPLITS) and min(map(len, parts.values())) > 5
    assert {p for part in parts.values() for p in (q.id for q in part)} == {p.id for p in prontoqa.generate(200, 3, 6)}


# --- the official generator's file ---


@needs_real_files
def test_every_published_problem_loads_has_the_structure_and_is_verified(published):
    assert len(published) == 20 and Counter(p.answer for p in published) == {"True": 12, "False": 8}
    check_structure(published)
    for problem in published:
        check_texts(problem)
        assert is_verified(problem, solution(problem))
        proof = solution(problem).replace("\n", " ").partition(" ####")[0]
        assert len(re.findall(r"\.", proof)) == 11 and 580 < len(problem.question) < 662


@needs_real_files
def test_a_published_proof_with_a_foreign_rule_or_a_gap_is_refused(published):
    for problem, other in zip(published, published[1:], strict=False):
        gold, end = list(problem.steps), f"#### {problem.answer}"
        foreign = next(step for step in other.steps[:-1] if step.partition(". ")[2] not in problem.question)
        for broken in (gold[1:], gold[:-1], [*gold[:2], *gold[3:]], [*gold[:2], foreign, *gold[3:]], gold[::-1]):
            assert not is_verified(problem, "\n".join([*broken, end]))


def example():
    question = "Each lorpus is hot. Zumpuses are lorpuses. Max is a zumpus."
    proof = ["Max is a zumpus.", "Zumpuses are lorpuses.", "Max is a lorpus.", "Each lorpus is hot.", "Max is hot."]
    return {"question": question, "query": "True or false: Max is hot.", "chain_of_thought": proof, "answer": "True"}


def test_the_query_joins_the_question_and_sentences_are_paired(tmp_path):
    path = tmp_path / "prontoqa.json"
    path.write_text(json.dumps({"example1": {"in_context_example0": {"x": 1}, "test_example": example()}}))
    (problem,) = prontoqa.read(path)
    assert problem.question == (
        "Each lorpus is hot. Zumpuses are lorpuses. Max is a zumpus. True or false: Max is hot."
    )
    assert problem.steps == (
        "Max is a zumpus. Zumpuses are lorpuses.",
        "Max is a lorpus. Each lorpus is hot.",
        "Max is hot.",
    )
    assert (problem.answer, problem.source) == ("True", "prontoqa") and is_verified(problem, solution(problem))


@pytest.mark.parametrize(
    "change, words",
    [
        ({"question": ""}, '"question" must be a text'),
        ({"question": 3}, '"question" must be a text'),
        ({"query": "a\nb"}, '"query" must be a text'),
        ({"query": "\ud800"}, '"query" must be a text'),
        ({"answer": True}, '"answer" must be "True" or "False"'),
        ({"answer": ["True"]}, '"answer" must be "True" or "False"'),
        ({"chain_of_thought": []}, '"chain_of_thought" must be a list'),
        ({"chain_of_thought": "Max."}, '"chain_of_thought" must be a list'),
        ({"chain_of_thought": [None]}, '"chain_of_thought" must be a list'),
    ],
)
def test_a_malformed_example_is_named_by_file_and_name(tmp_path, change, words):
    path = tmp_path / "prontoqa.json"
    path.write_text(
        json.dumps({"example1": {"test_example": example()}, "example2": {"test_example": example() | change}})
    )
    with pytest.raises(InputError, match=re.escape(words)) as caught:
        prontoqa.read(path)
    assert str(caught.value).startswith(f"{path}, 'example2': ") and str(caught.value).endswith(
        "mend or drop the example."
    )


@pytest.mark.parametrize("text", ["", "[]", "{}", "3", "{", '{"a": 1}', '{"a": {"test_example": 3}}', '{"a": {}}'])
def test_a_file_of_another_form_is_one_sentence(tmp_path, text):
    path = tmp_path / "prontoqa.json"
    path.write_text(text)
    with pytest.raises(InputError, match=re.escape(str(path))):
        prontoqa.read(path)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(example())), anything, max_size=3), anything)
def test_an_example_reads_or_is_refused_in_a_sentence(changes, other):
    for item in ({"test_example": example() | changes}, {"test_example": other}, other):
        try:
            problem = prontoqa.parse_example(item, "f, 'example1'")
        except InputError as error:
            assert str(error).startswith("f, 'example1': ")
        else:
            assert is_verified(problem, solution(problem)) in (True, False)
