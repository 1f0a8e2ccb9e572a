import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nemo_thinkprune import cli
from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.rounds import commands
from nemo_thinkprune.rounds.lane import LaneFailed
from nemo_thinkprune.training.supervisor import JobFailed, JobStopped
from nemo_thinkprune.training.watch import Failure, FailureKind

VERBS = ("train", "prune", "eval", "score", "check", "report", "warmup", "quickstart", "data")


@pytest.fixture
def invoke():
    runner = CliRunner()
    return lambda *arguments: runner.invoke(cli.app, list(arguments), catch_exceptions=True)


@pytest.fixture
def recipe_file(tmp_path):
    file = tmp_path / "small.yaml"
    file.write_text("policy: {model_name: m}\ndata: {train: {data_path: p}, validation: {data_path: v}}\n")
    return str(file)


def test_help_lists_the_verbs_and_imports_nothing_heavy():
    code = (
        "import sys\n"
        "from nemo_thinkprune import cli\n"
        "try:\n"
        "    sys.argv = ['thinkprune', '--help']\n"
        "    cli.main()\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0, end.code\n"
        "heavy = 'torch transformers megatron sympy numpy pyarrow pydantic yaml rich jinja2 math_verify'.split()\n"
        "assert not [name for name in heavy if name in sys.modules], [n for n in heavy if n in sys.modules]\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for verb in VERBS:
        assert f"  {verb} " in done.stdout


@pytest.mark.parametrize("verb", [[verb] for verb in VERBS] + [["data", "prepare"]], ids=" ".join)
def test_each_verb_has_help(invoke, verb):
    result = invoke(*verb, "--help")
    assert result.exit_code == 0
    assert result.output.startswith(f"Usage: root {' '.join(verb)} ")


def test_check_describes_a_good_recipe(invoke, recipe_file):
    result = invoke("check", recipe_file, "grpo.max_num_steps=5")
    assert result.exit_code == 0
    assert "objective, minimised" in result.output
    assert "min(5, 10 epochs" in result.output


def test_what_the_user_can_correct_is_a_message_on_stderr_and_exit_code_2(invoke, recipe_file):
    result = invoke("check", recipe_file, "grpo.sed=1", "policy.generation.top_p=x")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert "grpo.sed: unknown key; did you mean 'grpo.seed'?" in result.stderr
    assert "policy.generation.top_p: expected a number" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "r", "--run-dirr", "x"],
        ["train", "r", "--engine", "other"],
        ["quickstart", "--engine", "nemo-rl"],
        ["train"],
        ["score", "f", "--truncation", "cut"],
        ["eval", "m", "--limit", "5"],
        ["eval", "m", "--data", "d", "--limit", "0"],
        ["nonsense"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_exit_code_2(invoke, arguments):
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert "Usage:" in result.stderr


@pytest.fixture
def calls(monkeypatch):
    """Record the call that a verb makes instead of running it."""
    made = []

    def record(name, answer=None):
        def call(*args, **kwargs):
            made.append((name, args, kwargs))
            return answer

        monkeypatch.setattr(commands, name, call)

    for name in ("train", "prune", "check", "warmup", "quickstart"):
        record(name)
    record("evaluate", "accuracy 0.5")
    return made


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "r", "a.b=1", "c=[1, 2]", "--run-dir", "out"],
        ["train", "--run-dir", "out", "r", "a.b=1", "c=[1, 2]"],
        ["train", "r", "--run-dir=out", "a.b=1", "--engine", "local", "c=[1, 2]"],
    ],
    ids=" ".join,
)
def test_options_and_overrides_do_not_swallow_each_other(invoke, calls, arguments):
    assert invoke(*arguments).exit_code == 0
    assert [(name, args) for name, args, _ in calls] == [("train", ("r", ["a.b=1", "c=[1, 2]"], Path("out")))]


@pytest.mark.parametrize("verb", ["train", "prune", "check"])
@pytest.mark.parametrize(
    ("options", "engine"),
    [
        ([], ("local", None, False)),
        (["--engine", "nemo-rl"], ("nemo-rl", None, False)),
        (["--engine", "nemo-rl", "--on-cpu", "--nemo-rl-root", "rl"], ("nemo-rl", Path("rl"), True)),
    ],
    ids=["default", "nemo-rl", "nemo-rl on a CPU"],
)
def test_the_engine_reaches_the_command(invoke, calls, verb, options, engine):
    result = invoke(verb, "r", "a=1", *options)
    assert result.exit_code == 0, result.output
    assert [(name, keys["engine"]) for name, _, keys in calls] == [(verb, commands.EngineChoice(*engine))]


@pytest.mark.parametrize("verb", ["train", "prune", "check"])
@pytest.mark.parametrize("option", [["--on-cpu"], ["--nemo-rl-root", "rl"]], ids=["cpu", "root"])
def test_what_only_nemo_rl_has_is_refused_without_it(invoke, calls, verb, option):
    result = invoke(verb, "r", *option)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {option[0]} belongs to --engine nemo-rl")
    assert calls == []


@pytest.mark.parametrize("verb", ["train", "prune", "check"])
@pytest.mark.parametrize("text", ["", " "])
def test_an_empty_root_of_nemo_rl_is_not_the_current_folder(invoke, calls, verb, text):
    result = invoke(verb, "r", "--engine", "nemo-rl", "--nemo-rl-root", text)
    assert (result.exit_code, calls) == (2, [])
    assert "--nemo-rl-root" in result.stderr and "it is empty" in result.stderr


@pytest.mark.parametrize("verb", ["train", "prune"])
def test_an_engine_that_is_not_here_is_a_message(invoke, monkeypatch, recipe_file, tmp_path, verb):
    monkeypatch.setattr("nemo_thinkprune.cluster.find._importable", lambda: None)
    monkeypatch.delenv("NEMO_RL_ROOT", raising=False)
    result = invoke(verb, recipe_file, "--engine", "nemo-rl", "--run-dir", str(tmp_path / "run"))
    assert result.exit_code == 2
    assert result.stderr.startswith("error: NeMo-RL is not here: run inside its container, or clone it")
    result = invoke("check", recipe_file, "--engine", "nemo-rl", "--nemo-rl-root", str(tmp_path))
    assert result.exit_code == 2
    assert "is not a checkout of NeMo-RL" in result.stderr
    assert not (tmp_path / "run").exists()


def test_prune_warmup_and_quickstart_pass_their_arguments_on(invoke, calls):
    for arguments in (["prune", "r", "a=1"], ["warmup", "r"], ["quickstart", "a=1", "--run-dir", "q"]):
        assert invoke(*arguments).exit_code == 0
    assert [(name, args) for name, args, _ in calls] == [
        ("prune", ("r", ["a=1"], None)),
        ("warmup", ("r", [], None)),
        ("quickstart", ("quickstart", ["a=1"], Path("q"))),
    ]


def test_eval_passes_its_options_on_and_prints_the_table(invoke, calls):
    result = invoke(
        "eval", "m", "a=1", "--data", "d", "--limit", "9", "-n", "4", "--temperature", "0", "--within", "5"
    )
    assert result.exit_code == 0
    assert "accuracy 0.5" in result.output
    assert calls == [
        ("evaluate", ("m", ["a=1"]),
         {"data": "d", "limit": 9, "samples": 4, "temperature": 0.0, "top_p": 0.95, "top_k": None, "within": [5],
          "recipe": None, "out": None}),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (UserError("write x instead"), 2, "error: write x instead"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (JobStopped(7), 75, "step 7 saved"),
        (LaneFailed("the job beside the rounds failed"), 1, "beside the rounds"),
    ],
)
def test_expected_errors_have_an_exit_code_and_no_traceback(invoke, monkeypatch, error, code, says):
    def run(*args, **kwargs):
        raise error

    monkeypatch.setattr(commands, "train", run)
    result = invoke("train", "r")
    assert result.exit_code == code
    assert says in result.stderr
    assert result.stdout == ""


def test_a_failed_job_is_exit_code_1(invoke, monkeypatch, tmp_path):
    kind = next(iter(FailureKind))

    def run(*args, **kwargs):
        raise JobFailed(
            Failure(kind=kind, rank=1, reason="rank 1 died"), log=tmp_path / "log", report=tmp_path / "r"
        )

    monkeypatch.setattr(commands, "train", run)
    result = invoke("train", "r")
    assert result.exit_code == 1
    assert "rank 1 died" in result.stderr


def test_a_defect_keeps_its_traceback(invoke, monkeypatch):
    def run(*args, **kwargs):
        raise RuntimeError("a defect")

    monkeypatch.setattr(commands, "train", run)
    result = invoke("train", "r")
    assert isinstance(result.exception, RuntimeError)
    assert result.exc_info[2] is not None


def test_score_writes_verdicts_and_prints_counts(invoke, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(
        '{"response": "</think> \\\\boxed{4}", "gold": "4", "finished": true}\n'
        '{"response": "</think> \\\\boxed{4}", "gold": "4", "finished": false}\n'
    )
    result = invoke("score", str(file), "--workers", "1", "--out", str(tmp_path / "out.jsonl"))
    assert result.exit_code == 0, result.output
    assert "2 rows, mean reward 0.5000 (correct 1, truncated 1)" in result.output
    assert '"reward": 1' in (tmp_path / "out.jsonl").read_text()


def test_report_of_what_is_no_run(invoke, tmp_path):
    result = invoke("report", str(tmp_path / "gone"))
    assert result.exit_code == 2
    assert "is not a folder" in result.stderr


def test_data_prepare_prints_counts_and_checksums(invoke, tmp_path):
    source = tmp_path / "problems.jsonl"
    source.write_text('{"question": "1+1?", "answer": "2"}\n{"question": "2+2?", "answer": "4"}\n')
    out = tmp_path / "out"
    result = invoke("data", "prepare", "--from", str(source), "--eval", str(source), "--out", str(out))
    assert result.exit_code == 0, result.output
    assert f"{out}/train.jsonl  2 rows  sha256 " in result.output
    assert f"{out}/prompt_deepseek.txt  sha256 " in result.output
    assert f"{out}/manifest.json  sha256 " in result.output
    assert (out / "manifest.json").is_file()


def test_data_prepare_says_how_to_get_what_it_was_not_given(invoke, tmp_path):
    source = tmp_path / "problems.jsonl"
    source.write_text('{"question": "1+1?", "answer": "2"}\n')
    out = tmp_path / "out"
    result = invoke("data", "prepare", "--from", str(source), "--out", str(out))
    assert result.exit_code == 0
    assert f"{out}/aime22-24.jsonl was not written" in result.output
    assert "/UCSB-NLP-Chang/ThinkPrune/raw/HEAD/aux_data/test_aime.parquet\n" in result.output
    assert f"thinkprune data prepare --out {out} --from {source} --aime test_aime.parquet" in result.output
    downloaded = tmp_path / "test_aime.jsonl"
    downloaded.write_text(
        "".join(
            f'{{"problem": "{source}?", "reward_model": {{"ground_truth": "1"}}, "data_source": "{source}"}}\n'
            for source in ("AIME22", "AIME23", "AIME24")
        )
    )
    result = invoke("data", "prepare", "--from", str(source), "--out", str(out), "--aime", str(downloaded))
    assert result.exit_code == 0, result.output
    assert f"{out}/aime22-24.jsonl  3 rows  sha256 " in result.output
    assert f"{out}/aime24.jsonl  1 rows  sha256 " in result.output
    assert "was not written" not in result.output


def test_data_prepare_into_a_file(invoke, tmp_path):
    source = tmp_path / "problems.jsonl"
    source.write_text('{"question": "1+1?", "answer": "2"}\n')
    result = invoke("data", "prepare", "--from", str(source), "--out", str(source))
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ") and "--out names a folder" in result.stderr


def test_scoring_with_too_little_memory_is_wrong_usage(invoke, tmp_path):
    result = invoke("score", str(tmp_path / "f"), "--memory-mb", "255")
    assert result.exit_code == 2
    assert "256" in result.stderr and "Usage:" in result.stderr


LIGHT = ("recipe", "data", "reporting", "rewards")


def test_no_module_of_the_light_rooms_imports_a_framework():
    code = (
        "import importlib, pkgutil, sys\n"
        "import checkpoints_tools, nemo_thinkprune.cli\n"
        f"rooms = [checkpoints_tools, *(importlib.import_module('nemo_thinkprune.' + r) for r in {LIGHT})]\n"
        "count = 1\n"
        "for room in rooms:\n"
        "    for module in pkgutil.walk_packages(room.__path__, room.__name__ + '.'):\n"
        "        importlib.import_module(module.name)\n"
        "        found = {'torch', 'ray', 'vllm', 'megatron'} & set(sys.modules)\n"
        "        assert not found, (module.name, found)\n"
        "        count += 1\n"
        "print(count)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 50
