"""Where the input of a thought comes from: one function for each source, from the states at the position before.

`states` are the hidden states (..., width) of a position: the embedding, then the output of each layer; the last is
the output of the final norm, as in transformers' `hidden_states`. So "second_to_last" and "middle" have not been
through that norm, and are of another size than the last. Loads torch when imported.
"""

import torch
from torch import nn

from lib.coconut.config import SOURCES

EVERY_LAYER = {"second_to_last", "middle", "suppressed", "suppressed_added"}  # these need more than the last state
SUPPRESSED = -0.1  # a neuron counts as suppressed where the last layer lowers it by more than this


class Projection(nn.Module):
    """A learned map of the last state: "projection" is one matrix that starts as the identity, followed by a scaling to
    the embeddings' mean norm; "mlp" is CODI's (2502.21074): two layers and a LayerNorm.
    """

    def __init__(self, kind: str, width: int):
        super().__init__()
        if kind == "mlp":
            self.layers = nn.Sequential(
                nn.Linear(width, width), nn.GELU(), nn.Linear(width, width), nn.LayerNorm(width)
            )
        else:
            self.layers = nn.Linear(width, width, bias=False)
            nn.init.eye_(self.layers.weight)

    def forward(self, state):
        """state (..., width) -> the same shape."""
        return self.layers(state)


def of_mean_norm(state, table):
    """`state` scaled to the mean norm of the embeddings `table` (vocabulary, width), which gets no gradient here."""
    return state / state.norm(dim=-1, keepdim=True).clamp(min=1e-6) * table.detach().norm(dim=-1).mean()


def suppressed(states, head, threshold: float = SUPPRESSED):
    """The last state, where the last layer suppressed it; 0 elsewhere.

    What the last layer changes in the logits, mapped back to the width of the hidden states by the pseudo-inverse of
    the unembedding `head` (vocabulary, width), says which neurons it turned down. With a vocabulary at least as large
    as the width, that way there and back changes nothing, and is left out.
    """
    change = (states[-1] - states[-2]).float()
    if len(head) < head.shape[-1]:
        weight = head.detach().float()
        change = change @ (torch.linalg.pinv(weight) @ weight).T
    return torch.where(change < threshold, states[-1], torch.zeros_like(states[-1]))


def thought(source: str, states: tuple, latent, model, projection: Projection | None):
    """The input embeddings (..., width) of a latent position.

    states       hidden states (..., width) of the position before; only the last where the source needs no other
    latent       the embedding of the token <latent> (width): what "pause" feeds, and "suppressed_added" adds to
    model        the language model, for its embeddings and its head
    projection   the learned map of "projection" and "mlp"
    """
    last, table = states[-1], model.get_input_embeddings().weight
    if source == "last_hidden":
        return last
    if source == "pause":
        return latent.expand_as(last)
    if source == "normalised":
        return of_mean_norm(last, table)
    if source == "second_to_last":
        return states[-2]
    if source == "middle":
        return states[len(states) // 2]
    if source == "suppressed":
        return suppressed(states, model.get_output_embeddings().weight)
    if source == "suppressed_added":
        return latent + suppressed(states, model.get_output_embeddings().weight)
    if source == "soft_token":  # a mixture of token embeddings, by the probability of each (2505.15778)
        return model.get_output_embeddings()(last).float().softmax(-1).to(table.dtype) @ table
    if source == "projection":
        return of_mean_norm(projection(last), table)
    assert source == "mlp", f"unknown source {source!r}: {', '.join(SOURCES)}"
    return projection(last)
