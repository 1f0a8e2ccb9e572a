"""The one module that knows on which device Megatron-Core runs.

Megatron-Core 0.16 assumes CUDA in its factory calls, its RNG tracker, its checkpoint writer and some dtype
checks. On a CPU machine `megatron_device` redirects those few places for the length of a `with` block, and two
operations that a CPU does quicker in another way (linear layers, rotary embedding), and puts them back on exit; on
a GPU machine it selects the device and patches nothing.
"""

from __future__ import annotations

import ctypes
import math
import queue
import resource
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
import torch.utils._device
from torch import Tensor

from nemo_thinkprune.policy.group_attention import group_attention
from nemo_thinkprune.policy.prompt_groups import PromptGroups
from nemo_thinkprune.recipe.errors import UserError

CPU_TENSOR_TYPES = {
    torch.float32: "torch.cuda.FloatTensor",
    torch.bfloat16: "torch.cuda.BFloat16Tensor",
    torch.float16: "torch.cuda.HalfTensor",
}
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
FACTORIES = ("zeros", "ones", "empty", "full", "tensor", "arange", "rand", "randn")


def resolve_device(name: str, local_rank: int = 0) -> torch.device:
    """Turn `auto`, `cpu` or `cuda` into this rank's device; UserError if CUDA is asked for and absent."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("thinkprune.runtime.device is cuda but no GPU is visible: set it to cpu or auto")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise UserError(
            f"rank {local_rank} has no GPU, {torch.cuda.device_count()} are visible: lower cluster.gpus_per_node"
        )
    return torch.device("cuda", local_rank)


def collective_backend(device: torch.device) -> str:
    """The torch.distributed backend that moves tensors of `device`."""
    return "nccl" if device.type == "cuda" else "gloo"


def keep_freed_memory() -> None:
    """Tell glibc's allocator to keep what this process frees; nothing happens with another allocator.

    A training step frees and takes the same hundreds of megabytes for each micro-batch. By default the heap is
    given back each time its top is free, and every page is faulted in again. Blocks of 32 MiB and more, the
    most that may be asked for (M_MMAP_THRESHOLD in mallopt(3)), are still given back.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


@contextmanager
def megatron_device(device: torch.device, *, threads: int = 1, seed: int = 0) -> Iterator[None]:
    """Run Megatron-Core on `device` inside the block; every redirection is undone on exit."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Transformer Engine and Apex.*")
        warnings.filterwarnings("ignore", message="Apex is not installed.*")
        warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
        if device.type == "cuda":
            torch.cuda.set_device(device)
            yield
        else:
            with _cpu_redirections():
                yield


@contextmanager
def _cpu_redirections() -> Iterator[None]:
    from megatron.core.dist_checkpointing.strategies import filesystem_async
    from megatron.core.tensor_parallel import layers
    from megatron.core.tensor_parallel import random as megatron_random
    from megatron.core.transformer import attention

    from nemo_thinkprune.policy.cpu_linear import linear_on_cpu
    from nemo_thinkprune.policy.local_layers import rotary_in_place_of

    # torch caches its list of factory functions on first use: it must hold the real ones, not ours
    torch.utils._device._device_constructors()
    with ExitStack() as stack:
        for name in FACTORIES:
            stack.enter_context(patch.object(torch, name, _on_cpu(getattr(torch, name))))
        rotary, linear = "apply_rotary_pos_emb", "linear_with_grad_accumulation_and_async_allreduce"
        redirect = [
            (layers, linear, linear_on_cpu(getattr(layers, linear))),
            (attention, rotary, rotary_in_place_of(getattr(attention, rotary))),
            (torch.cuda, "current_device", lambda: "cpu"),
            (torch.cuda, "synchronize", lambda *_: None),
            (torch.Tensor, "cuda", lambda self, *_, **__: self),
            (torch.Tensor, "type", _type_as_if_cuda(torch.Tensor.type)),
            (megatron_random.CudaRNGStatesTracker, "fork", lambda self, *_, **__: nullcontext()),
            (megatron_random, "_get_cuda_rng_state", lambda *_, **__: None),
            (megatron_random, "_set_cuda_rng_state", lambda *_, **__: None),
            (filesystem_async.FileSystemWriterAsync, "write_preloaded_data_multiproc", _write_in_process),
            (filesystem_async, "_get_write_results_queue", queue.Queue),
        ]
        for owner, name, replacement in redirect:
            if not hasattr(owner, name):
                raise UserError(
                    f"megatron-core has no {name} any more, which the CPU needs redirected: install 0.16.1"
                )
            value = staticmethod(replacement) if replacement is _write_in_process else replacement
            stack.enter_context(patch.object(owner, name, value))
        yield


def _on_cpu(factory: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def redirected(*args: Any, **kwargs: Any) -> Tensor:
        if str(kwargs.get("device", "")).startswith("cuda"):
            kwargs["device"] = "cpu"
        return factory(*args, **kwargs)

    return redirected


def _type_as_if_cuda(original: Callable[..., Any]) -> Callable[..., Any]:
    # Megatron's optimizers dispatch on the string 'torch.cuda.FloatTensor'.
    def type_of(self: Tensor, *args: Any, **kwargs: Any) -> Any:
        if args or kwargs:
            return original(self, *args, **kwargs)
        return CPU_TENSOR_TYPES.get(self.dtype, original(self))

    return type_of


def _write_in_process(
    transform_list: list, use_msc: bool, rank: int, write_buckets: list, global_results_queue: Any
) -> None:
    """Write a rank's shards in this process: there is no device memory from which to fork safely away."""
    from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync

    done: queue.Queue = queue.Queue()
    pending: queue.Queue = queue.Queue()
    results: dict[int, Any] = {}
    for index, bucket in enumerate(write_buckets):
        pending.put(index)
        FileSystemWriterAsync.write_preloaded_data(
            transform_list, index, bucket, done, pending, True, use_msc=use_msc
        )
        _, results[index] = done.get_nowait()
    failures = [x for x in results.values() if isinstance(x, Exception)]
    global_results_queue.put(failures[0] if failures else results)


class SdpaCoreAttention(torch.nn.Module):
    """Causal attention core on `scaled_dot_product_attention`, padded or packed (THD), grouped-query.

    Stands where Megatron-Core's unfused `DotProductAttention` stands in the local layer spec, which builds
    [s, s] score matrices and refuses packed sequences.
    """

    def __init__(
        self,
        config: Any,
        layer_number: int,
        attn_mask_type: Any,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: Any = None,
    ) -> None:
        super().__init__()
        self.softmax_scale = softmax_scale or 1.0 / math.sqrt(config.kv_channels)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: Any = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: Any = None,
    ) -> Tensor:
        """Attend causally.

        Args:
            query: [s, b, heads, d], packed [t, heads, d], or by prompt groups [t, 1, heads, d].
            key, value: [s, b, kv heads, d], packed [t, kv heads, d], or [t, 1, kv heads, d].

        Returns:
            [s, b, heads * d], packed [t, heads * d], or [t, 1, heads * d].
        """
        if isinstance(packed_seq_params, PromptGroups):
            query, key, value = query.squeeze(1), key.squeeze(1), value.squeeze(1)
            groups = packed_seq_params.groups
            return group_attention(query, key, value, groups, scale=self.softmax_scale)[:, None]
        if packed_seq_params is None:
            context = self._attend(*(x.permute(1, 2, 0, 3) for x in (query, key, value)))
            return context.permute(2, 0, 1, 3).reshape(*query.shape[:2], -1)
        lengths = packed_seq_params.cu_seqlens_q.diff().tolist()
        parts = zip(query.split(lengths), key.split(lengths), value.split(lengths), strict=True)
        packed = [self._attend(*(x.transpose(0, 1).unsqueeze(0) for x in part)) for part in parts]
        return torch.cat([x.squeeze(0).transpose(0, 1).flatten(1) for x in packed])

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        groups = query.size(1) // key.size(1)
        if groups > 1:  # repeated views keep the fused CPU kernel; enable_gqa falls back to the slow path
            key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=self.softmax_scale)

    def sharded_state_dict(self, *_: Any, **__: Any) -> dict:
        """No parameters, nothing to shard."""
        return {}


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory of this process in MiB: allocated on the GPU, resident on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def settle(device: torch.device) -> None:
    """Wait until all that was asked of a GPU is done; nothing on a CPU, where it is done when a call returns."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def take_peak_bytes(device: torch.device) -> int:
    """Most bytes held since the last call, whose peak then begins anew: allocated on the GPU, resident on the CPU.

    On the CPU the kernel's own high-water mark is read and reset (proc(5): VmHWM, and 5 to /proc/self/clear_refs);
    0 where it has none.
    """
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return peak
    with (
        suppress(OSError),
        open("/proc/self/status", "rb") as status,
        open("/proc/self/clear_refs", "wb") as reset,
    ):
        lines = (line.split() for line in status if line.startswith(b"VmHWM:"))
        peak = next((int(fields[1]) * 2**10 for fields in lines), 0)
        reset.write(b"5")
        return peak
    return 0


def device_name(device: torch.device) -> str:
    """What the GPU's driver calls it; "cpu" for a CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
