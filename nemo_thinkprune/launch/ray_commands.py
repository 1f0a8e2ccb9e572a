"""A job of a Ray cluster, seen from outside: the commands `ray job ...` for it, and what its script says of itself."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from nemo_thinkprune.launch.events import JobFolder

SCRIPT_NAME = "launch.sh"
_OWN_SCRIPT = "job.sh"
_ANY_ADDRESS = "http://HEAD:8265"
_HEAD_LINES = 10


@dataclass(frozen=True, slots=True)
class RayCommands:
    """The commands for one job, to be typed; the cluster's dashboard is at `address`."""

    address: str
    submission_id: str

    @property
    def status(self) -> str:
        """Asks whether it is still there."""
        return self._about_it("status")

    @property
    def follow(self) -> str:
        """Shows what its script prints."""
        return self._about_it("logs", "--follow")

    @property
    def stop(self) -> str:
        """Ends it, after it has saved."""
        return self._about_it("stop", "--no-wait")

    def _about_it(self, verb: str, *options: str) -> str:
        return shlex.join(["ray", "job", verb, "--address", self.address, self.submission_id, *options])


def commands_of(folder: JobFolder) -> RayCommands:
    """The commands for a job that left records; where they do not tell the address it is an example of one."""
    words = submission(script_of(folder))
    after = words[words.index("--address") + 1 :] if "--address" in words else []
    return RayCommands(after[0] if after else _ANY_ADDRESS, folder.job_id)


def script_of(folder: JobFolder) -> Path:
    """The script as a job runs it, else the one that its run folder keeps."""
    own = folder.path / _OWN_SCRIPT
    return own if own.is_file() else folder.run_dir / SCRIPT_NAME


def submission(script: Path) -> list[str]:
    """The words of the command that submits a script, as its head tells; none where it does not."""
    try:
        with open(script, encoding="utf-8", errors="replace") as stream:
            head = [stream.readline(1 << 16) for _ in range(_HEAD_LINES)]
        [line] = [line for line in head if line.startswith("# ray job submit ")]
        return shlex.split(line.removeprefix("# "))
    except (OSError, ValueError):
        return []
