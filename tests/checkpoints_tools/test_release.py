"""`thinkprune-ckpt release`: the folder it makes, what it refuses before it writes, and the upload."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest
import yaml
from support.fake_hub import FakeHub, serve
from support.pruned_runs import LAST, base_model, pruned_run
from typer.testing import CliRunner

from checkpoints_tools.cli import app
from checkpoints_tools.convert import export_model, import_model
from checkpoints_tools.errors import CheckpointError
from checkpoints_tools.models import open_model
from checkpoints_tools.proof.manifest import read_manifest
from checkpoints_tools.proof.verify import verify
from checkpoints_tools.release.draft import CardOptions
from checkpoints_tools.release.notes import carried_notes
from checkpoints_tools.release.release import Request, release


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
    made = release(Request(bare, tmp_path / "out", base=base))
    assert front_matter(tmp_path / "out")["license"] == "apache-2.0"  # of --base
    assert [sentence.split(" is not")[0] for sentence in made.notes if "known" in sentence] == ["the recipe"]
    given = CardOptions("Org/Other", "mit", "A *title*")
    release(Request(bare, tmp_path / "named", base=base, options=given))
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
        release(Request(run / LAST, tmp_path / "out"))
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
    release(Request(finished[0] / LAST, out))
    file = next(out.glob("*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match="left as it is"):
        release(Request(finished[0] / LAST, out, push_to="Lab/Short"))
    manifest = json.loads((out / "thinkprune-manifest.json").read_text())
    manifest["digest"] = "0" * 64
    (out / "thinkprune-manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="damaged or was edited"):
        release(Request(finished[0] / LAST, out, push_to="Lab/Short"))
    assert hub.calls == []


def test_a_release_that_is_there_keeps_its_type(
    finished: tuple[Path, Path], tmp_path: Path, hub: FakeHub
) -> None:
    release(Request(finished[0] / LAST, tmp_path / "out", dtype="fp32"))
    with pytest.raises(CheckpointError, match="made with --dtype fp32"):
        release(Request(finished[0] / LAST, tmp_path / "out", push_to="Lab/Short"))
    assert hub.calls == []


def next_command(output: str) -> list[str]:
    """The words after `thinkprune-ckpt` of the command that is printed last, as a shell splits them."""
    (line,) = [line for line in output.splitlines() if line.startswith("next: ")]
    words = shlex.split(line.removeprefix("next: "))
    assert words[0] == "thinkprune-ckpt"
    return words[1:]


@pytest.fixture
def bare(finished: tuple[Path, Path], tmp_path: Path) -> Path:
    """A checkpoint that has only weights, in a folder whose name a shell would split."""
    return shutil.copytree(finished[0] / LAST / "policy/weights/iter_0000000", tmp_path / "a b/iter_0000000")


def test_the_printed_commands_can_be_given_as_they_are(
    finished: tuple[Path, Path], bare: Path, tmp_path: Path, hub: FakeHub
) -> None:
    out, title = tmp_path / "it's out", "$(Model) 'of' mine"
    options = ["--base", str(finished[1]), "--dtype", "fp32", "--base-model", "Org/Base", "--license", "mit",
               "--title", title, "--max-shard-size", "40kB", "--private"]  # fmt: skip
    first = CliRunner().invoke(app, ["release", str(bare), str(out), *options])
    assert first.exit_code == 0, first.output
    command = next_command(first.output)
    assert command[:3] == ["release", str(bare), str(out)] and command[-2:] == [
        "--push",
        "ORGANISATION/MODEL",
    ]
    shutil.move(out, tmp_path / "first")  # the command alone makes the same, save the model's name
    second = CliRunner().invoke(app, [*command[:-1], "Lab/Short"])
    assert second.exit_code == 0, second.output
    assert hub.private == {"Lab/Short": True}
    files = [{p.name: p.read_bytes() for p in f.iterdir()} for f in (out, tmp_path / "first")]
    assert [len([name for name in made if name.endswith(".safetensors")]) > 1 for made in files] == [
        True,
        True,
    ]
    cards = [made.pop("README.md").decode() for made in files]
    assert files[0] == files[1]
    cards[1] = cards[1].replace('"."  # this folder, or its id on the hub', '"Lab/Short"')
    texts = [card.rpartition("\n\n")[0] for card in cards]  # without the seal, which differs
    assert texts[0] == texts[1] and 'model_id = "Lab/Short"' in texts[0]
    third = [str(out) if word == "DOWNLOADED_COPY" else word for word in next_command(second.output)]
    checked = CliRunner().invoke(app, third)
    assert third[0] == "verify" and checked.exit_code == 0, checked.output


def test_a_command_without_options_is_printed_without_them(
    finished: tuple[Path, Path], tmp_path: Path
) -> None:
    made = release(Request(finished[0] / LAST, tmp_path / "out"))
    assert shlex.split(made.next_command)[4:] == ["--push", "ORGANISATION/MODEL"]
    odd = Request(
        finished[0] / LAST, tmp_path / "odd", options=CardOptions(title="--x"), max_shard_bytes=10**9 + 1
    )
    words = shlex.split(release(odd).next_command)
    assert words[4:-2] == ["--title=--x", "--max-shard-size", "1000000001"]


def test_a_card_made_before_the_upload_gets_the_models_name(
    finished: tuple[Path, Path], tmp_path: Path, hub: FakeHub
) -> None:
    out = tmp_path / "out"
    release(Request(finished[0] / LAST, out))
    assert 'model_id = "."' in (out / "README.md").read_text()
    told: list[tuple[str, int]] = []
    made = release(
        Request(finished[0] / LAST, out, push_to="Lab/Short"),
        on_made=lambda made: told.append((made.manifest.digest, len(hub.calls))),
    )
    release(Request(finished[0] / LAST, tmp_path / "direct", push_to="Lab/Short"))
    card = (out / "README.md").read_bytes()
    assert card == (tmp_path / "direct" / "README.md").read_bytes()
    assert b'model_id = "Lab/Short"\n' in card and b'model_id = "."' not in card and b"# Short\n" in card
    assert hub.repos["Lab/Short"]["README.md"] == card
    assert made.notes == () and told == [(made.manifest.digest, 0)]
    assert not [p for p in out.iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_of_an_edited_card_only_the_models_name_is_filled_in(
    finished: tuple[Path, Path], tmp_path: Path, hub: FakeHub, end: bytes
) -> None:
    out = tmp_path / "out"
    release(Request(finished[0] / LAST, out))
    edited = (out / "README.md").read_bytes().replace(b"## Limitations", b"## What it cannot do")
    edited = edited.replace(b"\n", end)
    (out / "README.md").write_bytes(edited)
    made = release(Request(finished[0] / LAST, out, push_to="Lab/Short", options=CardOptions(title="New")))
    line = b'model_id = "."  # this folder, or its id on the hub'
    assert line + end in edited
    assert hub.repos["Lab/Short"]["README.md"] == edited.replace(line, b'model_id = "Lab/Short"')
    assert "is kept" in made.notes[0]


def test_a_card_of_the_users_own_is_not_touched_and_one_removed_is_made_anew(
    finished: tuple[Path, Path], tmp_path: Path, hub: FakeHub
) -> None:
    out, request = tmp_path / "out", Request(finished[0] / LAST, tmp_path / "out", push_to="Lab/Short")
    release(Request(finished[0] / LAST, out))
    own = b'mine: model_id = "."\n model_id = "/here"\n'
    (out / "README.md").write_bytes(own)
    assert "is kept" in release(request).notes[0]
    assert hub.repos["Lab/Short"]["README.md"] == own
    (out / "README.md").unlink()
    assert release(request).notes == ()
    assert b'model_id = "Lab/Short"' in hub.repos["Lab/Short"]["README.md"]


def test_what_a_note_asks_for_is_put_into_the_card_without_another_export(
    finished: tuple[Path, Path], bare: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(finished[1], tmp_path / "base")
    (base / "README.md").unlink()
    (base / "LICENSE").unlink()
    command = ["release", str(bare), str(tmp_path / "out"), "--base", str(base)]
    first = CliRunner().invoke(app, command)
    assert "give --license ID" in first.output and "give --base-model ID" in first.output
    weights = next((tmp_path / "out").glob("*.safetensors")).stat()
    second = CliRunner().invoke(app, [*command, "--license", "mit", "--base-model", "Lab/Base-1B"])
    assert second.exit_code == 0 and "was there already" in second.output, second.output
    assert "give --license" not in second.output and "give --base-model" not in second.output
    head = front_matter(tmp_path / "out")
    assert (head["license"], head["base_model"]) == ("mit", "Lab/Base-1B")
    assert next((tmp_path / "out").glob("*.safetensors")).stat() == weights


def test_an_export_becomes_a_release_by_a_card(finished: tuple[Path, Path], tmp_path: Path) -> None:
    export_model(finished[0] / LAST, tmp_path / "out")
    release(Request(finished[0] / LAST, tmp_path / "out"))
    release(Request(finished[0] / LAST, tmp_path / "other" / "out"))
    cards = [(folder / "out" / "README.md").read_bytes() for folder in (tmp_path, tmp_path / "other")]
    assert cards[0] == cards[1]


def test_a_checkpoint_with_a_manifest_is_no_release(finished: tuple[Path, Path], tmp_path: Path) -> None:
    import_model(finished[1], tmp_path / "imported")
    for source in (finished[0] / LAST, tmp_path / "imported"):
        with pytest.raises(CheckpointError, match="not a release"):
            release(Request(source, tmp_path / "imported"))
    assert not (tmp_path / "imported" / "README.md").exists()


def test_what_was_made_is_told_even_if_the_upload_fails(
    finished: tuple[Path, Path], tmp_path: Path, hub: FakeHub
) -> None:
    hub.fail = {"/commit/": 503}
    command = ["release", str(finished[0] / LAST), str(tmp_path / "out"), "--push", "Lab/Short"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 2 and done.output.index("wrote ") < done.output.index("the hub failed (503)")


def local_base(finished: tuple[Path, Path], tmp_path: Path, **config: object) -> Path:
    base = shutil.copytree(finished[1], tmp_path / "base")
    raw = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(raw | config))
    return base


@pytest.mark.parametrize("verb", ["export", "release"])
def test_a_dtype_that_config_json_does_not_name_is_told(
    finished: tuple[Path, Path], bare: Path, tmp_path: Path, verb: str
) -> None:
    out = tmp_path / "out"
    done = CliRunner().invoke(app, [verb, str(bare), str(out), "--base", str(finished[1]), "--dtype", "fp32"])
    assert done.exit_code == 0, done.output
    assert (out / "config.json").read_bytes() == (finished[1] / "config.json").read_bytes()
    assert 'says bfloat16, but tensors are float32: load them with dtype="float32"' in done.output
    if verb == "release":
        card = (out / "README.md").read_text()
        assert (
            'from_pretrained(model_id, dtype="float32", ' in card
            and 'LLM(model=model_id, dtype="float32")' in card
        )


@pytest.mark.parametrize("verb", ["export", "release"])
def test_a_local_path_in_a_carried_file_is_told_before_anybody_reads_it(
    finished: tuple[Path, Path], bare: Path, tmp_path: Path, verb: str
) -> None:
    base = local_base(finished, tmp_path, _name_or_path="/home/me/secret project")
    command = [verb, str(bare), str(tmp_path / "out"), "--base", str(base)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    (line,) = [line for line in done.output.splitlines() if "local path" in line]
    assert "config.json" in line and "/home/me/secret project" in line
    assert (tmp_path / "out" / "config.json").read_bytes() == (base / "config.json").read_bytes()


@pytest.mark.parametrize(
    ("name", "local"),
    [("/a", True), ("~/a", True), ("./a", True), ("..\\a", True), ("a/b/c", True), ("C:\\a", True),
     ("file:///a", True), ("Qwen/QwQ-32B", False), ("gpt2", False), ("", False), (None, False), (3, False)],
)  # fmt: skip
def test_what_a_local_path_is(tmp_path: Path, name: object, local: bool) -> None:
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps({"name_or_path": name, "eos_token": "/s", "dtype": "float16"}))
    assert len(carried_notes(["BF16"], [file])) == local


def test_a_carried_file_that_cannot_be_read_says_nothing(tmp_path: Path) -> None:
    for text in ("{", "[]", "{}", '{"dtype": null}'):
        (tmp_path / "config.json").write_text(text)
        assert carried_notes(["F32"], [tmp_path / "config.json", tmp_path / "absent.json"]) == []


def test_without_a_push_a_folder_that_is_there_is_refused(
    finished: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(CheckpointError):
        release(Request(finished[0] / LAST, tmp_path / "out"))
    assert (tmp_path / "out" / "mine").read_text() == "x"
