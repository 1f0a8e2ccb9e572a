"""Layers of the local layer spec, in fewer passes over memory than autograd makes of the operations they consist of."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from megatron.core.transformer import TransformerConfig
from torch import Tensor


class SwiGlu(torch.nn.Module):
    """silu(gate) * up of [..., gate | up] (Shazeer 2020, arXiv 2002.05202, eq. 6 without the products)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()

    def forward(self, gate_up: Tensor) -> Tensor:
        """[..., 2 f] to [..., f]."""
        return _SwiGlu.apply(gate_up)

    def sharded_state_dict(self, *_: Any, **__: Any) -> dict:
        """No parameters, nothing to shard."""
        return {}


class _SwiGlu(torch.autograd.Function):
    """Saves its input alone; backward writes both halves of the gradient in place."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        return torch.nn.functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=-1)
        result = torch.empty_like(gate_up)
        of_gate, of_up = result.chunk(2, dim=-1)
        torch.ops.aten.silu.out(gate, out=of_up)
        of_up.mul_(grad)
        torch.mul(grad, up, out=of_gate)
        torch.ops.aten.silu_backward(of_gate, gate, grad_input=of_gate)
        return result


class RmsNorm(torch.nn.Module):
    """weight * x / sqrt(mean(x^2) + eps) over the last dimension (Zhang and Sennrich 2019, arXiv 1910.07467)."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6, **_: Any) -> None:
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.ones(hidden_size))
        # Megatron sums the gradients of such weights over the tensor parallel ranks.
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        """[..., hidden] to the same shape and dtype."""
        if not torch.is_grad_enabled():
            return torch.nn.functional.rms_norm(x, self.weight.shape, self.weight, self.eps)
        return _RmsNorm.apply(x, self.weight, self.eps)


class _RmsNorm(torch.autograd.Function):
    """Saves its input and the factor of each row.

    With n = x r and g = dy w, dx = r (g - n mean(g n)) and dw is the sum of dy n over the rows.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        result, factor = torch.ops.aten._fused_rms_norm(x, weight.shape, weight, eps)
        ctx.save_for_backward(x, weight, factor)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, factor = ctx.saved_tensors
        normal = x.to(factor.dtype) * factor
        grad_weight = (grad.flatten(0, -2) * normal.flatten(0, -2)).sum(0)
        of_normal = grad * weight.to(factor.dtype)
        mean = (of_normal * normal).mean(-1, keepdim=True)
        grad_x = of_normal.sub_(normal.mul_(mean)).mul_(factor)
        return grad_x.to(x.dtype), grad_weight.to(weight.dtype), None


def rotary_in_place_of(megatrons: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Megatron-Core's `apply_rotary_pos_emb`, with fewer passes where rows come with their own angles.

    Su et al. 2021 (arXiv 2104.09864) in the layout of Hugging Face's models: the halves (a, b) of a head become
    (a cos - b sin, b cos + a sin). All else, as packed (THD) sequences, is left to Megatron.
    """

    @functools.wraps(megatrons)
    def rotate(
        t: Tensor, freqs: Tensor, config: Any, cu_seqlens: Tensor | None = None, **options: Any
    ) -> Tensor:
        plain = cu_seqlens is None and options.get("mscale", 1.0) == 1.0 and not config.rotary_interleaved
        if not plain or freqs.size(-1) != t.size(-1):
            return megatrons(t, freqs, config, cu_seqlens=cu_seqlens, **options)
        half = freqs[..., : freqs.size(-1) // 2]  # the second half repeats the first
        return _Rotary.apply(t, half.cos().to(t.dtype), half.sin().to(t.dtype))

    return rotate


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, t: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return rotated(t, cos, sin)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return rotated(grad, cos, -sin), None, None


def rotated(t: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the halves of the last dimension [..., d] by angles of which `cos` and `sin` [..., d / 2] are given."""
    first, second = t.chunk(2, dim=-1)
    result = torch.empty_like(t, memory_format=torch.contiguous_format)
    out_first, out_second = result.chunk(2, dim=-1)
    torch.mul(first, cos, out=out_first).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=out_second).addcmul_(first, sin)
    return result
