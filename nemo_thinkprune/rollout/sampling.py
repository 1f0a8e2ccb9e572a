"""Drawing tokens: one uniform number per (key, sample, position), turned into a token by the inverse CDF.

Because the number depends on nothing else, a response is the same in any batch and on any number of ranks.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor

from nemo_thinkprune.rollout.types import Sampling


def uniforms(seed: int, key: str, sample: int, count: int) -> np.ndarray:
    """`count` numbers in [0, 1) of the random stream of one response: Philox keyed by a 128-bit hash."""
    digest = hashlib.blake2b(f"{seed}\x1f{key}\x1f{sample}".encode(), digest_size=16).digest()
    philox = np.random.Philox(key=np.frombuffer(digest, dtype=np.uint64))
    return np.random.Generator(philox).random(count)


def sample_tokens(logits: Tensor, uniform: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Draw one token per row.

    Args:
        logits: [b, vocabulary] fp32.
        uniform: [b] fp64 in [0, 1).

    Returns:
        (token ids [b] int64, their log-probs [b] fp32 under the whole distribution).
    """
    greedy = sampling.temperature == 0.0
    logprobs = torch.log_softmax(logits if greedy else logits / sampling.temperature, dim=-1)
    if greedy:
        tokens = logits.argmax(dim=-1)
    else:
        cdf = _cut_tail(logprobs, sampling).exp().double().cumsum(dim=-1)
        tokens = torch.searchsorted(cdf, (uniform * cdf[:, -1])[:, None], right=True).squeeze(1)
        tokens = tokens.clamp_(max=logits.size(1) - 1)
    return tokens, logprobs.gather(1, tokens[:, None]).squeeze(1)


def _cut_tail(logprobs: Tensor, sampling: Sampling) -> Tensor:
    """Give tokens outside top-k and the top-p nucleus probability zero."""
    if sampling.top_k is not None and sampling.top_k < logprobs.size(1):
        threshold = logprobs.topk(sampling.top_k, dim=-1).values[:, -1:]
        logprobs = logprobs.masked_fill(logprobs < threshold, -torch.inf)
    if sampling.top_p < 1.0:
        ordered, order = logprobs.sort(dim=-1, descending=True)
        before = ordered.softmax(dim=-1).cumsum(dim=-1).roll(1, dims=-1)
        before[:, 0] = 0.0
        outside = torch.zeros_like(before, dtype=torch.bool).scatter_(1, order, before >= sampling.top_p)
        logprobs = logprobs.masked_fill(outside, -torch.inf)
    return logprobs
