"""A worker's job, by kind: the same program on every rank."""

from __future__ import annotations

from nemo_thinkprune.training.evaluate import evaluate
from nemo_thinkprune.training.job import Job
from nemo_thinkprune.training.loop import train
from nemo_thinkprune.training.session import open_session, optimizer_config
from nemo_thinkprune.training.warmup import warm_up, warmup_optimizer
from nemo_thinkprune.training.worker import RankContext


def run(job: Job, context: RankContext) -> None:
    """Do the job on this rank.

    Raises:
        UserError: Something that the user can mend; the supervisor passes it on.
    """
    if job.kind == "train":
        with (
            open_session(job, context, optimizer=optimizer_config(job.recipe)) as session,
            context.reporting(),
        ):
            train(session)
    elif job.kind == "warmup":
        assert job.recipe.thinkprune.warmup is not None
        config = warmup_optimizer(job.recipe, job.recipe.thinkprune.warmup)
        with open_session(job, context, optimizer=config) as session, context.reporting():
            warm_up(session)
    else:
        with open_session(job, context, optimizer=None) as session, context.reporting():
            evaluate(session)
