"""What a command line may be given: every mistake is exit 2 and one message, never 1, which means different."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from support.models import MODELS

from checkpoints_tools.random_init import random_hf_init

COMMAND = [sys.executable, "-c", "from checkpoints_tools.__main__ import main; main()"]
LONG = "x" * 300


def run(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "timeout": 60, **options},  # type: ignore[call-overload]
        check=False,
    )


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert all(word in done.stderr for word in ("error: ", *words)), done.stderr


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile") / "hf"
    random_hf_init(MODELS["qwen2"], folder, seed=3, randomize_all=True)
    return folder


@pytest.fixture(scope="module")
def checkpoint(source: Path) -> Path:
    assert run("import", source, source.parent / "mg", "--no-verify").returncode == 0
    return source.parent / "mg"


@pytest.mark.parametrize(
    "arguments",
    [
        ("import", LONG, "out"),
        ("import", "hf", LONG),
        ("plan", "import", "hf", LONG),
        ("verify", LONG, "hf"),
        ("verify", "hf", LONG),
        ("verify", "hf", "--manifest", LONG),
        ("verify", "hf", "hf", "--base", LONG),
        ("inspect", LONG),
        ("export", "hf", "out", "--base", LONG),
    ],
)
def test_names_that_no_file_can_have(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    refused(run(*arguments, cwd=tmp_path), "File name too long")


@pytest.mark.parametrize("verb", [("import",), ("plan", "import")])
def test_the_root_is_no_name_for_a_new_folder(source: Path, verb: tuple[str, ...]) -> None:
    refused(run(*verb, source, "/"), "new folder")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may search any folder")
@pytest.mark.parametrize(
    "arguments",
    [
        ("plan", "import", "hf", "locked/o"),
        ("verify", "hf", "--manifest", "locked/m.json"),
        ("verify", "hf", "hf", "--base", "locked/hf"),
        ("inspect", "locked/hf"),
    ],
)
def test_a_folder_that_may_not_be_searched(source: Path, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    (tmp_path / "locked").mkdir(mode=0)
    (tmp_path / "hf").symlink_to(source)
    refused(run(*arguments, cwd=tmp_path), "Permission denied")


def test_a_home_folder_is_found_wherever_it_is_named(source: Path, tmp_path: Path) -> None:
    shutil.copytree(source, tmp_path / "hf")
    environment = os.environ | {"HOME": str(tmp_path)}

    def at_home(*arguments: str) -> int:
        return run(*arguments, cwd=source.parent, env=environment).returncode

    assert at_home("import", "~/hf", "~/mg") == 0
    assert at_home("export", "~/mg", "~/back", "--base", "~/hf") == 0
    assert at_home("verify", "~/hf", "--manifest", "~/back/thinkprune-manifest.json") == 0
    assert {path.name for path in tmp_path.iterdir()} == {"hf", "mg", "back"}


def test_the_home_of_nobody_is_no_folder(source: Path, tmp_path: Path) -> None:
    refused(run("import", "~nobody-here/hf", "out", cwd=tmp_path), "does not exist")
    refused(run("inspect", "~nobody-here", cwd=tmp_path), "does not exist")


def test_a_folder_name_that_is_no_text(source: Path, tmp_path: Path) -> None:
    out = os.fsdecode(b"out\xff\x1b[2J")
    done = run("import", source, out, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout and "out\\udcff\\x1b[2J" in done.stdout
    assert run("verify", source, out, cwd=tmp_path).returncode == 0


def test_a_size_of_very_many_digits(checkpoint: Path, tmp_path: Path) -> None:
    done = run("export", checkpoint, tmp_path / "out", "--max-shard-size", "9" * 400 + "GB")
    assert done.returncode == 2 and "Traceback" not in done.stderr and "is not a size" in done.stderr


def _add_tensor(folder: Path, name: str, shape: list[int]) -> None:
    file = folder / "model.safetensors"
    data = file.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data) - end, len(data) - end + 4]}
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[end:] + bytes(4))


def test_an_extra_scalar_is_named(source: Path, tmp_path: Path) -> None:
    shutil.copytree(source, tmp_path / "hf")
    _add_tensor(tmp_path / "hf", "scale", [])
    done = run("verify", tmp_path / "hf", source)
    assert done.returncode == 1 and "extra    scale" in done.stdout.replace("missing ", "extra   ")
    assert run("verify", tmp_path / "hf", tmp_path / "hf").returncode == 0


def test_a_name_of_very_many_digits_is_shown_or_refused(source: Path, tmp_path: Path) -> None:
    shutil.copytree(source, tmp_path / "hf")
    _add_tensor(tmp_path / "hf", "a." + "1" * 900, [1])
    done = run("inspect", tmp_path / "hf")
    assert done.returncode == 0 and not done.stderr
    shutil.rmtree(tmp_path / "hf")
    shutil.copytree(source, tmp_path / "hf")
    _add_tensor(tmp_path / "hf", "a." + "1" * 5000, [1])
    refused(run("inspect", tmp_path / "hf"), "not a tensor's name")


def test_a_model_name_of_any_length(source: Path, checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoint, tmp_path / "mg")
    shutil.rmtree(tmp_path / "mg/iter_0000000/tokenizer")
    for length in (500, 5000):
        (tmp_path / "mg/config.yaml").write_text(f"policy: {{model_name: {'x' * length}}}")
        refused(run("export", tmp_path / "mg", tmp_path / "out"), "no config.json")


def test_what_was_rounded_is_not_said_to_be_equal_byte_for_byte(source: Path) -> None:
    assert "byte for byte" in run("verify", source, source).stdout
    rounded = run("verify", source, source, "--dtype", "bf16").stdout
    assert "after conversion to bf16" in rounded and "byte for byte" not in rounded


def test_output_that_cannot_be_written(source: Path) -> None:
    with open("/dev/full", "w") as full:
        refused(run("verify", source, source, stdout=full), "No space left")
        assert run("--help", stdout=full).returncode == 2


def test_output_that_nobody_reads(source: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = run("inspect", source, "--json", stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_defect_keeps_its_traceback_and_is_not_a_difference(source: Path) -> None:
    spoilt = (
        "from checkpoints_tools import models, cli\n"
        "def fail(*_, **__): raise KeyError('defect')\n"
        "models.open_hf = fail\n"
        "cli.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", spoilt, "verify", source, source], capture_output=True, text=True, check=False
    )
    assert done.returncode == 70 and "Traceback" in done.stderr and "defect" in done.stderr


def test_memory_that_is_not_there(source: Path) -> None:
    spoilt = (
        "from checkpoints_tools import models, cli\n"
        "def fail(*_, **__): raise MemoryError\n"
        "models.open_hf = fail\n"
        "cli.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", spoilt, "verify", source, source], capture_output=True, text=True, check=False
    )
    refused(done, "out of memory")


@pytest.mark.parametrize("pause", np.linspace(0.1, 0.5, 5))
def test_interrupts_end_it_quietly(tmp_path: Path, source: Path, pause: float) -> None:
    """From the first module on; sooner, it is Python itself that is interrupted."""
    slow = (
        "import sys, time\n"
        "from checkpoints_tools.__main__ import main\n"
        "from checkpoints_tools import models, cli\n"
        "models.open_hf = lambda *_, **__: time.sleep(30)\n"
        "print('up', flush=True)\n"
        "main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", slow, "verify", source, source], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    time.sleep(pause)
    for _ in range(4):
        process.send_signal(signal.SIGINT)
        time.sleep(0.01)
    _, trouble = process.communicate(timeout=20)
    assert process.returncode == 130, trouble
    assert b"Traceback" not in trouble and b"Exception ignored" not in trouble
