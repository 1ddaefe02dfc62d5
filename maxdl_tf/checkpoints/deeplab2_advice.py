"""What to do about a checkpoint in DeepLab2's layout that does not fit the model of a config, from names and shapes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping

from maxdl_tf.checkpoints.compare import Difference, Shape

_BLOCKS = {"ConvNeXt": r"encoder/stages/(\d)/(\w+-\d+)/", "ResNet": r"encoder/_stage(\d)/(_block\d+)/"}
_MEMORIES = ("encoder/memory_feature", "transformer_decoder/cluster_centers")
_CLASS_BIAS = "transformer_class_head/_conv/bias"
_FIFTH_STAGE = "pixel_decoder/_stages/4/_block1/_conv1_bn_act/_conv/kernel"


def family(names: Collection[str]) -> str | None:
    """The family of a model with variables of these published names; None for an encoder alone."""
    if any(name.startswith(("pixel_decoder/", "transformer_decoder/")) for name in names):
        return "kMaX-DeepLab"
    return "MaX-DeepLab" if _MEMORIES[0] in names else None


def advice(
    difference: Difference, found: Mapping[str, Shape], wanted: Mapping[str, Shape], pretrained: Collection[str]
) -> str:
    """Advice about a difference.

    Args:
      difference: Difference, which is not empty.
      found: Shapes in the checkpoint by published name.
      wanted: The same of the model, which is of the same family.
      pretrained: Names of the model's variables in its pretrained part.
    """
    not_of_backbone = set(wanted) - set(pretrained)
    if not_of_backbone and not_of_backbone == set(difference.missing) and not difference.reshaped:
        return "if it is of a backbone that was pretrained on ImageNet, add --backbone_only"
    missing = items(difference.missing)
    if missing and not (difference.reshaped or difference.unexpected or "encoder" in missing):
        options = " ".join(f"--allow_missing {item}" for item in missing)
        return f"if these may keep their initial values, add {options}"
    encoders = [_encoder(names) for names in (found, wanted)]
    if all(encoders) and encoders[0] != encoders[1]:
        return f"its encoder is a {encoders[0]}, the config's a {encoders[1]}; name a config of its variant"
    settings = _settings(found, wanted)
    if settings:
        return f"it has {' and '.join(settings)}; name a config that has the same"
    return "name a config of its variant and widths, with the classes that it was trained on"


def items(names: Iterable[str]) -> list[str]:
    """The first parts of slash-separated names, sorted."""
    return sorted({name.split("/")[0] for name in names})


def _encoder(names: Iterable[str]) -> str:
    """The encoder's kind and its numbers of blocks; empty if there is none."""
    for kind, pattern in _BLOCKS.items():
        blocks = {block.groups() for block in (re.match(pattern, name) for name in names) if block}
        if blocks:
            counts = Counter(stage for stage, _ in blocks)
            return f"{kind} with {', '.join(str(counts[stage]) for stage in sorted(counts))} blocks"
    return ""


def _settings(found: Mapping[str, Shape], wanted: Mapping[str, Shape]) -> list[str]:
    """Options of the checkpoint's model that the config's lacks, and the number of classes if it differs."""
    options = [
        f"num_slots: {found[memory][1]}"
        for memory in _MEMORIES
        if memory in found and memory in wanted and found[memory][1] != wanted[memory][1]
    ]
    if family(found) == "kMaX-DeepLab" and (_FIFTH_STAGE in found) != (_FIFTH_STAGE in wanted):
        options.append(f"output_stride: {2 if _FIFTH_STAGE in found else 4}")
    if "semantic_last_layer/bias" in found:
        if "semantic_last_layer/bias" not in wanted:
            options.append("semantic_branch: true")
        elif family(found) == "kMaX-DeepLab":
            has, should = ("semantic_decoder" in items(names) for names in (found, wanted))
            options += [f"semantic_decoder: {str(has).lower()}"] * (has != should)
    settings = [f"model {{ {' '.join(options)} }}"] if options else []
    if _CLASS_BIAS in found and found[_CLASS_BIAS] != wanted.get(_CLASS_BIAS):
        settings.append(f"{found[_CLASS_BIAS][0] - 1} classes")
    return settings
