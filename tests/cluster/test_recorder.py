"""The records of a NeMo-RL run: as the local engine's, step by step, whatever interrupts it."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from nemo_loop import FakeEnvironment, FakeLogger, Killed, Loop, save, train_metrics

from nemo_thinkprune.cluster.data_plan import DataPlan
from nemo_thinkprune.cluster.recorder import Recorder
from nemo_thinkprune.cluster.resume import prepare
from nemo_thinkprune.cluster.scored import LedgerBroken
from nemo_thinkprune.cluster.stopping import StopTraining
from nemo_thinkprune.data.ledger import Ledger, read_ledger, verify_ledger
from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.load import recipe_from_dict
from nemo_thinkprune.reporting.run_files import read_train, rollout_rows
from nemo_thinkprune.rounds.select import Measured
from nemo_thinkprune.training.checkpoint_files import publish
from nemo_thinkprune.training.job import Job
from nemo_thinkprune.training.worker import RankContext

STEPS, PROMPTS, GROUP, LIMIT = 5, 2, 4, 12
PROBLEMS = tuple(f"problem {i}" for i in range(5))
LEDGER = Ledger(len(PROBLEMS), PROMPTS, 42)


class Run:
    """A run folder with a fake NeMo-RL at work in it; `attempt` is one life of the driver."""

    def __init__(self, folder: Path, **grpo: Any) -> None:
        self.folder = folder
        self.checkpoints = folder / "checkpoints"
        self.checkpoints.mkdir(parents=True)
        self.grpo = {"num_prompts_per_step": PROMPTS, "num_generations_per_prompt": GROUP, **grpo}
        self.train, self.validation = FakeEnvironment(), FakeEnvironment()
        self.notes: list[str] = []

    def job(self, **checkpointing: Any) -> Job:
        recipe = recipe_from_dict(
            {
                "policy": {"model_name": "model"},
                "data": {"train": {"data_path": "train.jsonl"}},
                "grpo": self.grpo,
                "checkpointing": checkpointing,
                "thinkprune": {"limits": [LIMIT]},
            }
        )
        return Job(kind="train", run_dir=self.folder, recipe=recipe, model="model", limit=LIMIT)

    def begin(self, **checkpointing: Any) -> int:
        self.train, self.validation = FakeEnvironment(), FakeEnvironment()  # actors die with the driver
        self.logger = FakeLogger()
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        self.pipe = os.fdopen(reader, "rb")
        self.context = RankContext(rank=0, world=1, rendezvous=Path("none"), pipe=writer)
        plan = DataPlan(
            ledger=LEDGER, steps=STEPS, problem_ids=PROBLEMS, validation_problems=3, validation_rows=6,
            longest_prompt=5, notes=(),
        )  # fmt: skip
        self.settings = {"enabled": True, "save_period": 2, "checkpoint_dir": str(self.checkpoints)}
        done = prepare(self.folder, self.checkpoints, limit=LIMIT, group_size=GROUP, note=self.notes.append)
        self.recorder = Recorder(
            self.logger,
            job=self.job(**checkpointing),
            context=self.context,
            plan=plan,
            config=SimpleNamespace(checkpointing=self.settings),
            drain_train=lambda: self.train.drain(),
            drain_validation=lambda: self.validation.drain(),
        )
        self.recorder.start(done)
        return done

    def attempt(self, at: Callable[[int, str], None] = lambda step, moment: None) -> int:
        done = self.begin()
        loop = Loop(self.recorder, self.settings, steps=STEPS, validate_every=2)
        loop.run(done, rollout=self.rollout, validate=self.validate, at=at)
        self.recorder.finish()
        return done

    def rollout(self, step: int) -> None:
        for index in LEDGER.take(step):
            for number in range(GROUP):
                tokens = step + index + number
                self.train.score(
                    PROBLEMS[index], number, tokens=tokens, cut=tokens >= LIMIT, right=number > 0
                )

    def validate(self, step: int) -> None:
        for problem in range(3):
            for number in range(2):
                self.validation.score(f"v{problem}", number, tokens=20 - step + problem, right=number == 0)

    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]

    def steps(self) -> list[dict[str, Any]]:
        return [row for row in self.rows() if "validation" not in row]

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.pipe.read().splitlines()]

    def records(self) -> dict[str, Any]:
        names = ["metrics.jsonl", "ledger.jsonl", *(f"rollouts/step_{n}.jsonl" for n in range(1, STEPS + 1))]
        return {name: (self.folder / name).read_bytes() for name in names}


@pytest.fixture
def whole(tmp_path: Path) -> Run:
    run = Run(tmp_path / "whole")
    assert run.attempt() == 0
    return run


def test_a_step_row_has_the_local_engines_keys(whole: Run) -> None:
    row = whole.steps()[2]
    rows = [json.loads(x) for x in (whole.folder / "rollouts/step_3.jsonl").read_text().splitlines()]
    timing = row.pop("timing")
    lengths = [r["response_tokens"] for r in rows]
    assert row["reward_mean"] == row["accuracy"] == sum(r["reason"] == "correct" for r in rows) / 8
    assert row["response_tokens_mean"] == sum(lengths) / 8
    assert row["mixed_group_share"] == 1.0 and sum(row["reasons"].values()) == 8
    local = (
        "step limit reward_mean accuracy response_tokens_mean response_tokens_p50 response_tokens_p90 "
        "response_tokens_p99 truncated_share mixed_group_share reasons kl loss grad_norm lr updates trained_tokens"
    )
    assert set(local.split()) == row.keys() - {"gen_kl_error", "token_mult_prob_error"}
    assert (row["kl"], row["loss"], row["grad_norm"], row["trained_tokens"]) == (0.125, 1.5, 1.5, 40)
    assert timing == {
        "generate_s": 4.0, "refit_s": 1.0, "logprobs_s": 2.0, "update_s": 3.0, "step_s": 10.0,
        "tokens_per_s": sum(lengths) / 10,
    }  # fmt: skip
    saved = whole.steps()[3]["timing"]
    assert (saved["save_s"], saved["validate_s"], saved["step_s"]) == (5.0, 6.0, 10.0)


def test_the_validation_before_the_first_step_is_no_part_of_its_time(whole: Run) -> None:
    first = whole.steps()[0]["timing"]
    assert "validate_s" not in first and first["step_s"] == 10.0


def test_rollouts_are_in_the_ledgers_order_whatever_order_they_came_in(whole: Run, tmp_path: Path) -> None:
    run = Run(tmp_path / "shuffled")
    in_order = run.rollout

    def shuffled(step: int) -> None:
        in_order(step)
        rows = run.train.drain()
        first = {row["problem_id"]: [r for r in rows if r["problem_id"] == row["problem_id"]] for row in rows}
        queues = list(first.values())
        random.Random(step).shuffle(queues)
        run.train._rows = [row for pair in zip(*queues, strict=True) for row in pair]

    run.rollout = shuffled  # type: ignore[method-assign]
    run.attempt()
    assert run.records() == whole.records()


def test_the_ledger_proves_itself_and_the_report_reads_it_all(whole: Run) -> None:
    counts = verify_ledger(read_ledger(whole.folder / "ledger.jsonl"), LEDGER, PROBLEMS)
    assert sum(counts.values()) == STEPS * PROMPTS
    files = read_train(whole.folder)
    assert [row["step"] for row in files.steps] == [1, 2, 3, 4, 5]
    assert [row["step"] for row in files.validation] == [0, 2, 4]
    step, rows = rollout_rows(whole.folder, last=True)
    assert step == STEPS and [row["sample"] for row in rows] == [0, 1, 2, 3] * PROMPTS


def test_validation_counts_every_response(whole: Run) -> None:
    row = next(row for row in whole.rows() if row["step"] == 2 and "validation" in row)
    measured = Measured.from_row(row)
    assert (measured.accuracy, measured.mean_tokens, measured.limit) == (0.5, 19.0, LIMIT)
    assert row["validation"]["problems"] == 3 and row["validation"]["accuracy_at_limit"] == 0.0


def test_progress_is_told_as_the_local_engine_tells_it(whole: Run) -> None:
    beats = [event for event in whole.events() if event["kind"] == "beat"]
    assert (beats[0]["phase"], beats[0]["step"], beats[0]["total"]) == ("start", 0, STEPS)
    told = [beat for beat in beats if beat["phase"] == "step"]
    assert [beat["row"]["step"] for beat in told] == [1, 2, 3, 4, 5]
    assert [bool(beat["extra"]["validation"]) for beat in told] == [False, True, False, True, False]


def test_nemo_rls_backends_get_everything_and_our_numbers(whole: Run) -> None:
    calls = whole.logger.logged
    assert [prefix for prefix, step, _, _ in calls if step == 2] == [
        "train", "train/advantages/histogram", "timing/validation", "validation", "train", "performance",
        "timing/train",
    ]  # fmt: skip
    final = [metrics for prefix, step, metrics, _ in calls if prefix == "train" and step == 2][-1]
    shares = {key: value for key, value in final.items() if key.startswith("reward/")}
    assert (
        sum(shares.values()) == pytest.approx(1) and shares["reward/correct"] == whole.steps()[1]["accuracy"]
    )
    assert final["response_tokens_p90"] == whole.steps()[1]["response_tokens_p90"] and final["loss"] == 1.0
    assert [finished for _, step, _, finished in calls if step == 2][-1] is True
    assert whole.recorder.base_log_dir == "logs"


@pytest.mark.parametrize("moment", ["rollout", "train", "saved", "logged"])
@pytest.mark.parametrize("step", [1, 2, 3, 5])
def test_a_killed_run_goes_on_as_if_nothing_had_been(
    whole: Run, tmp_path: Path, step: int, moment: str
) -> None:
    run = Run(tmp_path / "killed")

    def at(now: int, reached: str) -> None:
        if (now, reached) == (step, moment):
            raise Killed

    with pytest.raises(Killed):
        run.attempt(at)
    saved = step if moment in ("saved", "logged") and step in (2, 5) else step - 1 - (step - 1) % 2
    assert run.attempt() == saved
    if moment == "saved" and saved == step:  # what only memory knew of that step is gone, the rest is there
        row = next(row for row in run.steps() if row["step"] == step)
        kept = next(row for row in whole.steps() if row["step"] == step)
        assert row == {key: kept[key] for key in row} and "reasons" in row and "loss" not in row
        assert [r["step"] for r in run.rows()] == [r["step"] for r in whole.rows()]
        assert read_train(run.folder).validation == read_train(whole.folder).validation
        assert {**run.records(), "metrics.jsonl": b""} == {**whole.records(), "metrics.jsonl": b""}
    else:
        assert run.records() == whole.records()


def test_a_stopped_run_goes_on_as_if_nothing_had_been(whole: Run, tmp_path: Path) -> None:
    run = Run(tmp_path / "stopped")
    with pytest.raises(StopTraining) as stop:
        run.attempt(
            lambda step, moment: run.context.request_stop() if (step, moment) == (3, "train") else None
        )
    assert stop.value.step == 3 and len(run.steps()) == 3
    assert run.attempt() == 3
    without = [{**row, "timing": None} for row in run.rows()]  # step 3 was saved this time
    assert without == [{**row, "timing": None} for row in whole.rows()]


@pytest.mark.parametrize("kind", ["other", "fewer", "more"])
def test_other_problems_than_planned_end_the_run_before_they_are_trained(tmp_path: Path, kind: str) -> None:
    run = Run(tmp_path / "run")
    run.begin()
    run.rollout(1)
    if kind == "other":
        run.train.drain()
        run.rollout(2)
    elif kind == "fewer":
        run.train._rows.pop()
    else:
        run.train.score(PROBLEMS[LEDGER.take(1)[0]], 9, tokens=3)
    with pytest.raises(
        LedgerBroken, match=r"step 1 does not train the problems .* problem \d: \d instead of"
    ):
        run.recorder.log_metrics({"mean_gen_tokens_per_sample": 7.5}, 1, prefix="train")
    assert not (run.folder / "ledger.jsonl").exists()


def test_a_ledger_of_other_data_is_refused_at_the_start(whole: Run) -> None:
    path = whole.folder / "ledger.jsonl"
    path.write_text(path.read_text().replace(PROBLEMS[0], "another"))
    with pytest.raises(UserError, match="is not the plan"):
        whole.begin()


def test_the_asynchronous_trainer_records_whole_groups_as_they_are_scored(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", async_grpo={"enabled": True})
    run.begin()

    def rollout(step: int) -> None:
        if step == 1:  # a whole group, and one that is not complete before step 2
            for number in range(GROUP + 2):
                run.train.score("a" if number < GROUP else "b", number, tokens=number)
        elif step == 2:
            for number in range(2):
                run.train.score("b", number, tokens=number)

    Loop(run.recorder, run.settings, steps=STEPS, validate_every=9).run_asynchronously(rollout=rollout)
    run.recorder.finish()
    assert [row.problem_ids for row in read_ledger(run.folder / "ledger.jsonl")] == [
        ("a",),
        ("b",),
        (),
        (),
        (),
    ]
    first, second, third, *_ = run.steps()
    assert first["accuracy"] == second["accuracy"] == 1.0
    assert (third["reward_mean"], third["response_tokens_mean"]) == (0.5, 7.5)  # NeMo-RL's own
    assert third["timing"] == {"wait_s": 2.0, "step_s": 8.0}


def test_responses_that_the_asynchronous_trainer_discards_are_forgotten(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", async_grpo={"enabled": True, "max_trajectory_age_steps": 1})
    run.begin()
    scored = {1: "stale", 2: "late"}
    trained = {4: "late", 5: "stale"}  # what came in with step 2 is trained in step 4 at the latest
    for step in range(1, STEPS + 1):
        for number in range(GROUP if step in scored else 0):
            run.train.score(scored[step], number, tokens=step)
        contents = [
            [f"question of {trained[step]}", f"answer {number}"] for number in range(GROUP) if step in trained
        ]
        run.recorder.log_batched_dict_as_jsonl({"content": contents}, f"train_data_step{step}.jsonl")
        run.recorder.log_metrics(train_metrics(step), step, prefix="train")
        run.recorder.log_metrics({"total_step_time": 1.0}, step, prefix="timing/train", step_finished=True)
    ledger = read_ledger(run.folder / "ledger.jsonl")
    assert [row.problem_ids for row in ledger] == [(), (), (), ("late",), ()]


def test_an_error_that_nemo_rl_swallows_still_ends_the_run(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", async_grpo={"enabled": True})
    run.begin()

    def dead(step: int) -> None:
        run.train.drain = lambda: 1 / 0  # type: ignore[method-assign, assignment, return-value]

    Loop(run.recorder, run.settings, steps=STEPS, validate_every=9).run_asynchronously(rollout=dead)
    with pytest.raises(ZeroDivisionError):
        run.recorder.finish()


def test_a_trainer_that_just_returns_has_not_finished(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.begin()
    with pytest.raises(RuntimeError, match=f"ended after step 0 of {STEPS}"):
        run.recorder.finish()
    run.begin(checkpoint_must_save_by="00:04:00:00")
    with pytest.raises(StopTraining):
        run.recorder.finish()


def test_a_loss_that_is_no_number_is_seen(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.begin()
    run.rollout(1)
    run.recorder.log_metrics({"loss": float("nan"), "grad_norm": float("inf")}, 1, prefix="train")
    run.recorder.log_metrics({"total_step_time": 1.0}, 1, prefix="timing/train", step_finished=True)
    row = run.steps()[0]
    assert row["loss"] is None and row["grad_norm"] is None and row["accuracy"] == 0.75


def test_a_validation_without_responses_is_an_error(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.begin()
    run.recorder.log_metrics({}, 0, prefix="validation")  # no validation set
    with pytest.raises(RuntimeError, match="no response was scored in the validation of step 0"):
        run.recorder.log_metrics({"accuracy": 0.0}, 0, prefix="validation")


def test_half_written_checkpoints_are_out_of_the_way(whole: Run) -> None:
    (whole.checkpoints / "tmp_step_6").mkdir()
    (whole.checkpoints / "tmp_step_6" / "stale").touch()
    (whole.checkpoints / "step_5" / "train_dataloader.pt").unlink()
    assert whole.begin() == 4
    names = {path.name for path in whole.checkpoints.iterdir()}
    assert names == {"step_2", "step_4", "damaged_step_5"}
    assert whole.notes == [
        "checkpoint step_5 is not whole and is now damaged_step_5: train_dataloader.pt is missing"
    ]
    assert [row["step"] for row in whole.steps()] == [1, 2, 3, 4]
    save(whole.checkpoints, 5)
    (whole.checkpoints / "step_5" / "training_info.json").write_text("")
    assert whole.begin() == 4
    assert (whole.checkpoints / "damaged_step_5_2").is_dir()


def test_a_checkpoint_of_the_local_engine_is_refused(whole: Run) -> None:
    newest = whole.checkpoints / "step_5"
    (newest / "training_info.json").write_text('{"step": 5, "limit": 12}')
    with pytest.raises(UserError, match=r"step_5 was written by the local engine.*another --run-dir"):
        whole.begin()
    newest.rename(whole.checkpoints / "tmp_step_5")
    publish(whole.checkpoints / "tmp_step_5", newest)
    with pytest.raises(
        UserError, match=r"policy\.pretrained_checkpoint\.path=.*/step_5/policy/weights/iter_0"
    ):
        whole.begin()
    assert len(whole.steps()) == STEPS
