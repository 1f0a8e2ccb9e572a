"""Ray's errors in a sentence each; the log keeps them whole."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ray.exceptions import ActorUnavailableError, RayActorError, RayError, RayTaskError

from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.training.checkpoint_files import all_checkpoints

# An actor whose start fails leaves the text of its traceback, not the exception.
_MISTAKE = f"{UserError.__module__}.{UserError.__qualname__}: "
_TASK = re.compile(r"ray::([\w.<>]+)")
_FIELD = r"^\s*{}: (\S+)"
# An actor's own report of a dead actor cannot be pickled, so it arrives as a text in a plain RayError.
_DIED = "ray.exceptions.ActorDiedError"
# No actor that died: one that no call reaches, as its process is stopped or its node cut off.
_SILENT = "ActorUnavailableError"
_NODE_DIED = "its node has died"
_UNBORN = "raised in its creation task"
_MEMORY = ("OutOfMemoryError", "MemoryError")


@contextmanager
def told_plainly(checkpoints: Path) -> Iterator[None]:
    """Raise what Ray raises in the block in words for the user, with Ray's own as the cause.

    Args:
        checkpoints: folder of the run's checkpoints, to say where it goes on.

    Raises:
        UserError: An actor raised one.
        MemoryError: An actor ran out of memory.
        RuntimeError: An actor died or raised anything else, or Ray itself failed.
    """
    try:
        yield
    except Exception as error:
        told = _told(error, checkpoints)
        if told is None:
            raise
        raise told from error


def _told(error: Exception, checkpoints: Path) -> Exception | None:
    cause: BaseException = error
    while isinstance(cause, RayTaskError) and isinstance(cause.cause, BaseException):
        cause = cause.cause
    if isinstance(cause, UserError):
        return None if cause is error else UserError(str(cause))
    if isinstance(cause, ActorUnavailableError) or (isinstance(cause, RayError) and _SILENT in str(cause)):
        return RuntimeError(
            f"an actor gives no answer, its process may hang or its node be cut off ({_first_line(cause)}): "
            f"see the log; {_goes_on(checkpoints)}"
        )
    if isinstance(cause, RayActorError) or (isinstance(cause, RayError) and _DIED in str(cause)):
        return _actor_died(str(cause), checkpoints)
    if isinstance(cause, RayError) or type(cause).__module__.startswith("grpc"):
        kind = MemoryError if _is_of_memory(cause) else RuntimeError
        return kind(
            f"Ray failed with {type(cause).__name__} ({_first_line(cause)}): see the log; {_goes_on(checkpoints)}"
        )
    if cause is error:
        return None
    task = _TASK.search(str(error))
    kind = MemoryError if _is_of_memory(cause) else RuntimeError
    return kind(f"{task[1] if task else 'an actor'} raised {type(cause).__name__}: {cause}")


def _actor_died(text: str, checkpoints: Path) -> Exception:
    if _UNBORN in text:
        if _MISTAKE in text:
            return UserError(text.rpartition(_MISTAKE)[2].strip())
        task = _TASK.search(text)
        last = text.strip().splitlines()[-1]
        return RuntimeError(f"{task[1] if task else 'an actor'} could not start: {last.strip()}")
    who = re.search(_FIELD.format("class_name"), text, re.MULTILINE)
    name = re.search(_FIELD.format("name"), text, re.MULTILINE)
    actor = f"{who[1] if who else 'an actor'}{f' ({name[1]})' if name else ''}"
    if _NODE_DIED in text:
        address = re.search(_FIELD.format("ip"), text, re.MULTILINE)
        where = f"its node{f' {address[1]}' if address else ''}"
        return RuntimeError(
            f"{actor} was lost with {where}, which Ray holds for dead; {_goes_on(checkpoints)}"
        )
    if "OUT_OF_MEMORY" in text:
        return MemoryError(f"{actor} was ended by Ray for want of memory; {_goes_on(checkpoints)}")
    return RuntimeError(f"{actor} died, perhaps for want of memory: see the log; {_goes_on(checkpoints)}")


def _is_of_memory(error: BaseException) -> bool:
    return any(kind.__name__ in _MEMORY for kind in type(error).__mro__)


def _first_line(error: BaseException) -> str:
    # An error of gRPC's has what it is about among its fields.
    details = getattr(error, "details", None)
    text = str(details() if callable(details) else error).strip()
    return text.splitlines()[0][:300] if text else "no message"


def _goes_on(checkpoints: Path) -> str:
    saved = all_checkpoints(checkpoints)
    if not saved:
        return "the same command starts over"
    return f"the same command goes on after step {saved[0].step}"
