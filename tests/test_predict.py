import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from maxdl_tf import panoptic_ids, predict
from maxdl_tf.export import saved_model
from maxdl_tf.files import folder_lock
from maxdl_tf.inference import tensorflow_backends, writer
from maxdl_tf.inference.predictor import Predictor
from maxdl_tf.inference.tiles import TiledPredictor
from tests.files import png_files
from tests.helpers import REPOSITORY, in_process
from tests.inference.color_network import BLUE, CROP_SIZE, INFO, RED, ColorNetwork, postprocessor, striped_image


@pytest.fixture(scope="module")
def export_dir(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("exports") / "colors")
    network = ColorNetwork()
    network.class_logits[1].assign([4.0, 0.0, 0.0])  # Less sure of green: its score is 0.965 instead of 0.999.
    saved_model.export_saved_model(
        network, postprocessor(), crop_size=CROP_SIZE, dataset_info=INFO, export_dir=path, origin={}
    )
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    Image.fromarray(striped_image(97, 129)[0]).save(folder / "000000000139.png")
    Image.fromarray(striped_image(300, 40, (RED, BLUE))[0]).save(folder / "000000000285.png")
    Image.fromarray(np.full((1, 1), 127, np.uint8)).save(folder / "7.png")
    return folder


def _run(*arguments) -> int:
    return in_process(predict, *arguments, program="maxdl-predict")


def _check_coco(output, images: int) -> dict:
    """Each id of a PNG is in the JSON and the other way round, with its area and box; returns the JSON."""
    coco = json.loads((output / "panoptic.json").read_text())
    assert len(coco["images"]) == len(coco["annotations"]) == images
    assert {path.name for path in (output / "panoptic").iterdir()} == {a["file_name"] for a in coco["annotations"]}
    category_ids = {category["id"] for category in coco["categories"]}
    for image, annotation in zip(coco["images"], coco["annotations"]):
        assert image["id"] == annotation["image_id"]
        ids = panoptic_ids.color_to_id(np.asarray(Image.open(output / "panoptic" / annotation["file_name"])))
        assert ids.shape == (image["height"], image["width"])
        segments = {segment["id"]: segment for segment in annotation["segments_info"]}
        assert set(np.unique(ids)) - {0} == set(segments)
        for segment_id, segment in segments.items():
            rows, columns = np.nonzero(ids == segment_id)
            assert segment["area"] == len(rows)
            left, top, right, bottom = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
            assert segment["bbox"] == [left, top, right - left, bottom - top]
            assert segment["category_id"] in category_ids
            assert 0 < segment["score"] <= 1
    return coco


def test_a_folder_becomes_coco_panoptic_files_and_overlays(export_dir, photos, tmp_path, capsys):
    output = tmp_path / "out"
    assert _run("--model", export_dir, "--input", photos, "--output", output) == 0
    coco = _check_coco(output, images=3)
    assert [image["id"] for image in coco["images"]] == [139, 285, 7]
    assert [image["file_name"] for image in coco["images"]] == ["000000000139.png", "000000000285.png", "7.png"]
    assert [len(annotation["segments_info"]) for annotation in coco["annotations"]] == [3, 2, 0]
    assert {c["id"]: (c["name"], c["isthing"]) for c in coco["categories"]} == {18: ("ball", 1), 155: ("sea", 0)}

    predictor = Predictor.from_saved_model(export_dir)
    for name, size, colors in (("000000000139", (97, 129), None), ("000000000285", (300, 40), (RED, BLUE))):
        image, _ = striped_image(*size, *filter(None, [colors]))
        ids = panoptic_ids.color_to_id(np.asarray(Image.open(output / "panoptic" / f"{name}.png")))
        np.testing.assert_array_equal(ids, predictor(image).label_map)  # Void is 0 in both.
        assert Image.open(output / "overlays" / f"{name}.jpg").size[0] > size[1]  # The legend is beside it.
    assert "predicted 3 of 3 images" in capsys.readouterr().out


def test_features_are_drawn_when_asked_for(export_dir, photos, tmp_path, capsys):
    output = tmp_path / "out"
    arguments = ("--model", export_dir, "--input", photos, "--output", output)
    assert _run(*arguments, "--visualize=features", "--nooverlays") == 0
    assert sorted(path.name for path in output.iterdir()) == ["features", "panoptic", "panoptic.json"]
    assert {path.stem for path in (output / "features").iterdir()} == {path.stem for path in photos.iterdir()}
    assert f"features {output}/features" in capsys.readouterr().out
    assert _run(*arguments, "--overwrite") == 0
    assert sorted(path.name for path in output.iterdir()) == ["overlays", "panoptic", "panoptic.json"]


def test_a_large_image_is_predicted_in_tiles(export_dir, photos, tmp_path, capsys):
    output = tmp_path / "out"
    arguments = ("--model", export_dir, "--input", photos, "--output", output, "--nooverlays")
    assert _run(*arguments, "--tile=70", "--tile_overlap=20") == 0
    (first, *_) = _check_coco(output, images=3)["annotations"]
    tiled = TiledPredictor(Predictor.from_saved_model(export_dir), tile=70, overlap=20)
    wanted = [(segment.id, segment.area) for segment in tiled(photos / "000000000139.png").segments]
    assert wanted and [(segment["id"], segment["area"]) for segment in first["segments_info"]] == wanted


def test_a_damaged_image_is_told_and_the_others_are_predicted(export_dir, photos, tmp_path, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "bad.jpg").write_bytes(b"no image")
    (folder / "good.png").write_bytes((photos / "000000000139.png").read_bytes())
    arguments = ("--model", export_dir, "--input", folder, "--output", tmp_path / "out", "--nooverlays")
    assert _run(*arguments) == 1
    coco = _check_coco(tmp_path / "out", images=1)
    assert coco["images"][0]["id"] == "good"
    assert sorted(os.listdir(tmp_path / "out")) == ["panoptic", "panoptic.json"]
    captured = capsys.readouterr()
    assert "bad.jpg: cannot be read as an image" in captured.err
    assert "predicted 1 of 2 images" in captured.out and "1 failed" in captured.out

    assert _run(*arguments) == 2
    assert "add --overwrite" in capsys.readouterr().err
    stale = tmp_path / "out" / "panoptic" / "stale.png"
    stale.touch()
    assert _run(*arguments, "--overwrite") == 1
    assert not stale.exists()


def _hostile_files(folder):
    """Writes files of many kinds; returns the names of those that hold an image."""
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    rgb = Image.fromarray(noise)
    exif = Image.Exif()
    exif[0x0112] = 6
    rgb.save(folder / "good_turned.jpg", exif=exif)
    rgb.convert("CMYK").save(folder / "good_cmyk.jpg")
    rgb.convert("LA").save(folder / "good_gray_with_alpha.png")
    rgb.convert("P").save(folder / "good_palette.gif")
    Image.fromarray(noise[..., 0].astype(np.uint16) * 256).save(folder / "good_16_bits.png")
    rgb.save(folder / "good_animation.webp", save_all=True, append_images=[rgb.rotate(90)])
    Image.new("RGB", (1, 1)).save(folder / "good_one_pixel.bmp")
    Image.new("RGB", (1, 3000)).save(folder / "good_line.tif")
    rgb.save(folder / os.fsdecode(b"good_no_utf8_\xff.png"))
    Image.fromarray(noise[..., 0].astype(np.float32)).save(folder / "bad_float.tiff")
    Image.new("1", (12000, 9000)).save(folder / "bad_large.png")
    rgb.save(folder / f"good_{'x' * 246}.png")
    Image.new("L", (1, 70_000)).save(folder / "bad_tall.png")
    Image.fromarray(noise[..., 0].astype(np.uint16) * 16).save(folder / "bad_12_bits.png")
    Image.fromarray(noise[..., 0].astype(np.int32)).save(folder / "bad_32_bits.tif")
    rgb.save(folder / "bad_postscript.png", "EPS")
    for name, damage in (("rows", "one row missing"), ("bomb", "text bomb"), ("header", "short header")):
        (folder / f"bad_{name}.png").write_bytes(png_files.DAMAGED[damage])
    (folder / "bad_empty.jpg").touch()
    (folder / "bad_text.jpg").write_text("GIF89a is what an image begins with")
    (folder / "bad_link.png").symlink_to(folder / "nowhere.png")
    for suffix in (".jpg", ".png", ".gif", ".webp"):
        rgb.save(folder / f"whole{suffix}")
        content = (folder / f"whole{suffix}").read_bytes()
        (folder / f"bad_cut{suffix[1:]}{suffix}").write_bytes(content[: len(content) // 3])
        (folder / f"whole{suffix}").unlink()
    header = bytearray((folder / "good_16_bits.png").read_bytes())
    header[16:24] = (2**31 - 1).to_bytes(4, "big") * 2  # Says that it has 2^62 pixels.
    (folder / "bad_boast.png").write_bytes(header)
    (folder / "no_file.png").mkdir()
    os.mkfifo(folder / "no_file.jpg")
    return {path.name for path in folder.iterdir() if path.name.startswith("good")}


def test_of_hostile_files_the_good_ones_are_predicted_and_the_bad_ones_named(export_dir, tmp_path, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    good = _hostile_files(folder)
    bad = {path.name for path in folder.iterdir() if path.name.startswith("bad")}
    assert _run("--model", export_dir, "--input", folder, "--output", tmp_path / "out") == 1
    coco = _check_coco(tmp_path / "out", images=len(good))
    assert {image["file_name"] for image in coco["images"]} == good
    assert {path.stem for path in (tmp_path / "out" / "overlays").iterdir()} == {os.path.splitext(n)[0] for n in good}
    sizes = {image["file_name"]: (image["width"], image["height"]) for image in coco["images"]}
    assert sizes["good_turned.jpg"] == (90, 120) and sizes["good_line.tif"] == (1, 3000)
    captured = capsys.readouterr()
    told = [line for line in captured.err.splitlines() if "failed: " in line]
    assert {os.path.basename(line.split("failed: ")[1].split(": ")[0]) for line in told} == bad
    assert "bad_large.png: 12000x9000 pixels, but the limit is 50,000,000" in captured.err
    assert "bad_tall.png: 1x70000 pixels; a side has at most 65,000" in captured.err
    assert "bad_12_bits.png: all values are below 16,384 of 65,535" in captured.err
    assert f"predicted {len(good)} of {len(good) + len(bad)} images" in captured.out


def test_inputs_are_added_up_and_each_image_is_predicted_once(export_dir, photos, tmp_path, capsys):
    """Also those that a shell made of an unquoted glob."""
    inputs = ("--input", photos / "7.png", f"--input={photos}/*139.png", photos / "7.png", f"{photos}/*285.png")
    assert _run("--model", export_dir, "--output", tmp_path / "out", "--nooverlays", *inputs) == 0
    coco = _check_coco(tmp_path / "out", images=3)
    assert {image["id"] for image in coco["images"]} == {7, 139, 285}


def test_more_pixels_are_read_if_allowed(export_dir, photos, tmp_path, capsys):
    arguments = ("--model", export_dir, "--input", photos / "000000000139.png", "--nooverlays")
    assert _run(*arguments, "--output", tmp_path / "small", "--max_pixels", 97 * 129 - 1) == 1
    assert "raise the limit with --max_pixels" in capsys.readouterr().err
    assert _run(*arguments, "--output", tmp_path / "large", "--max_pixels", 97 * 129) == 0


def test_unsure_segments_leave_map_json_and_instances(export_dir, photos, tmp_path, capsys):
    arguments = ("--model", export_dir, "--input", photos / "000000000139.png", "--coco_instances")
    assert _run(*arguments, "--output", tmp_path / "all", "--diagnose") == 0
    found = _check_coco(tmp_path / "all", images=1)["annotations"][0]["segments_info"]
    unsure = min(found, key=lambda segment: segment["score"])
    others = [segment["score"] for segment in found if segment is not unsure]
    assert unsure["score"] < min(others)
    limit = (unsure["score"] + min(others)) / 2
    capsys.readouterr()

    assert _run(*arguments, "--output", tmp_path / "some", "--diagnose", "--min_score", limit) == 0
    kept = _check_coco(tmp_path / "some", images=1)["annotations"][0]["segments_info"]
    assert kept == [segment for segment in found if segment is not unsure]
    things = {18}
    for output, segments_info in (("all", found), ("some", kept)):
        instances = json.loads((tmp_path / output / "instances.json").read_text())
        wanted = [(139, s["category_id"], s["area"]) for s in segments_info if s["category_id"] in things]
        assert [(i["image_id"], i["category_id"], i["area"]) for i in instances] == wanted

    diagnosis = json.loads((tmp_path / "some" / "diagnosis.json").read_text())
    assert diagnosis["settings"]["min_score"] == limit and diagnosis["settings"]["class_threshold"] == 0.7
    assert diagnosis["total"]["min_score"] == {"masks": 1, "pixels": unsure["area"]}
    assert diagnosis["total"]["segments"] == len(kept)
    assert diagnosis["images"] == [{"image_id": 139, **diagnosis["total"]}]
    assert f"min_score {limit:g}" in capsys.readouterr().out


def test_a_saved_model_without_its_thresholds_cannot_be_diagnosed(export_dir, photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tensorflow_backends, "_export_info_of", lambda loaded: {})
    assert _run("--model", export_dir, "--input", photos, "--output", tmp_path / "out", "--diagnose") == 2
    error = capsys.readouterr().err
    assert "does not state its thresholds" in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_that_another_prediction_uses_is_refused(export_dir, photos, tmp_path, capsys):
    output = tmp_path / "out"
    with folder_lock.FolderLock(str(output), "the other"):
        assert _run("--model", export_dir, "--input", photos, "--output", output, "--overwrite") == 2
        assert f"--output {output} is in use by process {os.getpid()} on " in capsys.readouterr().err
        assert os.listdir(output) == [folder_lock.FILE]


def test_what_a_killed_prediction_left_is_replaced(export_dir, photos, tmp_path, capsys):
    output = tmp_path / "out"
    (output / "panoptic").mkdir(parents=True)
    for name in ("panoptic/stale.png", f".{'0f' * 16}.partial", folder_lock.FILE, writer._UNFINISHED):
        (output / name).touch()
    arguments = ("--model", export_dir, "--input", photos / "7.png", "--output", output, "--nooverlays")
    assert _run(*arguments) == 2 and "add --overwrite" in capsys.readouterr().err
    assert _run(*arguments, "--overwrite") == 0
    assert sorted(path.name for path in output.rglob("*")) == ["7.png", "panoptic", "panoptic.json"]


def test_what_is_not_a_prediction_is_never_overwritten(export_dir, photos, tmp_path, capsys):
    ours = f'{{"info": {{"description": "{writer.GENERATOR}"}}}}'
    cases = [
        ("notes.txt", {"notes.txt": "mine"}),
        ("panoptic.json", {"panoptic.json": '{"annotations": "mine"}'}),
        ("panoptic;", {"panoptic/1.png": "an annotation, perhaps"}),
        ("overlays/notes.txt", {"panoptic.json": ours, "overlays/notes.txt": "mine"}),
    ]
    for number, (name, contents) in enumerate(cases):
        output = tmp_path / str(number)
        for file, content in contents.items():
            (output / file).parent.mkdir(parents=True, exist_ok=True)
            (output / file).write_text(content)
        assert _run("--model", export_dir, "--input", photos, "--output", output, "--overwrite") == 2
        assert f"holds files other than predictions, such as {name}" in capsys.readouterr().err
        assert {file: (output / file).read_text() for file in contents} == contents


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"--input": "nowhere/*.jpg"}, "no file matches 'nowhere/*.jpg'"),
        ({"--model": "nowhere"}, "neither the folder of an export nor a checkpoint"),
        ({"--model": os.path.dirname(__file__)}, "experiment.textproto does not exist; check that the folder is"),
        ({"--config_file": "a.textproto"}, "drop --config_file and --override"),
        ({"--output": f"{__file__}/out"}, "is not a folder that can be written to"),
        ({"--min_score": "2"}, "--min_score"),
        ({"--tile": "64", "--tile_overlap": "64"}, "--tile_overlap 64 must be less than --tile 64"),
        ({"--tile_overlap": "8"}, "--tile_overlap 8 has no effect on whole images; drop it, or add --tile"),
        (
            {"--tile": "97", "--visualize": "features"},
            "--visualize shows one run of the network, and --tile makes many",
        ),
        ({"--batch": "3"}, "Unknown command line flag 'batch'"),
    ],
)
def test_bad_input_is_told_in_one_line_and_leaves_nothing(export_dir, photos, tmp_path, capsys, changed, message):
    flags = {"--model": export_dir, "--input": photos, "--output": tmp_path / "out", **changed}
    assert _run(*(part for flag in flags.items() for part in flag)) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_export_with_damaged_assets_is_told(export_dir, photos, tmp_path, capsys):
    for name, content, status, message in (
        ("export_info.json", "{", 2, "export_info.json is damaged"),
        ("dataset_info.textproto", 'label_divisor: 256 segment_class { id: 900 name: "a" }', 1, "its class table"),
    ):
        export = tmp_path / name
        shutil.copytree(export_dir, export)
        (export / "assets" / name).write_text(content)
        arguments = ("--model", export, "--input", photos, "--output", tmp_path / f"{name}.out")
        assert _run(*arguments) == status
        assert message in capsys.readouterr().err


def test_a_folder_of_exports_is_its_highest_version(export_dir, photos, tmp_path, capsys):
    (tmp_path / "exports" / "9").mkdir(parents=True)
    (tmp_path / "exports" / "9" / "saved_model.pb").touch()
    (tmp_path / "exports" / "10").symlink_to(export_dir)
    arguments = ("--input", photos / "7.png", "--output", tmp_path / "out")
    assert _run("--model", tmp_path / "exports", *arguments) == 0


def test_the_command_runs_on_its_own(export_dir, photos, tmp_path):
    """From the file, as `python maxdl_tf/predict.py`, with nothing on stderr but its progress."""
    command = [sys.executable, str(REPOSITORY / "maxdl_tf" / "predict.py"), "--model", export_dir]
    command += ["--input", str(photos / "7.png"), "--output", str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    environment.pop("TF_CPP_MIN_LOG_LEVEL", None)
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("predicted 1 of 1 images")
    assert [line.split()[0] for line in done.stderr.splitlines()] == ["predicting"]
