import dataclasses
import functools

import jax
import numpy as np
import pytest
from flax import nnx

from starcoder_jax.model.config import DecoderConfig
from starcoder_jax.model.decoder import Decoder
from starcoder_jax.parallel.mesh import MeshConfig, make_mesh
from starcoder_jax.parallel.sharding import (
    ShardingRules,
    batch_ways,
    check_batch,
    sharding_rules,
)
from starcoder_jax.training.optimizer import OptimizerConfig, make_optimizer
from starcoder_jax.training.step import initial_state

CONFIG = DecoderConfig(
    vocab_size=64,
    num_layers=2,
    embed_dim=32,
    num_heads=8,
    num_kv_heads=2,
    mlp_dim=64,
    max_length=16,
    positions="learned",
    tied_head=False,
    embedding_norm=True,
    dtype="float32",
)
# Little is computed here and much compiled: half of that time is LLVM's optimization.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
MULTI_QUERY = dataclasses.replace(CONFIG, num_kv_heads=1)


def optimizer():
    return make_optimizer(OptimizerConfig(1e-3, 1e-4, 2), 10)


def specs_of(params):
    """Name of each parameter, with dots -> its PartitionSpec."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {".".join(part.key for part in path): leaf.sharding.spec for path, leaf in leaves}


def without_trailing_none(spec):
    spec = list(spec)
    while spec and spec[-1] is None:
        spec.pop()
    return spec


def test_rules_map_logical_axes_to_mesh_axes():
    rules = ShardingRules()
    assert rules("batch", "length", None) == jax.P(("replica", "fsdp"), "sequence", None)
    assert rules("vocab", "embed") == jax.P("tensor", "fsdp")
    assert rules() == jax.P()


def test_a_collision_names_both_axes():
    with pytest.raises(ValueError, match="'tensor' splits both 'vocab' and 'mlp'"):
        ShardingRules()("vocab", "mlp")
    with pytest.raises(ValueError, match="'fsdp' splits both 'batch' and 'embed'"):
        ShardingRules()("batch", "embed")


def test_an_unknown_axis_is_named():
    with pytest.raises(ValueError, match="no rule for axis 'heads'; there are batch, length"):
        ShardingRules()("batch", "heads")


def test_key_heads_are_split_where_there_are_enough():
    rules = sharding_rules(CONFIG, make_mesh(MeshConfig(tensor=2)))
    assert (rules.kv_heads, rules.query_groups) == ("tensor", None)


@pytest.mark.parametrize(("config", "tensor"), [(MULTI_QUERY, 8), (MULTI_QUERY, 2), (CONFIG, 4)])
def test_too_few_key_heads_stay_whole_and_query_groups_are_split(config, tensor):
    rules = sharding_rules(config, make_mesh(MeshConfig(tensor=tensor)))
    assert (rules.kv_heads, rules.query_groups) == (None, "tensor")


def test_multi_query_attention_has_its_key_head_on_every_device():
    mesh = make_mesh(MeshConfig(tensor=8))
    with jax.set_mesh(mesh):
        rules = sharding_rules(MULTI_QUERY, mesh)
        model = jit(lambda: Decoder(MULTI_QUERY, rngs=nnx.Rngs(0), spec=rules))()
    shapes = {
        name: getattr(model.layers, name).kernel[...].addressable_shards[0].data.shape
        for name in ("query", "key", "value", "attention_output")
    }
    # Layers, then the axes of each kernel: embed, key heads, query groups, head size.
    assert shapes == {
        "query": (2, 32, 1, 1, 4),
        "key": (2, 32, 1, 4),
        "value": (2, 32, 1, 4),
        "attention_output": (2, 1, 1, 4, 32),
    }


@pytest.mark.parametrize(
    ("changes", "mesh", "message"),
    [
        ({"embed_dim": 24}, MeshConfig(fsdp=-1, tensor=1), None),
        ({"embed_dim": 40, "num_heads": 4}, MeshConfig(), None),
        ({"embed_dim": 36, "num_heads": 4}, MeshConfig(), "embed of 36 .* mesh.fsdp=8"),
        ({"vocab_size": 63}, MeshConfig(tensor=2), "vocab of 63 .* mesh.tensor=2"),
        ({"mlp_dim": 62}, MeshConfig(tensor=4), "mlp of 62 .* mesh.tensor=4"),
        ({"embed_dim": 48, "num_heads": 6}, MeshConfig(tensor=4), "kv_heads of 2 .* mesh.tensor=4"),
    ],
)
def test_a_size_that_does_not_divide_is_named(changes, mesh, message):
    config = dataclasses.replace(CONFIG, **changes)
    if message is None:
        sharding_rules(config, make_mesh(mesh))
    else:
        with pytest.raises(ValueError, match=message):
            sharding_rules(config, make_mesh(mesh))


def test_a_batch_must_divide_over_micro_batches_and_devices():
    mesh = make_mesh(MeshConfig(replica=2, fsdp=2, tensor=2))
    assert batch_ways(mesh) == 4
    check_batch(16, 2, mesh)
    with pytest.raises(ValueError, match=r"batch_size=12 .*micro_batches=2 times the 4 ways"):
        check_batch(12, 2, mesh)


@pytest.mark.parametrize(
    ("config", "mesh_config"),
    [(CONFIG, MeshConfig(tensor=2)), (MULTI_QUERY, MeshConfig(fsdp=2, sequence=2, tensor=2))],
)
def test_the_shape_of_a_state_carries_its_shardings(config, mesh_config):
    mesh = make_mesh(mesh_config)
    with jax.set_mesh(mesh):
        rules = sharding_rules(config, mesh)

        def fresh():
            return initial_state(config, optimizer(), 0, rules)

        shape, state = jax.eval_shape(fresh), jit(fresh)()
    specs = specs_of(shape.params)
    matrices = {name for name in specs if not name.endswith(("bias", "scale"))}
    assert {"embedding", "untied_head", "position_embedding", "layers.query.kernel"} < matrices
    for name in specs:  # FSDP splits every matrix; tensor parallelism what it can.
        assert ("fsdp" in specs[name]) == (name in matrices), name
        if name in matrices:
            whole = {"position_embedding"}
            if config is MULTI_QUERY:
                whole |= {"layers.key.kernel", "layers.value.kernel"}
            assert ("tensor" in specs[name]) == (name not in whole), name
    # Adam's moments lie as the parameters do, and the state lies as its shape says.
    adam = shape.optimizer_state[1][0]
    assert specs_of(adam.mu) == specs_of(adam.nu) == specs
    for planned, actual in zip(jax.tree.leaves(shape), jax.tree.leaves(state), strict=True):
        assert (planned.shape, planned.dtype) == (actual.shape, actual.dtype)
        if planned.ndim:
            planned_spec, spec = planned.sharding.spec, actual.sharding.spec
            assert without_trailing_none(planned_spec) == without_trailing_none(spec)


def test_initial_parameters_do_not_depend_on_the_mesh():
    def params(mesh_config, devices):
        mesh = make_mesh(mesh_config, devices)
        with jax.set_mesh(mesh):
            rules = sharding_rules(CONFIG, mesh)
            return jit(lambda: initial_state(CONFIG, optimizer(), 5, rules).params)()

    one = params(MeshConfig(), jax.devices()[:1])
    split = params(MeshConfig(fsdp=2, sequence=2, tensor=2), None)
    assert len(jax.tree.leaves(one)) > 20
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(split), strict=True):
        np.testing.assert_array_equal(a, b)
