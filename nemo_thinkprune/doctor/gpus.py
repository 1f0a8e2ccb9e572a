"""The GPUs of this machine, asked of nvidia-smi: no CUDA context is made, so none of their memory is taken."""

from __future__ import annotations

import os
import re
import subprocess

from nemo_thinkprune.doctor.facts import Gpu, Gpus

_FIELDS = "index,name,memory.total,memory.used,ecc.errors.uncorrected.volatile.total,driver_version,uuid"
_PATIENCE_S = 60.0  # without persistence mode the driver starts for every call


def gpu_facts() -> Gpus:
    """What nvidia-smi tells; `problem` says why it tells nothing."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    try:
        table = _answer("nvidia-smi", f"--query-gpu={_FIELDS}", "--format=csv,noheader,nounits")
        devices, driver = read_table(table)
        cuda = re.search(r"CUDA Version:\s*([\d.]+)", _answer("nvidia-smi"))
    except FileNotFoundError:
        return Gpus(visible=visible, problem="nvidia-smi is not there")
    except subprocess.TimeoutExpired:
        return Gpus(visible=visible, problem=f"nvidia-smi did not answer within {_PATIENCE_S:.0f} s")
    except (OSError, subprocess.CalledProcessError) as error:
        said = str(getattr(error, "stdout", "") or error).strip().splitlines()
        return Gpus(visible=visible, problem=f"nvidia-smi failed: {said[-1] if said else 'it says nothing'}")
    return Gpus(devices, driver, cuda[1] if cuda else "", visible)


def read_table(text: str) -> tuple[list[Gpu], str]:
    """GPUs and driver version from the lines of ``nvidia-smi --query-gpu``; what is no such line is left out."""
    devices, driver = [], ""
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) != len(_FIELDS.split(",")) or not cells[0].isdecimal():
            continue
        total, used, errors = (int(cell) if cell.isdecimal() else -1 for cell in cells[2:5])
        devices.append(Gpu(int(cells[0]), cells[1], total, used, errors, cells[6]))
        driver = cells[5]
    return devices, driver


def _answer(*command: str) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", timeout=_PATIENCE_S, check=True,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    return done.stdout
