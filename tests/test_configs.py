"""Every experiment below configs/: it loads without its data, and says what it is and what it changes."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from google.protobuf import text_format

from maxdl_tf import class_table, config
from maxdl_tf.protos import experiment_pb2
from tests.helpers import REPOSITORY

CONFIGS = sorted(path for path in (REPOSITORY / "configs").rglob("*.textproto") if path.parent.name != "datasets")
NAMES = [str(path.relative_to(REPOSITORY / "configs").with_suffix("")) for path in CONFIGS]
every_config = pytest.mark.parametrize("path", CONFIGS, ids=NAMES)


# Experiments for any data set; their table of classes comes with the data.
FOR_ANY_DATA = REPOSITORY / "configs" / "custom"
SOME_TABLE = REPOSITORY / "configs" / "datasets" / "shapes.textproto"


def load(path: Path) -> experiment_pb2.Experiment:
    """The experiment; one for any data set with some table of classes."""
    experiment = config.load_experiment(str(path))
    if path.parent == FOR_ANY_DATA:
        for dataset in datasets_of(experiment):
            assert not dataset.dataset_info
            dataset.dataset_info = str(SOME_TABLE)
    return experiment


def datasets_of(experiment) -> list:
    return [getattr(experiment, name) for name in ("train_dataset", "eval_dataset") if experiment.HasField(name)]


@pytest.fixture(autouse=True)
def no_data(monkeypatch):
    """Configs are complete without the data: neither the shards nor the variables that say where they lie are there."""
    for path in CONFIGS:
        for name in re.findall(r"\$\{(\w+)\}", path.read_text(encoding="utf-8")):
            monkeypatch.delenv(name, raising=False)


@every_config
def test_introduces_itself(path):
    header = path.read_text(encoding="utf-8").partition("\n\n")[0]
    assert all(line.startswith("#") for line in header.splitlines())
    assert f"--config_file {path.relative_to(REPOSITORY)} " in header, "the header has no command that runs it"
    assert re.search(r"Machine: .*\bTime\b", header, re.DOTALL), "the header does not say on what machine and how long"


def fields_that_repeat(own, below, path=()) -> list[str]:
    """Fields of `own` with the value that `below` sets."""
    found = []
    for field, value in own.ListFields():
        here = (*path, field.name)
        if field.type == field.TYPE_MESSAGE:
            found += fields_that_repeat(value, getattr(below, field.name), here)
        elif field.name in {known.name for known, _ in below.ListFields()} and value == getattr(below, field.name):
            found.append(".".join(here))
    return found


@every_config
def test_shows_only_what_it_changes(path):
    own = text_format.Parse(path.read_text(encoding="utf-8"), experiment_pb2.Experiment())
    if own.base:
        assert fields_that_repeat(own, load(path.parent / own.base)) == []


@every_config
def test_class_tables_are_found(path):
    experiment = load(path)
    tables = [class_table.of_dataset(dataset) for dataset in datasets_of(experiment)]
    assert tables and all(table == tables[0] for table in tables)


def test_class_tables_are_found_wherever_the_configs_are_installed(tmp_path, monkeypatch):
    installed = tmp_path / "site-packages" / "maxdl_tf" / "configs"
    shutil.copytree(REPOSITORY / "configs", installed)
    monkeypatch.chdir(tmp_path)
    for name in ("ablations/loss_6_semantic", "overfit_4_images"):
        experiment = load(installed / "coco" / f"{name}.textproto")
        assert len(class_table.of_dataset(experiment.train_dataset).classes) == 133
