"""The published files mean here what they mean there, and nothing that is wrong in them passes in silence."""

import os
import pickle
import re
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

from lib.coconut import engine, official, schedule
from lib.coconut.sequences import MARKERS
from lib.errors import InputError
from lib.tokenization import build_tokenizer

# One file with every published key, as the authors write them.
EVERY_KEY = """
project: coconut
save_path: YOUR_PATH_TO_SAVE_THE_MODEL
name: gsm-coconut
only_eval: False

coconut: True
cot: False
no_thoughts: False
no_cot: False

c_thought: 2
epochs_per_stage: 3
max_latent_stage: 3
pad_latent_to_max: True

save_only_improve: False
uniform_prob: 0.0
model_id: openai-community/gpt2
load_model_path: YOUR_COT_CHECKPOINT
seed: 0
resume: 3
bf16: False
train_path: data/gsm_train.json
val_path: data/gsm_valid.json
reset_optimizer: True
batch_size_training: 32
debug: False
gradient_accumulation_steps: 1
num_epochs: 25
lr: !!float "1e-4"
weight_decay: 0.01
"""
KEYS = (
    "project save_path name only_eval coconut cot no_thoughts no_cot c_thought epochs_per_stage max_latent_stage "
    "pad_latent_to_max save_only_improve uniform_prob model_id load_model_path seed resume bf16 train_path val_path "
    "reset_optimizer batch_size_training debug gradient_accumulation_steps num_epochs lr weight_decay"
).split()


def write(tmp_path, text):
    path = tmp_path / "args.yaml"
    path.write_text(text)
    return path


def changed(tmp_path, **values):
    """The published file with other values; None drops a key."""
    whole = {**yaml.safe_load(EVERY_KEY), **values}
    return write(tmp_path, yaml.safe_dump({key: value for key, value in whole.items() if value is not None}))


def refusal(call, *arguments):
    """What an InputError says: one sentence, short enough to read, on one line."""
    with pytest.raises(InputError) as caught:
        call(*arguments)
    said = str(caught.value)
    assert "\n" not in said and len(said) < 900 and said.rstrip()[-1] in ".?"
    return said


# --- what the files say ---


def test_every_published_key_is_read(tmp_path):
    assert list(yaml.safe_load(EVERY_KEY)) == KEYS == list(official.KEYS)
    found = official.read(write(tmp_path, EVERY_KEY))
    config = found.config
    assert (config.method, config.model, config.source) == ("coconut", "openai-community/gpt2", "last_hidden")
    assert (config.c_thought, config.epochs_per_stage, config.max_latent_stage, config.first_epoch) == (2, 3, 3, 3)
    assert (config.learning_rate, config.weight_decay, config.num_epochs, config.seed) == (1e-4, 0.01, 25, 0)
    assert (config.reset_optimizer, config.mix, config.mix_from, config.dtype) == ("epoch", 0.0, "all", "float32")
    assert (config.warmup_steps, config.decay_steps, config.max_grad_norm, config.adam_beta2) == (0, 0, 0.0, 0.999)
    assert (config.answer_prefix, config.init_from, config.one_at_a_time, config.steps) == ("### ", "<<", False, 0)
    assert config.markers and config.pad_latent_to_max
    assert (found.train_path, found.val_path) == ("data/gsm_train.json", "data/gsm_valid.json")
    assert (found.weights, found.only_eval, found.debug, found.every_epoch) == ("YOUR_COT_CHECKPOINT", 0, 0, 1)


@pytest.mark.parametrize("key", ["lr", "weight_decay", "uniform_prob"])
@pytest.mark.parametrize("text", ["1e-4", "0.0001", "!!float '1e-4'", "'0.0001'"])
def test_a_number_without_a_dot_is_a_number_though_yaml_reads_it_as_text(tmp_path, key, text):
    lines = [line for line in EVERY_KEY.split("\n") if not line.startswith(f"{key}:")]
    config = official.read(write(tmp_path, "\n".join([*lines, f"{key}: {text}"]))).config
    assert {"lr": config.learning_rate, "weight_decay": config.weight_decay, "uniform_prob": config.mix}[key] == 1e-4


@pytest.mark.parametrize("text", ["None", '"None"', "null", "~", ""])
def test_none_is_no_path_however_it_is_written(tmp_path, text):
    text = EVERY_KEY.replace("YOUR_COT_CHECKPOINT", text).replace("data/gsm_train.json", text)
    found = official.read(write(tmp_path, text))
    assert found.weights == found.train_path == "" and found.val_path == "data/gsm_valid.json"


@pytest.mark.parametrize(
    "flags, method",
    [
        ("coconut", "coconut"),
        ("cot", "cot"),
        ("no_cot", "answer_only"),
        ("no_thoughts", "coconut_no_thought"),
        ("coconut no_thoughts", "coconut_no_thought"),
    ],
)
def test_the_switches_choose_the_method_and_whether_there_are_stages(tmp_path, flags, method):
    switches = {name: name in flags.split() for name in ("coconut", "cot", "no_thoughts", "no_cot")}
    found = official.read(changed(tmp_path, **switches, uniform_prob=0.3))
    assert found.config.method == method
    staged = method.startswith("coconut")
    assert (found.stage, found.config.epochs_per_stage, found.config.mix) == ((1, 3, 0.3) if staged else (0, 0, 0.0))
    assert found.thoughts == (2 if method == "coconut" else 0)
    stages = schedule.stages(found.config, 8)
    assert len(stages) == (5 if staged else 1) and any(s.thoughts for s in stages) == (method == "coconut")


@pytest.mark.parametrize("flags", ["", "coconut cot", "cot no_cot", "cot no_thoughts", "coconut no_cot no_thoughts"])
def test_no_switch_and_switches_that_exclude_each_other_are_refused(tmp_path, flags):
    switches = {name: name in flags.split() for name in ("coconut", "cot", "no_thoughts", "no_cot")}
    assert "exactly one of coconut, cot" in refusal(official.read, changed(tmp_path, **switches))


def test_a_batch_is_that_of_all_gpus_and_accumulated_steps(tmp_path):
    assert official.read(changed(tmp_path)).config.batch_size == 128
    assert official.read(changed(tmp_path), 1).config.batch_size == 32
    config = official.read(changed(tmp_path, gradient_accumulation_steps=2, batch_size_training=16), 4).config
    assert (config.batch_size, config.accumulation) == (128, 2)
    assert official.read("prosqa_symbol").config.batch_size == 256


def test_debug_and_precision_and_saving_are_returned(tmp_path):
    found = official.read(changed(tmp_path, debug=True, bf16=True, save_only_improve=True, reset_optimizer=False))
    assert found.debug and not found.every_epoch
    assert (found.config.dtype, found.config.reset_optimizer) == ("bfloat16", "never")


# --- the published settings ---

# name: stage (as published) of its epochs, thoughts in the evaluation, first epoch and epochs
STAGES = {
    "gsm_coconut": {1: (3, 5), 2: (6, 8), 3: (9, 11), 4: (12, 24)},
    "prontoqa_coconut": {**{s: (5 * s, 5 * s + 4) for s in range(7)}, 7: (35, 49)},
    "prosqa_coconut": {**{s: (5 * s, 5 * s + 4) for s in range(7)}, 7: (35, 49)},
    "prosqa_symbol": {0: (0, 24), 1: (25, 49), 2: (50, 74), 3: (75, 99), 4: (100, 124), 5: (125, 299)},
    "gsm_cot": {0: (0, 24)},
}


@pytest.mark.parametrize("name", STAGES)
def test_the_published_stages_fall_on_the_published_epochs(name):
    config = official.read(name).config
    known = schedule.stages(config, 8)
    found: dict[int, list] = {}
    for epoch in range(config.first_epoch, config.num_epochs):
        found.setdefault(known[schedule.stage_of_epoch(config, known, epoch)].number, []).append(epoch)
    assert {stage: (epochs[0], epochs[-1]) for stage, epochs in found.items()} == STAGES[name]
    per_step = config.c_thought if config.method == "coconut" else 0
    for stage in known:
        assert stage.thoughts == per_step * min(stage.number, config.max_latent_stage)


@pytest.mark.parametrize(
    "name, stage", [("gsm_coconut_eval", 5), ("prontoqa_coconut_eval", 8), ("prosqa_coconut_eval", 8)]
)
def test_resume_chooses_the_six_thoughts_of_a_published_evaluation(name, stage):
    found = official.read(name)
    assert (found.only_eval, found.stage, found.thoughts, found.config.first_epoch) == (True, stage, 6, 0)


PUBLISHED = {  # c_thought, epochs_per_stage, max_latent_stage, resume, reset, epochs, the whole batch
    "gsm_cot": (1, 0, 0, 0, "never", 25, 128),
    "gsm_coconut": (2, 3, 3, 3, "epoch", 25, 128),
    "prontoqa_coconut": (1, 5, 6, 0, "epoch", 50, 128),
    "prosqa_coconut": (1, 5, 6, 0, "epoch", 50, 128),
    "prosqa_symbol": (1, 25, 4, 0, "never", 300, 256),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_settings_are_those_of_the_papers_table(name):
    c = official.read(name).config
    found = (c.c_thought, c.epochs_per_stage, c.max_latent_stage, c.first_epoch, c.reset_optimizer, c.num_epochs)
    assert (*found, c.batch_size) == PUBLISHED[name]
    assert (c.learning_rate, c.weight_decay, c.dtype, c.pad_latent_to_max) == (1e-4, 0.01, "float32", True)
    assert c.mix == (0.1 if name == "prosqa_symbol" else 0)
    assert c.method == ("cot" if name == "gsm_cot" else "coconut")
    assert c.model == ("gpt2_2x768" if name == "prosqa_symbol" else "openai-community/gpt2")


@pytest.mark.parametrize("name", official.PRESETS)
def test_every_preset_reads_as_a_file_with_its_values_does(name, tmp_path):
    values = official.DEFAULTS | official.PRESETS[name]
    assert set(values) <= set(KEYS)
    assert official.read(write(tmp_path, yaml.safe_dump(values))) == official.read(name)


# --- what is refused ---


@pytest.mark.parametrize("key", KEYS)
def test_a_value_of_another_type_is_refused_by_its_key(tmp_path, key):
    wrong = {str: [1, [], True], bool: ["yes please", 1, None], int: ["3", 1.5, True, None], float: ["fast", True, []]}
    for value in wrong[official.KEYS[key]]:
        whole = {**yaml.safe_load(EVERY_KEY), key: value}
        said = refusal(official.translate, whole, "args.yaml")
        assert f"args.yaml: {key} must be a {official.KEYS[key].__name__}" in said


@pytest.mark.parametrize("key", ["c_thoughts", "lr ", 7, True, None, "CocoNut", "x" * 5000])
def test_an_unknown_key_is_refused_with_those_that_are_known(key):
    said = refusal(official.translate, {**yaml.safe_load(EVERY_KEY), key: 1}, "args.yaml")
    assert "unknown key" in said and "max_latent_stage" in said


@pytest.mark.parametrize(
    "values, reason",
    [
        (dict(lr=float("nan")), "lr must be a finite number"),
        (dict(lr="inf"), "lr must be a finite number"),
        (dict(lr=-1e-4), "lr must be a finite number of at least 0"),
        (dict(lr=10**400), "lr must be a float"),
        (dict(resume=-1), "resume must be"),
        (dict(resume=-5, only_eval=True), "resume must be"),
        (dict(uniform_prob=1.5), "args.yaml: mix is a share"),
        (dict(c_thought=0), "c_thought of at least 1"),
        (dict(epochs_per_stage=0), "epochs_per_stage of at least 1"),
        (dict(batch_size_training=0), "args.yaml: batch_size must be at least 1"),
        (dict(gradient_accumulation_steps=0), "must be at least 1"),
        (dict(resume=25), "resume 25 leaves none of num_epochs 25"),
        (dict(num_epochs=0, resume=0), "leaves none"),
    ],
)
def test_values_that_no_training_can_have_are_refused(tmp_path, values, reason):
    assert reason in refusal(official.translate, {**yaml.safe_load(EVERY_KEY), **values}, "args.yaml")


def test_a_small_file_that_unfolds_without_end_is_refused_at_once(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    text = "\n".join(lines)
    assert "unknown key 'a0'" in refusal(official.read, write(tmp_path, text))
    nested = "lr: " + text.replace("\n", "\n  ").replace("a0: &a0", "\n  a0: &a0", 1)
    assert "lr must be a float, found a dict" in refusal(official.read, write(tmp_path, nested))


@pytest.mark.parametrize(
    "text",
    ["", "- a\n- b\n", "just words", "7", "lr: [1", "a: b: c", "\t", "lr: !!python/object/apply:os.system ['true']"]
    + ["seed: !!int ''", "seed: !!timestamp x", "debug: !!bool x", "seed: 2020-99-99", "[" * 3000, "? [a]\n: 1", "\0"],
)
def test_what_is_no_file_of_keys_and_values_is_refused(tmp_path, text):
    said = refusal(official.read, write(tmp_path, text))
    assert "args.yaml" in said


def test_a_missing_file_and_a_folder_and_bytes_are_refused_with_the_names_of_presets(tmp_path):
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00\x80")
    for path in (tmp_path / "none.yaml", tmp_path, tmp_path / "bytes.yaml", "a\0b"):
        assert "prosqa_coconut" in refusal(official.read, path)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=8), VALUES, max_size=6))
@settings(max_examples=300, deadline=None)
def test_any_keys_and_values_are_a_setting_or_refused_in_a_sentence(values):
    whole = {**yaml.safe_load(EVERY_KEY), **values}
    try:
        found = official.translate(whole, "args.yaml")
    except InputError as error:
        assert "\n" not in str(error) and str(error).startswith("args.yaml: ") and len(str(error)) < 900
    else:
        assert set(values) <= set(KEYS) and found.thoughts >= 0 and found.config.batch_size >= 1
        assert found.only_eval or found.config.first_epoch < found.config.num_epochs


@given(text=st.text(max_size=60) | st.binary(max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_text_is_a_setting_or_refused_in_a_sentence(text, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode(errors="surrogatepass"))
    assert str(path) in refusal(official.read, path)


# --- checkpoints ---


def gpt2(seed, tied=True, width=16):
    """A small GPT-2 with the three added tokens, and its tokenizer."""
    tokenizer = build_tokenizer(["<<3+4=7>> so it is 7"], 300)
    torch.manual_seed(seed)
    sizes = dict(n_embd=width, n_layer=2, n_head=2, n_positions=64, vocab_size=len(tokenizer))
    ids = dict(bos_token_id=None, pad_token_id=0, eos_token_id=1)
    model = GPT2LMHeadModel(GPT2Config(**sizes, **ids, tie_word_embeddings=tied)).eval()
    found = engine.add_tokens(model, tokenizer, True, "<<")
    assert tokenizer.convert_ids_to_tokens(list(found)) == list(MARKERS)
    return model


def as_published(model):
    """The state dict of the published wrapper, which names the embeddings a second time."""
    state = {f"base_causallm.{name}": value for name, value in model.state_dict().items()}
    return {**state, "embedding.weight": model.get_input_embeddings().weight.detach()}


def saved(tmp_path, state):
    torch.save(state, tmp_path / "checkpoint_33")
    return tmp_path / "checkpoint_33"


def logits(model):
    with torch.no_grad():
        return model(torch.arange(40)[None]).logits


def unchanged_by(model, call):
    """The refusal of a call that must leave the model as it was."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    said = refusal(call)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    return said


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("prefix", [True, False])
def test_a_published_checkpoint_gives_the_published_logits(tmp_path, tied, prefix):
    source, model = gpt2(1, tied), gpt2(2, tied)
    with torch.no_grad():
        source.get_input_embeddings().weight[-3:] += torch.randn(3, 16)  # the added tokens have learned
    state = as_published(source) if prefix else source.state_dict()
    assert not torch.allclose(logits(model), logits(source), atol=0.01)
    official.load_checkpoint(model, saved(tmp_path, state))
    assert torch.equal(logits(model), logits(source))
    assert (model.lm_head.weight is model.transformer.wte.weight) == tied


def test_a_tied_model_wants_its_shared_weights_under_one_name_and_an_untied_one_under_both(tmp_path):
    for tied in (True, False):
        source, model = gpt2(1, tied), gpt2(2, tied)
        for name in ("lm_head.weight", "transformer.wte.weight"):
            state = {key: value for key, value in source.state_dict().items() if key != name}
            if tied:
                official.load_checkpoint(model, saved(tmp_path, state))
                assert torch.equal(logits(model), logits(source))
            else:
                path = saved(tmp_path, state)
                said = unchanged_by(model, lambda path=path, model=model: official.load_checkpoint(model, path))
                assert f"1 weights are missing ('{name}')" in said


def test_an_untied_checkpoint_does_not_load_into_a_tied_model(tmp_path):
    path, model = saved(tmp_path, gpt2(1, tied=False).state_dict()), gpt2(2)
    assert "head differs from its embeddings" in unchanged_by(model, lambda: official.load_checkpoint(model, path))


def spoil(state, kind):
    name = "base_causallm.transformer.h.1.mlp.c_fc.bias"
    if kind == "missing":
        del state[name]
    elif kind == "unknown":
        state["base_causallm.transformer.h.2.mlp.c_fc.bias"] = state[name]
    elif kind == "no tensor":
        state[name] = 7
    elif kind == "other shape":
        state[name] = state[name][:-1]
    elif kind == "without the added tokens":
        for key in state:
            state[key] = state[key][:-3] if len(state[key]) > 128 else state[key]
    return state


@pytest.mark.parametrize(
    "kind, reason",
    [
        ("missing", "1 weights are missing ('transformer.h.1.mlp.c_fc.bias') and 0 are unknown (none)"),
        ("unknown", "0 weights are missing (none) and 1 are unknown ('transformer.h.2.mlp.c_fc.bias')"),
        ("no tensor", "c_fc.bias has the shape none"),
        ("other shape", "c_fc.bias has the shape (63,), the model wants (64,)"),
        ("without the added tokens", "with its three added tokens?"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused_and_leaves_no_trace(tmp_path, kind, reason):
    path, model = saved(tmp_path, spoil(as_published(gpt2(1)), kind)), gpt2(2)
    assert reason in unchanged_by(model, lambda: official.load_checkpoint(model, path))


def test_what_is_no_state_dict_is_refused(tmp_path):
    model = gpt2(2)
    (tmp_path / "garbage").write_bytes(os.urandom(500))
    (tmp_path / "empty").write_bytes(b"")
    for path in (tmp_path / "none", tmp_path, tmp_path / "garbage", tmp_path / "empty"):
        said = unchanged_by(model, lambda path=path: official.load_checkpoint(model, path))
        assert said.startswith(f"Cannot read the checkpoint {path}")
    for state in ([1, 2], torch.zeros(3), {3: torch.zeros(3)}):
        path = saved(tmp_path, state)
        assert "state dict" in unchanged_by(model, lambda path=path: official.load_checkpoint(model, path))
    assert "weights are missing" in refusal(official.load_checkpoint, model, saved(tmp_path, {}))


class Malicious:
    """Pickled, it is a call that writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_that_would_run_something_is_refused_and_does_not_run_it(tmp_path):
    trap = tmp_path / "sprung"
    for legacy in (True, False):
        path = tmp_path / "trap"
        state = {**as_published(gpt2(1)), "x": Malicious(trap)}
        torch.save(state, path, _use_new_zipfile_serialization=not legacy)
        model = gpt2(2)
        said = unchanged_by(model, lambda path=path, model=model: official.load_checkpoint(model, path))
        assert re.match(r"Cannot read the checkpoint .*; give a state dict", said) and not trap.exists()
    pickle.loads(pickle.dumps(Malicious(trap)))
    assert trap.exists(), "the trap is a real one"
