"""A KL weight below zero: shown to NeMo-RL's setup by its magnitude, to the trainer with its sign."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from support.nemo_rl import require_nemo_rl

from nemo_thinkprune.recipe.load import load_recipe, recipes_folder, to_dict, with_values


@pytest.fixture(scope="module", autouse=True)
def nemo_rl():
    require_nemo_rl()


def signed(weight):
    """The loss that the trainer gets for a recipe with this weight, and the one that setup had made."""
    from nemo_rl.algorithms.loss import ClippedPGLossConfig, ClippedPGLossFn

    from nemo_thinkprune.cluster.driver import _signed_loss

    recipe = load_recipe(recipes_folder() / "thinkprune-as-released.yaml")
    recipe = with_values(recipe, {"loss_fn.reference_policy_kl_penalty": weight})
    values = to_dict(recipe)["loss_fn"] | {"reference_policy_kl_penalty": abs(weight)}
    config = SimpleNamespace(loss_fn=ClippedPGLossConfig(**values))
    made = ClippedPGLossFn(config.loss_fn)
    loss = _signed_loss(SimpleNamespace(recipe=recipe), made, config)
    assert config.loss_fn.reference_policy_kl_penalty == abs(weight)
    return loss, made


def value_of(loss):
    from nemo_rl.distributed.batched_data_dict import BatchedDataDict

    torch.manual_seed(3)
    count, length = 4, 6
    current, mask = -torch.rand(count, length - 1), torch.ones(count, length)
    data = BatchedDataDict(
        input_ids=torch.zeros(count, length, dtype=torch.int64),
        input_lengths=torch.full((count,), length),
        advantages=torch.randn(count, length),
        prev_logprobs=torch.nn.functional.pad(current, (1, 0)),
        generation_logprobs=torch.nn.functional.pad(current, (1, 0)),
        reference_policy_logprobs=-torch.rand(count, length),
        token_mask=mask,
        sample_mask=torch.ones(count),
    )
    value, _ = loss(current, data, torch.tensor(4.0), mask[:, 1:].sum())
    return value.item()


def test_the_term_is_subtracted():
    loss, made = signed(-0.5)
    assert loss is not made and type(loss) is type(made)
    assert loss.reference_policy_kl_penalty == -0.5 and made.reference_policy_kl_penalty == 0.5
    without = value_of(signed(0.0)[0])
    assert value_of(made) - without > 0.01
    assert value_of(loss) - without == pytest.approx(without - value_of(made), abs=1e-6)


def test_any_other_weight_keeps_the_loss_of_setup():
    for weight in (0.0, 0.001):
        loss, made = signed(weight)
        assert loss is made
