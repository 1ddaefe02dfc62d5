"""What a person gets for a good and for a bad experiment file."""

import json
import math
import os
import re

import pytest

from maxdl_tf import class_table, config
from maxdl_tf.errors import UserError
from maxdl_tf.files import textproto
from maxdl_tf.models.variants import VARIANTS, KMaXVariant, MaXVariant
from maxdl_tf.protos import dataset_pb2, experiment_pb2, options_pb2

GOOD = """\
# A comment may say ${ANYTHING}.
model { variant: "tiny" num_slots: 16 }
train_dataset {
  file_pattern: "${CONFIG_DIR}/train-*.tfrecord"
  crop_size: 97
  crop_size: 129
}
training {
  steps: 50
  optimizer { learning_rate: 0.01 }
}
"""


@pytest.fixture
def write(tmp_path):
    def write(text, name="experiment.textproto"):
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


def test_loads_fields_defaults_and_placeholders(write, tmp_path):
    experiment = config.load_experiment(write(GOOD))
    assert experiment.name == "experiment"
    assert experiment.train_dataset.file_pattern[0] == f"{tmp_path}/train-*.tfrecord"
    assert list(experiment.train_dataset.crop_size) == [97, 129]
    assert experiment.loss.pq_style_weight == 3.0
    assert experiment.training.optimizer.learning_rate == pytest.approx(0.01)


def test_override_replaces_repeated_fields_and_leaves_neighbors(write):
    experiment = config.load_experiment(
        write(GOOD), ["train_dataset { crop_size: 65 }", "training { optimizer { warmup_steps: 7 } }"]
    )
    assert list(experiment.train_dataset.crop_size) == [65]
    assert experiment.training.steps == 50
    assert experiment.training.optimizer.learning_rate == pytest.approx(0.01)
    assert experiment.training.optimizer.warmup_steps == 7


def test_base_holds_where_the_file_is_silent(write):
    write(GOOD, "base.textproto")
    experiment = config.load_experiment(write('base: "base.textproto"\ntraining { steps: 9 }', "child.textproto"))
    assert (experiment.training.steps, experiment.model.num_slots, experiment.name) == (9, 16, "child")
    assert not experiment.HasField("base")


def test_placeholders_are_resolved_after_merging(write, tmp_path, monkeypatch):
    monkeypatch.setenv("MAXDL_RUN", 'a "b"\\c')  # Needs no escapes, as it would within the text.
    monkeypatch.setenv("MAXDL_STEPS", "70")
    monkeypatch.setenv("CONFIG_DIR", "elsewhere")
    monkeypatch.delenv("MAXDL_UNSET", raising=False)
    write(
        GOOD.replace("${CONFIG_DIR}", "${MAXDL_UNSET}").replace("steps: 50", "steps: ${MAXDL_STEPS}"), "base.textproto"
    )
    path = write('base: "${CONFIG_DIR}/base.textproto"\ntask: panoptic', "child.textproto")
    overrides = [
        'train_dataset { file_pattern: "${CONFIG_DIR}/x" }',
        'training { initial_checkpoint: "${MAXDL_RUN}/${MAXDL_UNSET}" }',
    ]
    experiment = config.load_experiment(path, overrides)
    assert list(experiment.train_dataset.file_pattern) == [f"{tmp_path}/x"]
    assert experiment.training.steps == 70
    assert experiment.training.initial_checkpoint == 'a "b"\\c/${MAXDL_UNSET}'
    kept = config.load_experiment(path, overrides, keep_placeholders=True)
    assert kept.training.initial_checkpoint == "${MAXDL_RUN}/${MAXDL_UNSET}"
    assert list(kept.train_dataset.file_pattern) == [f"{tmp_path}/x"]


@pytest.mark.parametrize("value", [None, ""])
def test_a_placeholder_without_a_value_is_an_error_where_it_is_read(write, monkeypatch, value):
    monkeypatch.delenv("MAXDL_UNSET", raising=False)
    if value is not None:
        monkeypatch.setenv("MAXDL_UNSET", value)
    experiment = config.load_experiment(write(GOOD.replace("${CONFIG_DIR}", "${MAXDL_UNSET}")))
    expected = (
        r"eval_dataset.file_pattern '\$\{MAXDL_UNSET\}/train-\*.tfrecord': the placeholder \$\{MAXDL_UNSET\} has no"
    )
    with pytest.raises(UserError, match=expected):
        class_table.of_dataset(experiment.train_dataset, "eval_dataset")
    with pytest.raises(
        UserError, match=r"experiment.textproto:9: the value .*set the environment variable MAXDL_UNSET"
    ):
        config.load_experiment(write(GOOD.replace("steps: 50", "steps: ${MAXDL_UNSET}")))
    with pytest.raises(UserError, match=r"child.textproto: base .*set the environment variable MAXDL_UNSET"):
        config.load_experiment(write('base: "${MAXDL_UNSET}/a"', "child.textproto"))


@pytest.mark.parametrize("name", ["shapes/max_deeplab_tiny_81", "shapes/max_deeplab_tiny_81.textproto"])
def test_a_base_may_be_a_packaged_experiment(write, name):
    """As for --config_file: after an installation there is no folder of configs to name."""
    text = f'base: "{name}"\ntraining {{ steps: 9 }}'
    assert config.load_experiment(write(text, "child.textproto")).training.steps == 9
    with pytest.raises(UserError, match=r"nope.textproto: there is no such file"):
        config.load_experiment(write('base: "nope.textproto"', "child.textproto"))


def test_an_override_cannot_name_a_base(write):
    with pytest.raises(UserError, match=r"^--override: base 'x.textproto': only a file can name a base; "):
        config.load_experiment(write(GOOD), ['base: "x.textproto"'])


def test_base_that_names_itself_ends(write):
    with pytest.raises(UserError, match="its base"):
        config.load_experiment(write('base: "experiment.textproto"'))


def test_text_round_trip(write):
    experiment = config.load_experiment(write(GOOD))
    assert config.load_experiment(write(config.experiment_to_text(experiment), "again.textproto")) == experiment


@pytest.mark.parametrize(
    "change, line, complaint",
    [
        (("steps: 50", "stepz: 50"), 9, "there is no field stepz; did you mean steps?"),
        (("steps: 50", "xyz: 50"), 9, "there is no field xyz; choose one of steps, seed, "),
        (("crop_size: 129", "crop_size: 128"), 5, r"\(97, 128\).*16k\+1.*try 97 and 129"),
        (("crop_size: 129", "crop_size: 129 crop_size: 65"), 5, "one number"),
        (("steps: 50", "precision: bfloat"), 9, 'no value named "?bfloat"?. Its values are float32, mixed_'),
        (("steps: 50", "steps: 0"), 9, "training.steps 0: must be at least 1"),
        (("learning_rate: 0.01", "learning_rate: nan"), 10, "must be a finite number"),
        (('file_pattern: "${CONFIG_DIR}/train-*.tfrecord"', ""), 3, "file_pattern is not set"),
        (('variant: "tiny" ', ""), 2, "model.variant is not set"),
        (("num_slots: 16 }", "num_slots: 16"), 3, "there is no field train_dataset"),
        (("steps: 50", "steps: many"), 9, "couldn't parse integer: many in '.*steps: many.*'$"),
    ],
)
def test_a_complaint_names_file_line_and_remedy(write, change, line, complaint):
    assert change[0] in GOOD
    path = write(GOOD.replace(*change))
    with pytest.raises(UserError, match=complaint) as caught:
        config.load_experiment(path)
    assert str(caught.value).startswith(f"{path}:{line}: ")
    assert "\n" not in str(caught.value)


def test_sides_of_kmax_deeplab_are_multiples_of_its_stride(write):
    text = GOOD.replace('"tiny"', '"kmax_tiny"').replace("crop_size: 129", "crop_size: 81")
    with pytest.raises(
        UserError, match=r"crop_size \(97, 81\): each side must be 32k\+1 .* for kmax_tiny; try 97 and (65|97)"
    ):
        config.load_experiment(write(text))
    config.load_experiment(write(GOOD.replace("crop_size: 129", "crop_size: 81")))
    config.load_experiment(write(text), ["task: classification"])  # An encoder alone.
    for kind, starts in ((KMaXVariant, True), (MaXVariant, False)):
        names = [name for name, variant in VARIANTS.items() if isinstance(variant, kind)]
        assert {name.startswith(config.KMAX_NAMES) for name in names} == {starts}


def test_a_loss_without_terms_is_refused(write):
    weights = "pq_style_weight: 0 instance_discrimination_weight: 0 mask_id_weight: 0"
    with pytest.raises(UserError, match=r"^--override.*: loss has no term: set one of pq_style_weight, .* above 0"):
        config.load_experiment(write(GOOD), [f"loss {{ {weights} semantic_weight: 0 }}"])
    config.load_experiment(write(GOOD), [f"loss {{ {weights} }}"])
    with pytest.raises(UserError, match="loss has no term"):  # The branch's loss goes with the branch.
        config.load_experiment(write(GOOD), [f"loss {{ {weights} }} model {{ semantic_branch: false }}"])


def test_a_bad_override_is_named_as_such(write):
    with pytest.raises(UserError, match=r"^--override: .*no_such_field"):
        config.load_experiment(write(GOOD), ["training { no_such_field: 1 }"])
    with pytest.raises(UserError, match=r"^--override number 2: train_dataset.crop_size 64"):
        config.load_experiment(write(GOOD), ["training { steps: 1 }", "train_dataset { crop_size: 64 }"])
    with pytest.raises(UserError, match=r"""^--override: expected "}" in 'training { steps: 1'$"""):
        config.load_experiment(write(GOOD), ["training { steps: 1"])


def test_a_missing_file_is_one_line():
    with pytest.raises(UserError, match=r"no/such.textproto: there is no such file"):
        config.load_experiment("no/such.textproto")


def test_a_packaged_experiment_is_found_by_its_name_unless_there_is_such_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "shapes/max_deeplab_tiny_81"
    packaged = config.load_experiment(name)
    assert packaged.name == "max_deeplab_tiny_81"
    assert config.find_experiment(name + ".textproto") == config.find_experiment(name)
    (tmp_path / "shapes").mkdir()
    (tmp_path / name).write_text(GOOD)
    assert config.find_experiment(name) == name
    with pytest.raises(UserError, match=r"tiny_18: there is no such file .* did you mean shapes/max_deeplab_tiny_81\?"):
        config.find_experiment("configs/shapes/max_deeplab_tiny_18")


def test_fields_as_dictionaries_are_an_override(write):
    fields = {
        "name": 'a "b" é\\n',
        "model": {"recompute": "all", "semantic_branch": False},
        "train_dataset": {"crop_size": 33, "file_pattern": ["x", "y"]},
        "training": {"optimizer": {"learning_rate": 1e-5}},
    }
    experiment = config.load_experiment(write(GOOD), [config.fields_to_text(fields)])
    assert experiment.name == fields["name"]
    assert experiment.model.recompute == experiment.model.all and not experiment.model.semantic_branch
    assert (list(experiment.train_dataset.crop_size), list(experiment.train_dataset.file_pattern)) == ([33], ["x", "y"])
    assert experiment.training.optimizer.learning_rate == pytest.approx(1e-5)
    assert experiment.training.steps == 50
    with pytest.raises(UserError, match=r"^training.stepz is not a field; wanted one of steps, "):
        config.fields_to_text({"training": {"stepz": 1}})
    with pytest.raises(UserError, match=r"^model 'tiny': wanted a dictionary of its fields, variant, "):
        config.fields_to_text({"model": "tiny"})


@pytest.mark.parametrize(
    "field, text",
    [
        ("augmentation.copy_paste is set", "augmentation { copy_paste {} }"),
        ("augmentation.rotate is set", "augmentation { rotate: true }"),
        ("augmentation.contrast is set", "augmentation { contrast: 0.2 }"),
        ("tile 99", "tile: 99"),
    ],
)
def test_a_classifier_sees_neither_pasted_nor_turned_nor_cut_images(write, field, text):
    with pytest.raises(UserError, match=re.escape(f"train_dataset.{field}: it is for task: panoptic")):
        config.load_experiment(write(GOOD), [f"task: classification train_dataset {{ {text} }}"])


@pytest.mark.parametrize("overlap", [99, 100])
def test_tiles_are_larger_than_what_they_share(write, overlap):
    with pytest.raises(UserError, match=f"eval_dataset.tile_overlap {overlap}: must be less than tile, which is 99"):
        config.load_experiment(write(GOOD), [f"eval_dataset {{ tile: 99 tile_overlap: {overlap} }}"])


def test_a_classifier_has_no_pretrained_part_to_freeze(write):
    with pytest.raises(UserError, match=r"training\.freeze is set: task: classification trains the backbone"):
        config.load_experiment(write(GOOD), ["task: classification training { freeze: backbone }"])


INFO = """\
name: "two"
segment_class { id: 1 name: "disk" is_thing: true color { red: 255 } source_id: 7 }
segment_class { id: 2 name: "sky" }
"""


def test_dataset_info_round_trip():
    info = class_table.parse(INFO)
    assert info.class_order == (1, 2)
    assert (info.by_id[1].source_id, info.by_id[2].source_id) == (7, 2)
    assert info.by_id[1].color == (255, 0, 0)
    assert info.num_semantic_channels == 3
    assert class_table.parse(class_table.to_text(info)) == info


def test_dataset_info_as_json():
    info = class_table.parse(
        INFO.replace("sky", "sky \u00e9") + "ignore_label: 9 intensity { percentiles { low: 1 high: 99 } }"
    )
    table = json.loads(class_table.to_json(info))
    rows = table.pop("classes")
    assert rows[0] == {"id": 1, "name": "disk", "is_thing": True, "color": [255, 0, 0], "source_id": 7}
    assert [row["name"] for row in rows] == ["disk", "sky \u00e9"]
    assert table.pop("intensity") == {"percentiles": {"low": 1.0, "high": 99.0}}
    assert table == {
        **{"name": "two", "label_divisor": 256, "ignore_label": 9, "void": 9 * 256},
        **{"thing_ids": [1], "class_order": [1, 2]},
    }
    assert "intensity" not in json.loads(class_table.to_json(class_table.parse(INFO)))


def test_source_ids_may_be_0():
    """Tools number categories from 0, and predictions carry this number."""
    info = class_table.parse(INFO.replace("source_id: 7", "source_id: 0"))
    assert (info.by_id[1].source_id, info.by_source_id[0].name, info.by_source_id[2].name) == (0, "disk", "sky")
    assert class_table.parse(class_table.to_text(info)) == info


def test_text_files_may_start_with_a_byte_order_mark(write):
    table = write("\ufeff" + INFO, "table.textproto")
    assert class_table.load(table) == class_table.parse(INFO)
    assert config.load_experiment(write("\ufeff" + GOOD)) == config.load_experiment(write(GOOD))


def test_a_base_must_be_a_regular_file(write, tmp_path):
    os.mkfifo(tmp_path / "pipe.textproto")  # Opening it would wait forever.
    with pytest.raises(UserError, match=r"pipe.textproto: .*expected a regular file"):
        config.load_experiment(write('base: "pipe.textproto"'))


def test_dataset_info_must_make_sense():
    with pytest.raises(UserError, match=r"table: .*\[1\] occur more than once"):
        class_table.parse(INFO.replace("id: 2", "id: 1"), "table")
    with pytest.raises(UserError, match="has no id or no name"):
        class_table.parse(INFO.replace("id: 2", ""), "table")
    with pytest.raises(UserError, match=r"^table: segment_class.id 0: must lie between 1 and"):
        class_table.parse(INFO.replace("id: 2", "id: 0"), "table")
    with pytest.raises(UserError, match="label_divisor 2000000000 makes labels up to 5999999999; they must be below 2"):
        class_table.parse(INFO + "label_divisor: 2000000000", "table")
    with pytest.raises(UserError, match="classes 1 and 2 have the source_id 2"):
        _ = class_table.parse(INFO.replace("source_id: 7", "source_id: 2"), "table").by_source_id
    with pytest.raises(UserError, match="ignore_label 2 is also"):
        class_table.parse(INFO + "ignore_label: 2", "table")


def test_dataset_info_lies_beside_the_shards(write, tmp_path):
    experiment = config.load_experiment(write(GOOD))
    with pytest.raises(UserError, match="train_dataset sets no dataset_info; convert the data with maxdl-convert"):
        class_table.of_dataset(experiment.train_dataset, "train_dataset")
    write(INFO, class_table.FILE_NAME)
    assert class_table.of_dataset(experiment.train_dataset).name == "two"
    experiment.train_dataset.dataset_info = "nowhere.textproto"
    with pytest.raises(UserError, match=r"^train_dataset.dataset_info 'nowhere.textproto' does not exist"):
        class_table.of_dataset(experiment.train_dataset, "train_dataset")


def numbers_in(message, path=()):
    """(path, field) of every number of a message and of the messages in it."""
    for field in message.fields:
        if field.message_type:
            yield from numbers_in(field.message_type, (*path, field.name))
        elif field.cpp_type in textproto._NUMBERS:
            yield (*path, field.name), field


ROOTS = (experiment_pb2.Experiment, dataset_pb2.DatasetInfo)
NUMBERS = [number for root in ROOTS for number in numbers_in(root.DESCRIPTOR)]
EVERY_NUMBER = pytest.mark.parametrize(("path", "field"), NUMBERS, ids=[".".join(path) for path, _ in NUMBERS])


def requirements(field, value) -> list[str]:
    """The requirements that a value of a field does not meet."""
    message = field.containing_type._concrete_class()
    if textproto.is_repeated(field):
        getattr(message, field.name).append(value)
    else:
        setattr(message, field.name, value)
    return [requirement for _, _, requirement in textproto.wrong_numbers(message)]


@EVERY_NUMBER
def test_every_number_has_bounds_and_is_finite(path, field):
    assert field.GetOptions().HasExtension(options_pb2.bounds), "add (bounds) in the proto"
    bounds = field.GetOptions().Extensions[options_pb2.bounds]
    is_float = field.cpp_type == field.CPPTYPE_FLOAT
    number = float if is_float else int

    outside = [bounds.min - 1] * bounds.HasField("min") + [bounds.max + 1] * bounds.HasField("max")
    outside += [bounds.above] * bounds.HasField("above") + [bounds.below] * bounds.HasField("below")
    outside += [max(bounds.one_of) + 1 for _ in bounds.one_of[:1]]
    outside += [math.inf, -math.inf, math.nan] * is_float
    for value in outside:
        assert len(requirements(field, number(value))) == 1, value

    inside = [bounds.min] * bounds.HasField("min") + [bounds.max] * bounds.HasField("max") + list(bounds.one_of)
    for value in inside + [field.default_value] * field.has_default_value:
        assert requirements(field, number(value)) == [], value


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("training { ema_decay: 2 }", "training.ema_decay 2: must lie between 0 and 1"),
        ("training { optimizer { beta1: 1 } }", "training.optimizer.beta1 1: must be at least 0 and below 1"),
        ("training { optimizer { learning_rate: inf } }", "learning_rate inf: must be a finite number"),
        ("training { optimizer { learning_rate: 1e39 } }", "learning_rate inf: must be a finite number"),
        ("training { seed: 9223372036854775807 }", "seed 9223372036854775807: must lie between"),
        ("model { postprocess { class_threshold: -0.7 } }", "class_threshold -0.7: must lie between 0 and 1"),
        (
            "model { postprocess { kind: mask_wise pixel_threshold: 0.3 } }",
            "model.postprocess.pixel_threshold 0.3: must be at least 1/3 with kind: mask_wise",
        ),
        ("model { decoder { transformer_strides: [4, 5] } }", "transformer_strides 5: must be 4, 8 or 16"),
    ],
)
def test_a_number_out_of_range_is_shown_as_it_was_written(write, text, complaint):
    with pytest.raises(UserError, match=re.escape(complaint)) as caught:
        config.load_experiment(write(GOOD), [text])
    assert str(caught.value).startswith("--override: ")


def test_numbers_of_a_class_table_are_in_range():
    with pytest.raises(UserError, match=r"^table: segment_class.color.red 999: must lie between 0 and 255"):
        class_table.parse(INFO.replace("red: 255", "red: 999"), "table")
    with pytest.raises(UserError, match=r"^table: label_divisor 1: must be at least 2"):
        class_table.parse(INFO + "label_divisor: 1", "table")


# --- reports of a resumed run ---


def test_differences_name_the_fields_that_changed(write):
    before = config.load_experiment(write(GOOD))
    now = config.load_experiment(
        write(GOOD),
        [
            "training { steps: 60 ema_decay: 0.7 optimizer { learning_rate: 0.01 } } "
            "model { num_slots: 16 recompute: all decoder { transformer_strides: [4, 8] } }"
        ],
    )
    assert config.differences(before, before) == {}
    assert config.differences(before, now) == {
        "model.decoder.transformer_strides": "4 8 instead of unset",
        "model.recompute": "all instead of none",
        "training.steps": "60 instead of 50",
        "training.ema_decay": "0.7 instead of 0",
    }
