"""What Linux's list of processors says about bfloat16, and what --compute auto makes of it."""

import pytest

from maxdl_tf import command_flags, processors


@pytest.mark.parametrize(
    ("content", "instruction"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx512f avx512_bf16 amx_bf16 amx_tile\n", "amx_bf16"),
        ("processor\t: 0\nflags\t\t: fpu avx512f avx512_bf16\n", "avx512_bf16"),
        ("processor\t: 0\nFeatures\t: fp asimd bf16 i8mm\n", "bf16"),
        ("processor\t: 0\nmodel name\t: bf16\nflags\t\t: fpu avx2\nbugs\t\t: bf16\n", None),
        ("", None),
    ],
)
def test_the_fastest_instruction_is_named(tmp_path, content, instruction):
    path = tmp_path / "cpuinfo"
    path.write_text(content)
    assert processors.bfloat16_instruction(str(path)) == instruction


def test_a_system_without_the_list_has_none(tmp_path):
    assert processors.bfloat16_instruction(str(tmp_path / "cpuinfo")) is None


@pytest.mark.parametrize(
    ("value", "instruction", "chosen", "printed"),
    [
        ("float32", "avx512_bf16", "float32", ""),
        ("bfloat16", None, "bfloat16", ""),
        ("auto", "avx512_bf16", "bfloat16", "computing in bfloat16: this processor has avx512_bf16\n"),
        ("auto", None, "float32", "computing in float32: no bfloat16 instructions of this processor are known\n"),
    ],
)
def test_auto_follows_the_processor_and_says_why(monkeypatch, capsys, value, instruction, chosen, printed):
    monkeypatch.setattr(processors, "bfloat16_instruction", lambda: instruction)
    assert command_flags.choose_compute(value) == chosen
    assert capsys.readouterr().out == printed
