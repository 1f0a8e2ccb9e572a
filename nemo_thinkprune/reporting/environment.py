"""The software and machine a run used, as far as a reader of its report needs to know."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "nemo-thinkprune",
    "torch",
    "megatron-core",
    "transformers",
    "tokenizers",
    "safetensors",
    "math-verify",
    "sympy",
    "numpy",
    "pydantic",
    "nemo-rl",
    "ray",
    "vllm",
    "transformer-engine",
    "wandb",
    "tensorboard",
)


def environment() -> dict[str, Any]:
    """Versions of what decides results, Python, system, processor, usable cores; no host names, no paths."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
