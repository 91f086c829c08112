"""Speeds of diffusion of thoughts, against the published way of computing, other samplers, and token by token.

Lengths are those of 4x4-digit multiplication, the published task; answers are compared where a model really solves
something. The published way is tests.oracles.dot_reference.
"""

from pathlib import Path

from tests.bench.timing import entry, ratio

ROWS = 32  # problems sampled at once
STEPS = 8  # denoising steps
ASKED = 200  # problems whose answers are compared
TRAINING = dict(
    model="plaid_3x128",
    loss="cross_entropy",
    batch_size=32,
    learning_rate=1e-3,
    embedding_rate=1e-3,
    check_steps=1000,
    valid_problems=0,
    max_length=256,
    device="cpu",
)
BRIEF = 60  # steps on multiplication: clear logits, nothing solved
SOLVED = dict(n_leaves=7, max_depth=3, n_nots=0, operators="and or")
SOLVED_PROBLEMS = 12_000  # the first 2 * ASKED are held out: to measure, to choose T
SOLVED_STEPS = 1000
WRITER_STEPS = 500  # of the language model on the same problems
CHOICES = (1, 2, 4, 8)  # T to choose from


def trained(folder: Path, name: str, problems: list, steps: int):
    """(model, tokenizer, config, canvas) of that name in `folder`, trained on these problems at the first asking."""
    from lib.dot import model as plaid
    from lib.dot import training
    from lib.dot.config import Config

    if not (folder / name).exists():
        training.train(Config(**TRAINING, steps=steps), problems, [], folder / name)
    return plaid.load(folder / name / "model", "cpu")


def multiplication(folder: Path):
    """(parts of a hardly trained model, problems): for tokens and timings."""
    from lib.tasks import arithmetic

    problems = arithmetic.generate(2000, "*", 4)
    return trained(folder, "multiplication", problems[ROWS:], BRIEF), problems


def solved(folder: Path):
    """(parts of a model that solves its task, its problems): for accuracies."""
    from lib.tasks import boolean

    problems = boolean.generate(SOLVED_PROBLEMS, **SOLVED)
    return trained(folder, "solved", problems[2 * ASKED :], SOLVED_STEPS), problems


def how(steps: int = STEPS, sampler: str = "ancestral"):
    """Ways to ask, in one batch."""
    from lib.dot.generation import Config

    return Config(steps=steps, sampler=sampler, batch_tokens=10**9, device="cpu")


def ours(parts: tuple, problems: list, way) -> list[str]:
    """Answers of lib.dot."""
    from lib.dot import generation

    return [g.text for g in generation.generate(*parts, [p.question for p in problems], way)[0]]


def our_tokens(parts: tuple, problems: list, way) -> list[list[int]]:
    """All tokens of each canvas."""
    from lib.dot import generation

    found: list = [None] * len(problems)

    def watch(step, places, ids, sure):
        for place, row in zip(places, ids.tolist(), strict=True):
            found[place] = row

    generation.generate(*parts, [p.question for p in problems], way, watch=watch)
    return found


def published(parts: tuple, problems: list, way, model=None) -> tuple[list[str], list[list[int]]]:
    """(answers, tokens) in the published way, from the same noise; `model` in place of the one of `parts`."""
    from lib.dot import generation, sequences
    from tests.oracles import dot_reference as reference

    own, tokenizer, _, n = parts
    questions = [p.question for p in problems]
    noise = generation.Noise(questions, way.seed, [0] * len(questions), (n, own.embed_dim), "cpu")
    asked = sequences.sources(tokenizer, questions), n, tokenizer.pad_token_id, way.steps, way.sampler, noise
    ids = reference.sample(model or own, *asked)[0].tolist()
    return [generation.read(tokenizer, row, 0.0).text for row in ids], ids


def share_right(problems: list, texts: list[str]) -> float:
    """The share answered right."""
    from lib import answers

    return sum(answers.is_correct(p, text) for p, text in zip(problems, texts, strict=True)) / len(problems)


def sampling_vs_reference_same_vocab(folder: Path) -> dict:
    """Questions to answers, against a canvas of 256 positions that is denoised and read out everywhere."""
    parts, problems = multiplication(folder)
    asked, way = problems[:ROWS], how()
    tokens = our_tokens(parts, asked, way)
    assert tokens == published(parts, asked, way)[1], "the same tokens come out"
    assert len({i for row in tokens for i in row}) > 10 and len(set(map(tuple, tokens))) > ROWS // 2
    value = ratio(lambda: ours(parts, asked, way), lambda: published(parts, asked, way))
    what = f"{ROWS} products of 4 digits, ancestral, T = {STEPS}, canvas of {parts[3]}, plaid_3x128, same tokens"
    baseline = f"the published way: 256 positions, T + 1 calls, the same vocabulary of {len(parts[1])}"
    return entry("dot_sampling_vs_reference_same_vocab", value, 2, baseline, what)


def sampling_vs_reference_32k(folder: Path) -> dict:
    """The same, where the published way has 32,768 tokens to choose from."""
    from tests.oracles import dot_reference as reference

    solving, held_out = solved(folder)
    larger, held_out, way = reference.with_vocabulary(solving[0], solving[2], 32_768), held_out[:ASKED], how()
    one, (other, _) = ours(solving, held_out, way), published(solving, held_out[:ROWS], way, larger)
    equal = sum(a == b for a, b in zip(one[:ROWS], other, strict=True)) / ROWS
    right = share_right(held_out, one)
    assert equal >= 0.99 and right >= 0.9, (equal, right)
    parts, problems = multiplication(folder)
    larger, timed = reference.with_vocabulary(parts[0], parts[2], 32_768), problems[: ROWS // 4]
    value = ratio(lambda: ours(parts, timed, way), lambda: published(parts, timed, way, larger), pairs=3)
    what = (
        f"{len(timed)} products of 4 digits, ancestral, T = {STEPS}, plaid_3x128 with {len(parts[1])} tokens; "
        f"on boolean expressions {equal:.1%} equal answers of {ROWS}, where {right:.1%} are right"
    )
    baseline = "the published way: 256 positions, T + 1 calls, 32,768 tokens"
    return entry("dot_sampling_vs_reference_32k", value, 8, baseline, what, pairs=3)


def train_vs_reference(folder: Path) -> dict:
    """Forward and backward on 16 problems, against rows of 256 positions; also against rows without any padding."""
    import torch

    from lib.dot import losses, sequences
    from tests.oracles import dot_reference as reference

    (model, tokenizer, config, n), problems = multiplication(folder)
    encoded = sequences.encode(tokenizer, problems[:16])
    batch = sequences.Rows(encoded, tokenizer.pad_token_id).batch(torch.arange(16))
    shape = (*batch["canvas"].shape, config.embed_dim)
    noise = losses.draw(config, 16, shape, 0, 0, 1, 0, "cpu")
    own, asked = torch.arange(16) >= noise.own, [e["source"] for e in encoded]
    longest = max(len(e["source"]) + len(e["target"]) for e in encoded)

    def step():
        model.zero_grad()
        loss = losses.diffused_cross_entropy(model, config, batch, noise)["loss"]
        loss.backward()
        return loss.item()

    def padded(width: int):
        model.zero_grad()
        canvas = reference.canvases(asked, n, tokenizer.pad_token_id, width)
        loss = reference.loss(model, batch, canvas, noise.t, noise.noise, own)
        loss.backward()
        return loss.item()

    mine, wide, narrow = step(), padded(256), padded(longest)
    assert abs(mine - wide) < 1e-4 * mine and abs(mine - narrow) < 1e-4 * mine, (mine, wide, narrow)
    value, unpadded = ratio(step, lambda: padded(256)), ratio(step, lambda: padded(longest))
    what = (
        f"forward and backward, 16 products of 4 digits ({longest} tokens), plaid_3x128, the same loss; "
        f"{unpadded:.2f} x the published way on rows padded only to the batch's longest, as its training is"
    )
    return entry("dot_train_vs_reference", value, 1.5, "the published way on 256 positions", what)


def dpm8_vs_ancestral64(folder: Path) -> dict:
    """Eight steps of the second-order solver against 64 of the published default."""
    parts, problems = solved(folder)
    problems, fast, slow = problems[:ASKED], how(8, "dpm_2m"), how(64)
    quick, thorough = (share_right(problems, ours(parts, problems, way)) for way in (fast, slow))
    assert len(problems) >= 200 and min(quick, thorough) >= 0.9 and quick >= thorough - 0.01, (quick, thorough)
    value = ratio(lambda: ours(parts, problems[:ROWS], fast), lambda: ours(parts, problems[:ROWS], slow))
    what = f"{ROWS} boolean expressions; accuracies on {len(problems)}: {quick:.1%} and {thorough:.1%}"
    return entry("dot_dpm8_vs_ancestral64", value, 6, "ancestral with T = 64", what)


def vs_ar_cot_latency(folder: Path) -> dict:
    """One problem at a time: a denoised chain against one of a language model, token by token, with the same tokens."""
    from lib import generation as writing
    from lib import models, sft
    from lib.dot import inspect, speed

    parts, problems = solved(folder)
    test, valid, train = problems[:ASKED], problems[ASKED : 2 * ASKED], problems[2 * ASKED :]
    writer = folder / "writer"
    if not writer.exists():
        sft.train(sft.Config(words=True, steps=WRITER_STEPS, device="cpu"), train, valid, writer)
    looks = [inspect.accuracy(*parts, valid, how(steps, "ddim")) for steps in CHOICES]
    way = how(inspect.fewest_steps(looks), "ddim")
    denoised = share_right(test, ours(parts, test, way))
    model, tokenizer = models.load_model(str(writer / "model"), device="cpu")
    found = writing.generate(model, tokenizer, [f"{p.question}\n" for p in test], 2 * parts[3])
    written = share_right(test, [g.text for g in found])
    mine, other = speed.compare(folder / "solved" / "model", writer / "model", test, way, alone=20)
    together = mine["problems_per_second"] / other["problems_per_second"]
    what = (
        f"boolean expressions of {SOLVED['n_leaves']} leaves one at a time, T = {way.steps} against "
        f"{other['length']:.0f} tokens; accuracies on {len(test)}: {denoised:.1%} and {written:.1%}; "
        f"{together:.2f} x with {len(test)} at once"
    )
    value, baseline = other["seconds"] / mine["seconds"], "llama_tiny with a cache, token by token"
    return entry("dot_vs_ar_cot_latency", value, 5, baseline, what, pairs=20)


ALL = (
    sampling_vs_reference_same_vocab,
    sampling_vs_reference_32k,
    train_vs_reference,
    dpm8_vs_ancestral64,
    vs_ar_cot_latency,
)
