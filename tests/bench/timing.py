"""Two ways to do one thing, timed in turns, and the line that says what came of it."""

import statistics
import time


def ratio(fast, slow, pairs: int = 5) -> float:
    """Median of (seconds of slow) / (seconds of fast) over alternating pairs, after one warm-up of each."""

    def seconds(work) -> float:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    seconds(fast), seconds(slow)
    return statistics.median(seconds(slow) / seconds(fast) for _ in range(pairs))


def entry(
    name: str, ratio: float, bar: float, baseline: str, what: str, better: str = "higher", pairs: int = 5
) -> dict:
    """One line of bench.json."""
    import torch

    threads = torch.get_num_threads()
    return dict(
        name=name, ratio=ratio, bar=bar, better=better, baseline=baseline, what=what, threads=threads, pairs=pairs
    )
