"""The Ray cluster of a run: the one that is there, or on a CPU, where none is named, one of our own."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.training.stopping import STOP_SIGNALS

OBJECT_STORE_BYTES = 512 << 20
ADDRESS = "RAY_ADDRESS"
"""The variable that names a cluster; Ray sets it in the jobs that are submitted to it."""


@contextmanager
def ray_cluster(*, on_cpu: bool, ranks: int) -> Iterator[None]:
    """Join the cluster and leave it at the end of the block.

    `on_cpu` without RAY_ADDRESS starts one with a logical GPU for each of the `ranks`; with it, the cluster
    named there must have as many.

    Raises:
        UserError: it has fewer.
    """
    with _own_signals():
        _join(on_cpu=on_cpu, ranks=ranks)
    try:
        yield
    finally:
        ray.shutdown()


def _join(*, on_cpu: bool, ranks: int) -> None:
    if on_cpu and not os.environ.get(ADDRESS):
        ray.init(
            address="local",
            num_gpus=ranks,
            num_cpus=4 * ranks + 8,  # a logical number: actors are admitted by it
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            log_to_driver=True,
        )
        # NeMo-RL's memory tracker looks for the only cluster of the host unless told which
        os.environ[ADDRESS] = ray.get_runtime_context().gcs_address
        return
    from nemo_rl.distributed.virtual_cluster import init_ray

    init_ray()
    if on_cpu:
        _require(ranks)


def _require(ranks: int) -> None:
    """Refuse a cluster without room for the CPU workers; NeMo-RL would take an hour of waiting for it."""
    needed = {"GPU": ranks, "CPU": ranks + 1}  # a CPU is held by each rank, one is lent to what is starting
    there = ray.cluster_resources()
    missing = [f"{count} {name}" for name, count in needed.items() if there.get(name, 0) < count]
    if missing:
        has = ", ".join(f"{there.get(name, 0):g} {name}" for name in needed)
        address = ray.get_runtime_context().gcs_address
        ray.shutdown()
        raise UserError(
            f"--on-cpu with {ranks} rank{'s' if ranks > 1 else ''} needs {' and '.join(missing)} by Ray's count, and "
            f"the cluster at {address} has {has}: start its nodes with more (ray start --num-gpus=N --num-cpus=M; "
            f"no real ones are used), or unset {ADDRESS} and this command starts a Ray of its own"
        )


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
