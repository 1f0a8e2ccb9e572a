"""Seconds that a vLLM engine takes for its share of a step's rollouts: a simulation of continuous batching.

A decoding step reads all weights once and the keys and values of every token that is running; both are limited by
memory bandwidth (Pope et al. 2022, arXiv 2211.05102).  With b sequences of K tokens together, on t GPUs::

    seconds(b, K) = max(weight bytes / t / bandwidth, 2 b parameters / t / FLOPs)  +  K x token bytes / bandwidth
                    +  2 layers x all-reduce of b hidden states

Sequences are admitted in order while the cache has room.  When it is full the last one admitted is preempted: its
blocks are freed, and its prompt and tokens so far are read again when there is room (vLLM's scheduler, v1/core/sched;
Kwon et al. 2023, arXiv 2309.06180, section 4.5).  The engine is done when its longest response is.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from nemo_thinkprune.recipe.errors import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpeed:
    """What a vLLM engine (all its GPUs together) needs for a piece of work, in seconds.

    Attributes:
        weights: Reading the weights once.
        sequence_compute: The products of one token of one sequence, when the batch is large enough to be limited by
            them.
        sequence_reduce: All-reducing one token's hidden states over the engine's GPUs, all layers.
        cached_token: Reading one token's keys and values, on all GPUs at once.
        prompt_token: Products and all-reduces of one token of a prompt, which is read as a whole.
        prompt_pair: Attention of one (query, key) pair of a prompt.
        cache_tokens: Tokens whose keys and values fit.
        most_sequences: Sequences that may run at once.
    """

    weights: float
    sequence_compute: float
    sequence_reduce: float
    cached_token: float
    prompt_token: float
    prompt_pair: float
    cache_tokens: int
    most_sequences: int

    def prefill(self, tokens: int) -> float:
        """Seconds to read a prompt (with the tokens generated before a preemption)."""
        return tokens * self.prompt_token + tokens * (tokens + 1) // 2 * self.prompt_pair

    def decode(self, sequences: int, cached: int, steps: int) -> float:
        """Seconds of `steps` decoding steps of a fixed batch whose cache starts with `cached` tokens."""
        products = max(self.weights, sequences * self.sequence_compute) + sequences * self.sequence_reduce
        read = steps * cached + sequences * (steps * (steps + 1) // 2)
        return steps * products + read * self.cached_token


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """How an engine spent its time: prompts, sequences read again after a preemption, decoding (seconds)."""

    prefill: float
    again: float
    decode: float
    steps: int
    tokens: int
    preemptions: int

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.prefill + self.again + self.decode

    @property
    def mean_batch(self) -> float:
        """Sequences that decode at once, averaged over the steps."""
        return self.tokens / self.steps if self.steps else 0.0


@dataclass(slots=True)
class _Engine:
    """The engine's state; sequences by their number in the order of the requests."""

    speed: EngineSpeed
    held: list[int]  # tokens of each sequence when it was last admitted or removed
    left: list[int]  # response tokens that it lacked then
    waiting: deque[int]
    order: list[int] = field(default_factory=list)  # running, in the order of admission
    admitted: dict[int, int] = field(default_factory=dict)  # running: the step of its admission
    ends: list[tuple[int, int]] = field(default_factory=list)  # heap of (step of its end, sequence)
    cached: int = 0
    step: int = 0

    def has_room(self) -> bool:
        """Whether the next waiting sequence fits, and a step of all of them after it."""
        if not self.waiting or len(self.order) >= self.speed.most_sequences:
            return False
        after = self.cached + self.held[self.waiting[0]] + len(self.order) + 1
        return after <= self.speed.cache_tokens

    def admit(self) -> int:
        """Start the next waiting sequence; returns its number."""
        index = self.waiting.popleft()
        self.order.append(index)
        self.admitted[index] = self.step
        self.cached += self.held[index]
        heapq.heappush(self.ends, (self.step + self.left[index], index))
        return index

    def remove(self, index: int) -> None:
        """Free the cache of a running sequence, which may come back."""
        done = self.step - self.admitted.pop(index)
        self.held[index] += done
        self.left[index] -= done
        self.cached -= self.held[index]
        self.order.remove(index)

    def preempt_until_a_step_fits(self) -> int:
        """Send the last admitted back until all others can take a step; returns how many went."""
        count = 0
        while self.speed.cache_tokens - self.cached < len(self.order):
            last = self.order[-1]
            self.remove(last)
            self.waiting.appendleft(last)
            count += 1
        return count

    def next_end(self) -> int:
        """Steps until a running sequence ends; entries of preempted ones are dropped on the way."""
        while True:
            step, index = self.ends[0]
            if index in self.admitted and self.admitted[index] + self.left[index] == step:
                return step - self.step
            heapq.heappop(self.ends)

    def advance(self) -> float:
        """Decode until a sequence ends or the cache is full; returns the seconds."""
        batch = len(self.order)
        steps = min(self.next_end(), (self.speed.cache_tokens - self.cached) // batch)
        seconds = self.speed.decode(batch, self.cached, steps)
        self.cached += batch * steps
        self.step += steps
        while self.order and self.next_end() == 0:
            self.remove(heapq.heappop(self.ends)[1])
        return seconds


def generate_seconds(
    speed: EngineSpeed, prompts: Sequence[int], responses: Sequence[int], *, group_size: int = 1
) -> Generated:
    """Simulate one engine until its last response is done.

    Args:
        speed: The engine.
        prompts: Prompt tokens of each sequence, in the order of the requests.
        responses: Response tokens of each.
        group_size: Sequences in a row with one prompt, which is read once (prefix caching).

    Raises:
        UserError: The longest sequence does not fit into the cache.
    """
    longest = max((p + r for p, r in zip(prompts, responses, strict=True)), default=0)
    if longest > speed.cache_tokens:
        raise UserError(
            f"vLLM's cache holds {speed.cache_tokens} tokens and a sequence has {longest}: raise "
            "policy.generation.vllm_cfg.gpu_memory_utilization or tensor_parallel_size"
        )
    engine = _Engine(speed, list(prompts), list(responses), deque(range(len(prompts))))
    prefill = again = decode = 0.0
    preemptions = 0
    while engine.waiting or engine.order:
        while engine.has_room():
            index = engine.admit()
            if engine.held[index] > prompts[index]:
                again += speed.prefill(engine.held[index])
            elif index % group_size == 0:
                prefill += speed.prefill(prompts[index])
        preemptions += engine.preempt_until_a_step_fits()
        decode += engine.advance()
    return Generated(
        prefill=prefill,
        again=again,
        decode=decode,
        steps=engine.step,
        tokens=sum(responses),
        preemptions=preemptions,
    )
