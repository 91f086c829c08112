"""Train a model through a curriculum of continuous thoughts, on transformers' own Trainer.

The Trainer brings precision, accumulation, checkpoints, resumption and DDP; ours are the batches, made at each step for
the stage the curriculum stands at, and the decision when the next one begins.
"""

import json
import random
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lib import models, trainers
from lib.coconut import schedule, sequences
from lib.coconut.config import Config
from lib.errors import InputError
from lib.problems import Problem, write_jsonl
from lib.prompts import prompt, solution
from lib.tokenization import build_tokenizer

CURRICULUM = "curriculum.json"


@dataclass
class Curriculum:
    """Where a training stands: its stages, the place in them, and the curve so far."""

    config: Config
    known: list[schedule.Stage]
    encoded: list[dict]
    markers: tuple | None
    pad_id: int
    at: int = 0
    curve: list[dict] = field(default_factory=list)

    @property
    def stage(self) -> schedule.Stage:
        """The stage that the training stands at."""
        return self.known[self.at]

    def batch(self, problems: list[int], step: int) -> dict:
        """The batch of these problems at a step; which rows are of another stage depends on seed, step and problem."""
        rows = []
        for i in problems:
            encoded, rng = self.encoded[i], random.Random(f"{self.config.seed} {step} {i}")
            stage = schedule.draw(self.config, self.known, self.at, len(encoded["steps"]), rng)
            rows.append(sequences.row(encoded, *schedule.plan(self.config, stage, len(encoded["steps"])), self.markers))
        return sequences.make_batch(rows, self.pad_id)

    def go_on(self, step: int, epoch: float, right: float | None) -> bool:
        """Move to the next stage if it is time; `right`: share of validation problems written out right, if known."""
        config, before = self.config, self.at
        if config.epochs_per_stage and config.has_curriculum:
            self.at = schedule.stage_of_epoch(config, self.known, config.first_epoch + int(epoch + 1e-6))
        elif self.at < len(self.known) - 1:
            done = config.switch_at and right is not None and right >= config.switch_at
            self.at += bool(done or step >= schedule.deadline(config, self.known, self.at))
        return self.at != before

    def save(self, directory: Path) -> None:
        """Into a checkpoint."""
        state = {"at": self.at, "curve": self.curve}
        (directory / CURRICULUM).write_text(json.dumps(state))

    def restore(self, directory: Path) -> None:
        """From a checkpoint."""
        state = json.loads((directory / CURRICULUM).read_text())
        self.at, self.curve = state["at"], state["curve"]


def check_model(name: str) -> None:
    """Raise InputError where there is no such model, or where it is an adapter or an encoder-decoder."""
    if (Path(name) / "adapter_config.json").exists():
        raise InputError(f"{name} is an adapter; merge it into its base model first, then train from that.")
    if models.is_encoder_decoder(name):
        raise InputError(f"Continuous thoughts need a causal language model, and {name!r} is an encoder-decoder.")


def load(config: Config, problems: list[Problem]):
    """(model, tokenizer): a preset gets a tokenizer built from the problems, anything else brings its own."""
    check_model(config.model)
    if config.model not in models.PRESETS:
        return models.load_model(config.model, dtype="float32", device=config.device, dropout=config.dropout)
    tokenizer = build_tokenizer([prompt(p) + solution(p) for p in problems[:2000]], config.vocab_size)
    models.seed_everything(config.seed)
    return models.load_model(config.model, tokenizer, device=config.device, dropout=config.dropout)


def written_right(thinker, curriculum: Curriculum, encoded: list[dict], batch_size: int = 256) -> float:
    """The share of problems whose rest (steps still written, answer, end) greedy decoding would write letter by letter.

    One forward pass over the right text tells: each of its tokens must be the likeliest after those before it.
    """
    import torch

    was_training, right = thinker.training, 0
    thinker.eval()
    with torch.inference_mode():
        for start in range(0, len(encoded), batch_size):
            rows = [
                sequences.row(
                    e, *schedule.plan(curriculum.config, curriculum.stage, len(e["steps"])), curriculum.markers
                )
                for e in encoded[start : start + batch_size]
            ]
            batch = to_device(sequences.make_batch(rows, curriculum.pad_id), thinker.device)
            asked = batch["labels"][:, 1:] != -100
            best = thinker.head(thinker.hidden(batch)[:, :-1][asked]).argmax(-1)
            wrong = torch.zeros_like(asked)
            wrong[asked] = best != batch["labels"][:, 1:][asked]
            right += (~wrong.any(1)).sum().item()
    thinker.train(was_training)
    return right / len(encoded)


def to_device(batch: dict, device) -> dict:
    """A batch with its tensors on `device`."""
    return {name: value.to(device) if hasattr(value, "to") else value for name, value in batch.items()}


def arguments(config: Config, out_dir: Path, device, steps: int) -> dict:
    """The Trainer's settings. The rate: warm-up, constant, and down to 0 in the last decay_steps."""
    decay = min(config.decay_steps, steps // 2)
    every = max(config.check_steps, -(-steps // 10 // config.check_steps) * config.check_steps)
    return trainers.settings(config, out_dir, device) | dict(
        max_steps=steps,
        learning_rate=config.learning_rate,
        lr_scheduler_type="warmup_stable_decay" if decay else "constant_with_warmup",
        lr_scheduler_kwargs={"num_decay_steps": decay, "decay_type": "linear"} if decay else {},
        warmup_steps=min(config.warmup_steps, steps // 2),
        weight_decay=config.weight_decay,
        adam_beta1=config.adam_beta1,
        adam_beta2=config.adam_beta2,
        max_grad_norm=config.max_grad_norm,
        logging_steps=config.check_steps,
        save_steps=every,
        label_names=[],
    )


def train(config: Config, train: list[Problem], valid: list[Problem], out_dir: str | Path) -> None:
    """Train config.method on `train`; stages end by what the first `valid_problems` of `valid` show.

    Resumes from the last complete checkpoint in `out_dir`; on a CPU an interrupted run ends with the same weights, bit
    for bit, as an undisturbed one. Leaves in `out_dir`:
      model/         the language model, its tokenizer, and how it thinks (`engine.load` reads them)
      metrics.jsonl  every check_steps: step, stage, thoughts, loss, right (share of validation problems written right)
      config.json    the config
    """
    from lib.coconut.trainer import make_trainer

    out_dir = Path(out_dir)
    model, tokenizer = load(config, train)
    encoded = sequences.keep_short(config, sequences.encode(config, tokenizer, train))
    held_out = sequences.encode(config, tokenizer, valid[: config.valid_problems])
    held_out = sequences.keep_short(config, held_out, needed=False)
    known = schedule.stages(config, max(len(e["steps"]) for e in encoded))
    if config.steps and config.steps < len(known):
        raise InputError(f"{config.steps} steps are too few for {len(known)} stages; give at least one a stage.")
    models.seed_everything(config.seed)
    trainer, curriculum = make_trainer(config, model, tokenizer, encoded, held_out, known, out_dir)
    checkpoint = trainers.last_checkpoint(out_dir)
    if checkpoint:
        curriculum.restore(checkpoint)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    trainer.thinker.save(out_dir / "model", tokenizer, config, curriculum.stage)
    write_jsonl(out_dir / "metrics.jsonl", curriculum.curve)
    (out_dir / "config.json").write_text(json.dumps(asdict(config), indent=1) + "\n")
    trainers.discard_all(out_dir)
