"""Instructions of this machine's processor."""

from __future__ import annotations

# Names of bfloat16 instructions in Linux's list: of x86, in tiles and in vectors, and of ARM.
_BFLOAT16 = ("amx_bf16", "avx512_bf16", "bf16")


def bfloat16_instruction(list_file: str = "/proc/cpuinfo") -> str | None:
    """Name of the fastest bfloat16 instructions that the processor has; None if it has none or is not known.

    Args:
      list_file: Path of Linux's list of processors and their instructions. Other systems have none.
    """
    try:
        with open(list_file, encoding="utf-8", errors="replace") as file:
            for line in file:
                name, _, value = line.partition(":")
                if name.strip().lower() in ("flags", "features"):  # Of x86 and of ARM.
                    found = set(value.split())
                    return next((instruction for instruction in _BFLOAT16 if instruction in found), None)
    except OSError:
        pass
    return None
