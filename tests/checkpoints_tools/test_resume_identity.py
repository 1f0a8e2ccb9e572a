"""An interrupted conversion is gone on with by the same conversion only."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from support.models import MODELS

from checkpoints_tools import convert
from checkpoints_tools.copying.partial import PartialFolder
from checkpoints_tools.random_init import random_hf_init


class Killed(Exception):
    """Stands for SIGKILL: what is on the disk stays as it is."""


def cut_short(monkeypatch: pytest.MonkeyPatch, jobs: int) -> None:
    """Let the next conversion die after so many finished jobs."""
    record, left = PartialFolder.record, [jobs]

    def counted(self: PartialFolder, done: object) -> None:
        if not left[0]:
            raise Killed
        left[0] -= 1
        record(self, done)  # type: ignore[arg-type]

    monkeypatch.setattr(PartialFolder, "record", counted)


@pytest.fixture
def hf(tmp_path: Path) -> Path:
    random_hf_init(MODELS["qwen2"], tmp_path / "hf", seed=3, randomize_all=True)
    return tmp_path / "hf"


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_another_config_of_the_same_shapes_starts_over(
    hf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4 heads of 8 in 2 groups and 2 heads of 16 in 1 group have the same tensors, cut otherwise."""
    mg, other = tmp_path / "mg", tmp_path / "other"
    convert.import_model(hf, mg)
    for file in mg.rglob("run_config.yaml"):  # it would tell the wrong config apart before
        file.unlink()
    shutil.rmtree(mg / "iter_0000000/tokenizer")
    shutil.copytree(hf, other)
    config = json.loads((other / "config.json").read_text())
    config |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
    (other / "config.json").write_text(json.dumps(config))
    with monkeypatch.context() as patched:
        cut_short(patched, 8)
        with pytest.raises(Killed):
            convert.export_model(mg, tmp_path / "out", base=other, threads=1)
    result = convert.export_model(mg, tmp_path / "out", base=hf, threads=1)
    assert result.resumed == 0
    assert weights(tmp_path / "out") == weights(hf)


def test_a_source_overwritten_in_place_starts_over(
    hf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = hf / "model.safetensors"
    before = file.stat()
    with monkeypatch.context() as patched:
        cut_short(patched, 5)
        with pytest.raises(Killed):
            convert.import_model(hf, tmp_path / "out", threads=1)
    random_hf_init(MODELS["qwen2"], tmp_path / "new", seed=4, randomize_all=True)
    with open(file, "r+b") as stream:
        stream.write(weights(tmp_path / "new"))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert convert.import_model(hf, tmp_path / "out", threads=1).resumed == 0
    convert.export_model(tmp_path / "out", tmp_path / "back")
    assert weights(tmp_path / "back") == weights(tmp_path / "new")


def test_the_same_conversion_goes_on(hf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        cut_short(patched, 5)
        with pytest.raises(Killed):
            convert.import_model(hf, tmp_path / "out", threads=1)
    assert convert.import_model(hf, tmp_path / "out", threads=1).resumed > 0
