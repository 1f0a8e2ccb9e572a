"""Whether this machine has GPUs, asked without torch: what the parent process may know."""

from __future__ import annotations

import os
from pathlib import Path


def gpus_visible(devices: Path = Path("/dev")) -> bool:
    """Whether a job may find NVIDIA GPUs: their device files exist and CUDA_VISIBLE_DEVICES hides not all."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1"):
        return False
    return any(path.name[6:].isdigit() for path in devices.glob("nvidia*"))
