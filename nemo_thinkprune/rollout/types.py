"""What generation takes and gives.

| name | shape | meaning |
|---|---|---|
| prompt_ids | [p] | token ids of the prompt, chat template applied |
| response_ids | [r] | sampled token ids, the end token included when there is one |
| logprobs | [r] | log-probability of each sampled token at the sampling temperature, in nats |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


class StopReason(StrEnum):
    """Why a response ended."""

    EOS = "eos"
    """The policy ended it with an end token."""
    LIMIT = "limit"
    """It was cut at the limit of response tokens."""


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt to answer `samples` times; `key` names it in the random streams (unique per prompt and step)."""

    key: str
    prompt_ids: list[int]
    samples: int


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn. `temperature` 0 is greedy; `top_p` and `top_k` cut the tail before drawing.

    `logprobs` always refer to the whole distribution at `temperature` (at 1 when greedy), never to the cut one.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Rollout:
    """One sampled response."""

    request: int
    sample: int
    prompt_ids: list[int]
    response_ids: list[int]
    logprobs: list[float]
    stop_reason: StopReason

    @property
    def finished(self) -> bool:
        """Whether the policy ended the response itself."""
        return self.stop_reason is StopReason.EOS


class RolloutEngine(Protocol):
    """Anything that samples responses: the in-process engine, or vLLM in its place."""

    def generate(
        self, requests: Sequence[Request], *, limit: int, sampling: Sampling, beat: Callable[[int, int], None]
    ) -> list[Rollout]:
        """Sample every request; rollouts ordered by (request, sample). `beat(done, total)` reports tokens."""
        ...

    def refit(self) -> None:
        """Take over the policy's present weights."""
        ...
