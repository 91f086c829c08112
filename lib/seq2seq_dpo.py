"""DPO of encoder-decoder models such as T5, on transformers' own trainer, since TRL trains them no longer.

The encoder reads a prompt once for both completions; the reference's log-probabilities are computed before training,
so that no second model is kept and every kind of model (all weights, a new adapter, an adapter trained further) goes
the same way.
"""

from collections import defaultdict

import torch
from torch.nn.functional import log_softmax, logsigmoid
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments
from transformers.modeling_outputs import BaseModelOutput

from lib import dpo, models
from lib.progress import Bar


def make_batch(rows: list[dict], pad_token_id: int) -> dict:
    """input_ids, attention_mask (pairs, longest prompt); labels (2, pairs, longest completion), chosen then rejected.

    Labels are -100 where there is no token. Reference log-probabilities (2, pairs) are added where the rows have them.
    """

    def padded(sequences: list[list[int]], value: int):
        width = max(map(len, sequences))
        return torch.tensor([[*ids, *[value] * (width - len(ids))] for ids in sequences])

    prompts = [row["prompt_ids"] for row in rows]
    both = [row[key] for key in ("chosen_ids", "rejected_ids") for row in rows]
    batch = {
        "input_ids": padded(prompts, pad_token_id),
        "attention_mask": padded([[1] * len(ids) for ids in prompts], 0),
        "labels": padded(both, -100).unflatten(0, (2, len(rows))),
    }
    if "ref_chosen_logps" in rows[0]:
        batch["reference"] = torch.tensor(
            [[row[key] for row in rows] for key in ("ref_chosen_logps", "ref_rejected_logps")]
        )
    return batch


def log_probabilities(model, batch: dict):
    """(sums, tokens), each (2, pairs): log p(completion | prompt) in nats, and how many tokens it is the sum of."""
    labels = batch["labels"]
    encoder = model.get_encoder()
    states = encoder(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    output = model(
        encoder_outputs=BaseModelOutput(last_hidden_state=states.repeat(2, 1, 1)),  # (2 * pairs, prompt, width)
        attention_mask=batch["attention_mask"].repeat(2, 1),
        labels=labels.flatten(0, 1),  # the model shifts them right itself
    )
    mask = labels != -100
    logits = output.logits if output.logits.dtype == torch.float64 else output.logits.float()
    logps = log_softmax(logits, -1).unflatten(0, labels.shape[:2])  # (2, pairs, completion, vocabulary)
    picked = logps.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    return (picked * mask).sum(-1), mask.sum(-1)


def losses(config: dpo.Config, logps, reference, tokens):
    """(loss of each pair (pairs), rewards (2, pairs)) from log-probabilities (2, pairs) of chosen and rejected."""
    ratios = logps - reference
    rewards = config.beta * ratios
    if config.loss == "sigmoid":
        found = -logsigmoid(rewards[0] - rewards[1])
    elif config.loss == "hinge":
        found = torch.relu(1 - (rewards[0] - rewards[1]))
    else:  # IPO (Azar et al., 2023), Eq. 17, on the mean over tokens as its authors compute it
        chosen, rejected = ratios / tokens
        found = (chosen - rejected - 1 / (2 * config.beta)) ** 2
    if config.sft_weight:
        found = found - config.sft_weight * logps[0].sum() / tokens[0].sum()
    return found, rewards


class Seq2SeqDPOTrainer(Seq2SeqTrainer):
    """transformers' trainer with the preference loss; logs the figures that TRL's DPOTrainer logs."""

    def __init__(self, config: dpo.Config, **kwargs):
        super().__init__(**kwargs)
        self.config = config
        self.model_accepts_loss_kwargs = False  # the loss is a mean over pairs, so accumulated ones are averaged
        self.figures = {"": defaultdict(list), "eval_": defaultdict(list)}

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        with self.accelerator.autocast():  # the encoder too, which is called past the model's own forward
            logps, tokens = log_probabilities(model, inputs)
        found, rewards = losses(self.config, logps, inputs["reference"], tokens)
        margins = rewards[0] - rewards[1]
        figures = {
            "rewards/chosen": rewards[0],
            "rewards/rejected": rewards[1],
            "rewards/margins": margins,
            "rewards/accuracies": (margins > 0).float(),
            "logps/chosen": logps[0],
            "logps/rejected": logps[1],
        }
        kept = self.figures["" if model.training else "eval_"]
        for name, values in figures.items():
            kept[name] += self.accelerator.gather(values.detach()).tolist()
        return (found.mean(), {}) if return_outputs else found.mean()

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        with torch.no_grad(), self.compute_loss_context_manager():
            return self.compute_loss(model, self._prepare_inputs(inputs)).detach(), None, None

    def log(self, logs: dict, start_time: float | None = None) -> None:
        prefix = "eval_" if "eval_loss" in logs else ""
        kept = self.figures[prefix]
        super().log(logs | {prefix + name: sum(v) / len(v) for name, v in kept.items()}, start_time)
        kept.clear()


def with_reference(config: dpo.Config, model, dataset, pad_token_id: int):
    """The data set with ref_chosen_logps and ref_rejected_logps, as the model finds them now."""
    model.eval()
    found = []
    size = max(1, config.batch_size // config.accumulation)
    precision = torch.autocast(model.device.type, models.pick_dtype(config.dtype), enabled=config.dtype != "float32")
    with torch.inference_mode(), precision, Bar("reference", len(dataset)) as bar:
        for start in range(0, len(dataset), size):
            rows = dataset.select(range(start, min(start + size, len(dataset)))).to_list()
            batch = {key: value.to(model.device) for key, value in make_batch(rows, pad_token_id).items()}
            found += log_probabilities(model, batch)[0].T.tolist()
            bar.update(len(rows))
    model.train()
    chosen, rejected = zip(*found, strict=True)
    dataset = dataset.add_column("ref_chosen_logps", list(chosen))
    return dataset.add_column("ref_rejected_logps", list(rejected))


def make_trainer(config: dpo.Config, arguments: dict, model, train_dataset, eval_dataset, processing_class):
    """The trainer; the model as it stands is the reference."""
    pad = processing_class.pad_token_id
    train_dataset, eval_dataset = (
        dataset and with_reference(config, model, dataset, pad) for dataset in (train_dataset, eval_dataset)
    )
    if config.lora_rank:
        from peft import get_peft_model

        model = get_peft_model(model, models.lora_config(model, config.lora_rank))
    return Seq2SeqDPOTrainer(
        config,
        model=model,
        args=Seq2SeqTrainingArguments(**arguments),
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=processing_class,
        data_collator=lambda rows: make_batch(rows, pad),
    )
