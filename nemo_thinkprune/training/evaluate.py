"""The eval job: sample a data set from a frozen policy and write every response with its verdict."""

from __future__ import annotations

import json
from collections.abc import Sequence

from nemo_thinkprune.data.problems import load_problems
from nemo_thinkprune.data.prompts import Prompt
from nemo_thinkprune.evaluation.stats import summarise
from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.files import write_atomic
from nemo_thinkprune.rollout.types import Sampling
from nemo_thinkprune.training.clock import Clock
from nemo_thinkprune.training.problems import encode
from nemo_thinkprune.training.samples import collect
from nemo_thinkprune.training.session import Session


def evaluate(session: Session) -> None:
    """Write `<out>.jsonl` (a row per sample) and `<out>.json` (the summary)."""
    spec = session.job.eval
    assert spec is not None
    prompts = encode(session, load_problems(spec.data_path), what=spec.data_path)
    _refuse_too_long(session, prompts, spec.limit)
    clock = Clock()
    samples = collect(
        session,
        prompts,
        samples=spec.samples,
        limit=spec.limit,
        sampling=Sampling(
            temperature=spec.temperature, top_p=spec.top_p, top_k=spec.top_k, seed=session.recipe.grpo.seed
        ),
        stream="evaluation",
        step=0,
        clock=clock,
    )
    if session.layout.is_main:
        rows = [sample.to_row() for sample in samples]
        summary = summarise(
            rows,
            model=str(session.job.init_weights or session.job.model),
            data=spec.data_path,
            limit=spec.limit,
            samples=spec.samples,
            temperature=spec.temperature,
            top_p=spec.top_p,
            limits=spec.limits,
        )
        write_atomic(spec.out.with_suffix(".jsonl"), "".join(json.dumps(row) + "\n" for row in rows))
        write_atomic(spec.out.with_suffix(".json"), json.dumps(summary, indent=2) + "\n")
    session.beat("done", 0, total=0, timing=clock.seconds)


def _refuse_too_long(session: Session, prompts: Sequence[Prompt], limit: int) -> None:
    """A response beyond the positions that a model was trained on says nothing about it."""
    model = session.policy.model
    longest = max((len(prompt.token_ids) for prompt in prompts), default=0)
    if model.rope_scaling is None and longest + limit > model.max_position_embeddings:
        raise UserError(
            f"a prompt of {longest} tokens and a response of up to {limit} are more than the model's "
            f"{model.max_position_embeddings} positions (max_position_embeddings): lower the limit to "
            f"{model.max_position_embeddings - longest} or less"
        )
