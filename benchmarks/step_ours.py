"""Steps of the local engine on the fixed work, one for each line `step` on standard input.

    python benchmarks/step_ours.py MODEL_FOLDER [KEY=VALUE]...

Run by benchmarks/step.py. The step is `training.loop.train_step` itself; only the verdicts are given.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import megatron.core
import step_work as work
import torch

from nemo_thinkprune.data.ledger import Ledger
from nemo_thinkprune.data.problems import Problem
from nemo_thinkprune.data.prompts import Prompt
from nemo_thinkprune.recipe.load import load_recipe
from nemo_thinkprune.rewards.types import Reason, Verdict
from nemo_thinkprune.training.job import Job
from nemo_thinkprune.training.loop import train_step
from nemo_thinkprune.training.objective import Objective
from nemo_thinkprune.training.problems import Plan
from nemo_thinkprune.training.session import Clock, Session, open_session, optimizer_config
from nemo_thinkprune.training.worker import RankContext

RECIPE = f"""
grpo:
  num_prompts_per_step: {work.PROMPTS}
  num_generations_per_prompt: {work.SAMPLES}
  normalize_rewards: true
  seed: 0
loss_fn: {{reference_policy_kl_penalty: 0.0}}
policy:
  precision: float32
  max_grad_norm: 1.0
  generation_batch_size: {work.PROMPTS * work.SAMPLES}
  sequence_packing: {{train_mb_tokens: {work.PROMPT_TOKENS + work.SAMPLES * work.RESPONSE_TOKENS}}}
  megatron_cfg:
    optimizer:
      lr: {work.LEARNING_RATE}
      weight_decay: {work.WEIGHT_DECAY}
      adam_beta1: {work.BETAS[0]}
      adam_beta2: {work.BETAS[1]}
    scheduler: {{lr_decay_style: constant, lr_warmup_iters: 0}}
data: {{train: {{data_path: none.jsonl}}, max_input_seq_length: {work.PROMPT_TOKENS}}}
thinkprune:
  limits: [{work.RESPONSE_TOKENS}]
  prompt_family: plain
  length_hint: false
  runtime: {{device: cpu, threads_per_rank: 1}}
"""


class GivenVerdicts:
    """A scorer that gives rewards by the place of a response in its group, as the peer's reward function does."""

    def score(self, items: Sequence[Any], **_: Any) -> list[Verdict]:
        """The verdicts, and nothing judged."""
        return [_verdict(index) for index in range(len(items))]

    def close(self) -> None:
        """Nothing was opened."""


def _verdict(index: int) -> Verdict:
    right = work.reward(index) > 0
    return Verdict(work.reward(index), Reason.CORRECT if right else Reason.WRONG, None)


def main() -> None:
    """Open a session on this process alone and let it run."""
    line, seen = work.Line(), [0]
    with _session(Path(sys.argv[1]), sys.argv[2:]) as session:
        _time_phases(session, line)
        _count_tokens(session, seen)
        plan, objective = _plan(), Objective.from_recipe(session.recipe)
        line.say({"ready": True, "torch": torch.__version__, "megatron_core": megatron.core.__version__})
        step = 0
        while line.wait():
            step, seen[0] = step + 1, 0
            _, _, row = train_step(session, plan, objective, step, Clock())
            facts = {name: row[name] for name in ("trained_tokens", "loss", "grad_norm")}
            line.done(forward_tokens=seen[0], **facts)


@contextlib.contextmanager
def _session(model: Path, overrides: Sequence[str]) -> Iterator[Session]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "recipe.yaml").write_text(RECIPE)
        recipe = load_recipe(folder / "recipe.yaml", [f"policy.model_name={model}", *overrides])
        job = Job(kind="train", run_dir=folder, recipe=recipe, model=str(model), limit=work.RESPONSE_TOKENS)
        silent = os.open(os.devnull, os.O_WRONLY)
        context = RankContext(rank=0, world=1, rendezvous=folder / "rendezvous", pipe=silent)
        with open_session(job, context, optimizer=optimizer_config(recipe)) as session:
            yield replace(session, scorer=GivenVerdicts())  # type: ignore[arg-type]


def _plan() -> Plan:
    names = work.words()
    prompts = [
        Prompt(Problem(str(n), " ".join(names[i] for i in ids), "", "fixed work"), ids)
        for n, ids in enumerate(work.prompts())
    ]
    return Plan(prompts, [], Ledger(len(prompts), work.PROMPTS, 0), 1 << 60)


def _time_phases(session: Session, line: work.Line) -> None:
    engine: Any = session.engine
    engine.generate = line.phases.timed("generate", engine.generate)
    policy: Any = session.policy
    policy.logprobs = line.phases.timed("logprobs", policy.logprobs)
    policy.update = line.phases.timed("update", policy.update)
    policy.optimizer.step = line.phases.timed("optimizer", policy.optimizer.step)


def _count_tokens(session: Session, seen: list[int]) -> None:
    """Add the tokens of each forward pass that has a backward pass to `seen`; sampling goes another way."""

    def count(_: torch.nn.Module, __: Any, options: dict[str, Any]) -> None:
        seen[0] += options["input_ids"].numel() if torch.is_grad_enabled() else 0

    session.policy.network.register_forward_pre_hook(count, with_kwargs=True)


if __name__ == "__main__":
    main()
