"""The trainable policy on this rank: log-probs, updates and weights, on Megatron-Core's own schedules."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from megatron.core import parallel_state as mpu
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.optimizer import MegatronOptimizer, OptimizerConfig, get_megatron_optimizer
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from checkpoints_tools.model_config import ModelConfig
from nemo_thinkprune.policy.batch import MicroBatch, TokenSequence, assign, pack
from nemo_thinkprune.policy.logprobs import token_logprobs
from nemo_thinkprune.policy.model import ModelOptions, PolicyModel, build_model
from nemo_thinkprune.policy.parallel import Layout, broadcast_from_last_stage
from nemo_thinkprune.policy.prompt_groups import assign_groups, pack_groups

# (log-probs [r], entropies [r], micro-batch) -> (loss already divided by the step's normaliser, sums to log)
LossFn = Callable[[Tensor, Tensor, MicroBatch], tuple[Tensor, dict[str, Tensor]]]


@dataclass(frozen=True, slots=True)
class BatchOptions:
    """How sequences become micro-batches: NeMo-RL's `policy` batch keys."""

    max_tokens: int | None = None
    max_sequences: int | None = None
    logprob_chunk: int = 1024
    temperature: float = 1.0


@dataclass(frozen=True, slots=True)
class UpdateResult:
    """One optimizer step, the same on every rank: loss, gradient norm before clipping and summed metrics."""

    loss: float
    grad_norm: float
    sums: dict[str, float]


class Policy:
    """One model chunk with its data-parallel wrapper, optimizer and frozen reference weights.

    Args:
        model: Architecture from config.json.
        layout: This rank's place.
        device: Where tensors live.
        optimizer: None for a policy that is only evaluated.
    """

    def __init__(
        self,
        model: ModelConfig,
        *,
        layout: Layout,
        device: torch.device,
        options: ModelOptions,
        batch: BatchOptions,
        optimizer: OptimizerConfig | None,
    ) -> None:
        self.model, self.layout, self.device = model, layout, device
        self.options, self.batch = options, batch
        self.network: PolicyModel = build_model(model, options, layout=layout, device=device)
        self.wrapped: DistributedDataParallel | PolicyModel = self.network
        self.optimizer: MegatronOptimizer | None = None
        self._optimizer_config = optimizer
        self._reference: list[Tensor] | None = None
        self._on_beat: Callable[[], None] = lambda: None

    def set_heartbeat(self, beat: Callable[[], None]) -> None:
        """Call `beat` after every micro-batch, so that a watchdog sees progress."""
        self._on_beat = beat

    def make_trainable(self) -> None:
        """Wrap for data parallelism and build the optimizer; call once the weights are loaded."""
        if self._optimizer_config is None:
            return
        config = DistributedDataParallelConfig(
            grad_reduce_in_fp32=self.options.grad_reduce_in_fp32,
            use_distributed_optimizer=self._optimizer_config.use_distributed_optimizer,
        )
        self.wrapped = DistributedDataParallel(
            config=self.network.config, ddp_config=config, module=self.network
        )
        self.optimizer = get_megatron_optimizer(self._optimizer_config, [self.wrapped])
        self.network.config.finalize_model_grads_func = _finalize_without_rescaling

    def freeze_reference(self) -> None:
        """Keep a copy of the present weights as the reference policy of the KL term."""
        self._reference = [p.detach().clone() for p in self.network.parameters()]

    @contextmanager
    def reference_weights(self) -> Iterator[None]:
        """Run with the reference weights inside the block, then put the policy's own back."""
        assert self._reference is not None
        own = [p.data for p in self.network.parameters()]
        for parameter, frozen in zip(self.network.parameters(), self._reference, strict=True):
            parameter.data = frozen
        try:
            yield
        finally:
            for parameter, data in zip(self.network.parameters(), own, strict=True):
                parameter.data = data

    @torch.no_grad()
    def logprobs(self, sequences: Sequence[TokenSequence]) -> list[Tensor]:
        """Log-prob of every response token under the present weights: one fp32 CPU tensor per sequence.

        Each data-parallel rank passes its own sequences; every rank of one pipeline passes the same ones.
        """
        outputs = self._run(sequences, loss_fn=None)
        result: list[Tensor] = [torch.empty(0)] * len(sequences)
        for micro, values in outputs:
            for index, part in zip(micro.indices, micro.split(values["logprobs"].cpu()), strict=True):
                result[index] = part
        return broadcast_from_last_stage(self.layout, result)

    def update(self, sequences: Sequence[TokenSequence], loss_fn: LossFn, *, lr: float) -> UpdateResult:
        """One optimizer step on this data-parallel rank's share of the batch.

        `loss_fn` returns each micro-batch's part of the loss, already divided by the normaliser of the whole
        step over all data-parallel ranks: parts and gradients are summed, never averaged.

        Raises:
            FloatingPointError: The gradient is not finite; nothing of this step must be saved.
        """
        assert self.optimizer is not None and isinstance(self.wrapped, DistributedDataParallel)
        self.wrapped.zero_grad_buffer()
        self.optimizer.zero_grad()
        outputs = self._run(sequences, loss_fn=loss_fn)
        self._schedule(lr)
        _, grad_norm, _ = self.optimizer.step()
        if not math.isfinite(grad_norm or 0.0):
            raise FloatingPointError(
                f"the gradient norm is {grad_norm}: the update is not kept, see the step's rollouts"
            )
        sums = self._sum_over_ranks([values for _, values in outputs])
        return UpdateResult(loss=sums.pop("loss", 0.0), grad_norm=float(grad_norm or 0.0), sums=sums)

    def _schedule(self, lr: float) -> None:
        """What Megatron's parameter scheduler does: norms and biases have a weight decay multiplier of 0."""
        assert self.optimizer is not None and self._optimizer_config is not None
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_mult", 1.0)
            group["weight_decay"] = self._optimizer_config.weight_decay * group.get("wd_mult", 1.0)

    def _run(
        self, sequences: Sequence[TokenSequence], *, loss_fn: LossFn | None
    ) -> list[tuple[MicroBatch, dict[str, Tensor]]]:
        """Forward (and backward, with a loss) over all micro-batches; the last stage's outputs, in order."""
        divisible = self.layout.tp if self.network.config.sequence_parallel else 1
        limits = {"max_tokens": self.batch.max_tokens, "max_sequences": self.batch.max_sequences}
        # a fused GPU kernel knows packed sequences, but no prompts that several responses share
        share = self.device.type == "cpu"
        bins = assign_groups(sequences, **limits) if share else assign([len(s) for s in sequences], **limits)
        lay_out = pack_groups if share else pack
        micros = [lay_out(sequences, b, device=self.device, divisible_by=divisible) for b in bins]
        if not micros:
            return []
        schedule = get_forward_backward_func()
        self.wrapped.train(loss_fn is not None)
        stored = schedule(
            forward_step_func=partial(self._forward_step, loss_fn=loss_fn),
            data_iterator=iter(micros),
            model=[self.wrapped],
            num_microbatches=len(micros),
            seq_length=max(len(m.tokens) for m in micros),
            micro_batch_size=1,
            forward_only=loss_fn is None,
        )
        return list(zip(micros, stored, strict=True)) if self.layout.is_last_stage else []

    def _forward_step(
        self, micros: Iterator[MicroBatch], network: torch.nn.Module, *, loss_fn: LossFn | None
    ) -> tuple[Tensor, Callable[[Tensor], tuple]]:
        micro = next(micros)
        hidden = network(
            input_ids=micro.tokens[None],
            position_ids=None,
            attention_mask=None,
            packed_seq_params=micro.attention,
        )
        self._on_beat()
        return hidden, partial(self._loss_of_hidden, micro=micro, loss_fn=loss_fn)

    def _loss_of_hidden(self, hidden: Tensor, *, micro: MicroBatch, loss_fn: LossFn | None) -> tuple:
        # Only the states that predict response tokens are projected.
        states = self.network.output_hidden(hidden)[micro.positions]
        logprobs, entropy = token_logprobs(
            states,
            self.network.output_weight(),
            micro.targets,
            vocab_size=self.model.vocab_size,
            tp_rank=self.layout.tp_rank,
            tp_group=mpu.get_tensor_model_parallel_group(),
            temperature=self.batch.temperature,
            chunk=self.batch.logprob_chunk,
        )
        one = torch.ones([], dtype=torch.int, device=self.device)
        if loss_fn is None:
            return logprobs.sum(), one, {"logprobs": logprobs}
        loss, sums = loss_fn(logprobs, entropy, micro)
        return loss, one, {"loss": loss.detach(), **sums}

    def _sum_over_ranks(self, outputs: Sequence[Mapping[str, Tensor]]) -> dict[str, float]:
        sums: dict[str, float] = {}
        for values in outputs:
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + float(value)
        gathered: list[Any] = [sums]
        if self.layout.dp > 1:
            gathered = [None] * self.layout.dp
            torch.distributed.all_gather_object(gathered, sums, group=mpu.get_data_parallel_group_gloo())
        names = {name for part in gathered for name in part}
        total = {name: sum(part.get(name, 0.0) for part in gathered) for name in sorted(names)}
        return broadcast_from_last_stage(self.layout, total)


def _finalize_without_rescaling(model: list[torch.nn.Module], *_: Any, **kwargs: Any) -> None:
    # The loss is already normalised over the step, so Megatron must not divide by a token count again.
    finalize_model_grads(model, None, **kwargs)
