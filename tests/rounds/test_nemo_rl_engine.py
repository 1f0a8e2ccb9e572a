import json
import os
import shlex
from functools import partial

import fake_engine
import pytest
from support.nemo_rl import empty_checkout
from typer.testing import CliRunner

from nemo_thinkprune import cli
from nemo_thinkprune.data.tiny_model import model_config
from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.rounds import commands, nemo_rl
from nemo_thinkprune.rounds import prune as prune_module
from nemo_thinkprune.rounds.plan import Engine
from nemo_thinkprune.rounds.prune import prune
from nemo_thinkprune.training import models, start
from nemo_thinkprune.training.job import EvalSpec, Job

NO_EVALUATION = Engine(run=fake_engine.run, evaluates=False)


@pytest.fixture
def checkout(tmp_path):
    return empty_checkout(tmp_path / "rl", "0.7.0")


@pytest.fixture
def root(tmp_path, monkeypatch):
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


@pytest.fixture(autouse=True)
def architectures(monkeypatch):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0")


@pytest.fixture
def started(monkeypatch):
    """(job, how it was run) of every job, none of which is."""
    seen = []
    monkeypatch.setattr(nemo_rl, "run_job", lambda job, **how: seen.append((job, how)))
    monkeypatch.setattr(
        nemo_rl,
        "run_with_progress",
        lambda job, run=None: run(job) if run else seen.append((job, "here")),
    )
    return seen


def job_of(root, kind="train", **fields):
    return Job(kind=kind, run_dir=root, recipe=fake_engine.recipe(root), model="tiny", limit=9, **fields)


@pytest.mark.parametrize("on_cpu", [True, False])
def test_training_is_one_process_that_finds_nemo_rl_and_knows_its_engine(checkout, root, started, on_cpu):
    nemo_rl.nemo_rl_engine(root=checkout, on_cpu=on_cpu).run(job_of(root))
    ((job, how),) = started
    assert (job.engine, job.on_cpu, job.limit) == ("nemo-rl", on_cpu, 9)
    assert (how["entry"], how["processes"]) == ("nemo_thinkprune.cluster.driver:run", 1)
    path = how["environment"](root / "attempt")["PYTHONPATH"].split(os.pathsep)
    assert {str(checkout), str(root / "attempt" / "python")} <= set(path)


def test_processes_that_feed_gpus_get_more_threads_than_a_rank_on_a_cpu(checkout, root, started, monkeypatch):
    def threads(*, on_cpu):
        nemo_rl.nemo_rl_engine(root=checkout, on_cpu=on_cpu).run(job_of(root))
        return started[-1][1]["environment"](root / "attempt").get("OMP_NUM_THREADS")

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert threads(on_cpu=False) == nemo_rl.GPU_THREADS
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert threads(on_cpu=False) == "5"
    assert threads(on_cpu=True) is None


def test_gpus_need_their_architectures_named_before_anything_starts(checkout, root, started, monkeypatch):
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST")
    with pytest.raises(
        UserError, match=r"TORCH_CUDA_ARCH_LIST is not set.* export TORCH_CUDA_ARCH_LIST=9\.0"
    ):
        nemo_rl.nemo_rl_engine(root=checkout, on_cpu=False).run(job_of(root))
    assert started == []
    nemo_rl.nemo_rl_engine(root=checkout, on_cpu=True).run(job_of(root))
    assert started[0][1]["environment"](root / "attempt")["TORCH_CUDA_ARCH_LIST"] == "9.0"


def test_an_evaluation_is_the_local_engines(checkout, root, started):
    spec = EvalSpec(
        data_path="d", limit=9, samples=1, temperature=1, top_p=1, top_k=None, out=root / "o.json"
    )
    job = job_of(root, kind="eval", eval=spec)
    nemo_rl.nemo_rl_engine(root=checkout, on_cpu=True).run(job)
    assert started == [(job, "here")] and job.engine == "local"


def test_what_the_engine_cannot_do_on_a_cluster(checkout):
    on_gpus, on_cpu = (nemo_rl.nemo_rl_engine(root=checkout, on_cpu=value) for value in (False, True))
    assert (on_gpus.evaluates, on_gpus.weights, on_gpus.beside) == (False, False, None)
    assert (on_cpu.evaluates, on_cpu.weights, on_cpu.beside) == (True, True, None)


def test_cpu_workers_serve_one_release(checkout):
    empty_checkout(checkout, "0.6.0")
    with pytest.raises(UserError, match=r"--on-cpu needs NeMo-RL v0\.7\.0, and .*rl is 0\.6\.0"):
        nemo_rl.nemo_rl_engine(root=checkout, on_cpu=True)
    assert nemo_rl.nemo_rl_engine(root=checkout, on_cpu=False).weights is False


def test_without_nemo_rl_there_is_no_engine(tmp_path):
    with pytest.raises(UserError, match="is not a checkout of NeMo-RL"):
        nemo_rl.nemo_rl_engine(root=tmp_path, on_cpu=True)


def go(root, engine, **thinkprune):
    said = []
    summary = prune(fake_engine.recipe(root, **thinkprune), root, engine=engine, say=said.append)
    return summary, said


def test_rounds_without_evaluations_end_with_the_commands_that_measure(root):
    summary, said = go(root, NO_EVALUATION)
    assert {call["kind"] for call in fake_engine.calls(root)} == {"train"}
    assert [call["name"] for call in fake_engine.calls(root)][:4] == [
        "round_1_L128",
        "round_2_L96",
        "round_3_L64",
        "control",
    ]
    assert summary["status"] == "partial" and "evaluation of the control run" in summary["missing"]
    assert not any(line.startswith("Next:") for line in said)
    shown = [
        line.strip() for line in said[said.index(next(x for x in said if x.startswith("Measure:"))) + 1 :]
    ]
    assert [line.split()[2] for line in shown] == [
        "tiny",
        "run/round_1_L128/checkpoints/step_6",
        "run/round_2_L96/checkpoints/step_6",
        "run/round_3_L64/checkpoints/step_6",
        "run/control/checkpoints/step_18",
        "run",
    ]
    page = (root / "report.html").read_text()
    assert "shortest mean response" in page and "evaluation of round 1" in page


def test_the_commands_say_what_the_engine_would_have_measured_and_where_it_belongs(root, monkeypatch):
    asked = []
    monkeypatch.setattr(commands, "evaluate", lambda model, _, **keys: asked.append((model, keys)) or "done")
    _, said = go(root, NO_EVALUATION, validation={"samples": 3, "top_k": 7})
    for line in said:
        words = shlex.split(line)
        if words[:2] == ["thinkprune", "eval"]:
            assert CliRunner().invoke(cli.app, words[1:]).exit_code == 0, line
    keys = dict(asked)["run/round_2_L96/checkpoints/step_6"]
    assert (keys["data"], keys["limit"], keys["samples"], keys["top_k"]) == ("report.jsonl", 240, 3, 7)
    assert (keys["within"], str(keys["out"])) == ([128, 96, 64], "run/eval/round_2_L96.json")
    assert keys["recipe"] == "run/config.yaml"


def test_results_that_were_measured_by_hand_are_those_of_the_run(root):
    first, _ = go(root, NO_EVALUATION)
    trained = len(fake_engine.calls(root))
    again, _ = go(root, NO_EVALUATION)
    assert again == first and len(fake_engine.calls(root)) == trained
    measured, _ = go(root, Engine(run=fake_engine.run))
    finished, said = go(root, NO_EVALUATION)
    assert finished == measured and finished["status"] == "finished"
    assert not any(line.startswith("Measure:") for line in said)


def test_without_a_reporting_set_nothing_is_to_be_measured(root):
    _, said = go(root, NO_EVALUATION, report_data=None)
    assert not any(line.startswith("Measure:") for line in said)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub model; whether its weights were asked for, at each download."""
    folder, asked = tmp_path / "snapshot", []
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(model_config() | {"max_position_embeddings": 9999}))

    def download(name, *, weights):
        asked.append((name, weights))
        return folder

    monkeypatch.setattr(models, "_download", download)
    monkeypatch.setattr(nemo_rl, "check_for_nemo_rl", lambda recipe, *, on_cpu: None)
    return folder, asked


HUB = ["policy.model_name=org/big", "policy.tokenizer.name=org/big", "thinkprune.report_data=null"]


@pytest.mark.parametrize("on_cpu", [True, False])
def test_on_a_cluster_the_head_needs_no_weights_and_the_model_keeps_its_name(
    hub, checkout, monkeypatch, tmp_path, on_cpu
):
    folder, asked = hub
    seen = {}
    monkeypatch.setattr(
        prune_module, "prune", lambda recipe, run_dir, **keys: seen.update(keys, recipe=recipe)
    )
    choice = commands.EngineChoice("nemo-rl", checkout, on_cpu)
    commands.prune("thinkprune", HUB, tmp_path / "run", say=print, engine=choice)
    policy = seen["recipe"].policy
    assert asked == [("org/big", on_cpu)]
    assert {policy.model_name, policy.tokenizer.name} == {str(folder) if on_cpu else "org/big"}


@pytest.mark.parametrize("on_cpu", [True, False])
def test_a_round_on_a_cluster_names_the_model_and_has_its_tokenizer(hub, checkout, tmp_path, started, on_cpu):
    engine = nemo_rl.nemo_rl_engine(root=checkout, on_cpu=on_cpu)
    recipe = commands.load_recipe("thinkprune", HUB)
    start.train(recipe, tmp_path / "run", run=engine.run, check=engine.check, weights=engine.weights)
    ((job, _),) = started
    assert (job.model, job.recipe.policy.model_name) == (str(hub[0]), "org/big")
    assert hub[1] == [("org/big", on_cpu)]


@pytest.mark.parametrize("on_cpu", [True, False])
def test_rounds_on_nemo_rl_keep_every_checkpoint(hub, checkout, tmp_path, started, on_cpu):
    choice = commands.EngineChoice("nemo-rl", checkout, on_cpu)
    few = [*HUB, "checkpointing.keep_top_k=2"]
    with pytest.raises(UserError, match=r"keep_top_k must be null: the rule chooses among all checkpoints"):
        commands.prune("thinkprune", few, tmp_path / "run", say=print, engine=choice)
    assert started == []


def test_a_model_is_checked_for_the_engine_before_and_after_it_is_found(hub, tmp_path):
    names = []
    engine = partial(lambda recipe: names.append(recipe.policy.model_name))
    start.train(
        commands.load_recipe("thinkprune", HUB), tmp_path, run=lambda job: None, check=engine, weights=False
    )
    assert names == ["org/big", str(hub[0])]
