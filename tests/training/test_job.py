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
    for fields in (
        {},
        {"kind": "eval", "eval": spec},
        {"init_weights": Path("a/b")},
        {"engine": "nemo-rl", "on_cpu": True},
    ):
        job = make_job(**fields)
        assert Job.from_json(job.to_json()) == job


def test_a_job_written_before_there_were_two_engines_is_one_of_the_local_engine(make_job: MakeJob) -> None:
    data = json.loads(make_job().to_json())
    del data["engine"], data["on_cpu"]
    assert Job.from_json(json.dumps(data)) == make_job()


def test_a_run_may_go_on_with_the_other_engine(make_job: MakeJob) -> None:
    record_settings(make_job(engine="nemo-rl", on_cpu=True))
    record_settings(make_job())
    assert Job.read(make_job().run_dir / "JOB.json").engine == "local"


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


@pytest.mark.parametrize("content", [b"a: [1", b"- 1", b"\xff\xfe\x00", b"", b"a: !!python/name:os.system"])
def test_a_damaged_config_is_a_user_error_that_names_the_file(make_job: MakeJob, content: bytes) -> None:
    job = make_job()
    record_settings(job)
    (job.run_dir / "config.yaml").write_bytes(content)
    with pytest.raises(UserError, match=r"config\.yaml is damaged"):
        record_settings(job)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe\x00"])
def test_a_damaged_job_file_is_a_user_error_that_names_the_file(make_job: MakeJob, content: bytes) -> None:
    job = make_job()
    record_settings(job)
    (job.run_dir / "JOB.json").write_bytes(content)
    with pytest.raises(UserError, match=r"JOB\.json cannot be read"):
        record_settings(job)


def test_a_warm_up_that_missed_its_target_goes_on_as_its_message_advises(make_job: MakeJob) -> None:
    recipe = with_values(make_job().recipe, {"thinkprune.warmup": {"data_path": "sft.jsonl"}})
    record_settings(make_job(kind="warmup", recipe=recipe))
    advised = {"thinkprune.warmup.max_extensions": 5, "thinkprune.warmup.target_accuracy": 0.5}
    record_settings(make_job(kind="warmup", recipe=with_values(recipe, advised)))
    with pytest.raises(UserError, match=r"thinkprune\.warmup\.steps: was 700, is 900"):
        record_settings(make_job(kind="warmup", recipe=with_values(recipe, {"thinkprune.warmup.steps": 900})))
