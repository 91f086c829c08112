"""Pictures of a text diffusion: its noise schedule, its training, what steps buy, and one film on paper.

Each function takes plain data (dicts and lists of numbers and texts, never a model) and returns a matplotlib Figure.
"""

import math

from lib.coconut.pictures import shown
from lib.dot.film import FILLERS, SURE, UNSURE, tone
from lib.plots import COLOURS, axes

GREY = "#888888"
TONES = COLOURS[:6]  # grey and yellow left out: one is taken, the other is too pale for lines


def sigmoid(x: float) -> float:
    """1 / (1 + exp(-x)), for any x."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def with_intervals(ax, xs: list, counts: list[tuple[float, int]], shade: str, label: str, style: str = "o-") -> None:
    """A line of shares with their 95 % intervals; `counts` is [(right, n), ...]."""
    from lib.evaluation import wilson

    shares = [right / n if n else math.nan for right, n in counts]
    ends = [wilson(right, n) for right, n in counts]
    below = [share - low for share, (low, _) in zip(shares, ends, strict=True)]
    above = [high - share for share, (_, high) in zip(shares, ends, strict=True)]
    ax.errorbar(xs, shares, yerr=[below, above], fmt=style, ms=5, capsize=3, color=shade, label=label)


def doubling(ax, xs: list, label: str) -> None:
    """A horizontal axis on which each doubling is as wide as the next; ticks at the values, powers of two first."""
    ax.set_xscale("log", base=2)
    ticks: list = []
    near = math.log2(max(xs) / min(xs)) / 14  # closer to the tick before, its number would cover the other's
    powers = {2**i for i in range(64)}
    for x in sorted(powers.intersection(xs)) + sorted(set(xs) - powers):
        if all(abs(math.log2(x / tick)) > near for tick in ticks):
            ticks.append(x)
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.minorticks_off()
    ax.set_xlabel(label)


# ----- the noise
def schedule(curve: dict[str, list[float]]) -> object:
    """The learned schedule gamma = -log SNR over time beside the one training began with; and the shares it means.

    curve  {"t": [...], "gamma": [...], "start": [...]}, start may be left out
    """
    figure, (left, right) = axes(1, 2)
    t, gamma = curve["t"], curve["gamma"]
    if "start" in curve:
        left.plot(t, curve["start"], "--", color=GREY, label="at the start of training")
    left.plot(t, gamma, color=COLOURS[0], label="learned")
    left.set(xlabel="time t (1: all noise)", ylabel="gamma = -log SNR", xlim=(0, 1))
    left.legend(frameon=False, fontsize=8)
    right.plot(t, [sigmoid(-g) for g in gamma], color=COLOURS[2], label="signal, alpha²")
    right.plot(t, [sigmoid(g) for g in gamma], color=COLOURS[5], label="noise, sigma²")
    right.set(xlabel="time t (1: all noise)", ylabel="share of the variance", xlim=(0, 1), ylim=(-0.02, 1.04))
    right.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def loss_by_time(rows: list[dict]) -> object:
    """The diffusion loss at each time, with its band; dashed where rows know it: before training on the bound.

    rows  [{"t": a bin's middle, "loss": its mean, "low", "high", "start_loss" if known}]
    """
    figure, (ax,) = axes(width=6.2, height=3.4)
    rows = sorted(rows, key=lambda row: row["t"])
    known = [row for row in rows if row.get("start_loss") is not None]
    xs = [row["t"] for row in rows]
    low, high = ([row[key] for row in rows] for key in ("low", "high"))
    ax.fill_between(xs, low, high, color=COLOURS[0], alpha=0.2, lw=0)
    ax.plot(xs, [row["loss"] for row in rows], "o-", ms=4, color=COLOURS[0], label="in the end")
    if known:
        first = [row["start_loss"] for row in known]
        ax.plot([row["t"] for row in known], first, "s--", ms=4, color=GREY, label="before")
        ax.legend(frameon=False, fontsize=8)
    ax.set(xlabel="time t (1: all noise)", ylabel="diffusion loss, nats a token", xlim=(0, 1))
    ax.set_ylim(0, max([row["high"] for row in rows] + [row["start_loss"] for row in known], default=1) * 1.06 or 1)
    return figure


# ----- training
PARTS = {"loss": "-", "diffusion": "--", "reconstruction": ":", "prior": "-."}


def training(curves: dict[str, list[dict]]) -> object:
    """The loss and its parts against step; beside them the share of watched validation problems written right.

    curves  {label: rows}, a row {"step", "loss", "reconstruction", "diffusion", "prior"} or {"step", "right"}
    """
    from matplotlib.lines import Line2D

    figure, (loss, right) = axes(1, 2, width=5, height=3.4)
    drawn, lowest = [], math.inf
    for i, (label, rows) in enumerate(curves.items()):
        shade = TONES[i % len(TONES)]
        for part, style in PARTS.items():
            points = [(row["step"], row[part]) for row in rows if part in row]
            if points:
                loss.plot(*zip(*points, strict=True), style, color=shade, lw=1.8 if part == "loss" else 1.1, label=part)
                drawn.append(part)
                lowest = min([lowest, *(y for _, y in points if y > 0)])
        points = [(row["step"], row["right"]) for row in rows if "right" in row]
        right.plot(*(zip(*points, strict=True) if points else ((), ())), "o-", ms=4, color=shade, label=label)
    keys = [Line2D([], [], color="#444444", ls=style, label=part) for part, style in PARTS.items() if part in drawn]
    loss.set(xlabel="optimizer step", ylabel="nats a token", yscale="log" if lowest < math.inf else "linear")
    loss.legend(handles=keys, frameon=False, fontsize=8)
    if lowest < math.inf:
        loss.set_ylim(bottom=max(lowest, 1e-4) * 0.8)
    right.set(xlabel="optimizer step", ylabel="share of validation problems\nwritten right", ylim=(-0.02, 1.04))
    if len(curves) > 1:
        right.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


# ----- what it can do
def accuracy_by_steps(found: dict[str, dict[int, tuple[int, int]]], title: str = "") -> object:
    """Accuracy against the number of denoising steps, a line a sampler, with 95 % intervals.

    found  {sampler: {steps: (right, n)}}
    """
    figure, (ax,) = axes(width=6.6, height=3.6)
    for i, (sampler, by_steps) in enumerate(found.items()):
        xs = sorted(by_steps)
        apart = [x * 2 ** (0.05 * (i - (len(found) - 1) / 2)) for x in xs]  # so that intervals can be told apart
        with_intervals(ax, apart, [by_steps[x] for x in xs], TONES[i % len(TONES)], sampler)
    doubling(ax, [x for by_steps in found.values() for x in by_steps] or [1], "denoising steps T")
    ax.set(ylabel="accuracy", ylim=(-0.02, 1.04))
    ax.set_title(title, fontsize=10, parse_math=False)
    if found:
        ax.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def repair(rows: list[dict]) -> object:
    """Share of chains that are right again after wrong tokens were put in, noise was added and taken away again.

    rows  [{"errors": tokens replaced, "start": the time it was noised to, "repaired": share of n, "n"}]; a line for
          each number of errors. At time 0 nothing can change: what stands there is what is right without any repair
    """
    figure, (ax,) = axes(width=4.6, height=3.4)
    for i, k in enumerate(sorted({row["errors"] for row in rows})):
        own = sorted((row for row in rows if row["errors"] == k), key=lambda row: row["start"])
        counts = [(row["repaired"] * row["n"], row["n"]) for row in own]
        with_intervals(ax, [row["start"] for row in own], counts, TONES[i % len(TONES)], str(k))
    limits = dict(xlim=(-0.04, 1.04), ylim=(-0.04, 1.04))
    ax.set(xlabel="noised to time t", ylabel="share of chains right again", **limits)
    if rows:
        ax.legend(title="wrong tokens", frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def latency(rows: list[dict]) -> object:
    """Seconds a problem, one problem at a time, against the length of its chain; a line a method; grey: other than dot.

    rows  [{"method", "length": tokens of the chain, "seconds"}]
    """
    figure, (ax,) = axes(width=6.2, height=3.6)
    methods = list(dict.fromkeys(row["method"] for row in rows))
    others = [method for method in methods if not method.startswith("dot")]
    for i, method in enumerate(methods):
        line = sorted((row["length"], row["seconds"]) for row in rows if row["method"] == method)
        style, shade = "o-", TONES[i % len(TONES)]
        if method in others:
            style, shade = "s" + ("--", ":", "-.")[others.index(method) % 3], GREY
        ax.plot(*zip(*line, strict=True), style, ms=4, color=shade, label=method)
    doubling(ax, [row["length"] for row in rows] or [1], "tokens of the chain")
    ax.set(ylabel="seconds a problem, one at a time", yscale="log")
    if rows:
        ax.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


# ----- a film on paper
def film_strip(run: dict, most: int = 60) -> object:
    """The film of one run: a row a step from noise to text, a column a position, the surer the bluer; passes apart.

    run   {"sampler", "steps", "frames": [{"t", "tokens", "confidence", "pass"}], "text", "right"}
    most  tokens stand in their cells in films of at most so many positions
    """
    from matplotlib.colors import LinearSegmentedColormap

    frames = run["frames"]
    wide = max((len(frame["tokens"]) for frame in frames), default=1)
    written, longest = wide <= most, 1
    if written:
        longest = max((len(face(token)) for frame in frames for token in frame["tokens"]), default=1)
    width = 1.8 + wide * (0.14 + 0.075 * longest if written else 0.06)
    figure, (ax,) = axes(width=max(4.5, width), height=1.3 + 0.2 * max(4, len(frames)))
    ends = [[part / 255 for part in colour] for colour in (UNSURE, SURE)]
    greyblue = LinearSegmentedColormap.from_list("confidence", ends)
    shares = [[*frame["confidence"], *[math.nan] * wide][:wide] for frame in frames]
    image = ax.imshow(shares or [[0.0]], vmin=0, vmax=1, cmap=greyblue, aspect="auto", interpolation="nearest")
    for row, frame in enumerate(frames if written else []):
        for column, (token, share) in enumerate(zip(frame["tokens"], frame["confidence"], strict=True)):
            shade = tone(token, share)
            ax.text(column, row, face(token), ha="center", va="center", fontsize=7, color=shade, parse_math=False)
    step = max(1, -(-len(frames) // 32))
    ax.set_yticks(range(0, len(frames), step), [f"{frame['t']:.2f}" for frame in frames[::step]], fontsize=7)
    ax.set_xticks(places := range(0, wide, 5 if wide <= most else 20), list(map(str, places)), fontsize=7)
    ax.set(xlabel="position", ylabel="time t")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    verdict = {None: "", True: ": right", False: ": wrong"}[run.get("right")]
    title = f"{run['sampler']}, {run['steps']} step{'s' * (run['steps'] != 1)}{verdict}"
    if frames and frames[-1].get("pass", 1) > 1:
        title = f"one thought a pass, {frames[-1]['pass']} passes: {title}"
        for row in range(1, len(frames)):
            if frames[row]["pass"] > frames[row - 1]["pass"]:
                ax.axhline(row - 0.5, color="white", lw=3)
    ax.set_title(title, loc="left", fontsize=9, parse_math=False)
    figure.colorbar(image, ax=ax, label="probability", fraction=0.04, pad=0.02, shrink=min(1, 24 / max(1, len(frames))))
    return figure


def face(token: str) -> str:
    """A token as a cell of a strip holds it; an empty place is a dot."""
    return "·" if token in FILLERS else shown(token.strip(" ") or "␣", 8)
