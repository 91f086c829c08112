"""transformers' Trainer for a diffusion model: its groups of weights, its rate, its clipping. Loads torch.

The Trainer brings precision, accumulation, checkpoints, resumption and DDP. Everything random in a pass is a function
of seed, step and pass (lib.dot.losses.draw), so nothing that looks at the model in between can disturb its training.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from lib import trainers
from lib.dot import losses
from lib.dot.config import Config
from lib.dot.model import BASE_WIDTH, Plaid

WEIGHTS, CURVE = "learner.safetensors", "curve.json"
NORMS = 1000  # gradient norms that the clipping remembers
MEMORY = 0.997  # of the moments that decide how many rows are reconstructed


class Learner(nn.Module):
    """The model, and all that its training remembers: norms of gradients, moments of the two losses, a running mean."""

    def __init__(self, model: Plaid, config: Config):
        super().__init__()
        self.model, self.settings = model, config
        self.register_buffer("norms", torch.full((NORMS,), torch.nan))
        self.register_buffer("moments", torch.zeros(2, 3, dtype=torch.float64))  # (kind, weight and 1st and 2nd moment)
        average = get_ema_multi_avg_fn(config.ema)
        self.mean = AveragedModel(model, multi_avg_fn=average).requires_grad_(False) if config.ema else None

    def best(self) -> Plaid:
        """The model to use: the running mean of its weights where there is one."""
        return self.mean.module if self.mean is not None else self.model

    def reconstructed(self, rows: int) -> int:
        """How many of `rows` stand at t = 0: in proportion to the losses' standard deviations, at least 1 of each."""
        if self.settings.loss != "vlb":
            return 0
        weight, first, second = self.moments.unbind(1)
        if not bool((weight > 0).all()):
            return max(1, rows // 8)
        deviation = (second / weight - (first / weight) ** 2).clamp(min=0).sqrt()
        share = deviation[0] / deviation.sum().clamp(min=1e-12)
        return int((rows * share).round().clamp(1, rows - 1))

    def remember(self, found: dict) -> None:
        """Take the losses of one pass into the moments."""
        for kind, here in enumerate((found["reconstructed"], ~found["reconstructed"])):
            values = found["rows"][here].double()
            if len(values):
                new = torch.stack([torch.ones_like(values[0]), values.mean(), values.square().mean()])
                self.moments[kind] = MEMORY * self.moments[kind] + (1 - MEMORY) * new.to(self.moments.device)

    def forward(self, source, canvas, mask, step: int, part: int, parts: int):
        """The loss of one pass; `part` of `parts` tells its times from those of the step's other passes."""
        config, rows = self.settings, len(canvas)
        columns = canvas.shape[1] + (source.shape[1] if config.loss_scope == "all" else 0)
        shape = (rows, columns) if config.loss == "masked" else (rows, columns, config.embed_dim)
        drawn = losses.draw(config, rows, shape, step, part, parts, self.reconstructed(rows), canvas.device)
        scale = min(1.0, step / config.prior_steps) if config.prior_steps else 1.0
        batch = {"source": source, "canvas": canvas, "mask": mask}
        return losses.LOSSES[config.loss](self.model, config, batch, drawn, scale)


def groups(model: Plaid, config: Config) -> list[dict]:
    """Weights for AdamW: rates by muP, and decay apart from them (each step takes decay * factor off).

    Matrices between hidden layers get learning_rate / (width / 256); input, output and norms learning_rate; embeddings,
    schedule and bounds embedding_rate.
    """
    hidden, rest = [], []
    for name, weight in model.model.named_parameters():
        inside = any(part in name for part in ("attn_qkv", "attn_out", "mlp.fc1", "mlp.fc2"))
        (hidden if inside else rest).append(weight)
    kinds = [
        (hidden, config.learning_rate / (model.sizes[0] / BASE_WIDTH), config.weight_decay),
        (rest, config.learning_rate, config.weight_decay),
        ([*model.embedding_matrix.parameters(), *model.noise_schedule.parameters()], config.embedding_rate, 0.0),
        (list(model.gamma_bounds.parameters()), config.embedding_rate, config.bounds_decay),
    ]
    return [{"params": weights, "lr": rate, "weight_decay": decay / (rate + 1e-16)} for weights, rate, decay in kinds]


def rate_factor(config: Config, step: int) -> float:
    """What every rate is multiplied by: 0 while Adam settles, up along a line, and down to 0 at the end."""
    if step < min(config.settle_steps, config.steps // 4):
        return 0.0
    warm = min(1.0, step / config.warmup_steps) if config.warmup_steps else 1.0
    return warm * max(0.0, 1 - step / config.steps)


def clip(learner: Learner, step: int) -> float:
    """Clip the gradients to the quantile of the norms so far; returns their norm before. Never before 20 are known."""
    weights = [p for p in learner.model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in weights])
    known = learner.norms[~learner.norms.isnan()]
    if learner.settings.clip_quantile and len(known) >= 20:
        most = torch.quantile(known, learner.settings.clip_quantile)
        torch.nn.utils.clip_grads_with_norm_(weights, most, norm)
    if bool(norm.isfinite()):
        learner.norms[step % NORMS] = norm
    return norm.item()


class DotTrainer(Trainer):
    """A Trainer whose data set holds numbers of problems; rows are cut from the tables when they are needed."""

    def __init__(self, learner: Learner, rows, **kwargs):
        super().__init__(model=learner, **kwargs)
        self.learner, self.rows, self.curve = learner, rows, []
        self.at, self.place = -1, 0  # the step, and the pass of it
        self.model_accepts_loss_kwargs = False  # the loss is a mean over a batch, so accumulated ones are averaged
        self.sums: dict[str, list] = {}

    def create_optimizer(self, model=None):
        if self.optimizer is None:
            config = self.learner.settings
            betas = (config.adam_beta1, config.adam_beta2)
            fused = self.args.device.type == "cuda"
            self.optimizer = AdamW(groups(self.learner.model, config), betas=betas, eps=1e-8, fused=fused or None)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        if self.lr_scheduler is None:
            config = self.learner.settings
            self.lr_scheduler = LambdaLR(optimizer or self.optimizer, lambda step: rate_factor(config, step))
        return self.lr_scheduler

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        step = self.state.global_step
        self.at, self.place = step, self.place + 1 if self.at == step else 0
        world, accumulated = self.args.world_size, self.current_gradient_accumulation_steps  # fewer at the end
        part = self.place * world + self.args.process_index
        seed = (self.learner.settings.seed * 1_000_003 + step) * world * accumulated + part
        cut = self.rows.batch(inputs["problems"].cpu(), seed)
        batch = {name: value.to(self.args.device) if value is not None else None for name, value in cut.items()}
        found = model(**batch, step=step, part=part, parts=world * accumulated)
        if "prior" in found:
            self.learner.remember(found)
        for name, value in losses.named(found).items():
            self.sums.setdefault(name, []).append(value)
        return (found["loss"], found) if return_outputs else found["loss"]

    def log(self, logs, start_time=None):
        if "loss" in logs:
            for name, values in self.sums.items():
                logs[name] = torch.stack(values).nanmean().item()
            self.sums = {}
        super().log(logs, start_time)

    def _save(self, output_dir=None, state_dict=None):
        output_dir = Path(output_dir or self.args.output_dir)
        output_dir.mkdir(parents=True, exist_ok=True)
        state = {name: value.contiguous().clone() for name, value in self.learner.state_dict().items()}
        save_file(state, output_dir / WEIGHTS)
        (output_dir / CURVE).write_text(json.dumps(self.curve))

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        self.learner.load_state_dict(load_file(Path(resume_from_checkpoint) / WEIGHTS))
        self.curve += json.loads((Path(resume_from_checkpoint) / CURVE).read_text())


class DotCallback(TrainerCallback):
    """Clips before each step, averages after it, and looks at validation problems every check_steps."""

    def __init__(self, learner: Learner, look, curve: list[dict]):
        self.learner, self.look, self.curve, self.norm = learner, look, curve, 0.0

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.norm = clip(self.learner, state.global_step)

    def on_step_end(self, args, state, control, **kwargs):
        if self.learner.mean is not None:
            self.learner.mean.update_parameters(self.learner.model)
        step, config = state.global_step, self.learner.settings
        if step % config.check_steps == 0 or step == config.steps:
            right = self.look(self.learner.best())
            self.curve += [{"step": step, "right": right}] if right is not None else []

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in (logs or {}):
            kept = {name: float(value) for name, value in logs.items() if name in ("loss", *losses.TERMS)}
            self.curve.append({"step": state.global_step, **kept, "grad_norm": self.norm})


def arguments(config: Config, out_dir: Path, device) -> TrainingArguments:
    """The Trainer's settings."""
    log_steps = max(1, min(25, config.steps // 4))
    args = TrainingArguments(
        **trainers.settings(config, out_dir, device),
        max_steps=config.steps,
        max_grad_norm=0.0,  # clipping is ours
        logging_steps=log_steps,
        save_steps=-(-max(config.check_steps, config.steps // 10) // log_steps) * log_steps,  # no loss half averaged
        label_names=[],
    )
    args._n_gpu = min(args.n_gpu, 1)  # several devices want a process each (torchrun), not DataParallel's threads
    return args


def make_trainer(config: Config, model: Plaid, rows, look, out_dir: Path):
    """(trainer, its learner). `look(model)`: the share of validation problems that it solves; None without any."""
    learner = Learner(model, config).to(model.device)
    trainer = DotTrainer(
        learner,
        rows,
        args=arguments(config, out_dir, model.device),
        train_dataset=[{"problems": i} for i in range(len(rows))],
        data_collator=lambda found: {"problems": torch.tensor([row["problems"] for row in found])},
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(DotCallback(learner, look, trainer.curve))
    trainer.add_callback(trainers.callbacks(f"dot {config.loss}", config.steps))
    return trainer, learner
