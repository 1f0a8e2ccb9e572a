"""Enters our parts into NeMo-RL's registries, which are those of one process: call it in the driver."""

from __future__ import annotations

from nemo_thinkprune.cluster.names import CPU_WORKER, ENVIRONMENT, PROCESSOR, VALIDATION_ENVIRONMENT

ENVIRONMENTS = {
    ENVIRONMENT: "nemo_thinkprune.cluster.actors.ThinkPruneEnvironment",
    VALIDATION_ENVIRONMENT: "nemo_thinkprune.cluster.actors.ThinkPruneValidationEnvironment",
}
# NeMo-RL makes these an environment with uv even where NEMO_RL_PY_EXECUTABLES_SYSTEM=1 says that there is one
# Python for everything; its workers heed that.
TRAINER_ACTORS = (
    "nemo_rl.algorithms.async_utils.AsyncTrajectoryCollector",
    "nemo_rl.algorithms.async_utils.ReplayBuffer",
    "nemo_rl.experience.sync_rollout_actor.SyncRolloutActor",
)


def register() -> None:
    """Make environments, processor and CPU worker known; harmless when they are.

    All of them run with the driver's own Python, where this package is importable; so do the actors of NeMo-RL's
    trainers where NEMO_RL_PY_EXECUTABLES_SYSTEM=1 says so of its workers.
    """
    from nemo_rl.data.processors import PROCESSOR_REGISTRY, register_processor
    from nemo_rl.distributed.ray_actor_environment_registry import (
        ACTOR_ENVIRONMENT_REGISTRY,
        USE_SYSTEM_EXECUTABLE,
    )
    from nemo_rl.distributed.virtual_cluster import PY_EXECUTABLES
    from nemo_rl.environments.utils import ENV_REGISTRY, register_env

    from nemo_thinkprune.cluster.dataset import process_problem

    for name, actor in ENVIRONMENTS.items():
        if name not in ENV_REGISTRY:
            register_env(name, actor)
    own_python = TRAINER_ACTORS if USE_SYSTEM_EXECUTABLE else ()
    for actor in (*ENVIRONMENTS.values(), CPU_WORKER, *own_python):
        ACTOR_ENVIRONMENT_REGISTRY[actor] = PY_EXECUTABLES.SYSTEM
    if PROCESSOR not in PROCESSOR_REGISTRY:
        register_processor(PROCESSOR, process_problem)
