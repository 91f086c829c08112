"""Models: small ones made from scratch by preset, or any causal or encoder-decoder model by directory or hub id.

Knows no problem and no method. Everything that decides how a model comes to be is here: preset, precision, device,
adapters, special tokens, the seed.
"""

import os
import platform
import random
from pathlib import Path

from lib.errors import InputError

# Family and sizes; every preset is trained from scratch, with a tokenizer built from the problems.
PRESETS = {
    "llama_tiny": dict(family="llama", layers=4, width=128, heads=4),
    "llama_2x128": dict(family="llama", layers=2, width=128, heads=4),
    "llama_small": dict(family="llama", layers=8, width=256, heads=8),
    "gpt2_4x256": dict(family="gpt2", layers=4, width=256, heads=8),
    "gpt2_2x768": dict(family="gpt2", layers=2, width=768, heads=8),
    "flan_t5_tiny": dict(family="t5", layers=3, width=128, heads=4),
}


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and PyTorch (all devices). On a CPU with as many threads a run repeats to the bit."""
    import numpy
    import torch

    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def pick_device(device: str = "auto"):
    """`auto` is the first GPU, else the CPU. Raises InputError for a GPU that is not there."""
    import torch

    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        picked = torch.device(device)
    except RuntimeError:
        raise InputError(f"Unknown device {device!r}; use auto, cpu or cuda.") from None
    if picked.type not in ("cpu", "cuda"):
        raise InputError(f"Unknown device {device!r}; use auto, cpu or cuda.")
    if picked.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"Device {device!r} was asked for, but PyTorch sees no GPU; use device auto or cpu.")
    return picked


def device_name(device: str = "auto") -> str:
    """What a device is called: the GPU's name, or the CPU's kind and cores."""
    import torch

    picked = pick_device(device)
    if picked.type == "cuda":
        return torch.cuda.get_device_name(picked)
    return f"CPU {platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


def check_dtype(dtype: str) -> None:
    """Raise InputError for a precision that is not known."""
    if dtype not in ("float32", "bfloat16", "float16"):
        raise InputError(f"Unknown dtype {dtype!r}; use float32, bfloat16 or float16.")


def pick_dtype(dtype: str):
    """The torch dtype of a name: float32, bfloat16 or float16."""
    import torch

    check_dtype(dtype)
    return getattr(torch, dtype)


def is_encoder_decoder(name: str) -> bool:
    """Is this preset, model directory or hub id an encoder-decoder model? Raises InputError where there is none."""
    from transformers import AutoConfig

    if name in PRESETS:
        return PRESETS[name]["family"] == "t5"
    try:
        return bool(AutoConfig.from_pretrained(name).is_encoder_decoder)
    except Exception as error:  # the library raises many kinds for a broken file
        raise not_found(name, error) from None


def from_scratch(preset: str, tokenizer, dropout: float = 0.0):
    """A freshly initialised model of `preset` for `tokenizer`; call `seed_everything` first for a repeatable one."""
    from transformers import (
        GPT2Config,
        GPT2LMHeadModel,
        LlamaConfig,
        LlamaForCausalLM,
        T5Config,
        T5ForConditionalGeneration,
    )

    sizes = PRESETS[preset]
    ids = dict(pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, vocab_size=len(tokenizer))
    layers, width, heads = sizes["layers"], sizes["width"], sizes["heads"]
    if sizes["family"] == "llama":
        config = LlamaConfig(
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            initializer_range=width**-0.5,  # the library's 0.02 suits widths near 2,500
            bos_token_id=None,
            **ids,
        )
        set_dropout(config, dropout)
        return LlamaForCausalLM(config)
    if sizes["family"] == "gpt2":
        config = GPT2Config(
            n_embd=width,
            n_layer=layers,
            n_head=heads,
            n_positions=1024,
            bos_token_id=None,
            activation_function="gelu_pytorch_tanh",  # GPT-2's own function (its "gelu_new") in one kernel
            **ids,
        )
        set_dropout(config, dropout)
        return GPT2LMHeadModel(config)
    config = T5Config(
        d_model=width,
        d_kv=width // heads,
        d_ff=2 * width,
        num_layers=layers,
        num_heads=heads,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        decoder_start_token_id=tokenizer.pad_token_id,
        **ids,
    )
    set_dropout(config, dropout)
    return T5ForConditionalGeneration(config)


def load_tokenizer(name: str):
    """The tokenizer of a local model directory or hub id, with a pad token. Raises InputError where there is none."""
    from transformers import AutoTokenizer

    if Path(name).is_dir() and not any((Path(name) / f).exists() for f in ("tokenizer.json", "tokenizer_config.json")):
        raise InputError(f"{name}: a model directory without a tokenizer; save its tokenizer there too.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except Exception as error:  # the library raises many kinds for a broken file
        raise not_found(name, error) from None
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def quiet() -> None:
    """No progress bars for reading and writing weights: small models take no time, and bars litter a notebook."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def load_model(name: str, tokenizer=None, dtype: str = "float32", device: str = "auto", dropout: float | None = None):
    """(model, tokenizer) of a preset, a local directory or a hub id; causal or encoder-decoder as its config says.

    tokenizer  needed with a preset, whose vocabulary it fixes (`tokenization.build_tokenizer`); else the model's own
    dropout    every rate of dropout in the model's config; None leaves them as they are
    A directory that holds a LoRA adapter is loaded on top of the base model that its config names.
    Raises InputError where there is no such model, or a directory lacks its config, weights or tokenizer.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    quiet()
    place, precision = pick_device(device), pick_dtype(dtype)
    if name in PRESETS:
        assert tokenizer is not None, f"preset {name} needs a tokenizer"
        return from_scratch(name, tokenizer, dropout or 0.0).to(place, precision), tokenizer
    path = Path(name)
    if path.is_dir() and (path / "adapter_config.json").exists():
        return load_adapter(path, dtype, device, dropout)
    if path.is_dir() and not (path / "config.json").exists():
        raise InputError(f"{name}: not a model directory (no config.json); check the path.")
    tokenizer = tokenizer or load_tokenizer(name)
    try:
        config = AutoConfig.from_pretrained(name)
        kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        if dropout is not None:
            set_dropout(config, dropout)
        model, report = kind.from_pretrained(name, config=config, dtype=precision, output_loading_info=True)
    except Exception as error:  # the libraries raise many kinds for a broken file
        raise not_found(name, error) from None
    if missing := sorted(report["missing_keys"]):  # the library would fill them with random numbers
        raise InputError(f"{name}: {len(missing)} weights are missing, {missing[0]} first; its config asks for them.")
    return model.to(place), tokenizer


def set_dropout(config, rate: float) -> None:
    """Set every rate of dropout that a model's config names, before the model is made.

    Setting `p` of a model's `nn.Dropout` modules is not enough: attention calls the functional kind, with the rate it
    read from the config.
    """
    for name, value in config.to_dict().items():
        if ("dropout" in name or name.endswith("_pdrop")) and isinstance(value, (int, float)):
            setattr(config, name, rate)


def not_found(name: str, error: Exception) -> InputError:
    """The sentence for a model that cannot be loaded, with the first line of the library's own reason."""
    reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
    presets = ", ".join(PRESETS)
    return InputError(
        f"Cannot load the model {name!r} ({reason}); give a preset ({presets}), a model directory or, with a network, "
        "a hub id."
    )


def load_adapter(path: Path, dtype: str, device: str, dropout: float | None = None):
    """(model, tokenizer): the LoRA adapter saved at `path` on the base model that it names."""
    from peft import PeftConfig, PeftModel

    try:
        named = str(Path(PeftConfig.from_pretrained(str(path)).base_model_name_or_path))
    except Exception as error:  # the library raises many kinds for a broken file
        raise not_found(str(path), error) from None
    try:
        base, tokenizer = load_model(named, None, dtype, device, dropout)
    except InputError as error:
        raise InputError(f"The adapter {path} needs its base model: {error}") from None
    if (path / "tokenizer_config.json").exists():
        tokenizer = load_tokenizer(str(path))
    if len(tokenizer) > base.get_input_embeddings().num_embeddings:
        base.resize_token_embeddings(len(tokenizer))
    try:
        return PeftModel.from_pretrained(base, str(path)), tokenizer
    except Exception as error:  # as above
        raise not_found(str(path), error) from None


def lora_config(model, rank: int, alpha: int | None = None):
    """A peft `LoraConfig` for all linear layers of `model` but its head; alpha defaults to 2 * rank."""
    from peft import LoraConfig

    task = "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM"
    return LoraConfig(
        r=rank, lora_alpha=alpha or 2 * rank, lora_dropout=0.0, target_modules="all-linear", task_type=task
    )


def adapter_bytes(model, rank: int) -> int:
    """The size of a LoRA adapter of `rank` on disk: rank * (inputs + outputs) numbers a linear layer, the head aside.

    Four bytes each: peft keeps an adapter in float32 whatever the base model's precision is.
    """
    import torch

    head = model.get_output_embeddings()
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head]
    return 4 * rank * sum(m.in_features + m.out_features for m in layers)


def check_adapter(model, rank: int, limit_mb: float) -> None:
    """Raise InputError, with the highest rank that fits, where a LoRA adapter would take more than `limit_mb` MB."""
    size = adapter_bytes(model, rank) / 1e6
    if limit_mb and size > limit_mb:
        fits = int(limit_mb // (size / rank))
        advice = f"use rank {fits} or less" if fits else "no rank fits; raise max_adapter_mb"
        raise InputError(f"A LoRA adapter of rank {rank} takes {size:.1f} MB, more than {limit_mb:g} MB; {advice}.")


def add_special_tokens(model, tokenizer, tokens: list[str]) -> list[int]:
    """Add `tokens` to both vocabularies and return their ids; new rows are the mean of the old ones.

    The mean of the embeddings keeps new tokens where the model's inputs live; random rows of the wrong size make an
    untied head give them most of the probability (a row of large norm wins), a zero row gives every input the same
    logit. An untied head gets the mean of its own rows; a tied one has nothing of its own to set.
    """
    import torch

    rows, known = model.get_input_embeddings().num_embeddings, tokenizer.get_vocab()
    old = min(rows, len(tokenizer))  # some models have rows to spare, which no token has trained
    tokenizer.add_special_tokens({"extra_special_tokens": tokens}, replace_extra_special_tokens=False)
    ids = tokenizer.convert_tokens_to_ids(tokens)
    if len(tokenizer) > rows:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    new = sorted({i for i, token in zip(ids, tokens, strict=True) if token not in known or i >= rows})
    head = model.get_output_embeddings()
    tables = [model.get_input_embeddings().weight]
    if head is not None and head.weight is not tables[0]:
        tables.append(head.weight)
    with torch.no_grad():
        for table in tables:
            table[new] = table[:old].mean(dim=0)
    return ids


def save_model(model, tokenizer, out_dir: str | Path) -> Path:
    """Save weights (safetensors; an adapter alone where the model is a peft one), config and tokenizer to `out_dir`."""
    quiet()
    out_dir = Path(out_dir)
    model.save_pretrained(out_dir)
    tokenizer.save_pretrained(out_dir)
    return out_dir
