"""The kernels: splash emulated on the CPU, both of them lowered and compiled for their devices."""

import dataclasses
import functools
import itertools
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from starcoder_jax.model import splash
from starcoder_jax.model.attention import attention_saveable, reference_attention
from starcoder_jax.model.config import DecoderConfig
from starcoder_jax.model.cudnn import cudnn_attention
from starcoder_jax.model.decoder import Decoder
from starcoder_jax.model.mask import AttentionMask
from starcoder_jax.model.splash import splash_attention
from starcoder_jax.parallel.mesh import AXES, MeshConfig, make_mesh
from starcoder_jax.parallel.sharding import sharding_rules

# Key/value heads, and query heads that share each.
HEADS = {"multi-head": (4, 1), "grouped": (2, 2), "multi-query": (1, 4)}
LENGTH = 384
BLOCK = 128  # the smallest that the kernel takes
WINDOW = 100  # of three blocks of queries, the last does not see the first block of keys
CONFIG = DecoderConfig(
    vocab_size=96,
    num_layers=2,
    embed_dim=32,
    num_heads=4,
    num_kv_heads=2,
    mlp_dim=64,
    max_length=LENGTH,
    sliding_window=WINDOW,
)
emulated_splash = functools.partial(splash_attention, interpret=True)


def make_inputs(length, kv_heads, groups, dtype=jnp.float32):
    """Query, key, value and a gradient of the output, for two sequences."""
    rng = np.random.default_rng(0)

    def draw(*heads):
        return jnp.array(rng.normal(size=(2, length, *heads, 8)), dtype)

    return draw(kv_heads, groups), draw(kv_heads), draw(kv_heads), draw(kv_heads, groups)


def make_segments(length):
    """Two packed sequences: three documents, and one."""
    position = np.arange(length)
    return jnp.array([(position > length // 5) * 1 + (position > length // 2), 0 * position])


@functools.partial(jax.jit, static_argnums=0)
def output_and_gradients(attend, query, key, value, gradient, mask):
    output, pull = jax.vjp(lambda *qkv: attend(*qkv, mask), query, key, value)
    return output, *pull(gradient)


def assert_close(actual, expected, tolerance=2e-6):
    """Every array to `tolerance` of its largest value."""
    for name, a, e in zip(("output", "query", "key", "value"), actual, expected, strict=True):
        a, e = np.asarray(a, np.float32), np.asarray(e, np.float32)
        assert np.abs(e).max() > 0.1, name
        error = np.abs(a - e).max() / np.abs(e).max()
        assert error < tolerance, f"{name}: {error}"


@pytest.fixture
def small_blocks(monkeypatch):
    """Several blocks of queries and keys in a short sequence."""
    monkeypatch.setattr(splash, "_MAX_QUERY_BLOCK", BLOCK)
    monkeypatch.setattr(splash, "_MAX_KEY_BLOCK", BLOCK)


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize(
    ("window", "segmented"), list(itertools.product([None, WINDOW], [False, True]))
)
def test_splash_is_the_reference(heads, window, segmented, small_blocks):
    inputs = make_inputs(LENGTH, *HEADS[heads])
    mask = AttentionMask(window, make_segments(LENGTH) if segmented else None)
    expected = output_and_gradients(reference_attention, *inputs, mask)
    assert_close(output_and_gradients(emulated_splash, *inputs, mask), expected)


def test_splash_sees_exactly_its_window(small_blocks):
    """A window of one key gives that key's value; one longer than the sequence hides nothing."""
    query, key, value, _ = make_inputs(LENGTH, 2, 2)
    attend = jax.jit(emulated_splash)
    alone = attend(query, key, value, AttentionMask(1))
    np.testing.assert_allclose(alone, jnp.broadcast_to(value[:, :, :, None], query.shape), 1e-6)
    everything = attend(query, key, value, AttentionMask(LENGTH + 1))
    np.testing.assert_array_equal(everything, attend(query, key, value, AttentionMask()))


def test_splash_in_bfloat16_stays_near_float32():
    inputs = make_inputs(256, 2, 2, jnp.bfloat16)
    mask = AttentionMask(WINDOW)
    exact = [x.astype(jnp.float32) for x in inputs]
    actual = output_and_gradients(emulated_splash, *inputs, mask)
    assert {x.dtype for x in actual} == {jnp.dtype(jnp.bfloat16)}
    assert_close(actual, output_and_gradients(reference_attention, *exact, mask), tolerance=0.02)


@pytest.mark.parametrize(
    ("length", "blocks"),
    [(16384, (1024, 512)), (4096, (1024, 512)), (1536, (768, 512)), (1152, (384, 384))],
)
def test_blocks_divide_the_length(length, blocks):
    largest = (splash._MAX_QUERY_BLOCK, splash._MAX_KEY_BLOCK)
    assert tuple(splash._block(length, block) for block in largest) == blocks


# Sharded over all of batch, length and heads; with few key heads, tensor splits query groups.
SPLIT_HEADS = {"grouped": ("tensor", None), "multi-query": (None, "tensor")}


def shard(inputs, segments, heads, length_axis):
    """Inputs and segments on the mesh as a decoder places them."""
    key_axis, group_axis = SPLIT_HEADS[heads]
    rows = ("replica", "fsdp")
    query_spec = jax.P(rows, length_axis, key_axis, group_axis, None)
    key_spec = jax.P(rows, None, key_axis, None)
    specs = (query_spec, key_spec, key_spec, query_spec)
    inputs = [jax.device_put(x, spec) for x, spec in zip(inputs, specs, strict=True)]
    return inputs, jax.device_put(segments, jax.P(rows, length_axis)), (query_spec, *specs[:3])


@pytest.mark.parametrize(
    ("heads", "window", "segmented"), [("grouped", WINDOW, True), ("multi-query", None, False)]
)
def test_splash_on_a_mesh_is_the_reference(heads, window, segmented, small_blocks):
    length = 4 * BLOCK  # two blocks of queries on each of the devices that split the length
    inputs, segments = make_inputs(length, *HEADS[heads]), make_segments(length)
    mask = AttentionMask(window, segments if segmented else None)
    expected = output_and_gradients(reference_attention, *inputs, mask)
    with jax.set_mesh(make_mesh(MeshConfig(fsdp=2, sequence=2, tensor=2))):
        inputs, segments, specs = shard(inputs, segments, heads, "sequence")
        mask = AttentionMask(window, segments if segmented else None)
        # As a rematerialized layer runs it, from what it saved on each device.
        attend = jax.checkpoint(emulated_splash, policy=attention_saveable)
        actual = output_and_gradients(attend, *inputs, mask)
    assert tuple(x.sharding.spec for x in actual) == specs
    assert_close(actual, expected)


def cudnn_by_xla(monkeypatch):
    """JAX's own attention, given what the cuDNN backend gives it, computed without cuDNN."""
    original = jax.nn.dot_product_attention

    def attend(*args, implementation, **kwargs):
        assert implementation == "cudnn"
        return original(*args, implementation="xla", **kwargs)

    monkeypatch.setattr(jax.nn, "dot_product_attention", attend)


@pytest.mark.parametrize("window", [None, 1, WINDOW])
@pytest.mark.parametrize(
    ("heads", "split"), [(h, False) for h in HEADS] + [(h, True) for h in SPLIT_HEADS]
)
def test_cudnn_is_asked_for_what_the_reference_does(heads, split, window, monkeypatch):
    cudnn_by_xla(monkeypatch)
    inputs, mask = make_inputs(256, *HEADS[heads], jnp.bfloat16), AttentionMask(window)
    exact = [x.astype(jnp.float32) for x in inputs]
    expected = jax.jit(reference_attention)(*exact[:3], mask)
    if split:
        with jax.set_mesh(make_mesh(MeshConfig(fsdp=2, tensor=2), jax.devices()[:4])):
            inputs, _, specs = shard(inputs, make_segments(256), heads, None)
            actual = jax.jit(cudnn_attention)(*inputs[:3], mask)
        assert actual.sharding.spec == specs[0]
    else:
        actual = jax.jit(cudnn_attention)(*inputs[:3], mask)
    assert actual.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        np.asarray(actual, np.float32), expected, atol=0.02 * float(jnp.abs(expected).max())
    )


def decoder_gradients(config, mesh=None, *, segmented=False):
    """The loss and gradients of a decoder as a function, and the shapes to trace it with."""
    spec = {} if mesh is None else {"spec": sharding_rules(config, mesh)}
    model = jax.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0), **spec))
    graph, params = nnx.split(model)

    def loss(params, tokens, segments, key):
        model = nnx.merge(graph, params)
        return jnp.mean(model(tokens, segment_ids=segments, dropout_key=key) ** 2)

    tokens = jax.ShapeDtypeStruct((4, config.max_length), jnp.int32)
    if mesh is not None:

        def placed(x, axes):
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=jax.NamedSharding(mesh, axes))

        params = jax.tree.map(lambda x: placed(x, x.sharding.spec), params)
        tokens = placed(tokens, spec["spec"]("batch", "length"))
    key = jax.eval_shape(lambda: jax.random.key(0)) if config.attention_dropout else None
    arguments = (params, tokens, tokens if segmented else None, key)
    return jax.jit(jax.value_and_grad(loss)), arguments


def lowered(config, platform):
    """The program of a decoder's gradients for a platform that need not be here."""
    function, arguments = decoder_gradients(config)
    return function.trace(*arguments).lower(lowering_platforms=(platform,)).as_text()


# A layer of the forward pass and one of the backward pass stand in the program, each in a loop.
FORWARD_KERNELS = [("none", 1), ("dots", 1), ("full", 2)]


@pytest.mark.parametrize(("rematerialization", "count"), FORWARD_KERNELS)
def test_splash_lowers_for_tpus_and_is_not_run_again_under_dots(rematerialization, count):
    config = dataclasses.replace(
        CONFIG, attention_backend="splash", rematerialization=rematerialization
    )
    kernels = re.findall(r'kernel_name = "splash_mqa_(\w+?)_', lowered(config, "tpu"))
    assert sorted(kernels) == ["dkv", "dq"] + ["fwd"] * count


@pytest.fixture
def tpus(libtpu):
    """The four devices of a v5e:2x2, to compile for."""
    from jax.experimental import topologies

    # What is compiled for absent devices would be cached, but cannot be read back.
    threshold = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, threshold)
    jax.config.update(threshold, 3600)
    yield topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices
    jax.config.update(threshold, before)


def test_a_decoder_with_splash_compiles_for_tpus(tpus):
    # Each device has a head of the usual size, and as few queries as the kernel takes.
    config = dataclasses.replace(
        CONFIG,
        embed_dim=256,
        num_heads=2,
        max_length=256,
        attention_backend="splash",
        rematerialization="dots",
    )
    mesh = make_mesh(MeshConfig(sequence=2, tensor=2), tpus)
    with jax.set_mesh(mesh):
        function, arguments = decoder_gradients(config, mesh, segmented=True)
        compiled = function.lower(*arguments).compile()
    calls = [line for line in compiled.as_text().splitlines() if '"tpu_custom_call"' in line]
    kernels = sorted(re.search(r"splash_mqa_([a-z]+)_segmented", line).group(1) for line in calls)
    assert kernels == ["dkv", "dq", "fwd"]


def test_splash_is_never_emulated_unasked():
    function, arguments = decoder_gradients(dataclasses.replace(CONFIG, attention_backend="splash"))
    with pytest.raises(ValueError, match="Only interpret mode is supported on CPU"):
        function.lower(*arguments)


@pytest.fixture
def cudnn_version(monkeypatch):
    """Lets JAX trace a call of cuDNN where there is none: it asks for the version."""
    versions = types.SimpleNamespace(cudnn_get_version=lambda: 91000)
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.cuda_versions", versions)


@pytest.mark.parametrize(("rematerialization", "count"), FORWARD_KERNELS)
def test_cudnn_lowers_for_gpus_and_is_not_run_again_under_dots(
    rematerialization, count, cudnn_version
):
    config = dataclasses.replace(
        CONFIG, attention_backend="cudnn", rematerialization=rematerialization
    )
    text = lowered(config, "cuda")
    calls = re.findall(r"@__cudnn\$(\w+)", text)
    assert sorted(calls) == ["fmhaSoftmax"] * count + ["fmhaSoftmaxBackward"]
    assert set(re.findall(r"sliding_window_length\\22: (\d+)", text)) == {str(WINDOW)}
    assert set(re.findall(r"mask_type\\22: \\22(\w+)", text)) == {"CAUSAL"}


def test_cudnn_runs_on_the_share_of_each_device(cudnn_version):
    inputs = make_inputs(256, 2, 2, jnp.bfloat16)
    with jax.set_mesh(make_mesh(MeshConfig(fsdp=2, tensor=2), jax.devices()[:4])):
        inputs, _, _ = shard(inputs, make_segments(256), "grouped", None)
        traced = output_and_gradients.trace(cudnn_attention, *inputs, AttentionMask(WINDOW))
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    # One of two sequences, two of four heads, all queries and keys.
    shapes = re.findall(r"dimensions\\22: \[([^\]]*)\]", text)
    scores = {tuple(map(int, re.findall(r"\\22(\d+)\\22", shape))) for shape in shapes}
    assert (1, 2, 256, 256) in scores


def devices_of(platform, **sizes):
    """A mesh of devices that are not here."""
    device = jax.sharding.AbstractDevice(device_kind="any", num_cores=1, platform=platform)
    return jax.sharding.AbstractMesh(
        tuple(sizes.get(axis, 1) for axis in AXES),
        AXES,
        axis_types=(jax.sharding.AxisType.Explicit,) * len(AXES),
        abstract_device=device,
    )


@pytest.mark.parametrize(
    ("backend", "changes", "mesh", "segmented", "message"),
    [
        ("splash", {"positions": "alibi"}, None, False, 'no ALiBi .*"alibi".*"xla"'),
        ("splash", {"attention_dropout": 0.1}, None, False, "model.attention_dropout to 0"),
        ("splash", {"max_length": 200}, None, False, "128 tokens .* not 200: .*sequence_length"),
        ("splash", {}, devices_of("tpu", sequence=2), False, "not 192: .* mesh.sequence"),
        ("splash", {"embed_dim": 2048}, None, False, "up to 256, not 512: raise model.num_heads"),
        ("splash", {"dtype": "float16"}, None, False, 'no float16: set model.dtype to "bfloat16"'),
        ("splash", {}, devices_of("gpu", fsdp=2), False, 'needs a tpu, not a gpu: .*"xla"'),
        ("cudnn", {"positions": "alibi"}, None, False, 'no ALiBi .*"alibi".*"xla"'),
        ("cudnn", {"attention_dropout": 0.1}, None, False, "model.attention_dropout to 0"),
        ("cudnn", {}, None, True, 'documents .*segment ids.* "xla"'),
        ("cudnn", {}, devices_of("gpu", sequence=2), False, "set mesh.sequence to 1"),
        ("cudnn", {"embed_dim": 1024}, None, False, "up to 128 .*not 256: change model.num_heads"),
        ("cudnn", {"embed_dim": 48}, None, False, "steps of 8, not 12: change model.num_heads"),
        ("cudnn", {"dtype": "float32"}, None, False, 'no float32: set model.dtype to "bfloat16"'),
        ("cudnn", {}, devices_of("cpu", fsdp=2), False, 'needs a gpu, not a cpu: .*"xla"'),
    ],
)
def test_what_a_kernel_cannot_do_is_refused_in_one_line(backend, changes, mesh, segmented, message):
    config = dataclasses.replace(CONFIG, attention_backend=backend, **changes)
    with (
        jax.sharding.use_abstract_mesh(mesh or jax.sharding.get_abstract_mesh()),
        pytest.raises(ValueError, match=f'attention_backend="{backend}" .*{message}') as error,
    ):
        function, arguments = decoder_gradients(config, mesh, segmented=segmented)
        function.trace(*arguments)
    assert "\n" not in str(error.value)
