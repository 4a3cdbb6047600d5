import threading
import time

import pytest

from starcoder_jax.hf.ahead import ahead


def test_results_come_in_order_with_their_items():
    assert list(ahead(lambda x: x * x, range(5))) == [(x, x * x) for x in range(5)]
    assert list(ahead(lambda x: x, [])) == []


def test_the_next_is_made_while_this_one_is_used_and_no_more():
    begun = []

    def work(item):
        begun.append(item)
        return item

    for item, _ in ahead(work, range(6)):
        deadline = time.monotonic() + 10
        while len(begun) < min(item + 2, 6) and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.01)
        assert begun == list(range(min(item + 2, 6)))


def test_an_error_comes_in_its_turn_and_no_thread_stays():
    def work(item):
        if item == 2:
            raise ValueError("two")
        return item

    before = threading.active_count()
    seen = []
    with pytest.raises(ValueError, match="two"):
        for item, _ in ahead(work, range(5)):
            seen.append(item)
    assert seen == [0, 1]
    stopped = ahead(work, [0, 1])
    next(stopped)
    stopped.close()
    assert threading.active_count() == before
