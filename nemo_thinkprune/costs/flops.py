"""Exact model FLOPs of a dense grouped-query transformer with a SwiGLU MLP, from real token counts.

A product of an [m, k] with a [k, n] matrix is 2 m n k FLOPs (a multiplication and an addition each).  With hidden
size h, layers L, query width q = num_heads x head_dim, key (and value) width g = num_kv_heads x head_dim, MLP width f
and V rows of the vocabulary:

| part | forward FLOPs |
|---|---|
| projections, per token and layer | 2h (q + 2g) for q, k, v  +  2qh for the output |
| MLP, per token and layer | 6hf (gate, up, down) |
| attention, per layer | 4q for each (query, key) pair: 2q for the score, 2q for the weighted sum of values |
| logits, per position that needs them | 2hV |

A causal sequence of t tokens has t (t + 1) / 2 pairs.  Logits are needed for r positions of a sequence with r response
tokens, and never for its prompt.  The backward pass of a product is two products of the same size (gradients of the
input and of the weight; for attention, four products for two), so training is three times the forward pass.

These are *model* FLOPs: what the mathematics needs, whatever the program does (Chowdhery et al. 2022, PaLM, arXiv
2204.02311, appendix B; Korthikanti et al. 2022, arXiv 2205.05198, section 6).  What is executed again in the backward
pass to save memory is counted apart (`TrainFlops.recomputed`).  Norms, rotary embeddings, softmax, biases, the
embedding lookup, sampling and the optimizer are not matrix products and are left out, as everywhere in the field.
Padding (of sequences, of the vocabulary, of a batch that decodes with finished rows) is never counted.

How this differs from other counts of the same work:

* 6N tokens (Kaplan et al. 2020, arXiv 2001.08361): no attention, the embedding table counted as if it were a product,
  logits at every position of the prompt as well.
* PaLM, appendix B: 6N + 12 L q t per token: every token attends to all t of its sequence, so the attention is about
  twice the causal one, which is counted here.
* NeMo-RL v0.7.0, utils/flops_formulas.py: the formula for Qwen2 takes keys and values as wide as the hidden size (it
  ignores the grouping); those for Qwen2, Qwen3 and Llama take t^2 / 2 pairs, not t (t + 1) / 2, and logits at every
  position.  Its tracker counts the update only.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from checkpoints_tools.model_config import ModelConfig

RECOMPUTE_ALL = ("core_attn", "mlp", "projections")
"""What `recompute_granularity: full` runs again: every product of every layer, but not the logits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Real token counts of some sequences; no padding.

    Attributes:
        prompts: Prompt tokens of each sequence, at least 1.
        responses: Response tokens of each sequence, the end token included.
        group_size: Each run of so many sequences answers one prompt, which generation reads once.
    """

    prompts: Sequence[int]
    responses: Sequence[int]
    group_size: int = 1

    def __post_init__(self) -> None:
        if len(self.prompts) != len(self.responses):
            raise ValueError(f"{len(self.prompts)} prompts for {len(self.responses)} responses")
        if self.group_size < 1 or len(self.prompts) % self.group_size:
            raise ValueError(f"{len(self.prompts)} sequences are not groups of {self.group_size}")
        if any(p < 1 for p in self.prompts) or any(r < 0 for r in self.responses):
            raise ValueError("a prompt has at least one token and a response no negative number of them")
        for first in range(0, len(self.prompts), self.group_size):
            if len(set(self.prompts[first : first + self.group_size])) > 1:
                raise ValueError(f"the group at sequence {first} has prompts of different lengths")

    @property
    def tokens(self) -> int:
        """Prompt and response tokens of all sequences, a shared prompt counted for each."""
        return sum(self.prompts) + sum(self.responses)

    @property
    def response_tokens(self) -> int:
        """Response tokens of all sequences."""
        return sum(self.responses)


@dataclass(frozen=True, slots=True, kw_only=True)
class Flops:
    """FLOPs by part of the model."""

    projections: int = 0
    mlp: int = 0
    attention: int = 0
    lm_head: int = 0

    @property
    def total(self) -> int:
        """All parts together."""
        return self.projections + self.mlp + self.attention + self.lm_head

    def __add__(self, other: Flops) -> Flops:
        return Flops(
            projections=self.projections + other.projections,
            mlp=self.mlp + other.mlp,
            attention=self.attention + other.attention,
            lm_head=self.lm_head + other.lm_head,
        )

    def times(self, factor: int) -> Flops:
        """Each part `factor` times."""
        return Flops(
            projections=factor * self.projections,
            mlp=factor * self.mlp,
            attention=factor * self.attention,
            lm_head=factor * self.lm_head,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainFlops:
    """FLOPs of forward and backward.  MFU takes `model`; `hardware` is what is executed."""

    model: Flops
    recomputed: Flops

    @property
    def hardware(self) -> Flops:
        """Model FLOPs and those executed again."""
        return self.model + self.recomputed


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateFlops:
    """FLOPs of generation: prompts read once per group, then one token at a time."""

    prefill: Flops
    decode: Flops

    @property
    def model(self) -> Flops:
        """Both together."""
        return self.prefill + self.decode


def model_flops(model: ModelConfig, *, tokens: int, pairs: int, logits: int) -> Flops:
    """Forward FLOPs of `tokens` inputs that attend over `pairs` (query, key) pairs, with `logits` output rows."""
    query, kv = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    return Flops(
        projections=model.num_layers * tokens * 2 * model.hidden_size * (2 * query + 2 * kv),
        mlp=model.num_layers * tokens * 6 * model.hidden_size * model.ffn,
        attention=model.num_layers * pairs * 4 * query,
        lm_head=2 * model.hidden_size * model.vocab_size * logits,
    )


def causal_pairs(tokens: int) -> int:
    """(Query, key) pairs of a causal sequence: each token attends to itself and all before it."""
    return tokens * (tokens + 1) // 2


def forward_flops(model: ModelConfig, work: Work, *, shared_prompts: bool = False) -> Flops:
    """One forward pass over whole sequences, logits for the response tokens: a pass of log-probabilities.

    With `shared_prompts` each prompt is computed once for all responses of its group, which need no more than that,
    and the last token of a response, which predicts nothing, is left out.
    """
    if shared_prompts:
        firsts = work.prompts[:: work.group_size]
        fed = [(p, max(r - 1, 0)) for p, r in zip(work.prompts, work.responses, strict=True)]
        return model_flops(
            model,
            tokens=sum(firsts) + sum(n for _, n in fed),
            pairs=sum(map(causal_pairs, firsts)) + sum(n * p + causal_pairs(n) for p, n in fed),
            logits=work.response_tokens,
        )
    lengths = [p + r for p, r in zip(work.prompts, work.responses, strict=True)]
    return model_flops(
        model,
        tokens=sum(lengths),
        pairs=sum(causal_pairs(t) for t in lengths),
        logits=work.response_tokens,
    )


def train_flops(
    model: ModelConfig,
    work: Work,
    *,
    recompute: Collection[str] = (),
    recompute_logits: bool = False,
    flash_attention: bool = False,
    shared_prompts: bool = False,
) -> TrainFlops:
    """Forward and backward over whole sequences, logits for the response tokens.

    Args:
        model: Architecture.
        work: Sequences.
        recompute: Parts of a layer that run again in the backward pass: Megatron-Core's names `core_attn` and `mlp`
            (`layernorm` has no products), or RECOMPUTE_ALL.
        recompute_logits: Whether the backward pass computes the logits again, in chunks, as the local engine does.
        flash_attention: Whether attention is a flash kernel, whose backward pass computes the scores again
            (Dao et al. 2022, arXiv 2205.14135).
        shared_prompts: As in `forward_flops`.

    Raises:
        ValueError: A name in `recompute` that is none of these.
    """
    unknown = set(recompute) - {*RECOMPUTE_ALL, "layernorm"}
    if unknown:
        raise ValueError(f"nothing called {', '.join(sorted(unknown))} can be recomputed")
    forward = forward_flops(model, work, shared_prompts=shared_prompts)
    scores_again = forward.attention // 2 if flash_attention else 0
    return TrainFlops(
        model=forward.times(3),
        recomputed=Flops(
            projections=forward.projections if "projections" in recompute else 0,
            mlp=forward.mlp if "mlp" in recompute else 0,
            attention=(forward.attention if "core_attn" in recompute else 0) + scores_again,
            lm_head=forward.lm_head if recompute_logits else 0,
        ),
    )


def generate_flops(model: ModelConfig, work: Work) -> GenerateFlops:
    """Generation with a KV cache: prompts read once per group; the last response token is never fed back.

    The first response token is sampled from the last prompt token's logits, so a response of r tokens takes r - 1
    single-token passes, the i-th over p + i keys.
    """
    firsts = [p for p in work.prompts[:: work.group_size]]
    fed = [(p, max(r - 1, 0)) for p, r in zip(work.prompts, work.responses, strict=True)]
    steps = sum(n for _, n in fed)
    return GenerateFlops(
        prefill=model_flops(
            model, tokens=sum(firsts), pairs=sum(causal_pairs(p) for p in firsts), logits=len(firsts)
        ),
        decode=model_flops(
            model, tokens=steps, pairs=sum(n * p + causal_pairs(n) for p, n in fed), logits=steps
        ),
    )


def mfu(flops: int | float, *, seconds: float, devices: int, peak: float) -> float:
    """Model FLOPs utilization: FLOPs per second and device, over the dense peak of a device at that precision.

    Args:
        flops: Model FLOPs of all devices together (never hardware FLOPs).
        seconds: Time they took.
        devices: Devices that were held for it, idle ones too.
        peak: Dense peak of one device in FLOP/s (data sheets often print the sparse one, twice as much).

    Raises:
        ValueError: A time, a count or a peak that is not positive.
    """
    if not (seconds > 0 and devices > 0 and peak > 0):
        raise ValueError(f"MFU of {seconds} s on {devices} devices with a peak of {peak} FLOP/s")
    return flops / (seconds * devices * peak)


def mfu_error(value: float) -> str | None:
    """Why an MFU cannot be true, or None.  Above 1, time, work or peak was measured wrongly: it is never clipped."""
    if 0 <= value <= 1:
        return None
    return f"MFU {value:.1%} is not possible: the time, the token counts, the number of devices or the peak is wrong"
