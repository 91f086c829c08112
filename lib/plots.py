"""Pictures. Each function takes plain data (lists and dicts, never a model) and returns a matplotlib Figure."""

import math
from collections import Counter
from pathlib import Path

# Okabe and Ito's colours: told apart by colour-blind readers and in grey.
COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999999", "#F0E442"]


# Neighbours in a picture differ; colours come again after eight.
METHODS = (
    "cot answer_only rft verifier self_consistency cot_calculator zero_shot_answer in_context_answer zero_shot_cot "
    "in_context_cot self_training dpo_self_training "
    "coconut coconut_no_thought coconut_pause_as_thought coconut_jacobi coconut_no_curriculum coconut_pause_token "
    "dot dot_multi_pass "
    "distilled_samples distilled_offsets distilled_dtw distilled_dtw_normalised distilled_gold chat_cot"
).split()


def colour(method: str) -> str:
    """The colour of a method, the same in every picture."""
    place = METHODS.index(method) if method in METHODS else 2 + sum(method.encode()) % 6
    return COLOURS[place % len(COLOURS)]


def axes(rows: int = 1, columns: int = 1, width: float = 4.2, height: float = 3.0):
    """(Figure, axes as a flat list), laid out so that labels do not collide."""
    import matplotlib.pyplot as plt  # loading it also teaches Jupyter to show figures

    size = (width * columns, height * rows)
    figure, grid = plt.subplots(rows, columns, squeeze=False, figsize=size, layout="constrained")
    plt.close(figure)  # shown by the cell that returns it, not a second time at the cell's end
    grid = grid.flatten().tolist()
    for ax in grid:
        ax.spines[["top", "right"]].set_visible(False)
    return figure, grid


def save(figure, path: str | Path):
    """Write a figure as PNG and return it, so that a cell ends with `plots.save(...)` and shows it too."""
    figure.savefig(path, dpi=110)
    return figure


def problem_shapes(problems: dict[str, list]) -> object:
    """Three histograms a task: words in the question, steps in the chain, size of the answer."""
    figure, grid = axes(len(problems), 3, height=2.4)
    for row, (task, items) in enumerate(problems.items()):
        words, steps, answers = grid[3 * row : 3 * row + 3]
        lengths = Counter(len(p.question.split()) for p in items)
        words.bar(list(lengths), list(lengths.values()), width=1.0, color=COLOURS[0])
        words.set_xlim(0, max(lengths, default=0) + 5)
        words.set(title=task, xlabel="words in the question", ylabel="problems")
        counts = Counter(len(p.steps) for p in items)
        steps.bar(list(counts), list(counts.values()), color=COLOURS[1])
        steps.set(xlabel="steps")
        steps.set_xticks(sorted(counts))
        sizes = Counter(len(p.answer.replace(" ", "").replace(",", "")) for p in items)
        answers.bar(list(sizes), list(sizes.values()), color=COLOURS[2])
        answers.set(xlabel="characters in the answer")
        answers.set_xticks(sorted(sizes))
    return figure


def last_digits(splits: dict[str, list]) -> object:
    """The share of each last digit among the answers of every split: a split by a poor hash shows here at once."""
    figure, (ax,) = axes(width=6.5)
    for i, (name, items) in enumerate(splits.items()):
        lasts = [p.answer[0] if " " in p.answer else p.answer[-1] for p in items]  # digits apart stand reversed
        digits = Counter(digit for digit in lasts if digit.isdigit())
        total = sum(digits.values()) or 1
        places, shares = [d + (i - 1) * 0.27 for d in range(10)], [digits[str(d)] / total for d in range(10)]
        ax.bar(places, shares, 0.25, label=name, color=COLOURS[i])
    ax.set(xlabel="last digit of the answer", ylabel="share of the split", xticks=range(10))
    ax.legend(frameon=False)
    return figure


def loss_curves(curves: dict[str, list[dict]]) -> object:
    """Training loss (line) and validation loss (dots) against steps; `curves` maps a label to rows of metrics.jsonl.

    Beside it the share of tokens that were predicted first, where that was counted.
    """
    counted = any("mean_token_accuracy" in row for rows in curves.values() for row in rows)
    figure, grid = axes(1, 1 + counted, width=4.8)
    loss, accuracy = grid[0], grid[-1]
    for i, (label, rows) in enumerate(curves.items()):
        shade = COLOURS[i % len(COLOURS)]
        kinds = [(loss, "loss", "eval_loss")]
        kinds += [(accuracy, "mean_token_accuracy", "eval_mean_token_accuracy")] if counted else []
        for ax, train, valid in kinds:
            points = [(r["step"], r[train]) for r in rows if train in r]
            ax.plot(*zip(*points, strict=True), color=shade, label=label) if points else None
            points = [(r["step"], r[valid]) for r in rows if valid in r]
            ax.plot(*zip(*points, strict=True), "o", color=shade, ms=4) if points else None
    if counted:
        accuracy.set(xlabel="optimizer step", ylabel="share of tokens predicted first", ylim=(0, 1.02))
    loss.set(xlabel="optimizer step", ylabel="loss per token, nats (dots: validation)", yscale="log")
    loss.legend(frameon=False, fontsize=8)
    return figure


def accuracy_bars(rows: list[dict]) -> object:
    """Accuracy with its 95 % interval: one panel a task, one bar a method, setting and seed."""
    from lib.evaluation import labels

    tasks = sorted({row["task"] for row in rows}, reverse=True)
    named = list(zip(rows, labels(rows), strict=True))
    most = max((sum(row["task"] == task for row in rows) for task in tasks), default=1)
    figure, grid = axes(1, max(1, len(tasks)), width=6, height=1 + 0.32 * most)
    for ax, task in zip(grid, tasks, strict=False):
        chosen = [(row, label) for row, label in named if row["task"] == task]
        several = len({row["seed"] for row, _ in chosen}) > 1
        for i, (row, _) in enumerate(chosen):
            error = [[row["accuracy"] - row["ci_low"]], [row["ci_high"] - row["accuracy"]]]
            ax.barh(i, row["accuracy"], xerr=error, capsize=3, color=colour(row["method"]))
        ax.set(title=task, xlim=(0, 1.02), xlabel="accuracy", yticks=range(len(chosen)))
        ax.set_yticklabels([f"{label}, seed {r['seed']}" if several else label for r, label in chosen], fontsize=8)
        ax.invert_yaxis()
    return figure


def accuracy_by_steps(counts: dict[str, dict[int, tuple[int, int]]]) -> object:
    """Accuracy against the number of steps a problem needs; `counts` is {label: {steps: (right, all)}}."""
    from lib.evaluation import wilson

    figure, (ax,) = axes(width=7, height=3.4)
    drawn: Counter = Counter()
    for method, by_steps in counts.items():
        name = method.split(" ")[0]
        style = ("-", "--", ":", "-.")[drawn[name] % 4]  # settings of one method share its colour
        drawn[name] += 1
        xs = sorted(by_steps)
        shares = [by_steps[x][0] / by_steps[x][1] for x in xs]
        ends = [wilson(*by_steps[x]) for x in xs]
        errors = [
            [s - e[0] for s, e in zip(shares, ends, strict=True)],
            [e[1] - s for s, e in zip(shares, ends, strict=True)],
        ]
        ax.errorbar(xs, shares, yerr=errors, fmt="o" + style, capsize=4, label=method, color=colour(name))
    ax.set(xlabel="steps the problem needs", ylabel="accuracy", ylim=(0, 1.02))
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def accuracy_against_cost(rows: list[dict], cost: str = "tokens_per_problem") -> object:
    """Accuracy against a cost on a log axis, one panel a task; the line joins rows no other beats in both."""
    from matplotlib.ticker import LogLocator

    from lib.evaluation import labels, pareto

    tasks = sorted({row["task"] for row in rows}, reverse=True)
    named = list(zip(rows, labels(rows), strict=True))
    figure, grid = axes(1, max(1, len(tasks)), width=5.4, height=4)
    for ax, task in zip(grid, tasks, strict=False):
        chosen = [(row, label) for row, label in named if row["task"] == task and row[cost] is not None]
        front = sorted((r[cost], r["accuracy"]) for r in pareto([row for row, _ in chosen], cost))
        if front:
            ax.plot(*zip(*front, strict=True), color="#bbbbbb", zorder=0)
        heights: dict[float, float] = {}  # how high labels reach already, by place on the axis
        for row, label in sorted(chosen, key=lambda x: x[0]["accuracy"]):
            error = [[row["accuracy"] - row["ci_low"]], [row["ci_high"] - row["accuracy"]]]
            ax.errorbar(row[cost], row["accuracy"], yerr=error, marker="o", capsize=3, color=colour(row["method"]))
            place = round(math.log10(max(row[cost], 1e-9)), 1)
            heights[place] = max(row["accuracy"], heights.get(place, -1.0) + 0.045)
            ax.annotate(
                label,
                (row[cost], heights[place]),
                xytext=(8, -3),
                textcoords="offset points",
                fontsize=8,
                annotation_clip=False,
            )
        ax.set(title=task, xscale="log", xlabel=cost.replace("_", " "), ylabel="accuracy", ylim=(0, 1.05))
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_formatter("")
        ax.margins(x=0.35)
    return figure


def token_lengths(lengths: dict[str, list[list[int]]]) -> object:
    """Tokens of prompt and completion by format; `lengths` maps a format to [lengths of prompts, of completions]."""
    figure, (ax,) = axes(width=7, height=2.4)
    for row, (asked, written) in enumerate(lengths.values()):
        prompt, completion = sum(asked) / len(asked), sum(written) / len(written)
        ax.barh(row, prompt, color=COLOURS[6], label="prompt" if row == 0 else None)
        ax.barh(row, completion, left=prompt, color=COLOURS[2], label="completion" if row == 0 else None)
        ax.annotate(f"{prompt:.0f} + {completion:.0f}", (prompt + completion, row), (4, -3), textcoords="offset points")
    ax.set(xlabel="tokens, on average", yticks=range(len(lengths)))
    ax.set_yticklabels(lengths)
    ax.invert_yaxis()
    ax.margins(x=0.15)
    ax.legend(frameon=False, loc="upper right")
    return figure


def accuracy_of_choices(rows: list[dict], reachable: list[dict]) -> object:
    """Accuracy of choosing among n samples, by vote and by verifier, one panel a task; dashed: any of them right.

    rows       result rows with setting["n"] and setting["by"]; reachable  [{"task", "seed", "n", "accuracy"}]
    """
    tasks = sorted({row["task"] for row in rows}, reverse=True)
    shades = {"vote": COLOURS[4], "verifier": COLOURS[3], "weighted_vote": COLOURS[5]}
    figure, grid = axes(1, max(1, len(tasks)), width=5)
    for ax, task in zip(grid, tasks, strict=False):
        points = [(r["setting"]["by"], r["seed"], r["setting"]["n"], r["accuracy"]) for r in rows if r["task"] == task]
        points += [("any sample right", r["seed"], r["n"], r["accuracy"]) for r in reachable if r["task"] == task]
        for method in dict.fromkeys(p[0] for p in points):
            for i, seed in enumerate(sorted({p[1] for p in points})):
                line = sorted((n, accuracy) for name, s, n, accuracy in points if (name, s) == (method, seed))
                shade, style = (shades[method], "o-") if method in shades else ("#888888", "--")
                ax.plot(*zip(*line, strict=True), style, color=shade, label=method if i == 0 else None)
        ax.set(title=task, xscale="log", xlabel="samples a problem", ylabel="accuracy", ylim=(0, 1.02))
        ax.set_xticks(ticks := sorted({p[2] for p in points}), [str(tick) for tick in ticks])
        ax.minorticks_off()
        ax.legend(frameon=False, fontsize=8)
    return figure


def paths_by_samples(counted: list[dict]) -> object:
    """Distinct new paths a problem against samples a problem, beside what became of all samples.

    counted  [{"task", "seed", "k", "paths", "ledger": {fate: samples}}]
    """
    tasks = sorted({row["task"] for row in counted}, reverse=True)
    figure, grid = axes(max(1, len(tasks)), 2, width=5)
    for row, task in enumerate(tasks):
        grown, fates = grid[2 * row : 2 * row + 2]
        chosen = [c for c in counted if c["task"] == task]
        for seed in sorted({c["seed"] for c in chosen}):
            line = [(c["k"], c["paths"]) for c in chosen if c["seed"] == seed]
            grown.plot(*zip(*line, strict=True), "o-", color=colour("rft"), label=f"seed {seed}")
        grown.set(title=task, xlabel="samples a problem", ylabel="distinct new paths a problem", ylim=(0, None))
        first = [c for c in chosen if c["seed"] == chosen[0]["seed"]]
        bottom = [0.0] * len(first)
        for i, fate in enumerate(first[0]["ledger"]):
            shares = [c["ledger"][fate] / sum(c["ledger"].values()) for c in first]
            fates.bar([c["k"] for c in first], shares, bottom=bottom, label=fate, color=COLOURS[i])
            bottom = [b + share for b, share in zip(bottom, shares, strict=True)]
        fates.set(xlabel="samples a problem", ylabel="share of the samples", ylim=(0, 1))
        fates.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def accuracy_against_paths(rows: list[dict], counted: list[dict]) -> object:
    """Accuracy against distinct new paths a problem: SFT is at none; with and without calculator, one panel a task.

    rows  result rows of cot, cot_calculator and rft (setting k, calculator); counted  as for paths_by_samples
    """
    paths = {(c["task"], c["seed"], c["k"]): c["paths"] for c in counted}
    tasks = sorted({row["task"] for row in rows}, reverse=True)
    figure, grid = axes(1, max(1, len(tasks)), width=5)
    for ax, task in zip(grid, tasks, strict=False):
        lines: dict[tuple, list] = {}
        for row in [r for r in rows if r["task"] == task and r["method"] in ("cot", "cot_calculator", "rft")]:
            with_calculator = row["method"] == "cot_calculator" or row["setting"].get("calculator", False)
            x = paths[task, row["seed"], row["setting"]["k"]] if row["method"] == "rft" else 0.0
            error = (row["accuracy"] - row["ci_low"], row["ci_high"] - row["accuracy"])
            lines.setdefault((with_calculator, row["seed"]), []).append((x, row["accuracy"], error))
        for i, ((with_calculator, _), points) in enumerate(sorted(lines.items())):
            xs, ys, errors = zip(*sorted(points), strict=True)
            shade = COLOURS[2] if with_calculator else COLOURS[0]
            label = ("with" if with_calculator else "without") + " calculator"
            label = None if i and sorted(lines)[i - 1][0] == with_calculator else label
            ax.errorbar(xs, ys, yerr=list(zip(*errors, strict=True)), marker="o", capsize=3, color=shade, label=label)
        ax.set(title=task, xlabel="distinct new paths a problem (0: SFT)", ylabel="accuracy", ylim=(0, None))
        ax.legend(frameon=False)
    return figure


def pair_similarities(by_rule: dict[str, list[float]]) -> object:
    """How alike the two texts of a pair are, for each rule of choosing pairs: Jaccard similarities as histograms."""
    figure, (ax,) = axes(width=6.5)
    for i, (rule, values) in enumerate(by_rule.items()):
        ax.hist(values, bins=[b / 20 for b in range(21)], histtype="step", lw=2, color=COLOURS[i], label=rule)
    ax.set(xlabel="Jaccard similarity of chosen and rejected", ylabel="pairs", xlim=(0, 1))
    ax.legend(frameon=False, title="rule")
    return figure


def preference_curves(curves: dict[str, list[dict]], first: float | None = None) -> object:
    """Loss, rewards and log-probabilities of chosen and rejected over a DPO training, one row a label.

    curves  {label: rows of dpo's metrics.jsonl}; lines are the training's pairs, dots the watched ones
    first   the loss of a model that is its own reference, drawn as a dashed line; None for none
    """
    figure, grid = axes(max(1, len(curves)), 3, width=4.4)
    panels = (
        ("loss, nats", {"loss": "#444444"}),
        ("reward, nats", {"rewards/chosen": COLOURS[2], "rewards/rejected": COLOURS[5]}),
        ("log-probability, nats", {"logps/chosen": COLOURS[2], "logps/rejected": COLOURS[5]}),
    )
    for row, (label, rows) in enumerate(curves.items()):
        for ax, (what, keys) in zip(grid[3 * row : 3 * row + 3], panels, strict=True):
            for key, shade in keys.items():
                points = [(r["step"], r[key]) for r in rows if key in r]
                ax.plot(*zip(*points, strict=True), color=shade, label=key.partition("/")[2] or None) if points else 0
                points = [(r["step"], r[f"eval_{key}"]) for r in rows if f"eval_{key}" in r]
                ax.plot(*zip(*points, strict=True), "o", color=shade, ms=5) if points else 0
            ax.set(xlabel="optimizer step", ylabel=what)
            if "loss" in keys:
                ax.axhline(first, color="#bbbbbb", ls="--", zorder=0) if first is not None else None
                ax.set_title(label, loc="left", fontsize=10)
            else:
                ax.legend(frameon=False, fontsize=8)
    return figure


def rounds_of_self_training(rows: list[dict], k: int) -> object:
    """Accuracy and pass@k of every model of the loops, round by round, one panel a task and seed.

    rows  [{"task", "seed", "method", "model", "round", "accuracy", "pass@k", ...}], where a model tuned by DPO in round
          i stands at i - 0.5
    """
    panels = list(dict.fromkeys((row["task"], row["seed"]) for row in rows))
    figure, grid = axes(max(1, -(-len(panels) // 3)), max(1, min(3, len(panels))), width=5)
    for ax in grid[len(panels) :]:
        ax.set_axis_off()
    for ax, (task, seed) in zip(grid, panels, strict=False):
        own = [r for r in rows if (r["task"], r["seed"]) == (task, seed)]
        for method in dict.fromkeys(r["method"] for r in own):
            line = sorted((r["round"], r["accuracy"], r[f"pass@{k}"], r["model"]) for r in own if r["method"] == method)
            xs, greedy, passed, names = zip(*line, strict=True)
            ax.plot(xs, greedy, "o-", color=colour(method), label=f"{method}, greedy")
            ax.plot(xs, passed, "s--", color=colour(method), label=f"{method}, pass@{k}")
            for x, y, name in zip(xs, greedy, names, strict=True):
                ax.annotate(name, (x, y), (4, -11), textcoords="offset points", fontsize=7, color=colour(method))
        ax.set(title=f"{task}, seed {seed}", xlabel="round", ylabel="share of validation problems", ylim=(0, 1.02))
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.legend(frameon=False, fontsize=7)
    return figure


def pass_at_k(curves: dict[str, dict[int, float]]) -> object:
    """pass@k against k for each model; `curves` is {label: {k: share}}."""
    figure, (ax,) = axes(width=6.5, height=3.4)
    for i, (label, line) in enumerate(curves.items()):
        ax.plot(list(line), list(line.values()), "o-", ms=4, color=COLOURS[i % len(COLOURS)], label=label)
    ax.set(xlabel="k, samples a problem", ylabel="pass@k: at least one of k is right", ylim=(0, 1.02))
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def draft_fates(drafts: dict[str, list[dict]]) -> object:
    """What became of a writer's drafts, a bar a label; `drafts` is {label: rows of synthetic's drafts.jsonl}."""
    fates = ("kept", "kept, repaired", "below the threshold", "duplicate", "leaked", "not parsed")
    shades = (COLOURS[2], COLOURS[4], COLOURS[1], "#bbbbbb", COLOURS[5], "#666666")
    figure, (ax,) = axes(width=7.5, height=1.2 + 0.4 * len(drafts))
    for i, rows in enumerate(drafts.values()):
        named = ["kept, repaired" if r["fate"] == "kept" and r["repaired"] else r["fate"] for r in rows]
        left = 0
        for fate, shade in zip(fates, shades, strict=True):
            n = named.count(fate)
            ax.barh(i, n, left=left, color=shade, label=fate if i == 0 else None)
            if n > 0.06 * max(map(len, drafts.values())):
                dark = fate in ("not parsed", "leaked")
                ax.text(left + n / 2, i, n, ha="center", va="center", fontsize=8, color="white" if dark else "black")
            left += n
    ax.set_yticks(range(len(drafts)), list(drafts), fontsize=8)
    ax.set(xlabel="drafts", xlim=(0, None))
    ax.invert_yaxis()
    ax.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def gold_by_generated(rows: list[dict]) -> object:
    """Accuracy against gold problems, a line for each kind of generated problems: the seeds' mean, and each seed.

    rows  {"setting": {"gold": how many, "generated": "no", "round 1", "unverified", ...}, "accuracy"}, a seed each
    """
    figure, (ax,) = axes(width=6.5, height=3.6)
    kinds = list(dict.fromkeys(row["setting"]["generated"] for row in rows))
    kinds = sorted(kinds, key=lambda name: (name.startswith("unverified"), name))
    for i, kind in enumerate(kinds):
        shift = 1.03 ** (i - (len(kinds) - 1) / 2)  # so that no dot covers another
        points: dict[int, list[float]] = {}
        for row in rows:
            if row["setting"]["generated"] == kind:
                points.setdefault(row["setting"]["gold"], []).append(row["accuracy"])
        line = sorted((n * shift, sum(values) / len(values)) for n, values in points.items())
        shade, style = ("#888888", "s--") if kind.startswith("unverified") else (COLOURS[i], "o-")
        ax.plot(*zip(*line, strict=True), style, color=shade, label=f"generated: {kind}")
        for n, values in points.items():
            ax.plot([n * shift] * len(values), values, "_", color=shade, ms=9)
    ax.set(xscale="log", xlabel="gold problems (SAMPLE_NUM)", ylabel="accuracy", ylim=(None, 1.02))
    ax.set_xticks(ticks := sorted({row["setting"]["gold"] for row in rows}), [str(tick) for tick in ticks])
    ax.minorticks_off()
    ax.legend(frameon=False, fontsize=8)
    return figure
