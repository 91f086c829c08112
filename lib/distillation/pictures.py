"""What alignment and distillation look like: plain data and alignments in, HTML or matplotlib figures out."""

from html import escape

from lib import alignment, plots, viewers
from lib.alignment import Alignment, Tokens
from lib.distillation.targets import KINDS, Targets

LETTER = 0.6 * 9 / 72  # inches: a letter of a monospaced font of 9 points
LINE = 1.15  # inches: two rows of tokens and the ribbons between them
SHADES = {  # of a right link, by the group it is in
    "same": "#009E73",
    "but for blanks": "#56B4E9",
    "1:n": "#E69F00",
    "n:1": "#E69F00",
    "n:m": "#999999",
}
WRONG = "#d62728"
NAMES = {"dtw": "time warping (published)", "dtw_normalised": "normalised cost", "offsets": "offsets"}
NAMES |= {"offsets_strict": "offsets, blanks count", "samples": "samples", "gold": "TRL's GOLD"}


def shown(written: str) -> str:
    """A token as letters that can be seen."""
    return written.replace("\n", "⏎").replace(" ", "▁").replace("\ufffd", "�") or "∅"


def colour_of(found: tuple[int, int], teacher: Tokens, student: Tokens, kinds: dict) -> str:
    """The colour of a right link."""
    kind = kinds[found]
    if kind != "1:1":
        return SHADES[kind]
    left, right = teacher.written[found[0]], student.written[found[1]]
    return SHADES["same" if alignment.surface(left) == alignment.surface(right) else "but for blanks"]


def rows_of(groups, teacher: Tokens, student: Tokens, width: int) -> list[tuple[dict, dict]]:
    """Tokens on lines of at most `width` letters, cut between groups: for each line ({token: x}, {token: x}).

    The two sides of a group begin under one another.
    """
    lines: list[tuple[dict, dict]] = [({}, {})]
    ends = [0, 0]
    for group in groups:
        sides = ((teacher, group.teacher), (student, group.student))
        sizes = [sum(1 + len(shown(side.written[i])) for i in range(*span)) for side, span in sides]
        if max(ends) + max(sizes) > width and any(lines[-1]):
            lines.append(({}, {}))
            ends = [0, 0]
        if min(sizes):
            ends = [max(ends)] * 2
        for at, (side, span) in enumerate(sides):
            for i in range(*span):
                lines[-1][at][i] = ends[at]
                ends[at] += 1 + len(shown(side.written[i]))
    return lines


def links_to_draw(teacher: Tokens, student: Tokens, found: Alignment) -> list[tuple[int, int, str, bool]]:
    """(teacher's token, student's, colour, missed?) of the links of `found` and those it misses; blanks aside."""
    exact = alignment.align(teacher, student)
    kinds = {}
    for group in exact.groups:
        kinds |= {(i, j): group.kind for i in range(*group.teacher) for j in range(*group.student)}
    right = set(exact.links)
    solid = [set(side.solid[0]) for side in (teacher, student)]
    links = [(i, j) for i, j in found.links if i in solid[0] and j in solid[1]]
    drawn = [(*each, colour_of(each, teacher, student, kinds) if each in right else WRONG, False) for each in links]
    return drawn + [(*each, WRONG, True) for each in sorted(right - set(links))]


def ribbons(teacher: Tokens, student: Tokens, found: Alignment, width: int = 130) -> object:
    """Two tokenisations of one text, the teacher's above, and what `found` links, `width` letters a line.

    Right links (those of the offsets) are coloured by kind, wrong ones red, dashed where `found` misses one. A link to
    another line is a stub.
    """
    lines = rows_of(alignment.align(teacher, student).groups, teacher, student, width)
    figure, (ax,) = plots.axes(1, 1, width=width * LETTER + 0.3, height=len(lines) * LINE + 0.4)
    ends = [
        {i: (n, x + len(shown(side.written[i])) / 2) for n, line in enumerate(lines) for i, x in line[at].items()}
        for at, side in enumerate((teacher, student))
    ]
    for i, j, shade, missed in links_to_draw(teacher, student, found):
        (here, x), (there, y) = ends[0][i], ends[1][j]
        style = dict(color=shade, lw=2.4, ls=(0, (2, 1)) if missed else "-", zorder=1)
        if here == there:
            ax.plot([x, y], [-here, -here - 0.5], **style)
        else:
            ax.plot([x, x], [-here, -here - 0.15], **style)
            ax.plot([y, y], [-there - 0.35, -there - 0.5], **style)
    box = dict(boxstyle="round,pad=0.15", fc="#eef2f7", ec="#c5cedb", lw=0.6)
    for n, line in enumerate(lines):
        for at, side in enumerate((teacher, student)):
            for i in line[at]:
                place = ends[at][i][1], -n - 0.5 * at
                ax.text(*place, shown(side.written[i]), ha="center", va="center", size=8, family="monospace", bbox=box)
    ax.set(xlim=(-1, width + 1), ylim=(-len(lines) + 0.3, 0.3))
    ax.set_axis_off()
    ax.set_title(
        f"{NAMES[found.method]}: error rate {alignment.error_rate(found, teacher, student):.3f}", size=10, loc="left"
    )
    return figure


def legend() -> viewers.Html:
    """What the ribbons' colours mean."""
    marks = {
        "one opposite one, written alike": SHADES["same"],
        "one opposite one, but for blanks": SHADES["but for blanks"],
        "one opposite several": SHADES["1:n"],
        "several opposite several": SHADES["n:m"],
        "wrong (dashed: missed)": WRONG,
    }
    return viewers.Html(" &nbsp; ".join(f'<span style="color:{c}">━━</span> {text}' for text, c in marks.items()))


def warping(teacher: Tokens, student: Tokens, methods: tuple[str, ...] = ("dtw", "dtw_normalised")) -> object:
    """The table of distances of each method, with the way through it, and the links of the offsets as dots."""
    figure, grid = plots.axes(1, len(methods), width=6.2, height=5.6)
    exact = alignment.align(teacher, student).links
    for ax, method in zip(grid, methods, strict=True):
        table, rows, columns = alignment.costs(teacher, student, method == "dtw_normalised")
        image = ax.imshow(
            table[rows][:, columns], cmap="Greys", aspect="auto", vmax=None if method == "dtw_normalised" else 6
        )
        way = alignment.align(teacher, student, method).links
        ax.plot([j for _, j in way], [i for i, _ in way], color=WRONG, lw=1.8, label="the cheapest way")
        ax.scatter([j for _, j in exact], [i for i, _ in exact], s=22, color=SHADES["same"], zorder=3, label="offsets")
        ax.set_xticks(range(len(student)), [shown(w) for w in student.written], rotation=90, fontsize=7)
        ax.set_yticks(range(len(teacher)), [shown(w) for w in teacher.written], fontsize=7)
        ax.set(title=NAMES[method], xlabel="student's tokens", ylabel="teacher's tokens")
        figure.colorbar(image, ax=ax, shrink=0.6, label="distance of the two tokens")
    grid[0].legend(loc="upper right", fontsize=8)
    return figure


def quality(rows: list[dict]) -> object:
    """Bars a method: the error rate; the shares of the student's tokens that stand opposite one written alike, and that
    get a distribution by the method's own rule.

    rows  {"method", "error_rate", "alike_share", "soft_share"}
    """
    figure, (errors, shares) = plots.axes(1, 2)
    names = [NAMES[row["method"]] for row in rows]
    places = range(len(rows))
    values = [row["error_rate"] for row in rows]
    errors.bar_label(
        errors.barh(names, values, color=plots.COLOURS[0]), [f"{v:.3f}" for v in values], size=8, padding=3
    )
    errors.set(title="alignment error rate", xlim=(0, max([*values, 0.01]) * 1.25))
    for key, label, up, shade in (
        ("alike_share", "opposite one written alike", -0.2, 4),
        ("soft_share", "taught", 0.2, 2),
    ):
        values = [row[key] for row in rows]
        bars = shares.barh([i + up for i in places], values, height=0.38, color=plots.COLOURS[shade], label=label)
        shares.bar_label(bars, [f"{v:.3f}" for v in values], size=8, padding=3)
    shares.set(title="share of the student's tokens", xlim=(0, 1.1))
    shares.set_yticks([])
    for ax in (errors, shares):
        ax.invert_yaxis()
    figure.legend(loc="outside lower right", ncols=2, fontsize=8, frameon=False)
    return figure


def coverage(found: dict[str, dict]) -> object:
    """What the student's positions get, by way of matching: a distribution of one token, of a group, or a point mass.

    found  {way: what `training.coverage` counted}
    """
    figure, (ax,) = plots.axes(1, 1, width=7.0, height=0.7 + 0.45 * len(found))
    names, left = [NAMES[way] for way in found], [0.0] * len(found)
    texts = {"soft": "distribution of one token", "chunk": "distribution of a group", "point": "point mass"}
    for kind, shade in zip(KINDS, ("#009E73", "#E69F00", "#d8dde5"), strict=True):
        values = [counted[kind] for counted in found.values()]
        ax.barh(names, values, left=left, color=shade, label=texts[kind])
        left = [a + b for a, b in zip(left, values, strict=True)]
    ax.invert_yaxis()
    ax.set(xlabel="share of the student's tokens", xlim=(0, 1))
    figure.legend(loc="outside upper center", ncols=3, fontsize=8, frameon=False)
    return figure


def taught(tokenizer, targets: Targets, ids: list[int]) -> viewers.Html:
    """A student's text, each token on a ground by what it is taught: how sure the teacher was; point for the rest.

    ids  the text's tokens, the end of the sequence included, as many as there are targets
    """
    spans = []
    for at, token in enumerate(ids):
        pairs = sorted(zip(targets.mass[at].tolist(), targets.ids[at].tolist(), strict=True), reverse=True)
        own = sum(p for p, i in pairs if i == token)
        listed = ", ".join(f"{shown(tokenizer.convert_ids_to_tokens(i))} {p:.1%}" for p, i in pairs if p > 0)
        tip = f"{targets.kinds[at]}: {listed}; others {targets.tail[at]:.1%}"
        point = targets.kinds[at] == "point"
        shade = "#eef2f7" if point else f"hsl({8 + 130 * own:.0f},70%,82%)"
        mark = ";border-bottom:2px solid #E69F00" if targets.kinds[at] == "chunk" else ""
        name = escape(shown(tokenizer.convert_ids_to_tokens(token)))
        spans.append(
            f'<span style="background:{shade};border-radius:3px;padding:1px 3px;margin:1px{mark}" '
            f'title="{escape(tip, quote=True)}">{name}</span>'
        )
    return viewers.Html(f'<div style="font-family:monospace;line-height:2">{" ".join(spans)}</div>')


def mixture(examples: list) -> object:
    """How many texts are in which of the four formats, and their share."""
    counts: dict[str, int] = {}
    for example in examples:
        counts[example.form] = counts.get(example.form, 0) + 1
    figure, (ax,) = plots.axes(1, 1, width=6.0, height=0.6 + 0.4 * len(counts))
    bars = ax.barh(list(counts), list(counts.values()), color=plots.COLOURS[4])
    ax.bar_label(bars, [f"{n}, {n / len(examples):.1%}" for n in counts.values()], padding=3, fontsize=8)
    ax.set(xlabel="texts", xlim=(0, 1.25 * max(counts.values())))
    return figure
