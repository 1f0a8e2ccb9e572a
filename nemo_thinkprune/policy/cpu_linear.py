"""Linear layers on a CPU: oneDNN's matrix products, and gradients added where they belong.

Megatron-Core's own path multiplies with the BLAS that torch was built with, writes each weight's gradient to a new
tensor and adds that to the gradient buffer in another pass.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from megatron.core.tensor_parallel.mappings import copy_to_tensor_model_parallel_region
from torch import Tensor

Linear = Callable[..., Tensor]


def is_usable(weight: Tensor) -> bool:
    """Whether oneDNN multiplies with this weight: on a CPU, in a dtype that this CPU has instructions for."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    has_bfloat16 = weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return has_bfloat16 or weight.dtype == torch.float32


def multiply(x: Tensor, weight: Tensor) -> Tensor:
    """x [r, k] times weight [n, k] transposed by what is quickest; no gradient flows."""
    has_work = x.numel() > 0 and weight.numel() > 0  # oneDNN refuses a rank that holds padding alone
    return product(x, weight, None) if has_work and is_usable(weight) else x @ weight.T


class _Linear(torch.autograd.Function):
    """y = x W^T + b; with a main gradient, W's gradient is added to it and not returned."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        grad = grad.contiguous()
        rows = grad.flatten(0, -2)
        grad_x = product(grad, weight.t(), None) if ctx.needs_input_grad[0] else None
        grad_weight = _weight_gradient(rows, x.flatten(0, -2), weight) if ctx.needs_input_grad[1] else None
        return grad_x, grad_weight, rows.sum(0) if ctx.has_bias else None


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [..., k] times weight [n, k] transposed, plus bias [n], by oneDNN; no gradient flows."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _weight_gradient(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor | None:
    """grad [r, n]^T times x [r, k]: added to `weight.main_grad` if there is one of that dtype, else returned."""
    total = getattr(weight, "main_grad", None)
    if total is None or total.dtype != grad.dtype or not hasattr(weight, "grad_added_to_main_grad"):
        return grad.t() @ x
    total.addmm_(grad.t(), x)
    weight.grad_added_to_main_grad = True
    return None


def linear_on_cpu(megatrons: Linear) -> Linear:
    """Megatron-Core's `linear_with_grad_accumulation_and_async_allreduce`, for tensors of a CPU.

    A sequence-parallel layer is left to Megatron: it gathers its input again in backward to save memory.
    """

    @functools.wraps(megatrons)  # it keeps a flag on the function of its name
    def linear(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        gradient_accumulation_fusion: bool,
        allreduce_dgrad: bool,
        sequence_parallel: bool,
        *rest: Any,
        **options: Any,
    ) -> Tensor:
        if sequence_parallel or not is_usable(weight):
            return megatrons(
                input,
                weight,
                bias,
                gradient_accumulation_fusion,
                allreduce_dgrad,
                sequence_parallel,
                *rest,
                **options,
            )
        if not torch.is_grad_enabled():
            return product(input, weight, bias)
        if allreduce_dgrad:
            input = copy_to_tensor_model_parallel_region(input)
        return _Linear.apply(input, weight, bias)

    return linear


def packed(weight: Tensor, *, rows: int) -> Tensor | None:
    """A copy of weight [n, k] in oneDNN's own order for `product` with about `rows` rows; None elsewhere.

    Such a product of a few rows takes half the time.
    """
    if not is_usable(weight):
        return None
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach(), rows)
