from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nemo_thinkprune.doctor.hostlist import expand, fold

NAMES = st.from_regex(r"[a-z]{1,3}[0-9]{0,3}(-ib)?", fullmatch=True)


@given(st.lists(NAMES, max_size=12, unique=True))
def test_what_is_folded_expands_to_the_same_names(names: list[str]) -> None:
    assert sorted(expand(fold(names))) == sorted(names)


def test_as_slurm_writes_it() -> None:
    assert fold(["n1", "n2", "n3", "login", "n5"]) == "n[1-3,5],login"
    assert fold(["gpu01"]) == "gpu01"
    assert fold(["gpu09", "gpu10"]) == "gpu09,gpu10" or expand(fold(["gpu09", "gpu10"])) == ["gpu09", "gpu10"]
    assert expand("a[1-2]b[3,5-6],c") == ["a1b3", "a1b5", "a1b6", "a2b3", "a2b5", "a2b6", "c"]
    assert expand("") == []


def test_a_list_without_end_is_cut() -> None:
    assert len(expand("n[1-999999999]")) == 100_000
    assert len(expand("n[1-1000]m[1-1000]")) == 100_000
