"""Section `thinkprune`: what NeMo-RL has no key for."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from nemo_thinkprune.recipe.base import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
    Share,
)


class LengthReward(Section):
    """A reward that depends on length beside the truncation rule."""

    name: Literal["none", "arora_zanette", "l1_exact", "l1_max", "dapo_overlong"] = "none"
    """Which; none: ThinkPrune, where only the limit shortens thoughts.  Formulas: docs/rewards.md."""
    params: dict[str, Any] = Field(default_factory=dict)
    """Its parameters, by name."""


class Selection(Section):
    """Which checkpoint of a round the next round starts from.

    Among the checkpoints whose accuracy on the validation problems fell by at most `max_relative_drop`
    against the baseline, the one with the shortest mean response (the rule of the ThinkPrune paper).
    """

    max_relative_drop: Share = 0.10
    """Largest relative fall of accuracy: 0.10 lets 0.50 become 0.45."""
    baseline: Literal["first_round", "round_start"] = "first_round"
    """What accuracy is compared with: the model before the first round, or before this one.

    Where accuracy is measured within each round's own limit (NeMo-RL; thinkprune.long_limit null), only
    round_start compares like with like.
    """


class Validation(Section):
    """How responses are sampled when a checkpoint is measured (values of the released ThinkPrune code)."""

    samples: PositiveInt = 16
    """Responses to each problem."""
    temperature: NonNegativeFloat = 0.6
    """Sampling temperature; 0: the most likely token."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Nucleus."""
    top_k: PositiveInt | None = None
    """Most likely tokens to choose from; null: all."""


class Scoring(Section):
    """The pool of worker processes that judge answers."""

    workers: PositiveInt = 2
    """Processes."""
    deadline_s: PositiveFloat = 5.0
    """Seconds for one answer; then its worker is killed and the reward is 0."""
    memory_mb: Annotated[int, Field(ge=256)] = 1024
    """Memory of one worker in MiB; its libraries alone take 200."""


class Runtime(Section):
    """The local engine's processes, and what those of NeMo-RL share with them."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Local engine only.  auto: GPUs when there are enough of them for all ranks, else the CPU."""
    threads_per_rank: PositiveInt = 1
    """CPU threads of one rank of the local engine, or of one CPU worker of NeMo-RL (--on-cpu)."""
    stall_timeout_s: PositiveFloat = 600.0
    """All ranks silent for so many seconds end the run, with their stacks in the log; NeMo-RL's driver is one rank.

    Ranks, and NeMo-RL's CPU workers, wait twice as long for each other.
    """


class Control(Section):
    """The same steps without the shrinking limit, to show what the limit adds."""

    enabled: bool = False
    """Switch."""
    limit: PositiveInt | None = None
    """Response tokens of the control; null: thinkprune.long_limit."""


class Warmup(Section):
    """Supervised training that makes a small model reason before it is pruned."""

    data_path: str
    """JSONL file with columns prompt and response."""
    validation_path: str | None = None
    """Problems on which target_accuracy is measured; null: those of data.validation."""
    steps: PositiveInt = 700
    """Optimizer updates."""
    short_share: Share = 0.35
    """Share of the updates, at the start, that see the shortest traces only."""
    short_batch_first: PositiveInt = 24
    """Traces in the first such update."""
    short_batch_last: PositiveInt = 44
    """Traces in the last such update; in between their number rises linearly."""
    batch_size: PositiveInt = 16
    """Traces in every other update."""
    lr: PositiveFloat = 3e-3
    """Peak learning rate: constant to the middle, then linear down to final_lr_share of it."""
    lr_warmup_steps: NonNegativeInt = 30
    """Updates in which the learning rate rises."""
    final_lr_share: Share = 0.05
    """Learning rate of the last update as a share of the peak."""
    adam_beta1: Share = 0.9
    """Decay of the first moment."""
    adam_beta2: Share = 0.98
    """Decay of the second moment."""
    weight_decay: NonNegativeFloat = 0.01
    """Weight decay."""
    clip_grad: NonNegativeFloat = 1.0
    """Largest gradient norm."""
    save_period: PositiveInt = 100
    """Save every so many updates."""
    target_accuracy: Share = 0.93
    """Accuracy at which the warm-up counts as done."""
    max_extensions: NonNegativeInt = 3
    """How often it is extended when the target is missed; then it is an error."""
    extension_steps: PositiveInt = 200
    """Updates of one extension."""


class ThinkPrune(Section):
    """Section `thinkprune`."""

    limits: list[PositiveInt] = Field(min_length=1)
    """Response limits of the rounds in tokens, strictly decreasing.

    Default: 4000, 3000, 2000, or policy.generation.max_new_tokens alone where that is given.
    """
    long_limit: PositiveInt | None = None
    """Limit at which accuracy is measured for selection and report; null: the limit of the round.

    NeMo-RL selects at the limit of the round whatever stands here.
    """
    truncation: Literal["zero", "score_cut_text"] = "zero"
    """A response cut at the limit earns 0, or is scored as it stands, as the released ThinkPrune code did."""
    prompt_family: Literal["deepseek", "qwen", "plain"] = "deepseek"
    """Instruction after the question; plain: the bare question."""
    length_hint: bool = True
    """Name the limit in the system prompt, as the paper does; plain has no system prompt."""
    allow_negative_kl: bool = False
    """Allow a KL weight below zero: the code published with the paper subtracts its KL term.

    Only to reproduce it; such a term pushes the policy away from the reference.
    """
    report_data: str | None = None
    """Problems for the final table, read once at the end and never used to select anything."""
    length_reward: LengthReward = Field(default_factory=LengthReward)
    """Reward by length."""
    selection: Selection = Field(default_factory=Selection)
    """Selection of checkpoints."""
    validation: Validation = Field(default_factory=Validation)
    """Sampling in validation."""
    scoring: Scoring = Field(default_factory=Scoring)
    """Scoring workers."""
    runtime: Runtime = Field(default_factory=Runtime)
    """Processes."""
    control: Control = Field(default_factory=Control)
    """Control run."""
    warmup: Warmup | None = None
    """Supervised warm-up; null: none."""
