"""What a folder tells of the runs that wrote to it."""

from __future__ import annotations

import json
import subprocess

from maxdl_tf.training import run_info


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    process = subprocess.run(
        ["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True, text=True
    )
    return process.stdout.strip()


def test_the_revision_of_the_config_and_whether_it_was_changed(tmp_path):
    config = tmp_path / "experiment.textproto"
    config.write_text("one")
    git(tmp_path, "init")
    assert run_info.git_revision(str(tmp_path)) is None  # There is no commit.
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "one")
    git(tmp_path, "tag", "-a", "v1", "-m", "v1")
    revision = git(tmp_path, "rev-parse", "HEAD")
    assert run_info.describe_run(str(config), step=0, devices="")["config_revision"] == revision
    config.write_text("two")
    assert run_info.git_revision(str(tmp_path)) == f"{revision}-modified"
    assert run_info.git_revision(str(tmp_path / "absent")) is None


def test_each_start_has_an_entry(tmp_path):
    for step in (0, 10):
        run_info.append_run(str(tmp_path), run_info.describe_run("experiment.textproto", step=step, devices="1 CPU"))
    runs = json.loads((tmp_path / run_info.FILE).read_text())
    assert [run["from_step"] for run in runs] == [0, 10] and runs[1]["devices"] == "1 CPU"
    (tmp_path / run_info.FILE).write_text("[{")
    run_info.append_run(str(tmp_path), {"from_step": 20})
    assert json.loads((tmp_path / run_info.FILE).read_text()) == [{"from_step": 20}]
