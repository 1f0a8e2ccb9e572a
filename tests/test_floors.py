"""Imports go down: no package knows one that stands above it, and no two know each other."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
FLOORS = (
    {"recipe", "checkpoints_tools"},
    {"algorithms", "rewards", "data", "costs"},
    {"rollout", "policy"},
    {"training", "cluster", "evaluation", "reporting"},
    {"rounds", "launch", "doctor", "plan", "bench"},
    {"cli", "cli_launch", "cli_measure", "cli_options"},
)


def imports() -> dict[str, set[str]]:
    """Which packages each package imports, be it inside a function."""
    found: dict[str, set[str]] = {name: set() for floor in FLOORS for name in floor}
    for file in [*ROOT.glob("nemo_thinkprune/**/*.py"), *ROOT.glob("checkpoints_tools/**/*.py")]:
        if "build" in file.relative_to(ROOT).parts:  # what `pip install ./checkpoints_tools` leaves
            continue
        package = _package(".".join(file.relative_to(ROOT).with_suffix("").parts))
        if package is None:
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if isinstance(node, ast.ImportFrom) and node.module == "nemo_thinkprune":
                names = [f"nemo_thinkprune.{alias.name}" for alias in node.names]
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            found[package] |= {other for name in names if (other := _package(name)) not in (None, package)}
    return found


def _package(module: str) -> str | None:
    first, _, rest = module.partition(".")
    if first == "checkpoints_tools":
        return first
    name = rest.partition(".")[0]
    return name if first == "nemo_thinkprune" and any(name in floor for floor in FLOORS) else None


def test_every_import_is_found() -> None:
    found = imports()
    assert (
        "rounds" in found["cli"]
        and "checkpoints_tools" in found["policy"]
        and "evaluation" in found["training"]
    )


def test_no_package_imports_one_on_a_higher_floor() -> None:
    height = {name: number for number, floor in enumerate(FLOORS) for name in floor}
    upward = [
        (low, high) for low, others in imports().items() for high in others if height[high] > height[low]
    ]
    assert upward == []


def test_packages_do_not_import_each_other_in_a_circle() -> None:
    assert list(TopologicalSorter(imports()).static_order())


def test_evaluation_holds_statistics_alone() -> None:
    assert imports()["evaluation"] <= {"recipe"}
