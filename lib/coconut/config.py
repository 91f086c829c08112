"""Every setting of Coconut and its controls, and which method is which. Knows no torch."""

from dataclasses import dataclass

from lib.errors import InputError
from lib.models import check_dtype

# method: (has a curriculum, has latent positions, where their inputs come from unless config.source says)
METHODS = {
    "cot": (False, False, None),
    "answer_only": (False, False, None),
    "coconut": (True, True, "last_hidden"),
    "coconut_jacobi": (True, True, "last_hidden"),
    "coconut_no_thought": (True, False, None),
    "coconut_no_curriculum": (False, True, "last_hidden"),
    "coconut_pause_as_thought": (True, True, "pause"),
    "coconut_pause_token": (False, True, "pause"),
}
SOURCES = (
    "last_hidden normalised second_to_last middle suppressed suppressed_added soft_token projection mlp pause"
).split()


@dataclass(frozen=True)
class Config:
    """The embedded setting: a small model from scratch on a laptop CPU, with a gentle curriculum.

    model              a preset of lib.models (from scratch), a model directory or a hub id
    method             one of METHODS
    source             what a thought is made from (lib.coconut.sources); empty: as the method says
    c_thought          thoughts for each step of text that they replace
    max_latent_stage   steps replaced one by one, stage by stage; problems with more lose the rest in one last stage
    pad_latent_to_max  in that last stage all problems get c_thought * max_latent_stage thoughts (else as many as their
                       own steps ask for)
    jacobi_passes      coconut_jacobi: refinements of all thoughts at once, in place of one pass after the other
    mix                share of rows that are drawn from another stage
    mix_from           "earlier": of the stages before; "all": a number of steps drawn from 0 to all, as published
    one_at_a_time      with c_thought above 1: thoughts are added one by one, each in a stage of its own
    steps              optimizer steps in all, the same for every method (0: as many as num_epochs holds)
    stage_steps        steps of a stage before the last, at most
    switch_at          a stage ends once this share of validation problems is written out right (0: never early)
    check_steps        steps between two looks at the validation problems
    num_epochs, epochs_per_stage, first_epoch   the published way: stages by epochs, some of them left out
    reset_optimizer    "never"; at each new "stage"; at each "epoch", as the published code does
    learning_rate      reached after warmup_steps, constant, then down to 0 in the last decay_steps
    max_grad_norm      gradients are clipped to this norm (0: never)
    answer_prefix      stands before the answer ("### " in the published data)
    init_from          the text whose tokens the markers' embeddings start as; empty: the mean of all
    """

    model: str = "llama_2x128"
    method: str = "coconut"
    source: str = ""
    c_thought: int = 1
    max_latent_stage: int = 4
    pad_latent_to_max: bool = True
    jacobi_passes: int = 2
    mix: float = 0.3
    mix_from: str = "earlier"
    one_at_a_time: bool = True
    steps: int = 900
    stage_steps: int = 250
    switch_at: float = 0.98
    check_steps: int = 25
    num_epochs: int = 0
    epochs_per_stage: int = 0
    first_epoch: int = 0
    reset_optimizer: str = "never"
    batch_size: int = 128
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
            "source": ("", *SOURCES),
            "mix_from": ("earlier", "all"),
            "reset_optimizer": ("never", "stage", "epoch"),
        }.items():
            if getattr(self, name) not in known:
                named = ", ".join(value for value in known if value)
                raise InputError(f"Unknown {name} {getattr(self, name)!r}; use {named}.")
        for name in ("c_thought", "batch_size", "accumulation", "check_steps", "max_length", "stage_steps"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}.")
        for name in ("max_latent_stage", "steps", "num_epochs", "epochs_per_stage", "first_epoch", "jacobi_passes"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} must be at least 0, not {getattr(self, name)}.")
        for name in ("mix", "switch_at"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is a share from 0 to 1, not {getattr(self, name)}.")
        if not (self.steps or self.num_epochs):
            raise InputError("How long to train? Give steps, or num_epochs.")
        if self.batch_size % self.accumulation:
            raise InputError(f"batch_size {self.batch_size} is no multiple of accumulation {self.accumulation}.")

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
        return (self.source or METHODS[self.method][2]) if self.has_latents else None
