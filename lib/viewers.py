"""What a reader looks at, as self-contained HTML: no kernel, no network, no other file.

Each function takes plain data (texts, lists, dicts, never a model) and returns an `Html`, which Jupyter shows.
"""

import base64
import io
import json
from dataclasses import replace
from html import escape
from pathlib import Path

from lib import answers
from lib.problems import Problem


class Html(str):
    """A string of HTML that Jupyter renders."""

    def _repr_html_(self) -> str:
        return str(self)


GOOD, BAD, PLAIN = "#d5f0e3", "#fbd9cf", "#eef2f7"


def badge(text: str, shade: str, tip: str = "") -> str:
    """A word on a coloured ground, with a tooltip."""
    style = f"background:{shade};border-radius:3px;padding:0 3px"
    return f'<span style="{style}" title="{escape(tip, quote=True)}">{escape(text)}</span>'


def solution(problem: Problem, text: str | None = None) -> Html:
    """A problem with a solution (its own by default): steps that hold on green, broken ones on red with the reason."""
    from lib import prompts

    text = prompts.solution(problem) if text is None else text
    body, marker, rest = text.rpartition(answers.MARKER) if answers.MARKER in text else (text, "", "")
    checked = iter(answers.check_steps(problem, text))

    def mark(step: answers.Step, text: str) -> str:
        return badge(text, GOOD if step.ok else BAD, step.reason or "holds")

    if problem.meta.get("exact_steps") or problem.meta.get("proof"):  # each line is a step
        shown = "".join(f"{mark(step, step.text)}\n" for step in checked)
    else:  # each annotation is one
        shown, at = "", 0
        for found in answers.ANNOTATION.finditer(body):
            shown += escape(body[at : found.start()]) + mark(next(checked), found[0])
            at = found.end()
        shown += escape(body[at:])
    if marker:
        right = answers.is_correct(problem, text)
        shown += badge((marker + rest).strip(), GOOD if right else BAD, f"the answer is {problem.answer}")
    return Html(
        f'<div style="border-left:3px solid #ccc;padding-left:10px;margin:8px 0"><b>{escape(problem.question)}</b>'
        f'<div style="white-space:pre-wrap;font-family:monospace;margin-top:4px">{shown}</div></div>'
    )


def pair(problem: Problem, chosen: str, rejected: str, note: str = "") -> Html:
    """A preference pair: the question, and below it the solution to prefer beside the other, steps marked."""
    cells = ""
    for heading, text in (("chosen", chosen), ("rejected", rejected)):
        shown = solution(replace(problem, question=heading), text)
        cells += f'<td style="vertical-align:top;text-align:left;width:50%">{shown}</td>'
    head = f'<p style="margin:8px 0 0"><b>{escape(problem.question)}</b> <small>{escape(note)}</small></p>'
    return Html(f'{head}<table style="width:100%"><tr>{cells}</tr></table>')


def transcript(prompt: str, text: str, right: bool) -> Html:
    """What a model was given (grey) and what it wrote after it (green where right, red where wrong), as they are."""
    style = "white-space:pre-wrap;font-family:monospace;padding:6px 8px;border-radius:6px;margin:4px 0"
    shade = GOOD if right else BAD
    written = f'<span style="background:{shade}">{escape(text)}</span>'
    return Html(f'<div style="{style};background:{PLAIN}">{escape(prompt)}{written}</div>')


def token_probabilities(tokens: list[dict]) -> Html:
    """A completion with each token's ground from red (improbable) to green (sure); point at one for the top five.

    tokens  what generation.token_probabilities returns
    """
    spans = []
    for entry in tokens:
        hue = 8 + 130 * entry["probability"]  # red to green
        top = ", ".join(f"{token!r} {p:.1%}" for token, p in entry["top"])
        shown = escape(entry["token"].replace("\n", "⏎")) or " "
        style = f"background:hsl({hue:.0f},70%,82%);border-radius:3px;padding:1px 2px;margin:1px"
        tip = escape(f"{entry['probability']:.1%} - {top}", quote=True)
        breaks = "<br>" if entry["token"].endswith("\n") else ""
        spans.append(f'<span style="{style}" title="{tip}">{shown}</span>{breaks}')
    return Html(f'<div style="font-family:monospace;line-height:1.9">{"".join(spans)}</div>')


def table(rows: list[dict], columns: list[str] | None = None) -> Html:
    """Rows as a table; numbers to 3 decimals, None as a dash."""
    columns = columns or (list(rows[0]) if rows else [])

    def cell(value) -> str:
        if value is None:
            return "–"
        if isinstance(value, float):
            return f"{value:.3f}" if abs(value) < 100 else f"{value:,.0f}"
        return escape(json.dumps(value) if isinstance(value, (dict, list)) else str(value))

    head = "".join(f'<th style="text-align:left;padding:2px 10px">{escape(c.replace("_", " "))}</th>' for c in columns)
    body = "".join(
        "<tr>"
        + "".join(f'<td style="text-align:left;padding:2px 10px">{cell(row.get(c))}</td>' for c in columns)
        + "</tr>"
        for row in rows
    )
    return Html(f'<table style="border-collapse:collapse"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>')


def measured(path: str | Path) -> Html:
    """The figures of one file of notebooks/measured, with the command, commit, date and machine that gave them."""
    content = json.loads(Path(path).read_text())
    origin = " · ".join(str(content[key]) for key in ("command", "commit", "date", "machine"))
    return Html(f"{table(content['rows'])}<small>{escape(origin)}</small>")


BROWSER = """<div class="browser"><style>.browser{border:1px solid #ccd;border-radius:6px;padding:10px;max-width:60em}
.browser pre{white-space:pre-wrap;margin:2px 0 8px;padding:4px 8px;background:PLAIN}
.browser .right{background:GOOD}.browser .wrong{background:BAD}</style>
<label>show <select></select></label> <input type="range" min="0" value="0" style="width:20em;vertical-align:middle">
<span class="where"></span><div class="body"></div><script>(() => {
const items = ITEMS, root = document.currentScript.closest('.browser'), select = root.querySelector('select');
const range = root.querySelector('input'), body = root.querySelector('.body'), where = root.querySelector('.where');
const names = Object.keys(items.length ? items[0].outputs : {});
const views = [['all problems', () => true]];
for (const n of names) views.push([n + ' is wrong', i => !i.outputs[n].correct]);
for (const a of names) for (const b of names) if (a !== b)
  views.push([a + ' right, ' + b + ' wrong', i => i.outputs[a].correct && !i.outputs[b].correct]);
for (const [k, v] of views.entries()) select.add(new Option(v[0], k));
const element = (tag, text, kind) => { const e = document.createElement(tag);
  e.textContent = text; e.className = kind || ''; return e; };
const draw = () => {
  const chosen = items.filter(views[select.value][1]); range.max = Math.max(0, chosen.length - 1);
  const at = Math.min(range.value, range.max), item = chosen[at];
  where.textContent = chosen.length ? ' ' + (+at + 1) + ' of ' + chosen.length : ' none'; body.replaceChildren();
  if (!item) return;
  body.append(element('p', item.question), element('small', 'worked solution'), element('pre', item.solution));
  for (const n of names) body.append(element('small', n), element('pre', item.outputs[n].text,
    item.outputs[n].correct ? 'right' : 'wrong'));
};
select.onchange = () => { range.value = 0; draw(); }; range.oninput = draw; draw();
})();</script></div>"""


def error_browser(items: list[dict]) -> Html:
    """Leaf through problems and what each model wrote, filtered by who is wrong; works without a kernel.

    items  [{"question", "solution", "outputs": {name: {"text", "correct"}}}], each with the same names
    """
    data = json.dumps(items).replace("<", "\\u003c")
    page = BROWSER.replace("PLAIN", PLAIN).replace("GOOD", GOOD).replace("BAD", BAD)
    return Html(page.replace("ITEMS", data))


def picture(figure) -> str:
    """A matplotlib figure as an <img> that holds its own bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return f'<img style="max-width:100%" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def page(title: str, sections: list[tuple[str, str]]) -> Html:
    """A self-contained page: a title and (heading, HTML) sections with a list of links to them on top."""
    links = " · ".join(f'<a href="#s{i}">{escape(heading)}</a>' for i, (heading, _) in enumerate(sections))
    body = "".join(f'<h2 id="s{i}">{escape(heading)}</h2>{html}' for i, (heading, html) in enumerate(sections))
    style = (
        "body{font:16px/1.5 system-ui,sans-serif;max-width:62em;margin:2em auto;padding:0 1em;color:#222}"
        "h1{margin-bottom:.2em}h2{margin-top:1.8em;border-bottom:1px solid #dde}th{border-bottom:2px solid #889}"
        "td{border-bottom:1px solid #eee}a{color:#0072B2}@media(max-width:50em){table{display:block;overflow-x:auto}}"
    )
    return Html(
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{style}</style></head>'
        f"<body><h1>{escape(title)}</h1><p>{links}</p>{body}</body></html>"
    )
