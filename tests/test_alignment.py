"""Which tokens of two tokenizers belong together: against the textbook, against every character, on real text."""

import itertools
import os
import random
from pathlib import Path

import numpy
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lib import alignment
from lib.alignment import Alignment, Tokens, align, error_rate, soft_share, tokens
from lib.errors import InputError
from lib.tasks import word_problems
from tests.oracles import alignment as oracle

REAL = Path(os.environ.get("REAL_DATA") or "no such folder")
TEXTS = [
    *(f"{p.question}\n" + "\n".join(p.steps) for p in word_problems.generate(150)),
    "She baked 12 buns, and “sold” half of them — for $3.50 each.\n\nHow much is that?",
    "½ of 10³ is 500\t…  two  blanks, naïve café, 東京, ﬁne",
    "👩‍👩‍👧 and 🎉🎉 {unknown} <<3+4=7>>7\\n#### 7",
]


def trained_pair(texts, *sizes):
    """(byte-level BPE, a unigram model as of T5: NFKC, blanks joined, ▁), trained on the spot, both fast."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    quiet = dict(show_progress=False)
    bytewise = Tokenizer(models.BPE())
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder, bytewise.post_processor = decoders.ByteLevel(), processors.ByteLevel(trim_offsets=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bytewise.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=sizes[0], initial_alphabet=alphabet, **quiet))
    unigram = Tokenizer(models.Unigram())
    unigram.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " ")])
    unigram.pre_tokenizer, unigram.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = dict(unk_token="<unk>", special_tokens=["<unk>"])
    unigram.train_from_iterator(texts, trainers.UnigramTrainer(vocab_size=sizes[1], **special, **quiet))
    return (
        PreTrainedTokenizerFast(tokenizer_object=bytewise),
        PreTrainedTokenizerFast(tokenizer_object=unigram, unk_token="<unk>"),
    )


@pytest.fixture(scope="module")
def pair():
    """Two tokenizers; some of the last texts is unknown to the second."""
    return trained_pair(TEXTS[:-2], 600, 400)


@pytest.fixture(scope="module")
def both(pair):
    """(the first one's tokens, the other's) of every text."""
    return [tuple(tokens(t, text) for t in pair) for text in TEXTS]


# ----- warping
def of(table, rows, columns):
    """The costs of all pairs."""
    return table[rows[:, None], columns[None, :]]


def warped(costs):
    """The way through costs of all pairs."""
    costs = numpy.array(costs, float)
    return alignment.warp(costs, numpy.arange(len(costs)), numpy.arange(costs.shape[1]))


@pytest.mark.parametrize("normalised", [False, True])
def test_the_warping_goes_the_textbooks_way(both, normalised):
    for left, right in both[::7] + both[-3:]:
        costs = [[oracle.cost(a, b, normalised) for b in right.written] for a in left.written]
        exact = of(*alignment.costs(left, right, normalised))
        assert numpy.allclose(exact, costs, atol=1e-12)
        found = align(left, right, "dtw_normalised" if normalised else "dtw")
        assert list(found.links) == oracle.warp(exact.tolist())


def test_two_thousand_random_ways_with_many_ties():
    rng = random.Random(0)
    for _ in range(2000):
        n, m = rng.randint(1, 12), rng.randint(1, 12)
        costs = [[rng.choice((0, 0, 1, 1, 2, 3)) for _ in range(m)] for _ in range(n)]
        assert warped(costs) == oracle.warp(costs)


def test_no_way_is_cheaper():
    rng = random.Random(1)
    for n, m in itertools.product(range(1, 6), repeat=2):
        costs = [[rng.randint(0, 4) for _ in range(m)] for _ in range(n)]
        best = min(sum(costs[i][j] for i, j in way) for way in oracle.every_way(n, m))
        assert sum(costs[i][j] for i, j in warped(costs)) == best


def test_the_machine_code_does_what_the_python_says():
    rng = numpy.random.default_rng(0)
    for _ in range(50):
        costs = rng.integers(0, 4, rng.integers(1, 15, 2)).astype(float)
        own = costs, *(rng.integers(0, size, 9) for size in costs.shape)
        assert numpy.array_equal(alignment.compiled()(*own), alignment.walk(*own))


@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 2**32 - 1))
def test_a_way_is_one(n, m, seed):
    way = warped(numpy.random.default_rng(seed).integers(0, 5, (n, m)))
    assert way[0] == (0, 0) and way[-1] == (n - 1, m - 1)
    assert {(c - a, d - b) for (a, b), (c, d) in itertools.pairwise(way)} <= {(1, 1), (1, 0), (0, 1)}


def test_the_same_tokens_twice_cost_nothing(both):
    for left, _ in both:
        found = align(left, left, "dtw")
        assert sum(of(*alignment.costs(left, left, False))[i, j] for i, j in found.links) == 0
        assert error_rate(align(left, left), left, left) == 0


# ----- offsets
@pytest.mark.parametrize("method", ["offsets", "offsets_strict"])
def test_offsets_link_exactly_what_shares_a_character(both, method):
    for left, right in both:
        found = align(left, right, method)
        assert set(found.links) == oracle.links(left.text, left.spans, right.spans, blanks=method.endswith("strict"))
        assert list(found.links) == sorted(set(found.links))
        if method == "offsets":
            assert error_rate(found, left, right) == 0


pieces = st.lists(
    st.sampled_from(["a", "bc", " ", "  ", "\n", "½", "東", "🎉", "é", "<", "12", "’", "\u200d", "x y"]), max_size=25
)


@settings(max_examples=300, deadline=None)
@given(pieces.map("".join))
@example("")
@example(" \n ")
@example("🎉")
@example("’’")
def test_any_text_is_aligned_exactly(pair, text):
    left, right = (tokens(t, text) for t in pair)
    found = align(left, right)
    assert set(found.links) == oracle.links(text, left.spans, right.spans, blanks=False)
    assert error_rate(found, left, right) == 0
    groups = found.groups
    for side, size in (("teacher", len(left)), ("student", len(right))):
        runs = [getattr(group, side) for group in groups]
        assert [i for start, end in runs for i in range(start, end)] == list(range(size)), "every token once, in order"
    place = {("t", i): g for g, group in enumerate(groups) for i in range(*group.teacher)}
    place |= {("s", j): g for g, group in enumerate(groups) for j in range(*group.student)}
    assert all(place["t", i] == place["s", j] for i, j in found.links)
    said, told = ({i: set(range(a, b)) for i, a, b in zip(*side.solid, strict=True)} for side in (left, right))
    covered = {c for i, j in found.links for c in said[i] & told[j]}
    assert covered == set().union(*said.values()) & set().union(*told.values()), "what both sides cover is aligned"


@given(pieces.map("".join))
def test_groups_cannot_be_cut_further(pair, text):
    left, right = (tokens(t, text) for t in pair)
    found = align(left, right)
    for group in found.groups:
        if "0" in group.kind:
            continue
        inside = [(i, j) for i, j in found.links if group.teacher[0] <= i < group.teacher[1]]
        for cut in range(group.teacher[0] + 1, group.teacher[1]):
            before, after = [j for i, j in inside if i < cut], [j for i, j in inside if i >= cut]
            assert not before or not after or max(before) >= min(after), "a run could have been cut in two"


@pytest.mark.parametrize(
    "links, kinds",
    [
        ([(0, 0)], ["1:1"]),
        ([(0, 0), (0, 1)], ["1:n"]),
        ([(0, 0), (1, 0)], ["n:1"]),
        ([(0, 0), (0, 1), (1, 1), (1, 2)], ["n:m"]),
        ([], ["n:0", "0:n"]),
        ([(1, 1)], ["1:0", "0:1", "1:1", "1:0"]),
    ],
)
def test_groups_say_of_what_kind_they_are(links, kinds):
    n = 3 if links == [(1, 1)] else max([i for i, _ in links], default=1) + 1
    m = max([j for _, j in links], default=1) + 1
    assert [group.kind for group in Alignment("offsets", n, m, tuple(links)).groups] == kinds


def test_ten_thousand_tokens_are_aligned_in_a_moment(pair):
    text = " ".join(TEXTS) * 3
    left, right = (tokens(t, text) for t in pair)
    assert len(left) > 10_000
    assert error_rate(align(left, right), left, right) == 0


@pytest.mark.parametrize("prefix", [False, True])
def test_byte_level_tokens_cover_what_they_write_blanks_included(pair, prefix):
    """Also where the tokenizer itself leaves blanks out of its spans, or puts one before the text."""
    from tokenizers import Tokenizer, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_str(pair[0].backend_tokenizer.to_str())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    assert any(end - start < len(w) for w, (start, end) in reported(tokenizer, "She baked  12 buns")), "trimmed"
    for text in [*TEXTS[:20], *TEXTS[-3:], " two  blanks", "x", ""]:
        found = tokens(tokenizer, text)
        whole = [(w, text[a:b]) for w, (a, b) in zip(found.written, found.spans, strict=True) if "\ufffd" not in w]
        assert all(w == covered or (i == 0 and prefix and w == " " + covered) for i, (w, covered) in enumerate(whole))
        assert {c for a, b in found.spans for c in range(a, b)} == set(range(len(text))), "every letter is covered"


def reported(tokenizer, text):
    """(what a token writes, its span as the tokenizer says)."""
    found = tokenizer(text, return_offsets_mapping=True)
    names = tokenizer.convert_ids_to_tokens(found["input_ids"])
    return list(zip(names, found["offset_mapping"], strict=True))


def test_unequal_texts_and_unknown_ways_are_refused(pair):
    left, right = tokens(pair[0], "one"), tokens(pair[1], "two")
    with pytest.raises(InputError, match="of two"):
        align(left, right)
    assert align(left, right, "dtw").links
    with pytest.raises(InputError, match="dtw_normalised"):
        align(left, left, "myers")

    class Slow:
        is_fast = False

    with pytest.raises(InputError, match="fast tokenizer"):
        tokens(Slow(), "one")


def test_nothing_to_align(pair):
    empty, one = tokens(pair[0], ""), tokens(pair[1], "one")
    for method in alignment.METHODS:
        assert align(empty, tokens(pair[1], ""), method).links == ()
    assert align(empty, Tokens("", (), (), ()), "dtw").groups == ()
    assert soft_share(align(empty, empty), empty, empty) == 0 == error_rate(align(empty, empty), empty, empty)
    assert len(one) >= 1


# ----- how good
def test_published_warping_errs_and_its_normalised_cost_errs_less(both):
    rates = {
        method: sum(error_rate(align(a, b, method), a, b) for a, b in both[:150]) / 150
        for method in ("dtw", "dtw_normalised", "offsets")
    }
    assert rates["offsets"] == 0 < rates["dtw_normalised"] < rates["dtw"]


def test_an_error_rate_is_the_share_of_wrong_and_missing_links():
    left = Tokens("ab cd", (0, 1), ("ab", " cd"), ((0, 2), (3, 5)))
    right = Tokens("ab cd", (0, 1, 2), ("▁a", "b", "▁cd"), ((0, 1), (1, 2), (2, 5)))
    right_links = ((0, 0), (0, 1), (1, 2))
    assert error_rate(Alignment("x", 2, 3, right_links), left, right) == 0
    assert error_rate(Alignment("x", 2, 3, ((0, 0), (1, 1), (1, 2))), left, right) == pytest.approx(1 / 3)
    assert error_rate(Alignment("x", 2, 3, ((0, 2),)), left, right) == 1
    assert error_rate(Alignment("x", 2, 3, right_links[:1]), left, right) == pytest.approx(0.5)


def test_soft_targets_need_one_partner():
    left = Tokens("ab cd", (0, 1), ("ab", " cd"), ((0, 2), (3, 5)))
    right = Tokens("ab cd", (0, 1, 2), ("▁a", "b", "▁cd"), ((0, 1), (1, 2), (2, 5)))
    for method in ("dtw", "offsets"):
        assert soft_share(align(left, right, method), left, right) == pytest.approx(1 / 3)
    starts = Tokens("cd", (1,), ("cd",), ((0, 2),))
    assert (
        soft_share(
            align(starts, Tokens("cd", (2,), ("▁cd",), ((0, 2),)), "dtw"),
            starts,
            Tokens("cd", (2,), ("▁cd",), ((0, 2),)),
        )
        == 0
    )


def test_methods_are_compared_over_texts(both):
    texts = both[:20]
    for row in alignment.compare(texts, alignment.METHODS):
        found = [(align(a, b, row["method"]), a, b) for a, b in texts]
        rates = [error_rate(*each) for each in found]
        soft = sum(soft_share(*each) * len(each[2]) for each in found)
        assert row["error_rate"] == pytest.approx(sum(rates) / 20) and row["texts"] == 20
        assert row["texts_with_errors"] == pytest.approx(sum(rate > 0 for rate in rates) / 20)
        alike = sum(alignment.alike_share(*each) * len(each[2]) for each in found)
        assert row["alike_share"] == pytest.approx(alike / sum(len(b) for _, b in texts)) and alike <= soft
        assert row["soft_share"] == pytest.approx(soft / sum(len(b) for _, b in texts))
    assert alignment.compare([])[0]["error_rate"] == 0


@pytest.mark.skipif(not REAL.is_dir(), reason="set REAL_DATA to the folder of real files")
def test_on_real_solutions_the_normalised_cost_errs_five_times_less_and_offsets_teach_more():
    """Two tokenizers of 6,000 pieces trained on the solutions themselves; every 25th solution is aligned."""
    from tests.bench.alignment import solutions

    texts = solutions(REAL / "gsm8k" / "train.jsonl")
    pair = trained_pair(texts, 6000, 6000)
    rows = {row["method"]: row for row in alignment.compare([tuple(tokens(t, x) for t in pair) for x in texts[::25]])}
    assert rows["offsets"]["error_rate"] == 0
    assert rows["dtw"]["error_rate"] >= 5 * rows["dtw_normalised"]["error_rate"] > 0
    assert rows["offsets"]["soft_share"] >= 1.15 * rows["dtw"]["soft_share"]
    assert rows["dtw"]["soft_share"] < rows["dtw_normalised"]["soft_share"]
