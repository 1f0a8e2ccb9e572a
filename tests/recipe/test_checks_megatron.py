"""What Megatron-Core, vLLM and NeMo-RL's set-up would refuse once processes run, and the message before."""

import pytest
from support.nemo_rl_recipes import MEGATRON, NODE, only, problems, recipe

PADDING = "policy.make_sequence_length_divisible_by"
CONTEXT = (*NODE, f"{MEGATRON}.context_parallel_size=2")

# lengths of packed sequences


@pytest.mark.parametrize(("tp", "cp", "multiple"), [(1, 1, 1), (2, 1, 2), (1, 2, 4), (2, 2, 8), (4, 2, 16)])
def test_padding_follows_tensor_and_context_parallelism(tp, cp, multiple):
    keys = (
        "cluster.gpus_per_node=8",
        f"{MEGATRON}.tensor_model_parallel_size={tp}",
        f"{MEGATRON}.context_parallel_size={cp}",
    )
    assert recipe(*keys).policy.make_sequence_length_divisible_by == multiple
    assert problems(*keys) == []


def test_padding_that_context_parallelism_cannot_share():
    assert only(*CONTEXT, f"{PADDING}=2") == (
        f"  {PADDING} = 2 is not a multiple of tensor parallel size x 2 x context parallel size = 2 x 2 x 2 = 8; "
        "remove the key"
    )
    assert problems(*CONTEXT, f"{PADDING}=16") == []


def test_the_sequence_length_is_a_multiple_of_the_padding():
    keys = ("cluster.gpus_per_node=64", f"{MEGATRON}.context_parallel_size=64")
    assert recipe(*keys).policy.max_total_sequence_length == 5120
    assert recipe().policy.max_total_sequence_length == 5056
