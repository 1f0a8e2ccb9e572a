"""What a vLLM engine does with its share of a GPU: weights, room to run, and blocks of key-value cache.

vLLM takes gpu_memory_utilization of the whole GPU, subtracts its weights, the peak of a profiling run and what is
not torch's, and cuts the rest into blocks of 16 tokens (vllm/v1/worker/gpu_worker.py
`determine_available_memory`, v1/core/kv_cache_utils.py; Kwon et al. 2023, arXiv 2309.06180).
"""

from __future__ import annotations

from dataclasses import dataclass

from checkpoints_tools.model_config import ModelConfig
from nemo_thinkprune.costs import assumed
from nemo_thinkprune.costs.gpus import Gpu
from nemo_thinkprune.costs.parts import Part
from nemo_thinkprune.recipe.schema import Recipe

BLOCK_TOKENS = 16
_VOCAB_MULTIPLE = 64  # vllm/model_executor/layers/vocab_parallel_embedding.py
_WIDTH = {"bfloat16": 2, "float16": 2, "half": 2, "float32": 4, "float": 4, "auto": 2, "fp8": 1}


@dataclass(frozen=True, slots=True)
class Engine:
    """One GPU of a vLLM engine.

    `budget` is its share of the GPU, `cache_bytes` what is left for the cache (0 when nothing is), `token_bytes` a
    token's key and value on this GPU, `blocks` of 16 tokens, `most_sequences` that vLLM runs at once, `sequences` of
    the greatest length that do and fit. `running_source` says what `running` was computed with.
    """

    budget: int
    weights: int
    running: int
    running_source: str
    graphs: int
    cache_bytes: int
    token_bytes: int
    blocks: int
    most_sequences: int
    sequences: int

    @property
    def tokens(self) -> int:
        """Tokens whose keys and values fit."""
        return self.blocks * BLOCK_TOKENS

    def parts(self) -> tuple[Part, ...]:
        """Its memory while it generates."""
        return (
            Part("vLLM weights", self.weights),
            Part("vLLM activations", self.running, self.running_source),
            Part("vLLM context and graphs", self.graphs, assumed.VLLM_CONTEXT_SOURCE),
            Part("KV cache", self.cache_bytes),
        )


def engine_of(recipe: Recipe, model: ModelConfig, *, gpu: Gpu) -> Engine:
    """One GPU of the engine that `policy.generation` describes; of a pipelined engine, the fullest stage."""
    generation = recipe.policy.generation
    config = generation.vllm_cfg
    budget = int(gpu.memory_bytes * config.gpu_memory_utilization)
    weights = weight_bytes(recipe, model)
    tokens, most = _given(recipe, "max_num_batched_tokens"), _given(recipe, "max_num_seqs")
    rows = most or assumed.running_sequences(gpu)
    running = running_bytes(recipe, model, tokens=tokens or assumed.batched_tokens(gpu), rows=rows)
    graphs = assumed.vllm_context_bytes(eager=config.enforce_eager, tp=config.tensor_parallel_size)
    token = token_bytes(recipe, model)
    fixed = generation.vllm_kwargs.get("kv_cache_memory_bytes")
    free = int(fixed) if isinstance(fixed, int) else max(0, budget - weights - running - graphs)
    blocks = free // (token * BLOCK_TOKENS)
    per_sequence = -(-config.max_model_len // BLOCK_TOKENS)
    return Engine(
        budget=max(budget, weights + running + graphs + free if fixed else 0),
        weights=weights,
        running=running,
        running_source=assumed.running_source(tokens=tokens, sequences=most, gpu=gpu),
        graphs=graphs,
        cache_bytes=blocks * BLOCK_TOKENS * token,
        token_bytes=token,
        blocks=blocks,
        most_sequences=rows,
        sequences=min(rows, blocks // per_sequence),
    )


def _given(recipe: Recipe, key: str) -> int | None:
    """A whole number of policy.generation.vllm_kwargs; None where vLLM's default holds."""
    value = recipe.policy.generation.vllm_kwargs.get(key)
    return int(value) if value else None


def token_bytes(recipe: Recipe, model: ModelConfig) -> int:
    """Key and value of one token on one GPU: layers x 2 x heads x head size x bytes.

    Key-value heads are shared by the tensor-parallel GPUs; with more GPUs than heads each holds one.
    """
    config = recipe.policy.generation.vllm_cfg
    heads = max(1, model.num_kv_heads // config.tensor_parallel_size)
    layers = -(-model.num_layers // config.pipeline_parallel_size)
    width = (
        1 if config.kv_cache_dtype.startswith("fp8") else max(2, _WIDTH.get(config.precision, 2))
    )  # auto: the model's type, and of 8-bit weights bfloat16
    return layers * 2 * heads * model.head_dim * width


def weight_bytes(recipe: Recipe, model: ModelConfig) -> int:
    """Weights of the fullest GPU of an engine; key and value weights are copied beyond the key-value heads."""
    config = recipe.policy.generation.vllm_cfg
    tp, pp = config.tensor_parallel_size, config.pipeline_parallel_size
    width = _WIDTH.get(config.precision, 2)
    heads, head, hidden = model.num_heads, model.head_dim, model.hidden_size
    qkv = head * (heads // tp + 2 * max(1, model.num_kv_heads // tp))
    matrices = hidden * qkv + hidden * head * heads // tp + 3 * hidden * model.ffn // tp
    small = 2 * hidden + (qkv if model.qkv_bias else 0) + (2 * head if model.qk_norm else 0)
    padded = -(-model.vocab_size // (_VOCAB_MULTIPLE * tp)) * _VOCAB_MULTIPLE
    vocabulary = padded * hidden * (1 if model.tied and pp == 1 else 2)
    wide = max(2, width)  # embeddings and norms stay in 16 bits beside 8-bit matrices
    layers = -(-model.num_layers // pp)
    ends = vocabulary if pp == 1 else vocabulary // 2
    return layers * (matrices * width + small * wide) + (ends + hidden) * wide


def running_bytes(recipe: Recipe, model: ModelConfig, *, tokens: int, rows: int) -> int:
    """Peak of vLLM's profiling run: the widest point of a layer for all batched tokens, or the sampler's logits.

    The layer holds hidden states, residual and normed input, gate and up, and their product; the sampler makes
    logits, their float32 copy, log-probabilities and a sorted copy for every running sequence, over the whole
    vocabulary.

    Args:
        recipe: Gives the engine's tensor parallel size.
        model: The architecture.
        tokens: Of a forward pass at most (vLLM's max_num_batched_tokens).
        rows: Sequences at once at most (its max_num_seqs).
    """
    tp = recipe.policy.generation.vllm_cfg.tensor_parallel_size
    layer = tokens * (3 * model.hidden_size + 3 * model.ffn // tp) * 2
    sampler = min(rows, tokens) * model.vocab_size * (2 + 3 * 4)
    return max(layer, sampler)
