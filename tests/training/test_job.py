from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.load import with_values
from nemo_thinkprune.training.job import EvalSpec, Job
from nemo_thinkprune.training.run_settings import changed_settings, record_settings

MakeJob = Callable[..., Job]


def test_a_job_is_the_same_after_a_way_through_json(make_job: MakeJob) -> None:
    spec = EvalSpec(
        data_path="d.jsonl",
        limit=64,
        samples=4,
        temperature=0.6,
        top_p=0.95,
        top_k=None,
        out=Path("o"),
        limits=(8, 16),
    )
    for fields in ({}, {"kind": "eval", "eval": spec}, {"init_weights": Path("a/b")}):
        job = make_job(**fields)
        assert Job.from_json(job.to_json()) == job


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 1}', '{"version": 0, "recipe": {}}'])
def test_a_text_that_is_no_job_is_refused(text: str) -> None:
    with pytest.raises(UserError):
        Job.from_json(text)


def test_a_job_with_an_unknown_field_is_refused(make_job: MakeJob) -> None:
    with pytest.raises(UserError, match="surprise"):
        Job.from_json(json.dumps(json.loads(make_job().to_json()) | {"surprise": 1}))


def test_a_run_goes_on_with_settings_that_do_not_change_results(make_job: MakeJob) -> None:
    job = make_job()
    record_settings(job)
    values = {"grpo.max_num_steps": 7, "logger.wandb_enabled": True, "checkpointing.save_period": 3}
    record_settings(make_job(recipe=with_values(job.recipe, values)))
    assert "max_num_steps: 7" in (job.run_dir / "config.yaml").read_text()


def test_a_run_does_not_go_on_with_other_settings_and_every_one_is_named(make_job: MakeJob) -> None:
    job = make_job()
    record_settings(job)
    before = (job.run_dir / "config.yaml").read_bytes()
    changed = with_values(job.recipe, {"grpo.seed": 1, "checkpointing.checkpoint_dir": "elsewhere"})
    with pytest.raises(UserError) as caught:
        record_settings(make_job(recipe=changed, limit=9))
    message = str(caught.value)
    assert "grpo.seed: was 42, is 1" in message
    assert "checkpointing.checkpoint_dir: was checkpoints, is elsewhere" in message
    assert "limit: was 8, is 9" in message
    assert (job.run_dir / "config.yaml").read_bytes() == before


def test_keys_that_come_or_go_are_changes() -> None:
    assert changed_settings({"a": {"b": 1}}, {"a": {"c": 1}, "logger": {"x": 1}}) == [
        "a.b: was 1, is nothing",
        "a.c: was nothing, is 1",
    ]
