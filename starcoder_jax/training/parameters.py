"""Parameters one by one: out of a model, onto devices.

A `Read` gives one parameter, of one layer where it is stacked. Whatever passes through it needs
memory for one tensor, whatever the size of the model.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from starcoder_jax.hf.ahead import ahead
from starcoder_jax.hf.layout import Path, Read, Shape
from starcoder_jax.model.config import DecoderConfig
from starcoder_jax.model.decoder import Decoder
from starcoder_jax.training.step import Params


def parameter_shapes(config: DecoderConfig) -> dict[Path, Shape]:
    """Of each parameter, layers stacked, in the order of `jax.tree.leaves`."""
    model = jax.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0)))
    return {path: x.shape for path, x in flatten(nnx.to_pure_dict(nnx.state(model))).items()}


def flatten(params: Params) -> dict[Path, Any]:
    """The leaves of nested dicts by their keys, in the order of `jax.tree.leaves`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    return {tuple(entry.key for entry in path): leaf for path, leaf in leaves}


def unflatten(leaves: dict[Path, Any]) -> Params:
    """Undoes `flatten`."""
    params: Params = {}
    for path, leaf in leaves.items():
        place = params
        for key in path[:-1]:
            place = place.setdefault(key, {})
        place[path[-1]] = leaf
    return params


def reading_order(paths: dict[Path, Any], num_layers: int) -> Iterator[tuple[Path, int | None]]:
    """What to read one after the other: outer parameters, then layer by layer, as files have it."""
    yield from ((path, None) for path in paths if path[0] != "layers")
    for layer in range(num_layers):
        yield from ((path, layer) for path in paths if path[0] == "layers")


def place(read: Read, abstract: Params) -> Params:
    """Reads parameters straight onto their devices.

    Args:
        read: where they come from; values are cast to the dtypes of `abstract`.
        abstract: shapes, dtypes and shardings, from `checkpoint.placed`.

    Returns:
        The parameters, as `abstract` describes them.
    """
    targets = flatten(abstract)
    leaves = {
        path: jax.jit(lambda x=x: jnp.zeros(x.shape, x.dtype), out_shardings=x.sharding)()
        for path, x in targets.items()
        if path[0] == "layers"
    }
    num_layers = abstract["layers"]["attention_norm"]["scale"].shape[0]
    order = reading_order(targets, num_layers)
    for (path, layer), array in ahead(lambda item: read(*item), order):
        target = targets[path]
        if layer is None:
            leaves[path] = _to_devices(array, target.sharding).astype(target.dtype)
        else:
            piece = _to_devices(array, _without_layers(target.sharding))
            leaves[path] = _set_layer(leaves[path], piece, layer)
        # Copies to an accelerator queue up; unbounded, they would hold the model in host memory.
        leaves[path].block_until_ready()
    return unflatten(leaves)


def model_reader(model: Decoder) -> Read:
    """Reads the parameters of a model, wherever it lives."""
    leaves = flatten(nnx.to_pure_dict(nnx.state(model)))

    def read(path: Path, layer: int | None) -> np.ndarray:
        return np.asarray(jax.device_get(leaves[path] if layer is None else leaves[path][layer]))

    return read


def _to_devices(array: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def _without_layers(sharding: jax.sharding.Sharding) -> jax.sharding.Sharding:
    if isinstance(sharding, jax.NamedSharding):
        return jax.NamedSharding(sharding.mesh, jax.P(*sharding.spec[1:]))
    return sharding


@jax.jit(donate_argnums=0)
def _set_layer(stacked: jax.Array, piece: jax.Array, layer: int) -> jax.Array:
    piece = piece.astype(stacked.dtype)
    return jax.lax.dynamic_update_index_in_dim(stacked, piece, layer, axis=0)
