"""What a device can do at most: known boards by their names, and a CPU by measuring it."""

from __future__ import annotations

import pytest
import torch

from nemo_thinkprune.bench.matmul import best_flops_per_s
from nemo_thinkprune.bench.peak import cpu_peak, given_peak, gpu_of, gpu_peak

NAMES = {
    "NVIDIA A100-SXM4-80GB": "a100-80g",
    "NVIDIA H100 80GB HBM3": "h100-80g",
    "NVIDIA H200": "h200-141g",
    "NVIDIA B200": "b200-192g",
    "NVIDIA A100-PCIE-40GB": None,
    "NVIDIA A100 80GB PCIe": None,
    "NVIDIA H100 PCIe": None,
    "NVIDIA H100 NVL": None,
    "NVIDIA H200 NVL": None,
    "NVIDIA GB200": None,
    "NVIDIA H100 80GB HBM3 MIG 1g.10gb": None,
    "NVIDIA L4": None,
}


@pytest.mark.parametrize("name", NAMES)
def test_only_the_boards_of_the_data_sheets_are_known(name: str) -> None:
    found = gpu_of(name)
    assert (found.name if found else None) == NAMES[name]


def test_a_gpu_has_its_dense_peak_at_sixteen_bits_only() -> None:
    assert gpu_peak(["NVIDIA H100 80GB HBM3"] * 8, "bfloat16").flops_per_s == 989.5e12
    for names, precision in (
        (["NVIDIA H100 80GB HBM3"], "float32"),
        (["NVIDIA H100 80GB HBM3", "NVIDIA H200"], "bfloat16"),
        (["NVIDIA L4"], "bfloat16"),
        ([], "bfloat16"),
    ):
        peak = gpu_peak(names, precision)
        assert peak.flops_per_s is None and "give --peak-tflops" in peak.source


def test_the_best_of_what_was_measured_counts() -> None:
    peak = cpu_peak([3e9, 5e9, 4e9], precision="float32", threads=2)
    assert peak.flops_per_s == 5e9 and "float32" in peak.source and "2 threads" in peak.source
    assert given_peak(1.5).flops_per_s == 1.5e12


def test_this_cpu_multiplies() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert 1e8 < best_flops_per_s(torch.float32, seconds=0.01) < 1e13
    finally:
        torch.set_num_threads(threads)
