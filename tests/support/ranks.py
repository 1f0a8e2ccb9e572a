"""Run a function on the ranks of a layout, each rank in a process of its own."""

from __future__ import annotations

import multiprocessing as mp
import os
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

PRELOAD = [
    "nemo_thinkprune.policy.policy",
    "nemo_thinkprune.rollout.engine",
    "nemo_thinkprune.policy.checkpoint",
]


def run_ranks(function: Callable[..., Any], *args: Any, world: int, tp: int = 1, pp: int = 1) -> list[Any]:
    """Call `function(layout, *args)` on every rank of a gloo world; the ranks' results in rank order."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ["OMP_NUM_THREADS"] = "1"
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    with tempfile.TemporaryDirectory() as folder:
        queue = context.Queue()
        rendezvous = Path(folder) / "rendezvous"
        ranks = [
            context.Process(target=_rank, args=(function, rank, world, tp, pp, rendezvous, queue, args))
            for rank in range(world)
        ]
        for process in ranks:
            process.start()
        results: dict[int, Any] = {}
        try:
            for _ in ranks:
                rank, error, value = queue.get(timeout=180)
                assert error is None, f"rank {rank} of TP{tp} x PP{pp}, world {world}:\n{error}"
                results[rank] = value
        finally:
            for process in ranks:
                if len(results) < world:
                    process.kill()
                process.join()
    return [results[rank] for rank in range(world)]


def _rank(
    function: Callable[..., Any],
    rank: int,
    world: int,
    tp: int,
    pp: int,
    rendezvous: Path,
    queue: Any,
    args: tuple,
) -> None:
    import torch

    from nemo_thinkprune.policy.device import megatron_device
    from nemo_thinkprune.policy.parallel import model_parallel

    device = torch.device("cpu")
    try:
        with (
            megatron_device(device, threads=1),
            model_parallel(
                rank=rank, world=world, rendezvous=rendezvous, tp=tp, pp=pp, device=device, timeout_s=120
            ) as layout,
        ):
            queue.put((rank, None, function(layout, *args)))
    except BaseException:
        queue.put((rank, traceback.format_exc(), None))
