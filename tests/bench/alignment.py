"""Speeds of alignment, against its published shape: cells of a NumPy array in Python, a C edit distance each."""

import json
import re
import sys
import time
from pathlib import Path

from tests.bench.timing import entry, ratio


def texts(count: int = 400) -> list[str]:
    """Worked problems as running text."""
    from lib.tasks import word_problems

    return [f"{p.question}\n" + "\n".join(p.steps) for p in word_problems.generate(count)]


def solutions(path: Path) -> list[str]:
    """The written solutions of a GSM8K file, without annotations and answers."""
    lines = map(json.loads, Path(path).read_text().splitlines())
    return [re.sub(r"<<[^>]*>>", "", line["answer"]).split("####")[0].strip() for line in lines]


def measure(path: Path) -> list[dict]:
    """What notebooks/measured/alignment_gsm8k.json holds: `alignment.compare` over every solution of a file, with two
    tokenizers of 6,000 pieces trained on it, and the seconds that cutting and aligning all of them took."""
    from lib import alignment
    from tests.test_alignment import trained_pair

    whole = solutions(path)
    pair = trained_pair(whole, 6000, 6000)
    began = time.perf_counter()
    cut = [[alignment.tokens(tokenizer, text) for tokenizer in pair] for text in whole]
    cutting = time.perf_counter() - began
    rows = []
    for method in alignment.METHODS[:3]:
        began = time.perf_counter()
        for left, right in cut:
            alignment.align(left, right, method)
        aligning = time.perf_counter() - began
        rows += alignment.compare(cut, (method,))
        rows[-1] |= {"seconds to cut": round(cutting, 2), "seconds to align": round(aligning, 2)}
    return rows


def tokenizers():
    """(byte-level BPE, a unigram model as of T5), trained on the spot."""
    from tests.test_alignment import trained_pair

    return trained_pair(texts(), 600, 600)


def pair_of(length: int):
    """(teacher's tokens, student's) of a text with so many of the teacher's."""
    from lib.alignment import tokens

    teacher, student = tokenizers()
    whole = " ".join(texts())
    ends = [end for _, end in tokens(teacher, whole).spans]
    text = whole[: ends[length - 1]]
    return tokens(teacher, text), tokens(student, text)


def published(left, right) -> list[tuple[int, int]]:
    """The published way, in its own shape."""
    import numpy
    from rapidfuzz.distance import Levenshtein

    from lib.alignment import stripped

    n, m = len(left), len(right)
    total = numpy.zeros((n + 1, m + 1))
    total[0, 1:] = total[1:, 0] = numpy.inf
    for i in range(n):
        for j in range(m):
            total[i + 1, j + 1] = Levenshtein.distance(stripped(left.written[i]), stripped(right.written[j]))
    for i in range(n):
        for j in range(m):
            total[i + 1, j + 1] += min(total[i, j], total[i, j + 1], total[i + 1, j])
    i, j, way = n - 1, m - 1, [(n - 1, m - 1)]
    while i or j:
        step = numpy.argmin((total[i, j], total[i, j + 1], total[i + 1, j]))
        i, j = i - (step != 2), j - (step != 1)
        way.append((int(i), int(j)))
    return way[::-1]


def warped(length: int, bar: int) -> dict:
    """Time warping of one pair of so many tokens."""
    from lib.alignment import align

    left, right = pair_of(length)
    assert list(align(left, right, "dtw").links) == published(left, right)

    def fast() -> None:
        for _ in range(50):
            align(left, right, "dtw")

    value = 50 * ratio(fast, lambda: published(left, right))
    what = f"{len(left)} tokens against {len(right)}, the same path, writings known"
    return entry(f"dtw_{length}_vs_published", value, bar, "NumPy cells and a C edit distance", what)


def dtw_120_vs_published(folder: Path) -> dict:
    """Time warping at 120 tokens."""
    return warped(120, 300)


def dtw_280_vs_published(folder: Path) -> dict:
    """Time warping at 280 tokens."""
    return warped(280, 400)


def offsets_vs_published(folder: Path) -> dict:
    """Exact offsets against the published warping, at 120 tokens."""
    from lib.alignment import align

    left, right = pair_of(120)

    def fast() -> None:
        for _ in range(200):
            align(left, right, "offsets")

    value = 200 * ratio(fast, lambda: published(left, right))
    what = f"{len(left)} tokens against {len(right)}, spans known"
    return entry("offsets_vs_published", value, 1000, "NumPy cells and a C edit distance", what)


def sparse_kl_vs_dense(folder: Path) -> dict:
    """The loss of 240 positions over T5's vocabulary, with its gradient, from 8 tokens each and from whole tables."""
    import torch

    from lib.distillation.training import sparse_kl

    torch.manual_seed(0)
    vocabulary, k = 32_128, 8
    logits = torch.randn(240, vocabulary, requires_grad=True)
    ids = torch.stack([torch.randperm(vocabulary)[:k] for _ in range(240)])
    mass = torch.rand(240, k).softmax(-1)
    tail = torch.zeros(240)
    found = []

    def sparse() -> None:
        logits.grad = None
        loss = sparse_kl(logits, ids, mass, tail).mean()
        loss.backward()
        found[:1] = [loss.item()]

    def dense() -> None:
        """As published: a table of targets is made for every batch."""
        logits.grad = None
        table = torch.zeros(240, vocabulary)
        table.scatter_(1, ids, mass)
        q = logits.softmax(-1)
        loss = (table * (table / (q + 1e-10) + 1e-10).log()).sum(-1).mean()
        loss.backward()
        found[1:] = [loss.item()]

    value = ratio(sparse, dense)
    assert abs(found[0] - found[1]) < 1e-4, found
    size = vocabulary * 4 / (k * (8 + 4) + 4)  # bytes a position: ids, masses, the tail
    what = f"240 positions, {vocabulary:,} tokens, no tail, forward and back; targets {size:,.0f} times smaller"
    return entry("sparse_kl_vs_dense", value, 5, "a table of targets, made and compared", what)


ALL = (dtw_120_vs_published, dtw_280_vs_published, offsets_vs_published, sparse_kl_vs_dense)


if __name__ == "__main__":
    print("\n".join(map(json.dumps, measure(Path(sys.argv[1])))))
