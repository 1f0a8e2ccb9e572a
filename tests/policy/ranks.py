"""Run a function on the ranks of a layout, each in a process of its own that has Megatron-Core loaded."""

import multiprocessing
import tempfile
import traceback
from pathlib import Path

import torch

from nemo_thinkprune.policy.device import megatron_device
from nemo_thinkprune.policy.parallel import model_parallel


def run_ranks(function, *args, tp=1, pp=1, dp=1, timeout_s=120):
    """`function(layout, *args)` on every rank; its results in rank order. Both must be picklable.

    A fork server imports the libraries once, so that a rank starts in a fraction of a second.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["nemo_thinkprune.policy.weights", "nemo_thinkprune.policy.policy"])
    with tempfile.TemporaryDirectory() as folder:
        rendezvous = str(Path(folder) / "rendezvous")
        pipes, processes = [], []
        for rank in range(tp * pp * dp):
            receiver, sender = context.Pipe(duplex=False)
            place = (rank, tp * pp * dp, tp, pp, rendezvous, timeout_s)
            process = context.Process(target=_rank, args=(sender, place, function, args), daemon=True)
            process.start()
            sender.close()
            pipes.append(receiver)
            processes.append(process)
        try:
            return [_result(rank, pipe, timeout_s) for rank, pipe in enumerate(pipes)]
        finally:
            for process in processes:
                process.join(10)
                process.kill()


def _result(rank, pipe, timeout_s):
    assert pipe.poll(timeout_s), f"rank {rank} did not answer within {timeout_s} s"
    ok, value = pipe.recv()
    assert ok, f"rank {rank} failed:\n{value}"
    return value


def _rank(sender, place, function, args):
    rank, world, tp, pp, rendezvous, timeout_s = place
    device = torch.device("cpu")
    try:
        with (
            megatron_device(device),
            model_parallel(
                rank=rank,
                world=world,
                rendezvous=Path(rendezvous),
                tp=tp,
                pp=pp,
                device=device,
                timeout_s=timeout_s,
            ) as layout,
        ):
            sender.send((True, function(layout, *args)))
    except BaseException:
        sender.send((False, traceback.format_exc()))
