"""Upload a released model to the Hugging Face hub.

Everything goes through huggingface_hub, which resumes: run again, it does not send twice what the hub has. The
token comes from the environment alone, by the names that huggingface_hub reads there, not from the file that
`hf auth login` leaves: what is published, and as whom, is said for the command at hand. It is no argument of
anything here and appears in no message.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from checkpoints_tools.errors import CheckpointError

_REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_MESSAGE = "Upload the model with its manifest and card"
# huggingface_hub's names, in its order; the second is its older one.
_TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
# Hidden files are none of a release's own; .env and .git are what should least become public.
_IGNORED = [".*", "**/.*"]


def check_push(repo: str) -> None:
    """Refuse what a push would refuse, before any long work: the name, a missing client, a missing token.

    Raises:
        CheckpointError: saying what to do.
    """
    if (
        not _REPO.fullmatch(repo)
        or ".." in repo
        or "--" in repo
        or repo.endswith((".git", ".ipynb", "-", "."))
    ):
        raise CheckpointError(
            f"--push {repo!r:.120} is not the name of a repository: give organisation/model or user/model, of "
            "letters, digits, '-', '_' and '.'"
        )
    _client()
    _token()


def push(folder: Path, repo: str, *, private: bool = False) -> str:
    """Upload the files of `folder` to the model repository `repo`, made if it is not there; give its address.

    `private` counts only for a new repository. The folder must have been verified by the caller.

    Raises:
        CheckpointError: No token, no permission, an invalid name, or the hub cannot be reached.
    """
    check_push(repo)
    token = _token()
    # Given explicitly: without it the client would look for the login file, or ask a CI provider.
    api = _client().HfApi(token=token, library_name="thinkprune-ckpt")
    try:
        # `private` None leaves an organisation's own default in force.
        made = api.create_repo(repo, repo_type="model", private=private or None, exist_ok=True)
        api.upload_folder(
            repo_id=repo, folder_path=folder, commit_message=_MESSAGE, ignore_patterns=list(_IGNORED)
        )
    except Exception as error:  # the client raises its own, its transport's and its native library's errors
        raise CheckpointError(_explain(error, repo).replace(token, "***")) from error
    return str(made)


def _client() -> ModuleType:
    try:
        import huggingface_hub
    except ImportError:
        raise CheckpointError("--push needs the hub's client: pip install huggingface_hub") from None
    return huggingface_hub


def _token() -> str:
    values = (os.environ.get(name, "").strip() for name in _TOKEN_VARIABLES)
    token = next(filter(None, values), None)
    if token is None:
        raise CheckpointError(
            "no token for the hub in the environment: run export HF_TOKEN=... with one that may write (that of "
            "`hf auth login` is not used)"
        )
    return token


def _explain(error: BaseException, repo: str) -> str:
    """What went wrong and what to do, from the innermost answer of the hub."""
    response = next((r for e in _chain(error) if (r := getattr(e, "response", None)) is not None), None)
    if response is not None:
        return _refused(int(response.status_code), response, repo)
    names = {type(e).__name__ for e in _chain(error)}
    if "OfflineModeIsEnabled" in names:
        return "HF_HUB_OFFLINE is set: unset it to upload"
    if any(isinstance(e, OSError) for e in _chain(error)) or any(
        "Error" in n and _transport(n) for n in names
    ):
        return f"the connection to the hub failed ({_line(error)}); run the same command again to go on"
    return f"the upload to {repo} failed ({type(error).__name__}: {_line(error)})"


def _transport(name: str) -> bool:
    """Whether an exception of this name is one of httpx' transport errors, which are no OSError."""
    return name.startswith(
        ("Connect", "Read", "Write", "RemoteProtocol", "LocalProtocol", "Proxy", "Network")
    )


def _refused(status: int, response: Any, repo: str) -> str:
    owner = repo.partition("/")[0]
    if status == 401:
        return "the hub does not accept the token (401): run export HF_TOKEN=... with a valid one"
    if status == 403:
        return (
            f"the token may not write to {repo} (403): it needs the right to write, and to publish as {owner}"
        )
    if status == 404:
        return f"the hub has no {repo} that this token may see (404): check the name and the token's rights"
    if status == 429:
        return "the hub asks to slow down (429): run the same command again in some minutes"
    if status >= 500:
        return f"the hub failed ({status}): run the same command again; what it has is not sent twice"
    said = response.headers.get("X-Error-Message") or response.reason_phrase or ""
    return f"the hub refused the upload to {repo} ({status}): {_line(said)}"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _line(value: object) -> str:
    return " ".join(str(value).split())[:300]
