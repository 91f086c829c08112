"""Pictures of alignment and distillation: what they show is what the alignments and targets say."""

import math

import numpy
import pytest
from matplotlib.colors import to_hex

from lib import alignment, prompts
from lib.alignment import Alignment, align, tokens
from lib.distillation import pictures, targets
from lib.tasks import word_problems
from lib.tokenization import build_sentence_tokenizer, build_tokenizer

PROBLEMS = word_problems.generate(40)
TEXTS = [p.question + "\n" + prompts.solution(p) for p in PROBLEMS]


@pytest.fixture(scope="module")
def pair():
    """Two tokenizers."""
    return build_tokenizer(TEXTS, 400), build_sentence_tokenizer(TEXTS, 200)


@pytest.fixture(scope="module")
def cut(pair):
    """(teacher's tokens, student's) of three texts, one of them of many lines."""
    return [tuple(tokens(t, text) for t in pair) for text in (TEXTS[0], TEXTS[1][:40], "a 🎉 b")]


def lines_of(figure):
    """(colour, dashed?) of every ribbon; a stub's two halves are one."""
    return [(to_hex(line.get_color()), line.is_dashed()) for line in figure.axes[0].get_lines()]


@pytest.mark.parametrize("method", alignment.METHODS)
def test_ribbons_are_links_and_red_where_they_are_wrong(cut, method):
    for left, right in cut:
        found = align(left, right, method)
        drawn = pictures.links_to_draw(left, right, found)
        exact, solid = set(align(left, right).links), [set(side.solid[0]) for side in (left, right)]
        own = {(i, j) for i, j in found.links if i in solid[0] and j in solid[1]}
        assert {(i, j) for i, j, shade, missed in drawn if shade == pictures.WRONG and not missed} == own - exact
        assert {(i, j) for i, j, _, missed in drawn if missed} == exact - own
        assert {(i, j) for i, j, shade, _ in drawn if shade != pictures.WRONG} == own & exact
        if method == "offsets":
            assert pictures.WRONG not in {shade for *_, shade, _ in drawn}


@pytest.mark.parametrize("width", [30, 130])
def test_every_token_is_drawn_once_within_its_line(cut, width):
    for left, right in cut:
        lines = pictures.rows_of(align(left, right).groups, left, right, width)
        for at, side in enumerate((left, right)):
            assert sorted(i for line in lines for i in line[at]) == list(range(len(side)))
            for line in lines:
                places = sorted((x, x + len(pictures.shown(side.written[i]))) for i, x in line[at].items())
                assert all(a[1] < b[0] + 1 for a, b in zip(places, places[1:], strict=False)), "tokens overlap"
        figure = pictures.ribbons(left, right, align(left, right), width)
        written = [text.get_text() for text in figure.axes[0].texts]
        assert sorted(written) == sorted(pictures.shown(w) for side in (left, right) for w in side.written)


def test_a_link_to_another_line_is_two_stubs(cut):
    left, right = cut[0]
    far = Alignment("dtw", len(left), len(right), ((0, len(right) - 1),))
    assert len(pictures.rows_of(align(left, right).groups, left, right, 40)) > 1
    stubs = [line for line in pictures.ribbons(left, right, far, 40).axes[0].get_lines() if not line.is_dashed()]
    assert len(stubs) == 2 and {to_hex(line.get_color()) for line in stubs} == {pictures.WRONG}


def test_colours_say_what_kind_a_right_link_is(pair):
    left, right = (tokens(t, "Noah has 12 buns") for t in pair)
    shades = {shade for *_, shade, _ in pictures.links_to_draw(left, right, align(left, right))}
    assert shades <= set(pictures.SHADES.values()) and len(shades) >= 2


def test_the_table_shows_the_way_of_each_method(cut):
    left, right = cut[1]
    figure = pictures.warping(left, right)
    for ax, method in zip(figure.axes, ("dtw", "dtw_normalised"), strict=False):
        (way,) = ax.get_lines()
        links = align(left, right, method).links
        assert list(zip(way.get_ydata(), way.get_xdata(), strict=True)) == list(links)
        dots = ax.collections[0].get_offsets()
        assert [(int(i), int(j)) for j, i in dots] == list(align(left, right).links)


def test_bars_are_the_figures_they_are_given(cut):
    rows = alignment.compare(cut)
    errors, shares = pictures.quality(rows).axes
    assert [bar.get_width() for bar in errors.patches] == [row["error_rate"] for row in rows]
    widths = [bar.get_width() for bar in shares.patches]
    assert widths == [row[key] for key in ("alike_share", "soft_share") for row in rows]
    counted = {
        "samples": {"soft": 0.0, "chunk": 0.0, "point": 1.0},
        "offsets": {"soft": 0.5, "chunk": 0.3, "point": 0.2},
    }
    widths = [bar.get_width() for bar in pictures.coverage(counted).axes[0].patches]
    assert widths == [0.0, 0.5, 0.0, 0.3, 1.0, 0.2]


def test_what_is_taught_is_in_the_tooltips(pair):
    student = pair[1]
    ids = student("Noah has", add_special_tokens=False)["input_ids"]
    other = next(i for i in range(10, 60) if i not in ids)
    rows = [({ids[0]: 0.75, other: 0.2}, "soft"), *[({i: 1.0}, "point") for i in ids[1:]]]
    page = pictures.taught(student, targets.packed(rows), ids)
    assert "soft: " in page and "75.0%" in page and "others 5.0%" in page and page.count("<span") == len(ids)


def test_the_shares_of_the_formats_are_written_beside_them():
    examples = prompts.mixture(PROBLEMS, PROBLEMS, [1, 2, 0, 1], 1)
    (ax,) = pictures.mixture(examples).axes
    assert sorted(bar.get_width() for bar in ax.patches) == [10, 10, 20]
    assert {"20, 50.0%", "10, 25.0%"} == {text.get_text() for text in ax.texts}


def test_a_coverage_of_nothing_but_samples_has_no_tail():
    from lib.distillation import training

    found = targets.packed([({1: 1.0}, "point")])
    counted = training.coverage([{"targets": found}])
    nothing = {"tail": 0.0, "entropy": 0.0, "unsure": 0.0}
    assert counted == {"positions": 1, "soft": 0.0, "chunk": 0.0, "point": 1.0, **nothing}
    half = targets.packed([({1: 0.5}, "soft"), ({1: 0.95, 2: 0.05}, "chunk"), ({1: 1.0}, "point")])
    counted = training.coverage([{"targets": half}])
    assert counted["tail"] == pytest.approx(0.25) and counted["unsure"] == 0.5
    bits = math.log(2), -0.95 * math.log(0.95) - 0.05 * math.log(0.05)
    assert counted["entropy"] == pytest.approx(sum(bits) / 2, abs=1e-5)
    assert numpy.allclose(half.tail, [0.5, 0.0, 0.0])
