"""In-process generation: the policy samples on the very weights that are trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state as mpu
from torch import Tensor

from nemo_thinkprune.policy.policy import Policy
from nemo_thinkprune.rollout.decoder import StageDecoder
from nemo_thinkprune.rollout.sampling import sample_tokens, uniforms
from nemo_thinkprune.rollout.types import Request, Rollout, Sampling, StopReason

COMPACT_BELOW = 0.8
TOKENS_PER_BEAT = 16


@dataclass(slots=True)
class _Rows:
    """The rows still being sampled: which (request, sample) each is, and its state."""

    ids: Tensor  # [rows] int64 index into the batch's output
    uniforms: Tensor  # [rows, limit] fp64

    def keep(self, rows: Tensor) -> _Rows:
        return _Rows(self.ids[rows], self.uniforms[rows])


class MegatronEngine:
    """Samples from a `Policy`; every rank of a tensor and pipeline group calls it with the same requests."""

    def __init__(self, policy: Policy, *, eos_ids: Sequence[int], max_rows: int) -> None:
        self.policy, self.eos_ids, self.max_rows = policy, sorted(eos_ids), max_rows

    def refit(self) -> None:
        """Nothing to do: the weights are the policy's own."""

    @torch.no_grad()
    def generate(
        self,
        requests: Sequence[Request],
        *,
        limit: int,
        sampling: Sampling,
        beat: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[Rollout]:
        """Sample every request `samples` times, at most `limit` tokens each; ordered by (request, sample)."""
        pairs = [(r, s) for r, request in enumerate(requests) for s in range(request.samples)]
        if not pairs:
            return []
        decoder = StageDecoder(
            self.policy.network,
            layout=self.policy.layout,
            vocab_size=self.policy.model.vocab_size,
            rows=min(self.max_rows, len(pairs)),
        )
        rollouts: list[Rollout] = []
        for start in range(0, len(pairs), self.max_rows):
            batch = pairs[start : start + self.max_rows]
            rollouts += self._generate_batch(
                decoder, requests, batch, limit=limit, sampling=sampling, beat=beat
            )
        return rollouts

    def _generate_batch(
        self,
        decoder: StageDecoder,
        requests: Sequence[Request],
        batch: list[tuple[int, int]],
        *,
        limit: int,
        sampling: Sampling,
        beat: Callable[[int, int], None],
    ) -> list[Rollout]:
        device = self.policy.device
        order = sorted({request for request, _ in batch})
        prompts = [requests[request].prompt_ids for request in order]
        lengths = torch.tensor([len(p) for p in prompts], device=device)
        padded = torch.zeros(len(prompts), int(lengths.max()), dtype=torch.int64, device=device)
        for row, prompt in enumerate(prompts):
            padded[row, : len(prompt)] = torch.tensor(prompt, device=device)
        owners = torch.tensor([order.index(request) for request, _ in batch], device=device)
        streams = [uniforms(sampling.seed, requests[r].key, s, limit) for r, s in batch]
        logits = decoder.prefill(padded, lengths, owners, limit=limit)
        rows = _Rows(
            ids=torch.arange(len(batch), device=device),
            uniforms=torch.from_numpy(np.stack(streams)).to(device),
        )
        tokens, logprobs = self._decode(decoder, logits, rows, limit=limit, sampling=sampling, beat=beat)
        return [
            self._rollout(requests, request, sample, tokens[i], logprobs[i])
            for i, (request, sample) in enumerate(batch)
        ]

    def _decode(
        self,
        decoder: StageDecoder,
        logits: Tensor | None,
        rows: _Rows,
        *,
        limit: int,
        sampling: Sampling,
        beat: Callable[[int, int], None],
    ) -> tuple[Tensor, Tensor]:
        """Sample until every row has ended: token ids [rows, limit] (-1 beyond the end) and log-probs."""
        device = self.policy.device
        out_tokens = torch.full((len(rows.ids), limit), -1, dtype=torch.int64, device=device)
        out_logprobs = torch.zeros(len(rows.ids), limit, dtype=torch.float32, device=device)
        eos = torch.tensor(self.eos_ids, dtype=torch.int64, device=device)
        alive = torch.ones(len(rows.ids), dtype=torch.bool, device=device)
        for index in range(limit):
            tokens, logprobs = self._draw(logits, rows, index, sampling)
            live = rows.ids[alive]
            out_tokens[live, index] = tokens[alive]
            out_logprobs[live, index] = logprobs[alive]
            alive &= ~torch.isin(tokens, eos)
            remaining = int(alive.sum())
            if index % TOKENS_PER_BEAT == 0:
                beat(index, limit)
            if remaining == 0 or index + 1 == limit:
                break
            if remaining < COMPACT_BELOW * len(alive):
                kept = torch.nonzero(alive).squeeze(1)
                rows, tokens, alive = rows.keep(kept), tokens[kept], alive[kept]
                decoder.keep(kept)
            logits = decoder.step(tokens)
        return out_tokens.cpu(), out_logprobs.cpu()

    def _draw(
        self, logits: Tensor | None, rows: _Rows, index: int, sampling: Sampling
    ) -> tuple[Tensor, Tensor]:
        """Draw on the last stage, hand the tokens to the others (the first embeds them)."""
        layout = self.policy.layout
        if logits is not None:
            drawn = sample_tokens(logits, rows.uniforms[:, index], sampling)
        if layout.pp == 1:
            return drawn
        packed = torch.empty(2, len(rows.ids), dtype=torch.float64, device=self.policy.device)
        if logits is not None:
            packed[0], packed[1] = drawn[0].double(), drawn[1].double()
        group = mpu.get_pipeline_model_parallel_group()
        dist.broadcast(packed, mpu.get_pipeline_model_parallel_last_rank(), group=group)
        return packed[0].long(), packed[1].float()

    def _rollout(
        self, requests: Sequence[Request], request: int, sample: int, tokens: Tensor, logprobs: Tensor
    ) -> Rollout:
        length = int((tokens >= 0).sum())
        response = tokens[:length].tolist()
        return Rollout(
            request=request,
            sample=sample,
            prompt_ids=requests[request].prompt_ids,
            response_ids=response,
            logprobs=logprobs[:length].tolist(),
            stop_reason=StopReason.EOS if response[-1] in self.eos_ids else StopReason.LIMIT,
        )
