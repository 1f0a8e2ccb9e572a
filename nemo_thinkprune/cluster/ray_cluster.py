"""The Ray cluster of a run: the one that the launcher made, or on a CPU one of our own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray

OBJECT_STORE_BYTES = 512 << 20


@contextmanager
def ray_cluster(*, on_cpu: bool, ranks: int) -> Iterator[None]:
    """Join the cluster (or start one with a logical GPU for each rank) and leave it at the end of the block."""
    if on_cpu:
        ray.init(
            address="local",
            num_gpus=ranks,
            num_cpus=4 * ranks + 8,  # a logical number: actors are admitted by it
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            log_to_driver=True,
        )
        # NeMo-RL's memory tracker looks for the only cluster of the host unless told which
        os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    else:
        from nemo_rl.distributed.virtual_cluster import init_ray

        init_ray()
    try:
        yield
    finally:
        ray.shutdown()
