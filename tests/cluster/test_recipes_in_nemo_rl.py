"""Every shipped recipe as NeMo-RL reads it: its MasterConfig, and what its set-up builds from that on any machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.nemo_rl import require_nemo_rl

from nemo_thinkprune.cluster.data_plan import DataPlan
from nemo_thinkprune.cluster.find import SUPPORTED
from nemo_thinkprune.cluster.names import ENVIRONMENT, VALIDATION_ENVIRONMENT
from nemo_thinkprune.cluster.settings import master_config
from nemo_thinkprune.cluster.trainers import value
from nemo_thinkprune.data.ledger import Ledger
from nemo_thinkprune.recipe.load import load_recipe, recipes_folder, to_dict
from nemo_thinkprune.recipe.schema import Recipe
from nemo_thinkprune.training.job import Job

SHIPPED = sorted(recipes_folder().glob("*.yaml"))
EXAMPLES = ("grpo_math_1B.yaml", "grpo_math_1B_megatron.yaml")
PROBLEMS, HELD_OUT = 2470, 60
END = 151645


@pytest.fixture(scope="module")
def found():
    return require_nemo_rl()


@pytest.fixture
def examples(found):
    """The folder of the example recipes whose keys ours are."""
    if f"v{found.version}" != SUPPORTED:
        pytest.skip(f"keys are those of {SUPPORTED}, not of {found.version}")
    return found.example_configs


def settings(recipe: Recipe, folder: Path, *, on_cpu: bool = False) -> dict[str, Any]:
    grpo, section = recipe.grpo, recipe.thinkprune
    ledger = Ledger(PROBLEMS, grpo.num_prompts_per_step, grpo.seed)
    held_out = HELD_OUT if recipe.data.validation else 0
    plan = DataPlan(
        ledger=ledger,
        steps=ledger.last_step(epochs=grpo.max_num_epochs, max_steps=grpo.max_num_steps),
        problem_ids=tuple(str(number) for number in range(PROBLEMS)),
        validation_problems=held_out,
        validation_rows=held_out * section.validation.samples,
        longest_prompt=700,
        notes=(),
    )
    job = Job(
        kind="train",
        run_dir=folder,
        recipe=recipe,
        model=recipe.policy.model_name,
        limit=section.limits[0],
        engine="nemo-rl",
        on_cpu=on_cpu,
    )
    return master_config(job, plan, end_ids=[END])


def loaded(found, recipe: Recipe, folder: Path, *, on_cpu: bool = False) -> tuple[dict[str, Any], Any]:
    """The values we hand over, and NeMo-RL's configuration made of them."""
    from nemo_rl.algorithms.grpo import MasterConfig

    made = settings(recipe, folder, on_cpu=on_cpu)
    return made, MasterConfig(**made)


def lost(given: Any, kept: Any, path: str = "") -> list[str]:
    """Paths of values that NeMo-RL's configuration does not have, or has otherwise."""
    if isinstance(given, dict):
        return [
            problem
            for key, item in given.items()
            for problem in lost(item, value(kept, key), f"{path}.{key}")
        ]
    if isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        pairs = zip(given, kept, strict=True)
        return [
            problem
            for number, (one, other) in enumerate(pairs)
            for problem in lost(one, other, f"{path}.{number}")
        ]
    return [] if given == kept else [f"{path}: {given!r} became {kept!r}"]


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_a_shipped_recipe_loads_and_keeps_every_value(found, file, tmp_path):
    made, config = loaded(found, load_recipe(file), tmp_path)
    made.pop("thinkprune", None)
    for section, given in made.items():
        assert lost(given, getattr(config, section), section) == []


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_nemo_rl_builds_loss_estimator_and_checkpoints_from_it(found, file, tmp_path):
    from nemo_rl.algorithms.grpo import _create_advantage_estimator
    from nemo_rl.algorithms.loss import ClippedPGLossFn
    from nemo_rl.utils.checkpoint import CheckpointManager

    recipe = load_recipe(file)
    _, config = loaded(found, recipe, tmp_path)
    loss = ClippedPGLossFn(config.loss_fn)
    assert loss.reference_policy_kl_penalty == abs(recipe.loss_fn.reference_policy_kl_penalty)
    assert (loss.ratio_clip_min, loss.ratio_clip_max) == (0.2, 0.2)
    assert loss.use_importance_sampling_correction is recipe.grpo.async_grpo.enabled
    estimator = _create_advantage_estimator(config)
    assert type(estimator).__name__ == "GRPOAdvantageEstimator"
    assert estimator.normalize_rewards and not estimator.use_leave_one_out_baseline
    manager = CheckpointManager(config.checkpointing)
    assert manager.checkpoint_dir == tmp_path.resolve() / "checkpoints"
    assert manager.metric_name == "val:accuracy"
    assert manager.keep_top_k is None or manager.keep_top_k >= value(config.grpo, "max_num_steps")  # all
    assert manager.get_latest_checkpoint_path() is None


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_what_a_run_fills_in(found, file, tmp_path):
    recipe = load_recipe(file)
    _, config = loaded(found, recipe, tmp_path)
    limit, generation = recipe.thinkprune.limits[0], config.policy["generation"]
    assert generation["max_new_tokens"] == limit and generation["stop_token_ids"] == [END]
    total = config.policy["max_total_sequence_length"]
    assert recipe.data.max_input_seq_length + limit < total <= generation["vllm_cfg"]["max_model_len"]
    assert config.policy["train_global_batch_size"] == (
        value(config.grpo, "num_prompts_per_step") * value(config.grpo, "num_generations_per_prompt")
    )
    assert set(config.env) == {ENVIRONMENT, VALIDATION_ENVIRONMENT}
    assert Path(config.logger["log_dir"]).is_absolute()
    batches = value(config.grpo, "max_val_samples") // value(config.grpo, "val_batch_size")
    rows = HELD_OUT * recipe.thinkprune.validation.samples if recipe.data.validation else 0
    assert batches * value(config.grpo, "val_batch_size") >= rows
    assert not value(config.grpo, "overlong_filtering")


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_a_shipped_recipe_loads_for_the_cpu_worker(found, file, tmp_path):
    recipe = load_recipe(file)
    _, config = loaded(found, recipe, tmp_path, on_cpu=True)
    assert config.cluster["num_nodes"] * config.cluster["gpus_per_node"] == recipe.world_size


@pytest.mark.parametrize("name", EXAMPLES)
def test_nemo_rls_own_examples_load_through_our_schema(found, examples, name, tmp_path):
    """Theirs name data that we do not read, and options of DTensor; all keys but those mean the same."""
    ours = ["data.train={data_path: p.jsonl}", "data.validation={data_path: v.jsonl}", "data.default=null"]
    recipe = load_recipe(examples / name, ours)
    made, config = loaded(found, recipe, tmp_path)
    made.pop("thinkprune", None)
    for section, given in made.items():
        assert lost(given, getattr(config, section), section) == []


@pytest.mark.parametrize("name", EXAMPLES)
def test_values_of_nemo_rls_own_examples_are_read_as_nemo_rl_reads_them(examples, name):
    from nemo_rl.utils.config import load_config, register_omegaconf_resolvers
    from omegaconf import OmegaConf

    register_omegaconf_resolvers()
    theirs = OmegaConf.to_container(load_config(examples / name), resolve=True)
    ours = to_dict(load_recipe(examples / name))
    for path in (
        "grpo.num_prompts_per_step",
        "loss_fn.ratio_clip_max",
        "policy.train_global_batch_size",
        "policy.sequence_packing.train_mb_tokens",
        "policy.generation.max_new_tokens",
        "policy.generation.vllm_cfg.max_model_len",
        "policy.megatron_cfg.optimizer.lr",
        "grpo.adv_estimator.use_leave_one_out_baseline",
    ):
        one, other = theirs, ours
        for part in path.split("."):
            one, other = one[part], other[part]
        assert one == other, path
