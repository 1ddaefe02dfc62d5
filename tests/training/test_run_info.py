"""What a folder tells of the runs that wrote to it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from maxdl_tf.training import run_info


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    process = subprocess.run(
        ["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True, text=True
    )
    return process.stdout.strip()


@pytest.fixture
def repository(tmp_path):
    """A repository with one commit; the config is in configs/."""
    folder = tmp_path / "repository"
    (folder / "configs").mkdir(parents=True)
    (folder / "configs" / "experiment.textproto").write_text("one")
    git(folder, "init")
    assert run_info.git_revision(str(folder)) is None  # There is no commit.
    git(folder, "add", ".")
    git(folder, "commit", "-m", "one")
    return folder


def test_the_revision_of_the_config_is_that_of_git(repository, tmp_path):
    revision = git(repository, "rev-parse", "HEAD")
    config = repository / "configs" / "experiment.textproto"
    assert run_info.describe_run(str(config), step=0, devices="")["config_revision"] == revision
    git(repository, "tag", "-a", "v1", "-m", "v1")
    git(repository, "pack-refs", "--all")
    assert run_info.git_revision(str(repository)) == revision
    git(repository, "worktree", "add", "-b", "deep/branch", str(tmp_path / "worktree"))
    git(tmp_path / "worktree", "commit", "--allow-empty", "-m", "two")
    in_worktree = git(tmp_path / "worktree", "rev-parse", "HEAD")
    assert run_info.git_revision(str(tmp_path / "worktree" / "configs")) == in_worktree != revision
    git(repository, "checkout", "--detach", in_worktree)
    assert run_info.git_revision(str(repository)) == in_worktree
    assert run_info.git_revision(str(repository / "absent")) is None  # Such as the name of a packaged experiment.


def test_a_downloaded_folder_runs_no_program(repository, tmp_path, monkeypatch):
    """Git obeys the configuration of the repository that it describes."""
    attack = tmp_path / "attack"
    attack.write_text(f"#!/bin/sh\ntouch {tmp_path}/run\n")
    attack.chmod(0o755)
    for name in ("core.fsmonitor", "core.sshCommand", "core.pager", "diff.external", "gpg.program"):
        git(repository, "config", name, str(attack))
    monkeypatch.setattr(subprocess, "Popen", None)
    monkeypatch.setattr(os, "system", None)
    assert run_info.git_revision(str(repository / "configs")) is not None
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["HEAD", "packed-refs", "commondir"])
@pytest.mark.parametrize("kind", ["fifo", "endless", "binary", "huge", "circle", "folder"])
def test_hostile_files_of_git_neither_hang_nor_fail(tmp_path, name, kind):
    git_folder = tmp_path / ".git"
    git_folder.mkdir()
    (git_folder / "HEAD").write_text("ref: refs/heads/main\n")
    path = git_folder / name
    path.unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "endless":
        path.symlink_to("/dev/zero")
    elif kind == "binary":
        path.write_bytes(b"ref: \0\xff\n" * 9)
    elif kind == "huge":
        path.touch()
        os.truncate(path, 2**40)
    elif kind == "circle":
        path.symlink_to(path)
    else:
        path.mkdir()
    assert run_info.git_revision(str(tmp_path)) is None


def test_the_command_line_is_recorded_without_secrets_in_urls(monkeypatch):
    arguments = [
        "maxdl-train",
        "--override",
        'train_dataset { file_pattern: "https://me:word@host/a/*.tfrecord?sig=k%2F&x=1#f" }',
        "--model_dir=gs://bucket/my run",
        "--tpu=grpc://token@host:8470",
    ]
    monkeypatch.setattr(sys, "argv", arguments)
    run = run_info.describe_run("https://me:word@host/experiment.textproto?token=5", step=0, devices="")
    assert run["command_line"] == (
        "maxdl-train --override 'train_dataset { file_pattern: \"https://host/a/*.tfrecord\" }' "
        "'--model_dir=gs://bucket/my run' --tpu=grpc://host:8470"
    )
    assert run["config_file"] == "https://host/experiment.textproto"


def test_each_start_has_an_entry(tmp_path):
    for step in (0, 10):
        run_info.append_run(str(tmp_path), run_info.describe_run("experiment.textproto", step=step, devices="1 CPU"))
    runs = json.loads((tmp_path / run_info.FILE).read_text())
    assert [run["from_step"] for run in runs] == [0, 10] and runs[1]["devices"] == "1 CPU"


@pytest.mark.parametrize("content", ["[{", "5", '{"a": 1}', "[" * 100_000, "\ufffd"])
def test_a_damaged_file_is_replaced(tmp_path, content):
    (tmp_path / run_info.FILE).write_text(content)
    run_info.append_run(str(tmp_path), {"from_step": 20})
    assert json.loads((tmp_path / run_info.FILE).read_text()) == [{"from_step": 20}]
