import hashlib
import os
import stat

import pytest

from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.files import fsync_dir, sha256_file, write_atomic


def test_writes_text_and_bytes_and_makes_the_folder(tmp_path):
    write_atomic(tmp_path / "a" / "b.txt", "Länge\r\n")
    assert (tmp_path / "a" / "b.txt").read_bytes() == "Länge\r\n".encode()
    write_atomic(tmp_path / "a" / "b.txt", b"\x00\xff")
    assert (tmp_path / "a" / "b.txt").read_bytes() == b"\x00\xff"
    assert os.listdir(tmp_path / "a") == ["b.txt"]


def test_a_new_file_follows_the_umask_and_an_old_one_keeps_its_mode(tmp_path):
    path = tmp_path / "x"
    before = os.umask(0o027)
    try:
        write_atomic(path, "1")
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
    finally:
        os.umask(before)
    path.chmod(0o600)
    write_atomic(path, "2")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_failure_keeps_the_old_content_and_leaves_nothing_behind(tmp_path, monkeypatch):
    path = tmp_path / "x"
    write_atomic(path, "old")

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["x"]


def test_fsync_dir_refuses_a_file(tmp_path):
    (tmp_path / "f").write_text("")
    fsync_dir(tmp_path)
    with pytest.raises(OSError):
        fsync_dir(tmp_path / "f")


def test_sha256_over_several_chunks(tmp_path):
    data = bytes(range(256)) * 10_000
    (tmp_path / "f").write_bytes(data)
    assert sha256_file(tmp_path / "f") == hashlib.sha256(data).hexdigest()


def test_user_error_is_a_value_error():
    assert issubclass(UserError, ValueError)
