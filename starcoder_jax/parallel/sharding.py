"""Which mesh axis splits which logical axis of an array."""

import dataclasses

import jax

from starcoder_jax.model.config import DecoderConfig
from starcoder_jax.parallel.mesh import FSDP_FAR, mesh_sizes

MeshAxes = str | tuple[str, ...] | None


@dataclasses.dataclass(frozen=True)
class ShardingRules:
    """One table from the logical axes of arrays to mesh axes; None is not split.

    Called with the logical axes of an array, it gives its `PartitionSpec`:
    `rules("batch", "length", None)`. Activations name their embedding axis None, parameters
    "embed": FSDP splits parameters over the devices among which it splits the batch.
    """

    batch: MeshAxes = ("replica", "fsdp")
    length: MeshAxes = "sequence"
    embed: MeshAxes = "fsdp"
    vocab: MeshAxes = "tensor"
    mlp: MeshAxes = "tensor"
    kv_heads: MeshAxes = "tensor"
    query_groups: MeshAxes = None
    head_dim: MeshAxes = None
    layers: MeshAxes = None

    def __call__(self, *logical_axes: str | None) -> jax.P:
        """The sharding of an array with these axes.

        Raises:
            ValueError: an axis is unknown, or two of them fall on one mesh axis.
        """
        taken: dict[str, str] = {}
        spec = []
        for axis in logical_axes:
            if axis is not None and axis not in _LOGICAL_AXES:
                raise ValueError(f"no rule for axis {axis!r}; there are {', '.join(_LOGICAL_AXES)}")
            mesh_axes = None if axis is None else getattr(self, axis)
            for name in (mesh_axes,) if isinstance(mesh_axes, str) else mesh_axes or ():
                if name in taken:
                    raise ValueError(
                        f"mesh axis {name!r} splits both {taken[name]!r} and {axis!r} of one array"
                    )
                taken[name] = axis
            spec.append(mesh_axes)
        return jax.P(*spec)


_LOGICAL_AXES = tuple(field.name for field in dataclasses.fields(ShardingRules))


def sharding_rules(config: DecoderConfig, mesh: jax.sharding.Mesh) -> ShardingRules:
    """The rules of a model on a mesh.

    Tensor parallelism splits key/value heads where there are enough of them; else it splits the
    query heads of each group and keeps keys and values whole, as multi-query attention needs.

    Raises:
        ValueError: a size of the model is no multiple of the mesh axes that split it.
    """
    tensor = mesh.shape["tensor"]
    rules = ShardingRules()
    if FSDP_FAR in mesh.shape:
        fsdp = (FSDP_FAR, "fsdp")
        rules = dataclasses.replace(rules, batch=("replica", *fsdp), embed=fsdp)
    if config.num_kv_heads % tensor and config.query_groups % tensor == 0:
        rules = dataclasses.replace(rules, kv_heads=None, query_groups="tensor")
    sizes = {
        "embed": config.embed_dim,
        "vocab": config.vocab_size,
        "mlp": config.mlp_dim,
        "kv_heads": config.num_kv_heads,
    }
    for axis, size in sizes.items():
        mesh_axis = "fsdp" if axis == "embed" else getattr(rules, axis)
        if mesh_axis is not None and size % mesh_sizes(mesh)[mesh_axis]:
            raise ValueError(
                f"the model's {axis} of {size} does not split over mesh.{mesh_axis}="
                f"{mesh_sizes(mesh)[mesh_axis]}"
            )
    return rules


def batch_ways(mesh: jax.sharding.Mesh) -> int:
    """In how many parts the mesh splits a batch."""
    sizes = mesh_sizes(mesh)
    return sizes["replica"] * sizes["fsdp"]


def check_batch(batch_size: int, micro_batches: int, mesh: jax.sharding.Mesh) -> None:
    """Checks that the batch divides over micro-batches and devices.

    Raises:
        ValueError: it does not.
    """
    ways = batch_ways(mesh)
    if batch_size % (micro_batches * ways):
        raise ValueError(
            f"train.batch_size={batch_size} does not divide over train.micro_batches="
            f"{micro_batches} times the {ways} ways in which mesh.replica and mesh.fsdp split it"
        )
