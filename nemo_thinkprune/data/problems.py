"""Problems with their answers, from JSONL, JSON or Parquet files or a data set on the Hugging Face hub."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoints_tools.prompt_texts import DEEPSEEK_INSTRUCTION, QWEN_INSTRUCTION
from nemo_thinkprune.data.tables import Table, read_table
from nemo_thinkprune.recipe.errors import UserError

# The request that Eurus-2-RL-Data appends to each mathematical question; ours replaces it.
EURUS_SUFFIX = "\n\nPresent the answer in LaTex format: \\boxed{Your answer}"

_QUESTION_COLUMNS = ("question", "problem", "prompt", "messages", "input")
_ANSWER_COLUMNS = (
    "answer",
    "final_answer",
    "reward_model.ground_truth",
    "ground_truth",
    "expected_answer",
    "gold",
    "output",
)
_ID_COLUMNS = ("id", "unique_id", "problem_id")
_SOURCE_COLUMNS = ("source", "data_source")


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem.

    `id` is unique within the list it was loaded with; `question` is the bare text, without instruction or
    prompt; `answer` is the gold answer as the scorer takes it (parts of a multi-part answer joined by ", ");
    `source` names the collection it came from; `level` is a difficulty if the data has one.
    """

    id: str
    question: str
    answer: str
    source: str
    level: int | None = None


def load_problems(
    path_or_hub_id: str | Path,
    *,
    split: str | None = None,
    question_key: str | None = None,
    answer_key: str | None = None,
    sources: Sequence[str] | None = None,
) -> list[Problem]:
    """Load problems from a file, a folder of files, or a hub data set "owner/name[@revision]".

    Files are .jsonl, .json or .parquet.  The columns are found by their usual names (question, problem,
    prompt; answer, final_answer, reward_model.ground_truth, ...); `question_key` and `answer_key` name
    others, with dots into nested columns.  Chat-shaped prompts, as in Eurus-2-RL-Data before or after
    ThinkPrune's processing, give their user turn without the instruction appended to it.

    Args:
        path_or_hub_id: what exists on disk is a path; everything else of the form owner/name is a hub id.
        split: the split of a hub data set, or of a folder, chosen by file name; None for a single file.
        question_key: column of the question.
        answer_key: column of the answer.
        sources: keep only rows whose source or data_source is one of these.

    Raises:
        UserError: unreadable or empty data, no column found (the message lists the columns), an unknown
            source, a row without question or answer, or a hub that cannot be reached.
    """
    table = read_table(path_or_hub_id, split=split)
    return problems_from_table(table, question_key=question_key, answer_key=answer_key, sources=sources)


def problems_from_table(
    table: Table,
    *,
    question_key: str | None = None,
    answer_key: str | None = None,
    sources: Sequence[str] | None = None,
) -> list[Problem]:
    """Turn rows into problems; see `load_problems` for the arguments and errors."""
    named = _select_sources(table, sources)
    first = named[0][1]
    question_column = _find_column(table, first, question_key, _QUESTION_COLUMNS, "question")
    answer_column = _find_column(table, first, answer_key, _ANSWER_COLUMNS, "answer")
    problems = []
    for name, row in named:
        question = question_text(_lookup(row, question_column))
        answer = _with_percent(answer_text(_lookup(row, answer_column)), row)
        if not question or not answer:
            missing = question_column if not question else answer_column
            raise UserError(
                f"{table.name}, row {name}: {missing!r} has no usable text: {_lookup(row, missing)!r}"
            )
        problem = Problem(name, question, answer, _source_of(row, table.name), _level_of(row))
        _check_text(problem, table.name)
        problems.append(problem)
    return problems


def _with_percent(answer: str, row: Mapping[str, Any]) -> str:
    """Join the percent sign that OlympiadBench keeps in a column of its own: 4.2 is not 4.2%.

    Other units stay out, as the question names them.
    """
    unit = row.get("unit")
    is_percent = isinstance(unit, str) and unit.strip().strip("$").strip() in ("%", "\\%")
    return f"{answer}%" if is_percent and answer and not answer.endswith("%") else answer


def _check_text(problem: Problem, table_name: str) -> None:
    """Refuse half a surrogate pair, which JSON can escape but no file or tokenizer can take."""
    for value in (problem.id, problem.question, problem.answer, problem.source):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise UserError(f"{table_name}, row {problem.id!r}: {error.reason} in {value[:80]!r}") from error


def question_text(value: Any) -> str:
    """Return the bare question of a cell: a string, or a chat (list of role and content) with one user turn.

    The instructions that Eurus and ThinkPrune append are removed.  Anything else gives "".
    """
    if isinstance(value, list):
        turns = [
            turn.get("content") for turn in value if isinstance(turn, Mapping) and turn.get("role") == "user"
        ]
        value = turns[0] if len(turns) == 1 else None
    if not isinstance(value, str):
        return ""
    text = value.rstrip()
    for suffix in (DEEPSEEK_INSTRUCTION, QWEN_INSTRUCTION):
        text = text.removesuffix(suffix).rstrip()
    return text.removesuffix(EURUS_SUFFIX).strip()


def answer_text(value: Any) -> str:
    """Return the gold answer of a cell as text, or "" when there is none.

    Lists join with ", "; 27.0 becomes "27", as integers are stored as floats in some files; NaN and infinite
    numbers are no answer; unescaped dollar signs, which only delimit mathematics, are removed.
    """
    if isinstance(value, list):
        # Part of an answer must not pass for the whole.
        return "" if any(map(_not_finite, value)) else ", ".join(filter(None, map(answer_text, value)))
    if isinstance(value, bool) or value is None or _not_finite(value):
        return ""
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else repr(value)
    text = str(value).strip()
    return text.replace("\\$", "\0").replace("$", "").replace("\0", "\\$").strip()


def _not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _select_sources(table: Table, sources: Sequence[str] | None) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the rows of these sources with their names, which do not depend on the selection."""
    if not table.rows:
        raise UserError(f"{table.name} has no rows")
    named = list(zip(_row_names(table.rows, table.name), table.rows, strict=True))
    if sources is None:
        return named
    counts = Counter(_source_of(row, table.name) for row in table.rows)
    absent = sorted(set(sources) - set(counts))
    if absent:
        raise UserError(f"{table.name} has no rows of {absent}; it has {dict(counts.most_common(12))}")
    return [(name, row) for name, row in named if _source_of(row, table.name) in sources]


def _find_column(
    table: Table, row: Mapping[str, Any], override: str | None, candidates: Sequence[str], what: str
) -> str:
    if override is not None:
        if _lookup(row, override) is None:
            raise UserError(
                f"{table.name} has no {what} column {override!r}; its columns are {_columns(row)}"
            )
        return override
    for name in candidates:
        if _lookup(row, name) is not None:
            return name
    raise UserError(
        f"{table.name}: no {what} column found (looked for {', '.join(candidates)}); its columns are "
        f"{_columns(row)}. Name it with {what}_key"
    )


def _columns(row: Mapping[str, Any]) -> list[str]:
    names: list[str] = []
    for key, value in row.items():
        if isinstance(value, Mapping):
            names += [f"{key}.{inner}" for inner in value]
        else:
            names.append(str(key))
    return names


def _lookup(row: Mapping[str, Any], key: str) -> Any:
    if key in row:
        return row[key]
    head, _, rest = key.partition(".")
    inner = row.get(head)
    return _lookup(inner, rest) if rest and isinstance(inner, Mapping) else None


def _row_names(rows: Sequence[Mapping[str, Any]], table_name: str) -> list[str]:
    """Return the rows' own ids where unique, else their positions: the ledger needs unique names.

    Mere numbers get the source in front, since several data sets may be trained on together.
    """
    for column in _ID_COLUMNS:
        names = [str(row[column]) for row in rows if row.get(column) is not None]
        if len(names) == len(rows) == len(set(names)):
            break
    else:
        names = [str(number) for number in range(len(rows))]
    if not all(name.isdecimal() for name in names):
        return names
    return [f"{_source_of(row, table_name)}-{name}" for name, row in zip(names, rows, strict=True)]


def _source_of(row: Mapping[str, Any], table_name: str) -> str:
    for column in _SOURCE_COLUMNS:
        if isinstance(row.get(column), str):
            return row[column]
    return Path(table_name.partition("@")[0]).stem


def _level_of(row: Mapping[str, Any]) -> int | None:
    level = row.get("level")
    if isinstance(level, str):
        level = level.removeprefix("Level ").strip()
        return int(level) if level.isdecimal() and len(level) < 10 else None
    return level if isinstance(level, int) and not isinstance(level, bool) else None
