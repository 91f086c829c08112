"""DoT-MP: one thought a pass. What was thought so far is part of the clean source; the canvas holds the next thought.

    pass 1   source  v3 + n4 * n2 ? <sep>              canvas  n4 * n2 = r3 ⏎ <pad> <pad>
    pass 2   source  v3 + n4 * n2 ? n4 * n2 = r3 ⏎ <sep>   canvas  v3 + r3 = r1 ⏎ #### r1 <eos>

The last step and the answer are one thought, the end comes after it alone, and a shorter thought is followed by
padding, which is learned: it says where a thought ends. Knows no loss and no sampler (lib.dot.losses, .samplers).
"""

import random
from dataclasses import replace

from lib.dot import sequences
from lib.problems import Problem
from lib.prompts import solution


def thoughts(problem: Problem) -> list[str]:
    """The steps of a solution, each with its line break; the answer's line belongs to the last step's thought."""
    last = solution(replace(problem, steps=problem.steps[-1:]))
    return [*(f"{step}\n" for step in problem.steps[:-1]), last]


def encode(tokenizer, problems: list[Problem]) -> list[dict]:
    """[{"source", "target", "thoughts"}]: ids of the question and the separator; of its thoughts in a row; of each.

    The last thought has the end.
    """
    parts = [thoughts(p) for p in problems]
    asked = sequences.sources(tokenizer, [p.question for p in problems])
    flat = [thought for own in parts for thought in own]
    ids = iter(tokenizer(flat, add_special_tokens=False)["input_ids"] if flat else [])
    encoded = []
    for source, own in zip(asked, parts, strict=True):
        written = [next(ids) for _ in own]
        written[-1] = [*written[-1], tokenizer.eos_token_id]
        target = [token for thought in written for token in thought]
        encoded.append({"source": source, "target": target, "thoughts": written})
    return encoded


def canvas(encoded: list[dict]) -> int:
    """Positions that the longest thought needs."""
    return max(len(thought) for e in encoded for thought in e["thoughts"])


def row(encoded: dict, i: int, both: bool = False) -> dict[str, list[int]]:
    """{"source", "target"} of pass i of one problem. both: coupled, the next thought stands behind it, noised too."""
    own, (*question, sep) = encoded["thoughts"], encoded["source"]
    before = [token for thought in own[:i] for token in thought]
    target = [*own[i], sep, *own[i + 1]] if both else own[i]
    return {"source": [*question, *before, sep], "target": target}


class Rows:
    """`sequences.Rows` for thoughts: which thought of a problem is learned is drawn anew each time it is asked for.

    coupled  how often (of the rows that have a next thought) two thoughts stand on the canvas: the earlier is noised
             too, as it may be wrong when it is the model's own (coupled sampling, Ye et al. 2024)
    """

    def __init__(self, encoded: list[dict], tokenizer, coupled: float = 0.0):
        self.encoded, self.coupled = encoded, coupled
        self.pad_id = tokenizer.pad_token_id

    def __len__(self) -> int:
        return len(self.encoded)

    def batch(self, places, seed: int = 0) -> dict:
        """One row of each problem at `places`, a function of `seed` and them alone; what `sequences.Rows` gives."""
        which, two = random.Random(f"thought {seed}"), random.Random(f"coupled {seed}")
        rows = []
        for place in places.tolist():
            encoded = self.encoded[place]
            i, both = which.randrange(len(encoded["thoughts"])), two.random() < self.coupled
            rows.append(row(encoded, i, both and i + 1 < len(encoded["thoughts"])))
        return sequences.batch(rows, self.pad_id)


def think(ask, tokenizer, sources: list[list[int]], most: int, noise, watch) -> tuple[list, list[int], list[int]]:
    """(ids, calls, passes) of each sample: thought after thought, until one has the end, `most` at most.

    ask      (sources, noise, watch) -> (ids of their canvases, calls of the model for each)
    sources  ids of each question, with the separator, which moves on behind each thought
    noise    each sample's own random numbers (lib.dot.generation.Noise): a sample does not hang on the others
    """
    end, pad, sep = tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.sep_token_id
    written, calls, passes = [[] for _ in sources], [0] * len(sources), [0] * len(sources)
    going = list(range(len(sources)))
    for _ in range(most):
        asked = [[*sources[i][:-1], *written[i], sep] for i in going]
        told = watch and partial_watch(watch, list(going))
        canvases, made = ask(asked, noise.of(going), told)
        ended = set()
        for i, ids, n in zip(going, canvases, made, strict=True):
            thought, ends = cut(ids, end, pad, sep)
            written[i] += thought
            calls[i], passes[i] = calls[i] + n, passes[i] + 1
            ended |= {i} if ends else set()
        going = [i for i in going if i not in ended]
        if not going:
            break
    return written, calls, passes


def partial_watch(watch, going: list[int]):
    """`watch` of some of the samples, told their places among all."""
    return lambda step, rows, ids, sure: watch(step, rows.new_tensor([going[row] for row in rows.tolist()]), ids, sure)


def cut(ids: list[int], eos_id: int, pad_id: int, sep_id: int) -> tuple[list[int], bool]:
    """(the thought on a canvas, is it the last): up to its padding, to a next thought or, with it, its end.

    A next thought, behind a separator, is thought anew: the canvas may have been too short for it.
    """
    while ids and ids[0] == sep_id:
        ids = ids[1:]
    places = [i for i, token in enumerate(ids) if token in (eos_id, pad_id, sep_id)]
    ends = bool(places) and ids[places[0]] == eos_id
    return ids[: places[0] + ends] if places else ids, ends
