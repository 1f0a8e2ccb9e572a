from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.tiny_runs import make_root

from nemo_thinkprune.recipe.load import recipe_from_dict, with_values
from nemo_thinkprune.recipe.schema import Recipe
from nemo_thinkprune.training.job import Job


@pytest.fixture(scope="session")
def tiny_recipe() -> Recipe:
    return recipe_from_dict(
        {
            "policy": {"model_name": "model"},
            "data": {"train": {"data_path": "train.jsonl"}},
            "grpo": {},
            "thinkprune": {"limits": [8]},
        }
    )


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """A recipe of three steps with its task and a tiny model that was warmed up on it for seconds."""
    return make_root(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def make_job(tmp_path: Path, tiny_recipe: Recipe) -> Callable[..., Job]:
    def make(*, world: int = 2, stall_s: float = 60.0, run_dir: Path | None = None, **fields: Any) -> Job:
        values = {"cluster.gpus_per_node": world, "thinkprune.runtime.stall_timeout_s": stall_s}
        recipe = with_values(tiny_recipe, values)
        return Job(
            **{
                "kind": "train",
                "run_dir": run_dir or tmp_path / "run",
                "recipe": recipe,
                "model": "model",
                "limit": 8,
                **fields,
            }
        )

    return make
