"""The command as a user meets it: exit codes, messages, and what is left behind."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.models import MODELS, small_config

from checkpoints_tools.random_init import random_hf_init

COMMAND = [sys.executable, "-c", "from checkpoints_tools.cli import main; main()"]
Run = Callable[..., subprocess.CompletedProcess[str]]


def run(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=120, **options
    )  # type: ignore[call-overload]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "hf"
    random_hf_init(MODELS["qwen2"], folder, seed=3, randomize_all=True)
    (folder / "tokenizer.json").write_text('{"version": "1.0"}\n')
    (folder / "generation_config.json").write_text('{"eos_token_id":  2}')
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    return folder


@pytest.fixture(scope="module")
def checkpoint(source: Path) -> Path:
    out = source.parent / "megatron"
    assert run("import", source, out).returncode == 0
    return out


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit code 2, one clear message, no traceback."""
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr
    assert all(word in done.stderr for word in words), done.stderr


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_there_and_back_carries_every_file(source: Path, checkpoint: Path, tmp_path: Path) -> None:
    done = run("export", checkpoint, tmp_path / "back")
    assert done.returncode == 0, done.stderr
    assert left(tmp_path) == {"back"}
    for name in ("config.json", "tokenizer.json", "generation_config.json", "chat_template.jinja"):
        assert (tmp_path / "back" / name).read_bytes() == (source / name).read_bytes()
    assert (tmp_path / "back/model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    assert run("verify", source, tmp_path / "back").returncode == 0
    assert run("verify", checkpoint, "--manifest", tmp_path / "back/thinkprune-manifest.json").returncode == 0


def test_verify_says_which_tensor_differs(source: Path, checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(source, tmp_path / "hf")
    with open(tmp_path / "hf/model.safetensors", "r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        last = stream.read(1)
        stream.seek(-1, os.SEEK_END)
        stream.write(bytes([last[0] ^ 1]))
    done = run("verify", tmp_path / "hf", checkpoint, "--json")
    assert done.returncode == 1
    assert [d["kind"] for d in json.loads(done.stdout)["differences"]] == ["bytes"]


@pytest.mark.parametrize("verb", ["import", "export", "reshard"])
def test_a_plan_is_what_is_written(source: Path, checkpoint: Path, tmp_path: Path, verb: str) -> None:
    model = source if verb == "import" else checkpoint
    options = ["--chunk-tp", 2] if verb == "reshard" else []
    planned = json.loads(run("plan", verb, model, tmp_path / "out", *options, "--json").stdout)
    assert left(tmp_path) == set()
    assert run(verb, model, tmp_path / "out", *options).returncode == 0
    written = {
        str(p.relative_to(tmp_path / "out")): p.stat().st_size for p in tmp_path.rglob("*") if p.is_file()
    }
    assert planned["files"] == written
    assert planned["bytes"] == sum(written.values())


def test_reshard_keeps_the_digest(source: Path, checkpoint: Path, tmp_path: Path) -> None:
    assert run("reshard", checkpoint, tmp_path / "out", "--chunk-tp", 2).returncode == 0
    assert run("verify", source, tmp_path / "out").returncode == 0
    shown = json.loads(run("inspect", tmp_path / "out", "--json").stdout)
    before = json.loads(run("inspect", checkpoint, "--json").stdout)
    assert json.dumps(shown) != json.dumps(before)


def test_another_model_in_the_runs_config_is_refused(source: Path, checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoint, tmp_path / "mg")
    config = tmp_path / "mg/iter_0000000/tokenizer/config.json"
    config.write_text(config.read_text().replace("10000.0", "500000.0"))
    done = run("export", tmp_path / "mg", tmp_path / "out")
    refused(done, "rotary_base is 10000.0 in run_config.yaml, 500000.0 in config.json", "--base")
    assert left(tmp_path) == {"mg"}
    assert run("export", tmp_path / "mg", tmp_path / "out", "--base", source).returncode == 0


def test_a_padded_vocabulary_in_the_runs_config_is_a_warning(checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoint, tmp_path / "mg")
    config = tmp_path / "mg/iter_0000000/run_config.yaml"
    config.write_text(config.read_text().replace("vocab_size: 300", "vocab_size: 384"))
    done = run("export", tmp_path / "mg", tmp_path / "out")
    assert done.returncode == 0
    assert "warning: vocab_size is 384 in run_config.yaml, 300 in config.json" in done.stdout
    assert "warning" not in run("export", checkpoint, tmp_path / "same").stdout


def test_mistakes_are_explained(source: Path, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    refused(run("import", tmp_path / "nothing", out), "nothing")
    refused(run("export", source, out), "Hugging Face model folder already")
    refused(run("import", checkpoint, out), "Megatron checkpoint already")
    refused(run("import", source, source.parent), "not empty")
    refused(run("import", source, source / "inside"), "inside")
    refused(run("reshard", checkpoint, out, "--chunk-tp", 3), "tensor_model_parallel_size 3")
    assert left(tmp_path) == set()
    assert "give B, or --manifest" in run("verify", source).stderr
    assert "lots" in (done := run("export", checkpoint, out, "--max-shard-size", "lots")).stderr
    assert done.returncode == 2
    assert left(tmp_path) == set()


def _cut(folder: Path) -> None:
    file = folder / "iter_0000000/__0_0.distcp"
    os.truncate(file, file.stat().st_size // 2)


def _without_shard(folder: Path) -> None:
    (folder / "iter_0000000/__0_0.distcp").unlink()


def _unfinished(folder: Path) -> None:
    (folder / "iter_0000000/metadata.json").unlink()


def _exploit(folder: Path) -> None:
    command = f"touch {folder / 'owned'}"
    (folder / "iter_0000000/.metadata").write_bytes(b"cos\nsystem\n(S'" + command.encode() + b"'\ntR.")


DAMAGES = {
    "truncated": (_cut, "__0_0.distcp"),
    "missing shard": (_without_shard, "__0_0.distcp"),
    "unfinished": (_unfinished, "metadata.json"),
    "crafted pickle": (_exploit, "system"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_refused(checkpoint: Path, tmp_path: Path, damage: str) -> None:
    spoil, word = DAMAGES[damage]
    shutil.copytree(checkpoint, tmp_path / "bad")
    spoil(tmp_path / "bad")
    for arguments in (
        ("export", "bad", "out"),
        ("reshard", "bad", "out", "--chunk-tp", "2"),
        ("verify", "bad", "bad"),
    ):
        refused(run(*arguments, cwd=tmp_path), word)
        assert left(tmp_path) == {"bad"}
    assert not (tmp_path / "bad/owned").exists()


def test_a_full_disk_leaves_nothing_and_is_gone_on_from(
    source: Path, checkpoint: Path, tmp_path: Path
) -> None:
    limit = (source / "model.safetensors").stat().st_size // 2

    def small_files() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    refused(run("export", checkpoint, tmp_path / "out", preexec_fn=small_files), "again")
    assert not (tmp_path / "out").exists()
    assert run("export", checkpoint, tmp_path / "out").returncode == 0
    assert run("verify", source, tmp_path / "out").returncode == 0
    assert left(tmp_path) == {"out"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_refused(source: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    refused(run("import", source, tmp_path / "out"), "out")


def _kill_when_weights_appear(command: list[object], partial: Path, delay: float) -> bool:
    """Start it, wait until there is a weight file, then `delay` seconds, and kill; whether it was still at work."""
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not any(
        file.suffix in (".safetensors", ".distcp") for file in partial.rglob("*")
    ):
        time.sleep(0.001)
    time.sleep(delay)
    process.kill()
    return process.wait() == -signal.SIGKILL


@pytest.mark.parametrize("verb", ["import", "export"])
def test_killed_at_any_moment_it_goes_on(tmp_path: Path, verb: str) -> None:
    """SIGKILL when copying has begun and at moments drawn over a run; OUT is whole or absent, completed at last."""
    config = small_config("Qwen2ForCausalLM", hidden_size=256, ffn=1024, num_layers=4, vocab_size=8192)
    random_hf_init(config, tmp_path / "hf", seed=5, randomize_all=True)
    model = tmp_path / "hf"
    if verb == "export":
        assert run("import", model, tmp_path / "mg").returncode == 0
        model = tmp_path / "mg"
    begin = time.monotonic()
    assert run(verb, model, tmp_path / "whole").returncode == 0
    duration = time.monotonic() - begin
    moments = random.Random(verb)
    out, partial, interrupted = tmp_path / "out", tmp_path / "out.partial", 0
    for delay in (0.0, *(moments.uniform(0.2, 0.95) * duration for _ in range(4))):
        killed = _kill_when_weights_appear([*COMMAND, verb, model, out], partial, delay)
        interrupted += killed and partial.exists()
        if out.exists():  # it was renamed before the kill
            assert run("verify", model, out).returncode == 0
            shutil.rmtree(out)
        else:
            assert killed
    assert interrupted  # the first at least, with weights half written
    assert run(verb, model, out).returncode == 0
    assert left(out) == left(tmp_path / "whole")
    manifest = "thinkprune-manifest.json"
    assert (out / manifest).read_bytes() == (tmp_path / "whole" / manifest).read_bytes()
    assert run("verify", tmp_path / "hf", out).returncode == 0
    assert not list(tmp_path.glob("out.partial*"))
