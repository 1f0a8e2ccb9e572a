"""A plan: what a recipe needs of a GPU and of a node, phase by phase, and whether it fits."""

from __future__ import annotations

import os
from dataclasses import dataclass

from checkpoints_tools.model_config import ModelConfig
from nemo_thinkprune.costs.disk import Disk, checkpoint_parameters, round_disk
from nemo_thinkprune.costs.gpus import GPUS, Gpu
from nemo_thinkprune.costs.host_memory import host_phases
from nemo_thinkprune.costs.kv_cache import Engine, engine_of
from nemo_thinkprune.costs.memory import gpu_phases, largest_tensor_bytes
from nemo_thinkprune.costs.parts import GIB, PhaseMemory, worst
from nemo_thinkprune.costs.resident import resident_phases
from nemo_thinkprune.costs.shards import Split, split_of
from nemo_thinkprune.costs.training_state import EngineName
from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.schema import Recipe

LOCAL: EngineName = "local"
NEMO_RL: EngineName = "nemo-rl"


@dataclass(frozen=True, slots=True)
class Shortage:
    """Something that does not fit: in words, and by how many bytes."""

    what: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run needs.

    `phases` are of one GPU under NeMo-RL (`engine` nemo-rl), or the resident host memory of one rank of the local
    engine on CPUs; `capacity` is what there is of it: the GPU, or one rank's part of this machine. `host` is the
    memory of one training node under NeMo-RL. `generation` is one GPU of the vLLM engine.
    """

    recipe: Recipe
    model: ModelConfig
    engine: EngineName
    split: Split
    phases: tuple[PhaseMemory, ...]
    capacity: int
    gpu: Gpu | None = None
    generation: Engine | None = None
    host: tuple[PhaseMemory, ...] = ()

    @property
    def disk(self) -> Disk:
        """Bytes of the run's checkpoints."""
        return round_disk(
            self.recipe,
            parameters=checkpoint_parameters(self.model, tp=self.split.tp),
            rounds=False,
            source="",
            engine=self.engine,
        )

    @property
    def worst(self) -> PhaseMemory:
        """The phase and stage that need most."""
        return worst(self.phases)

    @property
    def shortages(self) -> list[Shortage]:
        """Everything that does not fit, worst first."""
        found = [_too_much(self), *_generation(self), *_refit(self)]
        return sorted((one for one in found if one is not None), key=lambda one: -one.bytes)

    @property
    def fits(self) -> bool:
        """Whether nothing is short."""
        return not self.shortages

    @property
    def missing_bytes(self) -> int:
        """Bytes of the worst shortage; 0 when it fits."""
        return max((one.bytes for one in self.shortages), default=0)


def engine_for(recipe: Recipe) -> EngineName:
    """The engine that a plan is made for: the local one where the recipe asks for CPUs."""
    return LOCAL if recipe.thinkprune.runtime.device == "cpu" else NEMO_RL


def make_plan(recipe: Recipe, model: ModelConfig, *, gpu: str, host_bytes: int | None = None) -> Plan:
    """Plan a recipe.

    Args:
        recipe: A recipe that its own checks accept.
        model: The architecture of its model.
        gpu: A name of `costs.gpus.GPUS`; of no matter for the local engine on CPUs.
        host_bytes: Memory of the machine that the local engine runs on; None: of this one.

    Raises:
        UserError: Ranks, layers or heads do not divide, or `gpu` is not known.
    """
    split = split_of(recipe)
    if engine_for(recipe) == LOCAL:
        total = memory_of_this_machine() if host_bytes is None else host_bytes
        return Plan(
            recipe=recipe,
            model=model,
            engine=LOCAL,
            split=split,
            phases=tuple(resident_phases(recipe, model)),
            capacity=total // recipe.cluster.gpus_per_node,
        )
    if gpu not in GPUS:
        raise UserError(f"no GPU is called '{gpu}'; use one of {', '.join(GPUS)}")
    device = GPUS[gpu]
    return Plan(
        recipe=recipe,
        model=model,
        engine=NEMO_RL,
        split=split,
        phases=tuple(gpu_phases(recipe, model, gpu_bytes=device.memory_bytes)),
        capacity=device.memory_bytes,
        gpu=device,
        generation=engine_of(recipe, model, gpu_bytes=device.memory_bytes),
        host=tuple(host_phases(recipe, model)),
    )


def memory_of_this_machine() -> int:
    """Bytes of main memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def gib(number: float) -> str:
    """Bytes as GiB with a decimal."""
    return f"{number / GIB:.1f} GiB"


def _too_much(plan: Plan) -> Shortage | None:
    most = plan.worst
    over = most.bytes - plan.capacity
    if over <= 0:
        return None
    where = f"stage {most.stage}" if plan.split.pp > 1 else "every rank"
    return Shortage(f"{most.phase} on {where} needs {gib(most.bytes)} of {gib(plan.capacity)}", over)


def _generation(plan: Plan) -> list[Shortage]:
    """The cache must hold one sequence of the greatest length, or vLLM refuses to start."""
    engine = plan.generation
    if engine is None or engine.sequences >= 1:
        return []
    length = plan.recipe.policy.generation.vllm_cfg.max_model_len
    need = engine.weights + engine.running + engine.graphs + length * engine.token_bytes
    return [
        Shortage(
            f"vLLM has {gib(engine.budget)} and needs {gib(need)} for its weights and one sequence of {length} tokens",
            max(1, need - engine.budget),
        )
    ]


def _refit(plan: Plan) -> list[Shortage]:
    """Each half of the refit buffer must hold the largest tensor (nemo_rl/models/policy/utils.py asserts it)."""
    if plan.gpu is None or not plan.recipe.policy.generation.colocated.enabled:
        return []
    refit = [one for one in plan.phases if one.phase == "refit"]
    sizes = [part.bytes for one in refit for part in one.parts if part.name == "refit buffer"]
    buffer = min(sizes) if len(sizes) == len(refit) else 0
    need = 2 * largest_tensor_bytes(plan.recipe, plan.model)
    if buffer >= need:
        return []
    return [Shortage(f"the refit buffer of {gib(buffer)} must hold the largest tensor twice", need - buffer)]
