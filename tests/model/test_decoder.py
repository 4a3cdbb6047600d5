import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from starcoder_jax.model.config import DecoderConfig
from starcoder_jax.model.decoder import Decoder

CONFIG = DecoderConfig(
    vocab_size=96,
    num_layers=2,
    embed_dim=32,
    num_heads=4,
    num_kv_heads=2,
    mlp_dim=64,
    max_length=48,
    dtype="float32",
)
POSITIONS = ("learned", "rope", "alibi")


def make_model(seed=0, **changes):
    """A decoder all of whose parameters are random, so that biases and norms matter too."""
    model = Decoder(dataclasses.replace(CONFIG, **changes), rngs=nnx.Rngs(seed))
    rng = np.random.default_rng(seed)

    def shake(leaf):
        return leaf + jnp.array(0.1 * rng.normal(size=leaf.shape), leaf.dtype)

    nnx.update(model, jax.tree.map(shake, nnx.state(model)))
    return model


def make_tokens(*shape, seed=0):
    return jnp.array(np.random.default_rng(seed).integers(0, CONFIG.vocab_size, shape), jnp.int32)


# Little is computed here and much compiled: half of that time is LLVM's optimization.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@jit
def logits_of(model, tokens, **kwargs):
    return model(tokens, **kwargs)


@jit
def hidden_of(model, tokens, **kwargs):
    return model.hidden_states(tokens, **kwargs)


def changed_positions(model, tokens, position, **kwargs):
    """Which positions have other logits, in any bit, once the token at one is another."""
    other = tokens.at[:, position].set((tokens[:, position] + 1) % CONFIG.vocab_size)
    before, after = logits_of(model, tokens, **kwargs), logits_of(model, other, **kwargs)
    return np.flatnonzero(np.any(np.asarray(before != after), axis=(0, 2))).tolist()


@pytest.mark.parametrize("positions", POSITIONS)
def test_a_token_changes_no_logit_before_it(positions):
    changed = changed_positions(make_model(positions=positions), make_tokens(2, 40), 17)
    assert changed == list(range(17, 40))


@pytest.mark.parametrize("num_layers", [1, 2])
def test_the_window_reaches_one_window_further_with_each_layer(num_layers):
    model = make_model(sliding_window=5, num_layers=num_layers)
    changed = changed_positions(model, make_tokens(2, 40), 17)
    assert changed == list(range(17, 17 + 4 * num_layers + 1))


def test_a_token_changes_nothing_in_another_segment():
    segment_ids = jnp.array([[0] * 10 + [1] * 15 + [2] * 15] * 2)
    changed = changed_positions(make_model(), make_tokens(2, 40), 12, segment_ids=segment_ids)
    assert changed == list(range(12, 25))


@pytest.mark.parametrize("positions", ["rope", "alibi"])
def test_packed_documents_have_the_logits_of_each_alone(positions):
    """Relative positions: it does not matter where in the window a document starts."""
    model = make_model(positions=positions)
    tokens = make_tokens(2, 40)
    segment_ids = jnp.array([[0] * 15 + [1] * 25] * 2)
    packed = logits_of(model, tokens, segment_ids=segment_ids)
    np.testing.assert_allclose(packed[:, :15], logits_of(model, tokens[:, :15]), atol=2e-5)
    np.testing.assert_allclose(packed[:, 15:], logits_of(model, tokens[:, 15:]), atol=2e-5)
    mixed = logits_of(model, tokens)
    assert np.abs(mixed[:, 15:] - packed[:, 15:]).max() > 0.05


@pytest.mark.parametrize("positions", POSITIONS)
def test_both_backends_agree(positions):
    """Over several blocks of queries, with everything that a mask can say."""
    tokens = make_tokens(2, 256)
    segment_ids = jnp.array([[0] * 100 + [1] * 156, [0] * 256])
    kwargs = {"positions": positions, "sliding_window": 60, "max_length": 256}
    reference = make_model(attention_backend="reference", **kwargs)
    blocked = make_model(attention_backend="xla", **kwargs)
    np.testing.assert_allclose(
        logits_of(blocked, tokens, segment_ids=segment_ids),
        logits_of(reference, tokens, segment_ids=segment_ids),
        atol=2e-5,
    )


def test_the_order_of_tokens_matters_with_every_kind_of_position():
    for positions in POSITIONS:
        model = make_model(positions=positions, num_layers=1)
        tokens = make_tokens(1, 8)
        swapped = tokens.at[0, :2].set(tokens[0, 1::-1])
        difference = jnp.abs(logits_of(model, tokens) - logits_of(model, swapped))[0, -1]
        assert difference.max() > 1e-3, positions


def test_learned_positions_end_at_max_length():
    model = make_model(positions="learned")
    assert logits_of(model, make_tokens(1, 48)).shape == (1, 48, 96)
    with pytest.raises(ValueError, match="49 tokens, but the model has 48 learned positions"):
        logits_of(model, make_tokens(1, 49))
    assert make_model(positions="rope").position_embedding is None
    assert logits_of(make_model(positions="rope"), make_tokens(1, 49)).shape == (1, 49, 96)


def test_logits_are_hidden_states_times_the_head():
    tokens = make_tokens(2, 10)
    tied, untied = make_model(), make_model(tied_head=False)
    assert tied.untied_head is None
    assert untied.untied_head.shape == untied.embedding.shape == (96, 32)
    assert np.abs(untied.untied_head[...] - untied.embedding[...]).max() > 0.1
    for model, head in ((tied, tied.embedding), (untied, untied.untied_head)):
        np.testing.assert_array_equal(model.head, head[...])
        expected = hidden_of(model, tokens) @ head[...].T
        np.testing.assert_allclose(logits_of(model, tokens), expected, atol=1e-5)


def test_embedding_norm_makes_the_scale_of_the_embedding_irrelevant():
    tokens = make_tokens(2, 10)
    for embedding_norm in (True, False):
        model = make_model(embedding_norm=embedding_norm, positions="alibi")
        before = hidden_of(model, tokens)
        model.embedding[...] = 7 * model.embedding[...]
        difference = np.abs(hidden_of(model, tokens) - before).max()
        assert (difference < 1e-3) == embedding_norm
    assert model.embedding_norm is None


@pytest.mark.parametrize("positions", POSITIONS)
def test_shared_key_heads_are_repeated_key_heads(positions):
    """Query heads k * groups, k * groups + 1, ... read key head k, each with its own slope."""
    shared = make_model(positions=positions)
    repeated = make_model(positions=positions, num_kv_heads=4)
    state = nnx.to_pure_dict(nnx.state(shared))
    layers = state["layers"]
    for name in ("key", "value"):
        layers[name] = {
            "kernel": jnp.repeat(layers[name]["kernel"], 2, axis=2),
            "bias": jnp.repeat(layers[name]["bias"], 2, axis=1),
        }
    for name, part in (("query", "kernel"), ("query", "bias"), ("attention_output", "kernel")):
        shape = getattr(getattr(repeated.layers, name), part).shape
        layers[name][part] = layers[name][part].reshape(shape)
    nnx.update(repeated, state)
    tokens = make_tokens(2, 20)
    np.testing.assert_allclose(logits_of(repeated, tokens), logits_of(shared, tokens), atol=2e-5)


DROPOUTS = ("embedding_dropout", "attention_dropout", "residual_dropout")


@pytest.mark.parametrize("name", DROPOUTS)
def test_dropout_needs_a_key_and_follows_it(name):
    tokens = make_tokens(2, 20)
    dropping, plain = make_model(**{name: 0.3}), make_model()
    without = hidden_of(dropping, tokens)
    np.testing.assert_array_equal(without, hidden_of(plain, tokens))
    first = hidden_of(dropping, tokens, dropout_key=jax.random.key(1))
    again = hidden_of(dropping, tokens, dropout_key=jax.random.key(1))
    other = hidden_of(dropping, tokens, dropout_key=jax.random.key(2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - without).max() > 0.1
    assert np.abs(first - other).max() > 0.1


# Each makes two additions of ones to the residual stream, which starts at zero.
@pytest.mark.parametrize(
    ("num_layers", "writers"),
    [(2, ["mlp_output"]), (2, ["attention_output"]), (1, ["attention_output", "mlp_output"])],
)
def test_each_residual_dropout_draws_for_itself(num_layers, writers):
    """Of two independent draws at rate 1/2 a quarter keeps both, a quarter none, half one."""
    model = Decoder(
        dataclasses.replace(CONFIG, num_layers=num_layers, residual_dropout=0.5), rngs=nnx.Rngs(0)
    )
    model.embedding[...] = jnp.zeros_like(model.embedding[...])
    for name in ("attention_output", "mlp_output"):
        linear = getattr(model.layers, name)
        linear.kernel[...] = jnp.zeros_like(linear.kernel[...])
        linear.bias[...] = jnp.full_like(linear.bias[...], float(name in writers))
    hidden = hidden_of(model, make_tokens(4, 40), dropout_key=jax.random.key(0))
    rows = np.asarray(hidden).reshape(-1, CONFIG.embed_dim)
    shares = np.zeros(3)
    for row in rows:  # The final norm keeps the order of the sums 0, 2 and 4.
        values, counts = np.unique(row.round(3), return_counts=True)
        assert len(values) == 3
        shares += counts / rows.size
    np.testing.assert_allclose(shares, [0.25, 0.5, 0.25], atol=0.03)


def test_initial_parameters_follow_the_rule_of_the_family():
    config = dataclasses.replace(
        CONFIG, embed_dim=64, num_layers=3, mlp_dim=256, vocab_size=512, max_length=256,
        positions="learned", tied_head=False, embedding_norm=True,
    )  # fmt: skip
    params = nnx.to_pure_dict(nnx.state(Decoder(config, rngs=nnx.Rngs(0))))
    std, residual_std = 64**-0.5, (64 * 6) ** -0.5
    checked = 0
    for path, value in jax.tree_util.tree_leaves_with_path(params):
        names = [part.key for part in path]
        value = np.asarray(value)
        assert value.dtype == np.float32
        checked += 1
        if names[-1] == "scale":
            np.testing.assert_array_equal(value, 1)
        elif names[-1] == "bias":
            np.testing.assert_array_equal(value, 0)
        else:
            writes_residual = names[-2:-1] in (["attention_output"], ["mlp_output"])
            assert value.std() == pytest.approx(residual_std if writes_residual else std, rel=0.03)
            assert abs(value.mean()) < 0.1 * std
            if names[0] == "layers":
                assert not np.array_equal(value[0], value[1])
    # Tables, both outer norms, and per layer two norms and six projections.
    assert checked == 3 + 2 * 2 + 2 * 2 + 6 * 2


def test_a_seed_gives_its_parameters():
    def flat(seed):
        return np.asarray(Decoder(CONFIG, rngs=nnx.Rngs(seed)).embedding[...])

    np.testing.assert_array_equal(flat(3), flat(3))
    assert not np.array_equal(flat(3), flat(4))


@functools.cache
def loss_and_gradients(rematerialization):
    model = make_model(
        rematerialization=rematerialization, attention_dropout=0.2, residual_dropout=0.2
    )
    graph, state = nnx.split(model)
    tokens = make_tokens(2, 24)

    @jit
    @jax.value_and_grad
    def loss(state):
        logits = nnx.merge(graph, state)(tokens, dropout_key=jax.random.key(0))
        return jnp.mean(jnp.square(logits))

    return loss(state)


@pytest.mark.parametrize("rematerialization", ["full", "dots"])
def test_rematerialization_changes_no_value(rematerialization):
    expected_loss, expected = loss_and_gradients("none")
    loss, gradients = loss_and_gradients(rematerialization)
    assert loss == pytest.approx(float(expected_loss), rel=1e-6)
    assert len(jax.tree.leaves(gradients)) == 19
    for a, e in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected), strict=True):
        assert np.abs(e).max() > 0
        np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-6 * float(np.abs(e).max()))


def test_rematerialization_saves_what_its_name_says():
    """The residuals of the backward pass: everything, products with weights, layer inputs."""

    def saved(rematerialization):
        model = make_model(rematerialization=rematerialization)
        graph, state = nnx.split(model)

        def pull(state):
            return jax.vjp(lambda state: nnx.merge(graph, state)(make_tokens(2, 40)), state)[1]

        return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(pull, state)))

    assert saved("full") < saved("dots") < saved("none")


def test_bfloat16_stays_near_float32():
    tokens = make_tokens(2, 40)
    rounded, exact = make_model(dtype="bfloat16"), make_model()
    assert hidden_of(rounded, tokens).dtype == jnp.bfloat16
    logits = logits_of(rounded, tokens)
    assert logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(rounded))} == {jnp.dtype("float32")}
    expected = logits_of(exact, tokens)
    assert 0 < np.abs(logits - expected).max() < 0.03 * np.abs(expected).max()
