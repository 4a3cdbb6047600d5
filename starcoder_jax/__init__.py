"""Trains, tunes, evaluates and documents the StarCoder family of code models.

    import starcoder_jax as sj
    model, tokenizer = sj.load_model("runs/tiny")
    sj.generate(model, tokenizer, ["def fibonacci(n):"])

Names are loaded when they are first used, so that importing the package takes no time.
"""

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from starcoder_jax.inference.completion import generate, infill
    from starcoder_jax.model.config import DecoderConfig
    from starcoder_jax.model.decoder import Decoder, unstacked
    from starcoder_jax.training.convert import save_model
    from starcoder_jax.training.load import load_model

__version__ = "0.1.0"
__all__ = [
    "Decoder",
    "DecoderConfig",
    "generate",
    "infill",
    "load_model",
    "save_model",
    "unstacked",
]

_MODULES = {
    "Decoder": "model.decoder",
    "DecoderConfig": "model.config",
    "generate": "inference.completion",
    "infill": "inference.completion",
    "load_model": "training.load",
    "save_model": "training.convert",
    "unstacked": "model.decoder",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])


class _Package(types.ModuleType):
    """A module whose public names stay what they are.

    Whoever imports the command `starcoder_jax.generate` makes Python bind that module to the
    package's attribute: it would hide the function.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if name not in _MODULES or not isinstance(value, types.ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
