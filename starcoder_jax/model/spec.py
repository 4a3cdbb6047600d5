"""Where the arrays of a model live on a mesh, and what that means for gradients."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

# Maps logical axis names (None: not split) to a sharding; `parallel.ShardingRules` is one.
Spec = Callable[..., jax.P | None]


def unsharded(*axes: str | None) -> None:
    """The `Spec` of a model that lives on one device."""
    del axes


def token_axes(spec: Spec) -> tuple[str, ...]:
    """The mesh axes that split the tokens of a batch, outermost first; () on one device."""
    return tuple(name for axes in spec("batch", "length") or () for name in _names(axes))


def gathered(parameter: jax.Array, axes: tuple[str | None, ...], spec: Spec) -> jax.Array:
    """A parameter as products use it: whole along "embed", which FSDP splits.

    Its gradient goes back by `scattered`.

    Args:
        parameter: split as `spec(*axes)`.
        axes: its logical axes.
        spec: of the model.
    """
    if spec(*axes) is None:
        return parameter

    @jax.custom_vjp
    def gather(parameter):
        whole = spec(*(None if axis == "embed" else axis for axis in axes))
        return jax.reshard(parameter, jax.P(*whole, reduced=set(token_axes(spec))))

    gather.defvjp(
        lambda parameter: (gather(parameter), None),
        lambda _, gradient: (scattered(gradient, axes, spec),),
    )
    return gather(parameter)


def scattered(gradient: jax.Array, axes: tuple[str | None, ...], spec: Spec) -> jax.Array:
    """The sum of what the devices hold, each for its own tokens, split as the parameter is.

    It is summed up and scattered at once, along one mesh axis after the other, the outermost first;
    then, when it is small, summed up over those that hold copies. Left to itself the compiler for
    TPUs sums up the whole gradient everywhere and takes of it what it needs, which sends twice as
    much. It scatters along leading dimensions only.

    Args:
        gradient: whole along "embed", its addends on the devices that `token_axes` names.
        axes: its logical axes.
        spec: of the model.

    Returns:
        The gradient, split as `spec(*axes)`.
    """
    split = spec(*axes)
    dim = axes.index("embed")
    shards = _names(split[dim])
    copies = tuple(name for name in token_axes(spec) if name not in shards)

    def scatter(gradient):
        gradient = jnp.moveaxis(gradient, dim, 0)
        for name in shards:
            gradient = jax.lax.psum_scatter(gradient, name, scatter_dimension=0, tiled=True)
        return jnp.moveaxis(jax.lax.psum(gradient, copies), 0, dim)

    in_spec = jax.typeof(gradient).sharding.spec
    return jax.shard_map(scatter, in_specs=in_spec, out_specs=split)(gradient)


def _names(axes: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (axes,) if isinstance(axes, str) else axes or ()
