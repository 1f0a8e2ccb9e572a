"""`thinkprune plan --build`: every rank's real module beside the closed form of `costs`, which must be the same."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from checkpoints_tools.model_config import ModelConfig
from checkpoints_tools.weight_map import padded_vocab_size
from nemo_thinkprune.costs.buffers import Buffer, Reduction, stage_buffer
from nemo_thinkprune.costs.shards import Split, layers_of_stage, split_of, stage_parameters, stage_shapes
from nemo_thinkprune.costs.training_state import EngineName, Precision, precision_of, reduction_of
from nemo_thinkprune.plan.plan import NOT_COUNTED
from nemo_thinkprune.recipe.checks_layout import layout_problems
from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.local_support import RESTRICTIONS
from nemo_thinkprune.recipe.schema import Recipe
from nemo_thinkprune.recipe.support import refused
from nemo_thinkprune.reporting.table import render

if TYPE_CHECKING:
    from nemo_thinkprune.plan.built_rank import BuiltRank

PROGRESS_S = 2.0
_NOT_BUILT = (*NOT_COUNTED, "policy.megatron_cfg.optimizer.optimizer")


class BuildMismatch(Exception):
    """The built modules are not what the closed form says: a fault of this program, not of the recipe."""


@dataclass(frozen=True, slots=True)
class BuiltStage:
    """What was built for one pipeline stage; all its ranks are equal but for `optimizer_elements`.

    `formula` is the closed form of `parameters`. `optimizer_elements` are those of the data-parallel rank with the
    most. Bytes are of one rank.
    """

    stage: int
    layers: range
    ranks: int
    parameters: int
    formula: int
    weight_bytes: int
    gradient_elements: int
    gradient_bytes: int
    optimizer_elements: int


@dataclass(frozen=True, slots=True)
class Expected:
    """The closed form of one stage."""

    layers: range
    shapes: dict[str, tuple[int, ...]]
    parameters: int
    buffer: Buffer
    shards: int
    precision: Precision


def build_and_compare(
    recipe: Recipe, model: ModelConfig, *, engine: EngineName = "nemo-rl", say: Callable[[str], None]
) -> list[BuiltStage]:
    """Build all ranks that train, one after the other, and compare each with the closed form; one row per stage.

    Gradients are reduced and optimizer state is shared as `engine` does it. `say` gets a line of progress every few
    seconds.

    Raises:
        UserError: The layout does not divide, or the recipe asks for what is not built here.
        BuildMismatch: A rank differs from the closed form; the message names rank and tensor.
    """
    refuse_unbuildable(recipe, model)
    split = split_of(recipe)
    expected = [
        expected_stage(model, split, stage, recipe=recipe, engine=engine) for stage in range(split.pp)
    ]
    ranks = _built(recipe, model, split, reduction=reduction_of(recipe, engine=engine), say=say)
    for rank in ranks:
        if fault := next(rank_faults(rank, expected[rank.pp_rank]), None):
            raise BuildMismatch(f"{rank}: {fault}")
    if fault := next(world_faults(ranks, model, split), None):
        raise BuildMismatch(fault)
    return [_row(stage, ranks, expected[stage]) for stage in range(split.pp)]


def expected_stage(
    model: ModelConfig, split: Split, stage: int, *, recipe: Recipe, engine: EngineName = "nemo-rl"
) -> Expected:
    """The closed form of one stage; raises UserError as `stage_shapes`."""
    reduction, shapes = reduction_of(recipe, engine=engine), stage_shapes(model, split, stage)
    return Expected(
        layers=layers_of_stage(model, split, stage),
        shapes=shapes,
        parameters=stage_parameters(model, split, stage),
        buffer=stage_buffer(shapes, model, split, stage, reduction),
        shards=split.shards if reduction.distributed else 1,
        precision=precision_of(recipe, engine=engine),
    )


def table(stages: Sequence[BuiltStage]) -> str:
    """What was built, one row per stage, and that every rank is equal to the closed form."""
    head = (
        "stage",
        "layers",
        "ranks",
        "parameters",
        "closed form",
        "weights",
        "gradient buffer",
        "optimizer share",
    )
    rows = [
        (
            str(stage.stage),
            _numbers(stage.layers),
            str(stage.ranks),
            f"{stage.parameters:,}",
            f"{stage.formula:,}",
            f"{stage.weight_bytes:,} B",
            f"{stage.gradient_bytes:,} B",
            f"{stage.optimizer_elements:,}",
        )
        for stage in stages
    ]
    ranks = sum(stage.ranks for stage in stages)
    closing = (
        f"{ranks} of {ranks} ranks equal the closed form: layers, shapes, parameters, bytes, buffers, shares"
    )
    return f"{render(head, rows)}\n{closing}"


def stage_values(stages: Sequence[BuiltStage]) -> list[dict[str, int]]:
    """What was built as JSON values, one object a stage; bytes and counts are of one rank."""
    return [
        {
            "stage": stage.stage,
            "first_layer": stage.layers.start,
            "layers": len(stage.layers),
            "ranks": stage.ranks,
            "parameters": stage.parameters,
            "closed_form_parameters": stage.formula,
            "weight_bytes": stage.weight_bytes,
            "gradient_buffer_elements": stage.gradient_elements,
            "gradient_buffer_bytes": stage.gradient_bytes,
            "optimizer_elements": stage.optimizer_elements,
        }
        for stage in stages
    ]


def refuse_unbuildable(recipe: Recipe, model: ModelConfig) -> None:
    """Refuse a layout that does not divide, and settings with other modules than those of a dense model.

    Raises:
        UserError: listing every problem.
    """
    problems = layout_problems(
        recipe, heads=model.num_heads, kv_heads=model.num_kv_heads, layers=model.num_layers
    )
    rules = [rule for rule in RESTRICTIONS if rule.path in _NOT_BUILT]
    problems += refused(recipe, rules, who="plan --build")
    if problems:
        listed = "\n".join(f"  {problem}" for problem in problems)
        raise UserError(f"the recipe's ranks cannot be built:\n{listed}")


def rank_faults(rank: BuiltRank, expected: Expected) -> Iterator[str]:
    """How a built rank differs from the closed form of its stage."""
    if rank.layers != tuple(expected.layers):
        yield f"layers {_numbers(rank.layers)} were built, {_numbers(expected.layers)} expected"
    for name in [*expected.shapes, *rank.shapes]:
        built, wanted = rank.shapes.get(name), expected.shapes.get(name)
        if built != wanted:
            yield f"{name}: {built or 'nothing'} was built, {wanted or 'nothing'} expected"
    if list(rank.shapes) != list(expected.shapes):
        yield "its tensors stand in another order"
    owned = expected.buffer.owned(expected.shards)[rank.dp_rank % expected.shards]
    precision = expected.precision
    for what, built_count, wanted_count in (
        ("parameters", rank.parameters, expected.parameters),
        ("bytes of weights", rank.weight_bytes, expected.parameters * precision.weight),
        ("elements of the gradient buffer", rank.gradient_elements, expected.buffer.elements),
        ("bytes of the gradient buffer", rank.gradient_bytes, expected.buffer.elements * precision.gradient),
        ("elements of the optimizer's share", rank.optimizer_elements, owned),
    ):
        if built_count != wanted_count:
            yield f"{what}: {built_count:,} were built, {wanted_count:,} expected"


def world_faults(ranks: Sequence[BuiltRank], model: ModelConfig, split: Split) -> Iterator[str]:
    """What is wrong with all ranks together: places, layers and rows of the vocabulary, each exactly once."""
    places = {(r.pp_rank, r.dp_rank, r.tp_rank) for r in ranks}
    if len(places) != len(ranks) or len(ranks) != split.world:
        yield f"{len(ranks)} ranks were built at {len(places)} places, {split.world} expected"
    by_copy: dict[tuple[int, int], list[BuiltRank]] = {}
    for rank in ranks:
        by_copy.setdefault((rank.dp_rank, rank.tp_rank), []).append(rank)
    for (dp_rank, tp_rank), stages in by_copy.items():
        placed = [layer for stage in sorted(stages, key=lambda r: r.pp_rank) for layer in stage.layers]
        if placed != list(range(model.num_layers)):
            yield f"data rank {dp_rank}, tensor rank {tp_rank}: layers {_numbers(placed)} over all stages"
    for dp_rank in range(split.shards):
        rows = sorted(
            (r.vocabulary for r in ranks if r.dp_rank == dp_rank and r.vocabulary), key=lambda v: v[0]
        )
        whole = rows and rows[0].start == 0 and rows[-1].stop == padded_vocab_size(model.vocab_size, split.tp)
        if not whole or any(a.stop != b.start for a, b in pairwise(rows)):
            yield f"data rank {dp_rank}: the embedding's rows are {rows}"


def _built(
    recipe: Recipe,
    model: ModelConfig,
    split: Split,
    *,
    reduction: Reduction,
    say: Callable[[str], None],
) -> list[BuiltRank]:
    built: list[BuiltRank] = []
    say(f"building {split.world} ranks on the meta device: {_layout(split)}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from nemo_thinkprune.plan.built_rank import built_rank, meta_device
        from nemo_thinkprune.training.session import model_options

        options = model_options(recipe)
        began = told = time.monotonic()
        with meta_device() as device:
            for rank in range(split.world):
                try:
                    built.append(
                        built_rank(model, split, rank, options=options, reduction=reduction, device=device)
                    )
                except AssertionError as error:
                    raise UserError(f"Megatron-Core does not build rank {rank}: {error}") from error
                if time.monotonic() - told > PROGRESS_S:
                    told = time.monotonic()
                    say(f"built {rank + 1} of {split.world} ranks in {told - began:.0f} s")
    return built


def _row(stage: int, ranks: Sequence[BuiltRank], expected: Expected) -> BuiltStage:
    mine = [rank for rank in ranks if rank.pp_rank == stage]
    return BuiltStage(
        stage=stage,
        layers=expected.layers,
        ranks=len(mine),
        parameters=mine[0].parameters,
        formula=expected.parameters,
        weight_bytes=mine[0].weight_bytes,
        gradient_elements=mine[0].gradient_elements,
        gradient_bytes=mine[0].gradient_bytes,
        optimizer_elements=max(rank.optimizer_elements for rank in mine),
    )


def _layout(split: Split) -> str:
    parts = {"TP": split.tp, "PP": split.pp, "CP": split.cp, "DP": split.dp}
    return ", ".join(f"{name} {size}" for name, size in parts.items() if size > 1 or name != "CP")


def _numbers(layers: Sequence[int]) -> str:
    if layers and list(layers) == list(range(layers[0], layers[-1] + 1)):
        return f"{layers[0]}..{layers[-1]}"
    return ", ".join(map(str, layers)) or "none"
