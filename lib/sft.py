"""Supervised fine-tuning on worked solutions: chain of thought, or the answer alone.

Causal models train through TRL's SFTTrainer, encoder-decoder models (which TRL no longer trains) through transformers'
Seq2SeqTrainer. The loss is the mean negative log-likelihood of the completion's tokens, the end-of-sequence token
included and the prompt's excluded.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from lib import models, prompts, trainers
from lib.errors import InputError
from lib.problems import Problem, write_jsonl
from lib.prompts import Example
from lib.tokenization import TURNS, build_tokenizer, build_word_tokenizer, tokenize


@dataclass(frozen=True)
class Config:
    """The embedded setting: a small model from scratch on a laptop CPU.

    model          a preset of lib.models (trained from scratch), a model directory or a hub id (fine-tuned)
    style          what is learned: "cot" (steps and answer) or "answer_only"
    steps          optimizer steps, each on batch_size problems
    accumulation   forward passes a step; batch_size must be a multiple of it
    learning_rate  peak, reached after warmup_steps and brought down along a cosine to min_lr_rate of itself
    max_length     longest prompt with completion, in tokens; longer problems are left out and counted
    lora_rank      0 trains every weight, else a LoRA adapter of this rank on every linear layer; lora_alpha: its scale
                   times the rank, 0 is twice the rank; max_adapter_mb: refuse a larger adapter, 0 is no limit
    dropout        every rate of dropout in the model's config; None leaves them as they are
    words          a preset's tokens are the words and digits of the problems, as a diffusion model's are (lib.dot);
                   digits: each digit is one of them
    log_steps      steps between two points of the curve; a checkpoint comes every tenth of the run, validation every
                   quarter
    """

    model: str = "llama_tiny"
    style: str = "cot"
    steps: int = 800
    batch_size: int = 32
    accumulation: int = 1
    learning_rate: float = 1e-3
    min_lr_rate: float = 0.0
    warmup_steps: int = 50
    weight_decay: float = 0.01
    adam_beta2: float = 0.98
    max_grad_norm: float = 1.0
    max_length: int = 512
    vocab_size: int = 1024
    lora_rank: int = 0
    lora_alpha: int = 0
    max_adapter_mb: float = 0.0
    dropout: float | None = None
    words: bool = False
    digits: bool = True
    log_steps: int = 20
    valid_problems: int = 200
    dtype: str = "float32"
    device: str = "auto"
    seed: int = 0

    def __post_init__(self):
        models.check_dtype(self.dtype)
        if self.style not in ("cot", "answer_only"):
            raise InputError(f"Unknown style {self.style!r}; use cot or answer_only.")
        for name in ("steps", "batch_size", "accumulation", "max_length", "log_steps"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}.")
        if self.batch_size % self.accumulation:
            raise InputError(f"batch_size {self.batch_size} is no multiple of accumulation {self.accumulation}.")


def encode(tokenizer, problem: Problem | Example, style: str, encoder_decoder: bool = False) -> dict[str, list[int]]:
    """Token ids and labels of one problem (written in `style`, unless it is an Example already).

    Labels are -100 where no loss is taken.

    Prompt and completion are tokenised apart, exactly as at generation, so no token straddles their border.
    Causal: input_ids = prompt + completion + EOS, labels = -100 for the prompt and the ids after it (the model shifts).
    Encoder-decoder: input_ids = prompt, labels = completion + EOS.
    """
    return encode_all(tokenizer, [problem], style, encoder_decoder)[0]


def encode_all(
    tokenizer, problems: list[Problem] | list[Example], style: str, encoder_decoder: bool = False
) -> list[dict]:
    """`encode` for many problems at once, which a fast tokenizer does several times faster."""
    examples = prompts.examples(problems, style)
    asked = tokenize(tokenizer, [e.prompt for e in examples])
    written = tokenizer([e.completion for e in examples], add_special_tokens=False)["input_ids"]
    rows = []
    for prompt, completion in zip(asked, written, strict=True):
        completion = [*completion, tokenizer.eos_token_id]
        if encoder_decoder:
            rows.append({"input_ids": prompt, "labels": completion})
        else:
            rows.append({"input_ids": prompt + completion, "labels": [-100] * len(prompt) + completion})
    return rows


def make_dataset(config: Config, tokenizer, problems: list[Problem] | list[Example], encoder_decoder: bool = False):
    """A `datasets.Dataset` of encoded problems; problems over max_length are left out, with a printed count.

    Raises InputError if none is left.
    """
    from datasets import Dataset

    rows = encode_all(tokenizer, problems, config.style, encoder_decoder) if problems else []
    kept = [row for row in rows if max(len(row["input_ids"]), len(row["labels"])) <= config.max_length]
    if not kept:
        raise InputError(
            f"None of {len(rows)} problems fits into max_length = {config.max_length} tokens; raise it, or give more."
        )
    if len(kept) < len(rows):
        print(f"left out {len(rows) - len(kept)} of {len(rows)} problems: longer than {config.max_length} tokens")
    check_known(tokenizer, kept)
    return Dataset.from_dict({key: [row[key] for row in kept] for key in ("input_ids", "labels")})


def check_known(tokenizer, rows: list[dict]) -> None:
    """Raise InputError where most of the solutions hold what the tokenizer does not know."""
    unknown = sum(tokenizer.unk_token_id in row["labels"] for row in rows) if tokenizer.unk_token_id is not None else 0
    if unknown > len(rows) / 2:
        raise InputError(
            f"{unknown} of {len(rows)} solutions hold characters that the model's tokenizer does not know; write "
            "them in another form (T5 has no < and no line break: form t5), or use another model."
        )


def load(config: Config, problems: list[Problem] | list[Example]):
    """(model, tokenizer): a preset gets a tokenizer built from the problems, anything else brings its own."""
    if (Path(config.model) / "adapter_config.json").exists():
        raise InputError(f"{config.model} is an adapter; merge it into its base model first, then train from that.")
    if config.model not in models.PRESETS:
        full = "float32" if config.lora_rank == 0 else config.dtype  # full training keeps float32 master weights
        return models.load_model(config.model, dtype=full, device=config.device, dropout=config.dropout)
    if config.lora_rank:
        raise InputError(
            f"LoRA adapts a trained model, and {config.model} starts from scratch; use lora_rank 0 or a trained model."
        )
    texts = [e.prompt + e.completion for e in prompts.examples(problems[:2000], "cot")]
    if config.words:
        every = [e.prompt + e.completion for e in prompts.examples(problems, "cot")]
        tokenizer = build_word_tokenizer(every, config.digits)
    else:
        tokenizer = build_tokenizer(texts, config.vocab_size)
        if any(TURNS[0] in text for text in texts):
            tokenizer.chat_template = prompts.CHATML
    models.seed_everything(config.seed)
    return models.load_model(config.model, tokenizer, device=config.device, dropout=config.dropout)


def trainer_arguments(config: Config, out_dir: Path, device) -> dict:
    """The settings that SFTConfig and Seq2SeqTrainingArguments share."""
    tenth = -(-config.steps // 10)
    log_steps = min(config.log_steps, tenth)
    save_steps = -(-tenth // log_steps) * log_steps
    return trainers.settings(config, out_dir, device) | dict(
        max_steps=config.steps,
        per_device_eval_batch_size=config.batch_size // config.accumulation,
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": config.min_lr_rate},
        warmup_steps=min(config.warmup_steps, config.steps // 2),
        weight_decay=config.weight_decay,
        adam_beta2=config.adam_beta2,
        max_grad_norm=config.max_grad_norm,
        logging_steps=log_steps,
        eval_strategy="steps",
        eval_steps=max(1, config.steps // 4),
        save_steps=save_steps,
    )


def make_trainer(config: Config, model, tokenizer, train, valid, out_dir: Path):
    """The library's trainer for this kind of model, with our progress bar in place of its own."""
    from transformers import PrinterCallback

    arguments = trainer_arguments(config, out_dir, model.device)
    if model.config.is_encoder_decoder:
        from transformers import DataCollatorForSeq2Seq, Seq2SeqTrainer, Seq2SeqTrainingArguments

        if config.lora_rank:
            from peft import get_peft_model

            model = get_peft_model(model, models.lora_config(model, config.lora_rank, config.lora_alpha))
        trainer = Seq2SeqTrainer(
            model=model,
            args=Seq2SeqTrainingArguments(**arguments),
            train_dataset=train,
            eval_dataset=valid,
            processing_class=tokenizer,
            data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
            compute_loss_func=mean_loss,
        )
    else:
        from trl import SFTConfig, SFTTrainer

        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(
                **arguments,
                max_length=None,
                gradient_checkpointing=False,
                dataset_kwargs={"skip_prepare_dataset": True},  # make_dataset did it: ids, labels, lengths
            ),
            train_dataset=train,
            eval_dataset=valid,
            processing_class=tokenizer,
            peft_config=models.lora_config(model, config.lora_rank, config.lora_alpha) if config.lora_rank else None,
        )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(trainers.callbacks(f"sft {config.style}", config.steps))
    return trainer


def mean_loss(outputs, labels, num_items_in_batch=None):
    """Mean negative log-likelihood over the labels of the whole (accumulated) batch; T5's own mean is one of means."""
    from torch.nn.functional import cross_entropy

    total = cross_entropy(outputs.logits.flatten(0, 1).float(), labels.flatten(), reduction="sum")
    return total / ((labels != -100).sum() if num_items_in_batch is None else num_items_in_batch)


def train(
    config: Config, train: list[Problem] | list[Example], valid: list[Problem] | list[Example], out_dir: str | Path
) -> None:
    """Fine-tune on `train`, watching the loss on the first `valid_problems` of `valid`.

    Problems are written in config.style; Examples are taken as they are, prompt and completion.

    Resumes from the last complete checkpoint in `out_dir`. On a CPU an interrupted run ends with the same weights,
    bit for bit, as an undisturbed one. Leaves in `out_dir`:
      model/         weights, config and tokenizer (with lora_rank > 0: the adapter)
      metrics.jsonl  one line a log: step, loss, learning_rate, grad_norm; or step, eval_loss, eval_mean_token_accuracy
      config.json    the config
    """
    out_dir = Path(out_dir)
    model, tokenizer = load(config, train)
    if config.lora_rank:
        models.check_adapter(model, config.lora_rank, config.max_adapter_mb)
    two_sided = model.config.is_encoder_decoder
    models.seed_everything(config.seed)
    trainer = make_trainer(
        config,
        model,
        tokenizer,
        make_dataset(config, tokenizer, train, two_sided),
        make_dataset(config, tokenizer, valid[: config.valid_problems], two_sided),
        out_dir,
    )
    trainers.run(trainer, out_dir)
    models.save_model(trainer.model, tokenizer, out_dir / "model")
    write_jsonl(out_dir / "metrics.jsonl", curve(trainer.state.log_history))
    (out_dir / "config.json").write_text(json.dumps(asdict(config), indent=1) + "\n")
    trainers.discard_all(out_dir)


def curve(history: list[dict]) -> list[dict]:
    """The trainer's log without what differs from run to run (times) or says nothing (token counts)."""
    keys = (
        "step",
        "loss",
        "learning_rate",
        "grad_norm",
        "mean_token_accuracy",
        "eval_loss",
        "eval_mean_token_accuracy",
    )
    rows = [{key: float(row[key]) if key != "step" else row[key] for key in keys if key in row} for row in history]
    return [row for row in rows if "loss" in row or "eval_loss" in row]
