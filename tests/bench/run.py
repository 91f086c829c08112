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


def ratio(fast, slow, pairs: int = 5) -> float:
    """Median of (seconds of slow) / (seconds of fast) over alternating pairs, after one warm-up of each."""

    def seconds(work) -> float:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    seconds(fast), seconds(slow)
    return statistics.median(seconds(slow) / seconds(fast) for _ in range(pairs))


def generation_batched() -> dict:
    """generate() with 64 prompts at once against the same prompts one at a time."""
    from lib import models, prompts
    from lib.generation import generate
    from lib.tasks import word_problems
    from lib.tokenization import build_tokenizer

    problems = word_problems.generate(64)
    asked = [prompts.prompt(p) for p in problems]
    tokenizer = build_tokenizer(asked)
    models.seed_everything(0)
    model, _ = models.load_model("llama_tiny", tokenizer, device="cpu")
    value = ratio(
        lambda: generate(model, tokenizer, asked, max_new_tokens=32, batch_size=64),
        lambda: generate(model, tokenizer, asked, max_new_tokens=32, batch_size=1),
    )
    what = "64 greedy completions of up to 32 tokens, llama_tiny on the CPU"
    return {"name": "generation_batched", "ratio": value, "bar": 8, "baseline": "one prompt at a time", "what": what}


def memo_found() -> dict:
    """A training that was done before, found by its key, against doing it."""
    from lib import sft, stage
    from lib.tasks import modular_chain

    problems = modular_chain.generate(2000)
    with tempfile.TemporaryDirectory() as folder:
        stage.OUTPUTS = Path(folder)
        s = stage.begin("03_sft", "bench")
        config = sft.Config(steps=20, batch_size=16, valid_problems=16, device="cpu")
        s.memo(sft.train, config, problems, problems[:16])
        fresh = iter(range(100))
        value = ratio(
            lambda: s.memo(sft.train, config, problems, problems[:16]),
            lambda: sft.train(config, problems, problems[:16], Path(folder) / f"again{next(fresh)}"),
        )
    what = "20 steps of SFT on 2,000 modular chains, batch 16"
    return {"name": "memo_found", "ratio": value, "bar": 20, "baseline": "the training itself", "what": what}


def main() -> None:
    import torch

    entries = []
    for measure in (generation_batched, memo_found):
        entry = measure() | {"better": "higher", "threads": torch.get_num_threads(), "pairs": 5}
        entries.append(entry)
        print(f"{entry['name']}: {entry['ratio']:.1f} x {entry['baseline']} (bar {entry['bar']})")
    (ROOT / "outputs" / "bench.json").write_text(json.dumps(entries, indent=1) + "\n")


if __name__ == "__main__":
    main()
