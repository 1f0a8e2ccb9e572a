from __future__ import annotations

import pytest
from support.checkpoints import Saves


@pytest.fixture(scope="session")
def saves(tmp_path_factory: pytest.TempPathFactory) -> Saves:
    """Real megatron-core saves, each made once: `saves(config, Save(tp=2))` is its folder."""
    return Saves(tmp_path_factory.mktemp("saves"))
