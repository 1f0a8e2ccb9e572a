"""NeMo-RL's policy worker on a CPU: the local engine's Megatron-Core policy and sampler behind its method names.

One Ray actor is one rank of TP x PP x DP on gloo. It replaces MegatronPolicyWorker, which needs CUDA throughout,
through `Policy(worker_extension_cls_fqn=...)`; the trainer, its advantages, its loss function and its checkpoint
manager stay NeMo-RL's own. Shapes: B sequences of this data-parallel rank, padded right to S tokens.
"""

from __future__ import annotations

import os
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import ray
import torch
from nemo_rl.distributed.batched_data_dict import BatchedDataDict
from torch import Tensor

from nemo_thinkprune.cluster.cpu_batches import (
    Rows,
    Streams,
    generation_output,
    grouped_requests,
    microbatch_loss,
    sequences_of,
)
from nemo_thinkprune.cluster.names import JOB_KEY
from nemo_thinkprune.policy.checkpoint import load_torch_dist, save_bridge_files, save_torch_dist
from nemo_thinkprune.policy.device import megatron_device
from nemo_thinkprune.policy.parallel import (
    Layout,
    broadcast_from_last_stage,
    gather_over_data_parallel,
    model_parallel,
)
from nemo_thinkprune.rollout.engine import MegatronEngine
from nemo_thinkprune.rollout.types import Sampling
from nemo_thinkprune.training.checkpoint_files import WEIGHTS
from nemo_thinkprune.training.job import Job
from nemo_thinkprune.training.schedule import learning_rate
from nemo_thinkprune.training.session import build_policy, optimizer_config

DEVICE = torch.device("cpu")


class CpuWorker:
    """One rank. Public methods are those that NeMo-RL's Policy and trainers call on every worker."""

    def __init__(
        self,
        config: dict[str, Any],
        *,
        weights_path: str | None = None,
        optimizer_path: str | None = None,
        init_reference_model: bool = True,
        **_: Any,
    ) -> None:
        job = Job.read(config[JOB_KEY])
        self.job, self.recipe = job, job.recipe
        self._exit = ExitStack()
        self.layout = self._join()
        self.policy = build_policy(job, self.layout, DEVICE, optimizer_config(self.recipe))
        if init_reference_model:
            self.policy.freeze_reference()  # before resuming: the reference is the model the round began with
        self.updates = 0
        if weights_path is not None:
            folder = Path(weights_path) / WEIGHTS.name
            self.updates = load_torch_dist(self.policy, folder, with_optimizer=optimizer_path is not None)
        generation = config["generation"]
        self.pad_id = int(generation["_pad_token_id"])
        self.engine = MegatronEngine(
            self.policy,
            eos_ids=generation["stop_token_ids"],
            max_rows=self.recipe.policy.generation_batch_size,
        )
        self._streams = Streams(job)

    def train(
        self,
        data: BatchedDataDict,
        loss_fn: Any,
        eval_mode: bool = False,
        gbs: int | None = None,
        mbs: int | None = None,
        check_dim_skip_keys: Any = None,
    ) -> dict[str, Any]:
        """One optimizer update for every `gbs` sequences of all ranks, under NeMo-RL's own loss function.

        Raises:
            NotImplementedError: evaluation without update, which GRPO never asks for.
        """
        if eval_mode or check_dim_skip_keys is not None:
            raise NotImplementedError("the CPU worker trains with GRPO only")
        local = (gbs or self.recipe.policy.train_global_batch_size) // self.layout.dp
        lr = self._next_learning_rate()
        metrics: dict[str, list[Any]] = defaultdict(list)
        results = []
        for start in range(0, data.size, local):
            rows = Rows.of(data.slice(start, start + local))
            totals = self._totals(rows)
            records: list[dict[str, Any]] = []
            loss = microbatch_loss(rows, loss_fn, totals, records)
            results.append(self.policy.update(sequences_of(rows), loss, lr=lr))
            update = self._update_metrics(lr, totals)
            for record in broadcast_from_last_stage(self.layout, records):
                for key, value in {**record, **update}.items():
                    metrics[key].append(value)
        self.updates += 1
        return {
            "global_loss": torch.tensor([result.loss for result in results]),
            "grad_norm": torch.tensor([sum(result.grad_norm for result in results) / len(results)]),
            "all_mb_metrics": dict(metrics),
            "rank": self.layout.rank,
            "gpu_name": "cpu",
            "model_dtype": next(self.policy.network.parameters()).dtype,
        }

    def get_logprobs(self, *, data: BatchedDataDict, micro_batch_size: int | None = None) -> BatchedDataDict:
        """{"logprobs": [B, S] fp32}: of each response token at its own position, 0 elsewhere."""
        rows = Rows.of(data)
        return BatchedDataDict({"logprobs": rows.grid(self.policy.logprobs(sequences_of(rows)))})

    def get_reference_policy_logprobs(
        self, *, data: BatchedDataDict, micro_batch_size: int | None = None
    ) -> BatchedDataDict:
        """{"reference_logprobs": [B, S] fp32} under the weights that the round began with."""
        with self.policy.reference_weights():
            return BatchedDataDict({"reference_logprobs": self.get_logprobs(data=data)["logprobs"]})

    def generate(self, *, data: BatchedDataDict, greedy: bool = False) -> BatchedDataDict:
        """Sample a response to each prompt; NeMo-RL's GenerationOutputSpec, with `truncated` [B] bool."""
        generation = self.recipe.policy.generation
        names = self._streams.of_call(self.updates + 1, self.layout.dp_rank)
        rollouts = self.engine.generate(
            grouped_requests(data, names),
            limit=self.job.limit,
            sampling=Sampling(
                temperature=0.0 if greedy else generation.temperature, seed=self.recipe.grpo.seed
            ),
        )
        return BatchedDataDict(generation_output(rollouts, pad_id=self.pad_id))

    def save_checkpoint(
        self,
        weights_path: str,
        optimizer_path: str | None = None,
        tokenizer_path: str | None = None,
        **_: Any,
    ) -> None:
        """Write torch_dist weights, with the optimizer unless `optimizer_path` is None; collective."""
        folder = Path(weights_path) / WEIGHTS.name
        if self.layout.is_main:
            folder.mkdir(parents=True, exist_ok=True)
        self._barrier()
        save_torch_dist(
            self.policy, folder, iteration=self.updates, with_optimizer=optimizer_path is not None
        )
        if self.layout.is_main:
            save_bridge_files(self.policy, folder)
        self._barrier()

    def shutdown(self) -> bool:
        """Leave the process groups."""
        self._exit.close()
        return True

    def is_alive(self) -> bool:
        """Answer at all."""
        return True

    def report_node_ip_and_gpu_id(self) -> tuple[str, int]:
        """Address of the node and a number for the rank."""
        return ray.util.get_node_ip_address(), self.layout.rank

    def get_free_memory_bytes(self) -> int:
        """No device memory is shared with a second engine."""
        return 0

    def prepare_refit_info(self) -> None:
        """Sampler and policy are the same weights."""

    def _nothing(self, *_: Any, **__: Any) -> None:
        """What a GPU worker does here (moving weights and optimizer, waking an engine) a CPU has no need of."""

    prepare_for_generation = finish_generation = prepare_for_training = prepare_for_lp_inference = _nothing
    finish_training = finish_inference = offload_before_refit = offload_after_refit = _nothing
    suspend_for_refit = resume_after_refit = start_gpu_profiling = stop_gpu_profiling = _nothing

    def _join(self) -> Layout:
        """Enter the process groups, where Ray's worker group says."""
        runtime, megatron = self.recipe.thinkprune.runtime, self.recipe.policy.megatron_cfg
        self._exit.enter_context(
            megatron_device(DEVICE, threads=runtime.threads_per_rank, seed=self.recipe.grpo.seed)
        )
        return self._exit.enter_context(
            model_parallel(
                rank=int(os.environ["RANK"]),
                world=int(os.environ["WORLD_SIZE"]),
                rendezvous=f"tcp://{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}",
                tp=megatron.tensor_model_parallel_size,
                pp=megatron.pipeline_model_parallel_size,
                device=DEVICE,
                timeout_s=2 * runtime.stall_timeout_s,
                seed=self.recipe.grpo.seed,
            )
        )

    def _next_learning_rate(self) -> float:
        megatron = self.recipe.policy.megatron_cfg
        return learning_rate(self.updates + 1, optimizer=megatron.optimizer, scheduler=megatron.scheduler)

    def _update_metrics(self, lr: float, totals: tuple[Tensor, Tensor]) -> dict[str, float]:
        """What NeMo-RL expects beside the loss function's own metrics of every microbatch."""
        return {
            "lr": lr,
            "wd": self.recipe.policy.megatron_cfg.optimizer.weight_decay,
            "global_valid_seqs": float(totals[0]),
            "global_valid_toks": float(totals[1]),
        }

    def _totals(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Valid sequences and response tokens of the update over all data-parallel ranks, as scalars."""
        own = (float(rows.sample_mask.sum()), float(rows.loss_mask.sum()))
        parts = gather_over_data_parallel(self.layout, own)
        return torch.tensor(sum(p[0] for p in parts)), torch.tensor(sum(p[1] for p in parts))

    def _barrier(self) -> None:
        if self.layout.world > 1:
            torch.distributed.barrier()


CpuPolicyWorker = ray.remote(CpuWorker)
