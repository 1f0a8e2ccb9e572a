import math
import sys
import types

import pytest

from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.load import recipe_from_dict
from nemo_thinkprune.reporting.trackers import flatten, log_row, open_trackers, tracked_events

ROW = {
    "step": 3,
    "kl": 0.01,
    "reward_mean": 1,
    "loss": math.nan,
    "note": "text",
    "flag": True,
    "timing": {"step_s": 2.0},
    "validation": {"accuracy": 0.9},
}
SECRET = "0123456789-secret-key"


def recipe(**logger):
    return recipe_from_dict(
        {"policy": {"model_name": "m"}, "data": {"train": [{"data_path": "t.jsonl"}]}, "logger": logger}
    )


class FakeRun:
    def __init__(self):
        self.logged, self.finished = [], False

    def log(self, values, step):
        self.logged.append((step, values))

    def finish(self):
        self.finished = True


@pytest.fixture
def wandb(monkeypatch):
    module = types.ModuleType("wandb")
    module.run, module.asked = FakeRun(), {}
    module.Settings = lambda **options: options

    def init(**options):
        module.asked = options
        return module.run

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    return module


def test_only_finite_numbers_are_sent_under_telling_names():
    assert flatten(ROW) == {
        "train/kl": 0.01, "train/reward_mean": 1.0, "timing/step_s": 2.0, "validation/accuracy": 0.9,
    }  # fmt: skip


def test_without_trackers_nothing_is_opened(tmp_path):
    with open_trackers(recipe(), tmp_path, name="r") as trackers:
        log_row(trackers, ROW)
        assert trackers == []


def test_wandb_is_offline_and_never_sees_the_key_as_data(tmp_path, wandb, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    with open_trackers(recipe(wandb_enabled=True), tmp_path, name="round_1") as trackers:
        log_row(trackers, ROW)
    assert wandb.asked["mode"] == "offline" and wandb.asked["name"] == "round_1"
    assert wandb.asked["config"]["policy"]["model_name"] == "m"
    assert SECRET not in repr(wandb.asked)
    assert wandb.run.logged == [(3, flatten(ROW))] and wandb.run.finished


def test_wandb_online_needs_the_key_in_the_environment(tmp_path, wandb, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    with (
        pytest.raises(UserError, match="WANDB_API_KEY"),
        open_trackers(recipe(wandb_enabled=True), tmp_path, name="r"),
    ):
        pass
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    with open_trackers(recipe(wandb_enabled=True), tmp_path, name="r"):
        assert wandb.asked["mode"] == "online"


def test_trackers_are_closed_when_training_fails(tmp_path, wandb):
    with pytest.raises(RuntimeError), open_trackers(recipe(wandb_enabled=True), tmp_path, name="r"):
        raise RuntimeError
    assert wandb.run.finished


@pytest.mark.parametrize(
    ("key", "module"), [("wandb_enabled", "wandb"), ("tensorboard_enabled", "torch.utils.tensorboard")]
)
def test_a_missing_package_names_the_extra(tmp_path, monkeypatch, key, module):
    monkeypatch.setitem(sys.modules, module, None)  # what an import of a missing package does
    with (
        pytest.raises(UserError, match=rf"logger\.{key}.*nemo-thinkprune\[tracking\]"),
        open_trackers(recipe(**{key: True}), tmp_path, name="r"),
    ):
        pass


def test_tensorboard_gets_each_value_in_the_run_folder(tmp_path, monkeypatch):
    written = []

    class Writer:
        def __init__(self, log_dir):
            self.log_dir = log_dir

        def add_scalar(self, name, value, step):
            written.append((self.log_dir, name, value, step))

        def close(self):
            written.append("closed")

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    with open_trackers(recipe(tensorboard_enabled=True), tmp_path, name="r") as trackers:
        log_row(trackers, {"step": 2, "kl": 0.5})
    assert written == [(str(tmp_path / "tensorboard"), "train/kl", 0.5, 2), "closed"]


def test_events_of_rank_zero_with_a_row_are_mirrored(tmp_path, wandb):
    event = types.SimpleNamespace
    with tracked_events(recipe(wandb_enabled=True), tmp_path, name="r") as listen:
        for found in (
            event(rank=0, row=None, extra={}),
            event(rank=1, row=ROW, extra={}),
            event(rank=0, row={"step": 4, "kl": 1.0}, extra={"validation": None}),
            event(rank=0, row={"step": 5, "kl": 2.0}, extra={"validation": {"accuracy": 0.5}}),
        ):
            listen(found)
    assert wandb.run.logged == [
        (4, {"train/kl": 1.0}),
        (5, {"train/kl": 2.0, "validation/accuracy": 0.5}),
    ]
