"""Where NeMo-RL is found, and what its processes import."""

import subprocess
import sys
from pathlib import Path

import pytest
from support.nemo_rl import empty_checkout

import nemo_thinkprune
from nemo_thinkprune.cluster import find
from nemo_thinkprune.cluster.find import NemoRL, copy_packages, find_nemo_rl, python_path
from nemo_thinkprune.recipe.errors import UserError


@pytest.fixture
def checkout(tmp_path):
    return empty_checkout(tmp_path / "RL", "1.2.3")


@pytest.fixture(autouse=True)
def nowhere(monkeypatch):
    monkeypatch.setattr(find, "_importable", lambda: None)
    monkeypatch.delenv("NEMO_RL_ROOT", raising=False)


def test_a_folder_that_is_given_wins_over_the_variable(checkout, tmp_path, monkeypatch):
    monkeypatch.setenv("NEMO_RL_ROOT", str(tmp_path / "other"))
    assert find_nemo_rl(checkout) == NemoRL(checkout.resolve(), "1.2.3")


def test_the_variable_names_a_checkout(checkout, monkeypatch):
    monkeypatch.setenv("NEMO_RL_ROOT", str(checkout))
    assert find_nemo_rl().root == checkout.resolve()


def test_an_importable_one_needs_no_place_on_the_path(checkout, tmp_path, monkeypatch):
    monkeypatch.setattr(find, "_importable", lambda: checkout)
    found = find_nemo_rl()
    assert found.importable
    assert str(checkout) not in python_path(found, tmp_path).split(":")


def test_without_one_the_message_says_how_to_get_it():
    with pytest.raises(UserError, match=r"git clone .* -b v0\.7\.0 .*--nemo-rl-root"):
        find_nemo_rl()


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="not a checkout of NeMo-RL"):
        find_nemo_rl(tmp_path)


def test_processes_import_this_program_and_nothing_else_of_its_python(checkout, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/given")
    packages = copy_packages(tmp_path / "python")
    assert sorted(item.name for item in packages.iterdir()) == ["checkpoints_tools", "nemo_thinkprune"]
    path = python_path(find_nemo_rl(checkout), packages).split(":")
    assert path[-3:] == [str(packages), str(checkout.resolve()), "/given"]
    code = "import nemo_thinkprune, checkpoints_tools, sys; print(nemo_thinkprune.__file__)"
    ran = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(packages)!r}); {code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.strip() == str(packages / "nemo_thinkprune" / "__init__.py")


def test_a_copy_is_whole_and_replaces_an_earlier_one(tmp_path):
    packages = copy_packages(tmp_path)
    (packages / "nemo_thinkprune" / "left_over.py").touch()
    copy_packages(tmp_path)
    copied, own = packages / "nemo_thinkprune", Path(nemo_thinkprune.__file__).parent
    names = {path.relative_to(own) for path in own.rglob("*.py")}
    assert {path.relative_to(copied) for path in copied.rglob("*.py")} == names


def test_a_folder_that_cannot_be_written_is_a_clear_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="give another --run-dir"):
        copy_packages(tmp_path / "file" / "python")
