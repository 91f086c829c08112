"""Small models for every test that needs one: seconds to train, nothing to download."""

import os

# Before torch is imported, here and in every process that a test starts.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # waiting threads that spin take the cores from everyone else
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest

from lib import prompts, tokenization
from lib.problems import make_problem
from lib.tasks import modular_chain


@pytest.fixture(scope="session")
def chains():
    """32 modular chains of 1 to 3 operations, so that a batch of them holds padding."""
    sizes = {1: 8, 2: 12, 3: 12}
    return [p for n, count in sizes.items() for p in modular_chain.generate(count, n_operations=n, seed=n)]


@pytest.fixture(scope="session")
def chain_texts(chains):
    return [prompts.prompt(p) + prompts.solution(p) for p in chains]


@pytest.fixture(scope="session")
def pairs(chains):
    """A pair for each chain: its solution before that of another chain, every third of which is cut off."""
    from lib.preferences import Pair

    others = [prompts.solution(chains[(7 * i + 3) % 32]) for i in range(32)]
    ends = [i % 3 != 0 for i in range(32)]
    cut = [other if end else other[: len(other) // 2 + 1] for other, end in zip(others, ends, strict=True)]
    rows = zip(chains, cut, ends, strict=True)
    return [Pair(p.id, prompts.prompt(p), prompts.solution(p), other, end, 0.5) for p, other, end in rows]


def with_tokenizer(model, chain_texts, directory):
    model.save_pretrained(directory)
    tokenization.build_tokenizer(chain_texts, 320).save_pretrained(directory)
    return directory


def small_llama(texts):
    """An untrained one-layer Llama of width 32, for a tokenizer of 320 tokens built from `texts`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        initializer_range=32**-0.5,
        vocab_size=len(tokenization.build_tokenizer(texts, 320)),
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config)


@pytest.fixture(scope="session")
def tiny_llama(chain_texts, tmp_path_factory):
    """The directory of an untrained one-layer Llama of width 32 with its tokenizer."""
    return with_tokenizer(small_llama(chain_texts), chain_texts, tmp_path_factory.mktemp("tiny_llama"))


@pytest.fixture(scope="session")
def tiny_t5(chain_texts, tmp_path_factory):
    """The directory of an untrained one-layer T5 of width 32 with its tokenizer."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    config = T5Config(
        d_model=32,
        d_kv=16,
        d_ff=64,
        num_layers=1,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        vocab_size=len(tokenization.build_tokenizer(chain_texts, 320)),
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )
    return with_tokenizer(T5ForConditionalGeneration(config), chain_texts, tmp_path_factory.mktemp("tiny_t5"))


def adapter(base, chains, directory):
    """The directory of a LoRA adapter that learned a little of the chains."""
    from lib import sft

    config = sft.Config(str(base), steps=4, batch_size=8, learning_rate=2e-2, warmup_steps=1, lora_rank=4, device="cpu")
    sft.train(config, chains[:16], chains[:4], directory)
    return directory / "model"


@pytest.fixture(scope="session")
def llama_adapter(tiny_llama, chains, tmp_path_factory):
    return adapter(tiny_llama, chains, tmp_path_factory.mktemp("llama_adapter"))


@pytest.fixture(scope="session")
def t5_adapter(tiny_t5, chains, tmp_path_factory):
    return adapter(tiny_t5, chains, tmp_path_factory.mktemp("t5_adapter"))


@pytest.fixture(scope="session")
def trained_run(tiny_llama, chains, tmp_path_factory):
    """Where `sft.train` left a tiny Llama that learned the 32 chains by heart."""
    from lib import sft

    config = sft.Config(
        str(tiny_llama), steps=120, batch_size=32, learning_rate=2e-2, warmup_steps=20, log_steps=12, device="cpu"
    )
    directory = tmp_path_factory.mktemp("trained")
    sft.train(config, chains, chains[:8], directory)
    return directory


@pytest.fixture(scope="session")
def sums():
    """The 100 sums of two digits, each with one annotated step."""
    pairs = [(a, b) for a in range(10) for b in range(10)]
    return [make_problem(f"{a} + {b} ?", [f"<<{a}+{b}={a + b}>>"], str(a + b), "sums") for a, b in pairs]


@pytest.fixture(scope="session")
def annotating(sums, tmp_path_factory):
    """The directory of a tiny Llama that writes `<<3+4=`, seldom followed by 7: what samplers and verifiers feed on."""
    from lib import sft

    texts = [prompts.prompt(p) + prompts.solution(p) for p in sums]
    base = with_tokenizer(small_llama(texts), texts, tmp_path_factory.mktemp("untrained"))
    rate = {"learning_rate": 2e-2, "warmup_steps": 10, "log_steps": 20}
    directory = tmp_path_factory.mktemp("annotating")
    sft.train(sft.Config(str(base), steps=60, batch_size=32, device="cpu", **rate), sums, sums[:8], directory)
    return directory / "model"


@pytest.fixture(scope="session")
def short_chains():
    """44 modular chains of 1 and 2 operations: sources and canvases of two lengths."""
    return [p for n, count in {1: 20, 2: 24}.items() for p in modular_chain.generate(count, n_operations=n, seed=n)]


@pytest.fixture(scope="session")
def denoiser(short_chains, tmp_path_factory):
    """loss -> the directory of a tiny diffusion model that learned the 44 chains nearly by heart."""
    from lib.dot import config as settings
    from lib.dot import training

    made = {}

    def directory(loss):
        if loss not in made:
            made[loss] = tmp_path_factory.mktemp(loss)
            size = {"model": "tiny", "loss": loss, "steps": 240, "batch_size": 44, "check_steps": 240}
            rates = {"learning_rate": 1e-3, "embedding_rate": 1e-2, "warmup_steps": 20, "valid_problems": 0}
            with pytest.MonkeyPatch.context() as patch:
                patch.setitem(settings.PRESETS, "tiny", (64, 2, 4))
                config = settings.Config(**size, **rates, device="cpu")
                training.train(config, short_chains, [], made[loss])
        return made[loss] / "model"

    return directory
