"""The decoder's steps against the tables of architecture section 3."""

import pytest

from maxdl_tf.models.decoder import decoder_schedule, semantic_source


def _table(steps):
    return [(step.name, step.stride, step.blocks, step.sources) for step in steps]


def test_s():
    steps = decoder_schedule(0)
    assert _table(steps) == [
        ("stage5_extra", 16, 1, ()),
        ("decoder_stage1_extra", 8, 1, ("stage3",)),
        ("decoder_stage2_extra", 4, 1, ("stage2",)),
    ]
    assert semantic_source(steps) == "stage5"
    assert not any(step.pretrained for step in steps)


def test_l():
    steps = decoder_schedule(2, pretrained_stacks=1, blocks=3)
    assert _table(steps) == [
        ("decoder_stage1", 8, 1, ("stage3",)),
        ("decoder_stage2", 4, 1, ("stage2",)),
        ("decoder_stage3", 8, 1, ("stage3", "decoder_stage1")),
        ("decoder_stage4", 16, 1, ("stage5",)),
        ("decoder_stage4_extra", 16, 3, ()),
        ("decoder_stage5_extra", 8, 3, ("decoder_stage1", "decoder_stage3")),
        ("decoder_stage6_extra", 4, 3, ("stage2", "decoder_stage2")),
        ("decoder_stage7_extra", 8, 3, ("decoder_stage3", "decoder_stage5_extra")),
        ("decoder_stage8_extra", 16, 3, ("stage5", "decoder_stage4_extra")),
        ("decoder_stage9_extra", 8, 3, ("decoder_stage5_extra", "decoder_stage7_extra")),
        ("decoder_stage10_extra", 4, 3, ("decoder_stage2", "decoder_stage6_extra")),
    ]
    assert [step.name for step in steps if step.pretrained] == [f"decoder_stage{n}" for n in (1, 2, 3, 4)]
    assert semantic_source(steps) == "decoder_stage6_extra"


def test_a_way_up_to_stride_2():
    for stacks in (0, 1):
        steps, finer = decoder_schedule(stacks), decoder_schedule(stacks, output_stride=2)
        assert finer[:-1] == steps and semantic_source(finer) == semantic_source(steps)
        assert _table(finer[-1:]) == [(f"decoder_stage{4 * stacks + 3}_extra", 2, 1, ("stage1",))]


@pytest.mark.parametrize(("stacks", "pretrained"), [(1, 0), (1, 1), (3, 2)])
def test_any_stacks(stacks, pretrained):
    steps = decoder_schedule(stacks, pretrained_stacks=pretrained)
    fused = [step for step in steps if step.sources]
    assert [step.stride for step in fused] == [8, 4, 8, 16] * stacks + [8, 4]
    assert sum(step.pretrained for step in steps) == 4 * pretrained
    made = {"stage2": 4, "stage3": 8, "stage5": 16}
    for step in steps:
        assert all(made[name] == step.stride for name in step.sources)
        assert step.name not in made
        made[step.name] = step.stride
    assert made[semantic_source(steps)] == 4


def test_more_pretrained_stacks_than_stacks():
    with pytest.raises(ValueError, match="pretrained_stacks 2"):
        decoder_schedule(1, pretrained_stacks=2)
