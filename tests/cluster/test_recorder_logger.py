"""The recorder around NeMo-RL's own logger, and NeMo-RL's own checkpoint manager beside `prepare`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from nemo_loop import save
from support.nemo_rl import require_nemo_rl
from test_recorder import LIMIT, Run

from nemo_thinkprune.cluster.resume import prepare


@pytest.fixture(scope="module", autouse=True)
def _nemo_rl() -> None:
    require_nemo_rl()


def settings(folder: Path) -> dict[str, Any]:
    off = dict.fromkeys(("wandb_enabled", "swanlab_enabled", "mlflow_enabled", "monitor_gpus"), False)
    return {**off, "log_dir": str(folder), "tensorboard_enabled": True, "tensorboard": {}}


def test_tensorboard_shows_our_numbers_beside_nemo_rls(tmp_path: Path) -> None:
    from nemo_rl.utils.logger import Logger
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = Run(tmp_path / "run")
    run.begin()
    logger = Logger(settings(tmp_path / "logs"))
    run.recorder._logger = logger
    run.rollout(1)
    run.recorder.log_metrics({"loss": 0.5}, 1, prefix="train")
    run.recorder.log_metrics({"total_step_time": 2.0}, 1, prefix="timing/train", step_finished=True)
    run.recorder.log_batched_dict_as_jsonl({"content": ["a", "b"]}, "train_data_step1.jsonl")
    logger.loggers[0].writer.flush()
    shown = EventAccumulator(str(tmp_path / "logs" / "tensorboard"))
    shown.Reload()
    values = {tag: shown.Scalars(tag)[0].value for tag in shown.Tags()["scalars"]}
    assert values["train/loss"] == 0.5 and values["timing/train/total_step_time"] == 2.0
    assert values["train/reward/correct"] == pytest.approx(run.steps()[0]["accuracy"])
    assert "train/response_tokens_p99" in values
    assert len((tmp_path / "logs" / "train_data_step1.jsonl").read_text().splitlines()) == 2


def test_nemo_rl_resumes_from_the_step_that_prepare_tells(tmp_path: Path) -> None:
    from nemo_rl.utils.checkpoint import CheckpointManager

    folder = tmp_path / "checkpoints"
    manager = CheckpointManager(
        {
            "enabled": True, "checkpoint_dir": str(folder), "metric_name": None, "higher_is_better": True,
            "keep_top_k": None, "save_optimizer": True, "save_period": 1,
        }
    )  # fmt: skip

    def resumed() -> tuple[int, str | None]:
        step = prepare(tmp_path, folder, limit=LIMIT, group_size=4, note=lambda text: None)
        latest = manager.get_latest_checkpoint_path()
        return step, None if latest is None else Path(latest).name

    assert resumed() == (0, None)
    for step in (9, 10):
        save(folder, step)
    assert resumed() == (10, "step_10")
    (folder / "step_10" / "policy/weights/iter_0000000/metadata.json").unlink()
    (Path(manager.init_tmp_checkpoint(11, {"total_steps": 11})) / "stale").touch()
    assert resumed() == (9, "step_9")
    aside = Path(manager.init_tmp_checkpoint(11, {"total_steps": 11}))
    assert [path.name for path in aside.iterdir()] == ["training_info.json"]
    manager.finalize_checkpoint(aside)
    assert (folder / "step_11").is_dir()
