"""NeMo-RL in tests: importable, or named by NEMO_RL_ROOT; skipped with that reason elsewhere."""

from __future__ import annotations

import importlib
import sys
from functools import cache
from pathlib import Path

import pytest

from nemo_thinkprune.cluster.find import SHIM, NemoRL, find_nemo_rl
from nemo_thinkprune.recipe.errors import UserError


def require_nemo_rl() -> NemoRL:
    """Make `nemo_rl` importable in this process, or skip the test."""
    try:
        found = _found()
    except UserError:
        pytest.skip("NeMo-RL is not importable and NEMO_RL_ROOT names no checkout")
    if sys.version_info < (3, 12) and str(SHIM) not in sys.path:
        sys.path.insert(0, str(SHIM))
        sys.modules.pop("sitecustomize", None)
        importlib.import_module("sitecustomize")
    if str(found.root) not in sys.path:
        sys.path.append(str(found.root))
    try:
        importlib.import_module("nemo_rl")
    except ImportError as error:
        pytest.skip(f"NeMo-RL's dependencies are not installed: {error}")
    return found


@cache
def _found() -> NemoRL:
    """As it is before this process is told where NeMo-RL is: its children are not told by that."""
    return find_nemo_rl()


def empty_checkout(folder: Path, version: str) -> Path:
    """A folder that passes for a checkout of NeMo-RL `version` (MAJOR.MINOR.PATCH) and holds nothing of it."""
    package = folder / "nemo_rl"
    package.mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").touch()
    named = zip(("MAJOR", "MINOR", "PATCH"), version.split("."), strict=True)
    (package / "package_info.py").write_text("".join(f"{name} = {number}\n" for name, number in named))
    return folder
