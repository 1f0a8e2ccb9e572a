"""What the ranks of one job are told: a file that the parent writes and every worker reads."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.files import write_atomic
from nemo_thinkprune.recipe.load import recipe_from_dict, to_dict
from nemo_thinkprune.recipe.schema import Recipe

JOB_FILE = "JOB.json"
_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalSpec:
    """What an eval job samples: `samples` responses of at most `limit` tokens to each problem of `data_path`.

    `out` is the summary's path, ending in .json; the rows stand beside it as .jsonl.  `limits` are budgets in
    tokens at which accuracy is reported too, as if the responses had been cut there.
    """

    data_path: str
    limit: int
    samples: int
    temperature: float
    top_p: float
    top_k: int | None
    out: Path
    limits: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One call of an engine.

    `model` is an HF folder (config.json, tokenizer, weights).  `init_weights`, a torch_dist folder
    (``step_N/policy/weights/iter_0000000``), replaces its weights.  `limit` is the longest response in
    training rollouts, in tokens.  `on_cpu`: NeMo-RL with this package's workers for CPUs instead of its own.
    """

    kind: Literal["train", "eval", "warmup"]
    run_dir: Path
    recipe: Recipe
    model: str
    limit: int
    init_weights: Path | None = None
    eval: EvalSpec | None = None
    engine: Literal["local", "nemo-rl"] = "local"
    on_cpu: bool = False

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.recipe.world_size

    def to_json(self) -> str:
        """The job as JSON text."""
        return json.dumps(
            {"version": _VERSION, **job_settings(self), "recipe": to_dict(self.recipe)}, indent=1
        )

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the job to a file, whole or not at all."""
        write_atomic(path, self.to_json() + "\n")

    @classmethod
    def from_json(cls, text: str) -> Job:
        """The job in a text made by `to_json`.

        Raises:
            UserError: The text is not such a job, or its recipe is not valid here.
        """
        try:
            data = json.loads(text)
            if data.pop("version") != _VERSION:
                raise UserError("the job was written by another version of this program: start it again")
            recipe = recipe_from_dict(data.pop("recipe"), name="the job's recipe")
            return cls(recipe=recipe, **_paths(data))
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise UserError(f"not a job file: {error!r}") from error

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Job:
        """The job in a file; raises as `from_json`, naming the file."""
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except (UserError, UnicodeDecodeError) as error:
            raise UserError(f"{path} cannot be read: {error}") from error


def job_settings(job: Job) -> dict[str, Any]:
    """Everything of a job but its recipe, as JSON values."""
    spec = job.eval
    return {
        "kind": job.kind,
        "run_dir": str(job.run_dir),
        "model": job.model,
        "limit": job.limit,
        "init_weights": None if job.init_weights is None else str(job.init_weights),
        "eval": None
        if spec is None
        else {
            "data_path": spec.data_path,
            "limit": spec.limit,
            "samples": spec.samples,
            "temperature": spec.temperature,
            "top_p": spec.top_p,
            "top_k": spec.top_k,
            "out": str(spec.out),
            "limits": list(spec.limits),
        },
        "engine": job.engine,
        "on_cpu": job.on_cpu,
    }


def _paths(data: dict[str, Any]) -> dict[str, Any]:
    """JSON values back to the types of the fields; a field that an older file lacks keeps its default."""
    spec, init = data["eval"], data["init_weights"]
    return {
        **data,
        "run_dir": Path(data["run_dir"]),
        "init_weights": None if init is None else Path(init),
        "eval": None
        if spec is None
        else EvalSpec(**{**spec, "out": Path(spec["out"]), "limits": tuple(spec["limits"])}),
    }
