"""A rank of a benchmark: the training loop itself, with a meter at its phases and a measured peak around it."""

from __future__ import annotations

from dataclasses import replace

import torch

from nemo_thinkprune.bench.matmul import best_flops_per_s
from nemo_thinkprune.policy.device import device_name
from nemo_thinkprune.training.clock import Meter
from nemo_thinkprune.training.job import Job
from nemo_thinkprune.training.loop import train
from nemo_thinkprune.training.session import DTYPES, Session, open_session, optimizer_config
from nemo_thinkprune.training.worker import RankContext

ENTRY = f"{__name__}:run"


def run(job: Job, context: RankContext) -> None:
    """Train as the job says and tell the supervisor what every phase of every step took on this rank.

    Raises:
        UserError: Something that the user can mend; the supervisor passes it on.
    """
    with open_session(job, context, optimizer=optimizer_config(job.recipe)) as session, context.reporting():
        _tell_device(session)
        train(replace(session, meter=Meter(session.device)))
        _tell_device(session)


def _tell_device(session: Session) -> None:
    """The device's name, and on a CPU what it can do while the other ranks do the same."""
    name = device_name(session.device)
    dtype: torch.dtype = DTYPES[session.recipe.policy.precision]
    best = best_flops_per_s(dtype) if session.device.type == "cpu" else None
    session.beat("device", 0, device={"type": session.device.type, "name": name, "flops_per_s": best})
