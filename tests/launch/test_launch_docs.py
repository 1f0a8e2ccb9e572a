"""What docs/launch.md says of commands, defaults, events and reasons is what program and templates have."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from nemo_thinkprune import cli
from nemo_thinkprune.cli_launch import Log
from nemo_thinkprune.launch.commands import CARRIED
from nemo_thinkprune.launch.events import LAST_EVENTS
from nemo_thinkprune.launch.ray_job import RayJob
from nemo_thinkprune.launch.slurm_job import GCS_PORTS, SOCKET_BYTES, SlurmJob, default_save_ahead
from nemo_thinkprune.launch.status_text import end_in_words
from nemo_thinkprune.launch.templates import launchers_folder
from nemo_thinkprune.recipe.load import recipes_folder

ROOT = recipes_folder().parent
DOCS = {name: (ROOT / name).read_text(encoding="utf-8") for name in
        ("docs/launch.md", "docs/cluster.md", "docs/resuming.md", "README.md")}  # fmt: skip
TEXT = DOCS["docs/launch.md"]
SLURM = "".join((launchers_folder() / "slurm" / name).read_text(encoding="utf-8") for name in
                ("job.sbatch.jinja", "secrets.sh.jinja"))  # fmt: skip
RAY = (launchers_folder() / "ray" / "job.sh.jinja").read_text(encoding="utf-8")


def commands(text: str) -> list[list[str]]:
    """The words of each command `thinkprune ...` that begins a line of a block."""
    blocks = [block.replace("\\\n", " ") for block in re.findall(r"```\n(.*?)```", text, flags=re.S)]
    lines = [line for block in blocks for line in block.splitlines()]
    found = [match[1] for line in lines if (match := re.match(r"(?:\$ )?thinkprune (.*)", line))]
    return [shlex.split(line, comments=True) for line in found if "<(" not in line]


ALL = [(name, words) for name in DOCS for words in commands(DOCS[name])]
LAUNCHED = [(name, words) for name, words in ALL if words[:1] == ["launch"] and words[1] in ("slurm", "ray")]


def table(heading: str) -> list[list[str]]:
    """The cells of the rows of the table that begins with `heading`."""
    lines = TEXT[TEXT.index(heading) :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def named(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def verb(*names: str) -> Any:
    """The command of these names."""
    found: Any = typer.main.get_command(cli.app)
    for name in names:
        found = found.commands[name]
    return found


def test_all_commands_are_found():
    verbs = {" ".join(words[: 1 + (words[0] == "launch")]) for name, words in ALL if name == "docs/launch.md"}
    expected = {"doctor", "launch slurm", "launch ray", "launch status", "launch logs", "launch cancel"}
    assert expected <= verbs
    assert {name for name, _ in LAUNCHED} == {"docs/launch.md", "docs/cluster.md", "README.md"}


@pytest.mark.parametrize(("name", "words"), ALL, ids=lambda value: str(value)[:60])
def test_a_command_is_one_that_the_program_takes(name, words):
    command, rest = typer.main.get_command(cli.app), list(words)
    while subcommands := getattr(command, "commands", None):
        command = subcommands[rest.pop(0)]
    assert (
        command.make_context(words[0], rest).params is not None
    )  # it parses all, and raises where it cannot


@pytest.mark.parametrize(("name", "words"), LAUNCHED, ids=lambda value: str(value)[:60])
def test_a_launch_that_names_a_recipe_would_be_submitted(name, words):
    shipped = (recipes_folder() / f"{words[2]}.yaml").is_file()
    if not shipped:
        assert words[2] in ("RECIPE", "quickstart")
        return
    here = [word for word in words if "=/shared/" not in word]  # folders that this machine lacks
    done = CliRunner().invoke(cli.app, [*here, "--dry-run"])
    assert done.exit_code == 0, done.output
    assert done.output.startswith("#!/bin/bash\n")


def reasons(template: str) -> set[str]:
    """The reasons that a template can write into an end event."""
    finished = re.findall(r"\bfinish ([a-z_]+) (?=[\"$\d-])", template)
    return {*finished, *re.findall(r'event end "([a-z_]+) code', template)}


def events(template: str) -> set[str]:
    return set(re.findall(r"\bevent ([a-z_]+)\b", template))


def test_reasons_are_those_of_the_template():
    told = {name for row in table("| reason | what it was |") for name in named(row[0])}
    assert told == reasons(SLURM)
    assert reasons(RAY) < told


def test_what_is_never_requeued_is_what_the_template_does_not_requeue():
    told = {named(row[0])[0] for row in table("| reason | what it was |") if "**not**" in row[2]}
    finish = SLURM[SLURM.index("    finished) event finished") :].split("esac")[0]
    assert told | {"finished"} == set(re.findall(r"^\s+([a-z_]+)\)", finish, flags=re.M))


def test_reasons_have_words_in_a_status():
    from nemo_thinkprune.launch.events import Attempt

    for reason in reasons(SLURM) - {"stalled", "cancelled", "finished"}:
        assert end_in_words(Attempt(1, reason=reason), over=False, newest=True) != reason


def test_events_are_those_of_the_template():
    told = {name for row in table("| event | detail |") for name in named(row[0])}
    assert told == events(SLURM)
    assert events(RAY) <= told
    assert set(LAST_EVENTS) < told


def test_options_and_their_defaults_are_those_of_the_program():
    parameters = {option: each for each in verb("launch", "slurm").params for option in each.opts}
    told = {}
    for options, default, _ in table("| option | default |"):
        defaults = [word.strip("` ") for word in default.split(",")]
        names = named(options)
        told |= dict(
            zip(names, defaults if len(defaults) == len(names) else defaults * len(names), strict=True)
        )
    known = {name for name in parameters if name.startswith("--")} - {"--help"}
    assert set(told) == known - {"--dry-run"}
    for name, said in told.items():
        default = parameters[name].default
        if isinstance(default, bool) or default is None:
            assert not re.match(r"\d", said) or name == "--save-ahead"
        else:
            shown = f"{default:g}" if isinstance(default, float) else str(getattr(default, "value", default))
            assert said.removesuffix(" s") == shown, name
    assert told["--save-ahead"] == f"{default_save_ahead('24:00:00')} s"


def test_what_launch_ray_has_of_its_own_is_told_with_its_defaults():
    section = TEXT[TEXT.index("## 8.") : TEXT.index("## 9.")]
    slurm, ray = ({option: each.default for each in verb("launch", name).params for option in each.opts}
                  for name in ("slurm", "ray"))  # fmt: skip
    own = {name: default for name, default in ray.items() if name not in slurm or slurm[name] != default}
    assert set(own) == {"--address", "--save-time", "--scratch"}
    assert f"saves first, {own['--save-time']} s at most (`--save-time`)" in section
    assert f"`--scratch` is where the private folders are made, `{own['--scratch']}` by default" in section
    for name, default in {"--save-time": "save_s", "--scratch": "scratch"}.items():
        assert own[name] == RayJob.__dataclass_fields__[default].default


def test_logs_and_variables_and_numbers_are_those_of_the_program():
    [which] = [line for line in TEXT.splitlines() if line.startswith("`--which` is one of")]
    assert named(which)[1:] == [log.value for log in Log]
    assert all(f"`{name}`" in TEXT for name in CARRIED)
    flat = " ".join(TEXT.split())
    assert f"({GCS_PORTS[0]} to {GCS_PORTS[-1]}," in flat
    assert f"a Unix socket's path has {SOCKET_BYTES} bytes" in flat
    for job in (SlurmJob, RayJob):
        assert f"{job.__dataclass_fields__['ray_deadline_s'].default / 60:g} minutes" in flat
    assert f"saves first, {RayJob.__dataclass_fields__['save_s'].default} s at most" in flat


def test_logs_of_an_attempt_are_those_of_the_template():
    [row] = [row for row in table("| in RUN |") if "attempt_K" in row[0]]
    written = set(re.findall(r"\$log_dir/([a-z_]+\.log)", SLURM)) - {"stacks.log"}
    assert set(named(row[1])) - {"stacks/NODE.txt"} == written


@pytest.mark.parametrize("name", DOCS)
def test_links_lead_somewhere(name):
    links = re.findall(r"\]\(([^)#:]+?)\)", DOCS[name])
    assert links
    assert [link for link in links if not (ROOT / name).parent.joinpath(link).exists()] == []


def test_the_picture_is_what_its_script_draws(tmp_path: Path):
    script = ROOT / "benchmarks" / "launch_figure.py"
    subprocess.run([sys.executable, script, "--out", tmp_path / "launch.svg"], check=True, timeout=60)
    drawn = (tmp_path / "launch.svg").read_bytes()
    assert drawn == (ROOT / "docs" / "images" / "launch.svg").read_bytes()
    words = set(re.findall(r">([a-z_]+)</text>", drawn.decode()))
    assert {*LAST_EVENTS, "requeue", "start", "ray_ready", "end"} <= words
