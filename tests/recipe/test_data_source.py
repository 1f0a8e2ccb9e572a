"""A path or a hub id: one answer for whoever reads, checks or hands on the name of a data set."""

import pytest

from nemo_thinkprune.cluster.data_plan import absolute_data
from nemo_thinkprune.data.tables import read_table
from nemo_thinkprune.recipe.check_files import check_files
from nemo_thinkprune.recipe.data_source import is_hub_id, is_on_disk
from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.load import recipe_from_dict


@pytest.mark.parametrize(
    ("name", "hub"),
    [
        ("PRIME-RL/Eurus-2-RL-Data", True),
        ("owner/name@main", True),
        ("owner/name@refs/pr/1", True),
        ("here/data", False),  # a folder
        ("data/train.jsonl", False),
        ("data/train.parquet", False),
        ("name", False),
        ("a/b/c", False),
        ("./owner/name", False),
        ("~/name", False),
        ("/owner/name", False),
        ("öwner/näme", False),
        ("a/" + "b" * 5000 + "\0", False),
    ],
)
def test_what_a_name_means(tmp_path, monkeypatch, name, hub):
    (tmp_path / "here" / "data").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert is_hub_id(name) is hub
    assert is_on_disk(name) is (name == "here/data")
    assert (absolute_data(name) == name) is (hub or name.startswith("/"))
    if hub or is_on_disk(name):
        return
    with pytest.raises(UserError, match="does not exist"):
        read_table(name)
    with pytest.raises(UserError, match="nothing at"):
        check_files(
            recipe_from_dict({"policy": {"model_name": "m"}, "data": {"train": [{"data_path": name}]}})
        )
