"""Checks of the parallel layout, also against the model's config.json when it lies in a local folder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_thinkprune.recipe.derived import padding
from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.files import is_file
from nemo_thinkprune.recipe.local_support import unsupported_in_model
from nemo_thinkprune.recipe.model_source import locate
from nemo_thinkprune.recipe.resources import training_gpus
from nemo_thinkprune.recipe.schema import Recipe


@dataclass(frozen=True, slots=True)
class WorldLayout:
    """Ranks and how they are split; `dp` is what tensor, pipeline and context parallelism leave."""

    world: int
    tp: int
    pp: int
    cp: int

    @property
    def model(self) -> int:
        """Ranks that hold one copy of the model."""
        return self.tp * self.pp * self.cp

    @property
    def dp(self) -> int:
        """Copies of the model, rounded down when the ranks do not divide."""
        return max(1, self.world // self.model)


def training_layout(recipe: Recipe) -> WorldLayout:
    """Return the layout of training; GPUs set aside for generation have no part in it."""
    return world_layout(recipe, world=training_gpus(recipe).count)


def world_layout(recipe: Recipe, *, world: int | None = None) -> WorldLayout:
    """Return the layout that the recipe asks for of `world` ranks; None: of all."""
    megatron = recipe.policy.megatron_cfg
    return WorldLayout(
        world=recipe.world_size if world is None else world,
        tp=megatron.tensor_model_parallel_size,
        pp=megatron.pipeline_model_parallel_size,
        cp=megatron.context_parallel_size,
    )


def check_layout(recipe: Recipe) -> Iterator[str]:
    """Yield a message for each part of the layout that does not divide."""
    layout, grpo, policy = training_layout(recipe), recipe.grpo, recipe.policy
    if problems := list(_ranks(layout, set_aside=recipe.world_size - layout.world)):
        yield from problems
        return
    if grpo.num_prompts_per_step % layout.dp:
        yield (
            f"grpo.num_prompts_per_step = {grpo.num_prompts_per_step} cannot be shared by {layout.dp} "
            "data-parallel ranks; make it a multiple"
        )
    yield from _shares(recipe, layout)
    if policy.megatron_cfg.sequence_parallel and layout.tp == 1:
        yield "policy.megatron_cfg.sequence_parallel needs tensor_model_parallel_size above 1; set false"
    yield from _padding(recipe, layout)
    megatron = policy.megatron_cfg
    ends = (megatron.num_layers_in_first_pipeline_stage, megatron.num_layers_in_last_pipeline_stage)
    if ends != (None, None) and layout.pp == 1:
        yield "num_layers_in_first_pipeline_stage and _last_ need more than one pipeline stage; set null"
    yield from _against_model(recipe, layout)


def _padding(recipe: Recipe, layout: WorldLayout) -> Iterator[str]:
    """Yield a message when padded sequences cannot be shared by the ranks that hold a copy of the model."""
    given = recipe.policy.make_sequence_length_divisible_by
    if given % padding(tensor=layout.tp, context=layout.cp):
        sizes, product = "the tensor parallel size", f"{layout.tp}"
        if layout.cp > 1:
            sizes = "tensor parallel size x 2 x context parallel size ="
            product = f"{layout.tp} x 2 x {layout.cp} = {padding(tensor=layout.tp, context=layout.cp)}"
        yield (
            f"policy.make_sequence_length_divisible_by = {given} is not a multiple of {sizes} {product}; "
            "remove the key"
        )


def _shares(recipe: Recipe, layout: WorldLayout) -> Iterator[str]:
    """Yield a message when an update cannot be shared evenly.

    Micro-batches that are made by their tokens need not divide it: NeMo-RL asserts that only where it splits by
    train_micro_batch_size (BatchedDataDict.make_microbatch_iterator), and the local engine never does.
    """
    policy = recipe.policy
    update, micro = policy.train_global_batch_size, policy.train_micro_batch_size
    by_tokens = policy.sequence_packing.enabled or policy.dynamic_batching.enabled
    if by_tokens and update % layout.dp:
        yield f"policy.train_global_batch_size = {update} is not a multiple of {layout.dp} data-parallel ranks"
    elif not by_tokens and update % (micro * layout.dp):
        yield (
            f"policy.train_global_batch_size = {update} is not a multiple of train_micro_batch_size x "
            f"data-parallel ranks = {micro} x {layout.dp}; enable policy.sequence_packing or make it one"
        )


def _ranks(layout: WorldLayout, *, set_aside: int = 0) -> Iterator[str]:
    if layout.world % layout.model:
        without = f" without the {set_aside} GPUs that generate" if set_aside else ""
        yield (
            f"cluster.num_nodes x gpus_per_node{without} = {layout.world} ranks cannot be divided by tensor x "
            f"pipeline x context parallel size = {layout.tp} x {layout.pp} x {layout.cp} = {layout.model}; "
            f"use a multiple of {layout.model} ranks"
        )


def layout_problems(recipe: Recipe, *, heads: int, kv_heads: int, layers: int) -> list[str]:
    """What of a recipe's layout does not divide for a model that is known by its sizes alone."""
    sizes = {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "num_hidden_layers": layers}
    layout = training_layout(recipe)
    set_aside = recipe.world_size - layout.world
    return list(_ranks(layout, set_aside=set_aside)) or list(_against_config(recipe, layout, sizes))


def check_evaluation(recipe: Recipe, folder: str, *, limit: int) -> None:
    """Check what an evaluation takes from a recipe against the model in `folder`; training keys do not matter.

    Raises:
        UserError: listing every problem: ranks that do not divide, settings that the local engine cannot
            honour, more tokens than the model has positions.
    """
    layout = world_layout(recipe)
    problems = [*_ranks(layout), *unsupported_in_model(recipe)]
    config = _read_config(Path(folder) / "config.json")
    if isinstance(config, str):
        problems.append(config)
    else:
        problems += _against_config(recipe, layout, config)
        positions = _positions(config)
        if positions and limit >= positions:
            problems.append(
                f"--limit {limit}: the model knows {positions} positions (max_position_embeddings) for prompt and "
                "response together; lower it"
            )
    if problems:
        lines = "\n".join(f"  {problem}" for problem in problems)
        raise UserError(f"{folder} cannot be evaluated like this:\n{lines}")


def _read_config(file: Path) -> Mapping[str, Any] | str:
    """Return the content of a config.json, or what is wrong with it."""
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        return f"{file} cannot be read as JSON: {error}"
    return config if isinstance(config, dict) else f"{file} is not a JSON object"


def model_config(recipe: Recipe) -> Mapping[str, Any] | str | None:
    """Return the config.json of the recipe's model, be it a folder or a checkpoint, or what is wrong with it.

    None: the model is on the hub and not known yet.
    """
    try:
        folder = Path(locate(recipe.policy.model_name).folder)
    except UserError as error:
        return f"policy.model_name: {error}"
    return _read_config(folder / "config.json") if is_file(folder / "config.json") else None


def _against_model(recipe: Recipe, layout: WorldLayout) -> Iterator[str]:
    """Yield messages on the recipe's model, where it is known."""
    config = model_config(recipe)
    if config is None:
        return
    if isinstance(config, str):
        yield config
        return
    yield from _against_config(recipe, layout, config)
    positions = _positions(config)
    longest = recipe.data.max_input_seq_length + max(
        recipe.policy.generation.max_new_tokens, recipe.thinkprune.long_limit or 0, *recipe.thinkprune.limits
    )
    if positions and longest > positions:
        yield (
            f"prompt and response may have {longest} tokens, but the model knows {positions} positions "
            "(max_position_embeddings); lower data.max_input_seq_length or the limits"
        )


def _positions(config: Mapping[str, Any]) -> int | None:
    """Return the positions that a model knows; None when it says that they are stretched."""
    return None if config.get("rope_scaling") else _size(config, "max_position_embeddings")


def _against_config(recipe: Recipe, layout: WorldLayout, config: Mapping[str, Any]) -> Iterator[str]:
    """Yield messages on heads and layers that do not divide."""
    heads = _size(config, "num_attention_heads")
    for key, count in (
        ("num_attention_heads", heads),
        ("num_key_value_heads", _size(config, "num_key_value_heads")),
    ):
        if count and count % layout.tp:
            yield (
                f"tensor_model_parallel_size = {layout.tp} does not divide the model's {key} = {count}; "
                f"use one of {_divisors(count)}"
            )
    yield from _stages(recipe, layout, _size(config, "num_hidden_layers"))


def _stages(recipe: Recipe, layout: WorldLayout, layers: int | None) -> Iterator[str]:
    """Yield messages on how the model's layers are split into pipeline stages."""
    megatron = recipe.policy.megatron_cfg
    first, last = megatron.num_layers_in_first_pipeline_stage, megatron.num_layers_in_last_pipeline_stage
    given = [count for count in (first, last) if count is not None]
    if layers and layout.pp > 1:
        rest, stages = layers - sum(given), layout.pp - len(given)
        fits = rest == 0 if stages == 0 else rest > 0 and rest % stages == 0
        if not fits:
            hint = "" if given else f"; use one of {_divisors(layers)} or num_layers_in_first_pipeline_stage"
            yield f"{rest} of the model's {layers} layers do not divide over {stages} pipeline stages{hint}"


def _size(config: Mapping[str, Any], key: str) -> int | None:
    value = config.get(key)
    return value if isinstance(value, int) and value > 0 else None


def _divisors(number: int, most: int = 16) -> str:
    return ", ".join(str(size) for size in range(1, most + 1) if number % size == 0)
