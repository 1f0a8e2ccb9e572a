"""The environment as the Ray actor that NeMo-RL makes of it: hostile responses, hanging answers, no leaks."""

import time

import psutil
import pytest
from support.ray_here import ray_here

from nemo_thinkprune.cluster.names import CPU_WORKER, ENVIRONMENT, VALIDATION_ENVIRONMENT
from nemo_thinkprune.cluster.responses import Response

SETTINGS = {"workers": 2, "deadline_s": 20.0, "memory_mb": 1024, "truncation": "zero"}
HANGING = r"\boxed{\operatorname{ones}(9999,9999)}"
NEEDS_WORKER = r"\boxed{\sqrt{8}}"


@pytest.fixture(scope="module")
def nemo_rl():
    with ray_here():
        from nemo_thinkprune.cluster.register import register

        register()
        yield
    assert gone(scoring_workers())


@pytest.fixture(scope="module")
def actor(nemo_rl):
    return make()


def make(name=ENVIRONMENT, **changes):
    from nemo_rl.environments.utils import create_env

    return create_env(name, SETTINGS | changes)


def step(actor, responses, gold="25"):
    import ray

    logs = [
        [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": response}]
        for response in responses
    ]
    known = {"problem_id": "p1", "question": "How many?", "ground_truth": gold}
    return ray.get(actor.step.remote(logs, [known] * len(logs)), timeout=300)


def scoring_workers():
    """Processes of the pool below this process, whose children Ray's are."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "nemo_thinkprune.rewards.worker" in process.cmdline():
                found.append(process)
        except psutil.Error:
            continue
    return found


def gone(processes):
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and any(alive(process) for process in processes):
        time.sleep(0.05)
    return not any(alive(process) for process in processes)


def alive(process):
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def judging(actor):
    """The workers that `actor` starts for an answer that needs one."""
    before = scoring_workers()
    assert step(actor, [ended(NEEDS_WORKER)], gold=r"2\sqrt{2}").rewards.tolist() == [1]
    started = [process for process in scoring_workers() if process not in before]
    assert started
    return started


def ended(text):
    return Response(text, len(text.split()) + 1, True)


def cut(text):
    return Response(text, len(text.split()), False)


def test_rewards_under_both_truncation_rules(actor):
    import torch

    responses = [
        ended(r"<think>5 times 5</think> \boxed{25}"),
        ended(r"<think>5 times 5</think> \boxed{24}"),
        ended(r"the answer is there, in no box"),
        cut(r"<think>5 times 5 is"),
        cut(r"<think>5 times 5 is \boxed{2"),
        cut(r"<think>5 times 5 is \boxed{25} but let me"),
        cut(""),
        ended(""),
    ]
    found = step(actor, responses)
    assert found.rewards.tolist() == [1, 0, 0, 0, 0, 0, 0, 0]
    assert found.rewards.dtype == torch.float32 and found.terminateds.tolist() == [True] * 8
    assert found.observations == [{"role": "environment", "content": ""}] * 8
    assert found.answers == ["25", "24", None, None, None, None, None, None]
    assert step(make(truncation="score_cut_text"), responses).rewards.tolist() == [1, 0, 0, 0, 0, 1, 0, 0]


def test_no_responses_no_rewards(actor):
    found = step(actor, [])
    assert found.rewards.shape == (0,) and found.terminateds.shape == (0,)


def test_enormous_and_malicious_responses_earn_nothing_and_do_nothing(actor, tmp_path):
    target = tmp_path / "made"
    code = [
        f"__import__('os').system('touch {target}')",
        f'os.system("touch {target}")',
        f"open('{target}','w')",
        r"\sqrt{2} + __import__('os')._exit(0)",
        "9**9**9**9",
        "9^{9^{9^{9}}}",
        r"\sqrt{2}^{9^{9^{9}}}",
        "((((((((((9!)!)!)!)!)!)!)!)!)!)!",
        "{" * 50_000,
        r"\frac{" * 5_000 + "25",
        "9" * 1_000_000,
    ]
    hostile = [ended(rf"\boxed{{{text}}}") for text in code] + [ended(text) for text in code]
    hostile += [ended("\\boxed{" * 200_000), ended("\x00\ud800" * 10), ended("}" * 1_000_000)]
    enormous = ended("so it is " * 600_000 + r"\boxed{25}")
    assert step(actor, [*hostile, enormous, ended(r"\boxed{25}")]).rewards.tolist() == [0] * len(hostile) + [
        1,
        1,
    ]
    assert not target.exists()


def test_a_hanging_answer_costs_its_deadline_and_only_itself(nemo_rl):
    import ray

    actor = make(deadline_s=1.0)
    found = step(actor, [ended(HANGING), ended(NEEDS_WORKER), cut(HANGING)], gold=r"2\sqrt{2}")
    assert found.rewards.tolist() == [0, 1, 0]
    rows = ray.get(actor.drain.remote())
    assert [row["reason"] for row in rows] == ["timeout", "correct", "truncated"]
    assert [row["stop_reason"] for row in rows] == ["eos", "eos", "limit"]
    assert step(actor, [ended(r"\boxed{25}")]).rewards.tolist() == [1]  # and the next batch is not delayed


def test_no_worker_outlives_an_actor_killed_while_it_judges(nemo_rl):
    import ray

    actor = make(deadline_s=300.0)
    workers = judging(actor)
    actor.step.remote(
        [[{"role": "assistant", "content": ended(HANGING)}]],
        [{"problem_id": "p", "question": "q", "ground_truth": "x^2"}],
    )
    while sum(process.cpu_times().user for process in workers) < 0.2:
        time.sleep(0.05)
    ray.kill(actor)
    assert gone(workers)


def test_no_worker_outlives_an_actor_that_nobody_holds(nemo_rl):
    actor = make()
    workers = judging(actor)
    del actor
    assert gone(workers)


def test_shutdown_ends_the_workers_and_can_be_repeated(nemo_rl):
    import ray

    actor = make()
    workers = judging(actor)
    ray.get([actor.shutdown.remote(), actor.shutdown.remote()])
    assert gone(workers)
    assert step(actor, [ended(r"\boxed{25}")]).rewards.tolist() == [1]


def test_validation_ignores_the_length_reward(nemo_rl):
    reward = {"name": "l1_exact", "params": {"target": 100, "alpha": 0.01}}
    validation = make(VALIDATION_ENVIRONMENT, length_reward=reward)
    assert step(validation, [ended(r"\boxed{25}")]).rewards.tolist() == [1]


def test_plain_text_is_an_error_that_says_what_to_do(actor):
    with pytest.raises(ValueError, match="thinkprune train RECIPE --engine nemo-rl"):
        step(actor, [r"\boxed{25}"])


def test_registering_twice_is_harmless(nemo_rl):
    from nemo_rl.data.processors import PROCESSOR_REGISTRY
    from nemo_rl.distributed.ray_actor_environment_registry import get_actor_python_env
    from nemo_rl.distributed.virtual_cluster import PY_EXECUTABLES
    from nemo_rl.environments.utils import ENV_REGISTRY

    from nemo_thinkprune.cluster.dataset import process_problem
    from nemo_thinkprune.cluster.register import register

    register()
    actors = [ENV_REGISTRY[name]["actor_class_fqn"] for name in (ENVIRONMENT, VALIDATION_ENVIRONMENT)]
    assert [get_actor_python_env(name) for name in [*actors, CPU_WORKER]] == [PY_EXECUTABLES.SYSTEM] * 3
    assert PROCESSOR_REGISTRY["thinkprune"] is process_problem
