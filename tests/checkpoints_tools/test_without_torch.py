"""The converter in an environment that holds its own dependencies and nothing else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import venv
from importlib import metadata
from pathlib import Path

import pytest
from support.models import MODELS

from checkpoints_tools.random_init import random_hf_init

ROOT = Path(__file__).parents[2]
ALONE = tomllib.loads((ROOT / "checkpoints_tools/pyproject.toml").read_text())
# `pip install ./checkpoints_tools` leaves its build folder there.
MODULES = [f for f in ROOT.glob("checkpoints_tools/**/*.py") if "build" not in f.relative_to(ROOT).parts]
WHOLE = tomllib.loads((ROOT / "pyproject.toml").read_text())


def _name(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0]


def _distributions(requirements: list[str]) -> dict[str, metadata.Distribution]:
    """The distributions that these requirements need, at any depth, without extras."""
    found: dict[str, metadata.Distribution] = {}
    waiting = [_name(r) for r in requirements]
    while waiting:
        name = waiting.pop().lower()
        if name not in found:
            found[name] = metadata.distribution(name)
            waiting += [_name(r) for r in found[name].requires or [] if ";" not in r]
    return found


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """`thinkprune-ckpt` in an empty environment, started through the entry point that is declared."""
    folder = tmp_path_factory.mktemp("empty") / "venv"
    venv.create(folder, with_pip=False, symlinks=True)
    packages = next(folder.glob("lib/python*/site-packages"))
    for distribution in _distributions(ALONE["project"]["dependencies"]).values():
        for top in {Path(f).parts[0] for f in distribution.files or []} - {"..", "__pycache__"}:
            (packages / top).symlink_to(Path(str(distribution.locate_file(top))))
    (packages / "checkpoints_tools").symlink_to(ROOT / "checkpoints_tools")
    module, function = ALONE["project"]["scripts"]["thinkprune-ckpt"].split(":")
    return [str(folder / "bin/python"), "-c", f"from {module} import {function}; {function}()"]


def _run(command: list[str], *arguments: object) -> subprocess.CompletedProcess[str]:
    # PYTHONPATH would let this environment's packages in.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    return subprocess.run(
        [*command, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        cwd="/",  # Python also looks for modules where it is started
        check=False,
    )


def test_the_environment_has_no_torch(command: list[str]) -> None:
    for module in ("torch", "transformers", "safetensors", "nemo_thinkprune", "megatron"):
        done = _run([command[0], "-c", f"import {module}"])
        assert "ModuleNotFoundError" in done.stderr


def test_convert_and_prove_without_torch(command: list[str], tmp_path: Path) -> None:
    random_hf_init(MODELS["qwen2"], tmp_path / "hf", seed=1, randomize_all=True)
    for arguments in (
        ("import", tmp_path / "hf", tmp_path / "megatron"),
        ("export", tmp_path / "megatron", tmp_path / "back"),
        ("verify", tmp_path / "hf", tmp_path / "back"),
        ("verify", tmp_path / "megatron", tmp_path / "hf"),
        ("inspect", tmp_path / "megatron"),
    ):
        done = _run(command, *arguments)
        assert done.returncode == 0, done.stderr


def test_no_verb_imports_torch_even_where_it_is_installed() -> None:
    modules = [".".join(f.relative_to(ROOT).with_suffix("").parts) for f in MODULES]
    code = f"import sys, importlib\nfor m in {modules!r}: importlib.import_module(m)\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "False"


def test_both_packages_agree() -> None:
    assert ALONE["project"]["version"] == WHOLE["project"]["version"]
    assert ALONE["project"]["requires-python"] == WHOLE["project"]["requires-python"]
    assert set(ALONE["project"]["dependencies"]) <= set(WHOLE["project"]["dependencies"])
    assert ALONE["project"]["scripts"].items() <= WHOLE["project"]["scripts"].items()
    packages = {".".join(f.parent.relative_to(ROOT).parts) for f in MODULES}
    assert packages == set(ALONE["tool"]["setuptools"]["packages"])
