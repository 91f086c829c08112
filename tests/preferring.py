"""What the tests of preference training share: short runs, the real trainers, and what a run left."""

import json
import shutil
from dataclasses import replace

from lib import dpo
from lib.preferences import Opinion

STEPS = dpo.Config(steps=6, batch_size=8, learning_rate=1e-2, warmup_steps=1, log_steps=1, device="cpu")
PRE = {"reference": "precomputed"}
SETUPS = {
    "full, copied": ("tiny_llama", {}),
    "full, precomputed": ("tiny_llama", PRE),
    "new adapter": ("tiny_llama", {"lora_rank": 4}),
    "new adapter, precomputed": ("tiny_llama", PRE | {"lora_rank": 4}),
    "trained adapter": ("llama_adapter", {}),
    "trained adapter, precomputed": ("llama_adapter", PRE),
    "t5 full": ("tiny_t5", {}),
    "t5 new adapter": ("tiny_t5", {"lora_rank": 4}),
    "t5 trained adapter": ("t5_adapter", {}),
}


def trainer_for(config, directory, items, out_dir, watched=None):
    """The real trainer, as `dpo.train` makes it, and its tokenizer."""
    model, tokenizer = dpo.load(config, directory)
    data = dpo.make_dataset(config, tokenizer, items)
    held_out = dpo.make_dataset(config, tokenizer, watched) if watched else None
    return dpo.make_trainer(config, model, tokenizer, data, held_out, out_dir), tokenizer


def read_curve(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def curve(directory, key="loss"):
    return [row[key] for row in read_curve(directory) if key in row]


def weights(directory):
    """The bytes of the saved weights."""
    found = {path.name: path.read_bytes() for path in (directory / "model").rglob("*.safetensors")}
    assert found, "no weights were saved"
    return found


def with_config(directory, to, file="config.json", **changes):
    """A copy of a model directory with other settings in one of its files."""
    shutil.copytree(directory, to)
    (to / file).write_text(json.dumps(json.loads((to / file).read_text()) | changes))
    return to


def opinions(pairs):
    """Both completions of every second pair, the right one alone of the others."""
    rejected = [Opinion(p.problem, p.prompt, p.rejected, p.finished, False) for p in pairs[::2]]
    right = [Opinion(p.problem, p.prompt, p.chosen, True, True) for p in pairs]
    return right + rejected


def easy(pairs):
    """Steps before a bare answer: a preference that is learned in tens of steps, and holds for other problems."""
    return [replace(p, rejected=p.chosen[p.chosen.index("####") :], finished=True) for p in pairs]
