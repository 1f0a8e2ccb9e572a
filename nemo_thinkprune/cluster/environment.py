"""The environment of NeMo-RL that scores responses like the local engine: the same Scorer, the same rows.

A response reaches it as responses.Response, so truncation is known on all trainers. Its observation is empty:
no tokens are appended, and a finished response is never flagged as cut (NeMo-RL does that to one whose
observation has no room).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nemo_thinkprune.cluster.responses import Response
from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.rewards.length_rewards import NEED_GROUP, LengthReward, group_rewards, length_reward
from nemo_thinkprune.rewards.score import Scorer
from nemo_thinkprune.rewards.types import Item, Reason, Verdict
from nemo_thinkprune.rollout.types import StopReason

if TYPE_CHECKING:
    from nemo_rl.environments.interfaces import EnvironmentReturn

Message = Mapping[str, Any]
_REQUIRED = {"workers", "deadline_s", "memory_mb", "truncation"}
_OPTIONAL = {"length_reward"}


class ThinkPruneEnvironment:
    """Scores responses; an asynchronous Ray actor (see actors.py).

    `config`: workers, deadline_s, memory_mb and truncation as Scorer takes them, and optionally
    length_reward {name, params}. Calls of `step` that overlap are judged together, in one thread: the
    asynchronous trainer sends one response at a time. A call waits for the batch under way and its own, each
    delayed by the deadline of what hangs in it (by two where the machine was too busy to tell; see pool.py).

    Raises UserError for unknown or missing settings, and for a length reward that compares the responses to
    a prompt, which an environment does not see together.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        _check_keys(config)
        shape, self._reward = _reward_by_length(config.get("length_reward"))
        self._plain_text_will_do = config["truncation"] == "score_cut_text" and shape == "none"
        self._scorer = Scorer(**{key: config[key] for key in sorted(_REQUIRED)})
        # It lives as long as the actor: the kernel ends the scorer's workers with the thread that started them.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="scorer")
        self._waiting: list[_Call] = []
        self._scoring: asyncio.Task[None] | None = None
        self._rows: list[dict[str, Any]] = []

    async def step(
        self, message_log_batch: Sequence[Sequence[Message]], metadata: Sequence[Mapping[str, Any]]
    ) -> EnvironmentReturn:
        """The rewards (float32 [B]) of B conversations, each one prompt and one response.

        `metadata` of a conversation: problem_id, question, ground_truth. Every conversation ends here.

        Raises UserError where it cannot be known whether a response was cut.
        """
        import torch
        from nemo_rl.environments.interfaces import EnvironmentReturn

        rows = await self.score([_response(messages) for messages in message_log_batch], metadata)
        return EnvironmentReturn(
            observations=[{"role": "environment", "content": ""} for _ in rows],
            metadata=list(metadata),
            next_stop_strings=[None] * len(rows),
            rewards=torch.tensor([row["reward"] for row in rows], dtype=torch.float32),
            terminateds=torch.ones(len(rows), dtype=torch.bool),
            answers=[row["answer"] for row in rows],
        )

    async def score(
        self, responses: Sequence[str], metadata: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, Any]]:
        """The row of each response, in order, kept for `drain` as well."""
        items = [
            Item(str(response), str(known["ground_truth"]), self._finished(response))
            for response, known in zip(responses, metadata, strict=True)
        ]
        verdicts = await self._verdicts(items)
        rows = [self._row(*parts) for parts in zip(responses, metadata, verdicts, strict=True)]
        self._rows.extend(rows)
        return rows

    async def drain(self) -> list[dict[str, Any]]:
        """The rows scored since the last call, in the order in which they were; they are kept until then."""
        rows, self._rows = self._rows, []
        return rows

    def global_post_process_and_metrics(self, batch: Any) -> tuple[Any, dict[str, float]]:
        """The batch as it is; no trainer asks, and the run is measured from the drained rows."""
        return batch, {}

    async def shutdown(self) -> None:
        """Ends the worker processes; a later `step` would start new ones."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._scorer.close)

    def _finished(self, response: str) -> bool:
        if isinstance(response, Response):
            return response.finished
        if not self._plain_text_will_do:
            raise UserError(
                "NeMo-RL handed over plain text, which does not tell whether the response was cut at the limit or "
                "how long it is: start training with `thinkprune train RECIPE --engine nemo-rl`, or score cut text "
                "like finished text (thinkprune.truncation: score_cut_text) without a length reward"
            )
        return True  # the scorer does not ask: cut text is scored as it stands

    async def _verdicts(self, items: list[Item]) -> list[Verdict]:
        if not items:
            return []
        call = _Call(items, asyncio.get_running_loop().create_future())
        self._waiting.append(call)
        if self._scoring is None or self._scoring.done():
            self._scoring = asyncio.create_task(self._score_waiting())
        return await call.verdicts

    async def _score_waiting(self) -> None:
        """Judges the calls that wait, and those that come meanwhile, until there is none."""
        loop = asyncio.get_running_loop()
        while self._waiting:
            calls, self._waiting = self._waiting, []
            items = [item for call in calls for item in call.items]
            try:
                verdicts = await loop.run_in_executor(self._thread, self._scorer.score, items)
            except Exception as error:
                for call in calls:
                    call.fail(error)
                continue
            start = 0
            for call in calls:
                call.finish(verdicts[start : start + len(call.items)])
                start += len(call.items)

    def _row(self, response: str, known: Mapping[str, Any], verdict: Verdict) -> dict[str, Any]:
        reward, tokens, stop_reason = verdict.reward, None, None
        if isinstance(response, Response):
            tokens = response.tokens
            stop_reason = str(StopReason.EOS if response.finished else StopReason.LIMIT)
            [reward] = group_rewards(
                self._reward,
                correct=[verdict.reason is Reason.CORRECT],
                lengths=[tokens],
                finished=[response.finished],
            )
        return {
            "problem_id": known.get("problem_id"),
            "prompt": known.get("question"),
            "response": str(response),
            "response_tokens": tokens,
            "stop_reason": stop_reason,
            "reward": reward,
            "reason": str(verdict.reason),
            "answer": verdict.answer,
            "gold": str(known["ground_truth"]),
        }


class ThinkPruneValidationEnvironment(ThinkPruneEnvironment):
    """The same without the length reward: the mean reward of validation is its accuracy."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__({key: value for key, value in config.items() if key != "length_reward"})


@dataclass(frozen=True, slots=True)
class _Call:
    """What one `step` waits for."""

    items: list[Item]
    verdicts: asyncio.Future[list[Verdict]]

    def finish(self, verdicts: list[Verdict]) -> None:
        if not self.verdicts.done():  # a cancelled call is
            self.verdicts.set_result(verdicts)

    def fail(self, error: Exception) -> None:
        if not self.verdicts.done():
            self.verdicts.set_exception(error)


def _response(messages: Sequence[Message]) -> str:
    last = messages[-1] if messages else {}
    if last.get("role") != "assistant":
        raise UserError(f"a conversation must end with the response, not with {last.get('role', 'nothing')}")
    text: str = last["content"]
    return text


def _check_keys(config: Mapping[str, Any]) -> None:
    unknown, missing = set(config) - _REQUIRED - _OPTIONAL, _REQUIRED - set(config)
    wrong = [f"unknown {key!r}" for key in sorted(unknown)] + [f"missing {key!r}" for key in sorted(missing)]
    if wrong:
        raise UserError(f"settings of the environment: {', '.join(wrong)}")


def _reward_by_length(config: Mapping[str, Any] | None) -> tuple[str, LengthReward]:
    chosen = dict(config or {"name": "none"})
    if chosen["name"] in NEED_GROUP:
        raise UserError(
            f"length reward {chosen['name']} compares the responses to one prompt, which NeMo-RL's environments do "
            "not see together: train with --engine local, or take another thinkprune.length_reward"
        )
    return chosen["name"], length_reward(chosen["name"], chosen.get("params"))
