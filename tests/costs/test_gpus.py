"""The table of GPUs: sane, and its names are those of the command line."""

import pytest

from nemo_thinkprune.cli_measure import GpuName
from nemo_thinkprune.costs.gpus import GPUS, gpu_named
from nemo_thinkprune.recipe.errors import UserError


def test_names_are_those_of_the_command_line():
    assert set(GPUS) == {name.value for name in GpuName}
    assert all(gpu.name == name for name, gpu in GPUS.items())


@pytest.mark.parametrize("gpu", GPUS.values(), ids=GPUS)
def test_numbers_are_in_their_units(gpu):
    advertised = int(gpu.name.rpartition("-")[2].removesuffix("g"))
    assert 0.9 * advertised * 1e9 < gpu.memory_bytes < 1.075 * advertised * 1e9
    # bytes and FLOP per second: a unit that slipped would be off by 1000, or by 8
    assert 1e14 < gpu.bf16_flops < 1e16
    assert gpu.host_bandwidth < gpu.link_bandwidth < gpu.memory_bandwidth < gpu.bf16_flops
    assert gpu.network_bandwidth < gpu.link_bandwidth


def test_dense_peaks_not_sparse_ones():
    assert GPUS["h100-80g"].bf16_flops == GPUS["h200-141g"].bf16_flops == 1979e12 / 2
    assert GPUS["a100-80g"].bf16_flops == 624e12 / 2
    assert GPUS["b200-192g"].bf16_flops == 4500e12 / 2


def test_an_unknown_gpu_is_refused_with_the_choices():
    with pytest.raises(UserError, match="h100-80g"):
        gpu_named("h100")
