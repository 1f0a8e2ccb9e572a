"""Incremental forward of this pipeline stage on the policy's own modules, with a static key-value cache."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core import parallel_state as mpu
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor

from nemo_thinkprune.policy.cpu_linear import product
from nemo_thinkprune.policy.local_layers import rotated
from nemo_thinkprune.policy.model import PolicyModel
from nemo_thinkprune.policy.parallel import Layout


@dataclass(frozen=True, slots=True)
class _Groups:
    """Which rows answer which prompt: prompts attend to their cache together, one product for all their rows.

    `members` [prompts, widest] int64 holds the rows of each prompt, any row where there are fewer; `places`
    [rows] int64 is each row's place in the flattened `members`.
    """

    members: Tensor
    places: Tensor

    @classmethod
    def of(cls, owners: Tensor, prompts: int) -> _Groups:
        """From the prompt [rows] of each row, in ascending order."""
        counts = torch.bincount(owners, minlength=prompts)
        first = counts.cumsum(0) - counts
        number = torch.arange(len(owners), device=owners.device) - first[owners]
        widest = int(counts.max())
        members = torch.zeros(prompts, widest, dtype=torch.int64, device=owners.device)
        members[owners, number] = torch.arange(len(owners), device=owners.device)
        return cls(members, owners * widest + number)


@dataclass(slots=True)
class _LayerCache:
    """Keys and values of a layer: those of the prompts once each, those of the responses for each row.

    Prompts: [prompts, kv heads, longest, d]; responses: [rows, kv heads, limit, d].
    """

    prompt_keys: Tensor
    prompt_values: Tensor
    keys: Tensor
    values: Tensor

    def keep(self, rows: Tensor, prompts: Tensor | None) -> _LayerCache:
        """Only these rows, and these prompts (None: all)."""
        shared = (self.prompt_keys, self.prompt_values)
        if prompts is not None:
            shared = (shared[0][prompts], shared[1][prompts])
        return _LayerCache(*shared, self.keys[rows], self.values[rows])


class StageDecoder:
    """Runs one pipeline stage token by token for a batch of rows.

    A prompt is run once and its keys and values are kept once, for all rows that answer it. Those of the
    responses are preallocated; every row that is left has the same number of response tokens, so they need no
    mask. `keep` drops finished rows, and prompts without rows, so that they cost nothing.
    """

    def __init__(self, network: PolicyModel, *, layout: Layout, vocab_size: int, limit: int) -> None:
        self.network, self.layout, self.vocab_size, self.limit = network, layout, vocab_size, limit
        config = network.config
        self.head_dim = config.kv_channels
        self.kv_heads = max(1, config.num_query_groups // layout.tp)
        self.group = config.num_attention_heads // config.num_query_groups
        self.scale = 1.0 / math.sqrt(self.head_dim)
        parameter = next(network.parameters())
        self.dtype, self.device = parameter.dtype, parameter.device
        self.caches: list[_LayerCache] = []

    def prefill(self, tokens: Tensor, lengths: Tensor, owners: Tensor) -> Tensor | None:
        """Run each prompt once and make room for the responses.

        Args:
            tokens: [prompts, longest] int64, padded on the right.
            lengths: [prompts] int64.
            owners: [rows] int64, the prompt of each row, ascending.

        Returns:
            Logits [rows, vocabulary] fp32 of each row's first response token on the last stage, else None.
        """
        prompts, longest = tokens.shape
        self._set_positions(longest + self.limit)
        self.lengths, self.owners, self.sampled = lengths, owners, 0
        self._regroup()
        positions = torch.arange(longest, device=self.device)
        self.padding = torch.where(positions < lengths[:, None], 0.0, -torch.inf).to(self.dtype)
        hidden = self._stage_input(tokens.T.contiguous(), (longest, prompts, self.network.config.hidden_size))
        room = (len(owners), self.kv_heads, self.limit, self.head_dim)
        self.caches = []
        for layer in self.network.decoder.layers:
            query, key, value = (x.permute(1, 2, 0, 3) for x in self._qkv(layer, hidden, positions[:, None]))
            every_head = [x.repeat_interleave(self.group, dim=1) for x in (key, value)]
            context = F.scaled_dot_product_attention(
                query, every_head[0], every_head[1], is_causal=True, scale=self.scale
            )
            hidden = self._finish_layer(layer, hidden, context.permute(2, 0, 1, 3).flatten(2))
            fresh = (torch.empty(room, dtype=self.dtype, device=self.device) for _ in range(2))
            self.caches.append(_LayerCache(key.contiguous(), value.contiguous(), *fresh))
        last = hidden[lengths - 1, torch.arange(prompts, device=self.device)][None]
        self._stage_output(hidden)
        return self._logits(last)[owners] if self.layout.is_last_stage else None

    def step(self, tokens: Tensor) -> Tensor | None:
        """Append one token [rows] to each response; logits [rows, vocabulary] fp32 on the last stage."""
        positions = (self.lengths[self.owners] + self.sampled)[None]
        self.sampled += 1
        hidden = self._stage_input(tokens[None], (1, len(tokens), self.network.config.hidden_size))
        for layer, cache in zip(self.network.decoder.layers, self.caches, strict=True):
            query, key, value = self._qkv(layer, hidden, positions)
            cache.keys[:, :, self.sampled - 1] = key[0]
            cache.values[:, :, self.sampled - 1] = value[0]
            hidden = self._finish_layer(layer, hidden, self._attend(query[0], cache)[None])
        self._stage_output(hidden)
        return self._logits(hidden) if self.layout.is_last_stage else None

    def keep(self, rows: Tensor) -> None:
        """Keep only these rows, ascending."""
        used, owners = torch.unique(self.owners[rows], return_inverse=True)
        gone = len(used) < len(self.lengths)
        self.caches = [cache.keep(rows, used if gone else None) for cache in self.caches]
        self.lengths, self.padding, self.owners = self.lengths[used], self.padding[used], owners
        self._regroup()

    def _attend(self, query: Tensor, cache: _LayerCache) -> Tensor:
        """Attention of one query [rows, heads, d] of each row to its prompt and its response: [rows, heads * d].

        The query heads of one group, and the rows of one prompt, are the rows of one product.
        """
        rows, widest = len(query), self.groups.members.size(1)
        query = (query * self.scale).unflatten(1, (self.kv_heads, self.group))
        together = query[self.groups.members].transpose(1, 2).flatten(2, 3)
        to_prompt = together @ cache.prompt_keys.mT + self.padding[:, None, None]
        to_prompt = self._by_row(to_prompt.unflatten(2, (widest, self.group)))
        to_response = query @ cache.keys[:, :, : self.sampled].mT
        weights = torch.cat([to_prompt, to_response], dim=-1).float().softmax(dim=-1).to(self.dtype)
        on_prompt, on_response = weights.split([to_prompt.size(-1), self.sampled], dim=-1)
        together = on_prompt[self.groups.members].transpose(1, 2).flatten(2, 3)
        of_prompt = self._by_row((together @ cache.prompt_values).unflatten(2, (widest, self.group)))
        of_response = on_response @ cache.values[:, :, : self.sampled]
        return (of_prompt + of_response).view(rows, -1)

    def _by_row(self, of_members: Tensor) -> Tensor:
        """[prompts, kv heads, widest, group, x] as [rows, kv heads, group, x]."""
        return of_members.transpose(1, 2).flatten(0, 1)[self.groups.places]

    def _regroup(self) -> None:
        self.groups = _Groups.of(self.owners, len(self.lengths))

    def _set_positions(self, count: int) -> None:
        frequency = self.network.rotary_pos_emb.inv_freq.to(self.device)
        angles = torch.outer(torch.arange(count, device=self.device).float(), frequency)
        self.cos, self.sin = angles.cos().to(self.dtype), angles.sin().to(self.dtype)

    def _qkv(
        self, layer: TransformerLayer, hidden: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Query [s, b, heads, d], key and value [s, b, kv heads, d] of this rank, rotated to their positions."""
        attention = layer.self_attention
        query, key, value = attention.get_query_key_value_tensors(layer.input_layernorm(hidden))
        cos, sin = self.cos[positions][:, :, None], self.sin[positions][:, :, None]
        return rotated(query, cos, sin), rotated(key, cos, sin), value

    def _finish_layer(self, layer: TransformerLayer, hidden: Tensor, context: Tensor) -> Tensor:
        hidden = hidden + layer.self_attention.linear_proj(context)[0]
        return hidden + layer.mlp(layer.pre_mlp_layernorm(hidden))[0]

    def _logits(self, hidden: Tensor) -> Tensor:
        states = self.network.decoder.final_layernorm(hidden)[0]
        weight = self.network.output_weight()
        packed = getattr(weight, "packed", None)
        local = (states @ weight.T if packed is None else product(states, packed, None)).float()
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
