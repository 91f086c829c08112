"""A denoising film shows every frame as it is: on a page without a kernel, as HTML alone, and in a box with one."""

import json
import re
import shutil
import subprocess

import pytest

from lib import viewers
from lib.dot import film
from lib.errors import InputError
from lib.problems import make_problem
from tests.test_viewers import HOSTILE, Reader, loads_nothing

needs_node = pytest.mark.skipif(not shutil.which("node"), reason="there is no node to run the page's script")


def run_of(steps=3, sampler="ddim", text="r4\n#### 4", right=True, last=("r4", "\n", "#### 4", "<pad>")):
    frames = [{"t": 1.0, "tokens": ["=", "", "n7", "r4"], "confidence": [0.0, 0.25, 0.5, 0.125]}] * (steps - 1)
    frames = [*frames, {"t": 1 / steps, "tokens": list(last), "confidence": [1.0, 1.0, 0.75, 0.5]}]
    return {"sampler": sampler, "steps": steps, "frames": frames, "text": text, "right": right}


def item(question="1 + 1 ?", **run):
    return {"question": question, "answer": "4", "runs": [run_of(**run), run_of(1, "ancestral", "no", False)]}


def hostile(text):
    frame = {"t": 1.0, "tokens": [text, text], "confidence": [0.0, 1.0]}
    run = {"sampler": text, "steps": 2, "frames": [frame, frame], "text": text, "right": False}
    return {"question": text, "answer": text, "runs": [run]}


def sent(text):
    return text.encode("utf-8", "replace").decode()


def said(html):
    return Reader(f"<div>{html}</div>").text


# --- a page without a kernel ---


@pytest.mark.parametrize("text", [*HOSTILE, "STYLE LEGEND UNSURE SURE TONES FILLERS", "\ud800", ""])
def test_a_page_holds_any_token_unchanged_inside_its_one_script_and_loads_nothing(text):
    html = film.static([hostile(text)])
    loads_nothing(html)
    (script,) = Reader(html).scripts
    assert json.JSONDecoder().raw_decode(script.partition("const items = ")[2])[0] == [hostile(text)]
    assert html.lower().count("</script") == 1 and "<!--" not in html
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", html)
    for name in ("STYLE", "LEGEND", "UNSURE", "SURE", "TONES", "FILLERS", "ITEMS", "GOOD", "BAD", "PLAIN"):
        assert name in text or name not in html, f"{name} was not filled in"
    html.encode()


def test_a_film_is_html_that_jupyter_shows():
    for html in (film.static([item()]), film.static([]), film.drawn(item())):
        assert isinstance(html, viewers.Html) and html._repr_html_() == html


STUB = """
class Node { constructor(tag) { this.tag = tag; this.children = []; this.style = {}; this.textContent = ''; }
  append(...nodes) { this.children.push(...nodes); }
  replaceChildren(...nodes) { this.children = nodes; if (this.tag === 'select') this.value = ''; }
  add(option) { this.children.push(option); this.value = this.value || option.value; } }
global.Option = class { constructor(text, value) { this.text = text; this.value = value; } };
let tick = null;
global.setInterval = work => { tick = work; return 7; }; global.clearInterval = () => { tick = null; };
const names = ['input', 'button', 'table', 'p', 'pre', 'small', 'b', '.large'];
const one = Object.fromEntries(names.map(tag => [tag, new Node(tag)]));
const selects = [new Node('select'), new Node('select')];
const root = {isConnected: true, querySelector: tag => one[tag], querySelectorAll: () => selects};
global.document = {currentScript: {closest: () => root}, createElement: tag => new Node(tag)};
SCRIPT
const cells = row => row.children.map(c => [c.tag, c.textContent, c.style.background || '', c.title || '']);
const seen = () => console.log(JSON.stringify({question: one.p.textContent, text: one.pre.textContent,
  kind: one.pre.className, note: one.small.textContent, where: one.b.textContent, button: one.button.textContent,
  runs: selects[1].children.map(o => o.text), alone: selects[1].disabled, large: cells(one['.large']),
  rows: one.table.children.map(cells), now: one.table.children.map(row => row.className)}));
"""


def played(tmp_path, items, *moves):
    """What the page shows at first and after each move, a line of JavaScript."""
    (script,) = Reader(film.static(items)).scripts
    lines = "\n".join(["seen();", *(f"{move} seen();" for move in moves)])
    (tmp_path / "page.js").write_text(STUB.replace("SCRIPT", script) + lines)
    done = subprocess.run(["node", tmp_path / "page.js"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@needs_node
def test_the_page_starts_with_the_finished_text_and_its_whole_film(tmp_path):
    (first,) = played(tmp_path, [item()])
    assert first["question"] == "1 + 1 ?" and first["runs"] == ["ddim, 3 steps", "ancestral, 1 step"]
    assert [row[0][1] for row in first["rows"]] == ["1  t 1.00", "2  t 1.00", "3  t 0.33"]
    assert [cell[1] for cell in first["rows"][0][1:]] == ["=", "·", "n7", "r4"]
    assert [cell[1] for cell in first["rows"][2][1:]] == ["r4", "⏎", "#### 4", "·"]
    assert first["now"] == ["", "", "now"] and first["where"] == "after 3 of 3"
    assert [cell[:2] for cell in first["large"]] == [
        ["span", "r4"],
        ["span", "⏎"],
        ["br", ""],
        ["span", "#### 4"],
        ["span", "·"],
    ]
    assert first["text"] == "r4\n#### 4" and first["kind"] == "right" and first["note"].endswith("the answer is 4")


@needs_node
def test_the_pages_colours_and_tooltips_are_those_of_the_html_alone(tmp_path):
    (first,) = played(tmp_path, [item()])
    shares = [share for frame in item()["runs"][0]["frames"] for share in frame["confidence"]]
    cells = [cell for row in first["rows"] for cell in row[1:]]
    assert [cell[2] for cell in cells] == [film.ground(share) for share in shares]
    assert [cell[3] for cell in cells[:3]] == ["= 0.00", "empty 0.25", "n7 0.50"]


@needs_node
def test_the_slider_the_rows_and_the_choices_move_through_the_films(tmp_path):
    slid, row, other, problem = played(
        tmp_path,
        [item(), {**item("<b>other</b>", text="<i>", right=None), "answer": ""}],
        "one.input.value = '0'; one.input.oninput();",
        "one.table.children[1].onclick();",
        "selects[1].value = '1'; selects[1].onchange();",
        "selects[0].value = '1'; selects[0].onchange();",
    )[1:]
    assert slid["now"] == ["now", "", ""] and [c[1] for c in slid["large"]] == ["=", "·", "n7", "r4"]
    assert row["now"] == ["", "now", ""] and row["where"] == "after 2 of 3"
    assert other["kind"] == "wrong" and other["text"] == "no" and len(other["rows"]) == 1
    assert problem["question"] == "<b>other</b>" and len(problem["rows"]) == 1, "the kind of run is kept"
    assert "answer" not in problem["note"]


@needs_node
def test_play_goes_from_noise_to_text_and_stops(tmp_path):
    seen = played(tmp_path, [item()], "one.button.onclick();", "tick();", "tick();", "tick();")
    assert [s["now"].index("now") for s in seen] == [2, 0, 1, 2, 2]
    assert [s["button"] for s in seen] == ["play", "pause", "pause", "pause", "play"]
    paused = played(tmp_path, [item()], "one.button.onclick();", "one.button.onclick();")[-1]
    assert paused["button"] == "play" and paused["now"].index("now") == 0
    (_, gone) = played(tmp_path, [item()], "one.button.onclick(); root.isConnected = false; tick();")
    assert gone["button"] == "play" and gone["now"].index("now") == 0, "a page that is gone plays no further"


@needs_node
def test_pages_of_nothing_of_one_frame_and_of_unjudged_text_are_pages_too(tmp_path):
    (empty,) = played(tmp_path, [])
    assert empty["rows"] == [] and empty["question"] == "There is no film here."
    (without,) = played(tmp_path, [{**item(), "runs": []}])
    assert without["rows"] == [] and without["text"] == "" and without["alone"]
    (alone,) = played(tmp_path, [{**item(), "runs": [run_of(1, right=None)]}])
    assert alone["now"] == ["now"] and alone["alone"] and alone["kind"] == "" and len(alone["rows"]) == 1
    (frameless,) = played(tmp_path, [{**item(), "runs": [{**run_of(), "frames": []}]}], "one.button.onclick();")[1:]
    assert frameless["rows"] == [] and frameless["text"] == "r4\n#### 4"


# --- as HTML alone ---


def test_the_surer_the_bluer_from_pale_grey():
    rgb = [tuple(map(int, re.findall(r"\d+", film.ground(share)))) for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert rgb[0] == film.UNSURE and rgb[-1] == film.SURE
    assert all(a[0] > b[0] for a, b in zip(rgb, rgb[1:], strict=False))
    assert film.ground(float("nan")) == film.ground(-3.0) == film.ground(0.0) and film.ground(9.0) == film.ground(1.0)


def test_a_drawn_film_is_a_row_a_step_and_a_cell_a_position():
    html = film.drawn(item())
    assert Reader(f"<div>{html}</div>").tags.count("tr") == 3 and html.count("<td") == 12
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", html)
    assert cells == ["=", "·", "n7", "r4"] * 2 + ["r4", "⏎", "#### 4", "·"]
    grounds = re.findall(r"<td[^>]*background:(rgb\([^)]*\))", html)
    assert grounds[:4] == [film.ground(share) for share in (0.0, 0.25, 0.5, 0.125)]
    assert html.count("outline") == 1 and html.index("outline") > html.index("2  t 1.00")
    assert said(html).startswith("r4⏎#### 4·") and "</span><br><span" in html
    assert "the answer is 4" in said(html) and viewers.GOOD in html


def test_any_frame_of_it_can_stand_in_large():
    html = film.drawn(item(), 0)
    assert said(html).startswith("=·n7r4") and html.index("outline") < html.index("2  t 1.00")
    assert "<br>" not in html and film.drawn(item(), 2) == film.drawn(item())


def test_what_it_wrote_is_coloured_as_it_was_judged():
    for right, shade in ((True, viewers.GOOD), (False, viewers.BAD), (None, viewers.PLAIN)):
        html = film.drawn(item(right=right))
        assert [s for s in (viewers.GOOD, viewers.BAD, viewers.PLAIN) if s in html] == [shade]


def test_films_of_one_frame_or_none_are_drawn():
    assert film.drawn({**item(), "runs": [run_of(1)]}).count("<tr") == 1
    for runs in ([], [{**run_of(), "frames": [], "text": ""}]):
        assert film.drawn({**item(), "runs": runs}).count("<tr") == 0


@pytest.mark.parametrize("text", [*HOSTILE, "\ud800", " ", "<pad>", ""])
def test_any_token_is_drawn_as_text(text):
    html = film.drawn(hostile(text))
    assert set(Reader(f"<div>{html}</div>").tags) <= {"div", "span", "br", "table", "tr", "th", "td", "small", "pre"}
    loads_nothing(f"<div>{html}</div>")
    assert sent(film.visible(text).strip()) in said(html)
    html.encode()


# --- with a kernel ---


def parts_of(box):
    field, asked, moved, shown = box.children
    return (field, *asked.children, *moved.children, shown)


def counted():
    """A film-maker, and the list of what it was asked."""
    calls = []

    def make(question, sampler, steps):
        calls.append((question, sampler, steps))
        return {"question": question, "answer": "", "runs": [run_of(steps, sampler, f"{question}\n#### 4", None)]}

    return make, calls


def test_the_box_asks_again_at_each_change_and_not_when_it_is_moved():
    make, calls = counted()
    field, sampler, steps, play, frame, shown = parts_of(film.live(make, "a ?", ["ddim", "ancestral"], 4))
    assert calls == [("a ?", "ddim", 4)] and (steps.min, steps.max) == (1, 64)
    assert (frame.value, frame.max, play.max) == (3, 3, 3)
    assert shown.value == film.drawn(make("a ?", "ddim", 4), 3) and calls.pop()
    frame.value = 0
    assert shown.value == film.drawn(make("a ?", "ddim", 4), 0) and calls.pop() and len(calls) == 1
    assert play.value == 0
    play.value = 2
    assert frame.value == 2 and shown.value.index("outline") > shown.value.index("2  t 1.00")
    steps.value = 2
    sampler.value = "ancestral"
    field.value = "  b ? "
    assert calls[1:] == [("a ?", "ddim", 2), ("a ?", "ancestral", 2), ("b ?", "ancestral", 2)]
    assert (frame.value, frame.max, play.max) == (1, 1, 1) and "b ?" in said(shown.value)
    steps.value = 8
    assert (frame.value, frame.max, play.max) == (7, 7, 7) and shown.value.count("<tr") == 8


def test_the_answer_is_judged_where_the_task_knows_it():
    make, _ = counted()
    for answer, shade in (("4", viewers.GOOD), ("5", viewers.BAD)):
        problem = make_problem("a ?", ["x"], answer, "t")
        *_, shown = parts_of(film.live(make, "a ?", ["ddim"], 2, solve=lambda question, p=problem: p))
        assert shade in shown.value and f"the answer is {answer}" in said(shown.value)
    *_, shown = parts_of(film.live(make, "is 7 prime?", ["ddim"], 2, solve=lambda question: None))
    assert viewers.PLAIN in shown.value and "no question of this task" in said(shown.value)
    assert "the answer is" not in said(shown.value)
    *_, shown = parts_of(film.live(lambda *a: {**item(), "runs": [{**run_of(), "frames": []}]}, "?", ["ddim"], 2))
    assert said(shown.value) == "There is nothing to show: the film has no frame."
    judged = {**item(), "runs": [run_of(right=False)]}
    *_, shown = parts_of(film.live(lambda *asked: judged, "?", ["ddim"], 2))
    assert viewers.BAD in shown.value, "without a solver the film's own word counts"


def test_what_cannot_be_asked_is_one_sentence_in_the_box_and_it_goes_on_from_there():
    make, calls = counted()

    def careful(question, sampler, steps):
        if "<" in question:
            raise InputError(f"Not known: {question}.")
        return make(question, sampler, steps)

    field, _, _, _, frame, shown = parts_of(film.live(careful, "a ?", ["ddim"], 3))
    field.value = "   "
    assert said(shown.value) == "There is no question; write one, and press Enter." and len(calls) == 1
    assert frame.max == 0
    field.value = "<img src=x>"
    assert said(shown.value) == "Not known: <img src=x>." and "<img" not in shown.value
    field.value = "b ?"
    assert "b ?" in said(shown.value) and frame.max == 2


@pytest.mark.parametrize("broken", [{}, {"runs": []}, {**item(), "runs": [{"text": "x"}]}, None, item()])
def test_whatever_breaks_the_box_stays(broken):
    *_, shown = parts_of(film.live(lambda *asked: broken, "a ?", ["ddim"], 2))
    assert re.match(r"This cannot be asked \(\w+: .*\); try another question\.$", said(shown.value))

    def solve(question):
        raise RuntimeError("<b>a table\nis full</b>")

    *_, shown = parts_of(film.live(counted()[0], "a ?", ["ddim"], 2, solve=solve))
    assert said(shown.value) == "This cannot be asked (RuntimeError: <b>a table is full</b>); try another question."


def test_a_film_that_cannot_be_drawn_is_a_sentence_too():
    torn = run_of()
    torn = {**torn, "frames": [{**frame, "confidence": [0.5]} for frame in torn["frames"]]}
    *_, frame, shown = parts_of(film.live(lambda *asked: {**item(), "runs": [torn]}, "a ?", ["ddim"], 2))
    assert said(shown.value).startswith("This cannot be asked (ValueError")
    frame.value = 0
    assert said(shown.value).startswith("This cannot be asked (ValueError")


@pytest.mark.parametrize("text", [*HOSTILE, "\ud800"])
def test_the_box_shows_any_text_as_text(text):
    *_, shown = parts_of(film.live(lambda *asked: hostile(text), "a ?", ["ddim"], 2))
    assert "<script" not in shown.value and "<img" not in shown.value
    assert sent(film.visible(text).strip()) in said(shown.value)
    *_, refused = parts_of(film.live(lambda *asked: {}[text], "a ?", ["ddim"], 2))
    assert said(refused.value).startswith("This cannot be asked (KeyError") and refused.value.encode()
