"""What the name of a data set means: a file or folder, or a data set on the Hugging Face hub."""

from __future__ import annotations

import os
import re
from pathlib import Path

from nemo_thinkprune.recipe.files import is_file, is_folder

DATA_SUFFIXES = (".jsonl", ".json", ".parquet")
"""Of files that problems are read from."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?", re.ASCII)


def is_on_disk(name: str) -> bool:
    """Return whether `name`, in which ~ stands for the home folder, is a file or a folder."""
    path = os.path.expanduser(name)
    return is_file(path) or is_folder(path)


def is_hub_id(name: str) -> bool:
    """Return whether `name` means the hub: owner/name[@revision]; what exists on disk or ends as a file is a path."""
    return (
        Path(name).suffix not in DATA_SUFFIXES
        and _HUB_ID.fullmatch(name) is not None
        and not is_on_disk(name)
    )
