"""`thinkprune-ckpt release`: the folder it makes, what it refuses before it writes, and the upload."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from support.fake_hub import FakeHub, serve
from support.pruned_runs import LAST, base_model, pruned_run
from typer.testing import CliRunner

from checkpoints_tools.cli import app
from checkpoints_tools.errors import CheckpointError
from checkpoints_tools.models import open_model
from checkpoints_tools.proof.manifest import read_manifest
from checkpoints_tools.proof.verify import verify
from checkpoints_tools.release.release import CardOptions, release


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(run, base model)"""
    root = tmp_path_factory.mktemp("release")
    base = base_model(root)
    return pruned_run(root, base, weights=True), base


def front_matter(folder: Path) -> dict:
    return yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])


def test_a_release_is_model_manifest_and_card(finished: tuple[Path, Path], tmp_path: Path) -> None:
    run, base = finished
    done = CliRunner().invoke(app, ["release", str(run / LAST), str(tmp_path / "Base-1B-Short")])
    assert done.exit_code == 0, done.output
    out = tmp_path / "Base-1B-Short"
    assert verify(open_model(base), open_model(out)).same
    assert read_manifest(out).digest in (out / "README.md").read_text()
    for name in ("config.json", "tokenizer.json", "generation_config.json", "LICENSE"):
        assert (out / name).read_bytes() == (base / name).read_bytes()
    head, body = front_matter(out), (out / "README.md").read_text()
    assert (head["base_model"], head["license"]) == ("Lab/Base-1B", "apache-2.0")
    assert "# Base-1B-Short\n" in body and "# Base\n" not in body
    assert "128 → 96 → 64 tokens" in body and "**round 3: this model**" in body
    assert str(tmp_path) not in body and str(run) not in body, "the card tells where it was made"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["Base-1B-Short"]
    assert "--push" in done.output


def test_options_say_what_files_do_not(finished: tuple[Path, Path], tmp_path: Path) -> None:
    run, base = finished
    bare = tmp_path / "iter_0000000"
    shutil.copytree(run / LAST / "policy/weights/iter_0000000", bare)
    made = release(bare, tmp_path / "out", base=base)
    assert front_matter(tmp_path / "out")["license"] == "apache-2.0"  # of --base
    assert [sentence.split(" is not")[0] for sentence in made.unknown if "known" in sentence] == [
        "the recipe"
    ]
    given = CardOptions("Org/Other", "mit", "A *title*")
    release(bare, tmp_path / "named", base=base, options=given)
    head = front_matter(tmp_path / "named")
    assert (head["base_model"], head["license"]) == ("Org/Other", "mit")
    assert "# A \\*title\\*\n" in (tmp_path / "named" / "README.md").read_text()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--push", "no name"], "not the name of a repository"),
        (["--base-model", "x"], "not a hub id"),
        (["--license", "a b"], "not a licence identifier"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_written(
    finished: tuple[Path, Path], tmp_path: Path, options: list[str], said: str
) -> None:
    done = CliRunner().invoke(app, ["release", str(finished[0] / LAST), str(tmp_path / "out"), *options])
    assert done.exit_code == 2 and said in done.output and list(tmp_path.iterdir()) == []


def test_a_damaged_record_is_refused_before_anything_is_written(
    finished: tuple[Path, Path], tmp_path: Path
) -> None:
    run = shutil.copytree(finished[0], tmp_path / "run")
    (run / "summary.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"summary\.json cannot be read"):
        release(run / LAST, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch):
    from huggingface_hub import constants

    with serve(FakeHub()) as served:
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", served.token)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield served


def test_an_upload_that_failed_is_taken_up_by_the_same_command(
    finished: tuple[Path, Path], tmp_path: Path, hub: FakeHub
) -> None:
    command = ["release", str(finished[0] / LAST), str(tmp_path / "out"), "--push", "Lab/Short"]
    hub.fail = {"/commit/": 503}
    first = CliRunner().invoke(app, command)
    assert first.exit_code == 2 and "run the same command again" in first.output
    made = (tmp_path / "out" / "README.md").stat().st_mtime_ns
    hub.fail = {}
    second = CliRunner().invoke(app, command)
    assert second.exit_code == 0, second.output
    assert f"{hub.url}/Lab/Short" in second.output
    assert (tmp_path / "out" / "README.md").stat().st_mtime_ns == made
    assert hub.repos["Lab/Short"] == {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    assert "# Short\n" in (tmp_path / "out" / "README.md").read_text()


def test_what_does_not_verify_is_not_uploaded(
    finished: tuple[Path, Path], tmp_path: Path, hub: FakeHub
) -> None:
    out = tmp_path / "out"
    release(finished[0] / LAST, out)
    file = next(out.glob("*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match="not uploaded"):
        release(finished[0] / LAST, out, push_to="Lab/Short")
    manifest = json.loads((out / "thinkprune-manifest.json").read_text())
    manifest["digest"] = "0" * 64
    (out / "thinkprune-manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="damaged or was edited"):
        release(finished[0] / LAST, out, push_to="Lab/Short")
    assert hub.calls == []


def test_a_release_that_is_there_keeps_its_type_and_its_card(
    finished: tuple[Path, Path], tmp_path: Path, hub: FakeHub
) -> None:
    out = tmp_path / "out"
    release(finished[0] / LAST, out, dtype="fp32")
    with pytest.raises(CheckpointError, match="made with --dtype fp32"):
        release(finished[0] / LAST, out, push_to="Lab/Short")
    (out / "README.md").write_text("edited by hand\n")
    made = release(
        finished[0] / LAST, out, dtype="fp32", options=CardOptions(title="New"), push_to="Lab/Short"
    )
    assert hub.repos["Lab/Short"]["README.md"] == b"edited by hand\n" and "card is kept" in made.unknown[0]


def test_without_a_push_a_folder_that_is_there_is_refused(
    finished: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(CheckpointError):
        release(finished[0] / LAST, tmp_path / "out")
    assert (tmp_path / "out" / "mine").read_text() == "x"
