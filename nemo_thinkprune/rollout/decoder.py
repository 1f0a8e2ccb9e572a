"""Incremental forward of this pipeline stage on the policy's own modules, with a static key-value cache."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core import parallel_state as mpu
from torch import Tensor

from nemo_thinkprune.policy.model import PolicyModel
from nemo_thinkprune.policy.parallel import Layout
from nemo_thinkprune.rollout.stage_layers import stage_head, stage_layers


@dataclass(frozen=True, slots=True)
class _Groups:
    """Which rows answer which prompt: they attend to its cache together, in one product for all of them.

    `members` [prompts, widest] int64 holds the rows of each prompt, any row where there are fewer; `places`
    [rows] int64 is each row's place in the flattened `members`. Both are None while every prompt has as many.
    """

    prompts: int
    widest: int
    members: Tensor | None
    places: Tensor | None

    @classmethod
    def of(cls, owners: Tensor, prompts: int) -> _Groups:
        """From the prompt [rows] of each row, in ascending order."""
        counts = torch.bincount(owners, minlength=prompts)
        widest = int(counts.max())
        if widest * prompts == len(owners):
            return cls(prompts, widest, None, None)
        first = counts.cumsum(0) - counts
        number = torch.arange(len(owners), device=owners.device) - first[owners]
        members = torch.zeros(prompts, widest, dtype=torch.int64, device=owners.device)
        members[owners, number] = torch.arange(len(owners), device=owners.device)
        return cls(prompts, widest, members, owners * widest + number)

    def together(self, x: Tensor) -> Tensor:
        """[rows, kv heads, group, n] as [prompts, kv heads, widest * group, n]."""
        by_prompt = x.unflatten(0, (self.prompts, self.widest)) if self.members is None else x[self.members]
        return by_prompt.transpose(1, 2).flatten(2, 3)

    def apart(self, x: Tensor, group: int) -> Tensor:
        """The reverse of `together`."""
        rows = x.unflatten(2, (self.widest, group)).transpose(1, 2).flatten(0, 1)
        return rows if self.places is None else rows[self.places]


@dataclass(slots=True)
class _LayerCache:
    """Keys and values of a layer: those of the prompts once each, those of the responses for each row.

    Prompts: [prompts, kv heads, longest, d]; responses: [rows, kv heads, limit, d].
    """

    prompt_keys: Tensor
    prompt_values: Tensor
    keys: Tensor
    values: Tensor

    def keep(self, rows: Tensor, prompts: Tensor | None, sampled: int) -> None:
        """Keep only these rows with the tokens sampled so far, and these prompts (None: all)."""
        if prompts is not None:
            self.prompt_keys, self.prompt_values = self.prompt_keys[prompts], self.prompt_values[prompts]
        self.keys, self.values = _kept(self.keys, rows, sampled), _kept(self.values, rows, sampled)


def _kept(cache: Tensor, rows: Tensor, sampled: int) -> Tensor:
    """Some rows of a cache; what is not written yet is not read, so that it takes no memory."""
    kept = cache.new_empty(len(rows), *cache.shape[1:])
    kept[:, :, :sampled] = cache[rows, :, :sampled]
    return kept


class StageDecoder:
    """Runs one pipeline stage token by token for a batch of rows.

    The weights are read when it is made: make another one after they have changed. A prompt is run once and its
    keys and values are kept once, for all rows that answer it. Those of the responses are preallocated; every row
    that is left has the same number of response tokens, so they need no mask. `keep` drops finished rows, and
    prompts without rows, so that they cost nothing.
    """

    def __init__(self, network: PolicyModel, *, layout: Layout, vocab_size: int, rows: int) -> None:
        self.layout, self.vocab_size, self.config = layout, vocab_size, network.config
        self.layers = stage_layers(network, layout, rows=rows)
        self.head = stage_head(network, rows=rows) if layout.is_last_stage else None
        self.embedding = network.embedding.word_embeddings.weight.detach() if layout.is_first_stage else None
        self.frequencies = network.rotary_pos_emb.inv_freq
        parameter = next(network.parameters())
        self.dtype, self.device = parameter.dtype, parameter.device
        self.scale = 1.0 / math.sqrt(self.config.kv_channels)
        self.caches: list[_LayerCache] = []

    def prefill(self, tokens: Tensor, lengths: Tensor, owners: Tensor, *, limit: int) -> Tensor | None:
        """Begin a batch: run each prompt once and make room for responses of `limit` tokens.

        Args:
            tokens: [prompts, longest] int64, padded on the right.
            lengths: [prompts] int64.
            owners: [rows] int64, the prompt of each row, ascending.

        Returns:
            Logits [rows, vocabulary] fp32 of each row's first response token on the last stage, else None.
        """
        prompts, longest = tokens.shape
        self.lengths, self.owners, self.sampled = lengths, owners, 0
        self.groups = _Groups.of(owners, prompts)
        positions = torch.arange(longest, device=self.device)
        outside = positions >= lengths[:, None]
        self.padding = (
            torch.where(outside, -torch.inf, 0.0).to(self.dtype)[:, None, None] if outside.any() else None
        )
        cos, sin = self._angles(positions)
        hidden = self._stage_input(tokens)
        self.caches = []
        for layer in self.layers:
            query, key, value = layer.heads(hidden, cos, sin)  # [prompts, longest, kv heads, (group,) d]
            key, value = key.transpose(1, 2), value.transpose(1, 2)
            every_head = [x.repeat_interleave(query.size(3), dim=1) for x in (key, value)]
            context = F.scaled_dot_product_attention(
                query.flatten(2, 3).transpose(1, 2),
                every_head[0],
                every_head[1],
                is_causal=True,
                scale=self.scale,
            )
            hidden = layer.finish(hidden, context.transpose(1, 2).flatten(2))
            room = (len(owners), key.size(1), limit, key.size(3))
            fresh = (torch.empty(room, dtype=self.dtype, device=self.device) for _ in range(2))
            self.caches.append(_LayerCache(key.contiguous(), value.contiguous(), *fresh))
        last = hidden[torch.arange(prompts, device=self.device), lengths - 1]
        self._stage_output(hidden)
        return self._logits(last)[owners] if self.layout.is_last_stage else None

    def step(self, tokens: Tensor) -> Tensor | None:
        """Append one token [rows] to each response; logits [rows, vocabulary] fp32 on the last stage."""
        cos, sin = self._angles(self.lengths[self.owners] + self.sampled)
        self.sampled += 1
        hidden = self._stage_input(tokens)
        for layer, cache in zip(self.layers, self.caches, strict=True):
            query, key, value = layer.heads(hidden, cos, sin)
            cache.keys[:, :, self.sampled - 1] = key
            cache.values[:, :, self.sampled - 1] = value
            hidden = layer.finish(hidden, self._attend(query, cache))
        self._stage_output(hidden)
        return self._logits(hidden) if self.layout.is_last_stage else None

    def keep(self, rows: Tensor) -> None:
        """Keep only these rows, ascending."""
        used, owners = torch.unique(self.owners[rows], return_inverse=True)
        gone = len(used) < len(self.lengths)
        for cache in self.caches:
            cache.keep(rows, used if gone else None, self.sampled)
        self.lengths, self.owners = self.lengths[used], owners
        self.padding = None if self.padding is None else self.padding[used]
        self.groups = _Groups.of(owners, len(used))

    def _attend(self, query: Tensor, cache: _LayerCache) -> Tensor:
        """Attention of the queries [rows, kv heads, group, d] of one token to prompt and response: [rows, heads * d].

        The query heads of one key, and the rows of one prompt, are the rows of one product.
        """
        query = query * self.scale
        to_prompt = self.groups.together(query) @ cache.prompt_keys.mT
        if self.padding is not None:
            to_prompt += self.padding
        to_prompt = self.groups.apart(to_prompt, query.size(2))
        to_response = query @ cache.keys[:, :, : self.sampled].mT
        weights = torch.cat([to_prompt, to_response], dim=-1).float().softmax(dim=-1).to(self.dtype)
        on_prompt, on_response = weights.split([to_prompt.size(-1), self.sampled], dim=-1)
        of_prompt = self.groups.apart(self.groups.together(on_prompt) @ cache.prompt_values, query.size(2))
        of_response = on_response @ cache.values[:, :, : self.sampled]
        return of_response.add_(of_prompt).flatten(1)

    def _angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine of the rotary angles at positions [n]: [n, 1, 1, d / 2]."""
        angles = torch.outer(positions.float(), self.frequencies)[:, None, None]
        return angles.cos().to(self.dtype), angles.sin().to(self.dtype)

    def _logits(self, hidden: Tensor) -> Tensor:
        assert self.head is not None
        local = self.head(hidden).float()
        if self.layout.tp > 1:
            parts = [torch.empty_like(local) for _ in range(self.layout.tp)]
            dist.all_gather(parts, local, group=mpu.get_tensor_model_parallel_group())
            local = torch.cat(parts, dim=-1)
        return local[:, : self.vocab_size]

    def _stage_input(self, tokens: Tensor) -> Tensor:
        """[..., hidden] for tokens [...]: embeddings on the first stage, the previous stage's states on the others."""
        if self.embedding is not None:
            return self._embedded(self.embedding, tokens)
        hidden = torch.empty(*tokens.shape, self.config.hidden_size, dtype=self.dtype, device=self.device)
        dist.recv(
            hidden, mpu.get_pipeline_model_parallel_prev_rank(), mpu.get_pipeline_model_parallel_group()
        )
        return hidden

    def _embedded(self, rows: Tensor, tokens: Tensor) -> Tensor:
        """Embeddings of the tokens; `rows` are this tensor parallel rank's of the vocabulary."""
        if self.layout.tp == 1:
            return rows[tokens]
        local = tokens - self.layout.tp_rank * len(rows)
        inside = (local >= 0) & (local < len(rows))
        hidden = rows[local.clamp(0, len(rows) - 1)] * inside[..., None]
        dist.all_reduce(hidden, group=mpu.get_tensor_model_parallel_group())
        return hidden

    def _stage_output(self, hidden: Tensor) -> None:
        if not self.layout.is_last_stage:
            dist.send(
                hidden.contiguous(),
                mpu.get_pipeline_model_parallel_next_rank(),
                mpu.get_pipeline_model_parallel_group(),
            )
