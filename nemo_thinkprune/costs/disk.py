"""Bytes on disk: one checkpoint, those of a round, those of a whole prune, and a Hugging Face export.

Sources: megatron-core 0.16.1, optimizer/distrib_optimizer.py `sharded_param_state_fs_model_space` and
`_get_main_param_and_optimizer_states` (what is stored of the optimizer), dist_checkpointing (one file a rank and
writer). Sizes were compared with real checkpoints: see tests/costs/test_disk.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from checkpoints_tools.model_config import ModelConfig
from checkpoints_tools.weight_map import padded_vocab_size
from nemo_thinkprune.costs.shards import model_parameters
from nemo_thinkprune.costs.training_state import WIDTH, EngineName, precision_of, reduction_of
from nemo_thinkprune.recipe.describe import training_rows
from nemo_thinkprune.recipe.schema import Recipe

_FLOAT32 = 4
_MOST_STEPS = 10_000  # a larger grpo.max_num_steps only means: as many as the data gives


@dataclass(frozen=True, slots=True)
class StoredBytes:
    """Bytes that a checkpoint has for one parameter: the weight, and the optimizer's state."""

    weight: int
    optimizer: int

    @property
    def total(self) -> int:
        """Both."""
        return self.weight + self.optimizer


@dataclass(frozen=True, slots=True)
class Disk:
    """Bytes of the checkpoints: of one (0: not known), how many stay in a round (0: not known), and rounds.

    `source` says where the size of the model comes from.
    """

    checkpoint: int = 0
    kept: int = 0
    rounds: int = 1
    source: str = "without a recipe there is nothing to compare it with"

    @property
    def of_round(self) -> int:
        """Bytes that one round leaves."""
        return self.checkpoint * self.kept

    @property
    def needed(self) -> int:
        """Bytes that all rounds leave, with one checkpoint more while it is being written."""
        return self.of_round * self.rounds + self.checkpoint


def stored_bytes(recipe: Recipe, *, engine: EngineName | None = None) -> StoredBytes:
    """What a checkpoint of this recipe has for one parameter.

    float32 moments and master weights. The distributed optimizer stores master weights even where the weights are
    float32 themselves; TransformerEngine's Adam under NeMo-RL stores only the 16 bits that a bfloat16 weight lacks.
    Without `engine` it is the larger of both.
    """
    if engine is None:
        both = [stored_bytes(recipe, engine="local"), stored_bytes(recipe, engine="nemo-rl")]
        return max(both, key=lambda stored: stored.total)
    precision, distributed = (
        precision_of(recipe, engine=engine),
        reduction_of(recipe, engine=engine).distributed,
    )
    master = precision.master or (_FLOAT32 if distributed else 0)
    kept = master + precision.moments if recipe.checkpointing.save_optimizer else 0
    return StoredBytes(precision.weight, kept)


def checkpoint_parameters(model: ModelConfig, *, tp: int) -> int:
    """Parameters in a checkpoint: those of the model with the vocabulary padded for `tp`, a tied embedding once."""
    rows = padded_vocab_size(model.vocab_size, tp) - model.vocab_size
    return model_parameters(model) + (1 if model.tied else 2) * rows * model.hidden_size


def checkpoint_bytes(parameters: int, stored: StoredBytes) -> int:
    """Bytes of the tensors of one checkpoint; names and the index are some kB a tensor besides."""
    return parameters * stored.total


def export_bytes(parameters: int, *, dtype: str) -> int:
    """Bytes of the safetensors of a Hugging Face export in `dtype` (float32, bfloat16 or float16)."""
    return parameters * WIDTH[dtype]


def round_disk(
    recipe: Recipe, *, parameters: int, rounds: bool, source: str, engine: EngineName | None = None
) -> Disk:
    """Room for the checkpoints of a run of `recipe`, or of all its rounds.

    Args:
        parameters: Of one checkpoint.
        rounds: The run is a prune over all thinkprune.limits.
        source: Where `parameters` is from.
        engine: None: the one that stores more.
    """
    settings = recipe.checkpointing
    if not settings.enabled:
        return Disk(source="checkpointing.enabled is false")
    return Disk(
        checkpoint_bytes(parameters, stored_bytes(recipe, engine=engine)),
        kept_checkpoints(recipe),
        len(recipe.thinkprune.limits) if rounds else 1,
        source,
    )


def kept_checkpoints(recipe: Recipe) -> int:
    """How many checkpoints of one round stay: all, or the best ones and the newest; 0: not known."""
    saved, top = saved_steps(recipe), recipe.checkpointing.keep_top_k
    if top and saved:
        return min(saved, top + 1)
    return saved or (top + 1 if top else 0)


def saved_steps(recipe: Recipe) -> int:
    """How many checkpoints one round writes at most; 0 when that depends on data that is not there yet."""
    rows, grpo = training_rows(recipe), recipe.grpo
    if rows is None and grpo.max_num_steps > _MOST_STEPS:
        return 0
    steps = grpo.max_num_steps
    if rows is not None:
        steps = min(steps, grpo.max_num_epochs * (rows // grpo.num_prompts_per_step))
    return -(-steps // recipe.checkpointing.save_period)
