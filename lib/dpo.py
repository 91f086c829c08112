"""Direct preference optimisation (Rafailov et al., 2023): prefer the right solution to the wrong one.

    loss = -log sigmoid(beta * (log p(chosen)/p_ref(chosen) - log p(rejected)/p_ref(rejected)))

where p is the model, p_ref the same model before training, and each log-probability the sum over a completion's tokens,
end-of-sequence included. Causal models train through TRL; encoder-decoder models, which TRL trains no longer, through
`lib.seq2seq_dpo`. Samples without a counterpart are learned from by KTO (Ethayarajh et al., 2024). Knows no problem:
what is right was decided when the pairs were made (`lib.preferences`).
"""

import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path

from lib import models, sft, trainers
from lib.errors import InputError
from lib.preferences import Opinion, Pair
from lib.problems import write_jsonl
from lib.tokenization import tokenize

LOSSES = ("sigmoid", "ipo", "hinge", "kto")


@dataclass(frozen=True)
class Config:
    """The embedded setting, for a small model on a laptop CPU.

    beta        how dear it is to leave the reference model; a reward is beta times a log-probability ratio
    loss        "sigmoid" (DPO), "ipo", "hinge", or "kto" for samples without a counterpart
    sft_weight  weight of the chosen solutions' own loss (mean negative log-likelihood of a token) beside it: DPO alone
                often makes the chosen ones less likely too
    reference   "copy" keeps a second model, "precomputed" computes its log-probabilities of all pairs before training;
                an adapter's reference is the model without it (a new adapter) or a copy of it (an adapter that was
                trained already), and an encoder-decoder model's is always precomputed
    lora_rank   0 trains every weight, or goes on with the adapter that the model is; else a new adapter of this rank
    max_length  longest prompt with completion, in tokens; pairs with a longer one are left out and counted
    n_watched   how many pairs of other problems are looked at during training
    """

    steps: int = 100
    batch_size: int = 16
    accumulation: int = 1
    learning_rate: float = 1e-5
    beta: float = 0.1
    loss: str = "sigmoid"
    sft_weight: float = 0.0
    reference: str = "copy"
    lora_rank: int = 0
    min_lr_rate: float = 0.1
    warmup_steps: int = 10
    weight_decay: float = 0.01
    adam_beta2: float = 0.98
    max_grad_norm: float = 1.0
    max_length: int = 512
    log_steps: int = 5
    n_watched: int = 128
    dtype: str = "float32"
    device: str = "auto"
    seed: int = 0

    def __post_init__(self):
        models.check_dtype(self.dtype)
        if self.loss not in LOSSES:
            raise InputError(f"Unknown loss {self.loss!r}; use {', '.join(LOSSES)}.")
        if self.reference not in ("copy", "precomputed"):
            raise InputError(f"Unknown reference {self.reference!r}; use copy or precomputed.")
        for name in ("steps", "batch_size", "accumulation", "max_length", "log_steps"):
            if getattr(self, name) < 1:
                raise InputError(f"DPO's {name} must be at least 1, not {getattr(self, name)}.")
        if self.batch_size % self.accumulation:
            raise InputError(f"DPO's batch_size {self.batch_size} is no multiple of accumulation {self.accumulation}.")
        if self.beta <= 0 or self.sft_weight < 0:
            raise InputError("beta must be above 0, sft_weight at least 0.")
        if self.loss == "kto" and self.sft_weight:
            raise InputError("sft_weight goes with pairs; with loss kto set it to 0.")
        if self.loss == "kto" and self.batch_size // self.accumulation < 2:
            raise InputError("KTO compares the completions of a batch; it needs at least 2 a forward pass.")


def encode(tokenizer, items: list[Pair] | list[Opinion]) -> list[dict]:
    """Token ids of pairs (prompt_ids, chosen_ids, rejected_ids) or opinions (prompt_ids, completion_ids, label).

    Prompt and completion are tokenised apart, as at generation. A completion that came to its end has the
    end-of-sequence token; one that was cut off has not, so that no end is taught where none was.
    """
    prompts = tokenize(tokenizer, [item.prompt for item in items])

    def completions(texts: list[str], finished: list[bool]) -> list[list[int]]:
        ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
        return [[*row, tokenizer.eos_token_id] if end else row for row, end in zip(ids, finished, strict=True)]

    if isinstance(items[0], Opinion):
        written = completions([x.completion for x in items], [x.finished for x in items])
        rows = zip(prompts, written, [x.right for x in items], strict=True)
        return [{"prompt_ids": p, "completion_ids": c, "label": right} for p, c, right in rows if c]
    chosen = completions([x.chosen for x in items], [True] * len(items))
    rejected = completions([x.rejected for x in items], [x.finished for x in items])
    rows = zip(prompts, chosen, rejected, strict=True)
    return [{"prompt_ids": p, "chosen_ids": c, "rejected_ids": r} for p, c, r in rows if c and r]


def make_dataset(config: Config, tokenizer, items: list[Pair] | list[Opinion]):
    """A `datasets.Dataset` of encoded items; those over max_length are left out, with a printed count.

    Raises InputError if none is left.
    """
    from datasets import Dataset

    rows = encode(tokenizer, items) if items else []
    kept = fitting(config, rows)
    if not kept:
        raise InputError(
            f"None of {len(items)} preferences can be learned from within max_length = {config.max_length} tokens: a "
            "model that is always right, or never, makes none; draw more samples, or give more problems with steps."
        )
    if len(kept) < len(items):
        print(
            f"left out {len(items) - len(kept)} of {len(items)} preferences: empty, or over {config.max_length} tokens"
        )
    return Dataset.from_list(kept)


def fitting(config: Config, rows: list[dict]) -> list[dict]:
    """Those encoded rows whose prompt with the longest of its completions is within max_length."""

    def longest(row: dict) -> int:
        completions = [value for key, value in row.items() if key.endswith("_ids") and key != "prompt_ids"]
        return len(row["prompt_ids"]) + max(map(len, completions))

    return [row for row in rows if longest(row) <= config.max_length]


def load(config: Config, model: str | Path):
    """(model, tokenizer), without any dropout; an adapter is loaded to be trained further."""
    import torch

    if str(model) in models.PRESETS:
        raise InputError(f"{model} is an untrained preset; preferences are learned by a model that was trained before.")
    adapter = (Path(model) / "adapter_config.json").exists()
    dtype = config.dtype if adapter or config.lora_rank else "float32"  # full training keeps float32 master weights
    loaded, tokenizer = models.load_model(str(model), None, dtype, config.device, dropout=0.0)
    if hasattr(loaded, "peft_config"):
        if config.lora_rank:
            raise InputError(f"{model} is an adapter and is trained further as it is; set lora_rank to 0.")
        loaded.peft_config["default"].inference_mode = False
        loaded.set_adapter("default")  # loaded adapters are frozen
        for module in loaded.modules():
            if isinstance(module, torch.nn.Dropout):  # an adapter's own
                module.p = 0.0
    return loaded, tokenizer


def arguments(config: Config, out_dir: Path, device) -> dict:
    """The settings of all three trainers: those of sft, with the first loss on record."""
    return sft.trainer_arguments(config, out_dir, device) | {"logging_first_step": True}


def make_trainer(config: Config, model, tokenizer, train, watched, out_dir: Path):
    """The trainer for this kind of model and data; `watched` may be None. All of them log the same figures."""
    from transformers import PrinterCallback

    shared = dict(model=model, train_dataset=train, eval_dataset=watched, processing_class=tokenizer)
    how = arguments(config, out_dir, model.device)
    if watched is None:
        how["eval_strategy"] = "no"
    if model.config.is_encoder_decoder:
        from lib import seq2seq_dpo

        if config.loss == "kto":
            raise InputError("KTO is for causal models; an encoder-decoder model learns from pairs: use loss sigmoid.")
        trainer = seq2seq_dpo.make_trainer(config, how, **shared)
    else:
        from lib import causal_dpo

        trainer = causal_dpo.make_trainer(config, how, **shared)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(trainers.callbacks(config.loss if config.loss == "kto" else "dpo", config.steps))
    return trainer


def train(
    config: Config,
    items: list[Pair] | list[Opinion],
    watched: list[Pair] | list[Opinion],
    model: str | Path,
    out_dir: str | Path,
) -> None:
    """Teach `model` (a directory, adapter or hub id) what to prefer, watching the first n_watched of `watched`.

    items    pairs, or with loss "kto" opinions. The model before training is the reference
    watched  pairs of other problems; may be empty
    Resumes from the last complete checkpoint in `out_dir`. Leaves there what `sft.train` leaves; metrics.jsonl has
    step, loss, rewards (chosen, rejected, margins, accuracies: nats, times beta) and logps (nats a completion), those
    of the watched pairs with "eval_" in front.
    """
    wanted = Opinion if config.loss == "kto" else Pair
    assert all(isinstance(item, wanted) for item in [*items, *watched]), f"loss {config.loss} wants {wanted.__name__}s"
    out_dir = Path(out_dir)
    models.quiet()
    loaded, tokenizer = load(config, model)
    items = random.Random(config.seed).sample(items, len(items))
    train_set = make_dataset(config, tokenizer, items)
    watched = watched[: config.n_watched]
    models.seed_everything(config.seed)
    fits = [item for item in watched if fitting(config, encode(tokenizer, [item]))]
    watched_set = make_dataset(config, tokenizer, fits) if fits else None
    trainer = make_trainer(config, loaded, tokenizer, train_set, watched_set, out_dir)
    trainers.run(trainer, out_dir)
    if "ref" in getattr(trainer.model, "peft_config", {}):
        trainer.model.delete_adapter("ref")
    (out_dir / "README.md").unlink(missing_ok=True)  # the library's model card, which knows nothing
    models.save_model(trainer.model, tokenizer, out_dir / "model")
    write_jsonl(out_dir / "metrics.jsonl", curve(trainer.state.log_history))
    (out_dir / "config.json").write_text(json.dumps(asdict(config), indent=1) + "\n")
    trainers.discard_all(out_dir)


def last(directory: str | Path) -> dict[str, float]:
    """How a training that left `directory` ended: loss, margin and accuracy (how often the chosen has the higher
    reward) on the pairs that were learned, at the last log, and on those that were only watched."""
    rows = [json.loads(line) for line in (Path(directory) / "metrics.jsonl").read_text().splitlines()]
    found = {}
    for prefix, name in (("", "learned"), ("eval_", "watched")):
        ends = [row for row in rows if f"{prefix}loss" in row][-1:]
        for key in ("loss", "rewards/margins", "rewards/accuracies"):
            found[f"{name} {key.rpartition('/')[2]}"] = ends[0].get(prefix + key) if ends else None
    return found


KEYS = ("loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "logps/chosen")
KEYS += ("logps/rejected", "kl")


def curve(history: list[dict]) -> list[dict]:
    """The trainer's log: step, learning_rate, grad_norm and KEYS, those of the watched pairs with "eval_" in front."""
    names = ("step", "learning_rate", "grad_norm", *KEYS, *(f"eval_{key}" for key in KEYS))
    rows = [{key: float(row[key]) if key != "step" else row[key] for key in names if key in row} for row in history]
    return [row for row in rows if "loss" in row or "eval_loss" in row]
