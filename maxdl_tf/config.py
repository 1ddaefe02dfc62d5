"""Loads, overrides and validates experiments.

An experiment is a textproto (protos/experiment.proto). It may name a `base`, from which it takes the fields that it
does not set. `--override` fragments may change it. All of them may have `${NAME}` placeholders: `${CONFIG_DIR}` is the
folder of the file itself, any other name is an environment variable. Errors name the file and the line.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from google.protobuf import text_encoding, text_format
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from maxdl_tf import class_table, configs
from maxdl_tf.class_table import DatasetInfo
from maxdl_tf.errors import UserError
from maxdl_tf.files import storage, textproto
from maxdl_tf.protos import dataset_pb2, experiment_pb2, model_pb2

EXPERIMENT_FILE = "experiment.textproto"  # The experiment beside the checkpoints of a training.
KMAX_NAMES = ("kmax_", "lite")  # What the names of kMaX-DeepLab's variants begin with.

_MAX_BASES = 10
_SUFFIX = ".textproto"
_TOKEN = re.compile(r"""#[^\n]*|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|[A-Za-z_]\w*|[{}<>:]|\n""")
# A placeholder outside of comments and quotes, in its group.
_UNQUOTED = re.compile(rf"""#[^\n]*|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|({textproto.PLACEHOLDER.pattern})""")
_CONFIG_DIR = "${CONFIG_DIR}"


class _Source(NamedTuple):
    """A text that contributed fields.

    Attributes:
      name: Name in errors, such as a path.
      text: The textproto.
      fields: The fields that it sets.
    """

    name: str
    text: str
    fields: experiment_pb2.Experiment


def load_experiment(
    path: str, overrides: Sequence[str] | Mapping[str, str] = (), *, keep_placeholders: bool = False
) -> experiment_pb2.Experiment:
    """Reads, merges and validates an experiment.

    Placeholders are resolved after merging, so those of overridden fields need no value. A placeholder without an
    environment variable remains; what reads the field reports it.

    Args:
      path: Path of a textproto, or name of a packaged experiment, such as `shapes/max_deeplab_tiny_81`.
      overrides: Textproto fragments merged over it in turn, such as `training { steps: 100 }`. A repeated field
        replaces the one below it. A mapping has names for them in errors; otherwise they are `--override`.
      keep_placeholders: Whether to keep all placeholders of environment variables in texts, for `save_experiment`.

    Returns:
      The experiment, with `base` merged in and cleared and `name` set.

    Raises:
      UserError: A file is missing, a field is unknown, or a value is out of range. The message has the file and the
        line.
    """
    path = find_experiment(path)
    sources = _with_bases(path)
    if not isinstance(overrides, Mapping):
        name = "--override" if len(overrides) == 1 else "--override number {}"
        overrides = {name.format(number): text for number, text in enumerate(overrides, start=1)}
    for name, text in overrides.items():
        source = _source(name, text, folder=os.path.dirname(path))
        if source.fields.base:
            raise UserError(
                f"{_where('base', [source])}: base {source.fields.base!r}: only a file can name a base; give it as "
                "--config_file, or write a file that names both"
            )
        sources.append(source)
    experiment = experiment_pb2.Experiment()
    for source in sources:
        _merge(experiment, source.fields)
    experiment.ClearField("base")
    if not experiment.name:
        experiment.name = os.path.splitext(os.path.basename(path))[0]
    _validate(experiment, sources, path)
    if not keep_placeholders:
        _change_strings(experiment, _with_environment)
    return experiment


def save_experiment(experiment: experiment_pb2.Experiment, dataset_info: DatasetInfo, model_dir: str) -> None:
    """Writes `experiment.textproto` and `dataset_info.textproto` into a folder of checkpoints.

    With them the folder is complete: `maxdl_tf.load_predictor` needs nothing else.

    Args:
      experiment: The experiment that the checkpoints are trained with. Its placeholders are written as they are, so
        that no value of an environment variable, such as a password, gets into the folder.
      dataset_info: Its class table.
      model_dir: Folder of the checkpoints; created if it does not exist.

    Raises:
      OSError: The files cannot be written.
    """
    storage.make_folder(model_dir)
    files = {EXPERIMENT_FILE: experiment_to_text(experiment), class_table.FILE_NAME: class_table.to_text(dataset_info)}
    for name, text in files.items():
        storage.write_whole(os.path.join(model_dir, name), text.encode())


def experiment_to_text(experiment: experiment_pb2.Experiment) -> str:
    """The experiment as a textproto for `load_experiment`."""
    return text_format.MessageToString(experiment)


def differences(before: Message, now: Message, path: str = "") -> dict[str, str]:
    """The fields in which two messages of one type differ, such as {"training.steps": "200 instead of 100"}.

    A field that is not set has its default.
    """
    found = {}
    for field in before.DESCRIPTOR.fields:
        here = f"{path}.{field.name}".lstrip(".")
        if field.message_type:
            found |= differences(getattr(before, field.name), getattr(now, field.name), here)
        elif getattr(before, field.name) != getattr(now, field.name):
            found[here] = f"{_text_in(now, field.name)} instead of {_text_in(before, field.name)}"
    return found


def _text_in(message: Message, name: str) -> str:
    """The value of a field as a textproto shows it."""
    field, value = message.DESCRIPTOR.fields_by_name[name], getattr(message, name)
    if textproto.is_repeated(field):
        return " ".join(textproto.value_text(field, item) for item in value) or "unset"
    return textproto.value_text(field, value) if message.HasField(name) or field.has_default_value else "unset"


def fields_to_text(fields: Mapping[str, Any]) -> str:
    """An override from nested dictionaries: {"training": {"steps": 100}} becomes `training { steps: 100 }`.

    A repeated field takes a list, or a single value. Enums are strings.

    Raises:
      UserError: A field is unknown, or a dictionary is missing where a field has fields.
    """
    return _fields_to_text(fields, experiment_pb2.Experiment.DESCRIPTOR, "")


def _fields_to_text(fields: Mapping[str, Any], message: Descriptor, path: str) -> str:
    if not isinstance(fields, Mapping):
        raise UserError(f"{path} {fields!r}: wanted a dictionary of its fields, {', '.join(message.fields_by_name)}")
    parts = []
    for name, value in fields.items():
        field = message.fields_by_name.get(name)
        inner = f"{path}.{name}".lstrip(".")
        if field is None:
            raise UserError(f"{inner} is not a field; wanted one of {', '.join(message.fields_by_name)}")
        if field.message_type:
            parts.append(f"{name} {{ {_fields_to_text(value, field.message_type, inner)} }}")
            continue
        for item in value if isinstance(value, (list, tuple)) else [value]:
            is_quoted = isinstance(item, str) and not field.enum_type
            parts.append(f'{name}: "{text_encoding.CEscape(item, as_utf8=True)}"' if is_quoted else f"{name}: {item}")
    return " ".join(parts)


def find_experiment(path: str) -> str:
    """The file of an experiment: `path` itself if it exists, else the packaged experiment of that name.

    Raises:
      UserError: Neither exists.
    """
    if storage.is_remote(path) or os.path.exists(path):
        return path
    files = configs.experiments()
    packaged = files.get(path.removesuffix(_SUFFIX))
    if packaged:
        return packaged
    close = difflib.get_close_matches(path.removesuffix(_SUFFIX).removeprefix("configs/"), files, n=1)
    raise UserError(
        f"{path}: there is no such file and no packaged experiment of this name; "
        + (f"did you mean {close[0]}?" if close else "check the path")
    )


# --- reading and merging ---


def _with_bases(path: str) -> list[_Source]:
    """The file's bases, the deepest first, and the file."""
    sources: list[_Source] = []
    while path:
        if len(sources) == _MAX_BASES:
            raise UserError(f"{path}: more than {_MAX_BASES} nested bases; does a file name itself as its base?")
        source = _source(path, storage.read_text(path), folder=os.path.dirname(path))
        sources.insert(0, source)
        base = _with_environment(source.fields.base)
        textproto.check_placeholders(base, f"{_where('base', [source])}: base")
        path = _base_file(os.path.join(os.path.dirname(path), base), base) if base else ""
    return sources


def _base_file(path: str, base: str) -> str:
    """The file of a base: `path`, which is relative to the file that names it, or the packaged experiment `base`."""
    packaged = configs.experiments().get(base.removesuffix(_SUFFIX))
    return packaged if packaged and not os.path.exists(path) else path


def _source(name: str, text: str, folder: str) -> _Source:
    """Parses a text. `${CONFIG_DIR}` in it becomes `folder`; a placeholder outside of quotes must have a value."""

    def value_of(match: re.Match) -> str:
        if not match.group(1):
            return match.group(0)
        value = _with_environment(match.group(1))
        line = text.count("\n", 0, match.start()) + 1
        textproto.check_placeholders(value, f"{textproto.place(name, text, line)}: the value")
        return value

    text = _UNQUOTED.sub(value_of, text)
    fields = textproto.parse(text, experiment_pb2.Experiment(), name)
    _change_strings(fields, lambda value: value.replace(_CONFIG_DIR, folder or "."))
    return _Source(name, text, fields)


def _with_environment(value: str) -> str:
    """Resolves placeholders, but for those whose environment variable is not set or empty."""
    return textproto.PLACEHOLDER.sub(lambda match: os.environ.get(match.group(1)) or match.group(0), value)


def _change_strings(message: Message, change: Callable[[str], str]) -> None:
    """Applies a function to all strings of a message whose repeated fields are not messages."""
    for field, value in message.ListFields():
        if field.message_type:
            _change_strings(value, change)
        elif field.type == field.TYPE_STRING and textproto.is_repeated(field):
            value[:] = [change(item) for item in value]
        elif field.type == field.TYPE_STRING:
            setattr(message, field.name, change(value))


def _merge(below: Message, above: Message) -> None:
    """Merges like `MergeFrom`, but a repeated field replaces the one below it."""
    for field, value in above.ListFields():
        if textproto.is_repeated(field):
            below.ClearField(field.name)
            getattr(below, field.name).extend(value)
        elif field.type == field.TYPE_MESSAGE:
            getattr(below, field.name).SetInParent()
            _merge(getattr(below, field.name), value)
        else:
            setattr(below, field.name, value)


# --- validation ---


def _fields_with_lines(text: str) -> Iterator[tuple[str, int]]:
    """Yields (dotted path, line number) of every field that a textproto sets."""
    path: list[str] = []
    name, line = "", 1
    for token in _TOKEN.findall(text):
        if token == "\n":
            line += 1
        elif token in "{<" and name:
            path.append(name)
            yield ".".join(path), line
            name = ""
        elif token in "}>":
            if path:
                path.pop()
        elif token == ":":
            if name:
                yield ".".join([*path, name]), line
        elif token[0] not in "#\"'":
            name = token


def _where(path: str, sources: Sequence[_Source]) -> str:
    """`file:line` of the last place that sets a field or, if none does, of its message; else an empty string."""
    while path:
        for source in reversed(sources):
            line = next((line for field, line in _fields_with_lines(source.text) if field == path), None)
            if line:
                return textproto.place(source.name, source.text, line)
        path = path.rpartition(".")[0]
    return ""


def _validate(experiment: experiment_pb2.Experiment, sources: Sequence[_Source], file: str) -> None:
    def complain(path: str, got, wanted: str):
        raise UserError(f"{_where(path, sources) or file}: {path} {got}: {wanted}")

    if not experiment.model.variant:
        complain("model.variant", "is not set", "name a variant, such as 's'")
    for path, value, requirement in textproto.wrong_numbers(experiment):
        complain(path, value, requirement)
    low_level = experiment.model.width.semantic_low_level_channels
    if len(low_level) not in (0, 2):
        complain("model.width.semantic_low_level_channels", list(low_level), "wants two numbers, for strides 8 and 4")
    postprocess = experiment.model.postprocess
    if postprocess.kind == model_pb2.PostprocessOptions.mask_wise and postprocess.pixel_threshold < 1 / 3:
        complain(
            "model.postprocess.pixel_threshold",
            _text_in(postprocess, "pixel_threshold"),
            "must be at least 1/3 with kind: mask_wise, so that at most two masks claim a pixel",
        )
    weights = [name for name in experiment.loss.DESCRIPTOR.fields_by_name if name.endswith("_weight")]
    weights.remove("positive_weight")
    if not experiment.model.semantic_branch:
        weights.remove("semantic_weight")
    if not any(getattr(experiment.loss, name) for name in weights):
        complain("loss", "has no term", f"set one of {', '.join(weights)} above 0")
    if experiment.training.freeze and experiment.task == experiment_pb2.Experiment.classification:
        complain("training.freeze", "is set", "task: classification trains the backbone itself; drop it")
    for name in ("train_dataset", "eval_dataset"):
        if experiment.HasField(name):
            options = getattr(experiment, name)
            _validate_dataset(name, options, complain)
            classifies = experiment.task == experiment_pb2.Experiment.classification
            _validate_crop(name, options, experiment.model.variant, classifies, complain)
            if options.num_classes and not classifies:
                complain(f"{name}.num_classes", "is set", "it is for task: classification; name a dataset_info instead")
            if options.tile and classifies:
                complain(f"{name}.tile", options.tile, "it is for task: panoptic; drop it")
            for field in ("copy_paste", "rotate", "contrast"):
                if options.augmentation.HasField(field) and classifies:
                    complain(f"{name}.augmentation.{field}", "is set", "it is for task: panoptic; drop it")


def _validate_dataset(name: str, options: dataset_pb2.DatasetOptions, complain) -> None:
    if options.num_classes and options.dataset_info:
        complain(f"{name}.num_classes", options.num_classes, "there is also a dataset_info; drop one of them")
    smallest, largest = (_text_in(options.augmentation, scale) for scale in ("min_scale", "max_scale"))
    if options.augmentation.max_scale < options.augmentation.min_scale:
        complain(f"{name}.augmentation.max_scale", largest, f"must be at least min_scale, which is {smallest}")
    if name == "eval_dataset" and 0 < options.tile <= options.tile_overlap:
        complain(f"{name}.tile_overlap", options.tile_overlap, f"must be less than tile, which is {options.tile}")
    if not options.file_pattern:
        complain(f"{name}.file_pattern", "is not set", "name the TFRecord shards, such as 'data/train-*.tfrecord'")


def _validate_crop(name: str, options: dataset_pb2.DatasetOptions, variant: str, classifies: bool, complain) -> None:
    crop = tuple(options.crop_size)
    if len(crop) not in (1, 2):
        complain(f"{name}.crop_size", list(crop), "wants one number (a square) or two (height, width)")
    # The stride at which features of different depth still have to meet; an encoder alone has no decoder.
    stride = 32 if variant.startswith(KMAX_NAMES) and not classifies else 16
    if any(side <= stride or side % stride != 1 for side in crop):
        nearest = [max(stride + 1, round((side - 1) / stride) * stride + 1) for side in crop]
        complain(
            f"{name}.crop_size",
            crop[0] if len(crop) == 1 else crop,
            f"each side must be {stride}k+1 and at least {stride + 1} for {variant}; try "
            f"{' and '.join(map(str, nearest))}",
        )
