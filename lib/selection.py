"""Choosing one of several samples: by vote, or by a verifier trained to tell right solutions from wrong ones.

self-consistency  the answer that most samples agree on (Wang et al., 2022)
verifier          best of n by an outcome scorer (Cobbe et al., 2021): the model that sampled, with one output a token
                  in place of its vocabulary, trained on right and wrong samples to say at every token of a solution
                  whether it ends right; its score is what it says at the last
"""

import json
import random
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from lib import answers, models, prompts, sft, trainers
from lib.errors import InputError
from lib.problems import Problem, write_jsonl
from lib.progress import Bar
from lib.prompts import Example
from lib.sampling import read_samples
from lib.tokenization import tokenize


@dataclass(frozen=True)
class Config:
    """How the verifier is trained. Names as in `sft.Config`; it starts from the model that sampled."""

    steps: int = 150
    batch_size: int = 32
    learning_rate: float = 5e-4
    warmup_steps: int = 20
    weight_decay: float = 0.01
    max_length: int = 512
    dtype: str = "float32"
    device: str = "auto"
    seed: int = 0


# ----- by vote
def vote(found: list[str | None], weights: list[float] | None = None) -> int | None:
    """The place of the first sample with the winning answer; None where no sample has one.

    found    the answers that the samples state (None: no answer, no vote); answers that `answers.same` calls equal
             vote together, so 18 and 18.0 do
    weights  of each vote, 1 by default; of equal sums the answer that came first wins
    """
    groups: list[tuple[str, list[int]]] = []
    for place, answer in enumerate(found):
        if answer is not None:
            places = next((places for other, places in groups if answers.same(other, answer)), None)
            if places is None:
                groups.append((answer, [place]))
            else:
                places.append(place)
    weights = [1.0] * len(found) if weights is None else weights
    sums = [sum(weights[place] for place in places) for _, places in groups]
    return groups[sums.index(max(sums))][1][0] if groups else None


# ----- by verifier
def encode(tokenizer, example: Example, text: str, right: bool = False) -> dict[str, list]:
    """Ids of prompt and solution (with its end), and labels: 1.0 or 0.0 at every token of the solution, -100 before."""
    (prompt,) = tokenize(tokenizer, [example.prompt])
    ids = tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    return {"input_ids": prompt + ids, "labels": [-100.0] * len(prompt) + [float(right)] * len(ids)}


def collate(pad: int, rows: list[dict]) -> dict:
    """Rows padded on the right: input_ids, attention_mask, labels, each (batch, length)."""
    import torch

    width = max(len(row["input_ids"]) for row in rows)
    gaps = [width - len(row["input_ids"]) for row in rows]
    pairs = list(zip(rows, gaps, strict=True))
    return {
        "input_ids": torch.tensor([row["input_ids"] + [pad] * gap for row, gap in pairs]),
        "attention_mask": torch.tensor([[1] * (width - gap) + [0] * gap for gap in gaps]),
        "labels": torch.tensor([row["labels"] + [-100.0] * gap for row, gap in pairs]),
    }


def loss(outputs, labels, num_items_in_batch=None):
    """Mean binary cross-entropy over the tokens of solutions; logits (batch, length, 1), labels (batch, length)."""
    from torch.nn.functional import binary_cross_entropy_with_logits

    on = labels != -100
    total = binary_cross_entropy_with_logits(outputs.logits[..., 0][on].float(), labels[on], reduction="sum")
    return total / (on.sum() if num_items_in_batch is None else num_items_in_batch)


def make_rows(config: Config, tokenizer, problems, samples: dict[str, list[dict]]) -> list[dict]:
    """As many right as wrong solutions, each text of a problem once, shuffled. Raises InputError without both."""
    sides: dict[bool, list[dict]] = {True: [], False: []}
    for example in prompts.examples(problems):
        texts = {s["text"]: s["correct"] for s in samples.get(example.problem.id, []) if s["finished"]}
        for text, right in texts.items():
            sides[right].append(encode(tokenizer, example, text, right))
    sides = {side: [row for row in rows if len(row["input_ids"]) <= config.max_length] for side, rows in sides.items()}
    size = min(map(len, sides.values()))
    if not size:
        raise InputError(
            f"A verifier learns from right and wrong solutions, and there are {len(sides[True])} and "
            f"{len(sides[False])}; draw more samples, ask other problems, or set verifier_steps to 0."
        )
    rng = random.Random(config.seed)
    return rng.sample([row for rows in sides.values() for row in rng.sample(rows, size)], 2 * size)


def load_verifier(model: str | Path, dtype: str = "float32", device: str = "auto", trained: bool = False):
    """(verifier, tokenizer): a model directory or hub id with one output a token, a new one where it has none.

    Raises InputError, where it is to be a `trained` one, for a model that would get a new output.
    """
    from transformers import AutoModelForTokenClassification
    from transformers.utils import logging

    models.quiet()
    place = models.pick_device(device)
    if (Path(model) / "adapter_config.json").exists():
        raise InputError(f"{model}: a verifier starts from a whole model, not from an adapter; merge it first.")
    tokenizer = models.load_tokenizer(str(model))
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # a new head is no news
    try:
        network, report = AutoModelForTokenClassification.from_pretrained(
            model, num_labels=1, dtype=models.pick_dtype(dtype), output_loading_info=True
        )
    except Exception as error:  # the library raises many kinds for a broken file
        raise models.not_found(str(model), error) from None
    finally:
        logging.set_verbosity(verbosity)
    if trained and report["missing_keys"]:
        raise InputError(f"{model} is no verifier (it has no output that scores); train one from it first.")
    return network.to(place), tokenizer


def train(config: Config, problems: list[Problem] | list[Example], samples_dir, model: str | Path, out_dir) -> None:
    """Train a verifier on the samples that `sampling.draw` left in `samples_dir` for `problems`.

    Starts from `model`, best the one that sampled. Resumes from the last complete checkpoint in `out_dir`; leaves
    model/, metrics.jsonl and config.json there.
    """
    from transformers import PrinterCallback, Trainer, TrainingArguments

    out_dir = Path(out_dir)
    models.seed_everything(config.seed)
    network, tokenizer = load_verifier(model, device=config.device)
    rows = make_rows(config, tokenizer, problems, read_samples(samples_dir))
    held = max(1, min(100, len(rows) // 10))
    settings = sft.Config(
        **{key: value for key, value in asdict(config).items() if key != "max_length"},
    )
    trainer = Trainer(
        model=network,
        args=TrainingArguments(**sft.trainer_arguments(settings, out_dir, network.device)),
        train_dataset=rows[held:],
        eval_dataset=rows[:held],
        processing_class=tokenizer,
        data_collator=partial(collate, tokenizer.pad_token_id),
        compute_loss_func=loss,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(trainers.callbacks("verifier", config.steps))
    trainers.run(trainer, out_dir)
    models.save_model(trainer.model, tokenizer, out_dir / "model")
    write_jsonl(out_dir / "metrics.jsonl", sft.curve(trainer.state.log_history))
    (out_dir / "config.json").write_text(json.dumps(asdict(config), indent=1) + "\n")
    trainers.discard_all(out_dir)


def score(network, tokenizer, examples: list[Example], texts: list[str], batch_size: int = 64) -> list[float]:
    """The verifier's probability that each text (a whole solution of its example) is right."""
    import torch

    rows = [encode(tokenizer, example, text) for example, text in zip(examples, texts, strict=True)]
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]["input_ids"]))
    scores = [0.0] * len(rows)
    network.eval()
    with torch.inference_mode(), Bar("scoring", len(rows)) as bar:
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            batch = collate(tokenizer.pad_token_id, [rows[i] for i in places])
            batch = {key: value.to(network.device) for key, value in batch.items()}
            logits = network(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[..., 0]
            last = batch["attention_mask"].sum(-1, keepdim=True) - 1  # (batch, 1)
            for place, value in zip(places, logits.gather(1, last)[:, 0].float().sigmoid().tolist(), strict=True):
                scores[place] = value
            bar.update(len(places))
    return scores


def rate(config: Config, problems: list[Problem] | list[Example], samples_dir, verifier: str | Path, out_dir) -> None:
    """Score every sample of `samples_dir` for `problems`; one that came to no end gets 0.

    scores.jsonl  one line a problem: id, scores, in the order of its samples, and the seconds that they took together
    """
    network, tokenizer = load_verifier(verifier, config.dtype, config.device, trained=True)
    asked, samples = prompts.examples(problems), read_samples(samples_dir)
    pairs = [(e, s) for e in asked for s in samples[e.problem.id]]
    began = time.perf_counter()
    values = score(network, tokenizer, [e for e, _ in pairs], [s["text"] for _, s in pairs])
    seconds = (time.perf_counter() - began) / max(1, len(pairs))
    scores: dict[str, list[float]] = {e.problem.id: [] for e in asked}
    for (e, s), value in zip(pairs, values, strict=True):
        scores[e.problem.id].append(value if s["finished"] else 0.0)
    write_jsonl(
        Path(out_dir) / "scores.jsonl",
        [{"id": name, "scores": row, "seconds": seconds * len(row)} for name, row in scores.items()],
    )


def read_scores(directory: str | Path) -> dict[str, list[tuple[float, float]]]:
    """{problem id: (score, seconds it took) of each of its samples} of a finished rating."""
    lines = (Path(directory) / "scores.jsonl").read_text().splitlines()
    return {
        line["id"]: [(score, line["seconds"] / len(line["scores"])) for score in line["scores"]]
        for line in map(json.loads, lines)
    }
