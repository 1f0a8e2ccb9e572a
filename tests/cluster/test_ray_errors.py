"""What Ray raises, as the user reads it."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("ray")

from ray.core.generated.common_pb2 import ActorDiedErrorContext
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    ObjectStoreFullError,
    OutOfMemoryError,
    RaySystemError,
    RayTaskError,
)

from nemo_thinkprune.cluster.ray_errors import told_plainly
from nemo_thinkprune.recipe.errors import UserError

TRACEBACK = (
    'ray::CpuWorker.train() (pid=7, ip=10.0.0.1, actor_id=ab, repr=<CpuWorker>)\n  File "a.py", line 1\n'
)


def told(error: Exception, checkpoints: Path = Path("none")) -> Exception:
    """What `error` becomes."""
    with pytest.raises(Exception) as caught, told_plainly(checkpoints):
        raise error
    assert caught.value is error or caught.value.__cause__ is error
    return caught.value


def task_error(cause: Exception) -> RayTaskError:
    """As an actor's exception arrives from ray.get."""
    name = f"{type(cause).__module__}.{type(cause).__qualname__}"
    return RayTaskError(
        "CpuWorker.train", f"{TRACEBACK}{name}: {cause}\n", cause, proctitle="ray", pid=7, ip="10.0.0.1"
    ).as_instanceof_cause()


def died(detail: str = "Worker exit type: SYSTEM_ERROR ... OOM killer ...", **about: str) -> ActorDiedError:
    named = {"class_name": "CpuWorker", "name": "lm_policy-0-0", **about}
    return ActorDiedError(ActorDiedErrorContext(actor_id=b"\1" * 16, pid=7, error_message=detail, **named))


def test_an_actor_that_was_lost_with_its_node_does_not_blame_memory(tmp_path: Path) -> None:
    text = "The actor died because its node has died. Node Id: f1af\n\tthe actor's node was terminated unexpectedly"
    assert str(told(died(text, node_ip_address="10.77.0.12"), tmp_path)) == (
        "CpuWorker (lm_policy-0-0) was lost with its node 10.77.0.12, which Ray holds for dead; "
        "the same command starts over"
    )
    assert "lost with its node, which" in str(told(died(text)))


def test_a_dead_actor_is_named_and_where_the_run_goes_on(tmp_path: Path) -> None:
    for folder in ("step_4", "step_10", "tmp_step_12"):
        (tmp_path / folder).mkdir()
    expected = (
        "CpuWorker (lm_policy-0-0) died, perhaps for want of memory: see the log; "
        "the same command goes on after step 10"
    )
    for error in (died(), task_error(died())):  # the driver's own call, and one of an actor's
        raised = told(error, tmp_path)
        assert (type(raised), str(raised)) == (RuntimeError, expected)
    assert str(told(died())).endswith("the same command starts over")
    assert str(told(ActorUnavailableError("keepalive watchdog timeout", None))).startswith(
        "an actor gives no answer, its process may hang or its node be cut off ("
    )


def test_a_mistake_of_the_user_arrives_as_one() -> None:
    mistake = UserError("rows.jsonl, line 3: no answer;\nadd one")
    assert "ray::" in str(task_error(mistake))
    for error in (task_error(mistake), task_error(task_error(mistake))):
        raised = told(error)
        assert (type(raised), str(raised)) == (UserError, str(mistake))
    assert told(mistake) is mistake
    raised = told(ActorDiedError(task_error_of_a_start(mistake)))
    assert (type(raised), str(raised)) == (UserError, str(mistake))


def task_error_of_a_start(cause: Exception) -> RayTaskError:
    name = f"{type(cause).__module__}.{type(cause).__qualname__}"
    text = f"{TRACEBACK.replace('train', '__init__')}{name}: {cause}\n"
    return RayTaskError("CpuWorker.__init__", text, cause, proctitle="ray", pid=7, ip="10.0.0.1")


def test_another_error_of_an_actor_is_its_last_line() -> None:
    raised = told(task_error(IndexError("no such token")))
    assert (type(raised), str(raised)) == (RuntimeError, "CpuWorker.train raised IndexError: no such token")
    raised = told(ActorDiedError(task_error_of_a_start(IndexError("no such token"))))
    assert str(raised) == "CpuWorker.__init__ could not start: builtins.IndexError: no such token"


@pytest.mark.parametrize(
    "error",
    [
        task_error(MemoryError("cannot allocate")),
        OutOfMemoryError("the node ran low on memory"),
        died("Worker exit type: NODE_OUT_OF_MEMORY"),
    ],
)
def test_want_of_memory_keeps_its_type_for_the_supervisors_advice(error: Exception) -> None:
    assert type(told(error)) is MemoryError


def test_errors_of_ray_itself_are_a_line() -> None:
    raised = told(RaySystemError("the raylet is gone\nand more"))
    assert type(raised) is RuntimeError and "\n" not in str(raised)
    assert "RaySystemError (System error: the raylet is gone)" in str(raised)
    assert "ObjectStoreFullError (" in str(told(ObjectStoreFullError("full")))
    own = ValueError("not Ray's")
    assert told(own) is own
