"""Look at thoughts yourself: a page of chosen problems that needs no kernel, and a box that asks the model anything.

items = look(thinker, tokenizer, problems, ks=[0, 1, 2, 3, 4])      # plain data, computed once
static(items)                                                       # Html: also for a page, or a file
live(thinker, tokenizer, "v1 + n2 * n3 ?", k=2)                      # in Jupyter, with a kernel
"""

import json
from collections.abc import Callable
from html import escape

from lib.coconut import inspect
from lib.coconut.config import Config
from lib.errors import InputError
from lib.problems import Problem, make_problem
from lib.viewers import BAD, GOOD, PLAIN, Html

BLUE = "0,114,178"  # of lib.plots.COLOURS


def look(
    thinker,
    tokenizer,
    problems: list[Problem],
    ks: list[int],
    top: int = 5,
    new: int = 64,
    trained: Config | None = None,
) -> list[dict]:
    """What `static` shows, as JSON values: [{"question", "steps", "answer", "runs": [one for each of ks]}].

    A run is {"thoughts": k, "columns": the `top` tokens of each thought and of the first token written, as
    [text, probability], "text": what the model then writes (`new` tokens at most), "right": is that the answer?}.
    trained  as in lib.coconut.inspect
    """
    from lib import answers

    runs: list[list[dict]] = [[] for _ in problems]
    for k in ks:
        thoughts = inspect.thoughts_of(thinker, tokenizer, problems, k)
        texts = inspect.answers_with(thinker, tokenizer, problems, thoughts, [], new)
        read = inspect.readable(texts, trained)
        for own, problem, text, stated in zip(runs, problems, texts, read, strict=True):
            columns = [list(map(list, c)) for c in inspect.decode(thinker, tokenizer, problem, k, top)]
            right = answers.is_correct(problem, stated)
            own.append({"thoughts": k, "columns": columns, "text": text, "right": right})
    return [
        {"question": p.question, "steps": list(p.steps), "answer": p.answer, "runs": own}
        for p, own in zip(problems, runs, strict=True)
    ]


# ----- without a kernel
STYLE = """.thoughts{border:1px solid #ccd;border-radius:6px;padding:10px;max-width:60em}
.thoughts pre{white-space:pre-wrap;margin:4px 0;padding:4px 8px;background:PLAIN}
.thoughts .right{background:GOOD}.thoughts .wrong{background:BAD}.thoughts select{max-width:100%}
.thoughts table{border-collapse:collapse;font-family:monospace;margin:6px 0}.thoughts div{overflow-x:auto}
.thoughts td,.thoughts th{padding:2px 10px;text-align:left;border-left:1px solid #eee;white-space:pre}"""

PAGE = """<div class="thoughts"><style>STYLE</style>
<label>problem <select></select></label><br>
<label>thoughts <input type="range" min="0" value="0" style="vertical-align:middle"></label> <b></b>
<label>tokens <input type="range" min="1" value="1" style="vertical-align:middle"></label> <b></b>
<p></p><div><table></table></div><small></small><pre></pre><script>(() => {
const items = ITEMS, root = document.currentScript.closest('.thoughts'), find = tag => root.querySelector(tag);
const [thoughts, top] = root.querySelectorAll('input'), [count, tokens] = root.querySelectorAll('b');
const select = find('select'), written = find('pre');
const element = (tag, text) => { const e = document.createElement(tag); e.textContent = text; return e; };
const visible = text => text.replaceAll('\\n', '⏎');
const line = (tag, cells) => { const row = document.createElement('tr');
  for (const c of cells) { const e = element(tag, c.text); if (c.share !== undefined)
    e.style.background = 'rgba(BLUE,' + (0.7 * c.share).toFixed(3) + ')'; row.append(e); } return row; };
const draw = () => {
  const item = items[select.value]; if (!item) return;
  thoughts.max = item.runs.length - 1; top.max = Math.max(1, ...item.runs.flatMap(r => r.columns.map(c => c.length)));
  const run = item.runs[Math.min(thoughts.value, thoughts.max)], k = run.columns.length - 1;
  const deep = Math.min(top.value, top.max);
  count.textContent = run.thoughts; tokens.textContent = deep; find('p').textContent = item.question;
  const names = run.columns.map((_, i) => ({text: i < k ? 'thought ' + (i + 1) : 'written'}));
  const steps = run.columns.map((_, i) => ({text: i < item.steps.length ? item.steps[i] : ''}));
  const rows = []; for (let rank = 0; rank < deep; rank++) rows.push(line('td', run.columns.map(c => c[rank] ?
    {text: visible(c[rank][0]) + ' ' + c[rank][1].toFixed(2), share: c[rank][1]} : {text: ''})));
  find('table').replaceChildren(line('th', names), line('th', steps), ...rows);
  find('small').textContent = 'what the model writes after that; the answer is ' + item.answer;
  written.textContent = run.text; written.className = run.right ? 'right' : 'wrong';
};
for (const [i, item] of items.entries()) select.add(new Option(item.question.slice(0, 80), i));
top.max = thoughts.max = 99; top.value = 3; thoughts.value = items.length ? items[0].runs.length - 1 : 0;
select.onchange = thoughts.oninput = top.oninput = draw; draw();
})();</script></div>"""


def static(items: list[dict]) -> Html:
    """Choose a problem, how many thoughts it gets and how many tokens are shown: what each thought says, and what the
    model then writes. Above each column stands the step of that place. Self-contained; `items` as `look` returns them.
    """
    data = json.dumps(items).replace("<", "\\u003c")
    page = PAGE.replace("STYLE", STYLE).replace("PLAIN", PLAIN).replace("GOOD", GOOD).replace("BAD", BAD)
    return Html(page.replace("BLUE", BLUE).replace("ITEMS", data))


# ----- with one
def live(
    thinker,
    tokenizer,
    question: str,
    k: int,
    top: int = 5,
    new: int = 64,
    solve: Callable[[str], Problem | None] | None = None,
    trained: Config | None = None,
):
    """An ipywidgets box: a text field for any question, sliders for thoughts and tokens; redrawn at each change.

    What cannot be asked is said in the box, in a sentence, and nothing is raised.
    solve    from a question to the solved problem (as modular_chain.solve), to show its steps and to judge the answer;
             None for a question that is none of the task
    trained  as in lib.coconut.inspect
    """
    import ipywidgets as widgets

    wide = {"layout": {"width": "95%"}, "style": {"description_width": "5em"}}
    field = widgets.Text(value=question, description="question", continuous_update=False, **wide)
    thoughts = widgets.IntSlider(k, 0, max(8, 2 * k), description="thoughts", continuous_update=False)
    tokens = widgets.IntSlider(top, 1, max(10, top), description="tokens", continuous_update=False)
    shown = widgets.HTML()

    def draw(_=None) -> None:
        shown.value = answered(thinker, tokenizer, field.value, thoughts.value, tokens.value, new, solve, trained)

    for control in (field, thoughts, tokens):
        control.observe(draw, names="value")
    draw()
    return widgets.VBox([field, widgets.HBox([thoughts, tokens]), shown])


def answered(thinker, tokenizer, question: str, k: int, top: int, new: int = 64, solve=None, trained=None) -> Html:
    """What `live` shows under its controls: the thoughts' table and the text, or a sentence that says what is wrong."""
    try:
        if not question.strip():
            raise InputError("There is no question; write one, and press Enter.")
        problem = solve(question.strip()) if solve else None
        asked = problem or make_problem(question.strip(), [], "", "asked")
        (item,) = look(thinker, tokenizer, [asked], [k], top, new, trained)
    except InputError as error:
        return Html(f"<p><b>{escape(str(error))}</b></p>")
    except Exception as error:  # whatever a text does to a model, the box stays
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        return Html(f"<p><b>This cannot be asked ({escape(reason)}); try another question.</b></p>")
    note = "" if problem or not solve else " (no question of this task)"
    return drawn(item, known=problem is not None, note=note)


def drawn(item: dict, known: bool, note: str = "") -> Html:
    """One item of `look` with one run, as HTML without a script; `known`: are its steps and its answer known?"""
    (run,) = item["runs"]
    columns, k = run["columns"], len(run["columns"]) - 1
    steps = [*item["steps"], *[""] * (k + 1)][: k + 1]
    cell = 'style="text-align:left;padding:2px 10px;font-family:monospace;white-space:pre'
    names = [f"thought {i + 1}" for i in range(k)] + ["written"]
    rows = ["".join(f'<th {cell}">{escape(text)}</th>' for text in line) for line in (names, *([steps] * known))]
    for rank in range(max(map(len, columns))):
        line = ""
        for token, share in (column[rank] for column in columns):
            text = escape(token.replace("\n", "⏎"))
            line += f'<td {cell};background:rgba({BLUE},{0.7 * share:.3f})">{text} {share:.2f}</td>'
        rows.append(line)
    table = "".join(f"<tr>{line}</tr>" for line in rows)
    shade = (GOOD if run["right"] else BAD) if known else PLAIN
    said = f"; the answer is {item['answer']}" if known else note
    return Html(
        f'<table style="border-collapse:collapse">{table}</table><small>what the model writes after that{escape(said)}'
        f'</small><pre style="white-space:pre-wrap;padding:4px 8px;background:{shade}">{escape(run["text"])}</pre>'
    )
