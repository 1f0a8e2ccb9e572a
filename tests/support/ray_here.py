"""A Ray instance of the test's own, with NeMo-RL importable in its actors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from nemo_thinkprune.cluster.find import copy_packages, python_path
from support.nemo_rl import require_nemo_rl


@contextmanager
def ray_here(*, gpus: int = 0) -> Iterator[None]:
    """Start it with `gpus` logical GPUs, or skip the test where NeMo-RL is absent."""
    found = require_nemo_rl()
    import ray

    with pytest.MonkeyPatch.context() as patch, TemporaryDirectory() as folder:
        patch.setenv("PYTHONPATH", python_path(found, copy_packages(Path(folder))))
        ray.init(
            address="local",
            num_cpus=4,
            num_gpus=gpus,
            include_dashboard=False,
            object_store_memory=200_000_000,
            logging_level="ERROR",
            log_to_driver=False,
        )
        try:
            yield
        finally:
            ray.shutdown()
