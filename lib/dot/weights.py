"""The published weights: four files of tensors, `plaid1b_weights`, checked name by name before anything is kept.

Nothing is executed from them (weights only). Their tokenizer is the user's: name it as `tokenizer`. Loads torch.
"""

from pathlib import Path

import torch

from lib import models
from lib.dot.config import Config
from lib.dot.model import Plaid
from lib.errors import InputError

FILES = ("embedding_matrix", "noise_schedule", "gamma_bounds", "model")
HEAD_DIM = 64  # of every published model


def load(folder: str | Path, config: Config, vocabulary: int) -> Plaid:
    """A model with the weights of `folder`; its sizes are read from them. Raises InputError, naming file and weight."""
    if config.places or config.source_scale != 1:
        raise InputError("Published weights have no learned places and a source of scale 1; set places, source_scale.")
    folder = Path(folder)
    found = {name: read(folder / f"{name}.pt") for name in FILES}
    sizes, rows = sizes_of(folder, found["model"]), shape(folder, found, "embedding_matrix", "matrix")
    if rows[1] != config.embed_dim:
        raise InputError(f"{folder}: its embeddings have width {rows[1]}; set embed_dim to that.")
    if rows[0] != vocabulary:
        raise InputError(f"{folder}: {rows[0]} embeddings, but the tokenizer has {vocabulary} tokens; name theirs.")
    device = models.pick_device(config.device)
    model = Plaid(vocabulary, config, sizes, device)
    for name in FILES:
        part, state = getattr(model, name), found[name]
        state = {key: value for key, value in state.items() if key != "rotary_emb.inv_freq"}  # made, not learned
        check(folder / f"{name}.pt", part.state_dict(), state)
        part.load_state_dict(state)
    return model.to(device)


def read(path: Path) -> dict:
    """The tensors of one file. Raises InputError where it is missing or holds anything else."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"Cannot read {path} ({reason}); published weights are {', '.join(FILES)}.") from None
    except Exception as error:  # the library raises many kinds for a broken file, and for one that would run code
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
        raise InputError(f"{path} is no file of tensors ({reason}); fetch it again.") from None
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
    ):
        raise InputError(f"{path} holds no table of tensors; give the published state dictionary.")
    return state


def shape(folder: Path, found: dict, file: str, name: str) -> tuple:
    """The shape (rows, columns) of one weight."""
    value = found[file].get(name)
    if value is None or value.dim() != 2:
        raise InputError(f"{folder / file}.pt: no matrix {name!r}; give the published file.")
    return tuple(value.shape)


def sizes_of(folder: Path, state: dict) -> tuple[int, int, int]:
    """(width, blocks, heads) of the transformer."""
    width, _ = shape(folder, {"model": state}, "model", "input_linear.weight")
    blocks = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    if not blocks or width % HEAD_DIM:
        raise InputError(f"{folder}/model.pt: width {width} and {blocks} blocks fit no model with heads of {HEAD_DIM}.")
    return width, blocks, width // HEAD_DIM


def check(path: Path, wanted: dict, state: dict) -> None:
    """Raise InputError unless names and shapes agree."""
    if missing := sorted(set(wanted) - set(state)):
        raise InputError(f"{path}: {len(missing)} weights are missing, {missing[0]} first; is it the published file?")
    if extra := sorted(set(state) - set(wanted)):
        raise InputError(f"{path}: {len(extra)} weights are unknown, {extra[0]} first; is it the published file?")
    for name, value in wanted.items():
        if state[name].shape != value.shape:
            have, want = tuple(state[name].shape), tuple(value.shape)
            raise InputError(f"{path}: {name} has shape {have}, wanted {want}; is it the published file?")
