"""The doctor on this machine: facts that are gathered, and the verb from its recipe to its last line."""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from checkpoints_tools.hf_config import config_to_dict
from checkpoints_tools.model_config import ModelConfig
from nemo_thinkprune.doctor import folders
from nemo_thinkprune.doctor.commands import Request, doctor
from nemo_thinkprune.doctor.facts import Question
from nemo_thinkprune.doctor.folders import Canary, file_system, wait_for
from nemo_thinkprune.doctor.gpus import gpu_facts
from nemo_thinkprune.doctor.host import host_facts
from nemo_thinkprune.doctor.network import listening_ports, proxied

TINY = ModelConfig(
    "Qwen2ForCausalLM", 64, 2, 4, 2, 16, 128, 512, True, 1e6, None, 1e-6, True, False, 2048, 0.02, "float32"
)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a model and data for the recipe tiny-hf-cpu, on a machine without Slurm."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(config_to_dict(TINY)))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text('{"problem": "1+1", "answer": "2"}\n' * 8)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")
    for name in ("WANDB_API_KEY", "HF_TOKEN", "HF_HOME", "NEMO_RL_VENV_DIR"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def ask(**request: object) -> tuple[int, str]:
    stream = io.StringIO()
    problems = doctor(Request(**request), stream=stream)  # type: ignore[arg-type]
    return problems, stream.getvalue().replace("\n         ", " ")


def contents(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


def test_a_recipe_that_can_run_here(work: Path) -> None:
    before = contents(work)
    problems, text = ask(recipe="tiny-hf-cpu", run_dir=Path("runs/x"))
    assert problems == 0, text
    assert "disk:" in text and "a checkpoint takes about" in text and "quota" in text
    assert text.endswith("No problems.  Next: thinkprune train tiny-hf-cpu --engine local --run-dir runs/x\n")
    assert contents(work) == before


def test_what_a_recipe_misses_here(work: Path) -> None:
    (work / "data" / "train.jsonl").unlink()
    problems, text = ask(recipe="tiny-hf-cpu", overrides=("policy.model_name=other",))
    assert problems == 2
    assert re.search(r"problem +policy.model_name \[.*\]: \S+/other: No such file", text)
    assert re.search(r"problem +data.train.0.data_path \[.*\].*-> thinkprune data prepare", text)
    assert text.splitlines()[-1].endswith(
        "thinkprune doctor tiny-hf-cpu policy.model_name=other --engine local"
    )


def test_a_misspelt_key_is_a_problem_beside_the_others(work: Path) -> None:
    problems, text = ask(recipe="tiny-hf-cpu", overrides=("grpo.max_num_stepz=3",))
    assert problems == 1 and "max_num_steps" in text and "-> correct it, then: thinkprune check" in text
    assert "Python" in text


def test_nodes_without_slurm(work: Path) -> None:
    before = contents(work)
    problems, text = ask(recipe="tiny-hf-cpu", nodes=2, run_dir=work / "runs")
    assert problems == 1 and "srun is not here" in text
    assert contents(work) == before


def test_a_container_is_looked_into_on_nodes_only(work: Path) -> None:
    problems, text = ask(recipe="tiny-hf-cpu", container="image.sqsh")
    assert problems == 0 and "container: it was not looked into" in text and "torch" not in text


def test_a_secret_is_told_by_its_name(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_thisisnotforlogs")
    problems, text = ask(recipe="tiny-hf-cpu")
    assert problems == 0 and "HF_TOKEN from the environment" in text and "notforlogs" not in text
    (work / "keys").write_text("WANDB_API_KEY=0123456789\n")
    (work / "keys").chmod(0o644)
    problems, text = ask(recipe="tiny-hf-cpu", secrets=work / "keys")
    assert problems == 1 and "chmod 600" in text and "0123456789" not in text


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_may_not_be_written(work: Path) -> None:
    work.joinpath("closed").mkdir(mode=0o555)
    problems, text = ask(recipe="tiny-hf-cpu", run_dir=work / "closed" / "run")
    assert problems == 1 and "cannot be written: Permission denied" in text


def test_what_nvidia_smi_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(
        '#!/bin/sh\nif [ $# = 0 ]; then echo "| NVIDIA-SMI 550.54  CUDA Version: 12.4 |"; exit; fi\n'
        'echo "warning: persistence mode is off"\n'
        'echo "0, NVIDIA H100 80GB HBM3, 81559, 4, 0, 550.54, GPU-a5"\n'
        'echo "1, NVIDIA H100 80GB HBM3, 81559, 60000, [N/A], 550.54, GPU-b7"\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    facts = gpu_facts()
    assert [(gpu.memory_used, gpu.ecc_errors) for gpu in facts.devices] == [(4, 0), (60000, -1)]
    assert (facts.driver, facts.cuda, facts.visible, facts.problem) == ("550.54", "12.4", "1", "")
    assert [gpu.uuid for gpu in facts.devices] == ["GPU-a5", "GPU-b7"]
    program.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed: no driver'\nexit 9\n")
    assert "no driver" in gpu_facts().problem
    program.unlink()
    assert "not there" in gpu_facts().problem or shutil.which("nvidia-smi")


def test_ports_that_somebody_listens_on() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert port in listening_ports()
    assert listening_ports(("/no/such/table",)) == []


def test_proxies_that_stand_between_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    proxies = {"http": "http://proxy:3128"}
    assert proxied(["n1", "10.0.0.1", "n1"], proxies) == ["n1", "10.0.0.1"]
    assert proxied(["n1", "10.0.0.1"], {**proxies, "no": "n1,.cluster"}) == ["10.0.0.1"]
    monkeypatch.setenv("no_proxy", "*")
    assert proxied(["n1"], proxies) == []


def test_this_machine(tmp_path: Path) -> None:
    facts = host_facts(nemo_rl_root=None, scratch=str(tmp_path))
    assert re.fullmatch("[0-9a-f]{12}", facts.package_hash) and facts.packages["torch"] and facts.unmet == []
    assert facts.scratch_problem == "" and facts.memory_total > facts.memory_free > 0
    assert list(tmp_path.iterdir()) == []
    assert (
        host_facts(nemo_rl_root=tmp_path, scratch="/no/such").scratch_problem == "No such file or directory"
    )


def test_the_program_of_a_node_imports_no_package_that_may_be_broken_there() -> None:
    others = "{'torch', 'ray', 'pydantic', 'rich', 'yaml'}"
    code = f"import sys, nemo_thinkprune.doctor.node; print(sorted({others} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_file_of_another_asking_is_not_taken_for_a_nodes(tmp_path: Path) -> None:
    mine = Canary(label="x", folder=str(tmp_path), token="t", node="n1")
    mine.write(28100)
    (mine.folder / "n2.json").write_text('{"token": "u", "port": 1}')
    (mine.folder / "n3.json").write_text('{"token"')
    assert mine.seen() == {"n1": 28100}
    mine.clear()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_of_another_is_noticed(tmp_path: Path) -> None:
    asker = Canary(label="x", folder=str(tmp_path), token="t", node="login")
    node = Canary(label="x", folder=str(tmp_path), token="t", node="n1")
    for canary in (asker, node):
        canary.write(0)
    assert node.facts("login").lock == "No such file or directory"
    asker.hold_lock()
    assert node.facts("login").lock == ""  # it is held: that is what should be seen
    os.close(asker._lock)  # type: ignore[arg-type]
    asker._lock = None
    assert node.facts("login").lock == "local"
    asker.clear()


def test_a_folder_without_locks_is_told_as_that_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)
    asker = Canary(label="x", folder=str(tmp_path), token="t", node="login")
    asker.write(0)
    asker.hold_lock()
    facts = asker.facts("login")
    assert (facts.problem, facts.lock, facts.seen) == ("", "Function not implemented", ["login"])
    asker.clear()
    assert list(tmp_path.iterdir()) == []


def test_files_that_a_network_file_system_does_not_show_at_once_are_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As NFS does, a listing stays what it was until this machine changes the folder itself."""
    listed: dict[str, list[str]] = {}
    list_now, unlink_now = os.listdir, os.unlink

    def unlink(path: str | Path, **options: int) -> None:
        unlink_now(path, **options)
        listed.pop(os.path.dirname(path), None)

    mine, other = (Canary(label="x", folder=str(tmp_path), token="t", node=name) for name in ("n1", "n2"))
    mine.write(1)
    with monkeypatch.context() as patched:
        patched.setattr(folders, "_REFRESH_S", 0.1)
        patched.setattr(os, "listdir", lambda path: listed.setdefault(str(path), list_now(path)))
        patched.setattr(os, "unlink", unlink)
        assert set(mine.seen()) == {"n1"}
        other.write(2)
        assert set(mine.seen()) == {"n1"}
        time.sleep(0.1)
        wait_for([mine], {"n2"}, asker="", until=time.monotonic() + 20)
        assert mine.seen() == {"n1": 1, "n2": 2}
    assert sorted(item.name for item in mine.folder.iterdir()) == ["n1.json", "n2.json"]
    mine.clear()


def test_it_waits_longer_than_nfs_remembers_a_folder() -> None:
    assert (
        min(Request().patience_s, Question("t").patience_s) > 60 + 10
    )  # acdirmax, and somebody else's writing


def test_a_job_with_some_processors_shares_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n[1-3]")
    monkeypatch.setenv("SLURM_JOB_CPUS_PER_NODE", "8(x2),4")
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "1")  # what one step of an exclusive job has
    told = {}
    for name in ("n2", "n3", "login", ""):
        monkeypatch.setenv("SLURMD_NODENAME", name)
        told[name] = host_facts(nemo_rl_root=None, scratch="/tmp").is_shared
    assert told == {"n2": False, "n3": True, "login": False, "": False}


def test_the_next_command_is_one_that_can_be_typed(work: Path) -> None:
    def closing(**request: object) -> str:
        return ask(**request)[1].splitlines()[-1].partition("Next: ")[2]

    assert closing() == "thinkprune doctor RECIPE --engine local"
    assert closing(recipe="tiny-hf-cpu", gpus_per_node=2, scratch="/var/tmp", rounds=True) == (
        "thinkprune prune tiny-hf-cpu cluster.gpus_per_node=2 --engine local"
    )
    asked = closing(recipe="tiny-hf-cpu", partition="gpu", sbatch=("--qos=high",), scratch="/var/tmp")
    assert asked == (
        "thinkprune launch slurm tiny-hf-cpu --engine local --partition gpu --scratch /var/tmp --sbatch=--qos=high "
        "--nodes N"
    )


def test_the_file_system_of_a_folder() -> None:
    assert file_system(Path("/proc/self")) == "proc"
