"""The layers of a pipeline stage as plain functions on the policy's own weights, for sampling.

A training forward goes through Megatron's modules. Token by token their checks and wrappers cost more than the
arithmetic, so sampling reads the same parameters and computes the same formulas with as few calls as it can.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core import parallel_state as mpu
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor

from nemo_thinkprune.policy.cpu_linear import packed, product
from nemo_thinkprune.policy.local_layers import rotated
from nemo_thinkprune.policy.model import PolicyModel
from nemo_thinkprune.policy.parallel import Layout


@dataclass(frozen=True, slots=True)
class Dense:
    """y = x W^T + b, on a CPU with a copy of the weight in oneDNN's own order for a certain number of rows."""

    weight: Tensor
    bias: Tensor | None
    packed: Tensor | None

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None, *, rows: int) -> Dense:
        """Pack the weight where that is possible; it must not change afterwards."""
        return cls(weight, bias, packed(weight, rows=rows))

    def __call__(self, x: Tensor) -> Tensor:
        """[..., k] to [..., n]."""
        if self.packed is None:
            return F.linear(x, self.weight, self.bias)
        return product(x, self.packed, self.bias)


@dataclass(frozen=True, slots=True)
class Norm:
    """RMS norm (Zhang and Sennrich 2019, arXiv 1910.07467)."""

    weight: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        """[..., hidden] to the same shape and dtype; the mean is taken in fp32 at least."""
        wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        factor = torch.rsqrt(wide.square().mean(-1, keepdim=True).add_(self.eps))
        return (wide * factor).to(x.dtype).mul_(self.weight)


@dataclass(frozen=True, slots=True)
class StageLayer:
    """One transformer layer of this rank: attention without its core, and the MLP."""

    norm: Norm
    qkv: Dense
    query_norm: Norm | None
    key_norm: Norm | None
    proj: Dense
    mlp_norm: Norm
    gate_up: Dense
    down: Dense
    shape: tuple[
        int, int, int
    ]  # kv heads of this rank, query heads of each and one key and one value, head size
    group: dist.ProcessGroup | None  # that the partial results of `proj` and `down` are summed over

    def heads(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [..., kv heads, group, d], keys and values [..., kv heads, d], turned by the angles of each row.

        `cos` and `sin` are [..., 1, 1, d / 2].
        """
        mixed = self.qkv(self.norm(hidden)).unflatten(-1, self.shape)
        turned, value = mixed[..., :-1, :], mixed[..., -1, :]
        if self.query_norm is not None and self.key_norm is not None:
            turned = torch.cat(
                [self.query_norm(turned[..., :-1, :]), self.key_norm(turned[..., -1:, :])], dim=-2
            )
        turned = rotated(turned, cos, sin)
        return turned[..., :-1, :], turned[..., -1, :], value

    def finish(self, hidden: Tensor, context: Tensor) -> Tensor:
        """The layer's output from its input [..., hidden] and attention's result [..., heads * d]."""
        hidden = hidden + self._summed(self.proj(context))
        gate, up = self.gate_up(self.mlp_norm(hidden)).chunk(2, dim=-1)
        return hidden + self._summed(self.down(F.silu(gate).mul_(up)))

    def _summed(self, partial: Tensor) -> Tensor:
        if self.group is not None:
            dist.all_reduce(partial, group=self.group)
        return partial


@dataclass(frozen=True, slots=True)
class Head:
    """The last stage's norm and this rank's rows of the output projection."""

    norm: Norm
    output: Dense

    def __call__(self, hidden: Tensor) -> Tensor:
        """[..., hidden] to logits [..., padded vocabulary / TP]."""
        return self.output(self.norm(hidden))


def stage_layers(network: PolicyModel, layout: Layout, *, rows: int) -> list[StageLayer]:
    """The layers of this stage, packed for products of `rows` rows."""
    group = mpu.get_tensor_model_parallel_group() if layout.tp > 1 else None
    return [_layer(layer, layout, rows=rows, group=group) for layer in network.decoder.layers]


def stage_head(network: PolicyModel, *, rows: int) -> Head:
    """The head of the last stage."""
    norm = network.decoder.final_layernorm
    return Head(_norm(norm.weight, network), Dense.of(network.output_weight(), None, rows=rows))


def _layer(
    layer: TransformerLayer, layout: Layout, *, rows: int, group: dist.ProcessGroup | None
) -> StageLayer:
    attention, mlp, config = layer.self_attention, layer.mlp, layer.config
    kv_heads = max(1, config.num_query_groups // layout.tp)
    per_kv_head = config.num_attention_heads // config.num_query_groups
    norms = (attention.q_layernorm, attention.k_layernorm) if config.qk_layernorm else (None, None)
    query_norm, key_norm = (None if n is None else _norm(n.weight, layer) for n in norms)
    return StageLayer(
        norm=_norm(_norm_before(attention.linear_qkv, layer.input_layernorm), layer),
        qkv=_dense(attention.linear_qkv, rows),
        query_norm=query_norm,
        key_norm=key_norm,
        proj=_dense(attention.linear_proj, rows),
        mlp_norm=_norm(_norm_before(mlp.linear_fc1, layer.pre_mlp_layernorm), layer),
        gate_up=_dense(mlp.linear_fc1, rows),
        down=_dense(mlp.linear_fc2, rows),
        shape=(kv_heads, per_kv_head + 2, config.kv_channels),
        group=group,
    )


def _norm_before(linear: Any, norm: Any) -> Tensor:
    """The weight of the norm before a linear layer, which TransformerEngine keeps in that layer."""
    fused = getattr(linear, "layer_norm_weight", None)
    return norm.weight if fused is None else fused


def _norm(weight: Tensor, module: Any) -> Norm:
    return Norm(weight.detach(), module.config.layernorm_epsilon)


def _dense(linear: Any, rows: int) -> Dense:
    bias = linear.bias
    has_bias = isinstance(bias, Tensor) and bias.numel() > 0  # TransformerEngine has an empty one for none
    return Dense.of(linear.weight.detach(), bias.detach() if has_bias else None, rows=rows)
