"""The script of a job: correct shell in every variant, what was asked for, and nothing that breaks out of it."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from nemo_thinkprune import cli
from nemo_thinkprune.launch.render import render
from nemo_thinkprune.launch.slurm_job import (
    GCS_PORTS,
    SlurmJob,
    check_job,
    default_save_ahead,
    gcs_port,
    seconds,
)
from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.load import recipes_folder

JOB = SlurmJob(
    recipe="qwq-32b-4k-4n8g",
    run_dir=Path("/shared/runs/x"),
    work_dir=Path("/shared/work"),
    nodes=4,
    gpus_per_node=8,
    time="24:00:00",
    name="x",
    nemo_rl_root=Path("/opt/nemo-rl"),
    python=Path("/venv/bin"),
)
CONTAINER = replace(
    JOB, container="nvcr.io#nvidia/nemo-rl:v0.7.0", source=Path("/shared/thinkprune"), python=None
)
VARIANTS = {
    "whole nodes": JOB,
    "all rounds": replace(JOB, verb="prune"),
    "one node": replace(JOB, nodes=1),
    "shared nodes": replace(JOB, cpus_per_node=8, partition="a", account="b", sbatch=("--qos=high",)),
    "on a CPU": replace(JOB, on_cpu=True, without_gpus=True, gpus_per_node=1),
    "local engine": replace(JOB, engine="local", nodes=1),
    "container": CONTAINER,
    "container with mounts": replace(CONTAINER, mounts=("/shared:/shared:ro", "/data:/d")),
    "secrets, variables and setup": replace(
        JOB,
        secrets_file=Path("/home/me/my secrets"),
        variables=(("HF_HOME", "/a b"),),
        setup=("module load cuda", "ulimit -n 65536"),
    ),
}
HOSTILE = [
    "it's", 'say "x"', "a b", "$(touch broken)", "`touch broken`", "; touch broken;", "&& touch broken", "$HOME",
    "${HOME}", "*", "~", "#", "\\", "!", "{{ 7 }}", "{% raw %}", ")", "a=(b)", "é", "\t", "|", ">x", "%j",
]  # fmt: skip
# The text of an override: one line, no NUL, which no command line can hold.
LINES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r\n\x85\u2028\u2029"))


def words_of_trainer(script: str) -> list[str]:
    """The trainer's command as bash understands it."""
    return bash(between(script, "trainer=(", "\n)\n") + "\nprintf '%s\\0' \"${trainer[@]}\"\n")


def settings_of(script: str, *names: str) -> list[str]:
    """What the part "What runs" leaves in shell variables; `cd` only tells where it would go."""
    part = between(script, "# ---- What runs", "# ---- This attempt")
    show = "".join(f"printf '%s\\0' \"${{{name}}}\"\n" for name in names)
    return bash(f"cd() {{ there=$1; }}\nmodule() {{ :; }}\n{part}\n{show}")


def between(script: str, begin: str, end: str) -> str:
    start = script.index(f"\n{begin}") + 1
    return script[start : script.index(end, start) + len(end)].removesuffix("# ---- This attempt")


def bash(script: str) -> list[str]:
    done = subprocess.run(
        ["bash", "-euo", "pipefail"], input=script.encode(), capture_output=True, timeout=30, check=False
    )
    assert done.returncode == 0 and not done.stderr, (script, done.stderr)
    return done.stdout.decode().split("\0")[:-1]


@pytest.fixture
def launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """`thinkprune launch slurm` in an empty folder, without Slurm and without secrets in the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NEMO_RL_ROOT", "/opt/nemo-rl")
    for name in ("WANDB_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    return lambda *arguments: CliRunner().invoke(cli.app, ["launch", "slurm", *arguments])


# ---- Shell ----


@pytest.mark.parametrize("job", VARIANTS.values(), ids=VARIANTS)
def test_bash_understands_it(job: SlurmJob) -> None:
    check_job(job)
    done = subprocess.run(["bash", "-n"], input=render(job), text=True, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(
    shutil.which("shellcheck") is None, reason="shellcheck is not installed: apt-get install it"
)
@pytest.mark.parametrize("job", VARIANTS.values(), ids=VARIANTS)
def test_shellcheck_has_nothing_to_say(job: SlurmJob) -> None:
    command = ["shellcheck", "--severity=style", "--shell=bash", "-"]
    done = subprocess.run(command, input=render(job), text=True, capture_output=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("job", VARIANTS.values(), ids=VARIANTS)
def test_it_has_neither_gaps_nor_remains_of_the_template(job: SlurmJob) -> None:
    script = render(job)
    assert not re.search(r"\{%|%\}|\{\{|None", script)
    assert "\n\n\n" not in script
    assert not re.search(r"[ \t]+$", script, re.MULTILINE)


# ---- What was asked for ----


def sbatch_options(script: str) -> list[str]:
    return re.findall(r"^#SBATCH (.*)$", script, re.MULTILINE)


def test_options_of_sbatch_are_those_asked_for() -> None:
    job = replace(
        VARIANTS["shared nodes"], time="2-00:00:00", name="run", save_ahead_s=900, sbatch=("--qos=a", "--comment=x")
    )  # fmt: skip
    assert sbatch_options(render(job)) == [
        "--job-name=run",
        "--nodes=4",
        "--ntasks-per-node=1",
        "--gres=gpu:8",
        "--cpus-per-task=8",
        "--time=2-00:00:00",
        "--partition=a",
        "--account=b",
        "--signal=B:USR1@900",
        "--requeue",
        "--open-mode=append",
        "--output=/shared/runs/x/logs/job_%j.log",
        "--qos=a",
        "--comment=x",
    ]


def test_whole_nodes_are_asked_for_unless_processors_are_given() -> None:
    assert {"--exclusive", "--mem=0"} <= set(sbatch_options(render(JOB)))
    assert not {"--exclusive", "--mem=0"} & set(sbatch_options(render(VARIANTS["shared nodes"])))


def test_a_job_on_cpus_asks_for_no_gpus() -> None:
    assert not [option for option in sbatch_options(render(VARIANTS["on a CPU"])) if "gpu" in option]


def test_the_trainer_is_told_all_that_the_job_is() -> None:
    job = replace(
        JOB, verb="prune", on_cpu=True, overrides=("grpo.max_num_steps=3", "logger.wandb_enabled=true")
    )
    assert words_of_trainer(render(job)) == [
        *("python", "-m", "nemo_thinkprune", "prune", "qwq-32b-4k-4n8g"),
        *("--engine", "nemo-rl", "--on-cpu", "--nemo-rl-root", "/opt/nemo-rl", "--run-dir", "/shared/runs/x"),
        *("grpo.max_num_steps=3", "logger.wandb_enabled=true"),
    ]


def test_the_local_engine_needs_no_ray() -> None:
    assert "ray start" in render(JOB)
    assert not re.search(r"\bray\b", render(VARIANTS["local engine"]).replace("RAY_", ""))


@pytest.mark.parametrize(
    "time, total",
    [
        ("90", 5400),
        ("90:30", 5430),
        ("24:00:00", 86400),
        ("2-0", 172800),
        ("1-2:3", 93780),
        ("1-2:3:4", 93784),
    ],
)
def test_a_time_limit_has_slurms_forms(time: str, total: int) -> None:
    assert seconds(time) == total
    check_job(replace(JOB, time=time))


def test_saving_begins_half_an_hour_ahead_and_in_a_short_job_a_quarter() -> None:
    assert [default_save_ahead(time) for time in ("24:00:00", "20", "2:00:00")] == [1800, 300, 1800]


# ---- Nothing breaks out ----


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_text_stays_a_word(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("/shared") / f"x{text}y"
    job = replace(
        JOB, recipe=str(path / "r.yaml"), overrides=(f"logger.wandb.name={text}",), nemo_rl_root=path, python=path,
        secrets_file=path, variables=(("HF_HOME", text),),
    )  # fmt: skip
    check_job(job)
    script = render(job)
    words = words_of_trainer(script)
    assert words[4] == str(path / "r.yaml")
    assert words[words.index("--nemo-rl-root") + 1] == str(path)
    assert words[-1] == f"logger.wandb.name={text}"
    home, folder, search = settings_of(script, "HF_HOME", "secrets_file", "PATH")
    assert (home, folder, search.startswith(f"{path}:")) == (text, str(path), True)
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=40, deadline=None)
@given(value=LINES)
def test_an_override_reaches_the_trainer_as_it_is(value: str) -> None:
    job = replace(JOB, overrides=(f"a={value}", "b=1"))
    check_job(job)
    assert words_of_trainer(render(job))[-2:] == [f"a={value}", "b=1"]


@pytest.mark.parametrize("text", [text for text in HOSTILE if not re.search(r"[\s%\\]", text)])
def test_folders_of_the_job_may_have_any_name_that_sbatch_takes(text: str) -> None:
    job = replace(JOB, run_dir=Path(f"/shared/x{text}"), work_dir=Path(f"/shared/y{text}"))
    check_job(job)
    assert settings_of(render(job), "run_dir", "there") == [str(job.run_dir), str(job.work_dir)]


# ---- What is refused ----

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no nodes": ({"nodes": 0}, "--nodes 0: at least 1"),
    "no CPUs": ({"cpus_per_node": -2}, "--cpus-per-node -2"),
    "no failures": ({"max_failures": 0}, "--max-failures 0"),
    "not a number": ({"stall_factor": float("nan")}, "--stall-factor nan"),
    "time": ({"time": "1 day"}, "no time of Slurm's"),
    "time with an option": ({"time": "10 --wrap=x"}, "no time of Slurm's"),
    "saving too late": ({"time": "10", "save_ahead_s": 600}, "--save-ahead 600 s is not within --time 10"),
    "local engine": ({"engine": "local"}, "the local engine trains on one node"),
    "scratch elsewhere": ({"scratch": "tmp"}, "name a folder from the root"),
    "scratch with a space": ({"scratch": "/tmp/a b"}, "letters, digits"),
    "scratch with a command": ({"scratch": "/tmp/$(x)"}, "letters, digits"),
    "scratch too long": ({"scratch": "/" + "s" * 40}, "Ray's sockets have no room"),
    "mounts alone": ({"mounts": ("/a:/b",)}, "--mounts belongs to --container"),
    "relative mount": ({"container": "x", "mounts": ("a:/b",)}, "write /outside:/inside"),
    "mount with a command": ({"container": "x", "mounts": ("/a:/$(b)",)}, "write /outside:/inside"),
    "two mounts in one": ({"container": "x", "mounts": ("/a:/b,/c:/d",)}, "write /outside:/inside"),
    "container and colon": ({"container": "x", "run_dir": Path("/a:b")}, "/a:b: a container cannot"),
    "folder with a space": ({"run_dir": Path("/a b")}, "confuses sbatch"),
    "folder with a %": ({"work_dir": Path("/a%j")}, "confuses sbatch"),
    "two lines of setup": ({"setup": ("a\nb",)}, "one line each"),
    "recipe of two lines": ({"recipe": "/x\ntouch broken\n/y.yaml"}, "one line each"),
    "image of two lines": ({"container": "x\ny"}, "one line each"),
    "override of two lines": ({"overrides": ("a=b\nc",)}, "one line each"),
    "no option of sbatch": ({"sbatch": ("qos=high",)}, "starts with two dashes"),
    "partition": ({"partition": "a b"}, "--partition 'a b': letters"),
    "account": ({"account": "$(x)"}, "--account"),
    "name": ({"name": "x\n#SBATCH --uid=0"}, "--job-name"),
}


@pytest.mark.parametrize("changes, said", REFUSED.values(), ids=REFUSED)
def test_what_would_fail_on_the_cluster_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        check_job(replace(JOB, **changes))


def test_everything_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(UserError) as told:
        check_job(replace(JOB, nodes=0, time="x", scratch="y"))
    assert len(str(told.value).splitlines()) == 4


# ---- The folders of a container ----


@pytest.mark.parametrize(
    "mounts, expected",
    [
        ((), ["/shared/runs/x", "/shared/work", "/shared/thinkprune"]),
        (("/shared:/shared",), ["/shared"]),
        (("/shared/runs:/shared/runs:rw",), ["/shared/runs:rw", "/shared/work", "/shared/thinkprune"]),
        (("/shared:/s",), ["/shared:/s", "/shared/runs/x", "/shared/work", "/shared/thinkprune"]),
        (("/sha:/sha",), ["/sha", "/shared/runs/x", "/shared/work", "/shared/thinkprune"]),
    ],
)
def test_a_container_sees_the_folders_that_the_job_needs(mounts: Sequence[str], expected: list[str]) -> None:
    script = render(replace(CONTAINER, mounts=tuple(mounts)))
    given = re.search(r"^mounts=(.*)$", script, re.MULTILINE)
    assert given
    shown = [re.sub(r"^(/[^:]*):\1(?=:|$)", r"\1", mount) for mount in given[1].split(",")]
    assert shown == expected


def test_a_recipes_folder_is_mounted_too() -> None:
    assert "/shared/thinkprune:/shared/thinkprune,/mine:/mine" in render(
        replace(CONTAINER, recipe="/mine/a.yaml")
    )


def test_what_the_script_exports_wins_over_the_image() -> None:
    script = render(replace(CONTAINER, variables=(("HF_HOME", "/h"),)))
    exports = re.findall(r"^ *export (.*)$", script, re.MULTILINE)
    exported = {name for line in exports for name in re.findall(r"\b([A-Z_]+)=", line)}
    listed = re.search(r"^own_variables=(\S+)", script, re.MULTILINE)
    assert listed and exported <= set(listed[1].split(","))
    assert {"HF_HOME", "RAY_AUTH_TOKEN_PATH", "NETRC", "HF_TOKEN_PATH", "TMPDIR"} <= exported


# ---- The command line ----


@pytest.mark.parametrize("recipe", sorted(path.stem for path in recipes_folder().glob("qwq-32b-*.yaml")))
def test_every_recipe_for_a_cluster_renders(launch: Callable[..., Result], recipe: str) -> None:
    rounds = ["--rounds"] if recipe.endswith("rounds") else []
    result = launch(recipe, "--dry-run", *rounds)
    assert result.exit_code == 0, result.output
    layout = re.search(r"(\d+)n(\d+)g", recipe)
    nodes, gpus = layout.groups() if layout else ("4", "8")
    assert {f"--nodes={nodes}", f"--gres=gpu:{gpus}"} <= set(sbatch_options(result.stdout))
    assert words_of_trainer(result.stdout)[3:5] == ["prune" if rounds else "train", recipe]


def test_a_dry_run_prints_the_script_and_writes_nothing(
    launch: Callable[..., Result], tmp_path: Path
) -> None:
    result = launch("qwq-32b-4k-4n8g", "--dry-run", "--run-dir", "deep/run")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("#!/bin/bash\n")
    assert f"--run-dir {tmp_path}/deep/run" in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_layout_asked_for_is_that_of_the_recipe_too(launch: Callable[..., Result]) -> None:
    script = launch("qwq-32b-4k-4n8g", "--dry-run", "--nodes", "8", "--gpus-per-node", "4").stdout
    assert {"--nodes=8", "--gres=gpu:4"} <= set(sbatch_options(script))
    assert {"cluster.num_nodes=8", "cluster.gpus_per_node=4"} <= set(words_of_trainer(script))


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["grpo.max_num_step=3"], "max_num_steps"),
        (["--time", "tomorrow"], "no time of Slurm's"),
        (["--mounts", "/a:/b"], "--mounts belongs to --container"),
        (["--secrets", "absent"], "cannot read the file of secrets"),
    ],
)
def test_what_is_wrong_is_said_without_a_job(
    launch: Callable[..., Result], tmp_path: Path, arguments: list[str], said: str
) -> None:
    result = launch("qwq-32b-4k-4n8g", *arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_secret_in_the_recipes_keys_is_refused(
    launch: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a1b2" * 10)
    result = launch("qwq-32b-4k-4n8g", "--dry-run", f"logger.wandb.name={'a1b2' * 10}")
    assert result.exit_code == 2
    assert "WANDB_API_KEY stands in the job itself" in result.stderr
    assert "a1b2" not in result.output


def test_the_port_is_the_one_that_the_doctor_tries() -> None:
    lines = between(render(JOB), "lowest=", "\nport=$((")
    lines += between(render(JOB), "port=$((", "\n").removeprefix("port=$((")
    for job in (1, 7, 4711, 99999999):
        [port] = bash(f"job={job}\n{lines}printf '%s\\0' $port\n")
        assert int(port) == gcs_port(job) and int(port) in GCS_PORTS
