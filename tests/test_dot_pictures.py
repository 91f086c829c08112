"""Pictures of a text diffusion show the numbers that they are given, and hold any text."""

import math
import warnings

import pytest
from matplotlib.colors import to_hex

from lib import evaluation, plots
from lib.dot import film, pictures
from tests.test_coconut_pictures import contrast, overlapping
from tests.test_viewers import HOSTILE

CURVE = {"t": [0.0, 0.25, 0.5, 1.0], "gamma": [-13.0, -3.0, 0.0, 800.0], "start": [-13.0, -8.5, -4.0, 5.0]}
TIMES = [
    {"t": 0.75, "loss": 2.0, "low": 1.5, "high": 2.25, "start_loss": 3.0},
    {"t": 0.25, "loss": 1.0, "low": 0.5, "high": 1.25, "start_loss": None},
]
ROWS = [
    {"step": 50, "loss": 4.0, "reconstruction": 0.5, "diffusion": 3.0, "prior": 0.0},
    {"step": 50, "right": 0.25},
    {"step": 100, "loss": 2.0, "reconstruction": 0.25, "diffusion": 1.5, "prior": 0.0},
    {"step": 100, "right": 0.75},
]
FOUND = {"ddim": {8: (80, 100), 1: (5, 100), 2: (40, 100)}, "ancestral": {8: (60, 100), 64: (90, 100)}}
REPAIRS = [{"errors": k, "start": start, "repaired": start / k, "n": 40} for k in (2, 1) for start in (0.5, 0.0, 1.0)]
TIMED = [
    {"method": method, "length": length, "seconds": length * 0.01 if method == "cot" else 0.25}
    for method in ("cot", "dot T=4", "cot without cache")
    for length in (64, 16, 32)
]


def run_of(tokens, shares=None, steps=3, right=True):
    shares = shares or [i / len(tokens) for i in range(len(tokens))]
    frames = [{"t": 1 - i / steps, "tokens": list(tokens), "confidence": shares} for i in range(steps)]
    return {"sampler": "ddim", "steps": steps, "frames": frames, "text": "", "right": right}


PICTURES = {
    "schedule": (pictures.schedule, CURVE),
    "schedule without a start": (pictures.schedule, {"t": [0, 1], "gamma": [-9, 9]}),
    "schedule of nothing": (pictures.schedule, {"t": [], "gamma": [], "start": []}),
    "loss by time": (pictures.loss_by_time, TIMES),
    "loss by time, all zero": (pictures.loss_by_time, [{"t": 0.5, "loss": 0.0, "low": 0.0, "high": 0.0}]),
    "loss by time of nothing": (pictures.loss_by_time, []),
    "training": (pictures.training, {"a": ROWS, "$b_1$ and $": ROWS[:2]}),
    "training of many": (pictures.training, {name: ROWS for name in "abcdefghij"}),
    "training, without losses": (pictures.training, {"a": ROWS[1::2], "b": []}),
    "training of nothing": (pictures.training, {}),
    "accuracy": (lambda found: pictures.accuracy_by_steps(found, "$x and $"), FOUND),
    "accuracy of one step": (pictures.accuracy_by_steps, {"ddim": {1: (0, 5)}}),
    "accuracy of nothing": (pictures.accuracy_by_steps, {}),
    "accuracy of no problem": (pictures.accuracy_by_steps, {"ddim": {1: (0, 0), 2: (0, 0)}}),
    "accuracy at every step": (pictures.accuracy_by_steps, {"ddim": {t: (t, 64) for t in range(1, 65)}}),
    "repair": (pictures.repair, REPAIRS),
    "repair of nothing": (pictures.repair, []),
    "latency": (pictures.latency, TIMED),
    "latency of nothing": (pictures.latency, []),
    "strip": (pictures.film_strip, run_of(["r4", "=", "v1", "+", "n2", "<pad>"])),
    "strip of one frame": (pictures.film_strip, run_of(["r4", "n17"], steps=1)),
    "strip of one position": (pictures.film_strip, run_of(["r4"])),
    "strip of long tokens": (pictures.film_strip, run_of(["a token much too long for its cell"] * 9)),
    "strip of many": (pictures.film_strip, run_of(["r4"] * 200, steps=64)),
    "strip of strange tokens": (pictures.film_strip, run_of([*HOSTILE, "\ud800", "$\\frac{", "漢字", " ", ""])),
    "strip of nothing": (pictures.film_strip, run_of(["a"], steps=0)),
}


@pytest.mark.parametrize("name", PICTURES)
def test_any_data_makes_a_figure_that_saves_as_png(name, tmp_path):
    function, data = PICTURES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "Glyph .* missing")
        warnings.filterwarnings("ignore", "No artists with labels")
        figure = function(data)
        assert figure.axes and plots.save(figure, tmp_path / "figure.png") is figure
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG\r\n")


@pytest.mark.parametrize("name", [name for name in PICTURES if "nothing" not in name and "strange" not in name])
def test_no_label_covers_another(name):
    function, data = PICTURES[name]
    figure, texts = function(data), []
    for ax in figure.axes:
        legend = ax.get_legend()
        texts += [*ax.texts, ax.title, ax._left_title, *([] if legend is None else legend.get_texts())]
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=False)
            texts += [axis.label, *(label for place, label in ticks if low <= place <= high)]
    assert overlapping(texts, figure) == []


def points(line):
    return [tuple(point) for point in line.get_xydata().tolist()]


def names(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


# --- the noise ---


def test_a_schedule_is_drawn_beside_its_start_and_as_shares_of_the_variance():
    left, right = pictures.schedule(CURVE).axes
    assert names(left) == ["at the start of training", "learned"]
    assert [line.get_ydata().tolist() for line in left.lines] == [CURVE["start"], CURVE["gamma"]]
    signal, noise = (line.get_ydata().tolist() for line in right.lines)
    assert names(right) == ["signal, alpha²", "noise, sigma²"]
    assert signal[2:] == [0.5, 0.0] and noise[2:] == [0.5, 1.0] and signal[0] == pytest.approx(1 - math.exp(-13), 1e-5)
    assert [a + b for a, b in zip(signal, noise, strict=True)] == pytest.approx([1] * 4)
    assert names(pictures.schedule({"t": [0, 1], "gamma": [-9, 9]}).axes[0]) == ["learned"]


def test_the_loss_at_each_time_has_its_band_and_the_start_where_it_is_known():
    (ax,) = pictures.loss_by_time(TIMES).axes
    learned, first = ax.lines
    assert points(learned) == [(0.25, 1.0), (0.75, 2.0)] and points(first) == [(0.75, 3.0)]
    corners = {tuple(point) for path in ax.collections[0].get_paths() for point in path.vertices.tolist()}
    assert {(0.25, 0.5), (0.25, 1.25), (0.75, 1.5), (0.75, 2.25)} <= corners
    assert names(ax) == ["in the end", "before"] and ax.get_ylim()[1] > 3.0
    (ax,) = pictures.loss_by_time([{**row, "start_loss": None} for row in TIMES]).axes
    assert len(ax.lines) == 1 and ax.get_legend() is None and ax.get_ylim()[1] > 2.25


# --- training ---


def test_training_shows_the_loss_its_parts_and_the_problems_written_right():
    loss, right = pictures.training({"a": ROWS, "b": ROWS[2:]}).axes
    drawn = {(line.get_label(), to_hex(line.get_color()).upper()): points(line) for line in loss.lines}
    first, second = pictures.TONES[:2]
    assert drawn["loss", first] == [(50, 4.0), (100, 2.0)] and drawn["diffusion", second] == [(100, 1.5)]
    assert drawn["reconstruction", first] == [(50, 0.5), (100, 0.25)] and len(drawn) == 8
    assert names(loss) == list(pictures.PARTS) and loss.get_yscale() == "log"
    assert loss.get_ylim()[0] < 0.25, "the smallest part above 0 is on the page"
    styles = {line.get_label(): line.get_linestyle() for line in loss.lines}
    assert styles == pictures.PARTS and {h.get_linestyle() for h in loss.get_legend().get_lines()} == {*styles.values()}
    assert [points(line) for line in right.lines] == [[(50, 0.25), (100, 0.75)], [(100, 0.75)]]
    assert names(right) == ["a", "b"] and pictures.training({"a": ROWS}).axes[1].get_legend() is None
    assert [to_hex(line.get_color()).upper() for line in right.lines] == [first, second]


# --- what it can do ---


def bars(container):
    """(x, low, high) of each interval of a line."""
    return [(a[0], a[1], b[1]) for a, b in container.lines[2][0].get_segments()]


def test_accuracy_stands_over_doubling_steps_with_its_intervals():
    (ax,) = pictures.accuracy_by_steps(FOUND, "small").axes
    ddim, ancestral = ax.containers
    assert [y for _, y in points(ddim.lines[0])] == [0.05, 0.4, 0.8]
    assert [x for x, _ in points(ddim.lines[0])] == pytest.approx([1, 2, 8], rel=0.03)
    assert [y for _, y in points(ancestral.lines[0])] == [0.6, 0.9]
    assert points(ddim.lines[0])[2][0] < 8 < points(ancestral.lines[0])[0][0], "intervals stand side by side"
    for (_, low, high), counts in zip(bars(ddim), [(5, 100), (40, 100), (80, 100)], strict=True):
        assert (low, high) == pytest.approx(evaluation.wilson(*counts))
    assert ax.get_xscale() == "log" and {t.get_text() for t in ax.get_xticklabels()} == {"1", "2", "8", "64"}
    (every,) = pictures.accuracy_by_steps({"ddim": {t: (t, 64) for t in range(1, 65)}}).axes
    assert {"1", "2", "4", "8", "16", "32", "64"} < {t.get_text() for t in every.get_xticklabels()}
    assert names(ax) == ["ddim", "ancestral"] and ax.get_title() == "small" and not ax.patches


def test_repair_is_a_line_for_each_number_of_errors_over_the_time_noised_to():
    (ax,) = pictures.repair(REPAIRS).axes
    assert [points(c.lines[0]) for c in ax.containers] == [
        [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0)],
        [(0.0, 0.0), (0.5, 0.25), (1.0, 0.5)],
    ]
    assert bars(ax.containers[1])[1][1:] == pytest.approx(evaluation.wilson(10, 40))
    assert ax.get_legend().get_title().get_text() == "wrong tokens" and names(ax) == ["1", "2"]
    assert "right again" in ax.get_ylabel() and ax.get_xlim()[0] < 0


def test_latency_is_a_line_a_method_over_the_length_of_the_chain():
    (ax,) = pictures.latency(TIMED).axes
    assert [points(line) for line in ax.lines] == [
        [(16, 0.16), (32, 0.32), (64, 0.64)],
        [(16, 0.25), (32, 0.25), (64, 0.25)],
        [(16, 0.25), (32, 0.25), (64, 0.25)],
    ]
    assert names(ax) == ["cot", "dot T=4", "cot without cache"] and (ax.get_xscale(), ax.get_yscale()) == ("log",) * 2
    grey = [to_hex(line.get_color()) == pictures.GREY for line in ax.lines]
    assert grey == [True, False, True] and ax.lines[0].get_linestyle() != ax.lines[2].get_linestyle()


# --- a film on paper ---


def test_a_strip_is_the_probability_of_each_token_in_its_cell():
    run = run_of(["r4", "\n", "", "much too long a token"], [0.0, 0.25, 0.5, 1.0])
    ax = pictures.film_strip(run).axes[0]
    (image,) = ax.images
    assert image.get_array().tolist() == [[0.0, 0.25, 0.5, 1.0]] * 3 and image.get_clim() == (0, 1)
    cells = {text.get_position(): text.get_text() for text in ax.texts}
    assert [cells[x, 1] for x in range(4)] == ["r4", "⏎", "·", "much to…"] and len(cells) == 12
    assert [t.get_text() for t in ax.get_yticklabels()] == ["1.00", "0.67", "0.33"]
    assert ax.get_title(loc="left") == "ddim, 3 steps: right"
    assert pictures.film_strip(run_of("a", steps=1, right=None)).axes[0].get_title(loc="left") == "ddim, 1 step"
    assert image.get_extent()[2] > image.get_extent()[3], "noise above, text below"


def test_a_strip_of_many_positions_is_colours_alone():
    wide = pictures.film_strip(run_of(["a"] * 61)).axes[0]
    assert not wide.texts and wide.images[0].get_array().shape == (3, 61)
    assert len(pictures.film_strip(run_of(["a"] * 60)).axes[0].texts) == 180
    assert len(pictures.film_strip(run_of(["a"] * 9), most=8).axes[0].texts) == 0


def test_every_token_is_readable_on_its_ground_and_an_empty_place_is_faint():
    for share in [i / 20 for i in range(21)]:
        ax = pictures.film_strip(run_of(["r4", ""], [share, share], steps=1)).axes[0]
        ground = ax.images[0].cmap(share)[:3]
        token, dot = (contrast(text.get_color(), ground) for text in ax.texts)
        assert token > 3 and 1.2 < dot < 3, f"at {share}: {token:.1f} and {dot:.1f}"
        rgb = [int(part) for part in film.ground(share)[4:-1].split(",")]
        assert [round(255 * part) for part in ground] == pytest.approx(rgb, abs=2), "as on the page"
