"""Uploading with the real client against a hub on the loopback: what arrives, and what goes wrong."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.fake_hub import FakeHub, serve

from checkpoints_tools.errors import CheckpointError
from checkpoints_tools.release.hub import check_push
from checkpoints_tools.release.hub import push as push_here

TOKEN = "hf_right"
_PUSH = """
import sys
from pathlib import Path
from checkpoints_tools.errors import CheckpointError
from checkpoints_tools.release.hub import push
try:
    print("URL", push(Path(sys.argv[1]), sys.argv[2]))
except CheckpointError as error:
    sys.exit(f"refused: {error}")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A release as far as an upload is concerned: text, a file in one part and one in several, and strays."""
    made = tmp_path / "model"
    made.mkdir()
    (made / "README.md").write_text("---\nlicense: mit\n---\n\n# Model\n")
    (made / "config.json").write_text("{}")
    (made / "model-00001-of-00002.safetensors").write_bytes(os.urandom(20_000))
    (made / "model-00002-of-00002.safetensors").write_bytes(os.urandom(150_001))
    (made / ".env").write_text("SECRET=1")
    (made / ".git").mkdir()
    (made / ".git" / "config").write_text("[remote]")
    return made


def push(folder: Path, hub: FakeHub) -> subprocess.CompletedProcess:
    """In a process of its own, which the environment alone tells where the hub is."""
    settings = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    settings |= {
        "HF_HOME": str(folder.parent / "hf_home"),
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
    }
    settings |= {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN}
    command = [sys.executable, "-c", _PUSH, str(folder), "org/model"]
    return subprocess.run(command, env=settings, capture_output=True, text=True, timeout=120)


def refusal(folder: Path) -> str:
    """The message of a push that fails, in this process."""
    with pytest.raises(CheckpointError) as caught:
        push_here(folder, "org/model")
    message = str(caught.value)
    assert TOKEN not in message and "\n" not in message
    return message


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Points this process' client to a hub, with a token, without Xet."""
    from huggingface_hub import constants

    def point(url: str) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    return point


def test_files_arrive_byte_for_byte(folder: Path) -> None:
    with serve(FakeHub()) as hub:
        done = push(folder, hub)
        assert done.returncode == 0, done.stderr
        assert f"URL {hub.url}/org/model" in done.stdout
    visible = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")}
    assert hub.repos == {"org/model": visible}
    assert hub.private == {"org/model": False}
    assert any(call.path.endswith("/4") for call in hub.calls), "no file went in several parts"


def test_the_token_travels_in_one_header_to_the_hub_alone(folder: Path) -> None:
    with serve(FakeHub()) as hub:
        done = push(folder, hub)
    assert TOKEN not in done.stdout + done.stderr
    for call in hub.calls:
        others = {name: value for name, value in call.headers.items() if name != "authorization"}
        assert TOKEN not in call.path + str(others) and TOKEN.encode() not in call.body
        if call.path.startswith("/storage/"):
            assert "authorization" not in call.headers, "storage got the token"


def test_an_upload_is_taken_up_again_without_sending_twice(folder: Path, client) -> None:
    with serve(FakeHub(fail={"/commit/": 503})) as hub:
        client(hub.url)
        assert "run the same command again" in refusal(folder)
        assert hub.repos == {"org/model": {}} and len(hub.blobs) == 2
        hub.fail.clear()
        hub.calls.clear()
        assert push_here(folder, "org/model") == f"{hub.url}/org/model"
        assert len(hub.repos["org/model"]) == 4
        assert not [call for call in hub.calls if call.path.startswith("/storage/")]


def test_a_new_repository_can_be_private(folder: Path, client) -> None:
    with serve(FakeHub()) as hub:
        client(hub.url)
        push_here(folder, "org/model", private=True)
    assert hub.private == {"org/model": True}


@pytest.mark.parametrize(
    ("page", "status", "said"),
    [
        ("/api/repos/create", 401, "does not accept the token (401)"),
        ("/api/repos/create", 403, "may not write to org/model (403)"),
        ("/api/repos/create", 500, "the hub failed (500)"),
        ("/api/repos/create", 0, "the connection to the hub failed"),
        ("/commit/", 403, "may not write to org/model (403)"),
        ("/commit/", 413, "refused the upload to org/model (413)"),
        ("/commit/", 429, "asks to slow down (429)"),
        ("/commit/", 0, "the connection to the hub failed"),
        ("/preupload/", 404, "has no org/model"),
    ],
)
def test_what_goes_wrong_is_told_in_one_line(folder: Path, client, page: str, status: int, said: str) -> None:
    with serve(FakeHub(fail={page: status})) as hub:
        client(hub.url)
        assert said in refusal(folder)


def test_a_token_that_the_hub_repeats_is_not_printed(folder: Path, client) -> None:
    with serve(FakeHub(fail={"/commit/": 400}, says=f"bad token {TOKEN}")) as hub:
        client(hub.url)
        assert "***" in refusal(folder)


def test_a_wrong_token_ends_the_command_without_a_traceback(folder: Path) -> None:
    with serve(FakeHub(token="hf_other")) as hub:
        done = push(folder, hub)
    assert done.returncode == 1 and "(401)" in done.stderr
    assert "Traceback" not in done.stderr and TOKEN not in done.stdout + done.stderr


def test_without_a_network(folder: Path, client, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    client("http://127.0.0.1:9")
    assert "the connection to the hub failed" in refusal(folder)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in refusal(folder)


def login_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `hf auth login` leaves, of another user."""
    from huggingface_hub import constants, get_token

    file = folder.parent / "login"
    file.write_text("hf_logged_in")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(file))
    monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(file.with_name("stored")))
    with monkeypatch.context() as without:
        without.delenv("HF_TOKEN", raising=False)
        assert get_token() == "hf_logged_in", "the client itself would use it"


def test_a_login_alone_is_no_token(folder: Path, client, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(FakeHub(token="hf_logged_in")) as hub:
        client(hub.url)
        login_file(folder, monkeypatch)
        for value in (None, "", "\n"):
            monkeypatch.delenv("HF_TOKEN") if value is None else monkeypatch.setenv("HF_TOKEN", value)
            assert "export HF_TOKEN=" in refusal(folder)
            with pytest.raises(CheckpointError, match="export HF_TOKEN="):
                check_push("org/model")
    assert hub.calls == []


@pytest.mark.parametrize("name", ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"])
def test_the_environments_token_goes_before_a_login(
    folder: Path, client, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    with serve(FakeHub()) as hub:
        client(hub.url)
        login_file(folder, monkeypatch)
        monkeypatch.delenv("HF_TOKEN")
        monkeypatch.setenv(name, f"{TOKEN}\n")
        push_here(folder, "org/model")
    sent = {value for call in hub.calls if (value := call.headers.get("authorization"))}
    assert sent == {f"Bearer {TOKEN}"}


@pytest.mark.parametrize(
    "repo",
    ["model", "a/b/c", "org/", "/model", "../model", "org/mo del", "org/a..b", "org/x.git", "org/m\n", ""],
)
def test_a_name_that_is_no_repository(repo: str) -> None:
    with pytest.raises(CheckpointError, match="not the name of a repository"):
        check_push(repo)


def test_without_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match="pip install huggingface_hub"):
        check_push("org/model")
