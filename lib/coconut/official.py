"""What the published code reads and writes: its YAML files, and checkpoints with the prefix `base_causallm.`.

Every key of its files is known here, checked, and either becomes a setting of ours or is returned beside them. (Its
data files, JSON lists of {question, steps, answer}, are read by lib.tasks: gsm8k, prosqa.) Source of the keys, values
and quirks: the authors' repository at 27273cb, and 8bfe3b7 of "Reasoning by superposition" for the symbol task.
"""

from dataclasses import dataclass
from pathlib import Path

import yaml

from lib.coconut.config import Config
from lib.errors import InputError

KEYS = {
    "project": str,
    "save_path": str,
    "name": str,
    "only_eval": bool,
    "coconut": bool,
    "cot": bool,
    "no_thoughts": bool,
    "no_cot": bool,
    "c_thought": int,
    "epochs_per_stage": int,
    "max_latent_stage": int,
    "pad_latent_to_max": bool,
    "save_only_improve": bool,
    "uniform_prob": float,
    "model_id": str,
    "load_model_path": str,
    "seed": int,
    "resume": int,
    "bf16": bool,
    "train_path": str,
    "val_path": str,
    "reset_optimizer": bool,
    "batch_size_training": int,
    "debug": bool,
    "gradient_accumulation_steps": int,
    "num_epochs": int,
    "lr": float,
    "weight_decay": float,
}
DEFAULTS = dict(
    coconut=True,
    cot=False,
    no_thoughts=False,
    no_cot=False,
    only_eval=False,
    c_thought=1,
    epochs_per_stage=5,
    max_latent_stage=6,
    pad_latent_to_max=True,
    save_only_improve=False,
    uniform_prob=0.0,
    model_id="openai-community/gpt2",
    load_model_path="None",
    seed=0,
    resume=0,
    bf16=False,
    reset_optimizer=True,
    batch_size_training=32,
    debug=False,
    gradient_accumulation_steps=1,
    num_epochs=50,
    lr=1e-4,
    weight_decay=0.01,
)
# The published files by name, as what they change of DEFAULTS; their quirks (resume as start epoch) are kept.
PRESETS: dict[str, dict] = {
    "gsm_cot": dict(coconut=False, cot=True, c_thought=0, epochs_per_stage=1, max_latent_stage=0, num_epochs=25)
    | dict(reset_optimizer=False),
    "gsm_coconut": dict(c_thought=2, epochs_per_stage=3, max_latent_stage=3, num_epochs=25, resume=3),
    "gsm_coconut_eval": dict(c_thought=2, epochs_per_stage=3, max_latent_stage=3, num_epochs=25, resume=15)
    | dict(only_eval=True),
    "prontoqa_coconut": {},
    "prontoqa_coconut_eval": dict(only_eval=True, resume=40),
    "prosqa_coconut": {},
    "prosqa_coconut_eval": dict(only_eval=True, resume=40),
    "prosqa_symbol": dict(epochs_per_stage=25, max_latent_stage=4, num_epochs=300, uniform_prob=0.1)
    | dict(reset_optimizer=False, model_id="gpt2_2x768", batch_size_training=64),
}
GPUS = 4  # the published batch is a batch a GPU, on four of them (the symbol task: 128 on two)


@dataclass(frozen=True)
class Official:
    """A published setting: ours, and what is no setting of a training.

    config      the training
    stage       the published stage that `resume` stands for: with only_eval it decides how many thoughts are given
    thoughts    so many, as the published evaluation counts them (problems with few steps aside)
    weights     load_model_path, "" for none: a checkpoint to start from, or to evaluate
    only_eval, train_path, val_path, debug, every_epoch   as the file says (every_epoch: save_only_improve is false)
    """

    config: Config
    stage: int
    thoughts: int
    weights: str
    only_eval: bool
    train_path: str
    val_path: str
    debug: bool
    every_epoch: bool


def read(source: str | Path, gpus: int = GPUS) -> Official:
    """A published YAML file, or one of PRESETS by name. Raises InputError for an unknown key or a wrong type.

    gpus  the processes that the file's batch size is meant for; ours is the whole batch
    """
    if str(source) in PRESETS:
        return translate(PRESETS[str(source)], str(source), gpus)
    try:
        values = yaml.safe_load(Path(source).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"Cannot read {source} ({reason}); give a YAML file or one of {', '.join(PRESETS)}.") from None
    if not isinstance(values, dict):
        raise InputError(f"{source}: expected keys and values, found {type(values).__name__}.")
    return translate(values, str(source), gpus)


def translate(values: dict, where: str, gpus: int = GPUS) -> Official:
    """The keys of a published file as our settings."""
    if unknown := [key for key in values if key not in KEYS]:
        raise InputError(f"{where}: unknown key {unknown[0]!r}; the published keys are {', '.join(KEYS)}.")
    v = DEFAULTS | {key: checked(key, value, where) for key, value in values.items()}
    chosen = [mode for mode in ("coconut", "cot", "no_thoughts", "no_cot") if v[mode]]
    if len(chosen) != 1 and chosen != ["coconut", "no_thoughts"]:
        raise InputError(f"{where}: set exactly one of coconut, cot, no_thoughts, no_cot; found {chosen or 'none'}.")
    method = dict(coconut="coconut", cot="cot", no_thoughts="coconut_no_thought", no_cot="answer_only")[chosen[-1]]
    if method == "coconut" and v["c_thought"] < 1:
        raise InputError(f"{where}: coconut needs c_thought of at least 1, not {v['c_thought']}.")
    staged, accumulation = method in ("coconut", "coconut_no_thought"), v["gradient_accumulation_steps"]
    config = Config(
        model=v["model_id"],
        method=method,
        c_thought=max(1, v["c_thought"]),
        max_latent_stage=v["max_latent_stage"],
        pad_latent_to_max=v["pad_latent_to_max"],
        mix=v["uniform_prob"] if staged else 0.0,
        mix_from="all",
        one_at_a_time=False,
        steps=0,
        switch_at=0.0,
        num_epochs=v["num_epochs"],
        epochs_per_stage=v["epochs_per_stage"] if staged else 0,
        first_epoch=0 if v["only_eval"] else v["resume"],
        reset_optimizer="epoch" if v["reset_optimizer"] else "never",
        batch_size=v["batch_size_training"] * gpus * accumulation,
        accumulation=accumulation,
        learning_rate=v["lr"],
        warmup_steps=0,
        decay_steps=0,
        weight_decay=v["weight_decay"],
        adam_beta2=0.999,
        max_grad_norm=0.0,
        answer_prefix="### ",
        init_from="<<",
        max_length=1024,
        dtype="bfloat16" if v["bf16"] else "float32",
        seed=v["seed"],
    )
    stage = v["resume"] // max(1, v["epochs_per_stage"]) if staged else 0
    return Official(
        config=config,
        stage=stage,
        thoughts=config.c_thought * min(stage, config.max_latent_stage) if config.has_latents else 0,
        weights="" if v["load_model_path"] == "None" else v["load_model_path"],
        only_eval=v["only_eval"],
        train_path=v.get("train_path", ""),
        val_path=v.get("val_path", ""),
        debug=v["debug"],
        every_epoch=not v["save_only_improve"],
    )


def checked(key: str, value: object, where: str) -> object:
    """The value of a key, of the type that it should have; "1e-4" is a number here, as YAML reads it as text."""
    kind = KEYS[key]
    if value is None and kind is str:
        return "None"
    if kind is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:
            value = float(value)
        except ValueError:
            pass
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise InputError(f"{where}: {key} must be a {kind.__name__}, found {value!r}.")
    return value


def load_checkpoint(model, path: str | Path) -> None:
    """Load a published checkpoint (a state dict, its keys with or without `base_causallm.`) into `model`, in place.

    The model must have the markers already (`engine.add_markers`), in the published order. Nothing is unpickled but
    tensors. Raises InputError where a name or a shape does not fit.
    """
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        state = {name.removeprefix("base_causallm."): value for name, value in state.items()}
    except Exception as error:  # the library raises many kinds for a broken file
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"Cannot read the checkpoint {path} ({reason}); give a state dict saved by torch.") from None
    own = model.state_dict()
    state = {name: value for name, value in state.items() if not name.startswith("embedding.")}
    for name, value in state.items():
        if name in own and value.shape != own[name].shape:
            raise InputError(
                f"{path}: {name} has the shape {tuple(value.shape)}, the model wants {tuple(own[name].shape)}; "
                "is it a checkpoint of this model, with its three added tokens?"
            )
    found = model.load_state_dict(state, strict=False)
    missing = [name for name in found.missing_keys if not (name.startswith("lm_head") and model_is_tied(model))]
    if missing or found.unexpected_keys:
        raise InputError(
            f"{path}: {len(missing)} weights are missing ({', '.join(missing[:2])}) and "
            f"{len(found.unexpected_keys)} are unknown ({', '.join(found.unexpected_keys[:2])}); is it this model?"
        )


def model_is_tied(model) -> bool:
    """Do embeddings and head share their weights?"""
    return model.get_input_embeddings().weight is model.get_output_embeddings().weight
