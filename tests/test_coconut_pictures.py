"""Pictures of continuous thoughts show the numbers that they are given; pages and boxes to look with hold any text."""

import json
import re
import shutil
import subprocess
import warnings

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb

from lib import answers, plots
from lib.coconut import explore, generation, inspect, pictures
from lib.coconut.config import Config
from lib.errors import InputError
from lib.problems import make_problem
from lib.prompts import prompt
from lib.tasks import modular_chain
from tests.test_coconut_inspect import CHAINS, random_thinker, taught, texts_of  # noqa: F401 (a fixture)
from tests.test_viewers import HOSTILE, Reader, loads_nothing


def look(step, stage, thoughts, right):
    return {"step": step, "stage": stage, "thoughts": thoughts, "right": right}


CURVE = [
    look(25, 0, 0, 0.5),
    {"step": 25, "stage": 0, "loss": 2.0, "grad_norm": 1.0},
    look(50, 0, 0, 1.0),
    look(50, 1, 1, 0.1),
    look(75, 1, 1, 0.9),
    look(75, 2, 2, 0.0),
    look(100, 2, 2, 0.7),
]
WITHOUT = [{**row, "thoughts": 0} if "right" in row else row for row in CURVE]
CHECKS = [
    {"change": "kept", "accuracy": 1.0, "answer of the other": 0.0},
    {"change": "swapped", "accuracy": 0.1, "answer of the other": 0.9},
]
ALIKE = [{**row, "answer of the other": None} for row in CHECKS]
SWAPPED = [
    {"thought": 1, "pairs": 7, "predicted": 0.8, "unchanged": 0.2},
    {"thought": 2, "pairs": 0, "predicted": None, "unchanged": None},
]
BY = [{"thoughts": k, "accuracy": k / 4, "tokens": 9.0 - 2 * k} for k in (2, 0, 1)]
GEOMETRY = [
    {"of": "thought 1", "norm": 12.0, "cosine": 0.4, "rank": 11.0},
    {"of": "thought 2", "norm": 13.0, "cosine": -0.2, "rank": 9.0},
    {"of": "embeddings", "norm": 1.5, "cosine": 0.5, "rank": 70.0},
]
DECODED = [[("r4", 0.75), ("\n", 0.2)], [("a token much too long for its cell", 0.5), ("$x$ and $", 0.001)]]
STRANGE = [[(text, 0.5)] for text in [*HOSTILE, "\ud800", "�", "$\\frac{", "漢字"]]


def node(name, hop, height, **shares):
    return {"name": name, "hop": hop, "height": height, "shares": {int(k[1:]): p for k, p in shares.items()}}


TREE = {
    **{"root": "n0", "target": "n4", "false": "n9", "path": ["n0", "n1", "n4"], "longest": False},
    "nodes": [
        node("n0", 0, 2),
        node("n1", 1, 1, k0=0.5, k1=0.75),
        node("n2", 1, 0, k0=0.25, k1=0.125),
        node("n4", 2, 0, k2=0.6),
        node("n5", 2, 0, k2=0.1),
    ],
    "edges": [["n0", "n1"], ["n0", "n2"], ["n1", "n4"], ["n1", "n5"], ["n2", "n5"]],
    "unreached": {"name": "n9", "height": 0, "shares": {2: 0.3}},
    "asked": [dict(thoughts=k, hop=max(1, k), elsewhere=rest) for k, rest in ((0, 0.25), (1, 0.125), (2, 0.0))],
}
UNASKED = {
    **TREE,
    "asked": [],
    "nodes": [{**n, "shares": {}} for n in TREE["nodes"]],
    "unreached": {**TREE["unreached"], "shares": {}},
}
PICTURES = {
    "curriculum": (pictures.curriculum, {"coconut": CURVE}),
    "curricula": (pictures.curriculum, {name: CURVE if i % 2 else WITHOUT for i, name in enumerate("abcdefghij")}),
    "curriculum of nothing": (pictures.curriculum, {}),
    "curriculum of a start": (pictures.curriculum, {"a": [], "b": CURVE[1:2], "$c_1$ and $": CURVE[:1]}),
    "decoded": (lambda rows: pictures.decoded(rows, "1 + 1 ?", ["r4"]), DECODED),
    "decoded of no thought": (lambda rows: pictures.decoded(rows, "q " * 900, ["r4"] * 9), DECODED[:1]),
    "decoded of strange tokens": (lambda rows: pictures.decoded(rows, "$\\frac{ and $", ["$\\frac{x$"] * 20), STRANGE),
    "decoded of nothing": (lambda rows: pictures.decoded(rows, "", []), []),
    "causal": (lambda rows: pictures.causal(rows, SWAPPED), CHECKS),
    "causal of any task": (lambda rows: pictures.causal(rows, []), ALIKE),
    "causal of nothing": (lambda rows: pictures.causal(rows, []), []),
    "by thoughts": (pictures.by_thoughts, {"a": BY, "b": BY[:1]}),
    "by thoughts of nothing": (pictures.by_thoughts, {"a": []}),
    "geometry": (pictures.geometry, GEOMETRY),
    "geometry of one problem": (pictures.geometry, [{**row, "cosine": None} for row in GEOMETRY[:2]]),
    "geometry of nothing": (pictures.geometry, []),
    "tree": (pictures.search_tree, TREE),
    "tree that was never asked": (pictures.search_tree, UNASKED),
}


@pytest.mark.parametrize("name", PICTURES)
def test_any_data_makes_a_figure_that_saves_as_png(name, tmp_path):
    from matplotlib.figure import Figure

    function, data = PICTURES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "No artists with labels")
        warnings.filterwarnings("ignore", "Glyph .* missing")
        figure = function(data)
        assert isinstance(figure, Figure) and figure.axes
        assert plots.save(figure, tmp_path / "figure.png") is figure
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG\r\n")


def overlapping(texts, figure):
    """Pairs of texts whose boxes on the page overlap by more than a hair."""
    FigureCanvasAgg(figure).draw()
    boxes = [(t.get_text(), t.get_window_extent().shrunk(0.98, 0.9)) for t in texts if t.get_text().strip()]
    return [(a, b) for i, (a, one) in enumerate(boxes) for b, two in boxes[i + 1 :] if one.overlaps(two)]


@pytest.mark.parametrize("name", [name for name in PICTURES if "nothing" not in name and "strange" not in name])
def test_no_label_covers_another(name):
    function, data = PICTURES[name]
    figure = function(data)
    texts = []
    for ax in figure.axes:
        legend = ax.get_legend()
        texts += [*ax.texts, ax.title, ax._left_title, *([] if legend is None else legend.get_texts())]
        if ax.axison:
            for axis in (ax.xaxis, ax.yaxis):
                low, high = sorted(axis.get_view_interval())
                ticks = zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=False)  # hidden labels lack
                texts += [axis.label, *(label for place, label in ticks if low <= place <= high)]
    assert overlapping([*texts, *([figure._suptitle] if figure._suptitle else [])], figure) == []


def test_labels_that_do_cover_each_other_would_be_noticed():
    figure, (ax,) = plots.axes()
    texts = [ax.text(0.5, 0.5, "one"), ax.text(0.51, 0.51, "two"), ax.text(0.1, 0.1, "three")]
    assert overlapping(texts, figure) == [("one", "two")]


def shade(artist):
    return to_hex(artist.get_facecolor()[:3] if hasattr(artist, "get_facecolor") else artist.get_color()).upper()


def contrast(one, other):
    """Of two colours, from 1 (none) to 21; 3 is the least that the web's guidelines allow for marks."""
    parts = [[c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(x)] for x in (one, other)]
    low, high = sorted(0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in parts)
    return (high + 0.05) / (low + 0.05)


# --- training ---


def test_a_curriculum_shows_the_drop_at_each_switch_and_the_thoughts_of_each_stage():
    top, lanes = pictures.curriculum({"coconut": CURVE, "no thought": WITHOUT}).axes
    for line in [line for line in top.lines if line.get_linestyle() == "-"]:
        assert line.get_xydata().tolist() == [
            [25, 0.5],
            [50, 1.0],
            [50, 0.1],
            [75, 0.9],
            [75, 0.0],
            [100, 0.7],
        ]
    assert [line.get_xdata()[0] for line in top.lines if line.get_linestyle() == ":"] == [50, 75] * 2
    spans = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in lanes.patches]
    assert spans == [(0, 50), (50, 75), (75, 100)] * 2
    assert [text.get_text() for text in lanes.texts] == ["0", "1", "2", "s0", "s1", "s2"]
    places = [(text.get_position()[0], round(text.get_position()[1])) for text in lanes.texts]
    assert places == [(x, lane) for lane in (0, 1) for x in (25, 62.5, 87.5)]


def test_a_curriculums_lines_and_lanes_are_told_apart_by_the_same_colour():
    names = ["cot", "coconut", "coconut_no_curriculum", "coconut 2", "b", "c", "d", "e"]
    top, lanes = pictures.curriculum(dict.fromkeys(names, CURVE)).axes
    lines = [line for line in top.lines if line.get_linestyle() == "-"]
    assert [line.get_label() for line in lines] == [t.get_text() for t in lanes.get_yticklabels()] == names
    assert [shade(line) for line in lines] == [shade(bar) for bar in lanes.patches[::3]] == pictures.shades(names)
    assert len(set(pictures.shades(names))) == 8 and len(pictures.shades("abcdefghijkl")) == 12
    assert pictures.shades(names[:2]) == [plots.colour("cot"), plots.colour("coconut")]
    assert pictures.shades(["coconut 2"]) == [plots.colour("coconut")]
    for label, line in zip(lanes.get_yticklabels(), lines, strict=True):
        assert label.get_color() == pytest.approx([0.6 * part for part in to_rgb(line.get_color())])
        assert contrast(label.get_color(), "white") > 3


def test_thoughts_added_one_by_one_in_a_stage_are_stretches_of_their_own():
    rows = [look(10, 0, 0, 1.0), look(10, 1, 1, 0.5), look(20, 1, 1, 1.0), look(20, 1, 2, 0.5), look(30, 1, 2, 1.0)]
    assert pictures.stretches(rows) == [(0, 10, "0"), (10, 20, "1"), (20, 30, "2")]
    late = [look(25, 3, 4, 0.2), look(50, 3, 4, 0.3)]
    assert pictures.stretches(late) == [(0, 50, "4")] and pictures.stretches(CURVE[1:2]) == []


# --- thoughts ---


def test_decoded_tokens_stand_in_their_cells_with_their_probability_as_number_and_colour():
    figure = pictures.decoded(DECODED, "1 + 1 ?", ["r4"])
    ax = figure.axes[0]
    cells = {tuple(map(int, text.get_position())): text.get_text() for text in ax.texts}
    assert cells[0, 0] == "r4\n0.75" and cells[0, 1] == "⏎\n0.20"
    assert cells[1, 0] == "a token muc…\n0.50" and cells[1, 1] == "$x$ and $\n<0.01"
    (image,) = ax.images
    assert image.get_array().tolist() == [[0.75, 0.5], [0.2, 0.001]] and image.get_clim() == (0, 1)
    assert [t.get_text() for t in ax.get_xticklabels()] == ["thought 1\nr4", "written\n"]
    assert figure._suptitle.get_text() == "1 + 1 ?"
    dark, light = sum(to_rgb(image.cmap(0.9))), sum(to_rgb(image.cmap(0.1)))
    assert dark < light, "darker is likelier"


def test_every_token_is_readable_on_its_ground():
    for share in [i / 50 for i in range(51)]:
        ax = pictures.decoded([[("r4", share)]], "?", []).axes[0]
        assert contrast(ax.texts[0].get_color(), ax.images[0].cmap(share)[:3]) > 3, f"at {share}"


def test_causal_checks_stand_beside_the_share_of_the_other_problems_answer():
    first, second = pictures.causal(CHECKS, SWAPPED).axes
    assert [bar.get_width() for bar in first.patches] == [1.0, 0.1, 0.0, 0.9]
    assert [t.get_text() for t in first.get_yticklabels()] == ["kept", "swapped"]
    assert [t.get_text() for t in first.texts] == ["1.00", "0.10", "0.00", "0.90"]
    assert [t.get_text() for t in first.get_legend().get_texts()] == ["right", "the other problem's answer"]
    assert first.yaxis_inverted() and first.patches[0].get_y() < first.patches[2].get_y() < first.patches[1].get_y()
    assert [bar.get_width() for bar in second.patches] == [0.8, 0.0, 0.2, 0.0]
    assert [t.get_text() for t in second.texts] == ["0.80", "0.20"], "no number where no pair was"
    assert [t.get_text() for t in second.get_yticklabels()] == ["thought 1\n(7 pairs)", "thought 2\n(0 pairs)"]


def test_without_exchanged_steps_or_other_answers_they_have_no_panel_and_no_bars():
    (ax,) = pictures.causal(ALIKE, []).axes
    assert [bar.get_width() for bar in ax.patches] == [1.0, 0.1]
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["right"]


def test_accuracy_and_tokens_are_drawn_in_the_order_of_thoughts():
    right, tokens = pictures.by_thoughts({"a": BY, "b": BY[:1]}).axes
    assert right.lines[0].get_xydata().tolist() == [[0, 0], [1, 0.25], [2, 0.5]]
    assert tokens.lines[0].get_xydata().tolist() == [[0, 9], [1, 7], [2, 5]]
    assert [line.get_label() for line in tokens.lines] == ["a", "b"] and tokens.get_ylim()[0] == 0
    assert [t.get_text() for t in tokens.get_legend().get_texts()] == ["a", "b"]
    assert pictures.by_thoughts({"a": BY}).axes[1].get_legend() is None


def test_geometry_is_drawn_by_position_beside_the_embeddings():
    panels = pictures.geometry(GEOMETRY).axes
    values = [[line.get_ydata() for line in ax.lines] for ax in panels]
    assert [[list(v) for v in pair] for pair in values] == [
        [[12, 13], [1.5, 1.5]],
        [[0.4, -0.2], [0.5, 0.5]],
        [[11, 9], [70, 70]],
    ]
    for ax in panels:
        assert list(ax.lines[0].get_xdata()) == [1, 2] and ax.lines[1].get_linestyle() == "--"
        assert ax.get_ylim()[0] <= min(ax.lines[0].get_ydata()) and ax.get_ylim()[1] >= max(ax.lines[0].get_ydata())
    assert panels[0].get_ylim()[0] == 0 and panels[0].get_ylim()[1] > 13


# --- search ---


def test_a_search_tree_stands_hop_by_hop_with_every_probability_and_height():
    (ax,) = pictures.search_tree(TREE).axes
    said = {text.get_text().split("\n")[0].split(",")[0]: text.get_text() for text in ax.texts}
    assert said["n0"] == "n0, root\nh 2" and said["n1"] == "n1\n0.50 → 0.75, h 1"
    assert said["n4"] == "n4, target\n0.60, h 0" and said["n9"] == "n9, false\n0.30, h 0"
    assert said["hop 1"] == "hop 1\nafter 0, 1 thoughts\nelsewhere 0.25 → 0.12"
    assert said["hop 2"].endswith("elsewhere 0.00") and said["hop 0"].strip() == "hop 0"
    places = pictures.places_of(TREE)
    assert {n["name"]: places[n["name"]][0] for n in TREE["nodes"]} == {n["name"]: n["hop"] for n in TREE["nodes"]}
    assert places["n9"][0] == 2 and places["n9"][1] < min(y for name, (_, y) in places.items() if name != "n9")
    assert len(set(places.values())) == 6


def test_a_search_tree_marks_the_way_the_false_candidate_and_the_likelier_nodes():
    (ax,) = pictures.search_tree(TREE).axes
    places = pictures.places_of(TREE)
    ways = {tuple(zip(*line.get_data(), strict=True)): shade(line) for line in ax.lines}
    expected = {(places[a], places[b]): pictures.RIGHT if b in ("n1", "n4") else "#BBBBBB" for a, b in TREE["edges"]}
    assert ways == expected
    dots = {tuple(dot.get_offsets()[0]): dot for dot in ax.collections}
    rims = {name: to_hex(dots[place].get_edgecolor()[0]).upper() for name, place in places.items()}
    assert {name for name, rim in rims.items() if rim == pictures.RIGHT} == {"n0", "n1", "n4"}
    assert {name for name, rim in rims.items() if rim == pictures.WRONG} == {"n9"}
    shares = {"n0": 0, "n2": 0.125, "n5": 0.1, "n9": 0.3, "n4": 0.6, "n1": 0.75}
    by_share = sorted(places, key=shares.get)
    sizes = [dots[places[name]].get_sizes()[0] for name in by_share]
    tones = [-sum(dots[places[name]].get_facecolor()[0][:3]) for name in by_share]
    assert sizes == sorted(sizes) and tones == sorted(tones) and len(set(sizes)) == 6


def test_a_search_tree_says_which_height_it_means():
    titles = [pictures.search_tree({**TREE, "longest": it}).axes[0].get_title(loc="left") for it in (False, True)]
    assert "the shortest way" in titles[0] and "the longest way" in titles[1]


# --- a page without a kernel ---


def run_of(k, text="#### 4", right=True):
    columns = [[[f"r{i}", 0.5 + i / 100], ["\n", 0.25]] for i in range(k + 1)]
    return {"thoughts": k, "columns": columns, "text": text, "right": right}


def item(text="1 + 1 ?"):
    return {"question": text, "steps": [text], "answer": text, "runs": [run_of(0, text), run_of(2, text, False)]}


def data_of(html):
    (script,) = Reader(html).scripts
    return json.JSONDecoder().raw_decode(script.partition("const items = ")[2])[0]


def test_what_is_looked_at_is_what_inspect_and_generation_say(taught):  # noqa: F811
    thinker, tokenizer = taught
    problems = CHAINS[10:14]
    items = explore.look(thinker, tokenizer, problems, [0, 2], top=3, new=9)
    assert json.loads(json.dumps(items)) == items
    for found, problem in zip(items, problems, strict=True):
        assert (found["question"], found["answer"]) == (problem.question, problem.answer)
        assert found["steps"] == list(problem.steps)
        for k, run in zip((0, 2), found["runs"], strict=True):
            (own,) = generation.generate(thinker, tokenizer, [prompt(problem)], k, max_new_tokens=9)
            assert (run["thoughts"], run["text"]) == (k, own.text)
            assert run["right"] == answers.is_correct(problem, own.text)
            for column, row in zip(run["columns"], inspect.decode(thinker, tokenizer, problem, k, 3), strict=True):
                assert [token for token, _ in column] == [token for token, _ in row]
                assert [p for _, p in column] == pytest.approx([p for _, p in row])


@pytest.mark.parametrize("text", [*HOSTILE, "STYLE BLUE", "\ud800"])
def test_a_page_holds_any_text_unchanged_inside_its_one_script_and_loads_nothing(text):
    html = explore.static([item(text)])
    loads_nothing(html)
    assert data_of(html) == [item(text)]
    assert html.lower().count("</script") == 1 and "<!--" not in html
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", html)
    html.encode()


STUB = """
class Node { constructor(tag) { this.tag = tag; this.children = []; this.style = {}; this.textContent = ''; }
  append(...nodes) { this.children.push(...nodes); } replaceChildren(...nodes) { this.children = nodes; }
  add(option) { this.children.push(option); if (this.value === undefined) this.value = option.value; } }
global.Option = class { constructor(text, value) { this.text = text; this.value = value; } };
const one = Object.fromEntries(['select', 'table', 'p', 'pre', 'small'].map(tag => [tag, new Node(tag)]));
const many = {input: [new Node('input'), new Node('input')], b: [new Node('b'), new Node('b')]};
const root = {querySelector: tag => one[tag], querySelectorAll: tag => many[tag]};
global.document = {currentScript: {closest: () => root}, createElement: tag => new Node(tag)};
SCRIPT
const seen = () => console.log(JSON.stringify({question: one.p.textContent, text: one.pre.textContent,
  kind: one.pre.className, note: one.small.textContent, says: many.b.map(b => b.textContent),
  rows: one.table.children.map(r => r.children.map(c => [c.tag, c.textContent, c.style.background || '']))}));
seen(); many.input[0].value = 0; many.input[0].oninput(); seen();
many.input[1].value = 1; many.input[1].oninput(); seen();
one.select.value = 1; one.select.onchange(); seen();
"""


@pytest.mark.skipif(not shutil.which("node"), reason="there is no node to run the page's script")
def test_the_pages_script_shows_the_chosen_problem_thoughts_and_tokens(tmp_path):
    (script,) = Reader(explore.static([item(), item("<b>other</b>")])).scripts
    (tmp_path / "page.js").write_text(STUB.replace("SCRIPT", script))
    done = subprocess.run(["node", tmp_path / "page.js"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    first, none, one, other = map(json.loads, done.stdout.splitlines())
    assert first["says"] == [2, 2] and first["kind"] == "wrong" and first["question"] == "1 + 1 ?"
    texts = [[text for _, text, _ in row] for row in first["rows"]]
    assert texts == [
        ["thought 1", "thought 2", "written"],
        ["1 + 1 ?", "", ""],
        ["r0 0.50", "r1 0.51", "r2 0.52"],
        ["⏎ 0.25", "⏎ 0.25", "⏎ 0.25"],
    ]
    assert first["rows"][2][0][2] == "rgba(0,114,178,0.350)" and first["rows"][0][0][0] == "th"
    assert none["says"] == [0, 2] and [len(row) for row in none["rows"]] == [1] * 4 and none["kind"] == "right"
    assert len(one["rows"]) == 3 and one["says"] == [0, 1]
    assert other["question"] == other["text"] == "<b>other</b>" and "the answer is <b>other</b>" in other["note"]


@pytest.mark.skipif(not shutil.which("node"), reason="there is no node to run the page's script")
def test_a_page_of_nothing_is_still_a_page(tmp_path):
    (script,) = Reader(explore.static([])).scripts
    (tmp_path / "page.js").write_text(STUB.partition("SCRIPT")[0] + script)
    assert subprocess.run(["node", tmp_path / "page.js"], timeout=60).returncode == 0


# --- a box with one ---


def parts_of(box):
    field, sliders, shown = box.children
    return field, *sliders.children, shown


def said(shown):
    return Reader(f"<div>{shown.value}</div>").text


def test_the_box_redraws_at_each_change(taught):  # noqa: F811
    thinker, tokenizer = taught
    problem, other = CHAINS[12], CHAINS[13]
    box = explore.live(thinker, tokenizer, problem.question, 2, top=3, solve=modular_chain.solve)
    field, thoughts, tokens, shown = parts_of(box)

    def expected(problem, k, top):
        (found,) = explore.look(thinker, tokenizer, [problem], [k], top)
        return explore.drawn(found, known=True)

    assert (field.value, thoughts.value, tokens.value) == (problem.question, 2, 3)
    assert shown.value == expected(problem, 2, 3) and f"the answer is {problem.answer}" in said(shown)
    assert shown.value.count("<tr>") == 5 and all(step in said(shown) for step in problem.steps)
    thoughts.value = 0
    assert shown.value == expected(problem, 0, 3)
    tokens.value = 1
    assert shown.value == expected(problem, 0, 1) and shown.value.count("<tr>") == 3
    field.value = f"  {other.question} "
    assert shown.value == expected(other, 0, 1)
    assert "sliders" not in said(shown) and loads_nothing(f"<div>{shown.value}</div>") is None


def test_a_question_of_no_task_is_asked_all_the_same_and_not_judged(taught):  # noqa: F811
    box = explore.live(*taught, "is 7 prime?", 1, solve=modular_chain.solve)
    *_, shown = parts_of(box)
    assert "no question of this task" in said(shown) and "the answer is" not in said(shown).replace("#### ", "")
    assert explore.GOOD not in shown.value and explore.BAD not in shown.value
    *_, plain = parts_of(explore.live(*taught, CHAINS[0].question, 1))
    assert "no question" not in said(plain) and explore.PLAIN in plain.value


@pytest.mark.parametrize("text", HOSTILE)
def test_the_box_shows_any_text_as_text(text, taught):  # noqa: F811
    thinker, tokenizer = taught
    problem = make_problem(text, [text], text, "t")
    *_, shown = parts_of(explore.live(thinker, tokenizer, text, 1, solve=lambda question: problem))
    assert "<script" not in shown.value and "<img" not in shown.value
    assert set(Reader(f"<div>{shown.value}</div>").tags) <= {"div", "table", "tr", "th", "td", "small", "pre"}
    run = {"thoughts": 0, "columns": [[[text, 0.5]]], "text": text, "right": False}
    drawn = explore.drawn({"question": text, "steps": [text], "answer": text, "runs": [run]}, known=True)
    assert Reader(f"<div>{drawn}</div>").text.count(text.replace("\n", "⏎")) >= 1


def test_what_cannot_be_asked_is_one_sentence_in_the_box():
    thinker, tokenizer = random_thinker(texts_of(CHAINS), method="cot")
    box = explore.live(thinker, tokenizer, "v1 + n1 ?", 0, new=3)
    field, thoughts, _, shown = parts_of(box)
    assert "written" in said(shown)
    thoughts.value = 2
    assert (
        said(shown) == "A model cannot be given 2 thoughts; ask for 0: this one was trained without latent positions."
    )
    thoughts.value = 0
    field.value = "   "
    assert said(shown) == "There is no question; write one, and press Enter."
    field.value = "v1 + n2 ?"
    assert "written" in said(shown), "and goes on from there"


def test_whatever_breaks_the_box_stays():
    thinker, tokenizer = random_thinker(texts_of(CHAINS), markers=True)

    def solve(question):
        raise RuntimeError("<b>a table\nis full</b>")

    *_, shown = parts_of(explore.live(thinker, tokenizer, "v1 + n1 ?", 1, solve=solve))
    assert said(shown) == "This cannot be asked (RuntimeError: <b>a table is full</b>); try another question."


def test_a_refusal_that_quotes_a_question_is_text_too():
    def solve(question):
        raise InputError(f"No problem: {question}")

    thinker, tokenizer = random_thinker(texts_of(CHAINS), markers=True)
    *_, shown = parts_of(explore.live(thinker, tokenizer, "<img src=x>", 1, solve=solve))
    assert said(shown) == "No problem: <img src=x>" and "<img" not in shown.value


def test_answers_behind_the_published_marker_are_judged_where_the_config_is_given(taught, monkeypatch):  # noqa: F811
    right = [r for item in explore.look(*taught, CHAINS, [2]) for r in item["runs"] if r["right"]]
    assert right
    monkeypatch.setattr(generation, "with_marker", lambda text, trained: "#### 99")
    published = Config(answer_prefix="### ")
    assert not [r for i in explore.look(*taught, CHAINS, [2], trained=published) for r in i["runs"] if r["right"]]
