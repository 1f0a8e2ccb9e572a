"""What a recipe needs from the machines: GPUs, files, and room for its checkpoints."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from checkpoints_tools.errors import CheckpointError
from checkpoints_tools.hf_config import read_hf_config
from checkpoints_tools.weight_map import weight_map
from nemo_thinkprune.costs.disk import Disk, round_disk
from nemo_thinkprune.costs.known_models import config_folders, known_models
from nemo_thinkprune.costs.shards import model_parameters
from nemo_thinkprune.costs.training_state import EngineName
from nemo_thinkprune.recipe.data_source import is_hub_id
from nemo_thinkprune.recipe.schema import Recipe
from nemo_thinkprune.recipe.support import datasets

_OF_ROUNDS = "thinkprune.report_data"
_IN_NAME = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)[bB](?![a-zA-Z])")


@dataclass(frozen=True, slots=True)
class Needs:
    """What is to be looked for.

    `gpus` a node: 0 for a run on CPUs, None when it takes what there is; `paths` are files and folders by the
    names of their keys, of which this run does without those in `unread`; `hub` are names that only the hub has;
    `is_cluster`: NeMo-RL's own GPU workers.
    """

    engine: str = "local"
    is_cluster: bool = False
    nodes: int = 1
    gpus: int | None = None
    paths: Mapping[str, str] = field(default_factory=dict)
    unread: tuple[str, ...] = ()
    hub: tuple[str, ...] = ()
    disk: Disk = field(default_factory=Disk)
    wandb: bool = False


def needs_of(
    recipe: Recipe, *, engine: str, on_cpu: bool, rounds: bool, environment: Mapping[str, str]
) -> Needs:
    """What a run of `recipe` needs; looks at files, downloads nothing."""
    named, unread = dict(_named(recipe)), () if rounds else (_OF_ROUNDS,)
    cluster = engine == "nemo-rl" and not on_cpu
    runs_on_cpu = on_cpu or (engine == "local" and recipe.thinkprune.runtime.device == "cpu")
    optional = engine == "local" and recipe.thinkprune.runtime.device == "auto"
    return Needs(
        engine=engine,
        is_cluster=cluster,
        nodes=recipe.cluster.num_nodes,
        gpus=0 if runs_on_cpu else None if optional else recipe.cluster.gpus_per_node,
        paths={key: _absolute(path) for key, path in named.items() if not is_hub_id(path)},
        unread=unread,
        hub=tuple(path for key, path in named.items() if is_hub_id(path) and key not in unread),
        disk=disk_of(
            recipe, rounds=rounds, environment=environment, engine="nemo-rl" if cluster else "local"
        ),
        wandb=recipe.logger.wandb_enabled,
    )


def disk_of(
    recipe: Recipe, *, rounds: bool, environment: Mapping[str, str], engine: EngineName | None = None
) -> Disk:
    """Room for the checkpoints, by `costs.disk`; `engine` None: of the engine that stores more."""
    parameters, source = parameter_count(recipe.policy.model_name, environment)
    return round_disk(recipe, parameters=parameters, rounds=rounds, source=source, engine=engine)


def parameter_count(model: str, environment: Mapping[str, str]) -> tuple[int, str]:
    """Parameters of a model and where that is from; 0 when nothing tells.

    Its config.json here or in the hub's cache, else the architecture that is built in, else its name.
    """
    for folder in config_folders(model, environment):
        try:
            return weight_map(read_hf_config(folder)).parameters, f"{folder}/config.json"
        except (CheckpointError, OSError, ValueError):
            continue
    if (config := known_models().get(model)) is not None:
        return model_parameters(config), f"the architecture of {model} that is built in"
    if match := _IN_NAME.search(model.rstrip("/").rpartition("/")[2]):
        return round(float(match[1]) * 1e9), f"the name {model}"
    return 0, f"nothing here tells how large {model} is"


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))


def _named(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Key and value of everything that a run reads."""
    yield "policy.model_name", recipe.policy.model_name
    for path, dataset in datasets(recipe):
        if dataset.data_path is not None:
            yield f"{path}.data_path", dataset.data_path
    if recipe.thinkprune.report_data is not None:
        yield _OF_ROUNDS, recipe.thinkprune.report_data
    if recipe.policy.pretrained_checkpoint is not None:
        yield "policy.pretrained_checkpoint.path", recipe.policy.pretrained_checkpoint.path
