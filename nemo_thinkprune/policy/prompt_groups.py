"""Micro-batches in which each prompt is computed once for all its responses.

GRPO trains on several responses to one prompt. Laid out as prompt, response, response, ... where every response
attends to the prompt and to itself, and is rotated to the positions it would have behind its own copy, a group's
forward and backward passes give what they give with a prompt for each response. The last token of a response
predicts nothing and is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor

from nemo_thinkprune.policy.batch import MicroBatch, TokenSequence, fields_of

FORMAT = "prompt_groups"  # not "thd": Megatron then rotates by the angles of each row as they are given


@dataclass(frozen=True, slots=True)
class PromptGroup:
    """A prompt with its responses: [start, start + prompt) and behind it one response after the other.

    `responses` are their lengths, without their last tokens; 0 for a response of one token or none.
    """

    start: int
    prompt: int
    responses: tuple[int, ...]


@dataclass
class PromptGroups(PackedSeqParams):
    """The groups of a micro-batch, in the place of Megatron's description of a packed one.

    `position_ids` is [t] int64: the position of each token in its own sequence.
    """

    groups: tuple[PromptGroup, ...] = ()
    position_ids: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))


def assign_groups(
    sequences: Sequence[TokenSequence], *, max_tokens: int | None, max_sequences: int | None = None
) -> list[list[int]]:
    """First-fit decreasing as `batch.assign`, by groups: responses to one prompt stay together where they fit.

    A micro-batch has at most `max_tokens` tokens, each prompt counted once; a single sequence that is longer
    gets one of its own. A group that is longer is split.
    """
    budget = max_tokens if max_tokens is not None else 1 << 60
    most = max_sequences if max_sequences is not None else 1 << 60
    units = [
        part
        for group in _by_prompt(sequences, range(len(sequences)))
        for part in _split(sequences, group, budget, most)
    ]
    sizes = [_tokens(sequences, unit) for unit in units]
    bins: list[list[int]] = []
    room: list[int] = []
    for size, unit in sorted(zip(sizes, units, strict=True), key=lambda pair: -pair[0]):
        fitting = (b for b, free in enumerate(room) if size <= free and len(bins[b]) + len(unit) <= most)
        place = next(fitting, None)
        if place is None:
            bins.append([])
            room.append(budget)
            place = len(bins) - 1
        bins[place] += unit
        room[place] -= size
    return bins


def pack_groups(
    sequences: Sequence[TokenSequence], indices: Sequence[int], *, device: torch.device, divisible_by: int = 1
) -> MicroBatch:
    """Lay the chosen sequences out by groups; the tail is padded to a multiple of `divisible_by` tokens.

    The padding is a prompt of its own without responses.
    """
    tokens: list[int] = []
    places: list[int] = []
    predictors: list[int] = []
    groups: list[PromptGroup] = []
    order: list[int] = []
    for members in _by_prompt(sequences, indices):
        prompt, start = sequences[members[0]].prompt_ids, len(tokens)
        tokens += prompt
        places += range(len(prompt))
        for index in members:
            fed = sequences[index].response_ids[:-1]
            before_first = [start + len(prompt) - 1] if sequences[index].response_ids else []
            predictors += [*before_first, *range(len(tokens), len(tokens) + len(fed))]
            tokens += fed
            places += range(len(prompt), len(prompt) + len(fed))
        groups.append(PromptGroup(start, len(prompt), tuple(_fed(sequences[i]) for i in members)))
        order += members
    if padding := -len(tokens) % divisible_by:
        groups.append(PromptGroup(len(tokens), padding, ()))
        tokens += [0] * padding
        places += range(padding)
    chosen = [sequences[i] for i in order]
    return MicroBatch(
        indices=order,
        tokens=torch.tensor(tokens, dtype=torch.int64, device=device),
        attention=_description(groups, places, device),
        positions=torch.tensor(predictors, dtype=torch.int64, device=device),
        targets=torch.tensor([t for s in chosen for t in s.response_ids], dtype=torch.int64, device=device),
        lengths=[len(s.response_ids) for s in chosen],
        fields=fields_of(chosen, device=device),
    )


def _description(groups: Sequence[PromptGroup], places: Sequence[int], device: torch.device) -> PromptGroups:
    longest = max(places) + 1
    return PromptGroups(
        qkv_format=FORMAT,
        max_seqlen_q=longest,
        max_seqlen_kv=longest,
        groups=tuple(groups),
        position_ids=torch.tensor(places, dtype=torch.int64, device=device),
    )


def _by_prompt(sequences: Sequence[TokenSequence], indices: Sequence[int]) -> list[list[int]]:
    """The indices by prompt, prompts and indices in the order in which they come."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index in indices:
        groups.setdefault(tuple(sequences[index].prompt_ids), []).append(index)
    return list(groups.values())


def _split(
    sequences: Sequence[TokenSequence], group: list[int], budget: int, most: int
) -> Iterator[list[int]]:
    """The group as it is if it fits, else in parts that are as large as they can be, long responses first."""
    if len(group) <= most and _tokens(sequences, group) <= budget:
        yield group
        return
    prompt, left = len(sequences[group[0]].prompt_ids), sorted(group, key=lambda i: -_fed(sequences[i]))
    while left:
        part, room = [left[0]], budget - prompt - _fed(sequences[left[0]])
        for index in left[1:]:
            if _fed(sequences[index]) <= room and len(part) < most:
                part.append(index)
                room -= _fed(sequences[index])
        yield part
        left = [index for index in left if index not in set(part)]


def _tokens(sequences: Sequence[TokenSequence], group: Sequence[int]) -> int:
    """Tokens of responses to one prompt, laid out together."""
    return len(sequences[group[0]].prompt_ids) + sum(_fed(sequences[i]) for i in group)


def _fed(sequence: TokenSequence) -> int:
    """Response tokens that go through the model: all but the last."""
    return max(len(sequence.response_ids) - 1, 0)
