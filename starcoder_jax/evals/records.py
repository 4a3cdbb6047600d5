"""The result of an evaluation: all that could move its score."""

import dataclasses
import datetime
import importlib.metadata
import json
import math
import pathlib
import platform
from collections.abc import Mapping
from typing import TYPE_CHECKING

from starcoder_jax.evals.scoring import Scored
from starcoder_jax.files import replace_file

if TYPE_CHECKING:
    from starcoder_jax.model.config import DecoderConfig

_PACKAGES = ("starcoder_jax", "jax", "jaxlib", "flax", "numpy", "tokenizers", "sentencepiece")


def complete(record: Mapping[str, object]) -> dict[str, object]:
    """Adds versions and the date."""
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {
        **record,
        "versions": {"python": platform.python_version(), **versions},
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def write(path: pathlib.Path, record: Mapping[str, object]) -> None:
    """Writes a result; figures that are not finite become null.

    Raises:
        OSError: naming the file.
    """
    metrics = {name: _finite(value) for name, value in record["metrics"].items()}
    text = json.dumps({**record, "metrics": metrics}, indent=1, allow_nan=False)
    replace_file(path, text.encode() + b"\n")


def sample_entry(item: Scored) -> dict[str, object]:
    """What the result tells of a sample."""
    entry = {
        "task_id": item.problem.task_id,
        "sample": item.sample.index,
        "passed": item.outcome.passed,
        "reason": item.outcome.reason,
    }
    return entry if item.problem.language is None else entry | {"seconds": item.outcome.seconds}


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A model on disk.

    Attributes:
        place: what to load; of a training run, its newest checkpoint, whatever comes meanwhile.
        config: of the model.
        about: what tells it from others.
    """

    place: str
    config: "DecoderConfig"
    about: Mapping[str, object]


def find_model(path: str, dtype: str | None) -> Checkpoint:
    """Finds a model, and reads what is known of it, but not its parameters.

    Raises:
        ValueError: there is no checkpoint, or it cannot be read.
    """
    # Here, because scoring needs no JAX.
    from starcoder_jax.data.tokenizer import load_tokenizer
    from starcoder_jax.hf.checkpoint import is_hf_checkpoint
    from starcoder_jax.training.checkpoint import find_checkpoint, read_about
    from starcoder_jax.training.load import open_parameters

    place = pathlib.Path(path).resolve()
    about: dict[str, object] = {"checkpoint": place.name}
    if is_hf_checkpoint(place):
        source = open_parameters(place)
    else:
        place, workdir = find_checkpoint(place)
        source = open_parameters(place)
        about = {"checkpoint": workdir.name, "step": int(place.name)}
        about["parameters_checksum"] = read_about(place)["checksums"]["params"]
    about["dtype"] = dtype or source.config.dtype
    about["tokenizer_sha256"] = load_tokenizer(source.folder).fingerprint
    return Checkpoint(str(place), source.config, about)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
