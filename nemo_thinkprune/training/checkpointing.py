"""Checkpoints of a run in NeMo-RL's layout: every rank writes its shards, rank 0 writes the rest and publishes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch.distributed as dist
import yaml

from checkpoints_tools.errors import CheckpointError
from checkpoints_tools.hf_folder import carried_files
from nemo_thinkprune.costs.disk import checkpoint_bytes, checkpoint_parameters, stored_bytes
from nemo_thinkprune.policy.checkpoint import load_torch_dist, save_bridge_files, save_torch_dist
from nemo_thinkprune.policy.parallel import broadcast_from_main
from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.files import write_atomic
from nemo_thinkprune.recipe.load import to_dict
from nemo_thinkprune.training.checkpoint_files import (
    TRAINING_INFO,
    WEIGHTS,
    check_disk_space,
    newest_valid,
    prune_checkpoints,
    publish,
    remove_stale,
    training_info,
)
from nemo_thinkprune.training.disk import disk_errors
from nemo_thinkprune.training.session import Session


class Checkpointer:
    """Saves and resumes one run."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._settings = session.recipe.checkpointing
        self.folder = session.job.run_dir / self._settings.checkpoint_dir

    def resume(self) -> dict[str, Any]:
        """Load the newest checkpoint that is whole; its training_info.json, with step 0 when there is none.

        One that NeMo-RL wrote will do, although it has no manifest.
        """
        found: str | None = None
        if self.session.layout.is_main:
            self.folder.mkdir(parents=True, exist_ok=True)
            remove_stale(self.folder)
            newest = newest_valid(
                self.folder,
                on_refused=self._refused,
                require_manifest=False,
                pulse=self.session.context.pulse,
            )
            found = str(newest) if newest is not None else None
        found = broadcast_from_main(self.session.layout, found)
        if found is None:
            return {"step": 0}
        path = Path(found)
        step = int(path.name.removeprefix("step_"))
        self.session.beat("resume", step)
        try:
            load_torch_dist(self.session.policy, path / WEIGHTS, with_optimizer=self._settings.save_optimizer)
        except CheckpointError as error:
            raise UserError(str(error)) from error
        return {**training_info(path), "step": step}

    def save(self, step: int, *, validation: dict[str, Any] | None) -> None:
        """Write `step_N`: aside, synced, renamed; collective."""
        session = self.session
        session.beat("save", step)
        final = self.folder / f"step_{step}"
        aside = self.folder / f"tmp_step_{step}"
        if session.layout.is_main:
            shutil.rmtree(aside, ignore_errors=True)
            (aside / WEIGHTS).mkdir(parents=True)
            check_disk_space(self.folder, needed=self._estimated_bytes())
        self._barrier()
        with disk_errors(aside):
            save_torch_dist(
                session.policy, aside / WEIGHTS, iteration=step, with_optimizer=self._settings.save_optimizer
            )
        self._barrier()
        if session.layout.is_main:
            self._write_side_files(aside, step, validation)
            session.beat("rename", step)
            publish(aside, final, pulse=session.context.pulse)
            prune_checkpoints(
                self.folder,
                keep_top_k=self._settings.keep_top_k,
                metric_name=self._settings.metric_name,
                higher_is_better=self._settings.higher_is_better,
            )
        self._barrier()

    def _write_side_files(self, folder: Path, step: int, validation: dict[str, Any] | None) -> None:
        session = self.session
        info = {"step": step, "limit": session.job.limit, "model": session.job.model}
        if validation is not None:
            info |= {"val:accuracy": validation["accuracy"], "val:mean_tokens": validation["mean_tokens"]}
        write_atomic(folder / TRAINING_INFO, json.dumps(info, indent=2) + "\n")
        save_bridge_files(session.policy, folder / WEIGHTS)
        write_atomic(folder / "config.yaml", yaml.safe_dump(to_dict(session.recipe), sort_keys=False))
        # config.json and the tokenizer make the checkpoint usable without the model it came from
        tokenizer = folder / "policy" / "tokenizer"
        tokenizer.mkdir()
        for file in carried_files(Path(session.job.model)):
            shutil.copyfile(file, tokenizer / file.name)

    def _estimated_bytes(self) -> int:
        session = self.session
        parameters = checkpoint_parameters(session.policy.model, tp=session.layout.tp)
        return checkpoint_bytes(parameters, stored_bytes(session.recipe, engine="local"))

    def _refused(self, path: Path, problems: list[str]) -> None:
        note = f"checkpoint {path.name} is not whole and is not used: {'; '.join(problems)}"
        self.session.beat("resume", 0, note=note)

    def _barrier(self) -> None:
        if self.session.layout.world > 1:
            dist.barrier()
