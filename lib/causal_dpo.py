"""DPO and KTO of causal models through TRL, on pairs that are encoded already.

TRL would tokenise prompt and completion together and append an end to every completion; both would differ from what
the model saw in fine-tuning and wrote when sampled, so the encoding is ours and the rest is the library's.
"""

import copy
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

from lib import dpo, models


class WithoutReference:
    """Keeps the copy of an adapter that is the reference out of checkpoints: beside it the trained one isn't loaded."""

    def _save(self, output_dir=None, state_dict=None):
        super()._save(output_dir, state_dict)
        shutil.rmtree(Path(output_dir or self.args.output_dir) / "ref", ignore_errors=True)


class EncodedDPOTrainer(WithoutReference, DPOTrainer):
    """TRL's trainer for a data set with prompt_ids, chosen_ids and rejected_ids."""

    def _prepare_dataset(self, dataset, *_):
        return dataset


class EncodedKTOTrainer(WithoutReference, KTOTrainer):
    """TRL's trainer for a data set with prompt_ids, completion_ids and label.

    The KL term is estimated on mismatched completions: each prompt with the completion before its own in its batch.
    """

    def _prepare_dataset(self, dataset, processing_class, args, dataset_name):
        size = args.per_device_train_batch_size
        if len(dataset) > size and len(dataset) % size == 1:  # the last row has none to be compared with
            dataset = dataset.select(range(len(dataset) - 1))
        ids = dataset["completion_ids"]
        batches = [ids[start : start + size] for start in range(0, len(ids), size)]
        rotated = [row for batch in batches for row in [batch[-1], *batch[:-1]]]
        return dataset.add_column("KL_completion_ids", rotated)


def make_trainer(config: dpo.Config, arguments: dict, model, train_dataset, eval_dataset, processing_class):
    """TRL's trainer for pairs, or for opinions where config.loss is "kto"; the reference is as config says."""
    adapted = hasattr(model, "peft_config") or config.lora_rank
    shared = dict(
        model=model,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=processing_class,
        ref_model=None if adapted or config.reference == "precomputed" else frozen_copy(model),
        peft_config=models.lora_config(model, config.lora_rank) if config.lora_rank else None,
    )
    how = arguments | dict(
        beta=config.beta,
        max_length=None,
        gradient_checkpointing=False,
        precompute_ref_log_probs=config.reference == "precomputed",
    )
    with no_library_bars():
        if config.loss == "kto":
            right = sum(train_dataset["label"])
            wrong = len(train_dataset) - right
            weights = {  # Eq. 8 of the paper: the two kinds count alike
                "desirable_weight": max(1.0, wrong / max(right, 1)),
                "undesirable_weight": max(1.0, right / max(wrong, 1)),
            }
            return EncodedKTOTrainer(args=KTOConfig(**how, **weights), **shared)
        losses, weights = [config.loss], [1.0]
        if config.sft_weight:
            losses, weights = [config.loss, "sft"], [1.0, config.sft_weight]
        return EncodedDPOTrainer(args=DPOConfig(**how, loss_type=losses, loss_weights=weights), **shared)


def frozen_copy(model):
    """A second model with the same weights, not to be trained: the reference."""
    return copy.deepcopy(model).requires_grad_(False).eval()


@contextmanager
def no_library_bars():
    """Keep the library's own bars out of a notebook while reference log-probabilities are computed."""
    import datasets

    before, shown = os.environ.get("TQDM_DISABLE"), not datasets.are_progress_bars_disabled()
    os.environ["TQDM_DISABLE"] = "1"
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
        os.environ.pop("TQDM_DISABLE")
        if before is not None:
            os.environ["TQDM_DISABLE"] = before
