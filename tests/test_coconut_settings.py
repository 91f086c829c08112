"""Settings of continuous thoughts: changes written as text, sizes, and published checkpoints taken over."""

from dataclasses import replace

import pytest
import torch

from lib import models, prompts
from lib.coconut import engine, official
from lib.coconut.config import Config, check_sizes, varied
from lib.errors import InputError
from lib.tasks import modular_chain
from lib.tokenization import build_tokenizer


def test_changes_are_read_with_their_types():
    changed = varied(Config(), "mix=0 markers=true source=mlp dropout=0.1 steps=70")
    assert changed == replace(Config(), mix=0.0, markers=True, source="mlp", dropout=0.1, steps=70)
    assert type(changed.mix) is float and varied(Config(), "") == Config()


@pytest.mark.parametrize(
    "changes, says",
    [
        ("mix", "name=value"),
        ("mixing=0", "no change of a setting"),
        ("mix=much", "must be a float"),
        ("markers=1", "must be a bool"),
        ("steps=1.5", "must be a int"),
        ("dropout=abc", "must be a float"),
        ("seed=3", "several seeds"),
        ("mix=2", "from 0 to 1"),
        ("source=pause", "Unknown source"),
        ("learning_rate=0", "above 0"),
        ("adam_beta2=1", "below 1"),
        ("steps=0", "How long"),
        ("epochs_per_stage=2", "set one of"),
        ("steps=0 num_epochs=2", "epochs_per_stage"),
        ("steps=0 num_epochs=3 epochs_per_stage=1 first_epoch=3", "above first_epoch"),
    ],
)
def test_what_is_no_setting_is_refused_in_one_sentence(changes, says):
    with pytest.raises(InputError, match=says) as refused:
        varied(Config(), changes)
    assert "\n" not in str(refused.value)


def test_sizes_below_the_least_are_refused_by_name():
    check_sizes([0, 1], n_train=0, n_test=1, n_look=2)
    for seeds, sizes, says in (
        ([0], {"n_test": 0}, "n_test"),
        ([0], {"n_train": -1}, "n_train"),
        ([0], {"n_look": 1}, "n_look"),
        ([0, 0], {}, "seed"),
    ):
        with pytest.raises(InputError, match=says):
            check_sizes(seeds, **sizes)


@pytest.fixture
def published(tmp_path):
    """(a base model's directory, its tokenizer, a function that saves a checkpoint of some method as published)."""
    problems = modular_chain.generate(50)
    tokenizer = build_tokenizer([prompts.prompt(p) + prompts.solution(p) for p in problems])
    models.seed_everything(0)
    models.save_model(models.load_model("llama_2x128", tokenizer, device="cpu")[0], tokenizer, tmp_path / "base")

    def checkpoint(tokens: bool):
        model, own = models.load_model(str(tmp_path / "base"), device="cpu")
        if tokens:
            engine.add_tokens(model, own, True)
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(0.1)
        state = {f"base_causallm.{name}": value for name, value in model.state_dict().items()}
        torch.save(state, tmp_path / "checkpoint_6")
        return model

    return tmp_path, tokenizer, checkpoint


def file_of(folder, **values):
    text = "".join(f"{key}: {value}\n" for key, value in values.items())
    (folder / "args.yaml").write_text(
        f"model_id: {folder / 'base'}\nload_model_path: {folder / 'checkpoint_6'}\n{text}"
    )
    return folder / "args.yaml"


def test_a_checkpoint_to_evaluate_becomes_a_model_that_thinks(published):
    folder, _, checkpoint = published
    theirs = checkpoint(tokens=True)
    found = official.usable(file_of(folder, coconut="True", only_eval="True", resume=40))
    official.adopt(found, folder)
    thinker, tokenizer, config, stage = engine.load(folder / "model", device="cpu")
    assert (config.markers, config.source, stage.thoughts) == (True, "last_hidden", 6)
    assert thinker.markers == tuple(range(len(tokenizer) - 3, len(tokenizer)))
    ids = torch.arange(8)[None]
    with torch.inference_mode():
        assert torch.equal(thinker.model(ids).logits, theirs.eval()(ids).logits)


def test_a_checkpoint_of_chains_of_thought_becomes_a_model_to_train_from(published):
    folder, tokenizer, checkpoint = published
    theirs = checkpoint(tokens=False)
    official.adopt(official.usable(file_of(folder, coconut="True", resume=3)), folder)
    model, own = models.load_model(str(folder / "model"), device="cpu")
    assert len(own) == len(tokenizer)
    assert torch.equal(model.get_input_embeddings().weight, theirs.get_input_embeddings().weight)


def test_an_evaluation_without_weights_is_refused():
    with pytest.raises(InputError, match="load_model_path"):
        official.usable("prosqa_coconut_eval")
