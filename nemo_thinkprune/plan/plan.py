"""A plan: what a recipe needs of a GPU and of a node, phase by phase, and whether it fits."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from checkpoints_tools.model_config import ModelConfig
from nemo_thinkprune.costs.disk import Disk, checkpoint_parameters, round_disk
from nemo_thinkprune.costs.gpus import Gpu, gpu_named
from nemo_thinkprune.costs.host_memory import host_phases
from nemo_thinkprune.costs.kv_cache import Engine, engine_of
from nemo_thinkprune.costs.memory import gpu_phases, largest_tensor_bytes
from nemo_thinkprune.costs.parts import GIB, PhaseMemory, worst
from nemo_thinkprune.costs.resident import resident_phases
from nemo_thinkprune.costs.shards import Split, split_of
from nemo_thinkprune.costs.training_state import EngineName
from nemo_thinkprune.recipe.local_support import RESTRICTIONS
from nemo_thinkprune.recipe.schema import Recipe
from nemo_thinkprune.recipe.support import value_at

LOCAL: EngineName = "local"
NEMO_RL: EngineName = "nemo-rl"
NOT_COUNTED = (
    "policy.hf_config_overrides",
    "policy.draft.enabled",
    "policy.quant_cfg",
    "policy.megatron_cfg.expert_model_parallel_size",
    "policy.megatron_cfg.expert_tensor_parallel_size",
    "policy.megatron_cfg.mtp_num_layers",
    "policy.megatron_cfg.peft.enabled",
    "policy.megatron_cfg.fp8_cfg.enabled",
    "policy.megatron_cfg.distributed_data_parallel_config.use_custom_fsdp",
)
"""Settings that change what a run needs, and that no formula here knows."""


@dataclass(frozen=True, slots=True)
class Shortage:
    """Something that does not fit: in words, and by how many bytes."""

    what: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run needs.

    `phases` are of one GPU under NeMo-RL (`engine` nemo-rl), or the resident host memory of one rank of the local
    engine on CPUs; `capacity` is what there is of it: the GPU, or one rank's part of this machine. `generation` is one
    GPU of the vLLM engine.
    """

    recipe: Recipe
    model: ModelConfig
    engine: EngineName
    split: Split
    phases: tuple[PhaseMemory, ...]
    capacity: int
    gpu: Gpu | None = None
    generation: Engine | None = None

    @property
    def host(self) -> tuple[PhaseMemory, ...]:
        """Phases of the fullest training node's memory; none for the local engine, whose `phases` are that."""
        return () if self.gpu is None else tuple(host_phases(self.recipe, self.model))

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

    def place(self, one: PhaseMemory) -> str:
        """The phase and where it is: "generate (rollout GPUs)" on GPUs of its own, else "save, stage 3"."""
        if self.apart(one):
            return f"{one.phase} (rollout GPUs)"
        return f"{one.phase}, stage {one.stage}" if self.split.pp > 1 else one.phase

    def apart(self, one: PhaseMemory) -> bool:
        """Whether a phase is on GPUs that do nothing else, which have no pipeline stage of the trainer."""
        return (
            self.gpu is not None
            and one.phase == "generate"
            and not self.recipe.policy.generation.colocated.enabled
        )

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
    """The engine that a plan is made for: the local one where the recipe asks for CPUs.

    What the local engine needs of a GPU is not known: no formula here is for that.
    """
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
    device = gpu_named(gpu)
    return Plan(
        recipe=recipe,
        model=model,
        engine=NEMO_RL,
        split=split,
        phases=tuple(gpu_phases(recipe, model, gpu=device)),
        capacity=device.memory_bytes,
        gpu=device,
        generation=engine_of(recipe, model, gpu=device),
    )


def unplanned(recipe: Recipe) -> list[str]:
    """Settings of the recipe, as "key = value", with which a plan does not count."""
    rules = (rule for rule in RESTRICTIONS if rule.path in NOT_COUNTED)
    found = ((rule.path, value_at(recipe, rule.path), rule.allowed) for rule in rules)
    return [f"{path} = {value!r}" for path, value, usual in found if value not in usual]


def memory_of_this_machine(root: Path = Path("/")) -> int:
    """Bytes of main memory that this process may use: the machine's, or less in a container or a cluster's job.

    `root` is where /proc and /sys are.
    """
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([whole, *_limits(root)])


def _limits(root: Path) -> Iterator[int]:
    """Memory limits of this process's control groups (version 2: of each group on the way up; version 1: its own)."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        top = root / "sys/fs/cgroup" / controllers
        own = top / group.lstrip("/")
        file = "memory.limit_in_bytes" if controllers else "memory.max"
        for folder in (own, *own.parents):
            if not folder.is_relative_to(top):
                break
            try:
                yield int((folder / file).read_text())
            except (OSError, ValueError):  # not there, or "max"
                continue


def gib(number: float) -> str:
    """Bytes as GiB with a decimal."""
    return f"{number / GIB:.1f} GiB"


def _too_much(plan: Plan) -> Shortage | None:
    most = plan.worst
    over = most.bytes - plan.capacity
    if over <= 0:
        return None
    return Shortage(f"{plan.place(most)}: needs {gib(most.bytes)} of {gib(plan.capacity)}", over)


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
