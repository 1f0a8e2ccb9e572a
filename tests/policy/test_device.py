"""The CPU redirections: there inside the block, gone after it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from nemo_thinkprune.policy.device import SdpaCoreAttention, megatron_device, resolve_device
from nemo_thinkprune.recipe.errors import UserError


def test_redirections_are_undone() -> None:
    before = (torch.zeros, torch.tensor, torch.Tensor.cuda, torch.Tensor.type, torch.cuda.current_device)
    with megatron_device(torch.device("cpu")):
        assert torch.zeros(2, device="cuda").device.type == "cpu"
        assert torch.tensor([1.0], device="cuda:0").device.type == "cpu"
        assert torch.ones(1).cuda().device.type == "cpu"
        assert torch.ones(1).type() == "torch.cuda.FloatTensor"
        assert torch.ones(1).type(torch.float64).dtype == torch.float64
        torch.cuda.synchronize()
    after = (torch.zeros, torch.tensor, torch.Tensor.cuda, torch.Tensor.type, torch.cuda.current_device)
    assert before == after
    assert torch.ones(1).type() == "torch.FloatTensor"


def test_redirections_are_undone_after_an_error() -> None:
    original = torch.empty
    with pytest.raises(RuntimeError, match="inside"), megatron_device(torch.device("cpu")):
        raise RuntimeError("inside")
    assert torch.empty is original


def test_cuda_without_a_gpu_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no GPU"):
        resolve_device("cuda")
    assert resolve_device("auto").type == "cpu"


class Config:
    kv_channels = 4


def test_packed_attention_equals_padded_and_the_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = [5, 1, 8]
    query, key, value = (
        torch.randn(sum(lengths), heads, 4, generator=generator, dtype=torch.float64) for heads in (6, 2, 2)
    )
    core = SdpaCoreAttention(Config(), 1, None, "self")
    bounds = torch.tensor([0, 5, 6, 14], dtype=torch.int32)
    packed = core(query, key, value, None, packed_seq_params=type("P", (), {"cu_seqlens_q": bounds})())
    for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        q, k, v = (x[start:stop] for x in (query, key, value))
        padded = core(q[:, None], k[:, None], v[:, None], None)[:, 0]
        assert torch.allclose(packed[start:stop], padded)
        for head in range(6):  # three query heads share a key head
            scores = q[:, head] @ k[:, head // 3].T / 2.0
            scores = scores.masked_fill(torch.triu(torch.ones_like(scores), 1).bool(), -torch.inf)
            by_hand = F.softmax(scores, dim=-1) @ v[:, head // 3]
            assert torch.allclose(packed[start:stop, head * 4 : head * 4 + 4], by_hand)
