"""A key-value cache with room to grow: the library's own copies all keys and values at every new token.

Nothing else differs from `transformers.DynamicCache`; layers of other kinds (sliding windows and the like) stay as they
are. Loads torch and transformers when imported.
"""

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

ROOM = 64  # positions that are added when a layer is full


class RoomyLayer(DynamicLayer):
    """Keys and values (batch, heads, length, width) as the filled part of larger tensors."""

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        """Append new positions; returns all keys and values so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
            self._make_room(key_states.shape[-2] + ROOM)
        old = self.keys.shape[-2]
        new = old + key_states.shape[-2]
        if new > self.roomy_keys.shape[-2]:
            self._make_room(new + ROOM)
        self.roomy_keys[:, :, old:new] = key_states
        self.roomy_values[:, :, old:new] = value_states
        self.keys, self.values = self.roomy_keys[:, :, :new], self.roomy_values[:, :, :new]
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Let only these rows go on; a row may be named several times."""
        if self.is_initialized:
            length = self.keys.shape[-2]
            self.roomy_keys, self.roomy_values = self.roomy_keys[indices], self.roomy_values[indices]
            self.keys, self.values = self.roomy_keys[:, :, :length], self.roomy_values[:, :, :length]

    reorder_cache = batch_select_indices  # beam search's name for it

    def leave(self, size: int, holes: torch.Tensor, movers: torch.Tensor) -> None:
        """Let `size` rows go on: the rows `movers`, all behind them, take the places `holes`; no other is copied."""
        length = self.keys.shape[-2]
        for name in ("keys", "values"):
            roomy = getattr(self, f"roomy_{name}")
            roomy[holes] = roomy[movers]
            setattr(self, f"roomy_{name}", roomy[:size])
            setattr(self, name, roomy[:size, :, :length])

    def _make_room(self, size: int) -> None:
        """Move keys and values into tensors of `size` positions."""
        length = self.keys.shape[-2]
        for name in ("keys", "values"):
            old = getattr(self, name)
            roomy = old.new_empty(*old.shape[:2], size, old.shape[3])
            roomy[:, :, :length] = old
            setattr(self, f"roomy_{name}", roomy)
            setattr(self, name, roomy[:, :, :length])


def leave(cache, order: torch.Tensor, holes: torch.Tensor, movers: torch.Tensor) -> None:
    """Let the rows `order` of a cache go on: the first ones in their places but for `holes`, which `movers` take."""
    for layer in cache.layers:
        if isinstance(layer, RoomyLayer):
            layer.leave(len(order), holes, movers)
        else:
            select_rows(layer, order)


def select(cache, rows: torch.Tensor) -> None:
    """Let only these rows of a cache go on; a row may be named several times."""
    for layer in cache.layers:
        select_rows(layer, rows)


def select_rows(layer, rows: torch.Tensor) -> None:
    """One layer's rows; recurrent layers (Mamba and the like) know this by another name."""
    (getattr(layer, "batch_select_indices", None) or layer.reorder_cache)(rows)


def roomy_cache(config=None) -> DynamicCache:
    """An empty cache for a model with this config; without one, every layer is a RoomyLayer."""
    cache = DynamicCache(config=config) if config is not None else DynamicCache()
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    if cache.layer_class_to_replicate is DynamicLayer:
        cache.layer_class_to_replicate = RoomyLayer
    return cache
