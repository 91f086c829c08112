"""Watch a chain of thought appear out of noise: position by step, the surer the model the bluer.

static(items)                                            # Html: also for a page, or a file; needs no kernel
live(film, "v1 + n2 * n3 ?", ["ddim", "ancestral"], 8)    # in Jupyter, with a kernel

An item, as JSON values: {"question", "answer", "runs": [run, ...]}; a run: {"sampler", "steps", "frames", "text",
"right"}, where right is None if nobody knows; a frame, from noise to text: {"t", "tokens", "confidence"}, a token and
its probability for each position. A token of FILLERS is an empty place.
"""

import json
from collections.abc import Callable
from html import escape

from lib import answers
from lib.errors import InputError
from lib.problems import Problem
from lib.viewers import BAD, GOOD, PLAIN, Html

UNSURE, SURE = (238, 240, 242), (76, 156, 201)  # pale grey, and a light shade of lib.plots.COLOURS' blue
TONES = ("#666666", "#111111"), ("#9aa0a6", "#eaf3f9")  # text, unsure and sure: of tokens, and of empty places
FILLERS = ("", "<pad>")
LEGEND = "one row a step, from noise to text; grey: unsure, blue: sure; a dot is an empty place"


# ----- without a kernel
STYLE = """.film{border:1px solid #ccd;border-radius:6px;padding:10px;max-width:60em}
.film pre{white-space:pre-wrap;margin:4px 0;padding:4px 8px;background:PLAIN}
.film .right{background:GOOD}.film .wrong{background:BAD}.film select{max-width:80%}
.film .large{font-family:monospace;font-size:1.2em;line-height:1.9;white-space:pre-wrap;margin:6px 0}
.film .large span{padding:1px 3px;margin:1px;border-radius:3px}.film .large,.film .grid{overflow-x:auto}
.film table{border-collapse:collapse;font:11px monospace;margin:6px 0}.film tr.now{outline:2px solid #222}
.film td{padding:1px 4px;text-align:center;white-space:pre;border:1px solid #fff}
.film th{padding:1px 6px;text-align:right;white-space:pre;font-weight:normal}.film tr{cursor:pointer}"""

PAGE = """<div class="film"><style>STYLE</style>
<label>problem <select></select></label><br><label>run <select></select></label>
<label>step <input type="range" min="0" value="0" style="vertical-align:middle"></label>
<button type="button">play</button> <b></b>
<p></p><div class="large"></div><div class="grid"><table></table></div><small></small><pre></pre><script>(() => {
const items = ITEMS, fillers = FILLERS, unsure = UNSURE, sure = SURE, tones = TONES;
const root = document.currentScript.closest('.film'), find = tag => root.querySelector(tag);
const [problems, runs] = root.querySelectorAll('select'), slider = find('input'), button = find('button');
const table = find('table'), written = find('pre');
let run = null, timer = null;
const element = (tag, text) => { const e = document.createElement(tag); e.textContent = text; return e; };
const visible = text => fillers.includes(text) ? '·' : text.replaceAll('\\n', '⏎');
const share = (frame, i) => Math.max(0, Math.min(1, frame.confidence[i] || 0));
const coloured = (tag, frame, i, text) => {
  const e = element(tag, text), p = share(frame, i), empty = fillers.includes(frame.tokens[i]);
  e.style.background = 'rgb(' + unsure.map((u, j) => Math.round(u + p * (sure[j] - u))).join(',') + ')';
  e.style.color = tones[+empty][+(p >= 0.5)];
  e.title = (empty ? 'empty' : visible(frame.tokens[i])) + ' ' + p.toFixed(2);
  return e;
};
const stop = () => { clearInterval(timer); timer = null; button.textContent = 'play'; };
const show = () => {  // the chosen step, in large and outlined
  const at = +slider.value, frame = run && run.frames[at], large = [];
  if (frame) for (const [i, token] of frame.tokens.entries()) {
    large.push(coloured('span', frame, i, visible(token)));
    if (token.endsWith('\\n')) large.push(document.createElement('br'));
  }
  find('.large').replaceChildren(...large);
  for (const [i, row] of [...table.children].entries()) row.className = i === at ? 'now' : '';
  find('b').textContent = frame ? 'after ' + (at + 1) + ' of ' + run.frames.length : '';
};
const roll = () => {  // another run: its whole film, and what it wrote
  const item = items[problems.value]; stop();
  run = item && item.runs[runs.value] || null;
  const frames = run ? run.frames : [];
  slider.max = Math.max(0, frames.length - 1); slider.value = slider.max;
  table.replaceChildren(...frames.map((frame, at) => {
    const row = document.createElement('tr'); row.append(element('th', (at + 1) + '  t ' + frame.t.toFixed(2)));
    for (const [i, token] of frame.tokens.entries())
      row.append(coloured('td', frame, i, visible(token).trim() || '␣'));
    row.onclick = () => { stop(); slider.value = at; show(); }; return row; }));
  find('small').textContent = 'LEGEND' + (item && item.answer ? '. What it wrote; the answer is ' + item.answer : '');
  written.textContent = run ? run.text : '';
  written.className = !run || run.right === null ? '' : run.right ? 'right' : 'wrong';
  show();
};
const choose = () => {  // another problem: the same kind of run where it has one
  const item = items[problems.value], kept = +runs.value || 0, all = item ? item.runs : [];
  runs.replaceChildren();
  for (const [i, own] of all.entries())
    runs.add(new Option(own.sampler + ', ' + own.steps + (own.steps === 1 ? ' step' : ' steps'), i));
  runs.value = Math.max(0, Math.min(kept, all.length - 1)); runs.disabled = all.length < 2;
  find('p').textContent = item ? item.question : 'There is no film here.';
  roll();
};
for (const [i, item] of items.entries()) problems.add(new Option(item.question.slice(0, 80), i));
button.onclick = () => {
  if (timer) return stop();
  if (+slider.value >= +slider.max) slider.value = 0;
  show(); button.textContent = 'pause';
  timer = setInterval(() => {
    if (!root.isConnected || +slider.value >= +slider.max) return stop();
    slider.value = +slider.value + 1; show(); }, 350);
};
problems.onchange = choose; runs.onchange = roll; slider.oninput = () => { stop(); show(); }; choose();
})();</script></div>"""


def static(items: list[dict]) -> Html:
    """Choose a problem and a run, and move through its steps or let it play: the chosen step in large, each token on
    the colour of its probability; below, the whole film, and what it wrote. Self-contained; several fit on one page.
    """
    values = {"UNSURE": UNSURE, "SURE": SURE, "TONES": TONES, "FILLERS": FILLERS, "ITEMS": items}  # items last
    page = PAGE.replace("STYLE", STYLE).replace("PLAIN", PLAIN).replace("GOOD", GOOD).replace("BAD", BAD)
    page = page.replace("LEGEND", LEGEND)
    for name, value in values.items():
        page = page.replace(name, json.dumps(value).replace("<", "\\u003c"))
    return Html(page)


# ----- as HTML alone
def sendable(html: str) -> Html:
    """Html that can be encoded: half a character, as a cut token may hold, becomes a question mark."""
    return Html(html.encode("utf-8", "replace").decode())


def visible(token: str) -> str:
    """A token as a cell shows it: an empty place as a dot, line breaks and what has no shape as a sign."""
    if token in FILLERS:
        return "·"
    return token.replace("\n", "⏎").replace("\x00", "␀")


def ground(share: float) -> str:
    """The colour behind a token of that probability, from grey to blue."""
    share = max(0.0, min(1.0, share)) if share == share else 0.0
    return "rgb(" + ",".join(f"{int(u + share * (s - u) + 0.5)}" for u, s in zip(UNSURE, SURE, strict=True)) + ")"


def tone(token: str, share: float) -> str:
    """The colour of a token's text on that ground."""
    return TONES[token in FILLERS][share >= 0.5]


def cell(tag: str, token: str, share: float, style: str) -> str:
    """A token on its ground; at the end of a line in large, the line ends."""
    text = visible(token) if tag == "span" else visible(token).strip() or "␣"
    tip = escape("empty" if token in FILLERS else visible(token), quote=True)
    breaks = "<br>" if tag == "span" and token.endswith("\n") else ""
    style = f"{style};background:{ground(share)};color:{tone(token, share)}"
    return f'<{tag} style="{style}" title="{tip} {share:.2f}">{escape(text)}</{tag}>{breaks}'


def drawn(item: dict, at: int = -1, note: str = "") -> Html:
    """The first run of an item as HTML without a script: frame `at` in large, the whole film, what it wrote."""
    run = item["runs"][0] if item["runs"] else {"frames": [], "text": "", "right": None}
    frames, rows, large = run["frames"], "", ""
    at = at % len(frames) if frames else 0
    small = "padding:1px 4px;text-align:center;white-space:pre;border:1px solid #fff"
    for number, frame in enumerate(frames):
        tokens = list(zip(frame["tokens"], frame["confidence"], strict=True))
        head = f'<th style="text-align:right;font-weight:normal;white-space:pre">{number + 1}  t {frame["t"]:.2f}</th>'
        outline = ' style="outline:2px solid #222"' if number == at else ""
        rows += f"<tr{outline}>{head}{''.join(cell('td', *pair, small) for pair in tokens)}</tr>"
        if number == at:
            big = "padding:1px 3px;margin:1px;border-radius:3px"
            large = "".join(cell("span", *pair, big) for pair in tokens)
    right = run["right"]
    shade = PLAIN if right is None else GOOD if right else BAD
    said = f". What it wrote; the answer is {item['answer']}" if item["answer"] else f". What it wrote{note}"
    font = "font-family:monospace;font-size:1.2em;line-height:1.9;white-space:pre-wrap"
    return sendable(
        f'<div style="{font}">{large}</div><div style="overflow-x:auto"><table style="border-collapse:collapse;'
        f'font:11px monospace;margin:6px 0">{rows}</table></div><small>{escape(LEGEND + said)}</small>'
        f'<pre style="white-space:pre-wrap;padding:4px 8px;background:{shade}">{escape(run["text"])}</pre>'
    )


# ----- with a kernel
def live(
    film: Callable[[str, str, int], dict],
    question: str,
    samplers: list[str],
    steps: int,
    solve: Callable[[str], Problem | None] | None = None,
):
    """An ipywidgets box: a text field for any question, a sampler, a number of steps; then move through the film.

    What cannot be asked is said in the box, in a sentence, and nothing is raised.
    film   (question, sampler, steps) -> an item with one run
    solve  from a question to the solved problem (as modular_chain.solve), to judge the answer; None for a question that
           is none of the task. Without it the answer is judged as the film says
    """
    import ipywidgets as widgets

    wide = {"layout": {"width": "95%"}, "style": {"description_width": "5em"}}
    field = widgets.Text(value=question, description="question", continuous_update=False, **wide)
    sampler = widgets.Dropdown(options=list(samplers), description="sampler")
    count = widgets.IntSlider(steps, 1, 64, description="steps", continuous_update=False)
    play = widgets.Play(value=0, min=0, max=0, interval=350)
    frame = widgets.IntSlider(0, 0, 0, description="frame")
    shown, found = widgets.HTML(), {}
    widgets.link((play, "value"), (frame, "value"))

    def show(_=None) -> None:
        item, note = found["item"], found["note"]
        shown.value = note if item is None else guarded(lambda: drawn(item, frame.value, note))

    def ask(_=None) -> None:
        play.playing = False
        item, found["note"] = answered(film, field.value, sampler.value, count.value, solve)
        found["item"] = item
        frames = item["runs"][0]["frames"] if item else []
        play.max = frame.max = max(0, len(frames) - 1)
        frame.value = frame.max
        show()

    for control in (field, sampler, count):
        control.observe(ask, names="value")
    ask()
    frame.observe(show, names="value")
    return widgets.VBox([field, widgets.HBox([sampler, count]), widgets.HBox([play, frame]), shown])


def guarded(make: Callable) -> object:
    """What `make()` returns, or Html with a sentence that says what is wrong."""
    try:
        return make()
    except InputError as error:
        return sendable(f"<p><b>{escape(str(error))}</b></p>")
    except Exception as error:  # whatever a text does to a model, the box stays
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        return sendable(f"<p><b>This cannot be asked ({escape(reason)}); try another question.</b></p>")


def answered(film: Callable, question: str, sampler: str, steps: int, solve=None) -> tuple[dict | None, str]:
    """(the film of a question, a note to go with it), or (None, the sentence that says what is wrong)."""

    def make() -> tuple[dict, str]:
        asked = question.strip()
        if not asked:
            raise InputError("There is no question; write one, and press Enter.")
        problem = solve(asked) if solve else None
        item = film(asked, sampler, steps)
        (run,) = item["runs"]
        if not run["frames"]:
            raise InputError("There is nothing to show: the film has no frame.")
        if not solve:
            return item, ""
        right = answers.is_correct(problem, run["text"]) if problem else None
        judged = {**item, "answer": problem.answer if problem else "", "runs": [{**run, "right": right}]}
        return judged, "" if problem else " (no question of this task)"

    made = guarded(make)
    return (None, made) if isinstance(made, Html) else made
