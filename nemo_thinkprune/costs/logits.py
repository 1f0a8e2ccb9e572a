"""Bytes of the logits on the last pipeline stage, as NeMo-RL v0.7.0 makes and copies them.

Sources: nemo_rl/models/megatron/train.py (`model_forward`: the output is cast to float32 unless
defer_fp32_logits), algorithms/loss/utils.py and wrapper.py (one sequence of a packed row at a time),
distributed/model_utils.py (`DistributedLogprob`, `ChunkedDistributedLogprob` and the log-softmax they share).
"""

from __future__ import annotations

from checkpoints_tools.model_config import ModelConfig
from checkpoints_tools.weight_map import padded_vocab_size
from nemo_thinkprune.costs.activations import Shape, longest_sequence
from nemo_thinkprune.recipe.schema import Recipe

_FP32, _INT64 = 4, 8


def train_logits_bytes(recipe: Recipe, model: ModelConfig, shape: Shape) -> int:
    """Most that is alive from the output layer's logits to their gradient, in an update.

    With V / TP columns, t tokens of the row and s of its longest sequence.  In chunks of c tokens: the logits of
    the row and their gradient (2 t, in the model's type), the gradient of a sequence (s), and for a chunk of the
    backward pass its logits and softmax in float32 and two one-hot matrices of int64: 24 c bytes.  Whole: float32
    logits of the row unless they are deferred (4 t), a softmax that is kept for each sequence (4 t), the gradient
    of a sequence (4 s) and of the row (4 t, or its own type); or, in the forward pass of the last sequence,
    three float32 copies of it.
    """
    columns = padded_vocab_size(model.vocab_size, shape.split.tp) // shape.split.tp
    row, longest = shape.tokens, min(shape.tokens, longest_sequence(recipe) // shape.split.cp)
    chunk = recipe.policy.logprob_chunk_size
    if chunk is not None:
        in_chunk = min(chunk, longest) * (2 * _FP32 + 2 * _INT64)
        return columns * ((2 * row + longest) * shape.width + in_chunk)
    wide = shape.width if recipe.policy.megatron_cfg.defer_fp32_logits else _FP32
    forward = row * wide + row * _FP32 + 2 * longest * _FP32
    backward = row * wide + row * _FP32 + longest * _FP32 + row * wide
    return columns * max(forward, backward)


def logprob_logits_bytes(recipe: Recipe, model: ModelConfig, shape: Shape) -> int:
    """Most that is alive of the logits in a log-probability pass, which handles a packed row as a whole.

    In chunks: the logits of the row, and for a chunk three float32 copies (logits, shifted by their maximum,
    exponentials).  Whole: the row's logits, float32 unless deferred, and three float32 copies where the first is
    the cast one.
    """
    columns = padded_vocab_size(model.vocab_size, shape.split.tp) // shape.split.tp
    chunk = recipe.policy.logprob_chunk_size
    if chunk is not None:
        return columns * (shape.tokens * shape.width + 3 * _FP32 * min(chunk, shape.tokens))
    deferred = recipe.policy.megatron_cfg.defer_fp32_logits or shape.width == _FP32
    return columns * shape.tokens * ((shape.width if deferred and shape.width < _FP32 else 0) + 3 * _FP32)
