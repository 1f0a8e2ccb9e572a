"""The GPUs that a plan can be made for: what one holds, and how fast it computes and moves bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from nemo_thinkprune.recipe.errors import UserError

MIB = 1 << 20
_TORCH = "memory: torch.cuda.get_device_properties().total_memory"
_NETWORK = "network: assumed, one 400 Gb/s adapter per GPU, as in NVIDIA's DGX H100 and B200 systems"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU of a kind, with the links it has in its usual server of eight.

    Attributes:
        name: As the command line names it.
        memory_bytes: What a program can allocate: torch's total memory, a little less than nvidia-smi prints, since
            the driver keeps some. The advertised 80 "GB" are GiB on the A100 and H100.
        bf16_flops: Dense peak in bfloat16, FLOP/s (data sheets print twice as much, with sparsity).
        memory_bandwidth: HBM, bytes/s.
        link_bandwidth: NVLink to the GPUs of its server, bytes/s in one direction.
        network_bandwidth: To GPUs of other servers, bytes/s in one direction.
        host_bandwidth: PCIe to host memory, bytes/s in one direction.
        source: Where the numbers are from.
    """

    name: str
    memory_bytes: int
    bf16_flops: float
    memory_bandwidth: float
    link_bandwidth: float
    network_bandwidth: float
    host_bandwidth: float
    source: str


_A100 = Gpu(
    name="a100-80g",
    memory_bytes=81_050 * MIB,
    bf16_flops=312e12,
    memory_bandwidth=2.039e12,
    link_bandwidth=300e9,
    network_bandwidth=25e9,
    host_bandwidth=32e9,
    source=f"NVIDIA A100 80GB data sheet (SXM: 312 TFLOP/s, 2039 GB/s, NVLink 600 GB/s both ways, PCIe 4); {_TORCH} "
    "= 79.15 GiB (nvidia-smi: 81920 MiB); network: assumed, one 200 Gb/s adapter per GPU, as in NVIDIA's DGX A100",
)
_H100 = Gpu(
    name="h100-80g",
    memory_bytes=81_089 * MIB,
    bf16_flops=989.5e12,
    memory_bandwidth=3.35e12,
    link_bandwidth=450e9,
    network_bandwidth=50e9,
    host_bandwidth=64e9,
    source=f"NVIDIA H100 data sheet (SXM: 1979 TFLOP/s with sparsity, 3.35 TB/s, NVLink 900 GB/s both ways, PCIe 5); "
    f"{_TORCH} = 81089 MiB (nvidia-smi: 81559 MiB); {_NETWORK}",
)
_H200 = Gpu(
    name="h200-141g",
    memory_bytes=143_156 * MIB,
    bf16_flops=989.5e12,
    memory_bandwidth=4.8e12,
    link_bandwidth=450e9,
    network_bandwidth=50e9,
    host_bandwidth=64e9,
    source=f"NVIDIA H200 data sheet (SXM: 1979 TFLOP/s with sparsity, 4.8 TB/s, NVLink 900 GB/s both ways, PCIe 5); "
    f"{_TORCH} = 143156 MiB (nvidia-smi: 143771 MiB); {_NETWORK}",
)
_B200 = Gpu(
    name="b200-192g",
    memory_bytes=182_631 * MIB,
    bf16_flops=2250e12,
    memory_bandwidth=8e12,
    link_bandwidth=900e9,
    network_bandwidth=50e9,
    host_bandwidth=64e9,
    source=f"NVIDIA DGX B200 data sheet, per GPU of eight (4.5 PFLOP/s with sparsity, 8 TB/s, NVLink 1.8 TB/s both "
    f"ways, PCIe 5); of 192 GB on the chip 180 are sold, {_TORCH} = 182631 MiB (nvidia-smi: 183359 MiB); {_NETWORK}",
)

GPUS: Mapping[str, Gpu] = MappingProxyType({gpu.name: gpu for gpu in (_A100, _H100, _H200, _B200)})
"""By name."""


def gpu_named(name: str) -> Gpu:
    """The GPU of that name.

    Raises:
        UserError: There is none.
    """
    if name not in GPUS:
        raise UserError(f"GPU {name!r} is not known; choose one of {', '.join(GPUS)}")
    return GPUS[name]
