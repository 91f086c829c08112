"""What a reader looks at: well-formed, self-contained HTML that no text can break out of, and pictures of any data."""

import base64
import json
import re
import warnings
from html.parser import HTMLParser

import pytest
from matplotlib.colors import to_hex

from lib import evaluation, plots, prompts, viewers
from lib.problems import make_problem
from lib.tasks import arithmetic, modular_chain, word_problems

HOSTILE = [
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    "<!-- <script>",
    "\"' onmouseover='alert(1)' x=\"",
    "a < b & c > d &lt; &amp;",
    "</pre></div></span></td>",
    "]]> --> ]] `${x}` \\u003c \\",
    "line\nbreak\u2028and\u2029others\x00",
    "ITEMS PLAIN GOOD BAD",
]
VOID = {"img", "br", "input", "meta", "link", "hr", "path"}
KNOWN = "style title id class lang charset name content type min max value src href".split()


class Reader(HTMLParser):
    """Reads HTML strictly: every tag closed in order, no bare < or >, no attribute that is not known."""

    def __init__(self, html):
        super().__init__(convert_charrefs=False)
        self.open, self.texts, self.scripts, self.tags, self.attributes = [], [], [], [], []
        self.feed(str(html))
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        names = [name for name, _ in attributes]
        assert len(set(names)) == len(names), f"{tag} has an attribute twice: {names}"
        assert set(names) <= set(KNOWN), f"{tag} has the attributes {names}"
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attributes]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] in ("script", "style"):
            self.scripts.append(data) if self.open[-1] == "script" else None
        else:
            assert not set("<>") & set(data), f"bare < or > in {data!r}"
            self.texts.append(data)

    def handle_entityref(self, name):
        self.texts.append({"lt": "<", "gt": ">", "amp": "&", "quot": '"'}[name])

    def handle_charref(self, name):
        self.texts.append(chr(int(name[1:], 16) if name.startswith("x") else int(name)))

    def handle_comment(self, data):
        raise AssertionError(f"a comment: {data!r}")

    @property
    def text(self):
        return "".join(self.texts)


def shades(html):
    """(word, colour, tooltip) of every badge, as a reader sees them."""
    found = re.findall(r'<span style="background:(#\w+);[^"]*" title="([^"]*)">([^<]*)</span>', str(html))
    return [(Reader(f"<b>{word}</b>").text, shade, Reader(f"<b>{tip}</b>").text) for shade, tip, word in found]


def loads_nothing(html):
    """No address outside the page is fetched: no src, href, CSS url or import, fetch or socket."""
    for tag, name, value in Reader(html).attributes:
        if name in ("src", "href"):
            assert value.startswith(("data:", "#")), f"{tag} {name} = {value[:80]}"
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|WebSocket|import\(|//[a-z0-9-]+\.", str(html), re.I)


# --- solutions ---


def test_an_own_solution_is_all_green():
    problems = word_problems.generate(30, seed=2) + modular_chain.generate(30, seed=2)
    problems += arithmetic.generate(10, "*", n_digits=3, seed=2)
    for problem in problems:
        html = viewers.solution(problem)
        marks = shades(html)
        assert [shade for _, shade, _ in marks] == [viewers.GOOD] * len(marks)
        assert marks[-1][0] == f"#### {problem.answer}" and len(marks) > 1
        assert prompts.solution(problem) in Reader(html).text and problem.question in Reader(html).text


def test_a_corrupted_annotation_is_red_with_the_true_value_and_the_rest_stays_green():
    problem = make_problem("?", ["<<3+4=7>>", "<<7*2=14>>", "<<14-1=13>>"], "13", "word_problems")
    marks = shades(viewers.solution(problem, "a <<3+4=7>>\nb <<7*2=15>>\nc <<14-1=13>>\n#### 13"))
    assert marks == [
        ("<<3+4=7>>", viewers.GOOD, "holds"),
        ("<<7*2=15>>", viewers.BAD, "the value is 14"),
        ("<<14-1=13>>", viewers.GOOD, "holds"),
        ("#### 13", viewers.GOOD, "the answer is 13"),
    ]
    assert shades(viewers.solution(problem, "<<3+4=7>>\n#### 12"))[-1][1] == viewers.BAD


def test_a_corrupted_chain_step_is_red_alone():
    """Also where its text occurs in another step, in a reason, or in the style of a badge."""
    problem = modular_chain.problem(3, (("+", 4), ("*", 2), ("-", 1), ("+", 3)), 5)
    assert problem.steps == ("r2", "r4", "r3", "r1")
    html = viewers.solution(problem, "r4\nr4\nr2\nr1\n#### 1")
    Reader(html)
    assert [(word, shade) for word, shade, _ in shades(html)] == [
        ("r4", viewers.BAD),
        ("r4", viewers.GOOD),
        ("r2", viewers.BAD),
        ("r1", viewers.GOOD),
        ("#### 1", viewers.GOOD),
    ]
    assert shades(html)[0][2] == "expected r2"


@pytest.mark.parametrize("text", [*HOSTILE, "", "####", "#### ", "<<1+1=3>><<1+1=3>>", "<<>>", "<<3+4>>\n#### 7"])
def test_any_text_of_a_model_is_shown_and_breaks_nothing(text):
    for problem in (word_problems.generate(1)[0], modular_chain.generate(1)[0]):
        for shown in (text, f"{text}\n<<1+1=2>>\n#### {text}"):
            found = Reader(viewers.solution(problem, shown)).text
            for word in shown.replace("\x00", " ").split():
                assert word in found


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_problems_break_nothing(text):
    problem = make_problem(text, [text, f"<<1+1=2>> {text}"], text, "made_up")
    assert Reader(viewers.solution(problem)).text.startswith(text)


# --- what a model was given and what it wrote ---


@pytest.mark.parametrize("text", HOSTILE)
def test_a_transcript_shows_prompt_and_completion_as_they_are_and_breaks_nothing(text):
    for right, shade in ((True, viewers.GOOD), (False, viewers.BAD)):
        html = viewers.transcript(f"Q: {text}", text, right)
        assert Reader(html).text == f"Q: {text}{text}"
        assert f"background:{shade}" in html and (viewers.BAD if right else viewers.GOOD) not in html


# --- tokens, tables, badges ---


def token(text, probability, top=()):
    return {"token": text, "probability": probability, "top": list(top)}


def test_tokens_run_from_red_to_green_and_name_the_alternatives():
    html = str(viewers.token_probabilities([token("r2", 1.0, [("r2", 1.0)]), token("\n", 0.0, [("<eos>", 0.25)])]))
    hues = [int(hue) for hue in re.findall(r"hsl\((\d+),", html)]
    assert hues == [138, 8]
    tips = re.findall(r'title="([^"]*)"', html)
    assert tips[0].startswith("100.0% - ") and "&lt;eos&gt;" in tips[1] and "25.0%" in tips[1]
    assert "⏎" in Reader(html).text and html.count("<br>") == 1


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_tokens_cells_and_badges_break_nothing(text):
    Reader(viewers.token_probabilities([token(text, 0.5, [(text, 0.5)])]))
    assert Reader(viewers.badge(text, viewers.GOOD, text)).text == text
    html = viewers.table([{text: text, "setting": {text: [text]}}])
    assert text in Reader(html).text and Reader(html).tags.count("td") == 2


def test_a_table_shows_numbers_shortly_and_missing_ones_as_a_dash():
    rows = [{"a_b": 0.123456, "n": 12345.678, "x": None, "d": {"k": 1}, "t": "text"}, {"a_b": 3}]
    html = viewers.table(rows)
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", html)
    assert cells[:5] == ["0.123", "12,346", "–", "{&quot;k&quot;: 1}", "text"]
    assert cells[5:] == ["3", "–", "–", "–", "–"]
    assert re.findall(r"<th[^>]*>([^<]*)</th>", html) == ["a b", "n", "x", "d", "t"]
    assert re.findall(r"<td[^>]*>([^<]*)</td>", viewers.table(rows, ["t", "missing"])) == ["text", "–", "–", "–"]
    assert "<td" not in viewers.table([]) and Reader(viewers.table([])).tags


def test_measured_figures_come_with_their_origin(tmp_path):
    origin = {"command": "python <run>", "commit": "abc1234", "date": "2025-01-01", "machine": "2 cores"}
    (tmp_path / "m.json").write_text(json.dumps({"rows": [{"accuracy": 0.5}], **origin}))
    found = Reader(viewers.measured(tmp_path / "m.json")).text
    assert "0.500" in found and all(value in found for value in origin.values())


def test_jupyter_shows_html_as_it_is():
    assert viewers.Html("<b>x</b>")._repr_html_() == "<b>x</b>" and viewers.solution(modular_chain.generate(1)[0])


# --- the error browser ---


def items(text):
    outputs = {"cot": {"text": text, "correct": True}, "answer_only": {"text": text, "correct": False}}
    return [{"question": text, "solution": text, "outputs": outputs}]


def data_of(html):
    (script,) = Reader(html).scripts
    return json.JSONDecoder().raw_decode(script.partition("const items = ")[2])[0]


@pytest.mark.parametrize("text", HOSTILE)
def test_the_error_browser_holds_any_text_unchanged_inside_its_one_script(text):
    html = viewers.error_browser(items(text))
    assert data_of(html) == items(text)
    assert html.lower().count("</script") == 1, "a browser ends the script at the first one"
    assert "<!--" not in html, "after <!-- and <script a browser reads past the script's end, to the end of the page"


def test_the_error_browser_of_nothing_is_still_a_browser():
    assert data_of(viewers.error_browser([])) == []


def test_the_error_browser_writes_texts_as_text_never_as_html():
    html = viewers.error_browser(items("x"))
    assert "textContent" in html
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", html)


# --- the page ---


def whole_page(text):
    sections = [
        (f"Results {text}", viewers.table([{"method": text, "accuracy": 0.5}])),
        ("Picture", viewers.picture(plots.accuracy_bars([row()]))),
        ("Errors", viewers.error_browser(items(text))),
        ("One", viewers.solution(modular_chain.generate(1)[0], text)),
    ]
    return viewers.page(f"Title {text}", sections)


@pytest.mark.parametrize("text", HOSTILE)
def test_a_page_is_well_formed_loads_nothing_and_links_to_its_sections(text):
    html = whole_page(text)
    assert html.startswith("<!doctype html>")
    read = Reader(html)
    loads_nothing(html)
    targets = [value for _, name, value in read.attributes if name == "id"]
    links = [value for tag, name, value in read.attributes if tag == "a" and name == "href"]
    assert links == [f"#{target}" for target in targets] and len(set(targets)) == 4
    assert ("meta", "charset", "utf-8") in read.attributes


def test_the_check_for_outside_addresses_would_notice_one():
    for bad in ('<img src="https://x.org/a.png">', '<a href="//x.org">x</a>', "<style>@import 'x'</style>"):
        with pytest.raises(AssertionError):
            loads_nothing(bad)


def test_a_picture_holds_its_own_bytes():
    ((tag, _, source),) = [a for a in Reader(viewers.picture(plots.accuracy_bars([row()]))).attributes if a[1] == "src"]
    assert tag == "img" and source.startswith("data:image/png;base64,")
    assert base64.b64decode(source.partition(",")[2]).startswith(b"\x89PNG\r\n")


# --- plots ---


def row(correct=5, asked=10, method="cot", task="t", seed=0, tokens=3.0, **setting):
    low, high = evaluation.wilson(correct, asked)
    what = {"method": method, "task": task, "setting": setting, "seed": seed, "tokens_per_problem": tokens}
    return {**what, "accuracy": correct / asked, "ci_low": low, "ci_high": high}


POINT = {"step": 1, "loss": 2.0, "learning_rate": 0.1, "grad_norm": 1.0, "mean_token_accuracy": 0.5}
LOOK = {"step": 1, "eval_loss": 2.0, "eval_mean_token_accuracy": 0.5}
SHAPES = {"word_problems": word_problems.generate(20), "modular_chain": modular_chain.generate(20)}
CHOICES = ("vote", "verifier", "weighted_vote")
REACHABLE = [{"task": "t", "seed": 0, "n": n, "accuracy": n / 10} for n in (1, 8)]
COUNTED = [
    {"task": task, "seed": seed, "k": k, "paths": k / 2, "ledger": {"wrong answer": 3, "kept": k}}
    for task in ("t", "u")
    for seed in (0, 1)
    for k in (1, 2, 8)
]
LEARNED = [
    row(4),
    row(5, method="cot_calculator"),
    row(6, method="rft", k=1, calculator=False),
    row(9, method="rft", k=8, calculator=False),
    row(8, method="rft", k=8, calculator=True),
    row(method="rft", task="u", seed=1, k=2),
]
PREFERRED = [
    {
        "step": 1,
        "loss": 0.69,
        "rewards/chosen": 0.0,
        "rewards/rejected": 0.0,
        "logps/chosen": -9.0,
        "logps/rejected": -8.0,
    },
    {
        "step": 2,
        "loss": 0.5,
        "rewards/chosen": 0.1,
        "rewards/rejected": -0.1,
        "logps/chosen": -8.0,
        "logps/rejected": -9.0,
    },
    {"step": 2, "eval_loss": 0.6, "eval_rewards/chosen": 0.1, "eval_logps/chosen": -8.0},
]
ROUNDS = [
    {"task": task, "seed": seed, "method": method, "model": name, "round": place, "accuracy": 0.5, "pass@2": 0.7}
    for task in ("t", "u")
    for seed in (0, 1)
    for method in ("self_training", "dpo_self_training")
    for name, place in (("sft-1", 1), ("dpo-1", 0.5), ("sft-0", 0))
]
FATES = [
    {"fate": fate, "repaired": repaired}
    for fate in ("kept", "below the threshold", "duplicate", "leaked", "not parsed")
    for repaired in (False, True)
]
PICTURES = {
    "shapes": (plots.problem_shapes, SHAPES),
    "shapes of one problem": (plots.problem_shapes, {"t": [make_problem("q", [], "", "t")]}),
    "shapes of an empty task": (plots.problem_shapes, {"t": []}),
    "digits": (plots.last_digits, {name: SHAPES["modular_chain"] for name in ("train", "valid", "test")}),
    "digits of answers without any": (plots.last_digits, {"train": [make_problem("q", [], "yes", "t")], "test": []}),
    "curves": (plots.loss_curves, {"a": [POINT, LOOK, {**POINT, "step": 2}], "b": [POINT]}),
    "curves of nothing": (plots.loss_curves, {"a": []}),
    "curves without token accuracy": (
        plots.loss_curves,
        {"a": [{"step": 1, "loss": 1.0}, {"step": 1, "eval_loss": 1}]},
    ),
    "bars": (plots.accuracy_bars, [row(), row(3, method="answer_only"), row(task="u", seed=1)]),
    "bars of nothing": (plots.accuracy_bars, []),
    "bars at zero": (plots.accuracy_bars, [row(0), row(0, 11)]),
    "bars at one": (plots.accuracy_bars, [row(500, 500)]),
    "steps": (plots.accuracy_by_steps, {"cot": {1: (3, 4), 3: (0, 2)}, "dot": {2: (1, 1)}}),
    "steps at one and zero": (plots.accuracy_by_steps, {"cot": {1: (21, 21), 2: (0, 11)}}),
    "steps of nothing": (plots.accuracy_by_steps, {}),
    "cost": (plots.accuracy_against_cost, [row(), row(9, tokens=30.0, method="dot"), row(task="u")]),
    "cost at one and zero": (plots.accuracy_against_cost, [row(500, 500), row(0, 11)]),
    "cost not measured": (plots.accuracy_against_cost, [row(tokens=None), row()]),
    "cost of nothing": (plots.accuracy_against_cost, []),
    "bars of settings": (plots.accuracy_bars, [row(k=1), row(k=8), row(k=8, seed=1), row(method="unheard of")]),
    "token lengths": (plots.token_lengths, {"one": [[3, 5], [2, 2]], "two": [[0], [1]]}),
    "token lengths of nothing": (plots.token_lengths, {}),
    "choices": (
        lambda rows: plots.accuracy_of_choices(rows, REACHABLE),
        [row(n=n, seed=s, by=by) for n in (1, 8) for s in (0, 1) for by in CHOICES],
    ),
    "choices of nothing": (lambda rows: plots.accuracy_of_choices(rows, []), []),
    "paths": (plots.paths_by_samples, COUNTED),
    "paths of nothing": (plots.paths_by_samples, []),
    "learning": (lambda rows: plots.accuracy_against_paths(rows, COUNTED), LEARNED),
    "similarities": (plots.pair_similarities, {"farthest": [0.1, 0.2, 1.0], "nearest": [], "random": [0.5]}),
    "similarities of nothing": (plots.pair_similarities, {}),
    "preferences": (plots.preference_curves, {"a": PREFERRED, "b": PREFERRED[:1]}),
    "preferences of nothing": (plots.preference_curves, {"a": []}),
    "rounds": (lambda rows: plots.rounds_of_self_training(rows, 2), ROUNDS),
    "rounds of nothing": (lambda rows: plots.rounds_of_self_training(rows, 2), []),
    "pass@k": (plots.pass_at_k, {"sft-0": {1: 0.2, 2: 0.3}, "sft-1": {1: 0.4}}),
    "pass@k of nothing": (plots.pass_at_k, {}),
    "drafts": (plots.draft_fates, {"a": FATES, "b": FATES[:1], "c": []}),
    "drafts of nothing": (plots.draft_fates, {}),
    "gold and generated": (
        plots.gold_by_generated,
        [
            row(gold=g, generated=k, seed=s)
            for g in (250, 1000)
            for k in ("no", "round 1", "unverified")
            for s in (0, 1)
        ],
    ),
    "gold alone": (plots.gold_by_generated, [row(gold=40, generated="no")]),
    "learning of nothing": (lambda rows: plots.accuracy_against_paths(rows, []), []),
}


@pytest.mark.parametrize("name", PICTURES)
def test_any_data_makes_a_figure_that_saves_as_png(name, tmp_path):
    from matplotlib.figure import Figure

    function, data = PICTURES[name]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No artists with labels")
        figure = function(data)
        assert isinstance(figure, Figure) and figure.axes
        assert plots.save(figure, tmp_path / "figure.png") is figure
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG\r\n")


def test_each_draft_stands_in_the_bar_of_its_fate():
    (ax,) = plots.draft_fates({"a": FATES + FATES[:1], "b": FATES[:2]}).axes
    bars = {(patch.get_y(), ax.containers.index(own)): patch.get_width() for own in ax.containers for patch in own}
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    first, second = ({name: bars[y, 6 * n + i] for i, name in enumerate(names)} for n, y in enumerate((-0.4, 0.6)))
    assert first == {
        **{"kept": 2, "kept, repaired": 1, "below the threshold": 2, "duplicate": 2, "leaked": 2, "not parsed": 2}
    }
    assert second == {**dict.fromkeys(names, 0), "kept": 1, "kept, repaired": 1}


def test_a_line_is_the_mean_over_seeds_at_each_number_of_gold_problems():
    rows = [row(r, gold=g, generated=k, seed=s) for s, r in ((0, 2), (1, 4)) for g in (9, 3) for k in ("no", "round 1")]
    (ax,) = plots.gold_by_generated(rows).axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in ax.lines if line.get_label()[0] != "_"}
    assert lines == {
        f"generated: {k}": [[pytest.approx(n, rel=0.02), pytest.approx(0.3)] for n in (3, 9)] for k in ("no", "round 1")
    }


def test_bars_stand_at_their_accuracy_with_their_interval():
    figure = plots.accuracy_bars([row(3, 10), row(0, 10, method="answer_only")])
    (ax,) = figure.axes
    assert [bar.get_width() for bar in ax.patches] == [0.3, 0.0]
    assert ax.yaxis_inverted(), "the first row stands on top"
    ends = [segment[:, 0].tolist() for lines in ax.collections for segment in lines.get_segments()]
    assert ends[0] == pytest.approx(evaluation.wilson(3, 10)) and ends[1] == pytest.approx(evaluation.wilson(0, 10))
    assert ax.patches[0].get_facecolor() != ax.patches[1].get_facecolor()


def test_bars_are_named_by_method_and_what_parts_it_from_others_and_by_seed_where_there_are_several():
    def names(rows):
        (ax,) = plots.accuracy_bars(rows).axes
        return [text.get_text() for text in ax.get_yticklabels()]

    assert names([row(k=1), row(k=8), row(method="dot")]) == ["cot k 1", "cot k 8", "dot"]
    assert names([row(k=1), row(k=1, seed=1)]) == ["cot, seed 0", "cot, seed 1"]


def test_each_method_has_its_colour_in_every_picture_and_neighbours_differ():
    from itertools import pairwise

    shades = [plots.colour(method) for method in plots.METHODS]
    assert set(shades) <= set(plots.COLOURS) and all(a != b for a, b in pairwise(shades))
    assert plots.colour("unheard of") in plots.COLOURS
    bars = plots.accuracy_bars([row(method="rft"), row(method="cot")]).axes[0].patches
    assert [plots.colour("rft"), plots.colour("cot")] == [to_hex(bar.get_facecolor()).upper() for bar in bars]


def test_choices_are_drawn_by_how_they_were_made_beside_what_choosing_can_reach():
    rows = [row(c, method="verifier", n=n, by="verifier") for n, c in ((8, 7), (1, 2), (4, 6))]
    rows += [row(3, method="self_consistency", n=1, by="vote"), row(9, method="verifier", n=8, by="weighted_vote")]
    (ax,) = plots.accuracy_of_choices(rows, REACHABLE).axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in ax.lines}
    assert lines == {
        "verifier": [[1, 0.2], [4, 0.6], [8, 0.7]],
        "vote": [[1, 0.3]],
        "weighted_vote": [[8, 0.9]],
        "any sample right": [[1, 0.1], [8, 0.8]],
    }
    assert len({line.get_color() for line in ax.lines}) == 4


def test_paths_are_drawn_by_k_beside_shares_of_fates_that_sum_to_one():
    grown, fates, *_ = plots.paths_by_samples(COUNTED).axes
    assert [line.get_xydata().tolist() for line in grown.lines] == [[[1, 0.5], [2, 1], [8, 4]]] * 2
    heights = {}
    for bar in fates.patches:
        heights[round(bar.get_x() + bar.get_width() / 2)] = heights.get(bar.get_x(), 0) + bar.get_y() + bar.get_height()
    assert list(heights) == [1, 2, 8] and list(heights.values()) == pytest.approx([1, 1, 1])


def test_learning_is_drawn_from_sft_at_no_path_on_with_and_without_the_calculator():
    _, ax = plots.accuracy_against_paths(LEARNED, COUNTED).axes
    lines = {line.get_label(): line.lines[0].get_xydata().tolist() for line in ax.containers}
    assert lines == {
        "without calculator": [[0, 0.4], [0.5, 0.6], [4, 0.9]],
        "with calculator": [[0, 0.5], [4, 0.8]],
    }


def test_each_task_has_a_panel():
    assert [ax.get_title() for ax in plots.accuracy_bars([row(task="t"), row(task="u")]).axes] == ["u", "t"]
    figure = plots.problem_shapes(SHAPES)
    assert len(figure.axes) == 6
    assert sum(bar.get_height() for bar in figure.axes[0].patches) == 20


def test_digit_shares_of_a_split_sum_to_one_and_stand_apart():
    figure = plots.last_digits({name: SHAPES["modular_chain"] for name in ("train", "valid", "test")})
    bars = figure.axes[0].patches
    assert sum(bar.get_height() for bar in bars[:10]) == pytest.approx(1)
    assert len({bar.get_facecolor() for bar in bars}) == 3
    places = [round(bar.get_x(), 3) for bar in bars]
    assert len(set(places)) == 30


def test_curves_draw_training_as_a_line_and_validation_as_dots():
    figure = plots.loss_curves({"a": [POINT, {**POINT, "step": 2, "loss": 1.0}, LOOK]})
    loss, accuracy = figure.axes
    line, dots = loss.lines
    assert line.get_xydata().tolist() == [[1, 2], [2, 1]] and line.get_linestyle() == "-"
    assert dots.get_xydata().tolist() == [[1, 2]] and dots.get_linestyle() == "None"
    assert [len(ax.lines) for ax in figure.axes] == [2, 2] and accuracy.get_ylim()[1] > 1


def test_the_frontier_is_drawn_through_unbeaten_rows_only():
    rows = [row(2, tokens=1.0), row(8, tokens=10.0, method="dot"), row(5, tokens=20.0, method="answer_only")]
    (ax,) = plots.accuracy_against_cost(rows).axes
    assert ax.lines[0].get_xydata().tolist() == [[1, 0.2], [10, 0.8]]
    assert len(ax.texts) == 3


def test_preferences_are_drawn_as_lines_and_the_watched_as_dots_with_the_first_loss_marked():
    loss, rewards, logps = plots.preference_curves({"a": PREFERRED}, 0.6931).axes
    line, dots, first = loss.lines
    assert list(line.get_ydata()) == [0.69, 0.5] and list(dots.get_ydata()) == [0.6]
    assert first.get_ydata()[0] == pytest.approx(0.6931, abs=1e-4)
    chosen, watched, rejected = rewards.lines
    assert list(chosen.get_ydata()) == [0.0, 0.1] and list(watched.get_ydata()) == [0.1]
    assert list(rejected.get_ydata()) == [0.0, -0.1] and chosen.get_color() != rejected.get_color()
    assert list(logps.lines[0].get_ydata()) == [-9.0, -8.0]
    assert [text.get_text() for text in logps.get_legend().get_texts()] == ["chosen", "rejected"]


def test_rounds_are_drawn_in_order_with_samplers_between_them_one_panel_a_task_and_seed():
    panels = plots.rounds_of_self_training(ROUNDS, 2).axes
    assert [ax.get_title() for ax in panels] == ["t, seed 0", "t, seed 1", "u, seed 0", "u, seed 1"] + [""] * 2
    greedy, passed = panels[0].lines[:2]
    assert list(greedy.get_xdata()) == [0, 0.5, 1] and list(greedy.get_ydata()) == [0.5] * 3
    assert list(passed.get_ydata()) == [0.7] * 3
    assert [text.get_text() for text in panels[0].texts[:3]] == ["sft-0", "dpo-1", "sft-1"]


def test_a_pair_shows_both_solutions_with_their_steps_marked():
    problem = make_problem("How many? <b>", ["<<3+4=7>>7"], "7", "t")
    shown = viewers.pair(problem, "<<3+4=7>>7\n#### 7", "<<3+4=8>>8\n#### 8", "similarity 0.75")
    assert shown.count("How many? &lt;b&gt;") == 1 and "similarity 0.75" in shown
    assert shown.index("chosen") < shown.index("rejected")
    assert shown.count(viewers.GOOD) == 2 and shown.count(viewers.BAD) == 2
