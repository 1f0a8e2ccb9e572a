"""NeMo-RL's Policy and generation interface over CPU workers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from nemo_rl.models.generation.megatron.megatron_generation import MegatronGeneration
from nemo_rl.models.policy.lm_policy import Policy

from nemo_thinkprune.cluster.names import CPU_WORKER, JOB_KEY


def policy_factory(job_file: Path) -> Callable[..., Policy]:
    """What NeMo-RL's `setup` calls in the place of Policy: the same class with our worker, told of the job."""

    def make(*, config: dict[str, Any], **kwargs: Any) -> Policy:
        config[JOB_KEY] = str(job_file)
        return Policy(config=config, worker_extension_cls_fqn=CPU_WORKER, **kwargs)

    return make


class CpuGeneration(MegatronGeneration):
    """Sampling on the training ranks themselves: every rank takes part, and nothing has to be refitted.

    NeMo-RL's class sends requests to a coordinator on rank 0; ours go to all ranks, sharded by data parallelism.
    """

    def generate(self, data: Any, greedy: bool = False) -> Any:
        """Responses to the prompts of `data`, a BatchedDataDict with input_ids [B, S] and input_lengths [B]."""
        return self._policy.generate(data, greedy=greedy)
