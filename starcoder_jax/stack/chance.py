"""Random choices that depend on names and a seed, and on nothing else.

Two choices are independent where their names differ: so the last name says what is chosen.
"""

from starcoder_jax.stack.record import stable_hash


def fraction(*names: str, seed: int) -> float:
    """A number in [0, 1), uniform over the names."""
    return _bits(names, seed) / 2**64


def integer(*names: str, low: int, high: int, seed: int) -> int:
    """A number in [low, high), uniform over the names."""
    return low + _bits(names, seed) * (high - low) // 2**64


def order(*names: str, seed: int) -> int:
    """A key: things that are sorted by it stand in random order."""
    return _bits(names, seed)


def _bits(names: tuple[str, ...], seed: int) -> int:
    return stable_hash("\0".join(names).encode("utf-8", "replace"), seed)
