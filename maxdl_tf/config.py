"""Loads, overrides and validates experiments.

An experiment is a textproto (protos/experiment.proto). It may name a `base`, from which it takes the fields that it
does not set. `--override` fragments may change it. It may have `${NAME}` placeholders: `${CONFIG_DIR}` is the folder of
the file itself, any other name is an environment variable. Errors name the file and the line.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from google.protobuf import text_encoding, text_format
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from maxdl_tf import class_table, configs
from maxdl_tf.class_table import DatasetInfo
from maxdl_tf.errors import UserError
from maxdl_tf.files import storage, textproto
from maxdl_tf.protos import dataset_pb2, experiment_pb2, options_pb2

EXPERIMENT_FILE = "experiment.textproto"  # The resolved experiment beside the checkpoints of a training.

_MAX_BASES = 10
_SUFFIX = ".textproto"
_TOKEN = re.compile(r"""#[^\n]*|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|[A-Za-z_]\w*|[{}<>:]|\n""")
_PLACEHOLDER = re.compile(r"\$\{(\w*)\}")


class _Source(NamedTuple):
    """A text that contributed fields, and its name in errors."""

    name: str
    text: str


def load_experiment(
    path: str, overrides: Sequence[str] = (), *, keep_unset_placeholders: bool = False
) -> experiment_pb2.Experiment:
    """Reads, merges and validates an experiment.

    Args:
      path: Path of a textproto, or name of a packaged experiment, such as `shapes/max_deeplab_tiny_81`.
      overrides: Textproto fragments merged over it in turn, such as `training { steps: 100 }`. A repeated field
        replaces the one below it.
      keep_unset_placeholders: Whether to keep `${NAME}` if there is no such environment variable, for uses that read
        no data.

    Returns:
      The experiment, with `base` merged in and cleared and `name` set.

    Raises:
      UserError: A file is missing, a field is unknown, a placeholder has no value, or a value is out of range. The
        message has the file and the line.
    """
    path = find_experiment(path)
    sources = _with_bases(path, keep_unset_placeholders)
    experiment = experiment_pb2.Experiment()
    for source in sources:
        _merge(experiment, textproto.parse(source.text, experiment_pb2.Experiment(), source.name))
    for number, override in enumerate(overrides, start=1):
        source = _Source("--override" if len(overrides) == 1 else f"--override number {number}", override)
        sources.append(source)
        _merge(experiment, textproto.parse(source.text, experiment_pb2.Experiment(), source.name))
    experiment.ClearField("base")
    if not experiment.name:
        experiment.name = os.path.splitext(os.path.basename(path))[0]
    _validate(experiment, sources)
    return experiment


def save_experiment(experiment: experiment_pb2.Experiment, dataset_info: DatasetInfo, model_dir: str) -> None:
    """Writes `experiment.textproto` and `dataset_info.textproto` into a folder of checkpoints.

    With them the folder is complete: `maxdl_tf.load_predictor` needs nothing else.

    Args:
      experiment: The experiment that the checkpoints are trained with.
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


def _with_bases(path: str, keep_unset_placeholders: bool) -> list[_Source]:
    """The texts of the file's bases, the deepest first, and of the file, with placeholders resolved."""
    sources: list[_Source] = []
    while path:
        if len(sources) == _MAX_BASES:
            raise UserError(f"{path}: more than {_MAX_BASES} nested bases; does a file name itself as its base?")
        source = _Source(path, storage.read_text(path))
        source = source._replace(text=_resolve_placeholders(source, keep_unset_placeholders))
        sources.insert(0, source)
        experiment = textproto.parse(source.text, experiment_pb2.Experiment(), source.name)
        path = os.path.join(os.path.dirname(path), experiment.base) if experiment.base else ""
    return sources


def _resolve_placeholders(source: _Source, keep_unset: bool) -> str:
    values = {"CONFIG_DIR": os.path.dirname(source.name) or ".", **os.environ}

    def resolve(line_number: int, line: str) -> str:
        def value_of(match: re.Match) -> str:
            name = match.group(1)
            if name and name not in values and keep_unset:
                return match.group(0)
            if name not in values:
                raise UserError(
                    f"{source.name}:{line_number}: the placeholder {match.group(0)} has no value; set the environment "
                    f"variable {name or 'that it should name'}, or replace it by the value"
                )
            return values[name]

        return line if line.lstrip().startswith("#") else _PLACEHOLDER.sub(value_of, line)

    return "\n".join(resolve(number, line) for number, line in enumerate(source.text.split("\n"), start=1))


def _merge(below: Message, above: Message) -> None:
    """Merges like `MergeFrom`, but a repeated field replaces the one below it."""
    for field, value in above.ListFields():
        if _is_repeated(field):
            below.ClearField(field.name)
            getattr(below, field.name).extend(value)
        elif field.type == field.TYPE_MESSAGE:
            getattr(below, field.name).SetInParent()
            _merge(getattr(below, field.name), value)
        else:
            setattr(below, field.name, value)


def _is_repeated(field) -> bool:
    # Newer protobufs have no `label`; 4.25 has no `is_repeated`.
    return field.is_repeated if hasattr(field, "is_repeated") else field.label == field.LABEL_REPEATED


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
    """`file:line` of the last place that sets a field or, if none does, of its message."""
    for source in reversed(sources):
        lines = [line for field, line in _fields_with_lines(source.text) if field == path]
        if lines:
            return f"{source.name}:{lines[0]}"
    if "." in path:
        return _where(path.rsplit(".", 1)[0], sources)
    return next((source.name for source in reversed(sources) if not source.name.startswith("--")), "experiment")


def _bounded_values(message: Message, path: str = "") -> Iterator[tuple[str, float, options_pb2.Bounds]]:
    """Yields (dotted path, value, bounds) of every number that is set and has bounds in its proto."""
    for field, value in message.ListFields():
        here = f"{path}.{field.name}".lstrip(".")
        if field.type == field.TYPE_MESSAGE:
            yield from () if _is_repeated(field) else _bounded_values(value, here)
        elif field.GetOptions().HasExtension(options_pb2.bounds):
            bounds = field.GetOptions().Extensions[options_pb2.bounds]
            for number in value if _is_repeated(field) else [value]:
                yield here, number, bounds


def _broken_bound(value: float, bounds: options_pb2.Bounds) -> str:
    """What a value must be, or an empty string if it is so. NaN is outside of all bounds."""
    if bounds.one_of and value not in bounds.one_of:
        *first, last = (f"{allowed:g}" for allowed in bounds.one_of)
        return f"must be {', '.join(first)} or {last}"
    if bounds.HasField("above") and not value > bounds.above:
        return f"must be above {bounds.above:g}"
    too_small = bounds.HasField("min") and not value >= bounds.min
    too_large = bounds.HasField("max") and not value <= bounds.max
    if not (too_small or too_large):
        return ""
    if bounds.HasField("min") and bounds.HasField("max"):
        return f"must lie between {bounds.min:g} and {bounds.max:g}"
    return f"must be at least {bounds.min:g}" if too_small else f"must be at most {bounds.max:g}"


def _validate(experiment: experiment_pb2.Experiment, sources: Sequence[_Source]) -> None:
    def complain(path: str, got, wanted: str):
        raise UserError(f"{_where(path, sources)}: {path} {got}: {wanted}")

    if not experiment.model.variant:
        complain("model.variant", "is not set", "name a variant, such as 's'")
    for path, value, bounds in _bounded_values(experiment):
        wanted = _broken_bound(value, bounds)
        if wanted:
            complain(path, value, wanted)
    low_level = experiment.model.width.semantic_low_level_channels
    if len(low_level) not in (0, 2):
        complain("model.width.semantic_low_level_channels", list(low_level), "wants two numbers, for strides 8 and 4")
    if experiment.training.freeze and experiment.task == experiment_pb2.Experiment.classification:
        complain("training.freeze", "is set", "task: classification trains the backbone itself; drop it")
    for name in ("train_dataset", "eval_dataset"):
        if experiment.HasField(name):
            _validate_dataset(name, getattr(experiment, name), complain)
            if getattr(experiment, name).num_classes and experiment.task != experiment_pb2.Experiment.classification:
                complain(f"{name}.num_classes", "is set", "it is for task: classification; name a dataset_info instead")


def _validate_dataset(name: str, options: dataset_pb2.DatasetOptions, complain) -> None:
    if options.num_classes and options.dataset_info:
        complain(f"{name}.num_classes", options.num_classes, "there is also a dataset_info; drop one of them")
    augmentation = options.augmentation
    if augmentation.max_scale < augmentation.min_scale:
        complain(
            f"{name}.augmentation.max_scale",
            augmentation.max_scale,
            f"must be at least min_scale, which is {augmentation.min_scale}",
        )
    if not options.file_pattern:
        complain(f"{name}.file_pattern", "is not set", "name the TFRecord shards, such as 'data/train-*.tfrecord'")
    crop = tuple(options.crop_size)
    if len(crop) not in (1, 2):
        complain(f"{name}.crop_size", list(crop), "wants one number (a square) or two (height, width)")
    if any(side < 17 or side % 16 != 1 for side in crop):
        nearest = [max(17, round((side - 1) / 16) * 16 + 1) for side in crop]
        complain(
            f"{name}.crop_size",
            crop[0] if len(crop) == 1 else crop,
            f"each side must be 16k+1 and at least 17; try {' and '.join(map(str, nearest))}",
        )
