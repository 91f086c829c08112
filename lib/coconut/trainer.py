"""transformers' Trainer for a model that thinks, with the curriculum's callback. Loads torch and transformers."""

from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import tensor
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from lib import trainers
from lib.coconut import engine, training
from lib.coconut.config import Config
from lib.coconut.schedule import Stage
from lib.coconut.training import Curriculum

WEIGHTS = "thinker.safetensors"


class CoconutTrainer(Trainer):
    """A Trainer whose data set holds numbers of problems; a batch is made when it is needed, for that step's stage.

    (The Trainer draws one batch ahead, so a batch made by the collator would be of the stage before at each switch.)
    """

    def __init__(self, curriculum: Curriculum, **kwargs):
        super().__init__(**kwargs)
        self.curriculum, self.thinker = curriculum, kwargs["model"]
        self.model_accepts_loss_kwargs = False  # the loss is a mean over a batch, so accumulated ones are averaged

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        batch = self.curriculum.batch(inputs["problems"].tolist(), self.state.global_step)
        output = model(**training.to_device(batch, self.args.device))
        return (output["loss"], output) if return_outputs else output["loss"]

    def _save(self, output_dir=None, state_dict=None):
        """Weights by name, tied ones once: the library's own way refuses tensors that share memory."""
        output_dir = Path(output_dir or self.args.output_dir)
        output_dir.mkdir(parents=True, exist_ok=True)
        seen, kept = set(), {}
        for name, value in (state_dict or self.thinker.state_dict()).items():
            if value.data_ptr() not in seen:
                seen.add(value.data_ptr())
                kept[name] = value.contiguous()
        save_file(kept, output_dir / WEIGHTS)
        self.curriculum.save(output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        weights = load_file(Path(resume_from_checkpoint) / WEIGHTS)
        missing, unexpected = self.thinker.load_state_dict(weights, strict=False)
        tied = {name for name in missing if "lm_head" in name or "embed" in name or "wte" in name}
        assert not unexpected and set(missing) == tied, f"the checkpoint does not fit: {missing}, {unexpected}"


class CurriculumCallback(TrainerCallback):
    """Looks at validation problems every check_steps, moves the curriculum on, resets the optimizer if asked."""

    def __init__(self, curriculum: Curriculum, thinker, held_out: list[dict], steps: int, per_epoch: int):
        self.curriculum, self.thinker, self.held_out = curriculum, thinker, held_out
        self.steps, self.per_epoch = steps, per_epoch
        self.learning = curriculum.stage  # the stage of the steps that are logged next

    def on_step_end(self, args, state, control, optimizer=None, **kwargs):
        curriculum, config, step = self.curriculum, self.curriculum.config, state.global_step
        right, self.learning = None, curriculum.stage
        if self.held_out and (step % config.check_steps == 0 or step == self.steps):
            right = training.written_right(self.thinker, curriculum, self.held_out)
            stage = curriculum.stage
            curriculum.curve.append({"step": step, "stage": stage.number, "thoughts": stage.thoughts, "right": right})
        if step == self.steps:
            return
        moved = curriculum.go_on(step, step / self.per_epoch, right)
        if moved and self.held_out:  # the other side of the switch, before any step in the new stage
            stage, right = curriculum.stage, training.written_right(self.thinker, curriculum, self.held_out)
            curriculum.curve.append({"step": step, "stage": stage.number, "thoughts": stage.thoughts, "right": right})
        if (config.reset_optimizer == "stage" and moved) or (
            config.reset_optimizer == "epoch" and step % self.per_epoch == 0
        ):
            getattr(optimizer, "optimizer", optimizer).state.clear()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in (logs or {}):
            stage = self.learning
            loss = {"step": state.global_step, "stage": stage.number, "thoughts": stage.thoughts}
            loss["loss"] = float(logs["loss"])
            norm = {"grad_norm": float(logs["grad_norm"])} if "grad_norm" in logs else {}
            self.curriculum.curve.append(loss | norm)


def make_trainer(
    config: Config, model, tokenizer, encoded: list[dict], held_out: list[dict], known: list[Stage], out_dir
):
    """(trainer, its curriculum) for problems encoded by `sequences.encode`."""
    thinker = engine.wrap(config, model, tokenizer)
    curriculum = Curriculum(config, known, encoded, thinker.markers, tokenizer.pad_token_id)
    per_epoch = -(-len(encoded) // config.batch_size)
    steps = config.steps or per_epoch * (config.num_epochs - config.first_epoch)
    curriculum.go_on(0, 0.0, None)  # a first epoch past the first stage
    args = TrainingArguments(**training.arguments(config, Path(out_dir), model.device, steps))
    args._n_gpu = min(args.n_gpu, 1)  # several devices want a process each (torchrun), not DataParallel's threads
    trainer = CoconutTrainer(
        curriculum,
        model=thinker,
        args=args,
        train_dataset=[{"problems": i} for i in range(len(encoded))],
        data_collator=lambda rows: {"problems": tensor([r["problems"] for r in rows])},
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(CurriculumCallback(curriculum, thinker, held_out, steps, per_epoch))
    trainer.add_callback(trainers.callbacks(config.method, steps))
    return trainer, curriculum
