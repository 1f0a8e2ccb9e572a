"""Padding-free micro-batches: sequences laid end to end, response tokens laid end to end beside them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """A prompt with its response; `fields` holds one float per response token, by name."""

    prompt_ids: list[int]
    response_ids: list[int]
    fields: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """A packed micro-batch of `t` tokens holding `r` response tokens of `s` sequences.

    Attributes:
        indices: Positions of its sequences in the list that was packed.
        tokens: [t] int64 token ids of all sequences end to end.
        attention: Which tokens attend to which, as Megatron passes it to each layer's attention.
        positions: [r] int64 index into `tokens` of the token that predicts each response token.
        targets: [r] int64 response token ids.
        lengths: Response tokens of each sequence; they sum to r.
        fields: [r] fp32 per-token values by name (advantages, old log-probs, ...).
    """

    indices: list[int]
    tokens: Tensor
    attention: PackedSeqParams
    positions: Tensor
    targets: Tensor
    lengths: list[int]
    fields: dict[str, Tensor]

    def split(self, values: Tensor) -> list[Tensor]:
        """Cut per-token values [r] into one tensor per sequence."""
        return list(values.split(self.lengths))


def assign(
    lengths: Sequence[int], *, max_tokens: int | None, max_sequences: int | None = None
) -> list[list[int]]:
    """First-fit decreasing: indices of the sequences of each micro-batch, at most `max_tokens` together.

    A single sequence longer than `max_tokens` gets a micro-batch of its own.
    """
    bins: list[list[int]] = []
    room: list[int] = []
    budget = max_tokens if max_tokens is not None else 1 << 60
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        for b, free in enumerate(room):
            if lengths[index] <= free and (max_sequences is None or len(bins[b]) < max_sequences):
                bins[b].append(index)
                room[b] -= lengths[index]
                break
        else:
            bins.append([index])
            room.append(budget - lengths[index])
    return bins


def pack(
    sequences: Sequence[TokenSequence], indices: list[int], *, device: torch.device, divisible_by: int = 1
) -> MicroBatch:
    """Lay the chosen sequences end to end; the tail is padded to a multiple of `divisible_by` tokens."""
    tokens: list[int] = []
    bounds = [0]
    positions: list[int] = []
    chosen = [sequences[i] for i in indices]
    for sequence in chosen:
        first = len(tokens) + len(sequence.prompt_ids) - 1
        positions.extend(range(first, first + len(sequence.response_ids)))
        tokens.extend(sequence.prompt_ids)
        tokens.extend(sequence.response_ids)
        bounds.append(len(tokens))
    padding = -len(tokens) % divisible_by
    if padding:
        tokens.extend([0] * padding)
        bounds.append(len(tokens))
    return MicroBatch(
        indices=list(indices),
        tokens=torch.tensor(tokens, dtype=torch.int64, device=device),
        attention=packed_params(
            torch.tensor(bounds, dtype=torch.int32, device=device),
            max(b - a for a, b in itertools.pairwise(bounds)),
        ),
        positions=torch.tensor(positions, dtype=torch.int64, device=device),
        targets=torch.tensor([t for s in chosen for t in s.response_ids], dtype=torch.int64, device=device),
        lengths=[len(s.response_ids) for s in chosen],
        fields=fields_of(chosen, device=device),
    )


def fields_of(chosen: Sequence[TokenSequence], *, device: torch.device) -> dict[str, Tensor]:
    """The fields of the sequences end to end: [r] fp32 by name."""
    return {
        name: torch.tensor([v for s in chosen for v in s.fields[name]], dtype=torch.float32, device=device)
        for name in chosen[0].fields
    }


def packed_params(cu_seqlens: Tensor, max_seqlen: int) -> PackedSeqParams:
    """Megatron's description of a packed (THD) micro-batch; `cu_seqlens` is [sequences + 1] int32."""
    return PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=cu_seqlens,
        cu_seqlens_kv=cu_seqlens,
        max_seqlen_q=max_seqlen,
        max_seqlen_kv=max_seqlen,
    )
