"""What a foreign `common.pt` asks for, found out without loading it."""

from __future__ import annotations

import zipfile
from typing import Any

from checkpoints_tools.errors import CheckpointError
from checkpoints_tools.torch_dist.safe_pickle import Placeholder, RestrictedUnpickler, check_pickle

_MAX_PICKLE = 64 << 20
# Settings of a training run: Megatron-LM saves its arguments, with enumerations and configurations of its own.
_SETTINGS = {
    "argparse": {"Namespace"},
    "types": {"SimpleNamespace"},
    "pathlib": {"Path", "PosixPath", "PurePosixPath"},
    "datetime": {"timedelta"},
    "signal": {"Signals"},
}
_SETTINGS_OF = ("megatron.", "transformer_engine.")


class _Settings(RestrictedUnpickler):
    """Accepts what settings are made of as well; as ever, nothing is imported."""

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith(_SETTINGS_OF) or name in _SETTINGS.get(module, ()):
            return Placeholder
        return super().find_class(module, name)


def check_common(path: str, *, strict: bool) -> None:
    """Check the pickle in `common.pt` against the allow-list; there need not be a file.

    `strict`: only what torch may load after this check. Else a training run's settings may be there too: they
    are carried along or left, never loaded.

    Raises:
        CheckpointError: It asks for anything else, or is no file of torch.save.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = [m for m in archive.infolist() if m.filename.endswith("data.pkl")]
            # One only, and not packed: torch must see what is checked here.
            if len(members) != 1 or members[0].compress_type or members[0].file_size > _MAX_PICKLE:
                raise CheckpointError(f"{path} is damaged: it does not hold one plain data.pkl")
            data = archive.read(members[0])
    except FileNotFoundError:
        return
    except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} is damaged: {error}") from None
    check_pickle(data, name=path, kind=RestrictedUnpickler if strict else _Settings)
