"""NeMo-RL's checkpoint manager, writing beside the weights what makes a checkpoint usable by itself."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nemo_rl.utils.checkpoint import CheckpointManager

from checkpoints_tools.hf_folder import carried_files
from checkpoints_tools.torch_dist.folders import RUN_TOKENIZER_FOLDER
from nemo_thinkprune.recipe.load import to_dict
from nemo_thinkprune.training.job import Job


class _RecipeDump:
    """What NeMo-RL writes as config.yaml: the recipe, so that a checkpoint says the same on either engine."""

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values

    def model_dump(self) -> dict[str, Any]:
        """The recipe's values."""
        return self._values


class RunCheckpoints(CheckpointManager):
    """As NeMo-RL's, with the recipe as config.yaml, and the tokenizer and config.json of the model beside."""

    def __init__(self, config: Mapping[str, Any], job: Job) -> None:
        super().__init__(config)
        self._job = job

    def init_tmp_checkpoint(
        self, step: int, training_info: Mapping[str, Any], run_config: Any = None
    ) -> Path:
        """Begin tmp_step_N; what an earlier attempt left in it is removed first."""
        shutil.rmtree(Path(self.checkpoint_dir) / f"tmp_step_{step}", ignore_errors=True)
        info = {**training_info, "step": step, "limit": self._job.limit, "model": self._job.model}
        path = Path(super().init_tmp_checkpoint(step, info, _RecipeDump(to_dict(self._job.recipe))))
        tokenizer = path / RUN_TOKENIZER_FOLDER
        tokenizer.mkdir(parents=True, exist_ok=True)
        for file in carried_files(Path(self._job.model)):
            shutil.copyfile(file, tokenizer / file.name)
        return path
