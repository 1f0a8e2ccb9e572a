"""Access to Weights & Biases and the Hugging Face hub: found and checked at submission, before a job waits for hours.

A job takes them from the environment or from the file once more (launchers/slurm/secrets.sh.jinja, which reads
the same lines), so that no value stands in a script, in a command line or in a log.
"""

from __future__ import annotations

import difflib
import os
import re
import shlex
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nemo_thinkprune.recipe.errors import UserError

NAMES = ("WANDB_API_KEY", "HF_TOKEN")
OLD_NAMES = {"HUGGING_FACE_HUB_TOKEN": "HF_TOKEN"}
"""Names that libraries still read, with today's."""

_LINE = re.compile(r"(?:export\s+)?([^=\s]+)=(.*)", re.ASCII)
_BLANKS = " \t\r\v\f"  # those that bash knows, and no more
# What the job's script and netrc take unchanged: ASCII that shows, no quotes, no backslash.
_VALUE = re.compile(r"[!#-&(-\[\]-~]+")
_LARGEST = 64 << 10


@dataclass(frozen=True, slots=True)
class Secret:
    """A value and where it was found; shown without the value."""

    value: str
    source: str

    def __repr__(self) -> str:
        return f"Secret(from {self.source})"


@dataclass(frozen=True, slots=True)
class Secrets:
    """What a job may use, by the names of `NAMES`; `file` is absolute and is read again by the job."""

    found: Mapping[str, Secret]
    file: Path | None = None

    def describe(self) -> str:
        """One line for the terminal: names and sources, no values."""
        return ", ".join(f"{name} from {self.found[name].source}" for name in NAMES if name in self.found)

    def names_in(self, text: str) -> list[str]:
        """The names of those whose value stands in `text`, which is not to be so."""
        return [name for name, secret in self.found.items() if secret.value in text]


def read_secrets(*, file: Path | None, environment: Mapping[str, str]) -> Secrets:
    """Find the secrets of a job: those of `file` (lines KEY=VALUE), and those of `environment` that it lacks.

    Raises:
        UserError: the file is missing, open to others, or a line of it is not understood; a value is empty or
            holds what no key or token holds.  No message shows a value.
    """
    found = _from_environment(environment)
    if file is not None:
        file = Path(os.path.abspath(os.path.expanduser(file)))
        found |= _from_file(file)
    return Secrets({name: found[name] for name in NAMES if name in found}, file)


def _from_environment(environment: Mapping[str, str]) -> dict[str, Secret]:
    found = {}
    for name in (*OLD_NAMES, *NAMES):  # today's name comes last and wins
        value = environment.get(name)
        if value is not None:
            found[OLD_NAMES.get(name, name)] = Secret(
                _checked(value, f"the variable {name}"), "the environment"
            )
    return found


def _from_file(file: Path) -> dict[str, Secret]:
    found: dict[str, Secret] = {}
    for number, raw in enumerate(_private_text(file).split("\n"), start=1):
        line = raw.strip(_BLANKS)
        if not line or line.startswith("#"):
            continue
        where = f"line {number} of {file}"
        match = _LINE.fullmatch(line)
        if match is None:
            raise UserError(
                f"{where} is not KEY=VALUE (no spaces around the =); write for example HF_TOKEN=hf_..."
            )
        name = _known(match[1], where)
        if name in found:
            raise UserError(f"{where} gives {name} a second time; leave one of the two lines")
        found[name] = Secret(_checked(_unquoted(match[2]), f"{match[1]} in {where}"), str(file))
    return found


def _private_text(file: Path) -> str:
    """The text of a file that no one but its owner, who is the user, can read."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise UserError(f"cannot read the file of secrets {file}: {error.strerror}") from None
    state = os.fstat(descriptor)  # of what was opened: the name may mean another file by now
    if not stat.S_ISREG(state.st_mode):
        os.close(descriptor)
        raise UserError(f"the file of secrets {file} is not a file")
    with os.fdopen(descriptor, "rb") as stream:
        if state.st_uid != os.geteuid():
            raise UserError(
                f"the file of secrets {file} belongs to another user; make one of your own (HF_TOKEN=hf_...)"
            )
        if state.st_mode & 0o077:
            raise UserError(
                f"others may read the file of secrets {file} (mode {stat.S_IMODE(state.st_mode):04o}); "
                f"type: chmod 600 {shlex.quote(str(file))}"
            )
        data = stream.read(_LARGEST + 1)
    if len(data) > _LARGEST:
        raise UserError(f"the file of secrets {file} is larger than {_LARGEST} bytes: is it the right one?")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise UserError(f"the file of secrets {file} is not text") from None


def _known(name: str, where: str) -> str:
    """Today's name for `name`."""
    if name in NAMES:
        return name
    if name in OLD_NAMES:
        return OLD_NAMES[name]
    near = difflib.get_close_matches(name.upper(), [*NAMES, *OLD_NAMES], n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else ""
    # a line may be a bare token with a = in it: shown is what looks like a name
    shown = name if re.fullmatch(r"[A-Za-z_]\w{0,39}", name) and not name.startswith("hf_") else "a key"
    raise UserError(f"{where}: {shown} is not known; known are {', '.join(NAMES)}{hint}")


def _unquoted(value: str) -> str:
    value = value.strip(_BLANKS)
    if len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'":
        return value[1:-1]
    return value


def _checked(value: str, what: str) -> str:
    if not value:
        raise UserError(f"{what} is empty: give it a value, or leave it out")
    if not _VALUE.fullmatch(value):
        raise UserError(
            f"{what} holds a space, a line break, a quote or another character that no key or token has; "
            "a comment goes on a line of its own"
        )
    return value
