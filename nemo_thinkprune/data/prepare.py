"""From the released data sets to this program's files: what `thinkprune data prepare` does.

The training set of the paper is the AMC and AIME subset of Eurus-2-RL-Data (rows of source numina_amc_aime).
Prompts are not stored with the problems: training and evaluation both build them from the question, so a
family or a length hint can change without preparing again.  An example of the family's prompt is written to
be read.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from nemo_thinkprune.data.problems import Problem, problems_from_table
from nemo_thinkprune.data.prompts import messages
from nemo_thinkprune.data.tables import Table, read_table
from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.files import sha256_file, write_atomic

EURUS = "PRIME-RL/Eurus-2-RL-Data"
EURUS_SUBSET = "numina_amc_aime"
# The released preprocessing gives all training rows this level.
EURUS_LEVEL = 6
EXAMPLE_LIMIT = 4000
MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class ProducedFile:
    """A file that was written: its path, its rows (0 for a text), its SHA-256, and remarks for the user."""

    path: Path
    rows: int
    sha256: str
    notes: tuple[str, ...] = ()


def prepare(*, out: Path, source: str | None, family: str, eval_files: Sequence[str]) -> list[ProducedFile]:
    """Write the training problems, the evaluation problems and an example prompt into the folder `out`.

    Files: train.jsonl; one .jsonl for each of `eval_files`, named after it; prompt_FAMILY.txt; manifest.json,
    last.  Nothing is removed: repeated questions and questions common to training and evaluation are counted
    in the notes.  All input is read before anything is written, and each file is replaced atomically.

    Args:
        out: folder, made if missing.
        source: the training data, a file, folder or hub id; None: Eurus-2-RL-Data from the hub.  Where it has
            rows of source numina_amc_aime these are taken, else all.
        family: prompt family of the example: deepseek, qwen or plain.
        eval_files: evaluation data: files, folders or hub ids.

    Returns:
        What was written, the manifest last.

    Raises:
        UserError: unknown family, unreadable data, or two evaluation sets of one name.
    """
    origin = read_table(source or EURUS)
    train, train_notes = _training_problems(origin)
    example = _example(train[0], family)
    sets = _evaluation_sets(eval_files)
    files = [_write_problems(out / "train.jsonl", train, [*train_notes, *_repeats(train)])]
    trained = {_fingerprint(problem) for problem in train}
    for name, (_, problems) in sets.items():
        notes = [*_per_source(problems), *_repeats(problems), *_overlap(problems, trained)]
        files.append(_write_problems(out / f"{name}.jsonl", problems, notes))
    files.append(_write_text(out / f"prompt_{family}.txt", example))
    origins = {"train": origin.name, **{name: table.name for name, (table, _) in sets.items()}}
    files.append(_write_text(out / MANIFEST, _manifest(origins, family, files)))
    return files


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


def _evaluation_sets(eval_files: Sequence[str]) -> dict[str, tuple[Table, list[Problem]]]:
    sets: dict[str, tuple[Table, list[Problem]]] = {}
    for given in eval_files:
        name = Path(given.partition("@")[0]).stem
        if name in sets or name in ("train", Path(MANIFEST).stem):
            raise UserError(
                f"evaluation set {given} would be written as {name}.jsonl, which is taken: rename it"
            )
        table = read_table(given)
        sets[name] = table, problems_from_table(table)
    return sets


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
        {"file": f.path.name, "rows": f.rows, "sha256": f.sha256, "notes": list(f.notes)} for f in files
    ]
    return json.dumps({"origins": origins, "prompt_family": family, "files": listed}, indent=2) + "\n"


def _write_problems(path: Path, problems: Sequence[Problem], notes: Sequence[str]) -> ProducedFile:
    write_atomic(path, "".join(json.dumps(asdict(p), ensure_ascii=False) + "\n" for p in problems))
    return ProducedFile(path, len(problems), sha256_file(path), tuple(notes))


def _write_text(path: Path, text: str) -> ProducedFile:
    write_atomic(path, text)
    return ProducedFile(path, 0, sha256_file(path))
