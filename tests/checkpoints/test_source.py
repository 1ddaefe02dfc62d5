"""Which checkpoint a path stands for."""

from __future__ import annotations

import os
import tarfile
import tempfile

import pytest

from maxdl_tf.checkpoints.source import open_checkpoint
from maxdl_tf.errors import UserError


def _write(folder, *names, shards=1):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        for suffix in (".index", *(f".data-{shard:05}-of-{shards:05}" for shard in range(shards))):
            (folder / f"{name}{suffix}").write_text(name + suffix)


def _taken(path) -> str:
    with open_checkpoint(str(path)) as source:
        assert os.path.exists(source.prefix + ".index")
        return source.prefix


def test_prefix_and_index_and_folder(tmp_path):
    _write(tmp_path, "ckpt-5")
    for path in (tmp_path, tmp_path / "ckpt-5", tmp_path / "ckpt-5.index"):
        assert _taken(path) == str(tmp_path / "ckpt-5")
        with open_checkpoint(str(path)) as source:
            assert source.label == source.prefix


def test_the_highest_number(tmp_path):
    _write(tmp_path, "ckpt-9", "ckpt-10", "ckpt-2")
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "ckpt-2"\n')
    assert _taken(tmp_path) == str(tmp_path / "ckpt-10")


def test_without_numbers_the_one_that_is_listed(tmp_path):
    _write(tmp_path, "best", "last", "worst")
    with pytest.raises(UserError, match=r"has 3 checkpoints \(best, last, worst, ...\); choose one by its prefix"):
        _taken(tmp_path)
    (tmp_path / "checkpoint").write_text(
        'model_checkpoint_path: "/where/it/was/last"\nall_model_checkpoint_paths: "x"\n'
    )
    assert _taken(tmp_path) == str(tmp_path / "last")


@pytest.mark.parametrize(("suffix", "mode"), [(".tar.gz", "w:gz"), (".tgz", "w:gz"), (".tar", "w")])
@pytest.mark.parametrize("below", [".", "model/train"])
def test_archives_are_unpacked_for_a_while(tmp_path, monkeypatch, suffix, mode, below):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    _write(tmp_path / "files", "ckpt-7", "ckpt-60", shards=2)
    path = tmp_path / f"model{suffix}"
    with tarfile.open(path, mode) as archive:
        archive.add(tmp_path / "files", below)
    with open_checkpoint(str(path)) as source:
        assert source.label == f"{os.path.normpath(os.path.join(below, 'ckpt-60'))} of {path}"
        with open(source.prefix + ".data-00001-of-00002") as file:
            assert file.read() == "ckpt-60.data-00001-of-00002"
        assert os.listdir(temporary) != []
    assert os.listdir(temporary) == []

    (tmp_path / "files" / "ckpt-60.data-00001-of-00002").unlink()
    with tarfile.open(path, mode) as archive:
        archive.add(tmp_path / "files", below)
    with pytest.raises(UserError, match=r"ckpt-60.data-00001-of-00002 is not beside its index"):
        _taken(path)
    assert os.listdir(temporary) == []


def test_what_is_no_checkpoint(tmp_path):
    with pytest.raises(UserError, match=r"has no checkpoint; wanted files like ckpt-1000.index"):
        _taken(tmp_path)
    _write(tmp_path, "ckpt-5")
    for path in ("ckpt-6", "ckpt-5.data-00000-of-00001", "nowhere.tar.gz", "ckpt-5.index.index"):
        with pytest.raises(UserError, match=f"{path} is no checkpoint; wanted a folder, a prefix"):
            _taken(tmp_path / path)
    (tmp_path / "ckpt-5.data-00000-of-00001").unlink()
    with pytest.raises(UserError, match=r"ckpt-5 is not complete: ckpt-5.data-00000-of-00001 is not beside"):
        _taken(tmp_path)
