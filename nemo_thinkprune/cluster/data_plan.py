"""What a NeMo-RL run trains and measures, decided before it starts, and how NeMo-RL's configuration says it.

Needs neither NeMo-RL nor Ray: the driver plans with it, and cluster/dataset.py reads the entries made here.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from nemo_thinkprune.cluster.names import DATASET, PROCESSOR, TRAINING_TASK, VALIDATION_TASK
from nemo_thinkprune.data.ledger import Ledger
from nemo_thinkprune.data.recipe_prompts import (
    ProblemSet,
    length_hint,
    problem_sets,
    training_prompts,
    validation_prompts,
)
from nemo_thinkprune.data.tokenizer import load_tokenizer
from nemo_thinkprune.recipe.data_source import is_hub_id
from nemo_thinkprune.recipe.files import is_folder
from nemo_thinkprune.recipe.schema import Recipe

# The asynchronous trainer loses batches (it draws one too many, or was killed) and waits for ever at the end of
# the data; rows are computed when they are read, so these cost nothing.
SPARE_STEPS = 1000


@dataclass(frozen=True, slots=True)
class DataPlan:
    """The data of a run.

    `problem_ids` are the training problems that fit, in load order, as the ledger numbers them; `steps` is the
    last step; `notes` tell of problems left out; `longest_prompt` is in tokens, over training and validation.
    """

    ledger: Ledger
    steps: int
    problem_ids: tuple[str, ...]
    validation_problems: int
    validation_rows: int
    longest_prompt: int
    notes: tuple[str, ...]

    @property
    def n_problems(self) -> int:
        """Number of training problems that fit."""
        return self.ledger.n_problems

    @property
    def prompts_per_step(self) -> int:
        """Problems of one step."""
        return self.ledger.prompts_per_step


def data_plan(recipe: Recipe, *, tokenizer: str, limit: int) -> DataPlan:
    """Load and encode the data as the local engine does, and count.

    Args:
        recipe: what to train.
        tokenizer: the model's folder or hub id.
        limit: longest response in tokens, which the prompt names.

    Raises:
        UserError: unreadable data, no tokenizer, or too few problems for a step.
    """
    loaded = load_tokenizer(tokenizer)
    train = training_prompts(recipe, loaded, limit=limit)
    validation = validation_prompts(recipe, loaded, limit=limit)
    grpo = recipe.grpo
    ledger = Ledger(len(train.prompts), grpo.num_prompts_per_step, grpo.seed)
    return DataPlan(
        ledger=ledger,
        steps=ledger.last_step(epochs=grpo.max_num_epochs, max_steps=grpo.max_num_steps),
        problem_ids=tuple(prompt.problem.id for prompt in train.prompts),
        validation_problems=len(validation.prompts),
        validation_rows=len(validation.prompts) * recipe.thinkprune.validation.samples,
        longest_prompt=max(len(prompt.token_ids) for prompt in train.prompts + validation.prompts),
        notes=tuple(found.note for found in (train, validation) if found.note is not None),
    )


def training_entry(recipe: Recipe, *, tokenizer: str, limit: int, env_name: str) -> dict[str, Any]:
    """NeMo-RL's `data.train`: the rows of all steps, in the ledger's order (needs data.shuffle = false)."""
    grpo = recipe.grpo
    return {
        **_entry(recipe, "train", tokenizer=tokenizer, limit=limit, env_name=env_name),
        "task_name": TRAINING_TASK,
        "prompts_per_step": grpo.num_prompts_per_step,
        "epochs": grpo.max_num_epochs,
        "max_steps": grpo.max_num_steps,
        "ledger_seed": grpo.seed,
        "spare_steps": SPARE_STEPS if grpo.async_grpo.enabled else 0,
    }


def validation_entry(recipe: Recipe, *, tokenizer: str, limit: int, env_name: str) -> dict[str, Any] | None:
    """NeMo-RL's `data.validation`: each problem as often as it is sampled; None without validation problems."""
    if not recipe.data.validation:
        return None
    return {
        **_entry(recipe, "validation", tokenizer=tokenizer, limit=limit, env_name=env_name),
        "task_name": VALIDATION_TASK,
        "repeats": recipe.thinkprune.validation.samples,
        "max_problems": recipe.grpo.max_val_samples,
    }


def _entry(recipe: Recipe, name: Any, *, tokenizer: str, limit: int, env_name: str) -> dict[str, Any]:
    return {
        "dataset_name": DATASET,
        "processor": PROCESSOR,
        "env_name": env_name,
        "datasets": [_set_entry(one) for one in problem_sets(recipe, name)],
        "prompt_family": recipe.thinkprune.prompt_family,
        "length_hint": length_hint(recipe, limit),
        "tokenizer": _absolute(tokenizer) if is_folder(os.path.expanduser(tokenizer)) else tokenizer,
        "max_input_seq_length": recipe.data.max_input_seq_length,
        # NeMo-RL's own example prompts must not come in through data.default
        "prompt_file": None,
        "system_prompt_file": None,
    }


def _set_entry(one: ProblemSet) -> dict[str, Any]:
    values = {key: getattr(one, key) for key in ProblemSet.__dataclass_fields__}
    values["data_path"] = absolute_data(one.data_path)
    if one.sources is not None:
        values["sources"] = list(one.sources)
    return {key: value for key, value in values.items() if value is not None}


def absolute_data(path_or_hub_id: str) -> str:
    """A path as an absolute one, since NeMo-RL's processes run elsewhere; a hub id as it is."""
    return path_or_hub_id if is_hub_id(path_or_hub_id) else _absolute(path_or_hub_id)


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))
