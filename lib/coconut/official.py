"""What the published code reads and writes: its YAML files, and checkpoints with the prefix `base_causallm.`.

Every key of its files is known here, checked, and either becomes a setting of ours or is returned beside them. (Its
data files, JSON lists of {question, steps, answer}, are read by lib.tasks: gsm8k, prosqa.) Source of the keys, values
and quirks: the authors' repository at 27273cb, and 8bfe3b7 of "Reasoning by superposition" for the symbol task.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import yaml

from lib import models
from lib.coconut.config import Config
from lib.coconut.schedule import Stage
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
STAGED = ("coconut", "coconut_no_thought")  # methods with stages by epoch
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
    except Exception as error:  # the library raises many kinds for a broken file
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"Cannot read {source} ({reason}); give a YAML file or one of {', '.join(PRESETS)}.") from None
    if not isinstance(values, dict):
        raise InputError(f"{source}: expected keys and values, found {type(values).__name__}.")
    return translate(values, str(source), gpus)


def translate(values: dict, where: str, gpus: int = GPUS) -> Official:
    """The keys of a published file as our settings. Raises InputError where they make none."""
    if unknown := [key for key in values if key not in KEYS]:
        raise InputError(f"{where}: unknown key {short(unknown[0])}; the published keys are {', '.join(KEYS)}.")
    v = DEFAULTS | {key: checked(key, value, where) for key, value in values.items()}
    method, accumulation = method_of(v, where), v["gradient_accumulation_steps"]
    staged = method in STAGED
    settings = dict(
        model=v["model_id"],
        method=method,
        source="last_hidden",
        markers=True,
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
    try:
        config = Config(**settings)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None

    def path_of(key: str) -> str:
        return "" if v.get(key, "None") == "None" else v[key]

    stage = v["resume"] // max(1, v["epochs_per_stage"]) if staged else 0
    return Official(
        config=config,
        stage=stage,
        thoughts=config.c_thought * min(stage, config.max_latent_stage) if config.has_latents else 0,
        weights=path_of("load_model_path"),
        only_eval=v["only_eval"],
        train_path=path_of("train_path"),
        val_path=path_of("val_path"),
        debug=v["debug"],
        every_epoch=not v["save_only_improve"],
    )


def method_of(v: dict, where: str) -> str:
    """The method that the switches of a published file mean. Raises InputError where they or its epochs make none."""
    chosen = [mode for mode in ("coconut", "cot", "no_thoughts", "no_cot") if v[mode]]
    if len(chosen) != 1 and chosen != ["coconut", "no_thoughts"]:
        raise InputError(f"{where}: set exactly one of coconut, cot, no_thoughts, no_cot; found {chosen or 'none'}.")
    method = dict(coconut="coconut", cot="cot", no_thoughts="coconut_no_thought", no_cot="answer_only")[chosen[-1]]
    if method == "coconut" and v["c_thought"] < 1:
        raise InputError(f"{where}: coconut needs c_thought of at least 1, not {v['c_thought']}.")
    if method in STAGED and v["epochs_per_stage"] < 1:
        raise InputError(f"{where}: stages need epochs_per_stage of at least 1, not {v['epochs_per_stage']}.")
    if v["resume"] >= v["num_epochs"] and not v["only_eval"]:
        raise InputError(f"{where}: resume {v['resume']} leaves none of num_epochs {v['num_epochs']} to train.")
    return method


def checked(key: str, value: object, where: str) -> object:
    """The value of a key, of the type that it should have; "1e-4" is a number here, as YAML reads it as text.

    Raises InputError for another type, and for numbers below 0 or without end.
    """
    kind = KEYS[key]
    if value is None and kind is str:
        return "None"
    if kind is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:
            value = float(value)
        except (ValueError, OverflowError):
            pass
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise InputError(f"{where}: {key} must be a {kind.__name__}, found {short(value)}.")
    if kind in (int, float) and not 0 <= value < math.inf:
        raise InputError(f"{where}: {key} must be a finite number of at least 0, found {short(value)}.")
    return value


def short(value: object) -> str:
    """A value as a sentence can hold it."""
    shown = f"a {type(value).__name__}" if isinstance(value, (list, dict)) else " ".join(repr(value).split())
    return shown if len(shown) <= 60 else shown[:57] + "..."


def usable(source: str | Path) -> Official:
    """`read`, refused with an InputError where the file asks for an evaluation and names no weights."""
    found = read(source)
    if found.only_eval and not found.weights:
        raise InputError(f"{source}: only_eval is set, but load_model_path names no checkpoint; give one.")
    return found


def load_checkpoint(model, path: str | Path) -> None:
    """Load a published checkpoint (a state dict, its keys with or without `base_causallm.`) into `model`, in place.

    The model must have the markers already (`engine.add_tokens`), in the published order. Nothing is unpickled but
    tensors. Raises InputError where a name or a shape does not fit.
    """
    import torch

    state = read_state(path)
    own, table = model.state_dict(), model.get_input_embeddings().weight
    if "embedding.weight" not in own:
        state.pop("embedding.weight", None)  # the published wrapper's second name for the embeddings
    shared = [name for name in own if own[name].data_ptr() == table.data_ptr()]  # a tied head is among them
    given = [state[name] for name in shared if name in state]
    missing = [name for name in own if name not in state and not (name in shared and given)]
    unknown = [name for name in state if name not in own]
    if missing or unknown:
        raise InputError(
            f"{path}: {len(missing)} weights are missing ({named(missing)}) and {len(unknown)} are unknown "
            f"({named(unknown)}); is it this model?"
        )
    for name, value in state.items():
        if getattr(value, "shape", None) != own[name].shape:
            found = tuple(value.shape) if hasattr(value, "shape") else "none"
            raise InputError(
                f"{path}: {name} has the shape {found}, the model wants {tuple(own[name].shape)}; "
                "is it a checkpoint of this model, with its three added tokens?"
            )
    if any(not torch.equal(value, given[0]) for value in given[1:]):
        raise InputError(f"{path}: its head differs from its embeddings, which the model shares; is it this model?")
    model.load_state_dict(state, strict=False)


def named(names: list[str]) -> str:
    """The first two of some names."""
    return short(", ".join(map(str, names[:2]))) if names else "none"


def read_state(path: str | Path) -> dict:
    """The tensors of a published checkpoint by name, without the prefix. Raises InputError for anything else."""
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        return {name.removeprefix("base_causallm."): value for name, value in state.items()}
    except Exception as error:  # the library raises many kinds for a broken file
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"Cannot read the checkpoint {path} ({reason}); give a state dict saved by torch.") from None


def adopt(found: Official, out_dir: str | Path) -> None:
    """The weights that a published file names (load_model_path), as a model directory of ours in `out_dir`/model.

    With only_eval it is a model to be asked, with as many thoughts as `resume` says; else one to train on from: a
    checkpoint of chains of thought, which has no added tokens yet, or one that has them.
    """
    from lib.coconut import engine

    model, tokenizer = models.load_model(found.config.model, device="cpu")
    state = read_state(found.weights)
    larger = any(getattr(value, "shape", ())[:1] == (len(tokenizer) + 3,) for value in state.values())
    if larger and found.config.has_latents:
        engine.add_tokens(model, tokenizer, found.config.markers, found.config.init_from)
    load_checkpoint(model, found.weights)
    if not found.only_eval:
        models.save_model(model, tokenizer, Path(out_dir) / "model")
        return
    reached = Stage(found.stage, found.config.max_latent_stage, found.thoughts)
    engine.wrap(found.config, model, tokenizer).save(Path(out_dir) / "model", tokenizer, found.config, reached)
