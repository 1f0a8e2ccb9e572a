"""Numbers that no recipe and no config.json gives: each is printed as assumed, with where it is from."""

from __future__ import annotations

from nemo_thinkprune.costs.gpus import Gpu
from nemo_thinkprune.costs.parts import GIB

TRAINER_RESERVE_BYTES = 4 * GIB
TRAINER_RESERVE_SOURCE = (
    "CUDA context, NCCL buffers, workspaces of cuBLAS and TransformerEngine, the allocator's fragments: 4 GiB"
)
ASLEEP_SOURCE = (
    "a sleeping vLLM keeps context, NCCL and graphs: NeMo-RL issue 223 saw 0.8 GiB at TP1 and 2.4 to 7.2 GiB at "
    "TP2, vLLM issue 47654 saw 7 GiB at TP8"
)
VLLM_CONTEXT_SOURCE = (
    "vLLM pull request 11743 logs 1.3 GiB outside torch; CUDA graphs 1.5 GiB (issue 47654); no less than what a "
    "sleeping vLLM keeps (1 GiB at TP1, else 6 GiB), since sleep frees its pool of weights and cache alone"
)
REFIT_FREE_SHARE = 0.3
REFIT_SOURCE = (
    "0.3 of what is free, NeMo-RL's default: grpo.py, refit_policy_generation, NRL_REFIT_BUFFER_MEMORY_RATIO"
)
BROADCAST_SHARE = 0.02
BROADCAST_MOST_BYTES = 5 * GIB
BROADCAST_SOURCE = (
    "each 0.02 of the GPU, at most 5 GiB and at least the largest tensor, NeMo-RL's default: "
    "utils/packed_tensor.py"
)
_BIG_GPU_BYTES = 70 * GIB


def has_large_batches(gpu: Gpu) -> bool:
    """Whether vLLM's defaults are the large ones: 70 GiB and more, but on no A100.

    Source: vLLM 0.20, vllm/engine/arg_utils.py, `get_batch_defaults`.
    """
    return gpu.memory_bytes >= _BIG_GPU_BYTES and not gpu.name.startswith("a100")


def batched_tokens(gpu: Gpu) -> int:
    """Tokens of one forward pass of vLLM by default (its LLM class)."""
    return 16384 if has_large_batches(gpu) else 8192


def running_sequences(gpu: Gpu) -> int:
    """Sequences that vLLM runs at once by default."""
    return 1024 if has_large_batches(gpu) else 256


def running_source(*, tokens: int | None, sequences: int | None, gpu: Gpu) -> str:
    """What vLLM's profiling run is made with; None: nothing is given, so vLLM's default."""
    of_tokens = f"{batched_tokens(gpu)} tokens (vLLM's default)" if tokens is None else f"{tokens} tokens"
    default = f"{running_sequences(gpu)} sequences (vLLM's default)"
    of_sequences = default if sequences is None else f"{sequences} sequences"
    return (
        f"a profiling run of {of_tokens} and {of_sequences} at a time on {gpu.name}: vllm/engine/arg_utils.py"
    )


def vllm_asleep_bytes(tp: int) -> int:
    """What an engine that sleeps leaves on its GPU."""
    return 1 * GIB if tp == 1 else 6 * GIB


def vllm_context_bytes(*, eager: bool, tp: int) -> int:
    """What an engine that is awake holds outside weights, activations and cache.

    That is context, NCCL and graphs, as counted one by one, and no less than what of them was seen to be there while
    it sleeps: `vllm_asleep_bytes`, larger on several GPUs.
    """
    counted = int((1.3 if tp > 1 else 0.8) * GIB) + (0 if eager else int(1.5 * GIB))
    return max(counted, vllm_asleep_bytes(tp))
