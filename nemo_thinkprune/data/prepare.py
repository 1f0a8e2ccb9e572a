"""From the released data sets to this program's files: what `thinkprune data prepare` does.

The training set of the paper is the AMC and AIME subset of Eurus-2-RL-Data (rows of source numina_amc_aime).
Its checkpoints are selected on AIME22 and AIME23, which come in one file with AIME24, the test set: this is
written whole as aime22-24.jsonl, from which recipes select by source, and AIME24 once more by itself.
Prompts are not stored with the problems: training and evaluation both build them from the question, so a
family or a length hint can change without preparing again.  An example of the family's prompt is written to
be read.
"""

from __future__ import annotations

import json
import os
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from nemo_thinkprune.data.problems import Problem, problems_from_table
from nemo_thinkprune.data.prompts import messages
from nemo_thinkprune.data.tables import Table, read_table
from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.files import is_file, is_folder, sha256_file, write_atomic

EURUS = "PRIME-RL/Eurus-2-RL-Data"
EURUS_SUBSET = "numina_amc_aime"
# The released preprocessing gives all training rows this level.
EURUS_LEVEL = 6
EXAMPLE_LIMIT = 4000
MANIFEST = "manifest.json"
AIME, AIME_TEST = "aime22-24", "aime24"
AIME_SOURCES = ("AIME22", "AIME23", "AIME24")
AIME_FILE = "https://github.com/UCSB-NLP-Chang/ThinkPrune/raw/HEAD/aux_data/test_aime.parquet"


@dataclass(frozen=True, slots=True)
class ProducedFile:
    """A file that was written: its path, its rows (None for a text), its SHA-256, and remarks for the user."""

    path: Path
    rows: int | None
    sha256: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Set:
    """Evaluation problems and the table they came from."""

    origin: str
    problems: list[Problem]


def prepare(
    *, out: Path, source: str | None, family: str, eval_files: Sequence[str], aime: str | None = None
) -> list[ProducedFile]:
    """Write the training problems, the evaluation problems and an example prompt into the folder `out`.

    Files: train.jsonl; aime22-24.jsonl and aime24.jsonl where `aime` is given; one .jsonl for each of
    `eval_files`, named after it; prompt_FAMILY.txt; manifest.json, last. No problem is removed: repeats and
    overlap are counted in the notes. All input is read before anything is written, each file atomically.

    Args:
        out: folder, made if missing.
        source: the training data, a file, folder or hub id; None: Eurus-2-RL-Data from the hub. Where it has
            rows of source numina_amc_aime these are taken, else all.
        family: prompt family of the example: deepseek, qwen or plain.
        eval_files: further evaluation data: files, folders or hub ids.
        aime: the released aux_data/test_aime.parquet, or another file, folder or hub id with these rows.

    Raises:
        UserError: unknown family, unreadable data, two evaluation sets of one name, `aime` without rows of
            AIME22, AIME23 and AIME24, or a folder that cannot be written.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: --out names a folder")
    origin = read_table(source or EURUS)
    train, train_notes = _training_problems(origin)
    example = _example(train[0], family)
    sets = _evaluation_sets(eval_files, aime)
    try:
        files = [_write_problems(out / "train.jsonl", train, [*train_notes, *_repeats(train)])]
        trained = {_fingerprint(problem) for problem in train}
        for name, one in sets.items():
            notes = [*_per_source(one.problems), *_repeats(one.problems), *_overlap(one.problems, trained)]
            files.append(_write_problems(out / f"{name}.jsonl", one.problems, notes))
        files.append(_write_text(out / f"prompt_{family}.txt", example))
        origins = {"train": origin.name, **{name: one.origin for name, one in sets.items()}}
        files.append(_write_text(out / MANIFEST, _manifest(origins, family, files)))
    except OSError as error:
        raise UserError(f"cannot write into {out}: {error.strerror or error}") from error
    return files


def aime_missing(out: Path, source: str | None) -> str:
    """Return how to get the evaluation problems that `prepare` with these arguments was not given."""
    given = ["--out", str(out), *(["--from", source] if source is not None else [])]
    return (
        f"{out / AIME}.jsonl was not written: AIME22 and AIME23, on which checkpoints are selected, and the test\n"
        "set AIME24 are a file that you download:\n"
        f"  {AIME_FILE}\n"
        f"  thinkprune data prepare {shlex.join(given)} --aime test_aime.parquet"
    )


def _training_problems(table: Table) -> tuple[list[Problem], list[str]]:
    subset = [row for row in table.rows if row.get("data_source") == EURUS_SUBSET]
    if subset:
        chosen = Table(table.name, subset, table.files)
        note = f"{len(subset)} rows of {EURUS_SUBSET} out of {len(table.rows)} from {table.name}"
    else:
        chosen, note = table, f"all {len(table.rows)} rows of {table.name}: it has none of {EURUS_SUBSET}"
    problems = problems_from_table(chosen)
    level = EURUS_LEVEL if subset else None
    return [p if p.level is not None else replace(p, level=level) for p in problems], [note]


def _evaluation_sets(eval_files: Sequence[str], aime: str | None) -> dict[str, _Set]:
    sets = _aime_sets(aime) if aime is not None else {}
    if AIME_TEST in sets and AIME_TEST in map(_set_name, eval_files):
        del sets[AIME_TEST]  # the user has a file of their own for the test set
    for given in eval_files:
        name = _set_name(given)
        if name in sets or name in ("train", Path(MANIFEST).stem):
            raise UserError(
                f"evaluation set {given} would be written as {name}.jsonl, which is taken: rename it"
            )
        table = read_table(given)
        sets[name] = _Set(table.name, problems_from_table(table))
    return sets


def _aime_sets(aime: str) -> dict[str, _Set]:
    table = read_table(aime)
    problems = problems_from_table(table)
    found = Counter(problem.source for problem in problems)
    if set(found) != set(AIME_SOURCES):
        raise UserError(
            f"--aime {aime}: expected the rows of {', '.join(AIME_SOURCES)} as in the released "
            f"test_aime.parquet, found {dict(found.most_common(6))}; pass other data with --eval"
        )
    test = [problem for problem in problems if problem.source == "AIME24"]
    return {AIME: _Set(table.name, problems), AIME_TEST: _Set(table.name, test)}


def _set_name(given: str) -> str:
    """Return the name that an evaluation set is written under: that of its file, folder or hub data set."""
    path = Path(os.path.abspath(os.path.expanduser(given)))
    name = (
        path.name if is_folder(path) else path.stem if is_file(path) else Path(given.partition("@")[0]).stem
    )
    if not name or not given:
        raise UserError(
            f"evaluation set {given!r} has no name to write it under: give a file or a named folder"
        )
    return name


def _fingerprint(problem: Problem) -> str:
    """The question without its spacing and case, which differ between copies of one problem."""
    return "".join(problem.question.split()).casefold()


def _per_source(problems: Sequence[Problem]) -> list[str]:
    counts = Counter(problem.source for problem in problems)
    return (
        [", ".join(f"{source}: {count}" for source, count in sorted(counts.items()))]
        if len(counts) > 1
        else []
    )


def _repeats(problems: Sequence[Problem]) -> list[str]:
    repeated = len(problems) - len({_fingerprint(problem) for problem in problems})
    return [f"{repeated} rows repeat the question of an earlier row"] if repeated else []


def _overlap(problems: Sequence[Problem], trained: set[str]) -> list[str]:
    common = sum(_fingerprint(problem) in trained for problem in problems)
    return [f"{common} of {len(problems)} questions are also training questions"] if common else []


def _example(problem: Problem, family: str) -> str:
    hint = None if family == "plain" else EXAMPLE_LIMIT
    turns = messages(problem, family=family, length_hint=hint)
    head = f"# Prompt family {family}" + ("" if hint is None else f", with the length hint of limit {hint}")
    return head + "".join(f"\n\n## {turn['role']}\n\n{turn['content']}" for turn in turns) + "\n"


def _manifest(origins: dict[str, str], family: str, files: Sequence[ProducedFile]) -> str:
    listed: list[dict[str, Any]] = [
        {
            "file": f.path.name,
            **({} if f.rows is None else {"rows": f.rows}),
            "sha256": f.sha256,
            "notes": list(f.notes),
        }
        for f in files
    ]
    return json.dumps({"origins": origins, "prompt_family": family, "files": listed}, indent=2) + "\n"


def _write_problems(path: Path, problems: Sequence[Problem], notes: Sequence[str]) -> ProducedFile:
    write_atomic(path, "".join(json.dumps(asdict(p), ensure_ascii=False) + "\n" for p in problems))
    return ProducedFile(path, len(problems), sha256_file(path), tuple(notes))


def _write_text(path: Path, text: str) -> ProducedFile:
    write_atomic(path, text)
    return ProducedFile(path, None, sha256_file(path))
