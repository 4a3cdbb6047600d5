from starcoder_jax.stack.chance import fraction, integer, order


def test_fractions_are_uniform():
    drawn = [fraction("owner/name", str(n), "what", seed=1) for n in range(2000)]
    assert all(0 <= value < 1 for value in drawn)
    for low in (0, 0.25, 0.5, 0.75):
        assert 420 < sum(low <= value < low + 0.25 for value in drawn) < 580


def test_integers_are_uniform():
    drawn = [integer(str(n), low=3, high=8, seed=1) for n in range(2000)]
    assert {value: 330 < drawn.count(value) < 470 for value in drawn} == dict.fromkeys(
        range(3, 8), True
    )


def test_they_depend_on_names_and_seed_alone():
    assert fraction("a", "b", seed=1) == fraction("a", "b", seed=1)
    keys = [order("a", "b", seed=1), order("ab", seed=1), order("a", "b", seed=2), order(seed=1)]
    assert len(set(keys)) == 4
    assert order("\ud800", seed=0) == order("?", seed=0)
