"""Which samples of an update a data-parallel rank works on."""

from __future__ import annotations

from nemo_thinkprune.training.objective import _share


def test_whole_groups_where_every_rank_gets_as_many() -> None:
    assert [_share(range(12), 3, dp=2, dp_rank=r) for r in (0, 1)] == [
        [0, 1, 2, 6, 7, 8],
        [3, 4, 5, 9, 10, 11],
    ]


def test_the_second_update_of_a_step_goes_on_with_the_groups() -> None:
    assert [_share(range(6, 12), 3, dp=2, dp_rank=r) for r in (0, 1)] == [[6, 7, 8], [9, 10, 11]]


def test_samples_in_turns_where_groups_do_not_come_out_even() -> None:
    assert [_share(range(9), 3, dp=2, dp_rank=r) for r in (0, 1)] == [[0, 2, 4, 6, 8], [1, 3, 5, 7]]
    assert _share(range(4, 8), 8, dp=2, dp_rank=1) == [5, 7]
