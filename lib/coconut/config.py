"""Every setting of Coconut and its controls, and which method is which. Knows no torch."""

import json
from dataclasses import dataclass, fields, replace

from lib.errors import InputError
from lib.models import check_dtype

# method: (has a curriculum, has latent positions, feeds them the states before them)
METHODS = {
    "cot": (False, False, False),
    "answer_only": (False, False, False),
    "coconut": (True, True, True),
    "coconut_jacobi": (True, True, True),
    "coconut_no_thought": (True, False, False),
    "coconut_no_curriculum": (False, True, True),
    "coconut_pause_as_thought": (True, True, False),
    "coconut_pause_token": (False, True, False),
}
SOURCES = (
    "last_hidden normalised second_to_last middle suppressed suppressed_added soft_token projection mlp pause"
).split()


@dataclass(frozen=True)
class Config:
    """The embedded setting: a small model from scratch on a laptop CPU, with a gentle curriculum.

    model              a preset of lib.models (from scratch), a model directory or a hub id
    method             one of METHODS
    source             what a thought is made from (lib.coconut.sources), in methods that feed states back; published is
                       "last_hidden"; "normalised" is the same at the size of a token's embedding
    markers            <start> and <end> around the thoughts, as published. Without them a thought stands where the
                       step's first token stood, and the position before already says what that would have been
    c_thought          thoughts for each step of text that they replace
    max_latent_stage   steps replaced one by one, stage by stage; problems with more lose the rest in one last stage
    pad_latent_to_max  in that last stage all problems get c_thought * max_latent_stage thoughts (else as many as their
                       own steps ask for)
    jacobi_passes      coconut_jacobi: refinements of all thoughts at once, in place of one pass after the other
    mix                share of rows that are drawn from another stage
    mix_from           "earlier": of the stages before; "all": a number of steps drawn from 0 to all, as published
    one_at_a_time      with c_thought above 1: thoughts are added one by one, each in a stage of its own
    steps              optimizer steps in all, the same for every method (0: as many as num_epochs holds)
    switch_at          a stage ends once this share of validation problems is written out right (0: never early), and at
                       the latest when its equal share of all steps is over, so that every method sees every stage
    check_steps        steps between two looks at the validation problems
    num_epochs, epochs_per_stage, first_epoch   the published way: stages by epochs, some of them left out
    reset_optimizer    "never"; at each new "stage"; at each "epoch", as the published code does
    learning_rate      reached after warmup_steps, constant, then down to 0 in the last decay_steps
    max_grad_norm      gradients are clipped to this norm (0: never)
    answer_prefix      stands before the answer ("### " in the published data)
    init_from          the text whose tokens the embeddings of <latent> and the markers start as; empty: the mean of all
    """

    model: str = "llama_2x128"
    method: str = "coconut"
    source: str = "normalised"
    markers: bool = False
    c_thought: int = 1
    max_latent_stage: int = 4
    pad_latent_to_max: bool = True
    jacobi_passes: int = 2
    mix: float = 0.3
    mix_from: str = "earlier"
    one_at_a_time: bool = True
    steps: int = 1100
    switch_at: float = 0.97
    check_steps: int = 25
    num_epochs: int = 0
    epochs_per_stage: int = 0
    first_epoch: int = 0
    reset_optimizer: str = "never"
    batch_size: int = 64
    accumulation: int = 1
    learning_rate: float = 1e-3
    warmup_steps: int = 50
    decay_steps: int = 150
    weight_decay: float = 0.01
    adam_beta1: float = 0.9
    adam_beta2: float = 0.98
    max_grad_norm: float = 1.0
    dropout: float | None = None
    answer_prefix: str = "#### "
    init_from: str = ""
    max_length: int = 512
    vocab_size: int = 1024
    valid_problems: int = 256
    dtype: str = "float32"
    device: str = "auto"
    seed: int = 0

    def __post_init__(self):
        check_dtype(self.dtype)
        for name, known in {
            "method": METHODS,
            "source": [name for name in SOURCES if name != "pause"],  # that is a method of its own
            "mix_from": ("earlier", "all"),
            "reset_optimizer": ("never", "stage", "epoch"),
        }.items():
            if getattr(self, name) not in known:
                raise InputError(f"Unknown {name} {getattr(self, name)!r}; use {', '.join(known)}.")
        for name in ("c_thought", "batch_size", "accumulation", "check_steps", "max_length"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}.")
        for name in ("max_latent_stage", "steps", "num_epochs", "epochs_per_stage", "first_epoch", "jacobi_passes"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} must be at least 0, not {getattr(self, name)}.")
        for name in ("mix", "switch_at"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is a share from 0 to 1, not {getattr(self, name)}.")
        for name in ("warmup_steps", "decay_steps", "weight_decay", "max_grad_norm", "valid_problems"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} must be at least 0, not {getattr(self, name)}.")
        if self.learning_rate <= 0:
            raise InputError(f"learning_rate must be above 0, not {self.learning_rate}.")
        for name in ("adam_beta1", "adam_beta2", "dropout"):
            if not 0 <= (getattr(self, name) or 0) < 1:
                raise InputError(f"{name} must be at least 0 and below 1, not {getattr(self, name)}.")
        self.check_length()
        if self.batch_size % self.accumulation:
            raise InputError(f"batch_size {self.batch_size} is no multiple of accumulation {self.accumulation}.")

    def check_length(self) -> None:
        """Raise InputError unless steps, or epochs, say how long a training is and when its stages end."""
        if self.steps and self.epochs_per_stage:
            raise InputError("Stages end by steps or by epochs: set one of steps and epochs_per_stage to 0.")
        if not self.steps and self.num_epochs <= self.first_epoch:
            raise InputError(f"How long to train? Give steps, or num_epochs above first_epoch ({self.first_epoch}).")
        if self.has_curriculum and not (self.steps or self.epochs_per_stage):
            raise InputError("A curriculum by epochs needs epochs_per_stage; give it, or steps.")
        if self.epochs_per_stage and self.one_at_a_time and self.c_thought > 1:
            raise InputError("Thoughts are added one at a time by steps alone; set one_at_a_time to false.")

    @property
    def has_curriculum(self) -> bool:
        """Are steps taken away one by one?"""
        return METHODS[self.method][0]

    @property
    def has_latents(self) -> bool:
        """Are there latent positions, and markers around them?"""
        return METHODS[self.method][1]

    @property
    def thought_source(self) -> str | None:
        """What the inputs of latent positions are made from; None where there are none."""
        if METHODS[self.method][2]:
            return self.source
        return "pause" if self.has_latents else None


def varied(config: Config, changes: str) -> Config:
    """`config` with some settings changed, written "mix=0 markers=true". Raises InputError for what is no setting."""
    known = {field.name: getattr(config, field.name) for field in fields(Config)}
    found = {}
    for change in changes.split():
        name, equals, text = change.partition("=")
        if name not in known or not equals:
            raise InputError(f"{change!r} is no change of a setting; write name=value, with one of {', '.join(known)}.")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        if name == "seed":
            raise InputError("seed is no setting to vary; name several seeds instead.")
        kind = float if name == "dropout" else type(known[name])
        value = float(value) if kind is float and type(value) is int else value
        if type(value) is not kind:
            raise InputError(f"{name} must be a {kind.__name__}, found {text!r}.")
        found[name] = value
    return replace(config, **found)


def check_sizes(seeds: list[int], **sizes: int) -> None:
    """Raise InputError where a number of problems or tokens is below 1 (n_train: below 0), or a seed comes twice."""
    for name, value in sizes.items():
        least = {"n_train": 0, "n_look": 2}.get(name, 1)
        if value < least:
            raise InputError(f"{name} must be at least {least}, not {value}.")
    if len(set(seeds)) < len(seeds):
        raise InputError(f"Every seed must be named once, not {seeds}.")
