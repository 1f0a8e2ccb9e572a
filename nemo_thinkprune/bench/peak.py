"""The most that a device can do: of a GPU from its data sheet, of a CPU measured, or as the user says."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

from nemo_thinkprune.bench.result import Peak
from nemo_thinkprune.costs.gpus import GPUS, Gpu

_MATMUL = "nemo_thinkprune.bench.matmul"
_PATIENCE_S = 120.0
# How nvidia-smi and torch name the boards whose data sheets costs/gpus.py holds: all of these words in the name.
_BOARDS = {
    "a100-80g": ("A100", "SXM", "80GB"),
    "h100-80g": ("H100", "80GB", "HBM3"),
    "h200-141g": ("H200",),
    "b200-192g": ("B200",),
}
_OTHERS = ("PCIe", "NVL", "GB200", "MIG")


def given_peak(tflops: float) -> Peak:
    """The peak that the user named."""
    return Peak(flops_per_s=tflops * 1e12, source="given by --peak-tflops")


def gpu_of(name: str) -> Gpu | None:
    """The GPU of a device's name; None for one whose data sheet is not known, such as a slower board of a kind."""
    if any(word in name for word in _OTHERS):
        return None
    return next((GPUS[key] for key, words in _BOARDS.items() if all(word in name for word in words)), None)


def gpu_peak(names: Sequence[str], precision: str) -> Peak:
    """The dense peak of the GPUs of a run, at bfloat16 or float16; unknown for other precisions and boards."""
    kinds = {gpu_of(name) for name in names}
    if len(kinds) != 1 or None in kinds:
        return Peak(
            flops_per_s=None, source=f"not known for {', '.join(sorted(set(names)))}: give --peak-tflops"
        )
    if precision not in ("bfloat16", "float16"):
        return Peak(flops_per_s=None, source=f"not known at {precision}: give --peak-tflops")
    gpu = kinds.pop()
    assert gpu is not None
    return Peak(flops_per_s=gpu.bf16_flops, source=f"dense {precision} peak of {gpu.name}: {gpu.source}")


def cpu_peak(measured: Sequence[float], *, precision: str, threads: int, beside: bool = False) -> Peak:
    """The best of what was measured before and after the steps: by the ranks, or `beside` them by one process."""
    who = "by one process" if beside else "by all ranks at the same time"
    count = "one thread" if threads == 1 else f"{threads} threads"
    return Peak(
        flops_per_s=max(measured),
        source=f"measured before and after the steps {who}: the quickest of many {precision} products on {count}",
    )


def cpu_peak_beside(precision: str, threads: int) -> float:
    """FLOP/s of this CPU, measured by a process of its own: for an engine whose processes are not ours.

    Raises:
        subprocess.SubprocessError: It failed.
    """
    command = [sys.executable, "-P", "-m", _MATMUL, precision, str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S, check=True)
    return float(done.stdout)
