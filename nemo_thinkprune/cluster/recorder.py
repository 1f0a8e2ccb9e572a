"""Keeps our records of a NeMo-RL run: stands in the place of NeMo-RL's logger and listens to its trainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nemo_thinkprune.cluster.data_plan import DataPlan
from nemo_thinkprune.cluster.scored import Groups, problems_of
from nemo_thinkprune.cluster.step_metrics import metrics_row, timing, tracked
from nemo_thinkprune.cluster.stopping import Stopping, StopTraining
from nemo_thinkprune.data.ledger import LedgerRow, ledger_row, read_ledger, verify_ledger
from nemo_thinkprune.training.job import Job
from nemo_thinkprune.training.metrics import response_metrics, validation_row
from nemo_thinkprune.training.run_folder import LEDGER, RunFolder
from nemo_thinkprune.training.worker import RankContext

Drain = Callable[[], Sequence[Mapping[str, Any]]]
PER_TOKEN = ("token_ids", "token_loss_mask", "advantages", "generation_logprobs", "prev_logprobs")
"""Columns of NeMo-RL's train_data_stepN.jsonl that hold a number for each token."""


@dataclass(slots=True)
class _Seen:
    """What is known of the present step."""

    trained: Sequence[Sequence[str]] | None = None
    rows: list[dict[str, Any]] | None = None
    responses: dict[str, Any] = field(default_factory=dict)
    told: Mapping[str, Any] = field(default_factory=dict)
    validation: dict[str, Any] | None = None
    validate_s: float | None = None


class Recorder:
    """NeMo-RL's `Logger`, which also writes the run folder as the local engine does.

    What NeMo-RL tells of a step comes in this order: the rollouts (prefix "train", without a loss), a validation
    ("timing/validation", "validation"), [the checkpoint], "train" with the loss, "performance", and "timing/train"
    with `step_finished`.  The asynchronous trainer leaves out the first.  The validation before the first step,
    numbered 0, is told the other way round: "validation", "timing/validation".  Responses and validations are
    written down at once, before the checkpoint, so that a checkpoint never stands without them.

    Args:
        logger: what `setup` made; it gets every call, with our numbers of the step added to prefix "train".
        job: the run.
        context: where progress is told and the wish to stop arrives.
        plan: what is trained in which step.
        config: NeMo-RL's live MasterConfig.
        drain_train: rows scored in training since the last call, as `samples.Sample.to_row` without `sample`.
        drain_validation: the same of validation.
        on_sign: called whenever NeMo-RL tells something.
        settle: see `Stopping`.
    """

    def __init__(
        self,
        logger: Any,
        *,
        job: Job,
        context: RankContext,
        plan: DataPlan,
        config: Any,
        drain_train: Drain,
        drain_validation: Drain,
        on_sign: Callable[[], None] = lambda: None,
        settle: Callable[[], None] | None = None,
    ) -> None:
        self._logger, self._on_sign = logger, on_sign
        self._job = job
        self._context = context
        self._plan = plan
        self._drain_train = drain_train
        self._drain_validation = drain_validation
        self._stopping = Stopping(context, config.checkpointing, last_step=plan.steps, settle=settle)
        self._folder = RunFolder(job.run_dir, write=True)
        self._group_size = job.recipe.grpo.num_generations_per_prompt
        self._groups = Groups(self._group_size)
        self._asynchronous = job.recipe.grpo.async_grpo.enabled
        self._oldest = job.recipe.grpo.async_grpo.max_trajectory_age_steps + 1  # one more, as slack
        self._done = 0
        self._failure: Exception | None = None
        self._seen = _Seen()

    def __getattr__(self, name: str) -> Any:
        if name == "_logger":  # not there yet: while being copied, say
            raise AttributeError(name)
        return getattr(self._logger, name)

    def start(self, done: int) -> None:
        """Begin after step `done`, with the records cut back to it (see `resume.prepare`).

        Raises:
            UserError: The ledger says that the steps so far trained other problems than planned.
        """
        self._done = done
        self._check_ledger()
        self._context.beat("start", done, total=self._plan.steps)

    def log_metrics(
        self,
        metrics: Mapping[str, Any],
        step: int,
        prefix: str | None = "",
        step_metric: str | None = None,
        step_finished: bool = False,
    ) -> None:
        """Log to NeMo-RL's backends, and record.

        Raises:
            LedgerBroken: The step trains other problems than planned.
            UserError: The disk is full.
            StopTraining: The run was asked to stop and is at a step to do so.
        """
        self._on_sign()
        if self._failure is not None:  # swallowed by the asynchronous trainer's first validation
            raise self._failure
        try:
            logged = self._recorded(metrics, step, prefix)
            self._logger.log_metrics(logged, step, prefix, step_metric, step_finished)
            if step_finished:
                self._finish_step(step, metrics)
        except Exception as error:
            # The asynchronous trainer prints exceptions and returns; `finish` raises this one again.
            self._failure = self._failure or error
            raise
        if step_finished:
            self._stopping.after(step)

    def log_batched_dict_as_jsonl(self, to_log: Mapping[str, Any], filename: str) -> None:
        """Log to NeMo-RL's file what there is one of for each response.

        Numbers for each token are left out: 2,048 responses of 4,000 tokens make 0.7 GB of text a step.  The
        asynchronous trainer says here only which responses a step trains.
        """
        if self._asynchronous and filename.startswith("train_data_step"):
            self._seen.trained = to_log.get("content")
        kept = {name: values for name, values in to_log.items() if name not in PER_TOKEN}
        self._logger.log_batched_dict_as_jsonl(kept, filename)

    def finish(self) -> None:
        """To be called when the trainer has returned: make sure that it did all of its work.

        Raises:
            Exception: What went wrong while recording and NeMo-RL kept to itself.
            StopTraining: The trainer ended early at a saved step, as checkpointing.checkpoint_must_save_by wants.
            RuntimeError: It ended early for any other reason.
            UserError: The ledger is not as planned.
        """
        if self._failure is not None:
            raise self._failure
        self._check_ledger()
        if self._done >= self._plan.steps:
            return
        if self._job.recipe.checkpointing.checkpoint_must_save_by is not None:
            raise StopTraining(self._done)
        raise RuntimeError(
            f"NeMo-RL's trainer ended after step {self._done} of {self._plan.steps}; the log says why"
        )

    def _recorded(self, metrics: Mapping[str, Any], step: int, prefix: str | None) -> Mapping[str, Any]:
        """Take what belongs in our records; the metrics that go on to NeMo-RL's backends."""
        if prefix == "train":
            self._collect(step, final="loss" in metrics)
            if "loss" in metrics:
                self._seen.told = metrics
                return {**metrics, **tracked(self._seen.responses)}
        elif prefix == "timing/validation" and step > 0:  # that before the first step is part of none
            self._seen.validate_s = metrics.get("total_validation_time")
        elif prefix == "validation" and metrics:
            self._validated(step)
        return metrics

    def _collect(self, step: int, *, final: bool) -> None:
        """Take the step's responses from the environments and write them down, once."""
        self._groups.add(self._drain_train(), step=step)
        if self._seen.rows is not None or (self._asynchronous and not final):
            return
        if self._asynchronous:
            contents = self._seen.trained
            rows = self._groups.take() if contents is None else self._groups.take_trained(contents)
            # Scored up to step n, by weights no newer than n, a row is trained in step n + age + 1 at the latest.
            self._groups.forget(before=step - self._oldest)
            epoch, problems = self._plan.ledger.epoch_of(step), problems_of(rows, self._group_size)
            planned = LedgerRow(step, epoch, tuple(problems))
        else:
            planned = ledger_row(self._plan.ledger, step, self._plan.problem_ids)
            rows = self._groups.take_step(planned)
        self._folder.write_responses(step, rollouts=rows, ledger_row=planned.to_json())
        self._seen.rows = rows
        whole = len(rows) == len(self._seen.trained or rows)  # else NeMo-RL's own means say more
        self._seen.responses = response_metrics(rows, group_size=self._group_size) if rows and whole else {}

    def _validated(self, step: int) -> None:
        limit = self._job.limit
        rows = self._drain_validation()
        if not rows:
            raise RuntimeError(f"no response was scored in the validation of step {step}")
        self._seen.validation = validation_row(rows, limit=limit, round_limit=limit)
        self._folder.write_validation(step, self._seen.validation)
        if step == 0:
            self._context.beat("validate", step, validation=self._seen.validation)
            self._seen = _Seen()

    def _finish_step(self, step: int, timers: Mapping[str, Any]) -> None:
        """Write the step's row, once nothing more is told of it."""
        seen = self._seen
        batch = self._plan.prompts_per_step * self._group_size
        updates = -(-batch // self._job.recipe.policy.train_global_batch_size)
        row = metrics_row(
            step, limit=self._job.limit, responses=seen.responses, told=seen.told, updates=updates
        )
        tokens = sum(r["response_tokens"] for r in seen.rows) if seen.rows else None
        row["timing"] = timing(timers, validate_s=seen.validate_s, tokens=tokens)
        self._folder.write_metrics(step, row)
        self._context.beat("step", step, row=row, total=self._plan.steps, validation=seen.validation)
        self._done, self._seen = step, _Seen()

    def _check_ledger(self) -> None:
        """Prove from ledger.jsonl that every problem was trained as often as planned."""
        path = self._job.run_dir / LEDGER
        if not self._asynchronous and path.exists():
            verify_ledger(read_ledger(path), self._plan.ledger, self._plan.problem_ids)
