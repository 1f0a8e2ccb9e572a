"""Keys and tokens: found or refused at submission, and in the job turned into files that libraries read."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from nemo_thinkprune.launch.secrets import read_secrets
from nemo_thinkprune.recipe.errors import UserError

HOST = "wandb.example.org"
SNIPPET = Path(__file__).parents[2] / "launchers" / "slurm" / "secrets.sh.jinja"
KEY, TOKEN = "a1" * 20, "hf_AbCdEf0123456789"
# stands for one more node: what is written there is kept under OTHER too
TO_EVERY_NODE = """
private=${PRIVATE:?}
to_every_node() { (umask 077; tee "$1" >"$OTHER/${1##*/}"); }
finish() { echo "$@" >&2; exit "$2"; }
"""


def secrets_file(folder: Path, text: str, *, mode: int = 0o600) -> Path:
    file = folder / "secrets"
    file.write_text(text, encoding="utf-8")
    file.chmod(mode)
    return file


def values(file: Path | None = None, **environment: str) -> dict[str, str]:
    found = read_secrets(file=file, environment=environment).found
    return {name: secret.value for name, secret in found.items()}


@pytest.mark.parametrize(
    "text",
    [
        f"WANDB_API_KEY={KEY}\nHF_TOKEN={TOKEN}\n",
        f"# mine\n\n export HF_TOKEN='{TOKEN}'\r\n\tWANDB_API_KEY=\"{KEY}\"  ",
        f"HUGGING_FACE_HUB_TOKEN={TOKEN}\nexport\tWANDB_API_KEY={KEY}",
    ],
    ids=["plain", "quotes, export, CRLF, no newline at the end", "old name"],
)
def test_a_file_is_read_at_submission_and_in_the_job_alike(tmp_path: Path, text: str) -> None:
    file = secrets_file(tmp_path, text)
    assert values(file) == {"WANDB_API_KEY": KEY, "HF_TOKEN": TOKEN}
    job = run_snippet(tmp_path, secrets_file=str(file))
    assert (job.private / "hf_token").read_text() == TOKEN
    assert f"password {KEY}\n" in (job.private / "netrc").read_text()


def test_the_file_wins_over_the_environment_name_by_name(tmp_path: Path) -> None:
    file = secrets_file(tmp_path, f"HF_TOKEN={TOKEN}\n")
    assert values(file, HF_TOKEN="hf_other", WANDB_API_KEY=KEY) == {"WANDB_API_KEY": KEY, "HF_TOKEN": TOKEN}
    job = run_snippet(tmp_path, secrets_file=str(file), HF_TOKEN="hf_other", WANDB_API_KEY=KEY)
    assert (job.private / "hf_token").read_text() == TOKEN
    assert KEY in (job.private / "netrc").read_text()


def test_the_environment_alone_will_do_and_so_will_nothing() -> None:
    assert values(HUGGING_FACE_HUB_TOKEN=TOKEN, PATH="/bin") == {"HF_TOKEN": TOKEN}
    assert values(HUGGING_FACE_HUB_TOKEN="hf_old", HF_TOKEN=TOKEN) == {"HF_TOKEN": TOKEN}
    assert values(PATH="/bin") == {}


def test_no_value_is_shown(tmp_path: Path) -> None:
    found = read_secrets(file=secrets_file(tmp_path, f"HF_TOKEN={TOKEN}"), environment={"WANDB_API_KEY": KEY})
    for shown in (repr(found), str(found), f"{found.found}", found.describe()):
        assert TOKEN not in shown and KEY not in shown
    assert found.describe() == f"WANDB_API_KEY from the environment, HF_TOKEN from {tmp_path / 'secrets'}"


def test_a_value_in_a_script_is_noticed() -> None:
    found = read_secrets(file=None, environment={"WANDB_API_KEY": KEY, "HF_TOKEN": TOKEN})
    assert found.names_in(f"export X={TOKEN}") == ["HF_TOKEN"]
    assert found.names_in("nothing") == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (f"WANDB_KEY={KEY}", "did you mean WANDB_API_KEY?"),
        (f"hf_token={TOKEN}", "did you mean HF_TOKEN?"),
        (f"AWS_SECRET={TOKEN}", "known are WANDB_API_KEY, HF_TOKEN"),
        (TOKEN, "not KEY=VALUE"),
        (f"HF_TOKEN = {TOKEN}", "not KEY=VALUE"),
        ("HF_TOKEN=", "is empty"),
        ("HF_TOKEN=''", "is empty"),
        (f"HF_TOKEN={TOKEN} # mine", "a comment goes on a line of its own"),
        (f"HF_TOKEN='{TOKEN}", "a quote"),
        (f"HF_TOKEN={TOKEN}\x07", "another character"),
        (f"HF_TOKEN={TOKEN}\nHF_TOKEN={TOKEN}", "line 2"),
        (f"\n\nWANDB={KEY}", "line 3"),
        (f"{TOKEN}=={KEY}", "a key is not known"),
    ],
)
def test_a_line_that_is_not_understood_is_refused_without_its_value(
    tmp_path: Path, text: str, says: str
) -> None:
    with pytest.raises(UserError) as caught:
        values(secrets_file(tmp_path, text))
    assert says in str(caught.value)
    assert TOKEN not in str(caught.value) and KEY not in str(caught.value)


@pytest.mark.parametrize("value", ["", f"{KEY}\n", f"{KEY}\nX=1", f"a {KEY}", f"{KEY}\x1b[0m", f'"{KEY}"'])
def test_a_value_of_the_environment_that_no_key_has_is_refused(value: str) -> None:
    with pytest.raises(UserError) as caught:
        values(WANDB_API_KEY=value)
    assert "the variable WANDB_API_KEY" in str(caught.value) and KEY not in str(caught.value)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o620])
def test_a_file_that_others_can_open_is_refused(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "a folder"
    folder.mkdir()
    file = secrets_file(folder, f"HF_TOKEN={TOKEN}", mode=mode)
    with pytest.raises(UserError) as caught:
        values(file)
    command = str(caught.value).rpartition("type: ")[2]
    assert TOKEN not in str(caught.value)
    job = run_snippet(tmp_path, check=False, secrets_file=str(file), WANDB_API_KEY=KEY).process
    assert job.returncode == 2 and "user_error 2" in job.stderr
    subprocess.run(["bash", "-c", command], check=True)
    assert values(file) == {"HF_TOKEN": TOKEN}


def test_a_stricter_mode_will_do(tmp_path: Path) -> None:
    assert values(secrets_file(tmp_path, f"HF_TOKEN={TOKEN}", mode=0o400)) == {"HF_TOKEN": TOKEN}


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo", 0o600)
    for path in (tmp_path / "missing", tmp_path, tmp_path / "fifo"):
        with pytest.raises(UserError, match="the file of secrets"):
            values(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_user_is_refused(tmp_path: Path) -> None:
    file = secrets_file(tmp_path, f"HF_TOKEN={TOKEN}")
    os.chown(file, 65534, 65534)
    with pytest.raises(UserError, match="belongs to another user"):
        values(file)


class Ran:
    """What the lines of a job left behind."""

    def __init__(self, process: subprocess.CompletedProcess[str], private: Path, other: Path) -> None:
        self.process, self.private, self.other = process, private, other

    @property
    def environment(self) -> dict[str, str]:
        """That of a process which the job starts afterwards."""
        return dict(json.loads(self.process.stdout.splitlines()[-1]))


def run_snippet(folder: Path, *, check: bool = True, flags: str = "-euo pipefail", **environment: str) -> Ran:
    private, other = folder / "private", folder / "other"
    for path in (private, other):
        path.mkdir(exist_ok=True)
    dump = "python3 -c 'import json, os; print(json.dumps(dict(os.environ)))'"
    script = f"set {flags}\n{TO_EVERY_NODE}\n{SNIPPET.read_text(encoding='utf-8')}\n{dump}\n"
    (folder / "job.sh").write_text(script, encoding="utf-8")
    base = {"PATH": os.environ["PATH"], "PRIVATE": str(private), "OTHER": str(other), "HOME": str(folder)}
    process = subprocess.run(
        ["bash", str(folder / "job.sh")],
        env=base | environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=check,
    )
    return Ran(process, private, other)


@pytest.mark.parametrize("flags", ["-euo pipefail", "-eux -o pipefail", "-xa"])
def test_the_job_has_files_on_every_node_and_nothing_in_its_environment(tmp_path: Path, flags: str) -> None:
    job = run_snippet(tmp_path, flags=flags, WANDB_API_KEY=KEY, HF_TOKEN=TOKEN, HUGGING_FACE_HUB_TOKEN=TOKEN)
    for folder in (job.private, job.other):
        for name in ("hf_token", "netrc"):
            assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600
        assert (folder / "netrc").read_text() == f"machine api.wandb.ai\n  login user\n  password {KEY}\n"
    assert job.environment["HF_TOKEN_PATH"] == str(job.private / "hf_token")
    assert job.environment["NETRC"] == str(job.private / "netrc")
    said = job.process.stdout + job.process.stderr
    assert KEY not in said and TOKEN not in said
    assert ("+ python3" in job.process.stderr) == ("x" in flags.split()[0])  # tracing goes on afterwards


def test_a_server_of_its_own_gets_its_own_entry(tmp_path: Path) -> None:
    job = run_snippet(tmp_path, WANDB_API_KEY=KEY, WANDB_BASE_URL=f"https://{HOST}:8080/")
    entries = [f"machine {host}\n  login user\n  password {KEY}\n" for host in (f"{HOST}:8080", HOST)]
    assert (job.private / "netrc").read_text() == "".join(entries)


def test_without_secrets_the_user_s_own_files_stay_in_force(tmp_path: Path) -> None:
    job = run_snippet(tmp_path, NETRC="/home/me/netrc")
    assert job.environment["NETRC"] == "/home/me/netrc"
    assert "HF_TOKEN_PATH" not in job.environment
    assert not list(job.private.iterdir())


def test_a_file_that_is_gone_ends_the_job_for_good(tmp_path: Path) -> None:
    job = run_snippet(tmp_path, check=False, secrets_file=str(tmp_path / "gone"))
    assert job.process.returncode == 2 and "gone" in job.process.stderr


def test_a_node_that_cannot_be_written_to_is_a_failure_that_may_pass(tmp_path: Path) -> None:
    job = run_snippet(tmp_path, check=False, HF_TOKEN=TOKEN, OTHER=str(tmp_path / "no such folder"))
    assert job.process.returncode == 1 and "failed 1" in job.process.stderr


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="needs shellcheck")
def test_the_lines_pass_shellcheck(tmp_path: Path) -> None:
    run_snippet(tmp_path)
    subprocess.run(["shellcheck", "-s", "bash", str(tmp_path / "job.sh")], check=True)


def test_wandb_and_the_hub_read_the_files(tmp_path: Path) -> None:
    wbnetrc = pytest.importorskip("wandb.sdk.lib.wbauth.wbnetrc")
    hub = pytest.importorskip("huggingface_hub")
    job = run_snippet(tmp_path, WANDB_API_KEY=KEY, HF_TOKEN=TOKEN)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NETRC", job.environment["NETRC"])
        patch.delenv("HF_TOKEN", raising=False)
        patch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", job.environment["HF_TOKEN_PATH"])
        assert wbnetrc.read_netrc_auth(host="https://api.wandb.ai") == KEY
        assert hub.get_token() == TOKEN
