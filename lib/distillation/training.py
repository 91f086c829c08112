"""Training a student on targets of its own vocabulary: the sparse KL divergence, causal or encoder-decoder.

Matching samples and matching distributions are one loss: a sample is a point mass. Knows no alignment
(`lib.distillation.targets`).
"""

import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy
import torch
from transformers import PrinterCallback, Trainer, TrainingArguments

from lib import models, sft, trainers
from lib.distillation import targets, teacher
from lib.distillation.targets import Targets, Vocabularies
from lib.errors import InputError
from lib.problems import Problem, write_jsonl
from lib.prompts import Example


@dataclass(frozen=True)
class Config:
    """The embedded setting. All but `match` as in `lib.sft.Config`; batch_size and steps count the student's texts.

    match  what is matched: "samples" (point masses), or distributions carried over by "dtw", "dtw_normalised"
           (published rule) or "offsets" (chunk-correct rule)
    """

    match: str = "offsets"
    steps: int = 600
    batch_size: int = 32
    accumulation: int = 1
    learning_rate: float = 1e-3
    min_lr_rate: float = 0.0
    warmup_steps: int = 50
    weight_decay: float = 0.01
    adam_beta2: float = 0.98
    max_grad_norm: float = 1.0
    max_length: int = 512
    lora_rank: int = 0
    dropout: float | None = None
    log_steps: int = 20
    valid_problems: int = 200
    dtype: str = "float32"
    device: str = "auto"
    seed: int = 0

    def __post_init__(self):
        models.check_dtype(self.dtype)
        if self.match not in targets.WAYS:
            raise InputError(f"Unknown way of matching {self.match!r}; use {', '.join(targets.WAYS)}.")
        for name in ("steps", "batch_size", "accumulation", "max_length", "log_steps"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}.")
        if self.batch_size % self.accumulation:
            raise InputError(f"batch_size {self.batch_size} is no multiple of accumulation {self.accumulation}.")


def sparse_kl(logits, ids, mass, tail):
    """KL(teacher || student) of every position, in nats, never below 0; (positions).

    logits  (positions, vocabulary) of the student, which alone get a gradient
    ids     (positions, k) tokens with mass (positions, k); entries of no mass are no tokens
    tail    (positions) the mass of all other tokens, compared with all that the student gives them
    With p at the tokens and r in the tail: sum p log(p / q) + r log(r / (1 - sum q)). A tail makes it a divergence of
    two distributions; the published loss leaves it out, and can be negative.
    """
    return SparseKL.apply(logits, ids, mass, tail)


class SparseKL(torch.autograd.Function):
    """`sparse_kl` with its gradient in one table: (m + r) q - p at listed tokens, (m + r - r / rest) q at others; m is
    the mass listed, rest what the student gives the others. A second backward is refused: the first writes over it."""

    @staticmethod
    def forward(ctx, logits, ids, mass, tail):
        ids = torch.where(mass > 0, ids, ids[:, :1])  # rows that are filled up name their first token again
        table = logits.softmax(-1)
        q = table.gather(1, ids)
        logq = q.log() if q.all() else logits.gather(1, ids) - logits.logsumexp(-1, keepdim=True)  # where q is lost
        rest = torch.ones_like(tail)
        if tail.any():  # added up, since 1 - q of a student that is sure is rounding
            rest = table.scatter_(1, ids, 0.0).sum(-1).clamp(min=torch.finfo(table.dtype).tiny)
        whole = mass.sum(-1) + tail
        ctx.save_for_backward(table, ids, whole[:, None] * q - mass, whole - tail / rest)
        known = (torch.special.xlogy(mass, mass) - mass * logq).sum(-1)
        return known + torch.special.xlogy(tail, tail) - tail * rest.log()

    @staticmethod
    def backward(ctx, gradient):
        table, ids, listed, others = ctx.saved_tensors
        first = ids == ids[:, :1]  # one of which is the token's own, the rest fill the row up
        listed = torch.where(first, listed[:, :1], listed)
        table = table.mul_((gradient * others)[:, None])
        return table.scatter_(1, ids, gradient[:, None] * listed), None, None, None


def make_batch(rows: list[dict], pad: int, student=None) -> dict:
    """input_ids, attention_mask, labels (rows, longest), and the targets of all learned positions, row after row:
    ids and mass (positions, widest), tail (positions). An encoder-decoder `student` adds decoder_input_ids."""
    batch = teacher.sft_batch(rows, pad)
    if student is not None and student.config.is_encoder_decoder:
        batch["decoder_input_ids"] = student.prepare_decoder_input_ids_from_labels(batch["labels"])
    found: list[Targets] = [row["targets"] for row in rows]
    width = max(t.ids.shape[1] for t in found)

    def joined(name: str):
        parts = [torch.from_numpy(getattr(t, name)) for t in found]
        return torch.cat([torch.nn.functional.pad(part, (0, width - part.shape[1])) for part in parts])

    batch |= {"ids": joined("ids").long(), "mass": joined("mass")}
    return batch | {"tail": torch.cat([torch.from_numpy(t.tail) for t in found])}


def learned(model, batch: dict):
    """The student's logits (positions, vocabulary) at the positions that have a target, row after row."""
    labels = batch["labels"]
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    if "decoder_input_ids" in batch:
        logits, keep = model(**inputs, decoder_input_ids=batch["decoder_input_ids"]).logits, labels != -100
    else:
        logits, keep = model(**inputs).logits[:, :-1], labels[:, 1:] != -100  # a position tells of the next
    return logits[keep].float()


class Distiller(Trainer):
    """transformers' Trainer with the sparse KL divergence, a mean over all positions of the (accumulated) batch."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.model_accepts_loss_kwargs = True  # the library counts the labels of the whole batch

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        logits = learned(model, inputs)
        found = sparse_kl(logits, inputs["ids"], inputs["mass"], inputs["tail"]).sum()
        found = found / (len(logits) if num_items_in_batch is None else num_items_in_batch)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            found = found * self.accelerator.num_processes  # they all are counted, and their gradients averaged
        return (found, {}) if return_outputs else found

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        with torch.no_grad():
            return self.compute_loss(model, self._prepare_inputs(inputs)).detach(), None, None


def encode(
    config: Config, both: Vocabularies, taught: list[Example], scores: list, own: list[Example], two_sided: bool
) -> list[dict]:
    """{"input_ids", "labels", "targets"} of each of the student's texts `own`, of which the teacher wrote `taught`.

    Texts over max_length are left out, with a printed count. Raises InputError if none is left, if most hold what the
    student cannot write, and if no position of any gets a distribution that was asked for.
    """
    rows = sft.encode_all(both.student, own, "cot", two_sided)
    fits = [max(len(row["input_ids"]), len(row["labels"])) <= config.max_length for row in rows]
    if not any(fits):
        raise InputError(
            f"None of {len(rows)} texts fits into max_length = {config.max_length} tokens; raise it, or give others."
        )
    sft.check_known(both.student, [row for row, fit in zip(rows, fits, strict=True) if fit])
    if not all(fits):
        print(f"left out {fits.count(False)} of {len(fits)} texts: longer than {config.max_length} tokens")
    for place, (row, fit) in enumerate(zip(rows, fits, strict=True)):
        if fit:
            words, target = taught[place].completion, own[place].completion
            row["targets"] = targets.build(config.match, both, words, scores[place], target)
            assert row["targets"].ids.shape[0] == sum(label != -100 for label in row["labels"])
    kept = [row for row, fit in zip(rows, fits, strict=True) if fit]
    if config.match != "samples" and all(set(row["targets"].kinds) == {"point"} for row in kept):
        raise InputError(
            f"No position of {len(kept)} texts gets a distribution by {config.match}: that would be matching samples; "
            "keep annotations, have the teacher write in the student's format, or match by offsets."
        )
    return kept


def coverage(rows: list[dict]) -> dict:
    """{"positions", the share of each of targets.KINDS, and of the positions that have a distribution: "tail", its mean
    mass; "entropy", in nats, the tail taken as one token; "unsure", the share whose likeliest token has less than 0.9}.
    """
    kinds: Counter = Counter()
    tail = entropy = unsure = 0.0
    for row in rows:
        found: Targets = row["targets"]
        kinds.update(found.kinds)
        soft = numpy.array([kind != "point" for kind in found.kinds])
        masses = numpy.concatenate([found.mass, found.tail[:, None]], 1)[soft]
        tail += float(masses[:, -1].sum())
        entropy -= float((masses * numpy.log(numpy.where(masses > 0, masses, 1.0))).sum())
        unsure += int((masses.max(1) < 0.9).sum()) if len(masses) else 0
    n, total = max(1, kinds["soft"] + kinds["chunk"]), sum(kinds.values())
    shares = {kind: kinds[kind] / total for kind in targets.KINDS}
    return {"positions": total, **shares, "tail": tail / n, "entropy": entropy / n, "unsure": unsure / n}


def train(
    config: Config,
    taught: list[Example],
    own: list[Example],
    valid: list[Example],
    scores: str | Path,
    teacher_dir: str | Path,
    student_dir: str | Path,
    out_dir: str | Path,
) -> None:
    """Train the student saved at `student_dir` to write `own`, matching what the teacher found likely.

    taught  the teacher's solutions; own: the same ones as the student is to write them, in the same order
    valid   examples of which the loss is watched, each with its own completion as a point mass
    scores  a directory of `teacher.score` over `taught`; teacher_dir: the teacher, of which only the tokenizer is read
    Resumes from the last complete checkpoint in `out_dir`, on a CPU to the bit. Leaves model/, metrics.jsonl,
    config.json and coverage.json (`coverage`).
    """
    out_dir = Path(out_dir)
    student, tokenizer = models.load_model(str(student_dir), device=config.device, dropout=config.dropout)
    two_sided = student.config.is_encoder_decoder
    both = Vocabularies(models.load_tokenizer(str(teacher_dir)), tokenizer)
    rows = encode(config, both, taught, teacher.read(scores), own, two_sided)
    held_out = sft.encode_all(tokenizer, valid[: config.valid_problems], "cot", two_sided)
    for row in held_out:
        row["targets"] = targets.packed([({label: 1.0}, "point") for label in row["labels"] if label != -100])
    models.seed_everything(config.seed)
    if config.lora_rank:
        from peft import get_peft_model

        student = get_peft_model(student, models.lora_config(student, config.lora_rank))
    args = TrainingArguments(**sft.trainer_arguments(config, out_dir, student.device))
    args._n_gpu = min(args.n_gpu, 1)  # several devices want a process each (torchrun), not DataParallel's threads
    trainer = Distiller(
        model=student,
        args=args,
        train_dataset=rows,
        eval_dataset=held_out,
        data_collator=lambda some: make_batch(some, tokenizer.pad_token_id, student),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(trainers.callbacks(f"student, {config.match}", config.steps))
    trainers.run(trainer, out_dir)
    models.save_model(trainer.model, tokenizer, out_dir / "model")
    write_jsonl(out_dir / "metrics.jsonl", sft.curve(trainer.state.log_history))
    (out_dir / "config.json").write_text(json.dumps(asdict(config), indent=1) + "\n")
    (out_dir / "coverage.json").write_text(json.dumps(coverage(rows), indent=1) + "\n")
    trainers.discard_all(out_dir)


@dataclass(frozen=True)
class StudentConfig:
    """A student before its first lesson: a preset of lib.models with a tokenizer made from the problems, or a model.

    tokenizer  for a preset: "sentence" (as T5 and Llama 2 cut), "bytes" (as GPT-2), or a tokenizer's directory or hub
               id; a model brings its own
    """

    model: str = "llama_tiny"
    tokenizer: str = "sentence"
    vocab_size: int = 500
    dropout: float | None = None
    seed: int = 0


def make_student(config: StudentConfig, problems: list[Problem] | list[Example], out_dir: str | Path) -> None:
    """Leave the student, untrained or as it is given, with its tokenizer in `out_dir`."""
    from lib import prompts
    from lib.tokenization import build_sentence_tokenizer, build_tokenizer

    if config.model not in models.PRESETS:
        model, tokenizer = models.load_model(config.model, dropout=config.dropout)
    else:
        texts = [e.prompt + e.completion for e in prompts.examples(problems[:2000])]
        builders = {"sentence": build_sentence_tokenizer, "bytes": build_tokenizer}
        if config.tokenizer in builders:
            tokenizer = builders[config.tokenizer](texts, config.vocab_size)
        else:
            tokenizer = models.load_tokenizer(config.tokenizer)
        models.seed_everything(config.seed)
        model, _ = models.load_model(config.model, tokenizer, dropout=config.dropout)
    models.save_model(model, tokenizer, Path(out_dir))
