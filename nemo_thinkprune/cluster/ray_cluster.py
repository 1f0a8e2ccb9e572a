"""The Ray cluster of a run: the one that the launcher made, or on a CPU one of our own."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from nemo_thinkprune.training.stopping import STOP_SIGNALS

OBJECT_STORE_BYTES = 512 << 20


@contextmanager
def ray_cluster(*, on_cpu: bool, ranks: int) -> Iterator[None]:
    """Join the cluster (or start one with a logical GPU for each rank) and leave it at the end of the block."""
    with _own_signals():
        _join(on_cpu=on_cpu, ranks=ranks)
    try:
        yield
    finally:
        ray.shutdown()


def _join(*, on_cpu: bool, ranks: int) -> None:
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


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep our handlers over the block: Ray puts its own in place of SIGTERM's, and that one ends the process."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only a main thread can set them
        return
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)
