"""Speeds as ratios: two ways to do one thing, timed in turns in one run; writes outputs/bench.json.

Each entry says what was timed, against which baseline, and the bar it should clear. A ratio is the median over pairs.
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.bench import alignment, coconut, dot  # noqa: E402
from tests.bench.timing import entry, ratio  # noqa: E402


def trained(folder: Path):
    """(model, tokenizer, problems): llama_tiny after a minute on word problems, so that completions are real ones."""
    from lib import models, sft
    from lib.tasks import word_problems

    problems = word_problems.generate(2000)
    out = folder / "trained"
    if not out.exists():
        sft.train(sft.Config(steps=150, device="cpu"), problems[64:], problems[:64], out)
    return *models.load_model(str(out / "model"), device="cpu"), problems


def generation_batched(folder: Path) -> dict:
    """generate() with 64 prompts at once against the same prompts one at a time."""
    from lib import prompts
    from lib.generation import generate

    model, tokenizer, problems = trained(folder)
    asked = [prompts.prompt(p) for p in problems[:64]]
    value = ratio(
        lambda: generate(model, tokenizer, asked, max_new_tokens=64),
        lambda: generate(model, tokenizer, asked, max_new_tokens=64, batch_tokens=1),
    )
    what = "64 greedy solutions of word problems, llama_tiny on the CPU"
    return entry("generation_batched_vs_sequential", value, 8, "one prompt at a time", what)


def generation_shared_prompt(folder: Path) -> dict:
    """Eight samples each of 16 problems in one call against the library's own generate on the same batch of prompts."""
    from lib import prompts
    from lib.generation import generate

    model, tokenizer, problems = trained(folder)
    asked = [prompts.prompt(p) for p in problems[:16] for _ in range(8)]
    tokenizer.padding_side = "left"
    batch = tokenizer(asked, return_tensors="pt", padding=True)
    ids = dict(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    value = ratio(
        lambda: generate(model, tokenizer, asked, 64, temperature=0.7, indices=[i % 8 for i in range(128)]),
        lambda: model.generate(**ids, max_new_tokens=64, do_sample=True, temperature=0.7, top_k=0, pad_token_id=0),
    )
    what = "8 samples of up to 64 tokens for each of 16 word problems, llama_tiny on the CPU"
    return entry("generation_samples_vs_library", value, 1, "transformers' generate on the same batch", what)


def calculator_kept(folder: Path) -> dict:
    """Tokens a second with the calculator over tokens a second without it: 32 rows of 64 tokens each, none ends early.

    The calculator changes texts and so when rows end; here every row goes on to the limit, so that both do equal work.
    """
    from lib import prompts
    from lib.decoding_calculator import Calculator
    from lib.generation import generate

    model, tokenizer, problems = trained(folder)
    asked = [prompts.prompt(p) for p in problems[:32]]
    tokenizer.eos_token = None
    model.generation_config.eos_token_id = None

    def speed(calculator) -> float:
        began = time.perf_counter()
        found = generate(model, tokenizer, asked, 64, calculator=calculator)
        seconds = time.perf_counter() - began
        assert sum(g.tokens for g in found) == 32 * 64
        return 32 * 64 / seconds

    calculator = Calculator(tokenizer)
    speed(calculator), speed(None)
    value = statistics.median(speed(calculator) / speed(None) for _ in range(25))
    assert calculator.counts["triggered"] > 26 * 32, "the model must write annotations for this to measure anything"
    what = "tokens a second, 32 rows of 64 tokens, llama_tiny on the CPU"
    return entry("calculator_throughput_kept", value, 0.97, "the same without the calculator", what, pairs=25)


def calculator_bookkeeping(folder: Path) -> dict:
    """Following 32 rows of 300 tokens incrementally against reading every row anew at every step."""
    from lib import prompts
    from lib.decoding_calculator import Calculator
    from lib.tasks import word_problems
    from lib.tokenization import build_tokenizer
    from tests.oracles.decoding_calculator import RescanCalculator

    problems = word_problems.generate(600)
    tokenizer = build_tokenizer([prompts.prompt(p) + prompts.solution(p) for p in problems])
    texts = ["\n".join(prompts.prompt(p) + prompts.solution(p) for p in problems[i::32]) for i in range(32)]
    columns = list(zip(*(tokenizer(text)["input_ids"][:300] for text in texts), strict=True))  # 300 steps of 32 tokens

    def follow(calculator) -> None:
        calculator.start(32)
        for column in columns:
            calculator.override(list(column))
            calculator.advance(list(column))

    fast, slow = Calculator(tokenizer), RescanCalculator(tokenizer)
    value = ratio(lambda: follow(fast), lambda: follow(slow))
    what = "bookkeeping alone, 32 rows of 300 tokens of word problems and solutions"
    return entry("calculator_bookkeeping_vs_rescan", value, 50, "decoding and scanning each row at each step", what)


def calculator_hostile(folder: Path) -> dict:
    """Milliseconds that the worst of four hostile annotations costs, from its first token to its last, over 1 ms."""
    from lib.decoding_calculator import Calculator
    from lib.tokenization import build_tokenizer

    tokenizer = build_tokenizer(["<<3+4=7>>"])
    hostile = ["<<1/0=", "<<9**9**9=", "<<__import__('os')=", "<<" + "(" * 10**6 + "="]
    calculator, worst = Calculator(tokenizer), 0.0
    for text in hostile:
        ids = tokenizer(text)["input_ids"]
        cut = ids[:80]  # after 64 characters it has given up; what follows is plain text
        times = []
        for _ in range(20):
            calculator.start(1)
            began = time.perf_counter()
            for token in cut:
                calculator.advance([token])
            times.append(time.perf_counter() - began)
        calculator.start(1)
        for token in ids:
            calculator.advance([token])
        worst = max(worst, statistics.median(times))
    assert sum(calculator.counts["failed"].values()) == 21 * len(hostile), calculator.counts
    what = f"worst of {len(hostile)} hostile annotations; reasons {dict(calculator.counts['failed'])}"
    return entry("calculator_hostile_annotation", worst / 1e-3, 1, "1 ms", what, better="lower", pairs=20)


def memo_found(folder: Path) -> dict:
    """A training that was done before, found by its key, against doing it."""
    from lib import sft, stage
    from lib.tasks import modular_chain

    problems = modular_chain.generate(2000)
    stage.OUTPUTS = folder
    s = stage.begin("03_sft", "bench")
    config = sft.Config(steps=20, batch_size=16, valid_problems=16, device="cpu")
    s.memo(sft.train, config, problems, problems[:16])
    fresh = iter(range(100))
    value = ratio(
        lambda: s.memo(sft.train, config, problems, problems[:16]),
        lambda: sft.train(config, problems, problems[:16], folder / f"again{next(fresh)}"),
    )
    what = "20 steps of SFT on 2,000 modular chains, batch 16"
    return entry("memo_found", value, 20, "the training itself", what)


def trainings_at_once(folder: Path) -> dict:
    """As many trainings as there are cores, at once with one thread each, against one after another with all."""
    from dataclasses import replace

    from lib import sft, workers
    from lib.tasks import modular_chain

    problems, cores = modular_chain.generate(2000), workers.cores()
    config = sft.Config(words=True, steps=150, batch_size=32, valid_problems=16, device="cpu")
    fresh = iter(range(1000))

    def calls() -> dict:
        own = [next(fresh) for _ in range(cores)]
        return {i: (sft.train, replace(config, seed=i), problems, problems[:16], folder / f"at_once{i}") for i in own}

    value = ratio(lambda: workers.each(calls(), cores, 1), lambda: workers.each(calls(), 1), pairs=3)
    what = f"{cores} trainings of 150 steps on modular chains, batch 32"
    return entry("trainings_at_once", value, 1.5, "one after another", what, pairs=3)


BENCHES = (
    generation_batched,
    generation_shared_prompt,
    calculator_kept,
    calculator_bookkeeping,
    calculator_hostile,
    memo_found,
    trainings_at_once,
    *alignment.ALL,
    *coconut.ALL,
    *dot.ALL,
)


def main() -> None:
    """Run every bench, or those whose names are given."""
    chosen = [bench for bench in BENCHES if not sys.argv[1:] or bench.__name__ in sys.argv[1:]]
    with tempfile.TemporaryDirectory() as folder:
        entries = []
        for measure in chosen:
            found = measure(Path(folder))
            entries.append(found)
            sign = "at least" if found["better"] == "higher" else "at most"
            print(f"{found['name']}: {found['ratio']:.3g} x {found['baseline']} (bar: {sign} {found['bar']})")
    (ROOT / "outputs" / "bench.json").write_text(json.dumps(entries, indent=1) + "\n")


if __name__ == "__main__":
    main()
