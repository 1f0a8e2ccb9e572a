"""Where NeMo-RL is, and what its processes need to find in their environment.

NeMo-RL is not on the package registry: it is importable (a container, an installed checkout), or a checkout is
named by --nemo-rl-root or the variable NEMO_RL_ROOT.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import checkpoints_tools
import nemo_thinkprune
from nemo_thinkprune.recipe.errors import UserError

SUPPORTED = "v0.7.0"
ROOT_VARIABLE = "NEMO_RL_ROOT"
# Puts typing_extensions' TypedDict where pydantic needs it: NeMo-RL asks for Python 3.13.
SHIM = Path(__file__).parent / "python311"


@dataclass(frozen=True, slots=True)
class NemoRL:
    """A NeMo-RL that can be used: the folder that holds the package `nemo_rl`, and its version.

    `importable`: this Python finds it without being told where.
    """

    root: Path
    version: str
    importable: bool = False

    @property
    def example_configs(self) -> Path:
        """Its example recipes; they are not part of an installed package."""
        return self.root / "examples" / "configs"


def find_nemo_rl(root: Path | None = None) -> NemoRL:
    """Find NeMo-RL: `root` if given, else an importable `nemo_rl`, else the checkout NEMO_RL_ROOT names.

    Raises:
        UserError: there is none; the message says how to get it.
    """
    installed = None if root else _importable()
    named = root or installed or _from_variable()
    if named is None:
        raise UserError(
            "NeMo-RL is not here: run inside its container, or clone it (git clone --recursive -b "
            f"{SUPPORTED} https://github.com/NVIDIA-NeMo/RL) and give --nemo-rl-root FOLDER or set {ROOT_VARIABLE}"
        )
    folder = Path(os.path.realpath(os.path.expanduser(named)))
    if not (folder / "nemo_rl" / "__init__.py").is_file():
        raise UserError(f"{folder} is not a checkout of NeMo-RL: it has no nemo_rl/__init__.py")
    return NemoRL(folder, _version(folder), importable=installed is not None)


def python_path(found: NemoRL, packages: Path) -> str:
    """PYTHONPATH for every process of a run: our packages, NeMo-RL, and on Python 3.11 what it lacks there.

    It is the one setting that reaches driver, environments and workers alike (NeMo-RL hands its own
    environment on to all of them).  `packages` is what `copy_packages` made: the workers have Pythons of their
    own, in which nothing else of this one must be found.
    """
    shim = [str(SHIM)] if sys.version_info < (3, 12) else []
    checkout = [] if found.importable else [str(found.root)]
    given = os.environ.get("PYTHONPATH", "")
    return os.pathsep.join([*shim, str(packages), *checkout, *filter(None, given.split(os.pathsep))])


def copy_packages(folder: Path) -> Path:
    """A folder that holds copies of this program's two packages and nothing else; its absolute path.

    Copies, so that every node finds them where the run folder is, a run keeps what it was run with, and workers
    that start days later are not of another version.

    Raises:
        UserError: the folder cannot be written.
    """
    for package in (nemo_thinkprune, checkpoints_tools):
        aside = folder / f".{package.__name__}"
        target = folder / package.__name__
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for stale in (aside, target):
                shutil.rmtree(stale, ignore_errors=True)
            shutil.copytree(package.__path__[0], aside, ignore=shutil.ignore_patterns("__pycache__"))
            os.rename(aside, target)
        except (OSError, shutil.Error) as error:
            raise UserError(
                f"cannot copy this program into {folder}: {error}; give another --run-dir"
            ) from None
    return folder.resolve()


def _importable() -> Path | None:
    spec = importlib.util.find_spec("nemo_rl")
    return Path(spec.origin).parent.parent if spec is not None and spec.origin else None


def _from_variable() -> Path | None:
    value = os.environ.get(ROOT_VARIABLE)
    return Path(value) if value else None


def _version(folder: Path) -> str:
    """The version in nemo_rl/package_info.py, read as text: importing it would start all of NeMo-RL."""
    try:
        text = (folder / "nemo_rl" / "package_info.py").read_text(encoding="utf-8")
    except OSError:
        return "unknown"
    parts = [re.search(rf"^{name}\s*=\s*(\d+)", text, re.MULTILINE) for name in ("MAJOR", "MINOR", "PATCH")]
    return ".".join(part[1] for part in parts if part) or "unknown"
