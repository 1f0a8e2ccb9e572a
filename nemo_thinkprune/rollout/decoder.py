"""Incremental forward of this pipeline stage on the policy's own modules, with a static key-value cache."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core import parallel_state as mpu
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor

from nemo_thinkprune.policy.model import PolicyModel
from nemo_thinkprune.policy.parallel import Layout


class StageDecoder:
    """Runs one pipeline stage token by token for a batch of rows.

    The cache of each layer is [rows, kv heads / TP, max tokens, head dim], allocated once per batch; `keep`
    drops finished rows so that they cost nothing.
    """

    def __init__(self, network: PolicyModel, *, layout: Layout, vocab_size: int, max_tokens: int) -> None:
        self.network, self.layout, self.vocab_size, self.max_tokens = network, layout, vocab_size, max_tokens
        config = network.config
        self.head_dim = config.kv_channels
        self.kv_heads = max(1, config.num_query_groups // layout.tp)
        self.group = config.num_attention_heads // config.num_query_groups
        self.scale = 1.0 / math.sqrt(self.head_dim)
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        parameter = next(network.parameters())
        self.dtype, self.device = parameter.dtype, parameter.device
        inverse_frequency = network.rotary_pos_emb.inv_freq.to(self.device)
        angles = torch.outer(torch.arange(max_tokens, device=self.device).float(), inverse_frequency)
        angles = torch.cat([angles, angles], dim=-1)
        self.cos, self.sin = angles.cos().to(self.dtype), angles.sin().to(self.dtype)

    def prefill(self, tokens: Tensor, lengths: Tensor, copies: Tensor) -> Tensor | None:
        """Run each prompt once and copy its cache to the rows of its samples.

        Args:
            tokens: [prompts, longest] int64, padded on the right.
            lengths: [prompts] int64.
            copies: [rows] int64, the prompt of each row.

        Returns:
            Logits [rows, vocabulary] fp32 of each row's first response token on the last stage, else None.
        """
        prompts, longest = tokens.shape
        self.keys, self.values = [], []
        rows = len(copies)
        positions = torch.arange(longest, device=self.device)
        shape = (longest, prompts, self.network.config.hidden_size)
        hidden = self._stage_input(tokens.T.contiguous(), shape)
        for layer in self.network.decoder.layers:
            query, key, value = self._qkv(layer, hidden, positions[:, None])
            context = F.scaled_dot_product_attention(
                query.permute(1, 2, 0, 3),
                key.repeat_interleave(self.group, dim=2).permute(1, 2, 0, 3),
                value.repeat_interleave(self.group, dim=2).permute(1, 2, 0, 3),
                is_causal=True,
                scale=self.scale,
            )
            hidden = self._finish_layer(layer, hidden, context.permute(2, 0, 1, 3).flatten(2))
            for store, fresh in ((self.keys, key), (self.values, value)):
                cache = fresh.new_zeros(rows, self.kv_heads, self.max_tokens, self.head_dim)
                cache[:, :, :longest] = fresh.permute(1, 2, 0, 3)[copies]
                store.append(cache)
        last = (
            hidden[lengths - 1, torch.arange(prompts, device=self.device)]
            if self.layout.is_last_stage
            else None
        )
        self._stage_output(hidden)
        return self._logits(last[None])[copies] if last is not None else None

    def step(self, tokens: Tensor, positions: Tensor) -> Tensor | None:
        """Append one token [rows] at `positions` [rows]; logits [rows, vocabulary] fp32 on the last stage."""
        rows = torch.arange(len(positions), device=self.device)
        horizon = int(positions.max()) + 1
        mask = (torch.arange(horizon, device=self.device) <= positions[:, None])[:, None, None, :]
        hidden = self._stage_input(tokens[None], (1, len(positions), self.network.config.hidden_size))
        for index, layer in enumerate(self.network.decoder.layers):
            query, key, value = self._qkv(layer, hidden, positions[None])
            self.keys[index][rows, :, positions] = key[0]
            self.values[index][rows, :, positions] = value[0]
            # the query heads of one group attend as if they were successive queries: no copy of the cache
            context = F.scaled_dot_product_attention(
                query[0].unflatten(1, (self.kv_heads, self.group)),
                self.keys[index][:, :, :horizon],
                self.values[index][:, :, :horizon],
                attn_mask=mask,
                scale=self.scale,
            )
            hidden = self._finish_layer(layer, hidden, context.flatten(1)[None])
        self._stage_output(hidden)
        return self._logits(hidden) if self.layout.is_last_stage else None

    def keep(self, rows: Tensor) -> None:
        """Keep only these rows of the cache."""
        self.keys = [cache[rows] for cache in self.keys]
        self.values = [cache[rows] for cache in self.values]

    def _qkv(
        self, layer: TransformerLayer, hidden: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Query [s, b, heads, d], key and value [s, b, kv heads, d] of this rank, rotated to their positions."""
        attention = layer.self_attention
        query, key, value = attention.get_query_key_value_tensors(layer.input_layernorm(hidden))
        cos, sin = self.cos[positions][:, :, None], self.sin[positions][:, :, None]
        return _rotate(query, cos, sin), _rotate(key, cos, sin), value

    def _finish_layer(self, layer: TransformerLayer, hidden: Tensor, context: Tensor) -> Tensor:
        hidden = hidden + layer.self_attention.linear_proj(context)[0]
        return hidden + layer.mlp(layer.pre_mlp_layernorm(hidden))[0]

    def _logits(self, hidden: Tensor) -> Tensor:
        states = self.network.decoder.final_layernorm(hidden)[0]
        local = (states @ self.network.output_weight().T).float()
        if self.layout.tp > 1:
            parts = [torch.empty_like(local) for _ in range(self.layout.tp)]
            dist.all_gather(parts, local, group=mpu.get_tensor_model_parallel_group())
            local = torch.cat(parts, dim=-1)
        return local[:, : self.vocab_size]

    def _stage_input(self, tokens: Tensor, shape: tuple[int, int, int]) -> Tensor:
        """Embeddings [s, b, hidden] on the first stage, the previous stage's hidden states on the others."""
        if self.layout.is_first_stage:
            return self.network.embedding.word_embeddings(tokens)
        hidden = torch.empty(shape, dtype=self.dtype, device=self.device)
        dist.recv(
            hidden, mpu.get_pipeline_model_parallel_prev_rank(), mpu.get_pipeline_model_parallel_group()
        )
        return hidden

    def _stage_output(self, hidden: Tensor) -> None:
        if not self.layout.is_last_stage:
            dist.send(
                hidden.contiguous(),
                mpu.get_pipeline_model_parallel_next_rank(),
                mpu.get_pipeline_model_parallel_group(),
            )


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of [s, b, heads, d] by the angles of its positions [s, b or 1, 1, d]."""
    half = x.size(-1) // 2
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], dim=-1) * sin


@contextmanager
def without_sequence_parallel(network: PolicyModel) -> Iterator[None]:
    """Decode one token at a time: there is no sequence to scatter over the tensor parallel ranks."""
    names = ("sequence_parallel", "reduce_scatter_embeddings", "scatter_to_sequence_parallel")
    found = [(m, n) for m in network.modules() for n in names if isinstance(getattr(m, n, None), bool)]
    found = [(m, n) for m, n in found if getattr(m, n)]
    for module, name in found:
        setattr(module, name, False)
    try:
        yield
    finally:
        for module, name in found:
            setattr(module, name, True)
