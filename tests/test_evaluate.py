"""maxdl-eval on predictions in files: its output, without TensorFlow."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from tests.evaluation.official_rule import OfficialQuality
from tests.evaluation.write_predictions import write_perturbed
from tests.helpers import REPOSITORY, shared_path

_RUN = """
import sys
from maxdl_tf.evaluate import run
sys.argv = ["maxdl-eval", *sys.argv[1:]]
try:
    run()
finally:
    assert "tensorflow" not in sys.modules
"""


def maxdl_eval(*arguments):
    return subprocess.run(
        [sys.executable, "-c", _RUN, *map(str, arguments)], cwd=REPOSITORY, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    """Twelve predictions and the truth of their images."""
    annotations = shared_path("data", "coco_sample", "annotations")
    folder = tmp_path_factory.mktemp("coco")
    predictions = write_perturbed(folder, "coco_sample", "val2017", count=12)
    content = json.loads((annotations / "panoptic_val2017.json").read_text())
    kept = {annotation["image_id"] for annotation in json.loads(predictions.read_text())["annotations"]}
    content["annotations"] = [found for found in content["annotations"] if found["image_id"] in kept]
    content["images"] = [image for image in content["images"] if image["id"] in kept]
    (folder / "truth.json").write_text(json.dumps(content))
    return {
        "predictions": predictions,
        "truth": ["--annotations", folder / "truth.json", "--panoptic_dir", annotations / "panoptic_val2017"],
        "content": content,
        "images": shared_path("data", "coco_sample", "val2017"),
    }


def official_pq(coco, predictions):
    """PQ of files by the second implementation of the rule."""
    from tests.evaluation.pairs import read_panoptic_png

    categories = coco["content"]["categories"]
    quality = OfficialQuality([c["id"] for c in categories], [c["id"] for c in categories if c["isthing"]])
    results = {found["image_id"]: found for found in json.loads(predictions.read_text())["annotations"]}
    for true in coco["content"]["annotations"]:
        found = results[true["image_id"]]
        quality.add(
            read_panoptic_png(coco["truth"][3] / true["file_name"]),
            true["segments_info"],
            read_panoptic_png(predictions.with_suffix("") / found["file_name"]),
            found["segments_info"],
        )
    return quality.metrics()


def test_metrics_report_and_submission(coco, tmp_path):
    done = maxdl_eval(
        *("--predictions", coco["predictions"], *coco["truth"], "--image_dir", coco["images"], "--mask_ap"),
        *("--json", tmp_path / "metrics.json", "--report", tmp_path / "report.html", "--picture_count", 2),
        *("--submission", tmp_path / "submission", "--submission_name", "val2017_test"),
    )
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    want = official_pq(coco, coco["predictions"])
    for group in ("all", "things", "stuff"):
        for name in ("pq", "sq", "rq"):
            assert metrics[group][name] == pytest.approx(want[group, name], abs=1e-9)
            low, high = metrics["intervals"][group][name]
            assert 0 <= low < high <= 1
    assert re.search(rf"^all +{100 * want['all', 'pq']:.1f} ", done.stdout, re.MULTILINE)
    assert "95 % intervals of PQ (bootstrap over images): all " in done.stdout and "\nmask AP " in done.stdout
    assert metrics["threshold_sweep"][0] == {
        "score": 0.0,
        **{group: pytest.approx(want[group, "pq"]) for group in ("all", "things", "stuff")},
    }
    assert 0 < metrics["mask_ap"]["ap"] < metrics["mask_ap"]["ap50"] < 1

    page = (tmp_path / "report.html").read_text()
    head = page[: page.index("<h2>Result")]
    assert str(coco["predictions"]) in head and str(coco["truth"][1]) in head and "12 images" in head
    # Each picture has the colors of its classes.
    assert all('<span class="key">' in caption for caption in re.findall("<figcaption>.*?</figcaption>", page))
    assert len(re.findall("<img ", page)) == 4 and "http" not in page
    for kind in ("missed", "false", "wrong class", "bad mask", "rough mask"):
        assert re.search(rf"<td>{kind}</td><td class=\"number\">{metrics['errors'][kind]['count']}</td>", page)

    # What is submitted scores the same as its source in both implementations.
    written = tmp_path / "submission" / "panoptic_val2017_test_results.json"
    assert official_pq(coco, written) == pytest.approx(want)
    again = maxdl_eval("--predictions", written, *coco["truth"], "--json", tmp_path / "again.json")
    assert again.returncode == 0, again.stderr
    assert json.loads((tmp_path / "again.json").read_text())["classes"] == metrics["classes"]


def test_a_submission_of_images_without_truth(coco, tmp_path):
    done = maxdl_eval("--predictions", coco["predictions"], "--submission", tmp_path / "new")
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(tmp_path / "new" / "panoptic_test-dev2017_maxdl_results.zip") as archive:
        names = archive.namelist()
        content = json.loads(archive.read("panoptic_test-dev2017_maxdl_results.json"))
    assert sorted(names)[0] == "panoptic_test-dev2017_maxdl_results.json" and len(names) == 13
    for annotation in content["annotations"]:
        assert f"panoptic_test-dev2017_maxdl_results/{annotation['file_name']}" in names
        assert all(segment.keys() == {"id", "category_id"} and segment["id"] for segment in annotation["segments_info"])
    assert {row["image_id"] for row in content["annotations"]} == {row["id"] for row in coco["content"]["images"]}
    refused = maxdl_eval("--predictions", coco["predictions"], "--submission", tmp_path / "new")
    assert refused.returncode == 2 and "exists and is not an empty folder" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "give --checkpoint or --untrained, or --predictions and --annotations to measure files"),
        (["--untrained"], "--config_file is missing; --untrained needs"),
        (["--predictions", "x"], "--annotations is missing"),
        (["--predictions", "x", "--submission", "{tmp}/s", "--report", "{tmp}/r"], "--annotations is missing"),
        (["--predictions", "x", "--annotations", "y"], "--predictions x: no such file or folder"),
        (["--predictions", "x", "--annotations", "y", "--checkpoint", "z"], "--checkpoint does not go with --predict"),
        (["--predictions", "x", "--annotations", "y", "--strategy", "mirrored"], "--strategy does not go with"),
        (["--config_file", "x", "--untrained", "--annotations", "y"], "--annotations does not go with a checkpoint"),
        (["--config_file", "x"], "give --checkpoint or --untrained"),
        (["--config_file", "x", "--checkpoint", "y", "--untrained"], "give --checkpoint or --untrained"),
        (["--predictions", "x", "--submission", "{tmp}/s", "--submission_name", "a/b"], "--submission_name 'a/b'"),
    ],
)
def test_flags_that_do_not_go_together(arguments, complaint, tmp_path):
    done = maxdl_eval(*(argument.format(tmp=tmp_path) for argument in arguments))
    assert done.returncode == 2 and complaint in done.stderr and "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1 and not list(tmp_path.iterdir())


def test_a_report_of_the_wrong_images_is_refused_at_once(coco, tmp_path):
    report = tmp_path / "report.html"
    done = maxdl_eval("--predictions", coco["predictions"], *coco["truth"], "--image_dir", tmp_path, "--report", report)
    assert done.returncode == 2 and re.search(r"--image_dir \S+ has no \d+\.jpg", done.stderr)
    assert not report.exists() and done.stdout == ""


def test_extra_predictions_are_a_warning(coco, tmp_path):
    content = json.loads(coco["predictions"].read_text())
    content["annotations"].append({"image_id": 987654, "file_name": "x.png", "segments_info": []})
    path = tmp_path / "more.json"
    path.write_text(json.dumps(content))
    (tmp_path / "more").symlink_to(coco["predictions"].with_suffix(""))
    done = maxdl_eval("--predictions", path, *coco["truth"])
    assert done.returncode == 0 and "warning: 1 predictions, such as 987654, are skipped" in done.stderr
    assert "987654" in done.stderr
    content["annotations"] = content["annotations"][2:]
    path.write_text(json.dumps(content))
    done = maxdl_eval("--predictions", path, *coco["truth"])
    assert done.returncode == 2 and "has no prediction of 2 of 12 images" in done.stderr
    assert np.all([str(row["id"]) in done.stderr for row in coco["content"]["images"][:2]])


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    """Path of an experiment with eight small images and a network of three layers."""
    import tensorflow as tf

    from maxdl_tf import class_table
    from maxdl_tf.data.examples import encode_panoptic_example
    from maxdl_tf.tasks.panoptic import PanopticTask
    from tests.training import fakes

    with tf.io.TFRecordWriter(str(tmp_path / "val.tfrecord")) as writer:
        for seed in range(8):
            labels = fakes.label_map(seed)
            png = tf.io.encode_png(fakes.picture(labels).astype(np.uint8)).numpy()
            writer.write(encode_panoptic_example(png, "png", labels, f"image{seed}"))
    (tmp_path / class_table.FILE_NAME).write_text(class_table.to_text(fakes.DATASET_INFO))
    (tmp_path / "experiment.textproto").write_text(
        f"""
        name: "small" model {{ variant: "tiny" }}
        eval_dataset {{ file_pattern: "{tmp_path}/val.tfrecord" crop_size: {fakes.SIZE} batch_size: 3 }}
        """
    )
    monkeypatch.setattr(PanopticTask, "build_model", lambda *arguments, **options: fakes.FakeModel())
    return tmp_path / "experiment.textproto"


def test_a_checkpoint_that_finds_nothing_is_explained(experiment, tmp_path, capsys):
    from maxdl_tf import evaluate
    from tests.helpers import in_process

    unsure = "model { postprocess { class_threshold: 0.99 } }"
    outputs = ("--report", tmp_path / "report.html", "--json", tmp_path / "metrics.json")
    assert in_process(evaluate, "--config_file", experiment, "--untrained", "--override", unsure, *outputs) == 0
    table = capsys.readouterr().out
    (line,) = re.findall(
        r"^PQ 0 of all, things, stuff: \d+ masks of the network in all classes, .*; 0 segments left\. .*$", table, re.M
    )
    assert "removed by class_threshold 0.99" in line or "void by the network itself" in line
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert f"\nloss {metrics['losses']['total']:.4g} (pq_style_dice " in table
    assert metrics["losses"]["total"] == pytest.approx(sum(metrics["losses"].values()) / 2, rel=1e-5)
    page = (tmp_path / "report.html").read_text()
    assert line in page and f"loss {metrics['losses']['total']:.4g}" in page
    head = page[: page.index("<h2>Result")]
    for fact in ("initial weights", f"small ({experiment})", unsure, f"{tmp_path}/val.tfrecord", "33 x 33 pixels"):
        assert fact in head, fact
    assert "class_threshold 0.99" in head and "8 images" in head
    # All images have a PQ of 0; each is shown once.
    shown = re.findall(r"<figcaption>(image\d): PQ 0\.0", page)
    assert sorted(shown) == [f"image{seed}" for seed in range(8)]
