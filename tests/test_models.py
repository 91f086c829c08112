"""Models come to be, are saved, loaded, adapted and extended; what cannot be loaded is one sentence."""

import json
import re
import shutil

import pytest
import torch

from lib import models, tokenization
from lib.errors import InputError

IDS = torch.tensor([[5, 9, 30, 4, 12, 7]])


@pytest.fixture(scope="module")
def tokenizer(chain_texts):
    return tokenization.build_tokenizer(chain_texts, 320)


def logits(model, ids=IDS):
    model.eval()
    with torch.no_grad():
        more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
        return model(input_ids=ids, **more).logits


def state(model):
    return {name: weight.clone() for name, weight in model.state_dict().items()}


# --- from scratch ---


@pytest.mark.parametrize("preset", models.PRESETS)
def test_presets_build_the_right_kind_with_the_tokenizers_ids(preset, tokenizer):
    model, same = models.load_model(preset, tokenizer, device="cpu")
    assert same is tokenizer
    config = model.config
    assert config.is_encoder_decoder == (models.PRESETS[preset]["family"] == "t5")
    assert (config.vocab_size, config.pad_token_id, config.eos_token_id) == (len(tokenizer), 0, 1)
    assert model.get_input_embeddings().num_embeddings == len(tokenizer)
    layers, width = models.PRESETS[preset]["layers"], models.PRESETS[preset]["width"]
    assert (config.num_hidden_layers, config.hidden_size) == (layers, width)
    assert model.get_output_embeddings().weight.shape == (len(tokenizer), width)
    assert torch.isfinite(logits(model)).all()
    if config.is_encoder_decoder:
        assert config.decoder_start_token_id == 0
    else:
        assert config.bos_token_id is None


@pytest.mark.parametrize("preset", ["llama_2x128", "flan_t5_tiny"])
def test_the_same_seed_makes_the_same_weights_and_another_seed_others(preset, tokenizer):
    def build(seed):
        models.seed_everything(seed)
        return state(models.from_scratch(preset, tokenizer))

    first, again, other = build(3), build(3), build(4)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_seeding_reaches_python_numpy_and_torch():
    import random

    import numpy

    def draw():
        return random.random(), numpy.random.rand(), torch.rand(1).item()

    models.seed_everything(2**33 + 5)
    first = draw()
    models.seed_everything(2**33 + 5)
    assert draw() == first
    models.seed_everything(6)
    assert all(a != b for a, b in zip(first, draw(), strict=True))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_precision_is_the_one_asked_for(dtype, tokenizer, tiny_llama):
    for name in ("llama_2x128", str(tiny_llama)):
        model, _ = models.load_model(name, tokenizer, dtype=dtype, device="cpu")
        assert {weight.dtype for weight in model.parameters()} == {getattr(torch, dtype)}


# --- saved and loaded ---


@pytest.mark.parametrize("fixture", ["tiny_llama", "tiny_t5"])
def test_a_saved_model_loads_with_identical_logits(fixture, request, tmp_path):
    model, tokenizer = models.load_model(str(request.getfixturevalue(fixture)), device="cpu")
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.01 * torch.randn_like(weight))
    assert models.save_model(model, tokenizer, tmp_path / "saved") == tmp_path / "saved"
    loaded, its_tokenizer = models.load_model(str(tmp_path / "saved"), device="cpu")
    assert type(loaded) is type(model)
    assert torch.equal(logits(loaded), logits(model))
    assert its_tokenizer.get_vocab() == tokenizer.get_vocab()
    assert its_tokenizer("v3 + n4 ?\n")["input_ids"] == tokenizer("v3 + n4 ?\n")["input_ids"]
    assert not list((tmp_path / "saved").glob("*.bin")), "weights are safetensors, never pickled"


def test_a_tokenizer_without_pad_pads_with_eos(tokenizer, tmp_path):
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<eos>").save_pretrained(tmp_path)
    assert models.load_tokenizer(str(tmp_path)).pad_token_id == 1


# --- what cannot be loaded ---


def sentence(call, *words):
    """The text of the InputError that `call` raises, checked to be one sentence that holds `words`."""
    with pytest.raises(InputError) as caught:
        call()
    text = str(caught.value)
    ours = re.sub(r"\(.*\)", "", text)  # the library's own reason, quoted in brackets
    assert "\n" not in text and text.endswith(".") and len(text) < 600
    assert ". " not in ours, f"more than one sentence: {text}"
    for word in words:
        assert str(word) in text
    return text


@pytest.fixture
def broken(tiny_llama, tmp_path):
    """A copy of a good model directory, to be spoiled."""
    return shutil.copytree(tiny_llama, tmp_path / "broken")


def load(directory, **how):
    return lambda: models.load_model(str(directory), device="cpu", **how)


@pytest.mark.parametrize("name", ["no_such_model", "nobody/no-such-model", "/no/such/directory", "a b?c"])
def test_an_unknown_name_is_one_sentence_with_the_known_ones(name):
    sentence(load(name), name, *models.PRESETS)


def test_a_directory_without_config_is_one_sentence(broken):
    (broken / "config.json").unlink()
    sentence(load(broken), broken, "config.json")


def test_a_directory_without_tokenizer_is_one_sentence(broken):
    for file in broken.glob("token*"):
        file.unlink()
    sentence(load(broken), broken, "tokenizer")


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.safetensors"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\x00 nothing of this kind"])
def test_a_corrupt_file_is_one_sentence(file, content, broken):
    (broken / file).write_bytes(content)
    sentence(load(broken), broken)


def test_weights_cut_in_half_are_one_sentence(broken):
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    sentence(load(broken), broken)


def test_missing_weights_are_one_sentence(broken):
    (broken / "model.safetensors").unlink()
    sentence(load(broken), broken)


@pytest.mark.parametrize("key, value", [("hidden_size", 64), ("num_hidden_layers", 2), ("model_type", "nonsense")])
def test_weights_that_do_not_fit_the_config_are_refused(key, value, broken):
    """Also where weights are missing: random ones must not pass for trained ones."""
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, key: value}))
    sentence(load(broken), broken)


@pytest.mark.parametrize("dtype", ["float64", "fp16", "int8", ""])
def test_an_unknown_precision_is_one_sentence(dtype, tiny_llama):
    sentence(load(tiny_llama, dtype=dtype), repr(dtype), "float32", "bfloat16", "float16")


# --- devices ---


def test_auto_is_the_gpu_where_there_is_one():
    assert models.pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert models.pick_device("cpu") == torch.device("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:3"])
def test_a_gpu_that_is_not_there_is_one_sentence(device):
    sentence(lambda: models.pick_device(device), repr(device), "no GPU")


@pytest.mark.parametrize("device", ["gpu", "", "CPU", "cuda:x", "meta", "mps", "xpu"])
def test_an_unknown_or_unusable_device_is_one_sentence(device, tiny_llama):
    if device == "mps" and torch.backends.mps.is_available():
        pytest.skip("this machine has mps")
    sentence(lambda: models.load_model(str(tiny_llama), device=device), repr(device))


# --- dropout ---


@pytest.mark.parametrize(
    "name, rates",
    [
        ("LlamaConfig", {"attention_dropout"}),
        ("GPT2Config", {"attn_pdrop", "embd_pdrop", "resid_pdrop", "summary_first_dropout"}),
        ("T5Config", {"dropout_rate", "classifier_dropout"}),
    ],
)
def test_every_rate_of_dropout_is_set_and_nothing_else(name, rates):
    import transformers

    config = getattr(transformers, name)(**dict.fromkeys(rates, 0.3))
    before = config.to_dict()
    models.set_dropout(config, 0.0)
    assert config.to_dict() == before | dict.fromkeys(rates, 0.0)
    models.set_dropout(config, 0.2)
    assert config.to_dict() == before | dict.fromkeys(rates, 0.2)


@pytest.mark.parametrize("fixture, field", [("tiny_llama", "attention_dropout"), ("tiny_t5", "dropout_rate")])
def test_a_model_and_one_under_an_adapter_are_loaded_with_the_dropout_asked_for(fixture, field, request, tmp_path):
    base = shutil.copytree(request.getfixturevalue(fixture), tmp_path / "base")
    (base / "config.json").write_text(json.dumps(json.loads((base / "config.json").read_text()) | {field: 0.3}))
    model, tokenizer = adapted(base)
    models.save_model(model, tokenizer, tmp_path / "adapter")
    for directory in (base, tmp_path / "adapter"):
        for asked, expected in ((None, 0.3), (0.0, 0.0), (0.1, 0.1)):
            loaded, _ = models.load_model(str(directory), device="cpu", dropout=asked)
            assert getattr(loaded.config, field) == expected
            repeats = [loaded.train()(input_ids=IDS, labels=IDS).loss.item() for _ in range(2)]
            assert (repeats[0] == repeats[1]) == (expected == 0)


# --- LoRA ---


def adapted(directory):
    """A model with a LoRA adapter whose weights are not zero, and its tokenizer."""
    from peft import get_peft_model

    base, tokenizer = models.load_model(str(directory), device="cpu")
    model = get_peft_model(base, models.lora_config(base, 4))
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.normal_(std=0.2)
    return model, tokenizer


@pytest.mark.parametrize("fixture", ["tiny_llama", "tiny_t5"])
def test_an_adapter_directory_gives_the_logits_of_the_model_in_memory(fixture, request, tmp_path):
    directory = request.getfixturevalue(fixture)
    model, tokenizer = adapted(directory)
    base, _ = models.load_model(str(directory), device="cpu")
    assert not torch.allclose(logits(model), logits(base), atol=1e-2), "the adapter does nothing"
    models.save_model(model, tokenizer, tmp_path)
    assert not (tmp_path / "model.safetensors").exists(), "an adapter alone is saved"
    loaded, its_tokenizer = models.load_model(str(tmp_path), device="cpu")
    assert torch.equal(logits(loaded), logits(model))
    assert its_tokenizer.get_vocab() == tokenizer.get_vocab()


@pytest.mark.parametrize("fixture", ["tiny_llama", "tiny_t5"])
def test_only_adapter_weights_train_and_every_linear_layer_but_the_head_has_one(fixture, request):
    model, _ = adapted(request.getfixturevalue(fixture))
    for name, weight in model.named_parameters():
        assert weight.requires_grad == ("lora_" in name), name
    base = model.get_base_model()
    linear = {n for n, m in base.named_modules() if hasattr(m, "lora_A")}
    kinds = {n for n, m in base.named_modules() if isinstance(m, torch.nn.Linear) and "lora" not in n}
    assert {n.removesuffix(".base_layer") for n in kinds} - {"lm_head"} == linear != set()


def test_lora_scales_by_twice_the_rank_unless_told(tiny_llama):
    model, _ = models.load_model(str(tiny_llama), device="cpu")
    assert (models.lora_config(model, 8).lora_alpha, models.lora_config(model, 8, alpha=5).lora_alpha) == (16, 5)
    assert models.lora_config(model, 8).lora_dropout == 0


# 32 layers, width 960, keys and values of width 320, 2560 within: SmolLM2 360M, counted without making its weights.
SMOLLM2 = dict(
    hidden_size=960,
    intermediate_size=2560,
    num_hidden_layers=32,
    num_attention_heads=15,
    num_key_value_heads=5,
    vocab_size=49152,
    tie_word_embeddings=True,
)


def test_the_size_of_an_adapter_is_known_before_it_is_trained(tiny_llama, tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**SMOLLM2))
    assert sum(weight.numel() for weight in model.parameters()) == 361_821_120
    assert models.adapter_bytes(model, 1) == 4 * 542_720
    models.check_adapter(model, 9, 20.0)
    models.check_adapter(model, 999, 0.0)
    with pytest.raises(InputError, match="rank 10 takes 21.7 MB, more than 20 MB; use rank 9 or less"):
        models.check_adapter(model, 10, 20.0)
    with pytest.raises(InputError, match="no rank fits"):
        models.check_adapter(model, 4, 1.0)
    small, tokenizer = adapted(tiny_llama)
    models.save_model(small, tokenizer, tmp_path)
    base, _ = models.load_model(str(tiny_llama), device="cpu")
    header = (tmp_path / "adapter_model.safetensors").stat().st_size - models.adapter_bytes(base, 4)
    assert 0 < header < 8000


def spoil(file, content):
    def act(directory):
        if content is None:
            (directory / file).unlink()
        else:
            (directory / file).write_bytes(content)

    return act


def forget_base(directory):
    config = json.loads((directory / "adapter_config.json").read_text())
    (directory / "adapter_config.json").write_text(
        json.dumps({**config, "base_model_name_or_path": "/no/such/directory"})
    )


@pytest.mark.parametrize(
    "act",
    [
        pytest.param(spoil("adapter_model.safetensors", None), id="no weights"),
        pytest.param(spoil("adapter_model.safetensors", b"garbage"), id="corrupt weights"),
        pytest.param(spoil("adapter_config.json", b"{"), id="corrupt config"),
        pytest.param(spoil("adapter_config.json", b"{}"), id="empty config"),
        pytest.param(forget_base, id="base gone"),
    ],
)
def test_a_broken_adapter_is_one_sentence(act, tiny_llama, tmp_path):
    model, tokenizer = adapted(tiny_llama)
    models.save_model(model, tokenizer, tmp_path)
    act(tmp_path)
    sentence(load(tmp_path))


# --- special tokens ---


def untied_llama(vocabulary):
    from transformers import LlamaConfig, LlamaForCausalLM

    models.seed_everything(5)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=vocabulary,
        tie_word_embeddings=False,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config)


@pytest.fixture(params=["tied", "untied", "tiny_t5"])
def extended(request, tiny_llama, tiny_t5, chain_texts):
    """(model before, model with two tokens more, tokenizer, the new ids)."""
    from copy import deepcopy

    directory = tiny_t5 if request.param == "tiny_t5" else tiny_llama
    model, tokenizer = models.load_model(str(directory), device="cpu")
    if request.param == "untied":
        model = untied_llama(len(tokenizer))
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert tied == (request.param != "untied")
    before = deepcopy(model)
    return before, model, tokenizer, models.add_special_tokens(model, tokenizer, ["<thought>", "<end>"])


def test_new_rows_are_the_mean_and_old_rows_stay_to_the_bit(extended):
    before, model, tokenizer, ids = extended
    old = before.get_input_embeddings().num_embeddings
    assert ids == [old, old + 1] == tokenizer.convert_tokens_to_ids(["<thought>", "<end>"])
    assert model.config.vocab_size == old + 2
    for table in ("get_input_embeddings", "get_output_embeddings"):
        was, now = getattr(before, table)().weight, getattr(model, table)().weight
        assert torch.equal(now[:old], was)
        for row in ids:
            assert torch.allclose(now[row], was.mean(dim=0), atol=1e-7)
    tied = before.get_input_embeddings().weight is before.get_output_embeddings().weight
    assert tied == (model.get_input_embeddings().weight is model.get_output_embeddings().weight)


def test_old_tokens_keep_their_logits_and_new_ones_get_the_mean(extended):
    before, model, _, ids = extended
    was, now = logits(before), logits(model)
    assert torch.allclose(now[..., : was.shape[-1]], was, atol=1e-6)
    assert torch.allclose(now[..., ids[0]], was.mean(dim=-1), atol=1e-5)
    assert not model.training or before.training


def test_new_tokens_are_never_split_and_not_shown(extended):
    _, _, tokenizer, ids = extended
    encoded = tokenizer("v3 + n4<thought>?<end>\n")["input_ids"]
    assert [i for i in encoded if i in ids] == ids
    assert tokenizer.decode(encoded) == "v3 + n4<thought>?<end>\n"
    assert tokenizer.decode(encoded, skip_special_tokens=True) == "v3 + n4?\n"


def test_adding_again_changes_nothing_and_adding_another_keeps_the_first(extended):
    _, model, tokenizer, ids = extended
    before = state(model)
    assert models.add_special_tokens(model, tokenizer, ["<thought>", "<end>"]) == ids
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert models.add_special_tokens(model, tokenizer, ["<end>", "<more>"]) == [ids[1], ids[1] + 1]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "", "the first tokens are special no more"
    assert torch.equal(model.get_input_embeddings().weight[: ids[1] + 1], list(before.values())[0])


def test_a_model_with_special_tokens_saves_and_loads(extended, tmp_path):
    _, model, tokenizer, ids = extended
    models.save_model(model, tokenizer, tmp_path)
    loaded, its_tokenizer = models.load_model(str(tmp_path), device="cpu")
    assert torch.equal(logits(loaded, torch.tensor([[5, *ids]])), logits(model, torch.tensor([[5, *ids]])))
    assert its_tokenizer.convert_tokens_to_ids(["<thought>", "<end>"]) == ids
