"""Which GPUs of the cluster train and which generate."""

from __future__ import annotations

from dataclasses import dataclass

from nemo_thinkprune.recipe.schema import Recipe


@dataclass(frozen=True, slots=True)
class Gpus:
    """The same number of GPUs on each of some nodes."""

    nodes: int
    per_node: int

    @property
    def count(self) -> int:
        """All of them."""
        return self.nodes * self.per_node

    def __str__(self) -> str:
        return f"{self.nodes} x {self.per_node}"


def training_gpus(recipe: Recipe) -> Gpus:
    """Return the GPUs that train: all of the cluster but those set aside for generation."""
    whole, aside = _whole(recipe), _set_aside(recipe)
    if aside is None:
        return whole
    if whole.nodes == 1:
        return Gpus(1, whole.per_node - aside.per_node)
    return Gpus(whole.nodes - aside.nodes, whole.per_node)


def rollout_gpus(recipe: Recipe) -> Gpus:
    """Return the GPUs that generate: the training GPUs, or those set aside."""
    return _set_aside(recipe) or _whole(recipe)


def resources_problem(recipe: Recipe) -> str | None:
    """Return why `policy.generation.colocated.resources` cannot be set aside; None when it can, or need not."""
    if recipe.policy.generation.colocated.enabled or _set_aside(recipe) is not None:
        return None
    whole, resources = _whole(recipe), recipe.policy.generation.colocated.resources
    path = "policy.generation.colocated.resources"
    given = f"num_nodes = {_shown(resources.num_nodes)}, gpus_per_node = {_shown(resources.gpus_per_node)}"
    if whole.nodes == 1:
        most = whole.per_node - 1
        how = f"set gpus_per_node to 1 .. {most} and remove num_nodes" if most else "one GPU cannot be split"
        return f"{path}: {given} do not split the {whole.per_node} GPUs of the one node; {how}"
    return (
        f"{path}: {given}; on several nodes generation takes whole ones: set num_nodes to 1 .. {whole.nodes - 1} "
        f"and gpus_per_node to cluster.gpus_per_node = {whole.per_node}"
    )


def _whole(recipe: Recipe) -> Gpus:
    return Gpus(recipe.cluster.num_nodes, recipe.cluster.gpus_per_node)


def _set_aside(recipe: Recipe) -> Gpus | None:
    """The GPUs set aside for generation; None when there are none, or when NeMo-RL would refuse them."""
    colocated, whole = recipe.policy.generation.colocated, _whole(recipe)
    nodes, gpus = colocated.resources.num_nodes, colocated.resources.gpus_per_node
    if colocated.enabled or gpus is None:
        return None
    if whole.nodes == 1:
        return Gpus(1, gpus) if nodes in (None, 1) and gpus < whole.per_node else None
    return Gpus(nodes, gpus) if nodes and nodes < whole.nodes and gpus == whole.per_node else None


def _shown(value: int | None) -> str:
    return "null" if value is None else str(value)
