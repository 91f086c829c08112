"""Preference pairs and opinions: what is alike, what is paired and what is left out, against brute force."""

import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lib import preferences, prompts, sampling
from lib.errors import InputError
from lib.preferences import Config, Opinion, Pair, choose_pairs, distinct, held_out_share, jaccard, token_sets
from lib.problems import make_problem
from lib.prompts import in_t5_form
from lib.tokenization import build_tokenizer
from tests.oracles import preferences as oracle

many = settings(max_examples=100, deadline=None)

NAMES = ("one", "two", "three", "four")
PROBLEMS = [make_problem(f"Is it {name}?", ["<<3+4=7>>7 jars"], "7", "gsm8k") for name in NAMES]
ASKED = prompts.examples(PROBLEMS)
FIRST = PROBLEMS[0].id
WORDS = ["red", "blue", "green", "old", "new", "big", "small", "fast"]
TOKENIZER = build_tokenizer([f" {' '.join(WORDS)} <<3+4=7>>7 jars [ 3 + 4 = 7] . #### 7 #### 8"] * 9, 400)


def sample(text, finished=True, problem=PROBLEMS[0]):
    """What `sampling.draw` says of a text."""
    return {"text": text, "finished": finished, **sampling.judge(problem, text)}


def t5_sample(written, finished=True):
    """The same of a text in T5's form."""
    text = prompts.canonical_text(written, "t5")
    return sample(text, finished) | ({"written": written} if text != written else {})


def tokens_of(text):
    return set(TOKENIZER(text, add_special_tokens=False)["input_ids"])


class Tokens(dict):
    """Token sets by text, read when they are asked for."""

    def __missing__(self, text):
        return tokens_of(text)


# --- likeness ---

some_tokens = st.frozensets(st.integers(0, 9), max_size=8)
named = st.lists(some_tokens, max_size=9).map(lambda sets: {f"text {i}": tokens for i, tokens in enumerate(sets)})
limits = st.sampled_from(["0", "0.2", "0.5", "0.7", "0.75", "1"])


@pytest.mark.parametrize(
    "a, b, share",
    [({1, 2, 3}, {2, 3, 4}, 0.5), ({1}, {2}, 0), ({1, 2}, {1, 2}, 1), ({1, 2}, {1}, 0.5), (set(), {1}, 0)],
)
def test_likeness_is_the_share_of_tokens_that_both_have(a, b, share):
    assert jaccard(frozenset(a), frozenset(b)) == jaccard(frozenset(b), frozenset(a)) == share
    assert jaccard(frozenset(), frozenset()) == 1, "nothing is like nothing"


@many
@given(some_tokens, some_tokens)
def test_likeness_is_what_counting_gives(a, b):
    assert jaccard(a, b) == float(oracle.similarity(a, b))


def test_a_set_of_tokens_knows_neither_how_often_nor_where_nor_special_ones():
    from tokenizers.processors import TemplateProcessing

    special = build_tokenizer([" red blue red"] * 9, 300)
    special.add_special_tokens({"bos_token": "<s>"})
    begins = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", special.bos_token_id)])
    special.backend_tokenizer.post_processor = begins
    assert special("red")["input_ids"][0] == special.bos_token_id
    found = token_sets(special, [" red blue", " blue red red", " red blue", ""])
    assert set(found) == {" red blue", " blue red red", ""} and found[""] == frozenset()
    assert found[" red blue"] == found[" blue red red"] and len(found[" red blue"]) == 2
    for text, tokens in found.items():
        assert tokens == set(special(text, add_special_tokens=False)["input_ids"])
        assert not tokens & set(special.all_special_ids)
    assert token_sets(special, []) == {}


@many
@given(named, limits)
@example({"a": frozenset(range(10)), "b": frozenset(range(7))}, "0.7")
def test_near_duplicates_go_as_brute_force_says(tokens, limit):
    """The example lies on the limit: only what is more alike than that goes."""
    kept = distinct(list(tokens), tokens, float(limit))
    assert kept == oracle.keep(list(tokens), tokens, limit)
    for place, text in enumerate(kept):
        assert all(jaccard(tokens[text], tokens[other]) <= float(limit) for other in kept[:place])
    order = list(tokens)
    for text in set(tokens) - set(kept):
        before = [other for other in kept if order.index(other) < order.index(text)]
        assert any(jaccard(tokens[text], tokens[other]) > float(limit) for other in before)


def test_the_first_of_a_group_stays_and_what_it_removed_removes_nothing():
    tokens = {"gold": frozenset("abcd"), "near": frozenset("abcde"), "far": frozenset("cdefg")}
    assert distinct(["gold", "near", "far"], tokens, 0.7) == ["gold", "far"]
    assert distinct(["near", "gold", "far"], tokens, 0.4) == ["near"]
    assert distinct(["gold", "near", "far"], tokens, 0.4) == ["gold", "far"], "far is near to near alone"


def test_the_same_text_twice_is_learned_once_even_where_no_likeness_is_too_much():
    assert distinct(["a", "a"], {"a": frozenset({1})}, 1.0) == ["a"]


# --- choosing pairs ---


def parted(tokens):
    """Texts to choose and texts to reject."""
    return [t for t in tokens if int(t[5:]) % 2], [t for t in tokens if not int(t[5:]) % 2]


@many
@given(named, st.integers(1, 6), st.sampled_from(["farthest", "nearest"]), st.integers(0, 3))
def test_the_pairs_are_the_least_or_the_most_alike_of_all(tokens, n, rule, seed):
    chosen, rejected = parted(tokens)
    found = choose_pairs(chosen, rejected, tokens, Config(n, rule), random.Random(seed))
    assert [x for *_, x in found] == sorted((x for *_, x in found), reverse=rule == "nearest")
    wanted = oracle.extremes(chosen, rejected, tokens, n, rule)
    assert sorted(x for *_, x in found) == [float(x) for x in wanted]
    assert len({(a, b) for a, b, _ in found}) == len(found)
    for a, b, alike in found:
        assert a in chosen and b in rejected and alike == jaccard(tokens[a], tokens[b])


@many
@given(named, st.integers(1, 6), st.sampled_from(["farthest", "nearest", "random"]), st.integers(0, 3))
def test_pairs_depend_on_the_seed_and_there_are_as_many_as_there_may_be(tokens, n, rule, seed):
    chosen, rejected = parted(tokens)
    first, again = (choose_pairs(chosen, rejected, tokens, Config(n, rule), random.Random(seed)) for _ in range(2))
    assert first == again and len(first) == min(n, len(chosen) * len(rejected))


def spread(tokens, rule, draws=600):
    """How often each pair of one (of a to d) is taken over many seeds."""
    rngs = [random.Random(seed) for seed in range(draws)]
    return Counter(choose_pairs(["a", "b"], ["c", "d"], tokens, Config(1, rule), rng)[0][:2] for rng in rngs)


@pytest.mark.parametrize("rule", ["farthest", "nearest", "random"])
def test_among_the_equally_alike_the_seed_decides_and_favours_none(rule):
    counts = spread(dict.fromkeys("abcd", frozenset({1})), rule)
    assert len(counts) == 4 and all(100 < n < 200 for n in counts.values())


def test_at_random_likeness_plays_no_part():
    tokens = {"a": frozenset({1}), "b": frozenset({2}), "c": frozenset({1}), "d": frozenset({9})}
    assert len(spread(tokens, "random")) == 4
    assert set(spread(tokens, "nearest")) == {("a", "c")} and len(spread(tokens, "farthest")) == 3


# --- pairs of a problem ---

GOLD = "<<3+4=7>>7 jars\n#### 7"
RIGHT = ["red fast small <<4+3=7>>\n#### 7", "old blue new big\n#### 7"]
NINE = Config(pairs_per_problem=9)
WRONG = ["small fast\n#### 8", "green\n#### 8"]


def pairs_of(drawn, gold=None, config=NINE, asked=ASKED, tokenizer=TOKENIZER):
    """The pairs of samples by place of their problem."""
    pool = {asked[i].problem.id: found for i, found in drawn.items()}
    return preferences.make_pairs(config, asked, gold or {}, [pool], tokenizer)


def both(found):
    return {(pair.chosen, pair.rejected) for pair in found}


def test_gold_is_the_first_of_the_right_ones_and_removes_what_is_like_it():
    like_gold = "7 jars <<3+4=7>>\n#### 7"
    found = pairs_of({0: [sample(t) for t in (like_gold, *RIGHT, *WRONG)]}, {FIRST: GOLD})
    assert both(found) == {(a, b) for a in (GOLD, RIGHT[1]) for b in WRONG} | {(RIGHT[0], b) for b in WRONG}
    without = pairs_of({0: [sample(t) for t in (like_gold, *WRONG)]})
    assert both(without) == {(like_gold, b) for b in WRONG}


def test_gold_alone_makes_a_problem_count_and_nothing_wrong_or_nothing_right_does_not():
    wrong = [sample(t) for t in WRONG]
    assert both(pairs_of({0: wrong}, {FIRST: GOLD})) == {(GOLD, b) for b in WRONG}
    assert pairs_of({0: wrong}) == pairs_of({0: wrong}, {PROBLEMS[1].id: GOLD}) == []
    assert pairs_of({0: [sample(t) for t in RIGHT]}, {FIRST: GOLD}) == pairs_of({}, {FIRST: GOLD}) == []


def test_a_right_answer_in_a_text_that_never_ends_is_neither_right_nor_wrong():
    unfinished = [sample(t, finished=False) for t in RIGHT]
    assert pairs_of({0: [*unfinished, sample(WRONG[0])]}) == pairs_of({0: [*unfinished, sample(RIGHT[0])]}) == []
    assert both(pairs_of({0: [*unfinished, sample(WRONG[0])]}, {FIRST: GOLD})) == {(GOLD, WRONG[0])}


def test_a_wrong_text_that_never_ends_is_rejected_and_known_to_have_no_end():
    found = pairs_of({0: [sample(RIGHT[0]), sample(WRONG[0], finished=False), sample(WRONG[1])]})
    assert {pair.rejected: pair.finished for pair in found} == {WRONG[0]: False, WRONG[1]: True}


def test_a_pair_asks_what_its_example_asks_and_holds_how_alike_its_texts_are():
    own = [replace(ASKED[0], prompt="Tell me:\n", form="chat")]
    (pair,) = pairs_of({0: [sample(RIGHT[0]), sample(WRONG[0])]}, asked=own)
    alike = float(oracle.similarity(tokens_of(RIGHT[0]), tokens_of(WRONG[0])))
    assert pair == Pair(FIRST, "Tell me:\n", RIGHT[0], WRONG[0], True, alike)


def test_problems_come_in_the_order_in_which_they_are_asked_and_pairs_depend_on_no_order():
    drawn = {i: [sample(t, problem=PROBLEMS[i]) for t in (*RIGHT, *WRONG)] for i in range(4)}
    few = Config(2, "random")
    found = pairs_of(drawn, config=few)
    assert [pair.problem for pair in found] == [p.id for p in PROBLEMS for _ in range(2)]
    mixed = {i: drawn[i][::-1] for i in (2, 0, 3, 1)}
    assert pairs_of(mixed, config=few) == found
    pool = {p.id: drawn[i] for i, p in enumerate(PROBLEMS)}
    backwards = preferences.make_pairs(few, ASKED[::-1], {}, [pool], TOKENIZER)
    assert {p: [x for x in backwards if x.problem == p] for p in pool} == {
        p: [x for x in found if x.problem == p] for p in pool
    }
    assert len({frozenset(both([x for x in found if x.problem == p])) for p in pool}) > 1, "each draws its own"
    others = [pairs_of(drawn, config=replace(few, seed=seed)) for seed in range(1, 4)]
    assert any(other != found for other in others), "the seed decides"


def test_several_pools_are_as_one_and_other_problems_of_theirs_are_left_alone():
    first, second = [sample(RIGHT[0]), sample(WRONG[0])], [sample(WRONG[1]), sample(RIGHT[1]), sample(WRONG[0])]
    pools = [{FIRST: first, "stranger": first}, {FIRST: second}, {}]
    found = preferences.make_pairs(NINE, ASKED, {}, pools, TOKENIZER)
    assert found == pairs_of({0: first + second}) and both(found) == {(a, b) for a in RIGHT for b in WRONG}


words = st.lists(st.sampled_from(WORDS), min_size=1, max_size=6, unique=True).map(" ".join)
texts = st.builds(lambda said, answer: f"{said}\n#### {answer}", words, st.sampled_from("778"))
samples = st.lists(st.builds(sample, texts, st.sampled_from([True, True, True, False])), max_size=9)
gold_or_none = st.none() | words.map(lambda said: f"{said}\n#### 7")


def sorted_out(drawn, gold, limit):
    """(texts to choose, texts to reject) by the rules, spelt out."""
    right = sorted({s["text"] for s in drawn if s["text"].endswith("7") and s["finished"]})
    wrong = sorted({s["text"] for s in drawn if s["text"].endswith("8")})
    known = [] if gold is None else [gold]
    return oracle.keep(known + [t for t in right if t not in known], Tokens(), limit), oracle.keep(
        wrong, Tokens(), limit
    )


@many
@given(samples, gold_or_none, limits, st.integers(1, 4), st.sampled_from(["farthest", "nearest"]))
def test_pairs_are_what_brute_force_says(drawn, gold, limit, n, rule):
    config = Config(n, rule, max_similarity=float(limit))
    found = pairs_of({0: drawn}, {} if gold is None else {FIRST: gold}, config)
    chosen, rejected = sorted_out(drawn, gold, limit)
    wanted = oracle.extremes(chosen, rejected, Tokens(), n, rule)
    assert sorted(pair.similarity for pair in found) == [float(x) for x in wanted]
    assert len(both(found)) == len(found)
    ends = {s["text"]: any(o["finished"] for o in drawn if o["text"] == s["text"]) for s in drawn}
    for pair in found:
        assert pair.chosen in chosen and pair.rejected in rejected and pair.finished == ends[pair.rejected]
        assert pair.similarity == jaccard(*(frozenset(tokens_of(text)) for text in (pair.chosen, pair.rejected)))


def test_in_t5s_form_pairs_and_opinions_hold_what_the_model_wrote():
    asked, gold = [in_t5_form(PROBLEMS[0])], in_t5_form(PROBLEMS[0]).completion
    right, wrong = "old new big fast small [ 4 + 3 = 7] 7. #### 7", "big [ 3 + 4 = 8] 8. #### 8"
    pool = {FIRST: [t5_sample(right), t5_sample(wrong), t5_sample("red #### 8", False)]}
    found = preferences.make_pairs(NINE, asked, {FIRST: gold}, [pool], TOKENIZER)
    assert both(found) == {(a, b) for a in (gold, right) for b in (wrong, "red #### 8")}
    assert {pair.prompt for pair in found} == {"Is it one?"}
    assert {x.completion for x in preferences.make_opinions(Config(), asked, [pool], TOKENIZER)} == {
        right,
        wrong,
        "red #### 8",
    }


# --- opinions ---


def test_every_right_and_every_wrong_sample_is_an_opinion_of_its_own():
    drawn = [sample(RIGHT[0]), sample(RIGHT[1], False), sample(WRONG[0], False), sample(WRONG[1]), sample(WRONG[1])]
    other = [sample(t, problem=PROBLEMS[2]) for t in WRONG[:1]]
    pools = [{FIRST: drawn[:2]}, {FIRST: drawn[2:], PROBLEMS[2].id: other, "stranger": drawn}]
    assert preferences.make_opinions(Config(), ASKED, pools, TOKENIZER) == [
        Opinion(FIRST, "Is it one?\n", RIGHT[0], True, True),
        Opinion(FIRST, "Is it one?\n", WRONG[1], True, False),
        Opinion(FIRST, "Is it one?\n", WRONG[0], False, False),
        Opinion(PROBLEMS[2].id, "Is it three?\n", WRONG[0], True, False),
    ]
    assert (
        preferences.make_opinions(Config(), ASKED, [{}], TOKENIZER)
        == preferences.make_opinions(Config(), [], [], TOKENIZER)
        == []
    )


@many
@given(samples, limits)
def test_opinions_are_without_near_duplicates_of_their_kind_alone(drawn, limit):
    found = preferences.make_opinions(Config(max_similarity=float(limit)), ASKED, [{FIRST: drawn}], TOKENIZER)
    right, wrong = sorted_out(drawn, None, limit)
    assert [x.completion for x in found if x.right] == right
    assert [x.completion for x in found if not x.right] == wrong


# --- what is watched ---


@many
@given(st.lists(st.sampled_from("abcdefghijklmnopqrstuvwxyz"), max_size=60), st.sampled_from([0, 0.1, 0.2, 0.25, 0.5]))
def test_what_is_watched_is_a_share_of_the_problems_and_no_problem_is_on_both_sides(ids, share):
    items = [Opinion(name, "", str(place), True, True) for place, name in enumerate(ids)]
    train, watched = held_out_share(items, share)
    sides = [{x.problem for x in side} for side in (train, watched)]
    assert not sides[0] & sides[1] and sides[0] | sides[1] == set(ids)
    assert sorted(train + watched, key=items.index) == items
    assert [sorted(side, key=items.index) for side in (train, watched)] == [train, watched], "in their order"
    assert len(sides[1]) == int(len(set(ids)) * share)


# --- settings ---


@pytest.mark.parametrize(
    "wrong, says",
    [
        ({"rule": "best"}, "Unknown pair rule 'best'; use farthest, nearest, random."),
        ({"labels": "all"}, "Unknown labels 'all'; use jaccard or paths."),
        ({"pairs_per_problem": 0}, "pairs_per_problem must be at least 1, not 0."),
        ({"max_similarity": -0.1}, "max_similarity must lie between 0 and 1"),
        ({"max_similarity": 1.1}, "max_similarity must lie between 0 and 1"),
        ({"max_similarity": float("nan")}, "max_similarity must lie between 0 and 1"),
        ({"cap_percentile": -1}, "cap_percentile between 0 and 100"),
        ({"cap_percentile": 101}, "cap_percentile between 0 and 100"),
    ],
)
def test_settings_that_make_no_sense_are_one_sentence(wrong, says):
    with pytest.raises(InputError) as caught:
        Config(**wrong)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_the_defaults_are_the_published_ones_and_limits_are_taken():
    assert Config() == Config(3, "farthest", 0.7, "jaccard", 90)
    for right in ({"max_similarity": 0}, {"max_similarity": 1}, {"cap_percentile": 0}, {"cap_percentile": 100}):
        assert replace(Config(), **right)
