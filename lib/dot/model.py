"""Plaid (Gulrajani and Hashimoto, 2305.18619): a text diffusion model that guesses every token of a noisy canvas.

Names and shapes of all weights are those of the published ones, so that these can be loaded (lib.dot.weights). The
source (a question) enters as clean embeddings and is never noised: it has no state, so nothing that happens to noise
can change it. Loads torch.
"""

import json
import math
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from lib import models
from lib.dot import schedule
from lib.dot.config import Config
from lib.errors import InputError

BASE_WIDTH = 256  # where muP's factors are 1


class EmbeddingMatrix(nn.Module):
    """One row a token; rows are used at length one, whatever they are."""

    def __init__(self, vocabulary: int, embed_dim: int):
        super().__init__()
        rows = torch.randn(vocabulary, embed_dim)
        self.matrix = nn.Parameter(rows / rows.norm(dim=1, keepdim=True))

    def forward(self):
        """(vocabulary, embed_dim), rows of length 1."""
        return self.matrix / (self.matrix.norm(dim=1, keepdim=True) + 1e-8)


def rms_norm(width: int, device):
    """RMSNorm with eps 1e-5: NVIDIA apex's fused one where it is installed and the device is its own, else torch's."""
    if torch.device(device).type == "cuda":
        try:
            from apex.normalization import FusedRMSNorm
        except ImportError:
            pass
        else:
            return FusedRMSNorm(width, eps=1e-5)
    return nn.RMSNorm(width, eps=1e-5)


class Rotary(nn.Module):
    """Rotary positions (Su et al., 2104.09864), half-split, base 10,000; on queries and keys only."""

    def __init__(self, head_dim: int):
        super().__init__()
        self.register_buffer("inv_freq", 10_000 ** -(torch.arange(0, head_dim, 2) / head_dim), persistent=False)

    def forward(self, length: int):
        """cos and sin, each (length, head_dim)."""
        angles = torch.outer(torch.arange(length, device=self.inv_freq.device).float(), self.inv_freq.float())
        angles = torch.cat([angles, angles], 1)
        return angles.cos(), angles.sin()


def turned(x, cos, sin):
    """x (..., length, head_dim), each position turned by its angles."""
    first, second = x.chunk(2, -1)
    return x * cos.to(x.dtype) + torch.cat([-second, first], -1) * sin.to(x.dtype)


class Block(nn.Module):
    """Attention in both directions and an MLP, each on normed states, added at 1 / sqrt(blocks); no biases."""

    def __init__(self, width: int, blocks: int, heads: int, device="cpu"):
        super().__init__()
        self.heads, self.share = heads, blocks**-0.5
        self.rmsnorm1, self.rmsnorm2 = rms_norm(width, device), rms_norm(width, device)
        self.attn_qkv = nn.Linear(width, 3 * width, bias=False)
        self.attn_out = nn.Linear(width, width, bias=False)
        self.mlp = nn.ModuleDict(
            {"fc1": nn.Linear(width, 4 * width, bias=False), "fc2": nn.Linear(4 * width, width, bias=False)}
        )

    def forward(self, h, mask, cos, sin):
        """h (batch, length, width) -> the same. mask (batch, 1, 1, length), True where a key may be seen, or None."""
        batch, length, width = h.shape
        qkv = self.attn_qkv(self.rmsnorm1(h)).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (batch, heads, length, head_dim)
        seen = scaled_dot_product_attention(turned(q, cos, sin), turned(k, cos, sin), v, attn_mask=mask)
        h = h + self.share * self.attn_out(seen.transpose(1, 2).reshape(batch, length, width))
        inner = gelu(self.mlp["fc1"](self.rmsnorm2(h)), approximate="tanh")
        return h + self.share * self.mlp["fc2"](inner)


class Backbone(nn.Module):
    """The transformer between embeddings and logits."""

    def __init__(
        self, vocabulary: int, embed_dim: int, width: int, blocks: int, heads: int, places: int = 0, device="cpu"
    ):
        super().__init__()
        self.places = nn.Embedding(2 * places, width) if places else None
        self.input_linear = nn.Linear(embed_dim, width, bias=False)
        self.selfcond_linear = nn.Linear(embed_dim, width, bias=False)
        self.gamma_linear = nn.Linear(64, width, bias=False)
        self.rotary_emb = Rotary(width // heads)
        self.blocks = nn.ModuleList(Block(width, blocks, heads, device) for _ in range(blocks))
        self.output_norm = nn.LayerNorm(width, bias=False)
        self.output_linear = nn.Linear(width, vocabulary)
        self.register_buffer("frequencies", torch.linspace(-5, 5, 32, dtype=torch.float64).exp(), persistent=False)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
        for zero in (self.selfcond_linear.weight, self.gamma_linear.weight, *self.output_linear.parameters()):
            nn.init.zeros_(zero)

    def forward(self, x, guess, gamma, mask, canvas: int, last: int):
        """Logits (batch, last, vocabulary) of the last positions, without the prior.

        x, guess (batch, length, embed_dim): the input and the guess before, each coordinate of size 1; gamma (batch,)
        canvas   how many of the positions are the canvas
        """
        angles = gamma.double()[:, None] * self.frequencies  # up to 1,000: too many turns for float32
        told = self.gamma_linear(torch.cat([angles.sin(), angles.cos()], 1).float())  # (batch, width)
        h = self.input_linear(x) + self.selfcond_linear(guess) + told[:, None]
        if self.places is not None:
            first = self.places.num_embeddings // 2 - (h.shape[1] - canvas)  # the canvas begins in the table's middle
            where = torch.arange(first, first + h.shape[1], device=h.device)
            h = h + self.places(where.clamp(0, self.places.num_embeddings - 1))  # beyond both ends: as at the ends
        cos, sin = self.rotary_emb(h.shape[1])
        for block in self.blocks:
            h = block(h, mask, cos, sin)
        width = h.shape[-1]
        with torch.autocast(h.device.type, enabled=False):
            h = self.output_norm(h[:, -last:].float()) * (BASE_WIDTH / width)  # muP's readout
            return self.output_linear(h)


class Plaid(nn.Module):
    """Embeddings, schedule and transformer. Without `prior`, logits are the network's own."""

    def __init__(self, vocabulary: int, config: Config, sizes: tuple[int, int, int], device="cpu"):
        super().__init__()
        self.embedding_matrix = EmbeddingMatrix(vocabulary, config.embed_dim)
        self.noise_schedule = schedule.NoiseSchedule()
        self.gamma_bounds = schedule.GammaBounds(config.gamma_0, config.gamma_1)
        self.model = Backbone(vocabulary, config.embed_dim, *sizes, config.places and config.max_length, device)
        self.embed_dim, self.sizes = config.embed_dim, tuple(sizes)
        self.learned = config.loss == "vlb" and config.learn_schedule
        self.source_scale = config.source_scale or math.sqrt(config.embed_dim)
        self.prior = config.loss != "masked"

    @property
    def device(self):
        """Where the weights are."""
        return self.embedding_matrix.matrix.device

    def gamma(self, t):
        """t (batch,) -> (gamma, d gamma / dt), (batch,) float64."""
        return schedule.gamma_at(self.noise_schedule if self.learned else None, self.gamma_bounds, t)

    def guess(
        self, z, gamma, clean, before=None, mask=None, prior_scale: float = 1.0, own: int | None = None, canvas=0
    ):
        """(logits, x_hat): what every noisy position holds, and its expected embedding.

        z      (batch, n, embed_dim), noisy; gamma (batch,), its noise
        clean  (batch, m, embed_dim): the source's embeddings, which stand before
        canvas columns of z that are the canvas; 0: all of them. With fewer (scope "all") the columns before are the
               source's: the network sees them clean, and its logits cover them
        before (batch, n, embed_dim): the guess before (self-conditioning); None: zeros
        mask   (batch, length), True where a position may be attended to; None: everywhere
        own    rows from this one on send no gradient to the embeddings, but for their logits' (self-conditioned rows)
        logits (batch, n, vocabulary) float32; x_hat (batch, n, embed_dim)
        """
        table = self.embedding_matrix()
        canvas = canvas or z.shape[1]
        alpha, sigma = (part.float()[:, None, None] for part in schedule.alpha_sigma(gamma))
        x = z[:, -canvas:] / (alpha**2 / self.embed_dim + sigma**2).sqrt()
        inputs = torch.cat([clean * self.source_scale, x], 1)
        before = torch.zeros_like(x) if before is None else before[:, -canvas:]
        before = torch.cat([clean, before], 1) * math.sqrt(self.embed_dim)  # the source needs no guess
        keys = None if mask is None else mask[:, None, None]
        logits = self.model(inputs, before, gamma, keys, canvas, z.shape[1])
        with torch.autocast(z.device.type, enabled=False):  # the prior's factor is large where noise is low
            if self.prior and prior_scale:
                logits = logits + prior_scale * (alpha / sigma**2) * by_rows(lambda rows, e: rows @ e.T, z, table, own)
            return logits, by_rows(lambda rows, e: rows @ e, logits.softmax(-1), table, own)


def by_rows(product, rows, table, own: int | None):
    """product(rows, table), in which rows from `own` on send no gradient to the table."""
    if own is None or own >= len(rows) or not table.requires_grad:
        return product(rows, table)
    if own == 0:
        return product(rows, table.detach())
    return torch.cat([product(rows[:own], table), product(rows[own:], table.detach())])


# ----- files
WEIGHTS, SETTINGS = "weights.safetensors", "dot.json"


def from_scratch(config: Config, tokenizer) -> Plaid:
    """A freshly initialised model of a preset, on its device; call `models.seed_everything` first."""
    from lib.dot.config import PRESETS

    device = models.pick_device(config.device)
    return Plaid(len(tokenizer), config, PRESETS[config.model], device).to(device)


def with_config(model: Plaid, config: Config) -> Plaid:
    """The same weights under other settings, such as another loss."""
    other = Plaid(model.embedding_matrix.matrix.shape[0], config, model.sizes, model.device)
    other.load_state_dict(model.state_dict())
    return other.to(model.device)


def save(model: Plaid, tokenizer, config: Config, canvas: int, out_dir: str | Path) -> None:
    """Weights, tokenizer and how it was trained; `canvas`: tokens that its longest target had."""
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, out_dir / WEIGHTS)
    tokenizer.save_pretrained(out_dir)
    settings = {"config": asdict(config), "canvas": canvas, "vocabulary": len(tokenizer), "sizes": model.sizes}
    (out_dir / SETTINGS).write_text(json.dumps(settings, indent=1) + "\n")


def load(directory: str | Path, device: str = "auto"):
    """(model, tokenizer, config, canvas) of what `save` wrote. Raises InputError where it is not there or broken."""
    directory = Path(directory)
    try:
        settings = json.loads((directory / SETTINGS).read_text())
        config, sizes = Config(**settings["config"]), settings["sizes"]
        vocabulary, canvas = settings["vocabulary"], settings["canvas"]
        weights = load_file(directory / WEIGHTS)
    except OSError as error:
        raise InputError(
            f"{directory} is no diffusion model ({error.strerror or error}); give a folder of 06."
        ) from None
    except (ValueError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise InputError(f"{directory}: its {SETTINGS} is broken ({error}); train the model again.") from None
    except SafetensorError as error:
        raise InputError(f"{directory}: its {WEIGHTS} is broken ({error}); train the model again.") from None
    place = models.pick_device(device)
    model = Plaid(vocabulary, config, sizes, place)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(
            f"{directory}: weights and settings disagree ({str(error).splitlines()[-1].strip()})."
        ) from None
    return model.to(place).eval(), models.load_tokenizer(str(directory)), config, canvas
