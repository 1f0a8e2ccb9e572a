"""Numbers that no recipe and no config.json gives: each is printed as assumed, with where it is from."""

from __future__ import annotations

from nemo_thinkprune.costs.parts import GIB

TRAINER_RESERVE_BYTES = 4 * GIB
TRAINER_RESERVE_SOURCE = (
    "CUDA context, NCCL buffers, workspaces of cuBLAS and TransformerEngine, the allocator's fragments: 4 GiB"
)
ASLEEP_SOURCE = (
    "a sleeping vLLM keeps context, NCCL and graphs: NeMo-RL issue 223 saw 0.8 GiB at TP1 and 2.4 to 7.2 GiB at "
    "TP2, vLLM issue 47654 saw 7 GiB at TP8"
)
VLLM_CONTEXT_SOURCE = "vLLM pull request 11743 logs 1.3 GiB outside torch; CUDA graphs 1.5 GiB (issue 47654)"
BATCHED_TOKENS_SOURCE = (
    "vLLM's own defaults on GPUs of 70 GB and more: 16384 tokens, 1024 sequences at a time"
)
REFIT_FREE_SHARE = 0.3  # nemo_rl/algorithms/grpo.py, refit_policy_generation: NRL_REFIT_BUFFER_MEMORY_RATIO
BROADCAST_SHARE = 0.02  # nemo_rl/utils/packed_tensor.py, of the whole GPU, two buffers of at most 5 GiB
BROADCAST_MOST_BYTES = 5 * GIB
_BIG_GPU_BYTES = 70 * GIB


def batched_tokens(gpu_bytes: int) -> int:
    """Tokens of one forward pass of vLLM (vllm/engine/arg_utils.py, get_batch_defaults, LLM class)."""
    return 16384 if gpu_bytes >= _BIG_GPU_BYTES else 8192


def running_sequences(gpu_bytes: int) -> int:
    """Sequences that vLLM runs at once, likewise."""
    return 1024 if gpu_bytes >= _BIG_GPU_BYTES else 256


def vllm_asleep_bytes(tp: int) -> int:
    """What an engine that sleeps leaves on its GPU."""
    return 1 * GIB if tp == 1 else 6 * GIB


def vllm_context_bytes(*, eager: bool, tp: int) -> int:
    """What an engine that is awake holds outside weights, activations and cache."""
    return int((1.3 if tp > 1 else 0.8) * GIB) + (0 if eager else int(1.5 * GIB))
