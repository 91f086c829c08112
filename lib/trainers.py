"""What all trainings on transformers' Trainer share: settings, a progress bar, checkpoints that survive a kill.

Knows no method: each gives its own rates and its own data. Loads torch only when used.
"""

import os
import shutil
from pathlib import Path

from lib.progress import Bar


def settings(config, out_dir: Path, device) -> dict:
    """Settings that no method has an opinion on. config: has batch_size (a step's), accumulation, dtype and seed."""
    return dict(
        output_dir=str(out_dir),
        per_device_train_batch_size=config.batch_size // config.accumulation,
        gradient_accumulation_steps=config.accumulation,
        save_strategy="steps",
        save_total_limit=2,  # while one is being written, the one before it still stands
        use_cpu=device.type == "cpu",
        bf16=config.dtype == "bfloat16",
        fp16=config.dtype == "float16",
        disable_tqdm=True,
        report_to="none",
        remove_unused_columns=False,
        dataloader_pin_memory=device.type != "cpu",
        seed=config.seed,
        data_seed=config.seed,
    )


def callbacks(label: str, total: int):
    """A trainer callback that moves the progress bar and marks each finished checkpoint."""
    from transformers import TrainerCallback

    class Callback(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            self.bar = Bar(label, total, done=state.global_step).__enter__()
            self.loss = "?"

        def on_step_end(self, args, state, control, **kwargs):
            self.bar.update(loss=self.loss)
            if state.global_step >= state.max_steps:
                control.should_save = False  # the model itself is saved next; resuming here would take a step too many

        def on_log(self, args, state, control, logs=None, **kwargs):
            self.loss = f"{logs['loss']:.3f}" if "loss" in logs else self.loss

        def on_save(self, args, state, control, **kwargs):
            mark_complete(Path(args.output_dir) / f"checkpoint-{state.global_step}")

        def on_train_end(self, args, state, control, **kwargs):
            self.bar.__exit__()

    return Callback()


def mark_complete(checkpoint: Path) -> None:
    """Flush a checkpoint's files to disk, then mark it: one without the mark was cut off while being written."""
    for file in checkpoint.iterdir():
        with open(file, "rb") as handle:
            os.fsync(handle.fileno())
    (checkpoint / "complete").touch()


def discard(checkpoint: Path) -> None:
    """Delete a checkpoint, its mark first: cut off halfway, it must not pass for complete."""
    (checkpoint / "complete").unlink(missing_ok=True)
    shutil.rmtree(checkpoint)


def last_checkpoint(out_dir: Path) -> Path | None:
    """The newest complete checkpoint of an interrupted run; incomplete ones are deleted."""
    found = sorted(out_dir.glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))
    for path in found:
        if not (path / "complete").exists():
            discard(path)
    complete = [path for path in found if path.exists()]
    return complete[-1] if complete else None


def run(trainer, out_dir: Path) -> None:
    """Train to the end, from the newest complete checkpoint in `out_dir` if there is one."""
    checkpoint = last_checkpoint(out_dir)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)


def discard_all(out_dir: Path) -> None:
    """Delete the checkpoints in `out_dir`: what was trained has been saved."""
    for path in out_dir.glob("checkpoint-*"):
        discard(path)
