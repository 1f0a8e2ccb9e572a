"""Between NeMo-RL's padded batches and the policy's packed sequences.

NeMo-RL gives [B, S] token ids padded right, with a mask of the response tokens; the policy takes prompt and
response of each sequence and returns one value per response token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from nemo_thinkprune.data.recipe_prompts import training_prompts, validation_prompts
from nemo_thinkprune.data.tokenizer import load_tokenizer
from nemo_thinkprune.policy.batch import MicroBatch, TokenSequence
from nemo_thinkprune.policy.policy import LossFn
from nemo_thinkprune.rollout.types import Request, Rollout
from nemo_thinkprune.training.job import Job


@dataclass(frozen=True, slots=True)
class Rows:
    """A padded batch and where its responses stand.

    Attributes:
        data: NeMo-RL's batch; every tensor in it has B rows.
        starts: Position of the first response token of each sequence.
        counts: Response tokens of each sequence.
        sample_mask: [B] 1 where the sequence counts.
        loss_mask: [B, S - 1] 1 where a token counts; first position left out, as nothing predicts it.
    """

    data: Any
    starts: list[int]
    counts: list[int]
    sample_mask: Tensor
    loss_mask: Tensor

    @classmethod
    def of(cls, data: Any) -> Rows:
        """Find the responses.

        Raises:
            ValueError: a response is in several pieces, as in a conversation of several turns.
        """
        mask = data["token_mask"].bool()
        sample_mask = data["sample_mask"]
        counts = mask.sum(1)
        starts = mask.int().argmax(1)
        last = mask.shape[1] - mask.flip(1).int().argmax(1)
        if bool(((last - starts != counts) & (counts > 0)).any()):
            raise ValueError("a response in several pieces: the CPU worker knows single turns only")
        return cls(
            data,
            starts.tolist(),
            counts.tolist(),
            sample_mask,
            mask[:, 1:].float() * sample_mask.unsqueeze(-1),
        )

    def grid(self, values: Sequence[Tensor]) -> Tensor:
        """One value per response token, put at the tokens' positions: [B, S], 0 elsewhere."""
        grid = torch.zeros(self.data["input_ids"].shape, dtype=torch.float32)
        for row, (start, part) in enumerate(zip(self.starts, values, strict=True)):
            grid[row, start : start + len(part)] = part
        return grid


def sequences_of(rows: Rows) -> list[TokenSequence]:
    """The rows without their padding; a response of no tokens keeps its prompt."""
    ids = rows.data["input_ids"].tolist()
    lengths = rows.data["input_lengths"].tolist()
    return [
        TokenSequence(row[: start if count else length], row[start : start + count])
        for row, start, count, length in zip(ids, rows.starts, rows.counts, lengths, strict=True)
    ]


def microbatch_loss(
    rows: Rows, loss_fn: Any, totals: tuple[Tensor, Tensor], records: list[dict[str, Any]]
) -> LossFn:
    """The policy's loss function that asks NeMo-RL's `loss_fn` about each micro-batch.

    `totals` are the valid sequences and tokens of the whole update, by which `loss_fn` divides: parts and their
    gradients are then summed, the policy's own convention. What it reports is added to `records`.
    """

    def loss(logprobs: Tensor, entropy: Tensor, micro: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
        picked = rows.data.select_indices(micro.indices)
        width = rows.data["input_ids"].shape[1] - 1
        at = [
            torch.arange(rows.starts[i] - 1, rows.starts[i] - 1 + rows.counts[i]) + line * width
            for line, i in enumerate(micro.indices)
        ]
        flat = torch.zeros(len(micro.indices) * width, dtype=logprobs.dtype)
        current = flat.index_put((torch.cat(at),), logprobs).view(-1, width)
        value, metrics = loss_fn(current, picked, *totals)
        records.append({key: _number(item) for key, item in metrics.items()})
        return value, {}

    return loss


def _number(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) else value


def grouped_requests(data: Mapping[str, Any], name: Callable[[tuple[int, ...], int], str]) -> list[Request]:
    """Successive equal prompts as one request for several samples, so that a prompt is read once.

    `name` gives the random stream of a prompt (its token ids) at its place in the batch.
    """
    lengths = data["input_lengths"].tolist()
    prompts = [tuple(row[:length]) for row, length in zip(data["input_ids"].tolist(), lengths, strict=True)]
    return [
        Request(name(prompt, place), list(prompt), sum(1 for _ in same))
        for place, (prompt, same) in enumerate(groupby(prompts))
    ]


class Streams:
    """Names of random streams: those of the local engine, so that runs of both can be laid side by side.

    The local engine calls the stream of a training problem "step N/ID" and that of a validation problem
    "validation/ID" (training/loop.py, training/validate.py). A worker is told neither, but knows the prompts of
    the recipe.
    """

    def __init__(self, job: Job) -> None:
        tokenizer = load_tokenizer(job.model)
        train = training_prompts(job.recipe, tokenizer, limit=job.limit)
        validation = validation_prompts(job.recipe, tokenizer, limit=job.limit)
        self._train = {tuple(prompt.token_ids): prompt.problem.id for prompt in train.prompts}
        self._validation = {tuple(prompt.token_ids): prompt.problem.id for prompt in validation.prompts}
        self._calls = 0

    def of_call(self, step: int, share: int) -> Callable[[tuple[int, ...], int], str]:
        """The names for one call of `generate` on data-parallel rank `share`, while `step` is being made."""
        self._calls += 1

        def name(prompt: tuple[int, ...], place: int) -> str:
            if prompt in self._train:
                return f"step {step}/{self._train[prompt]}"
            if prompt in self._validation:
                return f"validation/{self._validation[prompt]}"
            return f"step {step} call {self._calls} share {share} prompt {place}"

        return name


def generation_output(rollouts: Sequence[Rollout], *, pad_id: int) -> dict[str, Tensor]:
    """Rollouts as NeMo-RL's GenerationOutputSpec: [B, longest] ids and log-probs, padded right."""
    prompts = torch.tensor([len(r.prompt_ids) for r in rollouts], dtype=torch.int64)
    responses = torch.tensor([len(r.response_ids) for r in rollouts], dtype=torch.int64)
    longest = int((prompts + responses).max())
    ids = torch.full((len(rollouts), longest), pad_id, dtype=torch.int64)
    logprobs = torch.zeros(len(rollouts), longest, dtype=torch.float32)
    for row, rollout in enumerate(rollouts):
        start, end = len(rollout.prompt_ids), len(rollout.prompt_ids) + len(rollout.response_ids)
        ids[row, :start] = torch.tensor(rollout.prompt_ids)
        ids[row, start:end] = torch.tensor(rollout.response_ids)
        logprobs[row, start:end] = torch.tensor(rollout.logprobs)
    return {
        "output_ids": ids,
        "generation_lengths": responses,
        "unpadded_sequence_lengths": prompts + responses,
        "logprobs": logprobs,
        "truncated": torch.tensor([not r.finished for r in rollouts]),
    }
