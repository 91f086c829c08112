"""Pictures of a training by stages, of thoughts, and of the search that they stand for.

Each function takes plain data (what `training` and `inspect` leave) and returns a matplotlib Figure.
"""

import math
import textwrap
from collections import Counter
from itertools import zip_longest

from lib.plots import COLOURS, axes, colour

RIGHT, WRONG, GREY = COLOURS[2], COLOURS[5], "#888888"
BLANKS = str.maketrans({"\n": "⏎", "\t": "⇥", "\x00": "␀"})


def shown(text: str, most: int = 12) -> str:
    """A token or a name as a picture can hold it: line breaks visible, long ones cut."""
    text = text.translate(BLANKS)
    text = "".join(letter if letter.isprintable() else "�" for letter in text)
    return text if len(text) <= most else text[: most - 1] + "…"


def shades(labels) -> list[str]:
    """A colour for each label: that of the method it begins with, or another where that is taken."""
    found: list[str] = []
    for label in labels:
        free = [own for own in (colour(label.partition(" ")[0]), *COLOURS) if own not in found]
        found.append(free[0] if free else COLOURS[len(found) % len(COLOURS)])
    return found


# ----- training
def curriculum(curves: dict[str, list[dict]]) -> object:
    """Share of validation problems written right against step; below, what stage each method is in.

    curves  {label: rows of metrics.jsonl}. Where a stage ends a method has two points: before and after the switch.
            The numbers below are thoughts; in methods without any they are the stages: s2 leaves two steps out.
    """
    from matplotlib.colors import to_rgb

    height = 1.0 + 0.28 * len(curves)
    figure, (top, lanes) = axes(2, 1, width=8, height=(3.2 + height) / 2)
    top.get_gridspec().set_height_ratios([3.2, height])
    lanes.sharex(top)
    end = max((row["step"] for rows in curves.values() for row in rows), default=1)
    for lane, (shade, label, rows) in enumerate(zip(shades(curves), curves, curves.values(), strict=True)):
        seen = [row for row in rows if "right" in row]
        top.plot([r["step"] for r in seen], [r["right"] for r in seen], "-", color=shade, lw=1.5, label=label)
        for start, stop, text in stretches(rows):
            lanes.barh(lane, stop - start, 0.72, left=start, color=shade, alpha=0.4, edgecolor="white", lw=1.5)
            if stop - start > 0.012 * end * (1 + len(text)):
                lanes.text((start + stop) / 2, lane, text, ha="center", va="center", fontsize=8)
            if start:
                top.axvline(start, color=shade, lw=1.0, alpha=0.5, ls=":")
    top.set(ylabel="share of validation problems\nwritten right", ylim=(-0.02, 1.04), xlim=(0, end * 1.01))
    top.tick_params(labelbottom=False)
    lanes.set(xlabel="optimizer step", ylim=(len(curves) - 0.4, -0.6), yticks=range(len(curves)))
    lanes.set_yticklabels(list(curves), parse_math=False)
    for tick, shade in zip(lanes.get_yticklabels(), shades(curves), strict=True):
        tick.set(color=[0.6 * part for part in to_rgb(shade)], fontweight="bold", fontsize=9)  # dark enough for text
    plain = any(not row["thoughts"] for rows in curves.values() for row in rows[-1:] if "thoughts" in row)
    lanes.set_title("thoughts" + (" (s: steps left out, without thoughts)" if plain else ""), loc="left", fontsize=9)
    lanes.spines["left"].set_visible(False)
    lanes.tick_params(axis="y", length=0)
    return figure


def stretches(rows: list[dict]) -> list[tuple[int, int, str]]:
    """(first step, last step, what to call it) of each stage in rows of metrics.jsonl, from 0 on, without gaps."""
    seen = [(row["step"], row["stage"], row["thoughts"]) for row in rows if "thoughts" in row]
    thinks = any(thoughts for _, _, thoughts in seen)
    found: list[list] = []
    for step, stage, thoughts in seen:
        text = str(thoughts) if thinks else f"s{stage}"
        if not found or found[-1][2:] != [text, stage]:
            start = found[-1][1] if found else 0
            found.append([start, step, text, stage])
        found[-1][1] = step
    return [(start, stop, text) for start, stop, text, _ in found]


# ----- thoughts
def decoded(rows: list[list[tuple[str, float]]], question: str, steps: list[str]) -> object:
    """What thoughts say: a column a position, the likeliest tokens from top to bottom, darker the likelier.

    rows   what inspect.decode returns: the thoughts, and last the position that writes
    steps  what stands above each column in order: the steps that thoughts stand for
    """
    from matplotlib.colors import LinearSegmentedColormap

    deep = max(map(len, rows), default=1)
    figure, (ax,) = axes(width=1.6 + 1.15 * max(3, len(rows)), height=1.9 + 0.36 * deep)
    shares = [[row[rank][1] if rank < len(row) else 0.0 for row in rows] for rank in range(deep)]
    blue = LinearSegmentedColormap.from_list("share", ["white", COLOURS[0]])
    image = ax.imshow(shares if rows else [[0.0]], vmin=0, vmax=1, cmap=blue, aspect="auto")
    for column, row in enumerate(rows):
        for rank, (token, share) in enumerate(row):
            text = f"{shown(token)}\n{share:.2f}" if share >= 0.005 else f"{shown(token)}\n<0.01"
            tone = "white" if share > 0.8 else "#222222" if share >= 0.05 else GREY
            ax.text(column, rank, text, ha="center", va="center", fontsize=8, color=tone, parse_math=False)
    names = [f"thought {i + 1}" for i in range(len(rows) - 1)] + ["written"]
    above = [shown(step, 14) for step in steps[: len(rows)]]
    heads = [f"{name}\n{step}" for name, step in zip_longest(names[: len(rows)], above, fillvalue="")]
    ax.set_xticks(range(len(rows)), heads, parse_math=False)
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.set(yticks=range(deep), yticklabels=[f"{rank + 1}." for rank in range(deep)])
    ax.spines[:].set_visible(False)
    if len(rows) > 1:
        ax.axvline(len(rows) - 1.5, color=GREY, lw=1.2)
    words = textwrap.shorten(" ".join(question.split()), 60 + 20 * len(rows), placeholder=" …")
    title = textwrap.fill(words, 30 + 8 * len(rows))
    figure.suptitle(title, fontsize=10, parse_math=False)
    figure.colorbar(image, ax=ax, label="probability", fraction=0.04, pad=0.02)
    return figure


def by_thoughts(curves: dict[str, list[dict]]) -> object:
    """Accuracy, and tokens written, against the number of thoughts given.

    curves  {label: rows of inspect.accuracy_by_thoughts}
    """
    figure, (right, tokens) = axes(1, 2, width=4.6)
    for shade, label, rows in zip(shades(curves), curves, curves.values(), strict=True):
        rows = sorted(rows, key=lambda row: row["thoughts"])
        xs = [row["thoughts"] for row in rows]
        right.plot(xs, [row["accuracy"] for row in rows], "o-", ms=4, color=shade, label=label)
        tokens.plot(xs, [row["tokens"] for row in rows], "o-", ms=4, color=shade, label=label)
    right.set(xlabel="thoughts given", ylabel="accuracy", ylim=(-0.02, 1.04))
    tokens.set(xlabel="thoughts given", ylabel="tokens written a problem")
    tokens.set_ylim(0, max([tokens.get_ylim()[1], 1]))
    for ax in (right, tokens):
        ax.xaxis.get_major_locator().set_params(integer=True)
    if len(curves) > 1:
        tokens.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def paired_bars(ax, names: list[str], series: dict[str, tuple[str, list]]) -> None:
    """Lying bars side by side, each with its number; `series` is {what: (colour, shares)}, None for no bar."""
    thick = 0.8 / len(series)
    for i, (what, (shade, shares)) in enumerate(series.items()):
        places = [place + (i - (len(series) - 1) / 2) * thick for place in range(len(names))]
        ax.barh(places, [share or 0.0 for share in shares], thick * 0.92, color=shade, label=what)
        for place, share in zip(places, shares, strict=True):
            if share is not None:
                ax.text(share + 0.015, place, f"{share:.2f}", va="center", fontsize=8)
    ax.set(xlim=(0, 1.12), xticks=[0, 0.25, 0.5, 0.75, 1], ylim=(len(names) - 0.4, -0.6), yticks=range(len(names)))
    ax.set_yticklabels(names)
    ax.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=len(series))


def causal(checks: list[dict], swapped: list[dict]) -> object:
    """Does the answer hang on the thoughts? All of them changed, kind by kind; and one exchanged for another problem's.

    checks   rows of inspect.causal_checks
    swapped  rows of inspect.swapped_steps; none for tasks whose steps cannot be worked out from there: one panel
    """
    figure, grid = axes(1, 2 if swapped else 1, width=5.2, height=1.3 + 0.42 * max(len(checks), len(swapped)))
    others = [row["answer of the other"] for row in checks]
    series = {"right": (COLOURS[0], [row["accuracy"] for row in checks])}
    if any(share is not None for share in others):
        series["the other problem's answer"] = (COLOURS[1], others)
    paired_bars(grid[0], [row["change"] for row in checks], series)
    grid[0].set(xlabel="share of problems", ylabel="all thoughts")
    if swapped:
        series = {
            "the answer that follows": (RIGHT, [row["predicted"] for row in swapped]),
            "its own, unchanged": (GREY, [row["unchanged"] for row in swapped]),
        }
        paired_bars(grid[1], [f"thought {row['thought']}\n({row['pairs']} pairs)" for row in swapped], series)
        grid[1].set(xlabel="share of pairs", ylabel="one exchanged")
    return figure


def geometry(rows: list[dict]) -> object:
    """Norm, mean cosine and effective rank of thoughts by position; dashed: of the token embeddings.

    rows  of inspect.geometry
    """
    panels = (("norm", "mean norm"), ("cosine", "mean cosine of two"), ("rank", "effective rank"))
    figure, grid = axes(1, 3, width=3.4)
    thoughts = [row for row in rows if row["of"] != "embeddings"]
    places = [int(row["of"].split()[-1]) for row in thoughts]
    for ax, (key, label) in zip(grid, panels, strict=True):
        points = [math.nan if row[key] is None else row[key] for row in thoughts]
        ax.plot(places, points, "o-", color=COLOURS[0], label="thoughts")
        for row in rows:
            if row["of"] == "embeddings" and row[key] is not None:
                ax.axhline(row[key], color=GREY, ls="--", label="token embeddings")
        high = max([row[key] for row in rows if row[key] is not None], default=1)
        low = min([0.0, *(row[key] for row in rows if row[key] is not None)])
        ax.set(xlabel="thought", ylabel=label, ylim=(low, max(1.04, high * 1.08)), xticks=places)
    grid[0].legend(frameon=False, fontsize=8, loc="best")
    return figure


# ----- search
def places_of(tree: dict) -> dict[str, tuple[float, float]]:
    """{name: (hop, height on the page)} of a search tree's nodes, each near its parents; the false candidate lowest."""
    found: dict[str, tuple[float, float]] = {}
    hops = {node["name"]: node["hop"] for node in tree["nodes"]}
    most = max(Counter(hops.values()).values())
    for hop in sorted(set(hops.values())):
        parents = {n: [found[a][1] for a, b in tree["edges"] if b == n and a in found] for n in hops if hops[n] == hop}
        order = sorted(parents, key=lambda n: (-sum(parents[n]) / max(1, len(parents[n])), n not in tree["path"], n))
        for row, name in enumerate(order):
            found[name] = (hop, ((len(order) - 1) / 2 - row) * most / len(order))
    found[tree["false"]] = (hops[tree["target"]], min(y for _, y in found.values()) - 1.0)
    return found


def search_tree(tree: dict) -> object:
    """A search tree, hop by hop from the root: how probable each node is as the next one, after so many thoughts.

    tree  what inspect.search_tree returns. Under a name: its probability (after each number of thoughts that asked for
          its hop; the larger and darker the node, the likelier) and its height h. Green: a shortest way to the target.
    """
    from matplotlib.colors import LinearSegmentedColormap

    blue = LinearSegmentedColormap.from_list("share", ["white", COLOURS[0]])
    places, path = places_of(tree), tree["path"]
    low, high = min(y for _, y in places.values()), max(y for _, y in places.values())
    last = max(x for x, _ in places.values())
    figure, (ax,) = axes(width=2.2 + 1.9 * last, height=1.7 + 0.78 * (high - low))
    ways = set(zip(path, path[1:], strict=False))
    for a, b in tree["edges"]:
        shade, thick = (RIGHT, 2.5) if (a, b) in ways else ("#bbbbbb", 0.9)
        ax.plot(*zip(places[a], places[b], strict=True), color=shade, lw=thick, zorder=1)
    for node in [*tree["nodes"], tree["unreached"]]:
        name, shares = node["name"], list(node["shares"].values())
        share, (x, y) = (shares[-1] if shares else 0.0), places[node["name"]]
        rim = WRONG if name == tree["false"] else RIGHT if name in path else GREY
        thick = 2.5 if name in (*path, tree["false"]) else 1.0
        ax.scatter(x, y, s=80 + 320 * share, color=blue(share), edgecolors=rim, linewidths=thick, zorder=2)
        said = {tree["target"]: ", target", tree["false"]: ", false", tree["root"]: ", root"}.get(name, "")
        numbers = " → ".join(f"{share:.2f}" for share in shares)
        text = f"{shown(name)}{said}\n{numbers}{', ' if numbers else ''}h {node['height']}"
        below = 5 + ((80 + 320 * share) / math.pi) ** 0.5
        ground = dict(facecolor="white", edgecolor="none", alpha=0.8, pad=0.6)
        how = dict(textcoords="offset points", ha="center", va="top", fontsize=8, parse_math=False, bbox=ground)
        ax.annotate(text, (x, y), (0, -below), **how)
    for x in range(last + 1):
        asked = [row for row in tree["asked"] if row["hop"] == x]
        after = ", ".join(str(row["thoughts"]) for row in asked)
        rest = " → ".join(f"{row['elsewhere']:.2f}" for row in asked)
        text = f"hop {x}" + (f"\nafter {after} thoughts\nelsewhere {rest}" if asked else "\n\n")
        ax.text(x, high + 0.35, text, ha="center", va="bottom", fontsize=8, color="#444444")
    ax.set(xlim=(-0.4, last + 0.5), ylim=(low - 0.8, high + 1.1))
    ax.set_axis_off()
    way = "longest" if tree["longest"] else "shortest"
    ax.set_title(f"h: the {way} way down to a leaf. Red: the other candidate, not reached.", loc="left", fontsize=9)
    return figure
