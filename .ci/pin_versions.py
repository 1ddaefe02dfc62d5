"""Writes the constraints files, which pin every package of the two stacks, extras included.

Run it when the requirements in setup.py change, or to upgrade (then run the tests on both stacks):

    python .ci/pin_versions.py [--upgrade]

uv resolves setup.py for each Python version on Linux x86-64 and prefers the current pins. The results are merged. The
Makefile, .ci/run and the installation in the README use these files.
"""

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STACKS = {"tf2.15": ("3.9", "3.10", "3.11"), "tf2.20": ("3.12", "3.13")}
HEADER = """\
# Python {first} to {last}. Written by .ci/pin_versions.py; change setup.py and run that instead of editing this.
"""


def main():
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        subprocess.run([f"{folder}/bin/pip", "install", "--quiet", "uv"], check=True)
        for stack, pythons in STACKS.items():
            path = ROOT / ".ci" / f"constraints-{stack}.txt"
            pins = {python: resolve(f"{folder}/bin/uv", python, path) for python in pythons}
            path.write_text(HEADER.format(first=pythons[0], last=pythons[-1]) + merge(pins))
            print(f"pin_versions.py: wrote {path.relative_to(ROOT)}")


def resolve(uv, python, previous):
    """{package: version} for one Python."""
    output = Path(uv).parent.parent / f"{python}.txt"
    if previous.exists() and "--upgrade" not in sys.argv:
        lines = previous.read_text().splitlines()
        # uv takes pins in its output file as preferences.
        output.write_text("".join(line.split(";")[0] + "\n" for line in lines if applies(line, python)))
    command = [uv, "pip", "compile", "setup.py", "--all-extras", "--python-version", python, "--output-file", output]
    # Beam's source build takes long and fails on many machines.
    command += ["--python-platform", "x86_64-manylinux_2_28", "--only-binary", "apache-beam"]
    command += ["--no-header", "--no-annotate", "--quiet"]
    subprocess.run(command, check=True, cwd=ROOT)
    return dict(line.split("==") for line in output.read_text().splitlines())


def applies(line, python):
    """Whether a pin as `merge` writes it is for this Python."""
    if line.startswith("#"):
        return False
    _, _, marker = line.partition(";")
    version = tuple(map(int, python.split(".")))
    for condition in filter(None, (part.strip() for part in marker.split(" and "))):
        _, operator, bound = condition.split()
        bound = tuple(map(int, bound.strip('"').split(".")))
        if not {">=": version >= bound, "<=": version <= bound, "==": version == bound}[operator]:
            return False
    return "==" in line


def merge(pins):
    """{python: {package: version}} -> lines, with a marker where the Pythons differ."""
    pythons = list(pins)
    lines = []
    for package in sorted({package for versions in pins.values() for package in versions}):
        of_version = {}
        for python in pythons:
            if package in pins[python]:
                of_version.setdefault(pins[python][package], []).append(python)
        for version, where in of_version.items():
            conditions = []
            if where[0] != pythons[0]:
                conditions.append(f'python_version >= "{where[0]}"')
            if where[-1] != pythons[-1]:
                conditions.append(f'python_version <= "{where[-1]}"')
            lines.append(f"{package}=={version}" + (f" ; {' and '.join(conditions)}" if conditions else ""))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
