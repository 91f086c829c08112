"""Looking inside: what thoughts say, whether answers hang on them, how they lie, and the search they stand for.

Every function takes a model of `engine.load` and returns plain numbers, for plots and viewers. A thought here is what a
latent position is fed.

    trained    where it is asked for: the config of `engine.load`, needed if the model was taught to write the published
               `### ` before its answer, which the arbiter does not read
"""

import math
import random

from lib import answers
from lib.coconut import generation, sequences
from lib.coconut.config import Config
from lib.coconut.training import to_device
from lib.errors import InputError
from lib.generation import advance, repeat, stop_ids
from lib.problems import Problem
from lib.prompts import prompt
from lib.tasks import modular_chain, prosqa
from lib.tokenization import tokenize

KINDS = ("kept", "zeroed", "averaged", "noised", "swapped", "shuffled")


def check_thoughts(thinker, k: int) -> None:
    """Raise InputError where the model cannot be given `k` thoughts."""
    if k < 0 or (k and thinker.source is None):
        most = "at least 0" if k < 0 else "0: this one was trained without latent positions"
        raise InputError(f"A model cannot be given {k} thoughts; ask for {most}.")


def thoughts_of(thinker, tokenizer, problems: list[Problem], k: int):
    """What the `k` latent positions of each problem are fed: a tensor (problems, k, width), on the CPU.

    Thoughts that are refined in parallel are seen at each pass; the last one counts. (Without any pass, all but the
    first are the token <latent>.) Raises InputError for a model without latent positions, unless k is 0.
    """
    import torch

    check_thoughts(thinker, k)
    table = thinker.model.get_input_embeddings().weight.detach().float().cpu()
    found = table[thinker.markers[-1] if k else 0].repeat(len(problems), k, 1)
    for start in range(0, len(problems), 128):

        def look(j, inputs, start=start):
            found[start : start + len(inputs), j] = inputs.float().cpu()
            return inputs

        asked = tokenize(tokenizer, [prompt(p) for p in problems[start : start + 128]])
        with torch.inference_mode():
            generation.read(thinker, k, look, thinker.model, tokenizer, asked)
    return found


def decode(thinker, tokenizer, problem: Problem, k: int, top: int = 5) -> list[list[tuple[str, float]]]:
    """The `top` likeliest tokens of each of the `k` thoughts and, last, of the position that writes: (text, share).

    A thought is read where it comes from: by the head, from the last state of the position before, which is what the
    model would write there. With the source "last_hidden" that state is the thought itself; thoughts that are scaled
    or mapped on their way into the model are read before that, and of parallel ones the last pass is.
    """
    import torch

    check_thoughts(thinker, k)
    (ids,) = tokenize(tokenizer, [prompt(problem)])
    row = sequences.row({"question": ids, "steps": [], "answer": []}, 0, k, thinker.markers)
    batch = to_device(sequences.make_batch([row], tokenizer.pad_token_id, ends_aligned=True), thinker.device)
    with torch.inference_mode():
        states = thinker.hidden(batch)[0]
        logits = thinker.head(states[[*range(row["first"] - 1, row["first"] - 1 + k), -1]])
    best = logits.float().softmax(-1).topk(min(top, logits.shape[-1]))
    return [
        [(tokenizer.decode([i]), p) for i, p in zip(ids, shares, strict=True)]
        for ids, shares in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def accuracy_by_thoughts(
    thinker, tokenizer, problems: list[Problem], ks: list[int], new: int = 64, trained: Config | None = None
) -> list[dict]:
    """Accuracy of one model given so many thoughts: [{"thoughts", "accuracy", "tokens": written a problem}]."""
    rows = []
    for k in ks:
        check_thoughts(thinker, k)
        found = generation.generate(thinker, tokenizer, [prompt(p) for p in problems], k, max_new_tokens=new)
        texts = readable([g.text for g in found], trained)
        right = sum(answers.is_correct(p, t) for p, t in zip(problems, texts, strict=True))
        written = sum(g.tokens - k for g in found) / len(found)
        rows.append({"thoughts": k, "accuracy": right / len(found), "tokens": written})
    return rows


def readable(texts: list[str], trained: Config | None) -> list[str]:
    """Completions with the marker before their answers that the arbiter reads."""
    return texts if trained is None else [generation.with_marker(text, trained) for text in texts]


# ----- causal checks
def changed(kind: str, thoughts, seed: int = 0):
    """Other inputs for the latent positions, (problems, k, width), made from the ones they would have had.

    zeroed    all 0
    averaged  the mean over the problems, position by position
    noised    Gaussian noise of each thought's own norm
    swapped   those of the next problem (the last gets the first one's)
    shuffled  each problem's own, in another order (a single thought has none)
    """
    import torch

    numbers = torch.Generator().manual_seed(seed)
    if kind == "zeroed":
        return torch.zeros_like(thoughts)
    if kind == "averaged":
        return thoughts.mean(0, keepdim=True).expand_as(thoughts)
    if kind == "noised":
        noise = torch.randn(thoughts.shape, generator=numbers)
        return noise / noise.norm(dim=-1, keepdim=True) * thoughts.norm(dim=-1, keepdim=True)
    if kind == "swapped":
        return thoughts.roll(-1, 0)
    if kind == "shuffled":
        k = thoughts.shape[1]
        orders = [random.Random(f"{seed} {i}").sample(range(k), k) for i in range(len(thoughts))]
        orders = [order if order != list(range(k)) else order[1:] + order[:1] for order in orders]
        return thoughts.gather(1, torch.tensor(orders)[..., None].expand_as(thoughts))
    assert kind == "kept", f"unknown change {kind!r}: {', '.join(KINDS)}"
    return thoughts


def answers_with(thinker, tokenizer, problems: list[Problem], inputs, positions: list[int], new: int) -> list[str]:
    """What the model writes (greedy, `new` tokens at most) when the latent positions `positions` are fed `inputs`.

    inputs  (problems, k, width). Positions behind a changed one are fed what the model makes of it, unless changed too.
    """
    import torch

    texts, ends = [], stop_ids(thinker.model, tokenizer)
    for start in range(0, len(problems), 128):
        given = inputs[start : start + 128].to(thinker.device, thinker.model.dtype)

        def put(j, there, given=given):
            return given[:, j] if j in positions else there

        asked = tokenize(tokenizer, [prompt(p) for p in problems[start : start + 128]])
        with torch.inference_mode():
            logits, state = generation.read(thinker, inputs.shape[1], put, thinker.model, tokenizer, asked)
            written = [logits.argmax(-1)]
            over = torch.isin(written[0], torch.tensor(sorted(ends), device=thinker.device))
            while len(written) < new and not over.all():
                written.append(advance(thinker.model, state, written[-1]).argmax(-1))
                over |= torch.isin(written[-1], torch.tensor(sorted(ends), device=thinker.device))
        for ids in torch.stack(written, 1).tolist():
            end = next((place for place, token in enumerate(ids) if token in ends), len(ids))
            texts.append(tokenizer.decode(ids[:end], skip_special_tokens=True))
    return texts


def causal_checks(
    thinker, tokenizer, problems: list[Problem], k: int, new: int = 16, trained: Config | None = None
) -> list[dict]:
    """Accuracy with all thoughts changed, kind by kind: does the answer hang on them?

    [{"change", "accuracy", "answer of the other"}]; the last is the share that gives the next problem's answer, over
    the pairs of problems whose answers differ.
    """
    own = thoughts_of(thinker, tokenizer, problems, k)
    others = [*problems[1:], problems[0]]
    rows = []
    for kind in KINDS:
        texts = answers_with(thinker, tokenizer, problems, changed(kind, own), list(range(k)), new)
        texts = readable(texts, trained)
        right = [answers.is_correct(p, t) for p, t in zip(problems, texts, strict=True)]
        differ = [i for i, p in enumerate(problems) if not answers.same(p.answer, others[i].answer)]
        other = sum(answers.is_correct(others[i], texts[i]) for i in differ)
        row = {"change": kind, "accuracy": sum(right) / len(right)}
        rows.append(row | {"answer of the other": other / len(differ) if differ else None})
    return rows


def swapped_steps(
    thinker, tokenizer, problems: list[Problem], new: int = 16, trained: Config | None = None
) -> list[dict]:
    """Chains of modular arithmetic with one thought exchanged for that of the next problem, position by position.

    If the j-th thought stands for the j-th result, exchanging it must change the answer to what the remaining
    operations make of the other problem's j-th result. Over the pairs where that is another answer:
    [{"thought", "pairs", "predicted": share that gives it, "unchanged": share that still gives its own}]
    Wants a model with one thought a step; raises InputError where the problems differ in their numbers of steps.
    """
    k, n = len(problems[0].steps), len(problems)
    if any(len(p.steps) != k for p in problems):
        raise InputError("Thoughts are exchanged place by place: give problems of equally many steps.")
    own = thoughts_of(thinker, tokenizer, problems, k)
    rows = []
    for j in range(k):
        texts = answers_with(thinker, tokenizer, problems, changed("swapped", own), [j], new)
        others = [*problems[1:], problems[0]]
        predicted = [modular_chain.answer_from(p, q.steps[: j + 1]) for p, q in zip(problems, others, strict=True)]
        pairs = [i for i in range(n) if predicted[i] != problems[i].answer]
        stated = [answers.extract(text) or "" for text in readable(texts, trained)]
        hits = [(answers.same(predicted[i], stated[i]), answers.same(problems[i].answer, stated[i])) for i in pairs]
        shares = [sum(column) / len(pairs) for column in zip(*hits, strict=True)] or [None, None]
        rows.append({"thought": j + 1, "pairs": len(pairs), "predicted": shares[0], "unchanged": shares[1]})
    return rows


# ----- geometry
def geometry(thinker, tokenizer, problems: list[Problem], k: int) -> list[dict]:
    """How thoughts lie, position by position, beside the token embeddings ("embeddings"): are they large, all alike?

    norm     mean length
    cosine   mean cosine of two problems' thoughts (1: all point the same way, nothing is told apart)
    rank     effective rank: exp of the entropy of the shares of variance (of at most `width` directions)
    """
    import torch

    table = thinker.model.get_input_embeddings().weight.detach().float().cpu()
    states = thoughts_of(thinker, tokenizer, problems, k)
    groups = [(f"thought {j + 1}", states[:, j]) for j in range(k)] + [("embeddings", table)]
    rows = []
    for name, vectors in groups:
        unit = vectors / vectors.norm(dim=-1, keepdim=True).clamp(min=1e-9)
        total, n = unit.sum(0), len(unit)
        shares = torch.linalg.svdvals(vectors - vectors.mean(0)) ** 2
        shares = shares / shares.sum().clamp(min=1e-12)
        entropy = -(shares * shares.clamp(min=1e-12).log()).sum().item()
        row = {"of": name, "norm": vectors.norm(dim=-1).mean().item()}
        cosine = ((total @ total).item() - n) / (n * (n - 1)) if n > 1 else None
        rows.append(row | {"cosine": cosine, "rank": math.exp(entropy)})
    return rows


# ----- search
def node_probabilities(thinker, tokenizer, question: str, prefix: str, names: list[str], k: int) -> dict[str, float]:
    """After `k` thoughts and the forced words `prefix`: the probability of each name (the product over its tokens).

    Where the tokenizer joins the prefix's last blank to a name, that blank counts as part of the name. The sum is at
    most 1, unless the tokens of one name begin with all those of another.
    """
    import torch

    check_thoughts(thinker, k)
    if not names:
        return {}
    ids = [tokenizer(prefix + name, add_special_tokens=False)["input_ids"] for name in names]
    given = tokenizer(prefix, add_special_tokens=False)["input_ids"] if prefix else []
    columns = enumerate(zip(given, *ids, strict=False))
    forced = next((place for place, column in columns if len(set(column)) > 1), min(map(len, [given, *ids])))
    totals = [0.0] * len(names)
    with torch.inference_mode():
        logits, state = generation.read(
            thinker, k, None, thinker.model, tokenizer, tokenize(tokenizer, [question + "\n"])
        )
        rows = torch.zeros(len(names), dtype=torch.long, device=thinker.device)
        logits = logits[rows]
        repeat(state, rows)  # the question is read once, and each name goes on from there
        for place in range(max(map(len, ids))):
            likely = logits.float().log_softmax(-1)
            for row, name in enumerate(ids):
                totals[row] += likely[row, name[place]].item() if forced <= place < len(name) else 0.0
            tokens = [name[min(place, len(name) - 1)] for name in ids]
            logits = advance(thinker.model, state, torch.tensor(tokens, device=thinker.device))
    return {name: math.exp(total) for name, total in zip(names, totals, strict=True)}


def search_tree(thinker, tokenizer, problem: Problem, ks: list[int], longest: bool = False) -> dict:
    """How a search stands after `ks` thoughts: the probability of each node that a ProsQA problem's next step may name.

    In symbols a step is a node: after k thoughts, the one k + 1 hops from the root. In text the words before the first
    node are forced, as in the paper's section 5.2: without a thought "Tom is a ", then the node one hop away; after k,
    "Every ", then the node k hops away.
    {"root", "target", "false": names, "path": the names from root to target,
     "nodes": [{"name", "hop", "height", "shares": {k: probability}}], the root and all that it reaches so far,
     "edges": [[name, name]], those that lead one hop farther,
     "unreached": {"name", "height", "shares"}, the false candidate, asked for beside the nodes as far as the target,
     "asked": [{"thoughts", "hop", "elsewhere": the probability of none of these}],
     "longest": is a height the longest way down to a leaf (True), or the shortest?}
    """
    symbols = problem.meta["proof"] == "symbols"
    names, edges = problem.meta["names"], problem.meta["edges"]
    root, target, false = (names[problem.meta[role]] for role in prosqa.ROLES)
    found = prosqa.distances(prosqa.children(problem), [problem.meta["root"]])
    hops = {names[node]: hop for node, hop in found.items()}
    path = [root, *(step.rstrip(".").split()[-1] for step in problem.steps)]
    shares: dict[str, dict] = {name: {} for name in [*hops, false]}
    asked = []
    for k in ks:
        hop = k + 1 if symbols else max(1, k)
        prefix = "" if symbols else "Every " if k else f"{root} is a "
        some = [name for name in hops if hops[name] == hop] + [false] * (hop == hops[target])
        likely = node_probabilities(thinker, tokenizer, problem.question, prefix, some, k)
        for name, share in likely.items():
            shares[name][k] = share
        asked.append({"thoughts": k, "hop": hop, "elsewhere": max(0.0, 1 - sum(likely.values()))})
    last = max([hops[target], *(row["hop"] for row in asked)])
    high = prosqa.heights(problem, longest)
    nodes = [dict(name=n, hop=hops[n], height=high[n], shares=shares[n]) for n in hops if hops[n] <= last]
    pairs = [[names[a], names[b]] for a, b in edges]
    return {
        **{"root": root, "target": target, "false": false, "path": path, "nodes": nodes, "asked": asked},
        "edges": [[a, b] for a, b in pairs if b in hops and hops[b] <= last and hops.get(a) == hops[b] - 1],
        "unreached": {"name": false, "height": high[false], "shares": shares[false]},
        "longest": longest,
    }
