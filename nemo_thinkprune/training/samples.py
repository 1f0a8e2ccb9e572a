"""Sample problems and score the responses: the one way training, validation and evaluation do it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from nemo_thinkprune.data.problems import Problem
from nemo_thinkprune.data.prompts import Prompt
from nemo_thinkprune.data.tokenizer import response_text
from nemo_thinkprune.policy.parallel import broadcast_from_main, gather_over_data_parallel
from nemo_thinkprune.rewards.length_rewards import LengthReward, group_rewards
from nemo_thinkprune.rewards.types import Item, Reason, Verdict
from nemo_thinkprune.rollout.types import Request, Rollout, Sampling
from nemo_thinkprune.training.clock import Clock
from nemo_thinkprune.training.session import Session


@dataclass(frozen=True, slots=True)
class Sample:
    """A scored response."""

    problem: Problem
    rollout: Rollout
    text: str
    verdict: Verdict

    def to_row(self) -> dict[str, Any]:
        """The response as a JSON line of rollouts/ and eval/."""
        return {
            "problem_id": self.problem.id,
            "sample": self.rollout.sample,
            "prompt": self.problem.question,
            "response": self.text,
            "response_tokens": len(self.rollout.response_ids),
            "stop_reason": str(self.rollout.stop_reason),
            "reward": self.verdict.reward,
            "reason": str(self.verdict.reason),
            "answer": self.verdict.answer,
            "gold": self.problem.answer,
        }


def collect(
    session: Session,
    prompts: Sequence[Prompt],
    *,
    samples: int,
    limit: int,
    sampling: Sampling,
    stream: str,
    step: int,
    clock: Clock,
) -> list[Sample]:
    """Sample each prompt and score the responses; the same list on every rank, ordered by (prompt, sample).

    Data-parallel ranks take turns through the prompts. `stream` names the random streams together with the
    problem's id, so that another step draws other responses.
    """
    layout = session.layout
    mine = range(layout.dp_rank, len(prompts), layout.dp)
    requests = [Request(f"{stream}/{prompts[i].problem.id}", prompts[i].token_ids, samples) for i in mine]
    with clock.phase("generate_s"):
        session.beat("generate", step)
        local = session.engine.generate(
            requests,
            limit=limit,
            sampling=sampling,
            beat=lambda done, total: session.context.pulse(),
        )
        parts = gather_over_data_parallel(layout, local)
    rollouts: list[Rollout] = []
    for index in range(len(prompts)):
        part, request = parts[index % layout.dp], index // layout.dp
        rollouts += part[request * samples : (request + 1) * samples]
    with clock.phase("score_s"):
        session.beat("score", step)
        return _scored(session, [p.problem for p in prompts for _ in range(samples)], rollouts)


def shaped(samples: Sequence[Sample], reward: LengthReward, *, group_size: int) -> list[Sample]:
    """The samples with their rewards by a length reward; `group_size` successive samples answer one prompt."""
    result: list[Sample] = []
    for start in range(0, len(samples), group_size):
        group = samples[start : start + group_size]
        rewards = group_rewards(
            reward,
            correct=[s.verdict.reason is Reason.CORRECT for s in group],
            lengths=[len(s.rollout.response_ids) for s in group],
            finished=[s.rollout.finished for s in group],
        )
        result += [
            replace(s, verdict=replace(s.verdict, reward=r)) for s, r in zip(group, rewards, strict=True)
        ]
    return result


def _scored(session: Session, problems: list[Problem], rollouts: list[Rollout]) -> list[Sample]:
    texts = [response_text(session.tokenizer, r.response_ids, finished=r.finished) for r in rollouts]
    verdicts: list[Verdict] | None = None
    if session.scorer is not None:
        items = [
            Item(response=text, gold=problem.answer, finished=rollout.finished)
            for text, problem, rollout in zip(texts, problems, rollouts, strict=True)
        ]
        verdicts = session.scorer.score(items, on_judged=session.context.pulse)
    verdicts = broadcast_from_main(session.layout, verdicts)
    return [Sample(*row) for row in zip(problems, rollouts, texts, verdicts, strict=True)]
