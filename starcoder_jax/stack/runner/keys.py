"""What a shard was made from, as one string: the same string, the same shard."""

import ast
import dataclasses
import functools
import hashlib
import pathlib
import sys
import types
from collections.abc import Mapping

import pyarrow as pa

_PACKAGE = __name__.partition(".")[0]
_ROOT = pathlib.Path(__file__).parents[3]
# What makes files of rows, whatever the step.
_WORK = f"{_PACKAGE}.stack.runner.work"
_PLAIN = (type(None), bool, int, float, str, bytes, pathlib.PurePath, pa.Schema, pa.DataType)


def key(*parts: object) -> str:
    """SHA-256, as hex, of functions, their code, their arguments and plain values.

    Raises:
        ValueError: a function cannot be told from others by its name, as a lambda, or an argument
            not by its value.
    """
    return combined(_code(_WORK), *(_describe(part) for part in parts))


def combined(*keys: str) -> str:
    """SHA-256, as hex, of keys and digests."""
    return hashlib.sha256("\n".join(keys).encode()).hexdigest()


def code_digest(module: str) -> str:
    """SHA-256, as hex, of a module's source and of all that it imports of this package.

    Modules of other packages count only if they are the module itself: which version of a library
    was there when something was made is not told apart.
    """
    found, left = {}, [module]
    while left:
        name = left.pop()
        if name in found or (path := _path(name)) is None:
            continue
        source = path.read_bytes()
        found[name] = hashlib.sha256(source).hexdigest()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                left += [alias.name for alias in node.names if _is_ours(alias.name)]
            elif isinstance(node, ast.ImportFrom) and _is_ours(node.module or ""):
                # What is imported may be a module of a package, or a name of a module.
                left += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return combined(*(f"{name} {digest}" for name, digest in sorted(found.items())))


_code = functools.cache(code_digest)


def _is_ours(module: str) -> bool:
    return module.startswith(f"{_PACKAGE}.")


def _path(module: str) -> pathlib.Path | None:
    """Where a module's source is; None: there is none, or no such module.

    Imports nothing: what a function imports only when it is called may take long.
    """
    if module in sys.modules:
        loaded = getattr(sys.modules[module], "__file__", None) or ""
        return pathlib.Path(loaded) if loaded.endswith(".py") else None
    place = _ROOT.joinpath(*module.split("."))
    paths = (place.with_suffix(".py"), place / "__init__.py")
    return next((path for path in paths if path.exists()), None)


def _describe(value: object) -> str:
    if isinstance(value, functools.partial):
        parts = (value.func, value.args, value.keywords)
        return f"partial({', '.join(map(_describe, parts))})"
    if isinstance(value, types.FunctionType | types.BuiltinFunctionType | type):
        return _describe_name(value)
    if dataclasses.is_dataclass(value):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return f"{_describe_name(type(value))}({_describe(fields)})"
    if isinstance(value, _PLAIN):
        return f"{type(value).__name__}:{value!r}"
    if isinstance(value, Mapping):
        pairs = sorted(f"{_describe(k)}: {_describe(v)}" for k, v in value.items())
        return f"{{{', '.join(pairs)}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_describe, value))}]"
    if isinstance(value, set | frozenset):
        return f"set({', '.join(sorted(map(_describe, value)))})"
    raise ValueError(
        f"a step's function has an argument of type {type(value).__qualname__}: "
        "give it plain values and frozen dataclasses only"
    )


def _describe_name(value: type | types.FunctionType | types.BuiltinFunctionType) -> str:
    if "<" in value.__qualname__:
        raise ValueError(f"{value.__module__}.{value.__qualname__} is not at the top of a module")
    return f"{value.__module__}.{value.__qualname__} {_code(value.__module__)}"
