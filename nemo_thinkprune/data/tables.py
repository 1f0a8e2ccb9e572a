"""Rows of JSONL, JSON and Parquet files, on disk or on the Hugging Face hub."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_thinkprune.recipe.data_source import DATA_SUFFIXES, is_hub_id
from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.files import is_file, is_folder


@dataclass(frozen=True, slots=True)
class Table:
    """Rows and where they came from.

    `name` is the path or "owner/name@commit" with the full commit hash the rows were read at; `files` are the
    local files that were read.
    """

    name: str
    rows: Sequence[Mapping[str, Any]]
    files: tuple[Path, ...]


def read_table(path_or_hub_id: str | Path, *, split: str | None = None) -> Table:
    """Read a file, a folder of files, or a hub data set "owner/name[@revision]" (what exists on disk wins).

    `split` chooses by file name among the files of a folder or a hub data set.

    Raises:
        UserError: when nothing is there, nothing matches, or a file is not what its suffix says.
    """
    text, path = str(path_or_hub_id), Path(os.path.expanduser(path_or_hub_id))
    if is_file(path):
        if split is not None:
            raise UserError(
                f"{path} is one file: a split ({split!r}) can only be chosen from a folder or a hub data set"
            )
        return Table(text, read_rows(path), (path,))
    if is_folder(path):
        names = sorted(
            str(file.relative_to(path)) for file in path.rglob("*") if file.suffix in DATA_SUFFIXES
        )
        files = tuple(path / name for name in choose_split(names, split, text))
        return Table(text, [row for file in files for row in read_rows(file)], files)
    if not is_hub_id(text):
        raise UserError(
            f"{text} does not exist (give a .jsonl, .json or .parquet file, or a hub id owner/name)"
        )
    return _read_hub(text, split)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read the rows of one file, whose suffix tells its format.

    Raises:
        UserError: naming the file, and the line where there is one.
    """
    if path.suffix not in DATA_SUFFIXES:
        raise UserError(f"{path}: unknown format; give a .jsonl, .json or .parquet file")
    try:
        rows = _read_parquet(path) if path.suffix == ".parquet" else _read_json(path)
    except UnicodeDecodeError as error:
        raise UserError(f"cannot read {path}: it holds bytes that are not UTF-8 text ({error})") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error}") from error
    if not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path}: every row must be an object with named columns")
    return rows


def choose_split(names: Sequence[str], split: str | None, where: str) -> list[str]:
    """Return the data files of a split, a word of their paths ("data/train-00000-of-00004.parquet").

    Without a split there must be a single split, told by the file names without shard numbers; "train" is
    taken where there are several.

    Raises:
        UserError: when no file matches, listing the names.
    """
    files = [name for name in names if name.endswith(DATA_SUFFIXES)]
    wanted = split or "train"
    chosen = [name for name in files if wanted in re.split(r"[^A-Za-z0-9]+", name)]
    if split is None and not chosen and len({_unsharded(name) for name in files}) == 1:
        chosen = files
    if not chosen:
        raise UserError(
            f"{where} has no data files of split {wanted!r}; it has {files[:12] or list(names)[:12]}"
        )
    return sorted(chosen)


def _unsharded(name: str) -> str:
    return re.sub(r"-\d+-of-\d+", "", name)


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowException as error:
        raise UserError(f"{path} is not a readable Parquet file: {error}") from error


def _read_json(path: Path) -> list[Any]:
    text = path.read_text("utf-8")
    if path.suffix == ".json":
        rows = _parse(text, str(path))
        if not isinstance(rows, list):
            raise UserError(f"{path} must be a list of rows")
        return rows
    rows = []
    # Split at newlines only: splitlines() would also break at U+2028, which may stand inside a JSON string.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            rows.append(_parse(line, f"{path} line {number}"))
    return rows


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{where} is not JSON: {error}") from error
    except ValueError as error:
        raise UserError(f"{where} has a number of thousands of digits: write it as text") from error
    except RecursionError as error:
        raise UserError(f"{where} is nested too deeply") from error


def _read_hub(hub_id: str, split: str | None) -> Table:
    import httpx
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    repo, _, revision = hub_id.partition("@")
    try:
        info = HfApi().dataset_info(repo, revision=revision or None)
        commit = str(info.sha)
        names = [item.rfilename for item in info.siblings or ()]
        files = tuple(
            Path(hf_hub_download(repo, name, repo_type="dataset", revision=commit))
            for name in choose_split(names, split, hub_id)
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, httpx.HTTPError, OSError) as error:
        raise UserError(
            f"cannot get {hub_id} from the hub ({type(error).__name__}: {str(error).splitlines()[0]}). "
            "Check the name and the connection; on a machine without one, download its files elsewhere and "
            "give their path"
        ) from error
    return Table(f"{repo}@{commit}", [row for file in files for row in read_rows(file)], files)
