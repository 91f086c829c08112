"""The teacher's part: which of its solutions are taught, and how likely it found what at each position of them.

Knows one tokenizer, the teacher's own; what its distributions mean in another's tokens is `lib.distillation.targets`.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy

from lib import answers, models, prompts, rft, sft
from lib.errors import InputError
from lib.problems import Problem
from lib.progress import Bar
from lib.prompts import Example

SHARD = 2048  # examples a file of scores


@dataclass(frozen=True)
class Config:
    """How a teacher is asked for its distributions.

    top_k         the likeliest tokens kept at each position; what they leave is the tail
    temperature   of the softmax; 1 is the teacher's own distribution, before any narrowing by top-p or top-k
    batch_tokens  positions of a batch, prompts and solutions together
    """

    top_k: int = 8
    temperature: float = 1.0
    batch_tokens: int = 8192
    dtype: str = "float32"
    device: str = "auto"

    def __post_init__(self):
        models.check_dtype(self.dtype)
        if self.top_k < 1 or self.batch_tokens < 1:
            raise InputError("top_k and batch_tokens must be at least 1.")
        if not self.temperature > 0:
            raise InputError(f"temperature must be above 0, not {self.temperature}.")


@dataclass(frozen=True)
class Scored:
    """A teacher's view of one of its solutions: arrays of one row a position, the end of the sequence included.

    ids     (length) what stands there
    logps   (length) its log-probability, in nats
    top     (length, k) the likeliest tokens, the likeliest first
    top_logps  (length, k) their log-probabilities
    """

    ids: numpy.ndarray
    logps: numpy.ndarray
    top: numpy.ndarray
    top_logps: numpy.ndarray


def solutions(
    asked: list[Problem] | list[Example], samples: dict[str, list[dict]], per_problem: int, only_correct: bool = True
) -> tuple[list[Example], dict[str, int]]:
    """(solutions to teach, what became of all samples): at most so many different ones of each problem, in order.

    samples       by problem id (`sampling.read_samples`); the authors, too, taught what ended in the right answer
    only_correct  False teaches wrong answers, too; an unfinished text never is
    In one of the four formats a text ends with the line that states the answer: what a model that was never taught to
    stop writes after it is cut off. Raises InputError where nothing is left.
    """
    found, fates = [], dict.fromkeys(("taught", "unfinished", "wrong answer", "known", "enough"), 0)
    for example in prompts.examples(asked):
        texts: list[str] = []
        for sample in samples.get(example.problem.id, []):
            text = ended(sample, example.form)
            if text is None:
                fates["unfinished"] += 1
            elif only_correct and not answers.is_correct(example.problem, text):
                fates["wrong answer"] += 1
            elif text in texts:
                fates["known"] += 1
            elif len(texts) == per_problem:
                fates["enough"] += 1
            else:
                texts.append(text)
                fates["taught"] += 1
        found += [Example(example.problem, example.prompt, text, example.form) for text in texts]
    if not found:
        raise InputError(f"The teacher gave no solution to teach ({fates}); use a better one, or more samples.")
    return found, fates


def ended(sample: dict, form: str) -> str | None:
    """The text of a sample up to its end, or in one of the four formats to the line of its answer; None without one."""
    text = sample.get("written", sample["text"])
    if form not in prompts.FORMATS:
        return text if sample["finished"] else None
    stated = answers.STATED.search(text)
    if stated is None:
        return None
    before, line = text[: stated.end()], text[stated.end() :].split("\n")[0]
    return (before + line).rstrip() if line.strip() else None


def score(config: Config, taught: list[Example], model: str | Path, out_dir: str | Path) -> None:
    """The teacher's distributions over its own solutions, prompt and completion of each example.

    Of a solution in one of the four formats, which was cut where it stated its answer, the end is certain.
    Leaves scores-00000.safetensors, and one more for every SHARD examples: lengths (examples), and of all positions,
    one after another: ids, logps, top, top_logps (`read`). Shards that are there are not made again. A vocabulary
    smaller than top_k gives as many as it has. Raises InputError for a text that the teacher cannot read whole.
    """
    import torch
    from safetensors.numpy import save_file

    language_model, tokenizer = models.load_model(str(model), dtype=config.dtype, device=config.device)
    language_model.eval()
    rows = sft.encode_all(tokenizer, taught, "cot", language_model.config.is_encoder_decoder)
    check_lengths(language_model.config, rows)
    with torch.inference_mode(), Bar("teacher's distributions", len(rows)) as bar:
        for start in range(0, len(rows), SHARD):
            some, path = rows[start : start + SHARD], Path(out_dir) / f"scores-{start // SHARD:05d}.safetensors"
            if not path.exists():
                forms = [e.form for e in taught[start : start + SHARD]]
                save_file(scored_shard(config, language_model, some, forms, tokenizer.pad_token_id), f"{path}.partial")
                os.replace(f"{path}.partial", path)
            bar.update(len(some))


def check_lengths(config, rows: list[dict]) -> None:
    """Raise InputError for an empty prompt, or a text of more positions than the model has."""
    if not config.is_encoder_decoder and any(row["labels"][0] != -100 for row in rows):
        raise InputError("A solution without a prompt cannot be scored: nothing stands before its first token.")
    most, longest = getattr(config, "max_position_embeddings", None), max(len(row["input_ids"]) for row in rows)
    if most and longest > most:
        raise InputError(
            f"A prompt with its solution has {longest} tokens, and the teacher reads {most}; leave it out."
        )


def scored_shard(config: Config, model, rows: list[dict], forms: list[str], pad: int) -> dict:
    """The arrays of one file of `score`."""
    found: dict[int, tuple] = {}
    for places in batches(rows, config.batch_tokens):
        for place, arrays in zip(places, distributions(config, model, [rows[i] for i in places], pad), strict=True):
            if forms[place] in prompts.FORMATS:
                end_certainly(*arrays)
            found[place] = arrays
    parts = [found[i] for i in range(len(rows))]
    names = ("ids", "logps", "top", "top_logps")
    arrays = {name: numpy.concatenate([part[at] for part in parts]) for at, name in enumerate(names)}
    return arrays | {"lengths": numpy.array([len(part[0]) for part in parts], numpy.int32)}


def batches(rows: list[dict], budget: int) -> list[list[int]]:
    """Places of rows, long ones first, in batches of at most `budget` positions (one row at least)."""
    sizes = [max(len(row["input_ids"]), len(row["labels"])) for row in rows]
    found: list[list[int]] = []
    for place in sorted(range(len(rows)), key=lambda i: (-sizes[i], i)):
        if not found or (len(found[-1]) + 1) * sizes[found[-1][0]] > budget:
            found.append([])
        found[-1].append(place)
    return found


def distributions(config: Config, model, rows: list[dict], pad: int) -> list[tuple]:
    """Of each row: (ids, logps, top, top_logps), arrays of one row a learned position."""
    import torch

    batch = {key: value.to(model.device) for key, value in sft_batch(rows, pad).items()}
    labels, two_sided = batch["labels"], model.config.is_encoder_decoder
    if two_sided:
        batch["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(labels)
    output = model(**{key: value for key, value in batch.items() if key != "labels"})
    logits = output.logits if two_sided else output.logits[:, :-1]
    wanted = labels if two_sided else labels[:, 1:]  # a position tells of the next
    keep = wanted != -100
    logps = (logits[keep].float() / config.temperature).log_softmax(-1)  # (positions, vocabulary)
    ids = wanted[keep]
    best = logps.topk(min(config.top_k, logps.shape[-1]))
    sizes = keep.sum(1).tolist()
    own = logps.gather(1, ids[:, None])[:, 0]
    parts = [part.cpu() for part in (ids.to(torch.int32), own, best.indices.to(torch.int32), best.values)]
    return list(zip(*([each.numpy() for each in part.split(sizes)] for part in parts), strict=True))


def end_certainly(ids, logps, top, top_logps) -> None:
    """Make the last position's token, the end of the sequence, certain."""
    top[-1, 0], top_logps[-1], logps[-1] = ids[-1], -numpy.inf, 0.0
    top_logps[-1, 0] = 0.0


def sft_batch(rows: list[dict], pad: int) -> dict:
    """input_ids, attention_mask and labels of rows as `sft.encode` makes them, padded on the right."""
    import torch

    def padded(sequences: list[list[int]], value: int):
        width = max(map(len, sequences))
        return torch.tensor([[*ids, *[value] * (width - len(ids))] for ids in sequences])

    return {
        "input_ids": padded([row["input_ids"] for row in rows], pad),
        "attention_mask": padded([[1] * len(row["input_ids"]) for row in rows], 0),
        "labels": padded([row["labels"] for row in rows], -100),
    }


def read(directory: str | Path) -> list[Scored]:
    """What `score` left, one for each example."""
    from safetensors.numpy import load_file

    found = []
    for path in sorted(Path(directory).glob("scores-*.safetensors")):
        arrays = load_file(path)
        ends = numpy.cumsum(arrays["lengths"])[:-1]
        parts = [numpy.split(arrays[name], ends) for name in ("ids", "logps", "top", "top_logps")]
        found += [Scored(*each) for each in zip(*parts, strict=True)]
    return found


def check_plan(ways: list[str], tokenizers: list[str], ratios: list[float], models_of_03: list[str], own: str) -> None:
    """Raise InputError, with the parameter's name, where a plan of 08 can't be carried out.

    models_of_03  what the stage before left; own: the one that is to teach, empty where another teacher is named
    """
    wrong = {
        "ways must be among samples, dtw, dtw_normalised, offsets (gold is a parameter of its own)": not set(ways)
        <= {"samples", "dtw", "dtw_normalised", "offsets"},
        "tokenizers wants two names; an empty one is the teacher's or the student's": len(tokenizers) != 2,
        f"ratios wants {len(prompts.FORMATS)} numbers, for {', '.join(prompts.FORMATS)}": len(ratios)
        != len(prompts.FORMATS),
        f"03 has no model {own}; add the task to 03.tasks, or name a teacher": bool(own) and own not in models_of_03,
    }
    for sentence, found in wrong.items():
        if found:
            raise InputError(f"These settings do not go together: {sentence}.")


def in_form(
    problems: list[Problem], form: str, pool: list[Problem], n_shots: int = 0, annotated: bool = True
) -> list[Example]:
    """Problems with their own solutions in `form`: "canonical", as 03 asks, or one of the four formats."""
    if form == "canonical":
        return [Example(p, prompts.prompt(p), prompts.solution(p), form) for p in problems]
    if form not in prompts.FORMATS:
        raise InputError(f"Unknown form {form!r}; use canonical, {', '.join(prompts.FORMATS)}.")
    return [prompts.written(p, pool, form, n_shots, annotated=annotated) for p in problems]


def steps_of(text: str) -> str:
    """A solution without its answer line: what it shares with the same solution in another format."""
    return answers.chain(text).strip()


def in_students_formats(
    taught: list[Example],
    pool: list[Problem],
    ratios: list[float],
    n_shots: int,
    seed: int = 0,
    annotated: bool = True,
) -> list[Example]:
    """Every taught solution in one of the four formats, in stated shares (`prompts.mixture`); its problem's id says
    which solution of the problem it is, the problem's own steps are the teacher's. Shares of 0 alone: as they are."""
    if len(ratios) == len(prompts.FORMATS) and not any(ratios):
        return taught
    own = [rft.as_problem(e.problem, e.completion, number) for number, e in enumerate(taught)]
    return prompts.mixture(own, pool, ratios, n_shots, seed, annotated)
