"""Every setting of a diffusion model's training. Knows no torch."""

from dataclasses import dataclass

from lib.errors import InputError

# Width, blocks and heads; every preset is trained from scratch, with a vocabulary made from the problems.
PRESETS = {
    "plaid_3x128": (128, 3, 4),
    "plaid_4x128": (128, 4, 4),
    "plaid_8x512": (512, 8, 8),
    "plaid_12x768": (768, 12, 12),
    "plaid_16x384": (384, 16, 6),
    "plaid_24x2048": (2048, 24, 32),
}
LOSSES = ("vlb", "cross_entropy", "masked")
SAMPLERS = ("ancestral", "ddim", "dpm_1", "dpm_2m", "release_x0_iteration")


@dataclass(frozen=True)
class Config:
    """The embedded setting: a small model from scratch on a laptop CPU.

    model             a preset, a directory that `train` left, or a folder of published weights (lib.dot.weights)
    tokenizer         empty: words and digits of the problems; else a directory or hub id, for published weights
    digits            each digit is a token; stored with the model, so that no other way can be used when asking
    loss              "cross_entropy": of the clean tokens, at all times alike, which learns fastest at this size;
                      "vlb": the variational bound, nats a token (Plaid), with the same noise; "masked": absorbing
                      diffusion, tokens are masked instead of noised
    loss_scope        "target": the chain, the answer and the end, with the filler behind it; "all": every position,
                      the source's and its padding's too, as released
    embed_dim         width of the (unit-norm) embeddings that noise is added to
    gamma_0, gamma_1  -log SNR at t = 0 and t = 1, before training
    learn_schedule    the schedule's bounds minimise the bound, its shape the bound's variance ("vlb" only)
    self_conditioning share of rows that see a first guess of their own; published: 0.25
    places            a learned vector for each position, counted from the canvas' beginning, beside rotary positions:
                      a small model finds out sooner where it is. Plaid has none
    multi_pass        one thought a pass (DoT-MP, lib.dot.multi_pass) instead of the whole chain at once
    max_thoughts      multi_pass: passes at most when asked; 0: twice the steps of the longest chain to learn from
    coupled           multi_pass: how often two thoughts stand on the canvas (coupled sampling); published: about 0.01
    min_prob          scheduled sampling: rows are noised from the truth with this probability in the end (from 1 down
                      to it along a line), else from the model's own guess. 1: off; published: 0.95
    source_scale      the clean source's factor; 0: sqrt(embed_dim), the size of everything else. Published: 1
    learning_rate     of everything but the next; matrices between hidden layers get it divided by width / 256 (muP).
                      Reached after warmup_steps, then down to 0 along a line
    embedding_rate    of embeddings, schedule and its bounds; published: 0.01
    settle_steps      first steps at rate 0, in which Adam's averages settle
    prior_steps       steps in which the output prior is faded in
    weight_decay      what a step takes off the model's weights at full rate, whatever the rate; bounds_decay: off the
                      schedule's bounds
    clip_quantile     gradients are clipped to this quantile of the last 1,000 norms (of those there are, from the 20th
                      step on); 0: never
    ema               decay of a running mean of the weights, which is what is used in the end; 0: none
    check_steps       steps between two looks at the first `valid_problems` validation problems, each answered in
                      `check_with` denoising steps
    max_length        longest problem with solution, in tokens; longer ones are left out and counted, never cut
    """

    model: str = "plaid_3x128"
    tokenizer: str = ""
    digits: bool = True
    loss: str = "cross_entropy"
    loss_scope: str = "target"
    embed_dim: int = 16
    gamma_0: float = -3.0
    gamma_1: float = 6.0
    learn_schedule: bool = True
    self_conditioning: float = 0.5
    places: bool = True
    multi_pass: bool = False
    max_thoughts: int = 0
    coupled: float = 0.0
    min_prob: float = 1.0
    source_scale: float = 0.0
    steps: int = 1500
    batch_size: int = 32
    accumulation: int = 1
    learning_rate: float = 1e-3
    embedding_rate: float = 1e-3
    warmup_steps: int = 50
    settle_steps: int = 10
    prior_steps: int = 50
    weight_decay: float = 4e-5
    bounds_decay: float = 1e-3
    adam_beta1: float = 0.9
    adam_beta2: float = 0.99
    clip_quantile: float = 0.95
    ema: float = 0.0
    check_steps: int = 250
    check_with: int = 4
    valid_problems: int = 128
    max_length: int = 256
    dtype: str = "float32"
    device: str = "auto"
    seed: int = 0

    def __post_init__(self):
        check_precision(self.dtype)
        for name, known in {"loss": LOSSES, "loss_scope": ("target", "all")}.items():
            if getattr(self, name) not in known:
                raise InputError(f"Unknown {name} {getattr(self, name)!r}; use {', '.join(known)}.")
        for name in ("embed_dim", "steps", "batch_size", "accumulation", "check_steps", "check_with", "max_length"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}.")
        for name in ("self_conditioning", "clip_quantile", "ema", "adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, name) <= (1 if name == "self_conditioning" else 0.999999):
                raise InputError(f"{name} is a share from 0 to 1, not {getattr(self, name)}.")
        for name in ("coupled", "min_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is a share from 0 to 1, not {getattr(self, name)}.")
        if self.coupled and not self.multi_pass:
            raise InputError("Coupled sampling needs a thought after another: set multi_pass, or coupled 0.")
        if self.min_prob < 1 and self.loss == "masked":
            raise InputError("Scheduled sampling noises guesses, masked diffusion noises nothing; set min_prob 1.")
        for name in ("warmup_steps", "settle_steps", "prior_steps", "weight_decay", "bounds_decay", "source_scale"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} must be at least 0, not {getattr(self, name)}.")
        for name in ("valid_problems", "max_thoughts"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} must be at least 0, not {getattr(self, name)}.")
        for name in ("learning_rate", "embedding_rate"):
            if getattr(self, name) <= 0:
                raise InputError(f"{name} must be above 0, not {getattr(self, name)}.")
        if self.gamma_0 >= self.gamma_1:
            raise InputError(f"gamma_0 must be below gamma_1: {self.gamma_0} is not below {self.gamma_1}.")
        if self.batch_size % self.accumulation:
            raise InputError(f"batch_size {self.batch_size} is no multiple of accumulation {self.accumulation}.")
        if self.loss == "vlb" and self.batch_size // self.accumulation < 2:
            raise InputError("The bound needs at least 2 rows in a forward pass: one at t = 0, one elsewhere.")
        if self.loss == "masked" and self.loss_scope == "all":
            raise InputError("Masked diffusion has no loss on its source; use loss_scope target.")


def check_precision(dtype: str) -> None:
    """Raise InputError for anything but float32 and bfloat16: float16 would need its gradients scaled."""
    if dtype not in ("float32", "bfloat16"):
        raise InputError(f"Diffusion runs in float32 or bfloat16, not {dtype!r}.")


def check_multi_pass(learned: list[str], tasks: list[str], without_chain: list[str]) -> None:
    """Raise InputError where a task is to be thought through that is not learned at all, or without its chain."""
    for task in learned:
        if task not in tasks:
            raise InputError(
                f'multi_pass names {task!r}, which is none of the tasks {", ".join(tasks)}; [""] names none.'
            )
        if task in without_chain:
            raise InputError(f"multi_pass and without_chain both name {task!r}: an answer alone is one thought.")


def check_sizes(
    tasks: list[str], steps: list[int], seeds: list[int], cot_steps: list[int] = (0,), **sizes: int
) -> None:
    """Raise InputError unless there is one number of steps a task (or one for all), and no size is too small."""
    each = {"steps": steps, "cot_steps": cot_steps}
    for name, numbers in each.items():
        if len(numbers) not in (1, len(tasks)):
            raise InputError(
                f"{name} has {len(numbers)} numbers for {len(tasks)} tasks; give one a task, or one for all."
            )
        if min(numbers) < (name == "steps"):
            raise InputError(f"{name} must be at least {int(name == 'steps')}, not {min(numbers)}.")
    for names, what in ((tasks, "task"), (seeds, "seed")):
        if not names or len(set(names)) < len(names):
            raise InputError(f"Every {what} must be named once, not {names}.")
    for name, value in sizes.items():
        least = 0 if name == "bound_steps" else 2 if name == "n_valid" else 1
        if value < least:
            raise InputError(f"{name} must be at least {least}, not {value}.")
