"""Train a diffusion model on worked problems, on transformers' own Trainer (lib.dot.trainer)."""

import json
from dataclasses import asdict, replace
from pathlib import Path

from lib import models, trainers
from lib.dot import multi_pass, sequences
from lib.dot.config import PRESETS, Config
from lib.errors import InputError
from lib.problems import Problem, write_jsonl


def load(config: Config, problems: list[Problem]):
    """(model, tokenizer): from scratch, or what a directory holds: a model of this workbench, or published weights."""
    from lib.dot import model as plaid
    from lib.dot import weights

    if config.model in PRESETS:
        tokenizer = sequences.tokenizer_for(config, problems)
        models.seed_everything(config.seed)
        return plaid.from_scratch(config, tokenizer), tokenizer
    if (Path(config.model) / plaid.SETTINGS).exists():
        before, tokenizer, trained, _ = plaid.load(config.model, config.device)
        for name in ("digits", "embed_dim", "source_scale", "places", "max_length"):
            was, wanted = getattr(trained, name), getattr(config, name)
            if was != wanted:
                raise InputError(f"{config.model} was trained with {name} {was}, not {wanted}; agree.")
        if (trained.loss == "masked") != (config.loss == "masked"):
            raise InputError(f"{config.model} was trained with loss {trained.loss}; go on with one of its kind.")
        return plaid.with_config(before, config), tokenizer
    if not Path(config.model).is_dir():
        known = ", ".join(PRESETS)
        raise InputError(f"There is no diffusion model {config.model!r}; use {known}, or a folder with weights.")
    tokenizer = sequences.tokenizer_for(config, problems)
    return weights.load(config.model, config, len(tokenizer)), tokenizer


def train(config: Config, train: list[Problem], valid: list[Problem], out_dir: str | Path) -> None:
    """Train on `train`, watching how many of the first `valid_problems` of `valid` are solved.

    Resumes from the last complete checkpoint in `out_dir`; on a CPU an interrupted run ends with the same weights, bit
    for bit, as an undisturbed one. Leaves in `out_dir`:
      model/         weights, tokenizer and settings (`lib.dot.model.load` reads them)
      metrics.jsonl  step, loss and the bound's terms in nats a token, grad_norm; or step, right (share of valid)
      config.json    the config
    """
    from lib.dot import generation
    from lib.dot import model as plaid
    from lib.dot.trainer import make_trainer

    out_dir = Path(out_dir)
    model, tokenizer = load(config, train)
    encoded = (multi_pass if config.multi_pass else sequences).encode(tokenizer, train)
    sequences.check_known(tokenizer, encoded)
    encoded = sequences.keep_short(encoded, config.max_length)
    if config.multi_pass:
        rows, canvas = multi_pass.Rows(encoded, tokenizer, config.coupled), multi_pass.canvas(encoded)
        longest = max(len(e["thoughts"]) for e in encoded)
        config = replace(config, max_thoughts=config.max_thoughts or 2 * longest)
    else:
        rows, canvas = sequences.Rows(encoded, tokenizer.pad_token_id), max(len(e["target"]) for e in encoded)
    watched = valid[: config.valid_problems]

    def look(learned) -> float | None:
        return generation.share_right(learned, tokenizer, config, canvas, watched) if watched else None

    models.seed_everything(config.seed)
    trainer, learner = make_trainer(config, model, rows, look, out_dir)
    trainers.run(trainer, out_dir)
    plaid.save(learner.best(), tokenizer, config, canvas, out_dir / "model")
    write_jsonl(out_dir / "metrics.jsonl", trainer.curve)
    (out_dir / "config.json").write_text(json.dumps(asdict(config), indent=1) + "\n")
    trainers.discard_all(out_dir)
