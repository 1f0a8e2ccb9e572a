"""Recipes for tests of the nemo-rl engine's checks, and what the checks say of them."""

from nemo_thinkprune.recipe.checks import check_recipe
from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.load import recipe_from_dict

BASE = {
    "policy": {"model_name": "m"},
    "data": {"train": {"data_path": "p"}, "validation": {"data_path": "v"}},
    "thinkprune": {"selection": {"baseline": "round_start"}},
}
VLLM, MEGATRON = "policy.generation.vllm_cfg", "policy.megatron_cfg"
COLOCATED = "policy.generation.colocated"
NODE = ("cluster.gpus_per_node=8", f"{MEGATRON}.tensor_model_parallel_size=2")
NODES = ("cluster.num_nodes=4", "cluster.gpus_per_node=8", f"{MEGATRON}.tensor_model_parallel_size=4")
ASIDE = (f"{COLOCATED}.enabled=false", f"{COLOCATED}.resources={{num_nodes: 2, gpus_per_node: 8}}")
ASYNC = (
    *NODES,
    *ASIDE,
    "grpo.async_grpo.enabled=true",
    "loss_fn.use_importance_sampling_correction=true",
    f"{VLLM}.async_engine=true",
)


def recipe(*overrides):
    return recipe_from_dict(BASE, overrides)


def problems(*overrides, on_cpu=False):
    """The messages for the engine, one a line; empty when the recipe passes."""
    try:
        check_recipe(recipe(*overrides), engine="nemo-rl", on_cpu=on_cpu)
    except UserError as error:
        return str(error).splitlines()[1:]
    return []


def notes(*overrides, on_cpu=False):
    return check_recipe(recipe(*overrides), engine="nemo-rl", on_cpu=on_cpu)


def only(*overrides, on_cpu=False):
    [problem] = problems(*overrides, on_cpu=on_cpu)
    return problem
