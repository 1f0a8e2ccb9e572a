"""A run of a recipe as a job of a Ray cluster that is there already: its script, and handing it to `ray job submit`."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from nemo_thinkprune.launch.ray_commands import SCRIPT_NAME, RayCommands
from nemo_thinkprune.launch.secrets import read_secrets
from nemo_thinkprune.launch.templates import render_template
from nemo_thinkprune.recipe.checks import check_recipe
from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.files import write_atomic
from nemo_thinkprune.recipe.load import find_recipe, load_recipe, recipes_folder
from nemo_thinkprune.rounds.length_reward_formula import length_reward_formula

TEMPLATE = "ray/job.sh.jinja"
SUBMIT_S = 120.0
_NO_AGENT = "No available agent to submit job"  # of a cluster that has just been started
_TRIES = 8
_STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"
"""Read by Ray from the environment of a job: seconds between the TERM and the KILL of `ray job stop`; 3 by default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RayJob:
    """A run of a recipe as a job of an existing Ray cluster.

    Attributes:
        recipe: file (absolute) or name of a recipe; `overrides` are its a.b=c.
        verb: "train" for one round, "prune" for all.
        run_dir: run folder, absolute, on a file system that all nodes share; so is `work_dir`, where it starts.
        address: of the cluster's dashboard, as http://head:8265.
        gpus: GPUs (with `on_cpu` those by Ray's count alone) that the cluster must have before an attempt begins.
        max_failures: attempts in a row that may end without a new checkpoint.
        save_s: seconds that `ray job stop` leaves for saving.
        retry_wait_s: seconds between a failure and the next attempt.
        stall_factor: times the median step without progress that end an attempt, but not below `stall_floor_s`;
            before its first step an attempt has `start_patience_s`.
        checkpoint_dir: the recipe's name for its folder of checkpoints.
        scratch: folder of each node alone for the files with the secrets.
        python: folder that is put on PATH, with the program `python` of the cluster's own Ray; None: it is there.
        source: folder that is put on PYTHONPATH; None where the package is installed.
        variables: exported by the script, by name.
        setup: lines of shell run before anything else.
    """

    recipe: str
    run_dir: Path
    work_dir: Path
    address: str
    gpus: int = 0
    overrides: tuple[str, ...] = ()
    verb: Literal["train", "prune"] = "train"
    on_cpu: bool = False
    nemo_rl_root: Path | None = None
    max_failures: int = 3
    save_s: int = 1800
    retry_wait_s: int = 30
    stall_factor: float = 10.0
    stall_floor_s: float = 600.0
    start_patience_s: float = 7200.0
    ray_deadline_s: float = 900.0
    scratch: str = "/dev/shm"
    checkpoint_dir: str = "checkpoints"
    secrets_file: Path | None = None
    python: Path | None = None
    source: Path | None = None
    variables: tuple[tuple[str, str], ...] = ()
    setup: tuple[str, ...] = ()

    @property
    def script(self) -> Path:
        """Where its script is kept."""
        return self.run_dir / SCRIPT_NAME


def launch_ray(
    job: RayJob,
    *,
    dry_run: bool,
    say: Callable[[str], None],
    environment: Mapping[str, str] | None = None,
) -> str | None:
    """Submit a recipe as a job of Ray, or print its script; the submission id.

    `job` is as the command line gives it: recipe and paths may be relative, `gpus` is taken from the recipe.

    Raises:
        UserError: a recipe, job or file of secrets that would fail on the cluster, or no Ray at the address.
    """
    variables = os.environ if environment is None else environment
    secrets = read_secrets(file=job.secrets_file, environment={})
    job = replace(complete(job), secrets_file=secrets.file)
    check_job(job)
    script = render(job)
    here = [name for name in left_behind(job, variables) if variables[name] in script]
    if shown := secrets.names_in(script) or here:
        raise UserError(
            f"the value of {', '.join(shown)} stands in the job itself: take it out of the recipe's keys"
        )
    if dry_run:
        say(script.rstrip("\n"))
        return None
    for name in left_behind(job, variables):
        say(f"note: {name} of this shell does not reach the cluster; if the job needs it, give --secrets")
    write_script(job, script)
    submission = submit(job, say=say)
    for line in next_steps(job, submission):
        say(line)
    return submission


def complete(job: RayJob) -> RayJob:
    """The job with absolute paths, a recipe that is found from anywhere, and the GPUs that it asks for.

    Raises:
        UserError: the recipe cannot be read, or is none that this engine can run.
    """
    recipe = load_recipe(job.recipe, job.overrides)
    length_reward_formula(recipe)
    check_recipe(recipe, engine="nemo-rl", on_cpu=job.on_cpu)
    found = find_recipe(job.recipe)
    shipped = found.parent == recipes_folder() and "/" not in job.recipe
    return replace(
        job,
        recipe=job.recipe if shipped else str(found.resolve()),
        gpus=recipe.cluster.num_nodes * recipe.cluster.gpus_per_node,
        checkpoint_dir=recipe.checkpointing.checkpoint_dir,
        run_dir=_absolute(job.run_dir),
        work_dir=_absolute(job.work_dir),
        nemo_rl_root=None if job.nemo_rl_root is None else _absolute(job.nemo_rl_root),
    )


def check_job(job: RayJob) -> None:
    """Refuse what would fail on the cluster.

    Raises:
        UserError: listing every problem.
    """
    problems = []
    if not re.fullmatch(r"https?://[^\s/@]+(/\S*)?", job.address):
        problems.append(f"--address {job.address!r}: the address of the dashboard, as http://head:8265")
    if not job.scratch.startswith("/"):
        problems.append(f"--scratch {job.scratch!r}: name a folder from the root, as /dev/shm")
    least = {"--max-failures": (job.max_failures, 1), "--save-time": (job.save_s, 1)}
    problems += [f"{name} {value}: at least {low}" for name, (value, low) in least.items() if value < low]
    texts = [*job.setup, *job.overrides, job.recipe, str(job.run_dir), str(job.work_dir)]
    problems += [f"{text!r}: one line, please" for text in texts if "\n" in text]
    if problems:
        raise UserError("this job cannot be launched:\n" + "\n".join(f"  {problem}" for problem in problems))


def left_behind(job: RayJob, environment: Mapping[str, str]) -> list[str]:
    """Secrets of this shell's environment that the job will not have."""
    if job.secrets_file is not None:
        return []
    return [name for name in ("WANDB_API_KEY", "HF_TOKEN") if environment.get(name)]


def render(job: RayJob) -> str:
    """The script that the cluster's head runs."""
    return render_template(
        TEMPLATE,
        job=job,
        title=f"thinkprune {job.verb} {shlex.quote(job.recipe)} as a job of a Ray cluster, engine nemo-rl.",
        command=shlex.join(submit_command(job)),
        setup_lines=list(_setup_lines(job)),
        trainer=list(_trainer(job)),
    )


def _setup_lines(job: RayJob) -> Iterator[str]:
    yield from (f"export {name}={shlex.quote(value)}" for name, value in job.variables)
    if job.python is not None:
        yield f"export PATH={shlex.quote(str(job.python))}:$PATH"
    if job.source is not None:
        yield f"export PYTHONPATH={shlex.quote(str(job.source))}${{PYTHONPATH:+:$PYTHONPATH}}"
    yield from job.setup
    yield f"secrets_file={'' if job.secrets_file is None else shlex.quote(str(job.secrets_file))}"


def _trainer(job: RayJob) -> Iterator[list[str]]:
    """The command of an attempt, as lines of words."""
    yield ["python", "-m", "nemo_thinkprune", job.verb, job.recipe]
    options = ["--engine", "nemo-rl"]
    if job.on_cpu:
        options.append("--on-cpu")
    if job.nemo_rl_root is not None:
        options += ["--nemo-rl-root", str(job.nemo_rl_root)]
    yield [*options, "--run-dir", str(job.run_dir)]
    for override in job.overrides:
        yield [override]


def write_script(job: RayJob, script: str) -> Path:
    """Write RUN/launch.sh.

    Raises:
        UserError: the run folder cannot be written.
    """
    try:
        write_atomic(job.script, script)
    except OSError as error:
        raise UserError(
            f"cannot write into the folder {job.run_dir} ({error.strerror}): give another --run-dir"
        ) from error
    return job.script


def new_submission_id(job: RayJob) -> str:
    """An id that says which run and when; Ray takes one only once."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", job.run_dir.name)[:60]
    return f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.urandom(2).hex()}"


def submit_command(job: RayJob, submission_id: str | None = None) -> list[str]:
    """The command that submits RUN/launch.sh; Ray shows all of it in its dashboard, so nothing in it is secret."""
    named = [] if submission_id is None else ["--submission-id", submission_id]
    runtime_env = json.dumps({"env_vars": {_STOP_WAIT: str(job.save_s)}})
    return [
        *("ray", "job", "submit", "--address", job.address, *named, "--no-wait"),
        *("--runtime-env-json", runtime_env, "--", "exec", "bash", str(job.script)),
    ]


def submit(
    job: RayJob, *, say: Callable[[str], None], deadline_s: float = SUBMIT_S, retry_s: float = 10.0
) -> str:
    """Hand RUN/launch.sh to the cluster; the submission id.

    A cluster that has just been started may have nobody yet to run a job: it is asked again every `retry_s` seconds.

    Raises:
        UserError: no program `ray` here, or one without what jobs need; no cluster at the address; it refuses.
    """
    submission_id = new_submission_id(job)
    program, *arguments = submit_command(job, submission_id)
    command = [_ray_program(program), *arguments]
    deadline = time.monotonic() + deadline_s
    for number in range(1, _TRIES + 1):
        ended = _told(job, command, within_s=deadline - time.monotonic(), deadline_s=deadline_s)
        if ended.returncode == 0:
            return submission_id
        if _NO_AGENT not in ended.stdout or number == _TRIES or time.monotonic() + retry_s > deadline:
            break
        say(f"Ray at {job.address} has no agent that runs jobs yet; asked again in {retry_s:g} s")
        time.sleep(retry_s)
    raise UserError(_refusal(job, ended.stdout))


def _told(
    job: RayJob, command: list[str], *, within_s: float, deadline_s: float
) -> subprocess.CompletedProcess[str]:
    """How the program `ray` ended."""
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=within_s,
            env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
        )
    except subprocess.TimeoutExpired:
        raise UserError(
            f"{job.address} did not take the job within {deadline_s:g} s; see whether it did: "
            f"ray job list --address {job.address}"
        ) from None


def _ray_program(name: str) -> str:
    beside = Path(sys.executable).parent / name
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which(name)
    if found is None:
        raise UserError(
            "submitting needs the program ray: pip install 'ray[default]' of the cluster's version"
        )
    return found


def _refusal(job: RayJob, said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    if "ray[default]" in said:
        return "this Ray cannot submit jobs: pip install 'ray[default]' of the cluster's version"
    if "oken authentication" in said:
        return (
            f"the Ray at {job.address} wants its token: export RAY_AUTH_MODE=token, with the cluster's token in "
            "~/.ray/auth_token or in the file that RAY_AUTH_TOKEN_PATH names (the commands `ray job ...` need it too)"
        )
    if _NO_AGENT in said:
        return f"Ray at {job.address} has no agent that runs jobs: see dashboard_agent.log on its head, or try again"
    if "Failed to connect" in said or "ConnectionError" in said or "Connection refused" in said:
        return (
            f"no Ray dashboard answers at {job.address}: is that the head and its dashboard's port, and is the "
            "dashboard there (ray start --head --include-dashboard=true, ray[default] installed)?"
        )
    return f"Ray at {job.address} refused the job: {' '.join(lines[-3:])[-600:] or 'it does not say why'}"


def next_steps(job: RayJob, submission_id: str) -> Iterator[str]:
    """What to tell of a submitted job."""
    logs = job.run_dir / "logs"
    commands = RayCommands(job.address, submission_id)
    yield f"Job:      {submission_id}, {job.gpus} GPUs, at {job.address}"
    yield f"Script:   {job.script}"
    yield f"Log:      {logs / f'job_{submission_id}.log'}, events in {logs / f'job_{submission_id}'}/events.tsv"
    if job.secrets_file is not None:
        yield f"Secrets:  {job.secrets_file}, which the head must see"
    yield f"Next:     thinkprune launch status {shlex.quote(str(job.run_dir))}"
    yield f"          {commands.follow}"
    yield f"          {commands.stop}     # saves first, {job.save_s} s at most"


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(os.path.expanduser(path)))
