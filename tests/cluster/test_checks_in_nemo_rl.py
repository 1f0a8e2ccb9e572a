"""What the checks say NeMo-RL or Megatron-Core refuses is what they refuse; and what passes, they take."""

import ast
from typing import get_args

import pytest
from support.nemo_rl import require_nemo_rl
from support.nemo_rl_recipes import MEGATRON, problems, recipe

from nemo_thinkprune.cluster.find import SUPPORTED
from nemo_thinkprune.recipe.checks_megatron import VLLM_KEYWORDS
from nemo_thinkprune.recipe.derived import padding
from nemo_thinkprune.recipe.section_policy import PackingAlgorithm


@pytest.fixture(scope="module")
def found():
    return require_nemo_rl()


def test_keywords_of_vllm_are_those_that_nemo_rl_writes_out(found):
    file = found.root / "nemo_rl" / "models" / "generation" / "vllm" / "vllm_worker.py"
    calls = [
        node.value
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Call)
        and [getattr(target, "id", None) for target in node.targets] == ["llm_kwargs"]
    ]
    written = {keyword.arg for call in calls for keyword in call.keywords} - {None}
    ours = set(VLLM_KEYWORDS) - {"distributed_executor_backend"}
    assert written <= ours
    assert written == ours or f"v{found.version}" != SUPPORTED


def test_packing_algorithms(found):
    from nemo_rl.data.packing.algorithms import PackingAlgorithm as Theirs

    assert set(get_args(PackingAlgorithm)) == {item.name.lower() for item in Theirs}


@pytest.mark.parametrize("given", ["00:03:45:00", "1:2:3:4", "03:45:00", "4h", ""])
def test_the_time_to_save_by(found, given):
    from nemo_rl.utils.timer import convert_to_seconds

    try:
        convert_to_seconds(given)
        read = True
    except ValueError:
        read = False
    assert (problems(f'checkpointing.checkpoint_must_save_by="{given}"') == []) is read


@pytest.mark.parametrize(("tp", "cp"), [(1, 1), (4, 1), (1, 2), (2, 2), (4, 2)])
def test_padding(found, tp, cp):
    data = pytest.importorskip("nemo_rl.models.megatron.data", exc_type=ImportError)
    layout = {
        "tensor_model_parallel_size": tp,
        "pipeline_model_parallel_size": 1,
        "context_parallel_size": cp,
    }
    settings = {**layout, "sequence_parallel": tp > 1}
    multiple = padding(tensor=tp, context=cp)
    assert data._get_pack_sequence_parameters_for_megatron(settings, multiple, 512)[0] == multiple
    for divisor in range(1, multiple):
        if multiple % divisor == 0:
            with pytest.raises(AssertionError, match="is not a multiple of minimum_pad_factor"):
                data._get_pack_sequence_parameters_for_megatron(settings, divisor, 512)


class _Optimizer:
    param_groups = ()


@pytest.mark.parametrize(
    "keys",
    [
        [],
        ["optimizer.min_lr=1e-5"],
        ["scheduler.lr_decay_style=WSD", "scheduler.lr_decay_iters=10"],
        ["scheduler.lr_warmup_iters=40"],
        ["scheduler.lr_warmup_iters=39"],
        ["scheduler.start_weight_decay=0.1"],
        ["scheduler.end_weight_decay=0.1"],
        ["scheduler.end_weight_decay=0.1", "scheduler.weight_decay_incr_style=linear"],
    ],
)
def test_the_schedule(found, keys):
    from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

    given = ["grpo.max_num_steps=40", *(f"{MEGATRON}.{key}" for key in keys)]
    megatron = recipe(*given).policy.megatron_cfg
    schedule, optimizer = megatron.scheduler, megatron.optimizer
    try:
        OptimizerParamScheduler(
            _Optimizer(), schedule.lr_warmup_init, optimizer.lr, optimizer.min_lr, schedule.lr_warmup_iters,
            schedule.lr_decay_iters or 40, schedule.lr_decay_style, schedule.start_weight_decay,
            schedule.end_weight_decay, 40, schedule.weight_decay_incr_style,
        ).get_wd()  # fmt: skip
        taken = True
    except AssertionError:
        taken = False
    assert (problems(*given) == []) is taken
