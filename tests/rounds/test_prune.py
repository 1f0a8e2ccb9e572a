import json
import os
import shutil
import signal
from functools import partial

import fake_engine
import pytest

from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.load import with_values
from nemo_thinkprune.rounds import prune as prune_module
from nemo_thinkprune.rounds.lane import LaneFailed
from nemo_thinkprune.rounds.plan import Engine, check_prune
from nemo_thinkprune.rounds.prune import prune
from nemo_thinkprune.training.stopping import stop_signals
from nemo_thinkprune.training.supervisor import JobStopped

ONE_LANE = Engine(run=fake_engine.run)
WEIGHTS = "{}/checkpoints/step_6/policy/weights/iter_0000000"


@pytest.fixture
def root(tmp_path, monkeypatch):
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def go(root, engine=ONE_LANE, **thinkprune):
    said = []
    summary = prune(fake_engine.recipe(root, **thinkprune), root, engine=engine, say=said.append)
    return summary, "\n".join(said)


def names(root, kind):
    return [call["name"] for call in fake_engine.calls(root) if call["kind"] == kind]


def test_rounds_follow_one_another_from_what_the_rule_selected(root):
    summary, said = go(root)
    trained = [c for c in fake_engine.calls(root) if c["kind"] == "train"]
    assert [(c["name"], c["limit"], c["init"]) for c in trained[:3]] == [
        ("round_1_L128", 128, None),
        ("round_2_L96", 96, WEIGHTS.format("round_1_L128")),
        ("round_3_L64", 64, WEIGHTS.format("round_2_L96")),
    ]
    assert [r["selected_step"] for r in summary["rounds"]] == [6, 6, 6]
    assert summary["status"] == "finished"
    assert json.loads((root / "summary.json").read_text()) == summary
    assert (root / "report.html").exists() and (root / "environment.json").exists()
    assert "L = 64" in said and "thinkprune eval" in said
    assert "thinkprune-ckpt release run/round_3_L64/checkpoints/step_6 OUT" in said


def test_the_control_trains_as_many_steps_at_the_long_limit_from_the_same_start(root):
    summary, _ = go(root)
    (control,) = [c for c in fake_engine.calls(root) if c["name"] == "control" and c["kind"] == "train"]
    assert (control["limit"], control["steps"], control["init"]) == (240, 3 * fake_engine.STEPS, None)
    (measured,) = [c for c in fake_engine.calls(root) if c["name"] == "control" and c["kind"] == "eval"]
    assert measured["init"] == "control/checkpoints/step_18/policy/weights/iter_0000000"
    assert summary["control"]["mean_tokens"] > summary["rounds"][-1]["mean_tokens"]


def test_a_control_limit_of_its_own(root):
    go(root, control={"enabled": True, "limit": 128})
    assert [
        c["limit"] for c in fake_engine.calls(root) if c["name"] == "control" and c["kind"] == "train"
    ] == [128]


def test_without_control_none_is_run(root):
    summary, _ = go(root, control={"enabled": False})
    assert summary["control"] is None and summary["status"] == "finished"
    assert "control" not in names(root, "train")


def test_all_models_are_measured_on_the_reporting_set_at_all_limits(root):
    go(root)
    assert names(root, "eval") == ["round_1_L128", "round_2_L96", "round_3_L64", "start", "control"]
    measured = json.loads((root / "eval" / "round_2_L96.json").read_text())
    assert measured["limit"] == 240 and set(measured["accuracy_at"]) == {"128", "96", "64"}


def test_a_finished_run_repeats_nothing(root):
    first, _ = go(root)
    before = len(fake_engine.calls(root))
    again, said = go(root)
    assert len([c for c in fake_engine.calls(root)[before:]]) == 0
    assert again == first and "shortest mean response" in said


@pytest.mark.parametrize("job", ["round_1_L128", "round_2_L96", "round_3_L64", "control", "start"])
def test_a_run_interrupted_in_any_job_ends_as_if_it_had_not_been(root, job):
    expected, _ = go(root)
    for path in root.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (root / f"crash_{job}").touch()
    with pytest.raises(fake_engine.Crash):
        go(root)
    resumed, _ = go(root)
    assert resumed == expected
    done = [name for name in names(root, "train") if name != job]
    assert len(done) == len(set(done))  # no finished job was run a second time


def test_a_crash_before_the_decision_was_written_decides_the_same(root):
    expected, _ = go(root)
    record = (root / "round_2_L96" / "decision.json").read_text()
    (root / "round_2_L96" / "decision.json").unlink()
    again, _ = go(root)
    assert again == expected and (root / "round_2_L96" / "decision.json").read_text() == record


def test_a_damaged_checkpoint_is_named_and_passed_over(root):
    (root / "crash_round_2_L96").touch()  # round 1 is done and round 2 has begun
    with pytest.raises(fake_engine.Crash):
        go(root)
    (root / "round_1_L128" / "decision.json").unlink()
    shutil.rmtree(root / "round_2_L96")
    torn = (
        root / "round_1_L128" / "checkpoints" / "step_6" / "policy" / "weights" / "iter_0000000" / ".metadata"
    )
    torn.unlink()
    summary, said = go(root)
    assert "step_6 is not whole and is passed over" in said and ".metadata is missing" in said
    assert [r["selected_step"] for r in summary["rounds"]] == [3, 6, 6]


def run_and_ask_to_stop(root, name, number=signal.SIGTERM):
    """An engine whose job `name` ends its work, be it its last step, while somebody asks to stop."""

    def run(job):
        fake_engine.run(job)
        if job.run_dir.name == name and not (root / "asked").exists():
            (root / "asked").touch()
            os.kill(os.getpid(), number)

    return Engine(run=run)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_stop_asked_for_during_a_job_starts_no_other(root, number):
    before = signal.getsignal(number)
    with pytest.raises(JobStopped, match="the same command goes on"):
        go(root, run_and_ask_to_stop(root, "round_1_L128", number))
    assert [call["name"] for call in fake_engine.calls(root)] == ["round_1_L128"]
    assert signal.getsignal(number) is before
    assert go(root)[0]["status"] == "finished"
    assert (
        names(root, "train").count("round_1_L128") == 2
    )  # handed over again; the engine resumed it at its end


def test_a_stop_asked_for_between_two_jobs_lets_the_lane_save_and_starts_nothing(root, monkeypatch):
    select = prune_module.select

    def select_and_be_asked(*args, **keys):
        os.kill(os.getpid(), signal.SIGTERM)
        return select(*args, **keys)

    monkeypatch.setattr(prune_module, "select", select_and_be_asked)
    with pytest.raises(JobStopped):
        go(root, Engine(run=fake_engine.run, beside=waits_to_be_stopped))
    assert (root / "round_1_L128" / "decision.json").exists()
    assert names(root, "train") == ["round_1_L128"]
    assert (root / "lane_saved").exists() or not (root / "lane_begun").exists()


def waits_to_be_stopped(job) -> None:
    root = job.run_dir.parents[1]
    with stop_signals() as stop:
        (root / "lane_begun").touch()
        assert stop.wait(60)
        (root / "lane_saved").touch()
    raise JobStopped(None)


def test_a_stop_during_an_evaluation_repeats_only_that(root):
    def run(job):
        if job.kind == "eval":
            os.kill(os.getpid(), signal.SIGTERM)
            raise JobStopped(None)
        fake_engine.run(job)

    with pytest.raises(JobStopped):
        go(root, Engine(run=run))
    assert names(root, "train") == ["round_1_L128"]
    go(root)
    assert names(root, "train").count("round_1_L128") == 1


def damage(file):
    data = bytearray(file.read_bytes())
    data[0] ^= 1
    file.write_bytes(data)


def test_weights_that_were_damaged_after_the_decision_are_refused_by_name(root):
    (root / "crash_round_2_L96").touch()
    with pytest.raises(fake_engine.Crash):
        go(root)
    damage(root / WEIGHTS.format("round_1_L128") / ".metadata")
    with pytest.raises(UserError, match=r"step_6 is not whole and is not used: .*\.metadata has changed"):
        go(root)


def test_a_checkpoint_without_manifest_counts_only_when_nemo_rl_wrote_it(root):
    def unsealed(job, **info):
        fake_engine.run(job)
        for manifest in job.run_dir.glob("checkpoints/*/manifest.json"):
            manifest.unlink()
            step = int(manifest.parent.name.removeprefix("step_"))
            (manifest.parent / "training_info.json").write_text(json.dumps({"step": step, **info}))

    with pytest.raises(UserError, match="no checkpoint"):
        go(root, Engine(run=unsealed), control={"enabled": False})
    shutil.rmtree(root)
    root.mkdir()
    assert go(root, Engine(run=partial(unsealed, total_steps=6)))[0]["status"] == "finished"


def test_a_damaged_config_of_the_run_is_named(root):
    go(root, control={"enabled": False})
    (root / "config.yaml").write_text("a: [1")
    with pytest.raises(UserError, match=r"config\.yaml is damaged"):
        go(root, control={"enabled": False})


def test_a_run_folder_below_a_file_is_a_user_error(root):
    (root / "file").touch()
    with pytest.raises(UserError, match="cannot make the folder"):
        go(root / "file" / "run")


def test_a_round_that_keeps_its_start_hands_it_on(root):
    (root / "accuracy.json").write_text("0.5")
    summary, said = go(root, selection={"max_relative_drop": 0.1, "baseline": "first_round"})
    trained = [c for c in fake_engine.calls(root) if c["kind"] == "train" and c["name"].startswith("round")]
    assert [c["init"] for c in trained] == [None, None, None]
    assert all(r["kept_start"] and r["selected_step"] is None for r in summary["rounds"])
    assert "start is kept" in said and "(start kept)" in said


def test_the_baseline_is_the_first_round_or_the_rounds_own_start(root):
    go(root, selection={"baseline": "round_start"})
    record = json.loads((root / "round_3_L64" / "decision.json").read_text())
    assert record["baseline_from"] == "round_3_L64" and record["baseline"]["accuracy_at_limit"] == 0.8
    shutil.rmtree(root)
    root.mkdir()
    go(root, selection={"baseline": "first_round"})
    record = json.loads((root / "round_3_L64" / "decision.json").read_text())
    assert record["baseline_from"] == "round_1_L128"
    assert record["baseline"]["accuracy_at_limit"] is None  # it was measured within another limit


def test_the_control_runs_in_a_process_of_its_own(root):
    summary, _ = go(root, Engine(run=fake_engine.run, beside=fake_engine.run_slowly))
    rounds = {c["pid"] for c in fake_engine.calls(root) if c["name"].startswith("round")}
    beside = {c["pid"] for c in fake_engine.calls(root) if c["name"] in ("control", "start")}
    assert len(rounds) == len(beside) == 1 and rounds != beside
    assert summary["status"] == "finished"


def test_a_failure_beside_the_rounds_ends_the_run_with_its_cause(root):
    (root / "crash_control").touch()
    engine = Engine(run=fake_engine.run, beside=fake_engine.run)
    with pytest.raises(LaneFailed, match=r"rank 0 of control died.*beside\.log"):
        go(root, engine)
    assert go(root, engine)[0]["status"] == "finished"


def test_a_users_mistake_beside_the_rounds_stays_a_user_error(root):
    with pytest.raises(UserError, match=r"^the tokenizer has no end token$"):
        go(root, Engine(run=fake_engine.run, beside=fake_engine.refuse))


def test_without_reporting_set_rounds_run_and_the_summary_says_what_is_missing(root):
    summary, said = go(root, report_data=None, control={"enabled": False})
    assert names(root, "eval") == [] and len(names(root, "train")) == 3
    assert summary["status"] == "partial" and "evaluation of the start" in summary["missing"]
    assert "Nothing has been evaluated yet" in said


def test_another_recipe_is_refused_with_the_keys_that_differ(root):
    go(root)
    changed = with_values(fake_engine.recipe(root), {"grpo.seed": 7})
    with pytest.raises(UserError, match=r"grpo\.seed: was 42, is 7"):
        prune(changed, root, engine=ONE_LANE, say=print)
    with pytest.raises(UserError, match="round_1_L128/ is not a round"):
        go(root, limits=[100, 50])


def test_more_limits_continue_a_finished_run(root):
    go(root, limits=[128, 96])
    summary, _ = go(root, limits=[128, 96, 64])
    assert [r["limit"] for r in summary["rounds"]] == [128, 96, 64]
    assert names(root, "train").count("round_2_L96") == 1


def test_lost_weights_are_named(root):
    go(root)
    shutil.rmtree(root / "round_2_L96" / "checkpoints")
    shutil.rmtree(root / "round_3_L64")
    with pytest.raises(UserError, match=r"round_2_L96/checkpoints/step_6.*is gone"):
        go(root)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"checkpointing.enabled": False}, "checkpointing.enabled"),
        ({"checkpointing.keep_top_k": 2}, "keep_top_k"),
        ({"checkpointing.checkpoint_dir": "/all"}, "must be relative"),
        ({"data.validation": None}, "data.validation"),
        ({"grpo.val_at_start": False}, "val_at_start"),
        ({"grpo.val_period": 0, "grpo.val_at_end": False}, "val_period is 0"),
        ({"thinkprune.report_data": "selection.jsonl"}, "problems of their own"),
        ({"thinkprune.report_data": "train.jsonl"}, "problems of their own"),
    ],
)
def test_recipes_that_rounds_cannot_use_are_refused(root, values, message):
    with pytest.raises(UserError, match=message):
        check_prune(with_values(fake_engine.recipe(root), values))
