"""Causal attention over prompt groups: a response sees its prompt and what stands before it in itself.

Attention to the prompt and attention within the response are two calls of torch's flash attention; their results
are joined by their log-sum-exps, which is exact. Backward hands each call the joined result, as the backward pass
of flash attention needs only it and the joined log-sum-exp (Dao et al. 2022, algorithm 4).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from nemo_thinkprune.policy.prompt_groups import PromptGroup

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def group_attention(
    query: Tensor, key: Tensor, value: Tensor, groups: tuple[PromptGroup, ...], *, scale: float
) -> Tensor:
    """Attend within prompt groups that are laid out one after the other.

    Args:
        query: [t, heads, d].
        key, value: [t, kv heads, d], on the CPU.

    Returns:
        [t, heads * d].
    """
    return _GroupAttention.apply(query, key, value, groups, scale)


class _GroupAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, groups: tuple[PromptGroup, ...], scale: float
    ) -> Tensor:
        repeat = query.size(1) // key.size(1)
        keys, values = (x.repeat_interleave(repeat, dim=1) for x in (key, value))
        out = torch.empty_like(query, memory_format=torch.contiguous_format)
        lse = torch.empty(query.shape[:2], dtype=_lse_dtype(query), device=query.device)
        for rows, count in _causal_parts(groups):
            part, part_lse = _forward(
                *(_batch(x[rows], count) for x in (query, keys, values)), is_causal=True, scale=scale
            )
            out[rows], lse[rows] = _rows(part), _rows(part_lse[..., None]).squeeze(-1)
        for rows, prompt in _prompt_parts(groups):
            part, part_lse = _forward(
                _batch(query[rows], 1), _batch(keys[prompt], 1), _batch(values[prompt], 1), scale=scale
            )
            _join(out[rows], lse[rows], _rows(part), _rows(part_lse[..., None]).squeeze(-1))
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.groups, ctx.scale = groups, scale
        return out.flatten(1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, lse = ctx.saved_tensors
        repeat = query.size(1) // key.size(1)
        keys, values = (x.repeat_interleave(repeat, dim=1) for x in (key, value))
        grad = grad.view_as(query)
        grads = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (query, keys, values)]
        saved = (query, keys, values, out)
        for rows, count in _causal_parts(ctx.groups):
            parts = [_batch(x[rows], count) for x in (grad, *saved)]
            logs = _batch(lse[rows, :, None], count).squeeze(-1)
            for total, part in zip(grads, _backward(*parts, logs, 0.0, True, scale=ctx.scale), strict=True):
                total[rows] = _rows(part)
        for rows, prompt in _prompt_parts(ctx.groups):
            places = (rows, rows, prompt, prompt, rows)
            parts = [_batch(x[place], 1) for x, place in zip((grad, *saved), places, strict=True)]
            logs = _batch(lse[rows, :, None], 1).squeeze(-1)
            found = _backward(*parts, logs, 0.0, False, scale=ctx.scale)
            for total, part, place in zip(grads, found, (rows, prompt, prompt), strict=True):
                total[place] += _rows(part)
        grad_key, grad_value = (x.unflatten(1, (-1, repeat)).sum(2) for x in grads[1:])
        return grads[0], grad_key, grad_value, None, None


def _causal_parts(groups: tuple[PromptGroup, ...]) -> Iterator[tuple[slice, int]]:
    """Rows of prompts and of responses, runs of responses of one length together, and how many there are."""
    for group in groups:
        yield slice(group.start, group.start + group.prompt), 1
        start = group.start + group.prompt
        for length, run in itertools.groupby(group.responses):
            count = len(list(run))
            if length:
                yield slice(start, start + count * length), count
            start += count * length


def _prompt_parts(groups: tuple[PromptGroup, ...]) -> Iterator[tuple[slice, slice]]:
    """Rows of all responses to a prompt, and rows of the prompt."""
    for group in groups:
        prompt = slice(group.start, group.start + group.prompt)
        if length := sum(group.responses):
            yield slice(prompt.stop, prompt.stop + length), prompt


def _batch(x: Tensor, count: int) -> Tensor:
    """[count * s, heads, d] as [count, heads, s, d]."""
    return x.unflatten(0, (count, -1)).transpose(1, 2)


def _rows(x: Tensor) -> Tensor:
    """[count, heads, s, d] as [count * s, heads, d]."""
    return x.transpose(1, 2).flatten(0, 1)


def _join(out: Tensor, lse: Tensor, other: Tensor, other_lse: Tensor) -> None:
    """Attention over two sets of keys from attention over each: `out` and `lse` become those over both."""
    share = torch.sigmoid(other_lse - lse)[..., None].to(out.dtype)
    out.lerp_(other, share)
    torch.logaddexp(lse, other_lse, out=lse)


def _lse_dtype(query: Tensor) -> torch.dtype:
    return torch.float64 if query.dtype == torch.float64 else torch.float32
