"""Workers: deadlines, memory, death of worker and parent; nothing stays behind."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import psutil
import pytest

from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.rewards.pool import Outcome, Pool, _Worker
from nemo_thinkprune.rewards.score import Scorer
from nemo_thinkprune.rewards.types import Item, Reason

EASY = (r"\sqrt{8}", r"2\sqrt{2}")
SLOW = (r"\operatorname{ones}(9999,9999)", r"x^2")


def alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE  # whose parent has not asked for it yet
    except psutil.NoSuchProcess:
        return False


def gone(pids):
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and any(alive(pid) for pid in pids):
        time.sleep(0.02)
    return not any(alive(pid) for pid in pids)


def descendants():
    return {process.pid for process in psutil.Process().children(recursive=True)}


@pytest.fixture(autouse=True)
def nothing_left_behind():
    before = descendants()
    yield
    assert gone(descendants() - before)


def test_integers_never_start_a_worker():
    with Scorer(workers=2, deadline_s=5, memory_mb=512) as scorer:
        items = [Item(rf"\boxed{{{number:03d}}}", str(number % 7), True) for number in range(50)]
        items += [Item(r"\boxed{x+1}", "25", True), Item(r"\boxed{3\sqrt{2}}", "25", True)]
        verdicts = scorer.score(items)
        assert scorer.processes == []
    assert sum(verdict.reward for verdict in verdicts) == 7


def test_workers_start_lazily_are_reused_and_end_with_close():
    with Pool(workers=2, deadline_s=30, memory_mb=512) as pool:
        assert pool.processes == []
        assert pool.run([EASY]) == [Outcome.EQUAL]
        first = pool.processes
        assert len(first) == 1
        assert pool.run([("x+y", "y-x")]) == [Outcome.DIFFERENT]
        assert pool.processes == first
        pool.close()
        assert gone(first)
        assert pool.run([EASY]) == [Outcome.EQUAL]


@pytest.fixture
def kills(monkeypatch):
    """The pairs whose worker was killed at its deadline, one entry a kill."""
    killed, kill = [], _Worker.kill

    def counted(worker):
        if worker.task is not None and worker.process.poll() is None:
            killed.append(worker.task)
        kill(worker)

    monkeypatch.setattr(_Worker, "kill", counted)
    return killed


@pytest.mark.parametrize(("computed_s", "tries"), [(9.0, 1), (0.0, 2)])
def test_every_tenth_answer_is_a_bomb(kills, monkeypatch, computed_s, tries):
    monkeypatch.setattr(_Worker, "cpu_seconds", lambda _: computed_s)
    items = []
    for index in range(20):
        bomb = rf"\boxed{{\operatorname{{ones}}(9999,{9900 + index})}}"
        answer = bomb if index % 10 == 9 else rf"\boxed{{\sqrt{{{4 * index + 8}}}}}"
        items.append(Item(answer, rf"2\sqrt{{{index + 2}}}", True))
    with Scorer(workers=2, deadline_s=0.5, memory_mb=512) as scorer:
        verdicts = scorer.score(items)
        pids = scorer.processes
    assert gone(pids)
    # A bomb that computed all the time is stopped once, one that did not get to compute twice; nothing else ever is.
    assert len(kills) == 2 * tries
    assert len(set(kills)) == 2
    assert [verdict.reason for verdict in verdicts] == [
        Reason.TIMEOUT if index % 10 == 9 else Reason.CORRECT for index in range(20)
    ]


def test_a_deadline_kills_the_worker_and_spares_the_rest():
    with Pool(workers=1, deadline_s=0.5, memory_mb=512) as pool:
        pool.run([EASY])
        (pid,) = pool.processes
        start = time.monotonic()
        assert pool.run([SLOW]) == [Outcome.TIMEOUT]
        assert 0.4 < time.monotonic() - start < 30
        assert not psutil.pid_exists(pid)
        assert pool.run([EASY]) == [Outcome.EQUAL]


def test_a_breach_of_the_memory_limit_is_too_large():
    # The libraries take 70 MiB; a matrix of 490,000 entries does not fit into the 40 that are left.
    with Pool(workers=1, deadline_s=60, memory_mb=110) as pool:
        assert pool.run([(r"\operatorname{ones}(700,700)", "x^2"), EASY]) == [
            Outcome.TOO_LARGE,
            Outcome.EQUAL,
        ]


def test_the_smallest_memory_limit_a_user_can_set_is_enough_and_is_kept():
    items = [Item(r"\boxed{\operatorname{ones}(1500,1500)}", "x^2", True)]
    items.append(Item(rf"\boxed{{{EASY[0]}}}", EASY[1], True))
    with Scorer(workers=1, deadline_s=60, memory_mb=256) as scorer:
        reasons = [verdict.reason for verdict in scorer.score(items)]
    assert reasons == [Reason.TOO_LARGE, Reason.CORRECT]


def test_a_killed_worker_costs_one_pair_a_second_try():
    with Pool(workers=1, deadline_s=60, memory_mb=512) as pool:
        pool.run([EASY])
        for pid in pool.processes:
            os.kill(pid, signal.SIGKILL)
        assert pool.run([EASY, ("x", "y")]) == [Outcome.EQUAL, Outcome.DIFFERENT]


def test_a_missed_deadline_costs_a_right_answer_nothing(kills):
    # A stopped worker stands for a machine too busy to let it run.
    with Pool(workers=1, deadline_s=3, memory_mb=512) as pool:
        pool.run([EASY])
        for pid in pool.processes:
            os.kill(pid, signal.SIGSTOP)
        assert pool.run([EASY, ("x+y", "y-x")]) == [Outcome.EQUAL, Outcome.DIFFERENT]
    assert kills == [0]


def test_the_time_a_worker_computed_is_measured():
    with Pool(workers=1, deadline_s=60, memory_mb=512) as pool:
        pool.run([EASY])
        (worker,) = pool._workers
        worker.send(0, *EASY, deadline=time.monotonic() + 60)
        assert (
            0 <= worker.cpu_seconds() < 5
        )  # not the seconds that its start took, nor those of earlier pairs
        spent = psutil.Process(worker.process.pid).cpu_times()
        assert spent.user + spent.system > worker.cpu_seconds()


def test_a_pair_that_missed_its_deadline_is_tried_again_alone(monkeypatch):
    monkeypatch.setattr(_Worker, "cpu_seconds", lambda _: 0.0)
    together, send = [], _Worker.send
    with Pool(workers=2, deadline_s=0.5, memory_mb=512) as pool:

        def watched(worker, task, *pair, deadline):
            together.append((task, sum(other.task is not None for other in pool._workers)))
            send(worker, task, *pair, deadline=deadline)

        monkeypatch.setattr(_Worker, "send", watched)
        outcomes = pool.run([SLOW, EASY, (SLOW[1], SLOW[0]), ("x+y", "y-x")])
    assert outcomes == [Outcome.TIMEOUT, Outcome.EQUAL, Outcome.TIMEOUT, Outcome.DIFFERENT]
    assert together[-2:] == [(0, 0), (2, 0)]


def test_a_timeout_is_not_remembered(monkeypatch):
    # A batch asks once, however often the pair stands in it; the next batch asks again.
    asked, outcomes = [], iter([[Outcome.TIMEOUT], [Outcome.EQUAL], []])
    with Scorer(workers=1, deadline_s=5, memory_mb=512) as scorer:
        monkeypatch.setattr(scorer._pool, "run", lambda pairs, _: asked.append(list(pairs)) or next(outcomes))
        items = [Item(rf"\boxed{{{SLOW[0]}}}", SLOW[1], True)] * 4
        reasons = [{verdict.reason for verdict in scorer.score(items)} for _ in range(3)]
    assert reasons == [{Reason.TIMEOUT}, {Reason.CORRECT}, {Reason.CORRECT}]
    assert asked == [[SLOW], [SLOW], []]


def test_an_exception_in_the_batch_leaves_no_worker():
    def interrupt():
        raise KeyboardInterrupt

    pool = Pool(workers=2, deadline_s=30, memory_mb=512)
    pool.run([EASY, ("x", "y+1")])
    pids = pool.processes
    with pytest.raises(KeyboardInterrupt):
        pool.run([EASY, SLOW], on_outcome=interrupt)
    assert gone(pids)
    assert pool.run([EASY]) == [Outcome.EQUAL]
    pool.close()


def test_a_dropped_pool_leaves_no_worker():
    pool = Pool(workers=1, deadline_s=30, memory_mb=512)
    pool.run([EASY])
    pids = pool.processes
    del pool
    assert gone(pids)


@pytest.mark.parametrize(
    "end", ["os.kill(os.getpid(), signal.SIGKILL)", "raise SystemExit(3)", "os._exit(1)"]
)
def test_workers_end_with_their_parent(end):
    program = f"""
        import os, signal, threading
        from nemo_thinkprune.rewards.pool import Pool
        pool = Pool(workers=2, deadline_s=100, memory_mb=512)
        pool.run([({EASY[0]!r}, {EASY[1]!r}), ("x", "y+1")])
        print(*pool.processes, flush=True)
        if "SIGKILL" in {end!r}:  # in the middle of a computation
            threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
            pool.run([({SLOW[0]!r}, {SLOW[1]!r})])
        {end}
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=120
    )
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) >= 1, done.stderr
    assert gone(pids)


def test_identical_pairs_are_judged_once_and_remembered():
    judged = []
    with Scorer(workers=1, deadline_s=30, memory_mb=512) as scorer:
        items = [Item(rf"\boxed{{{EASY[0]}}}", EASY[1], True)] * 16
        assert {verdict.reason for verdict in scorer.score(items, lambda: judged.append(1))} == {
            Reason.CORRECT
        }
        scorer.score(items, lambda: judged.append(1))
    assert len(judged) == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"workers": 0, "deadline_s": 5, "memory_mb": 512},
        {"workers": 1, "deadline_s": 0, "memory_mb": 512},
        {"workers": 1, "deadline_s": 5, "memory_mb": 10},
        {"workers": 1, "deadline_s": 5, "memory_mb": 512, "truncation": "half"},
    ],
)
def test_settings_out_of_range(settings):
    with pytest.raises(UserError):
        Scorer(**settings)
