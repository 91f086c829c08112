"""TRL's GOLD trainer on our pair, to compare: causal models whose two tokenizers both write bytes, its one exact route.

GOLD asks the teacher, with the teacher's tokenizer, about the same text at every step, groups the tokens of both sides
by the bytes that they cover, and compares the groups' distributions. Knows no `targets` and no kept scores.

Its defaults teach an untrained student nothing. Universal Logit Distillation (ULD) compares probabilities in order of
size, whatever tokens they belong to, so the student becomes sure of any; the end of the sequence is left out; the merge
rule "observed" takes each distribution one position late, so that a completion's first token is never taught, and
multiplies a group by numbers that are not its tokens' probabilities; and the Jensen-Shannon divergence of the hybrid
loss (beta 0.5) hardly pulls at what a student finds unlikely. SETTINGS holds what is set otherwise; all else is GOLD's.
Even so the right token of a group that only one side writes in one piece is taught away: the student's last token has
no share in the teacher's distribution there. uld_crossentropy_weight=1.0 teaches the samples as well.
"""

import json
import warnings
from dataclasses import asdict
from pathlib import Path

from lib import models, sft, trainers
from lib.distillation import teacher
from lib.errors import InputError
from lib.problems import write_jsonl
from lib.prompts import Example

# hybrid: tokens that both write alike are compared with each other, the rest by size; beta 0: by KL(teacher||student),
# as `training` does; bayesian: a group is its last distribution times the probabilities of the tokens before it.
SETTINGS = dict(
    use_uld_loss=True,
    uld_use_hybrid_loss=True,
    beta=0.0,
    uld_token_merge_strategy="bayesian",
    uld_skip_student_eos=False,
    uld_skip_teacher_eos=False,
    lmbda=0.0,  # never on texts that the student writes
)


def check(teacher_tokenizer, student_tokenizer, student_is_encoder_decoder: bool) -> None:
    """Raise InputError where GOLD has no exact route for the pair."""
    if student_is_encoder_decoder:
        raise InputError("TRL's GOLD trains causal students only, not encoder-decoders; use a causal student.")
    for side, tokenizer in (("teacher", teacher_tokenizer), ("student", student_tokenizer)):
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if type(getattr(backend, "decoder", None)).__name__ != "ByteLevel":
            raise InputError(
                f"TRL's GOLD aligns by bytes, and the {side}'s tokenizer does not write bytes as GPT-2's does; "
                f"give the {side} a byte-level tokenizer, or match by offsets (lib.distillation.training)."
            )


def encode(config, tokenizer, examples: list[Example]) -> list[dict]:
    """{"input_ids", "labels", "byte_offsets", "original_prompt_text", "original_completion_text"} of each example.

    Prompt and completion are tokenised apart, as at generation (`sft.encode_all`). byte_offsets: the bytes [start, end)
    of the completion that each token covers, (0, 0) for the prompt's. Texts over max_length are left out, with a
    printed count. Raises InputError if none is left.
    """
    from trl.experimental.utils import encode_with_byte_offsets

    spans = encode_with_byte_offsets(tokenizer.backend_tokenizer, [e.completion for e in examples])
    rows = []
    for row, (ids, covered), e in zip(sft.encode_all(tokenizer, examples, "cot"), spans, examples, strict=True):
        prompt, end = len(row["input_ids"]) - len(ids) - 1, len(e.completion.encode())
        assert row["labels"] == [-100] * prompt + [*ids, tokenizer.eos_token_id]
        row["byte_offsets"] = [(0, 0)] * prompt + [*covered, (end, end)]
        rows.append(row | {"original_prompt_text": e.prompt, "original_completion_text": e.completion})
    kept = [row for row in rows if len(row["input_ids"]) <= config.max_length]
    if not kept:
        raise InputError(
            f"None of {len(rows)} texts fits into max_length = {config.max_length} tokens; raise it, or give others."
        )
    if len(kept) < len(rows):
        print(f"left out {len(rows) - len(kept)} of {len(rows)} texts: longer than {config.max_length} tokens")
    return kept


def make_batch(rows: list[dict], pad: int) -> dict:
    """What GOLD's loss reads of some rows, padded on the right: on the left, as GOLD's own collator does it, a model
    that counts positions, as GPT-2, would learn them otherwise than it meets them."""
    import torch

    batch = teacher.sft_batch(rows, pad)
    width = batch["labels"].shape[1]
    spans = [[*row["byte_offsets"], *[(0, 0)] * (width - len(row["byte_offsets"]))] for row in rows]
    texts = {name: [row[name] for row in rows] for name in ("original_prompt_text", "original_completion_text")}
    return batch | {"byte_offsets": torch.tensor(spans)} | texts


def make_trainer(config, own: list[Example], valid: list[Example], teacher_dir, student_dir, out_dir, **settings):
    """GOLD's trainer, ready to train, with two repairs: accumulated batches weigh as whole ones do, and the order of an
    epoch depends on the seed and the epoch alone, so that an interrupted training meets it again."""
    from datasets import Dataset
    from transformers import PrinterCallback

    student, tokenizer = models.load_model(str(student_dir), device=config.device, dropout=config.dropout)
    check(models.load_tokenizer(str(teacher_dir)), tokenizer, student.config.is_encoder_decoder)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You are importing from 'trl.experimental'")
        from trl.experimental.gold import GOLDConfig, GOLDTrainer

    class Gold(GOLDTrainer):
        def _get_train_sampler(self, dataset=None):
            sampler = super()._get_train_sampler(dataset)
            sampler.set_epoch = lambda epoch: sampler.generator.manual_seed(config.seed + epoch)
            return sampler

    rows, held_out = (encode(config, tokenizer, some) for some in (own, valid[: config.valid_problems]))
    if len(rows) < config.batch_size:
        raise InputError(f"GOLD needs a whole batch of {config.batch_size} texts, not {len(rows)}; lower batch_size.")
    models.seed_everything(config.seed)
    given = sft.trainer_arguments(config, Path(out_dir), student.device) | SETTINGS | settings
    trainer = Gold(
        model=student,
        teacher_model=models.load_model(str(teacher_dir), dtype=config.dtype, device=config.device)[0],
        args=GOLDConfig(
            **given,
            teacher_tokenizer_name_or_path=str(teacher_dir),
            disable_dropout=config.dropout is None,
            max_length=None,
            gradient_checkpointing=False,
            dataset_kwargs={"skip_prepare_dataset": True},  # encode did it
        ),
        data_collator=lambda some: make_batch(some, tokenizer.pad_token_id),
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(held_out),
        processing_class=tokenizer,
        peft_config=models.lora_config(student, config.lora_rank) if config.lora_rank else None,
    )
    trainer.model_accepts_loss_kwargs = False  # its loss is a mean over the micro-batch, which the library then divides
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(trainers.callbacks("student, GOLD", config.steps))
    return trainer


def train(
    config,
    own: list[Example],
    valid: list[Example],
    teacher_dir: str | Path,
    student_dir: str | Path,
    out_dir,
    **settings,
) -> None:
    """Train the student saved at `student_dir` to write `own`, as the teacher at `teacher_dir` finds it likely.

    config    a `training.Config`, of which `match` is not read
    own       the student's texts; valid: texts of which GOLD's loss is watched, the teacher asked about them too
    settings  fields of GOLDConfig to set otherwise than SETTINGS, as uld_crossentropy_weight=1.0
    The end of the sequence is learned if the teacher was taught to stop and both tokenizers name their end alike. An
    epoch leaves out what fills no whole batch. Raises InputError where `check` does, or for fewer texts than a batch.
    Resumes from the last complete checkpoint in `out_dir`, on a CPU to the bit. Leaves model/, metrics.jsonl and
    config.json (the config, and GOLD's settings under "gold").
    """
    out_dir = Path(out_dir)
    trainer = make_trainer(config, own, valid, teacher_dir, student_dir, out_dir, **settings)
    trainers.run(trainer, out_dir)
    models.save_model(trainer.model, trainer.processing_class, out_dir / "model")
    write_jsonl(out_dir / "metrics.jsonl", sft.curve(trainer.state.log_history))
    (out_dir / "config.json").write_text(json.dumps(asdict(config) | {"gold": SETTINGS | settings}, indent=1) + "\n")
    trainers.discard_all(out_dir)
