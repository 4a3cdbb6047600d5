"""Several processes as threads of one; what happens to real ones is tested beside `distributed`."""

import concurrent.futures
import json
import queue
import socket
import time

import micro
import pytest

from starcoder_jax.parallel import rendezvous
from starcoder_jax.parallel.rendezvous import meet

HOST = socket.gethostname()


class Group:
    """Threads that meet, and what they were told at the end."""

    def __init__(self):
        self.port = micro.free_port()
        self.endings = queue.SimpleQueue()  # of (process, message, status)
        self._pool = concurrent.futures.ThreadPoolExecutor(16)

    def meet(self, process, count, limit=20.0, **options):
        def end(message, status):
            self.endings.put((process, message, status))

        address = "127.0.0.1", self.port
        return self.do(meet, address, address, process, count, limit=limit, end=end, **options)

    def do(self, function, *arguments, **options):
        return self._pool.submit(function, *arguments, **options)

    def all(self, count):
        futures = [self.meet(process, count) for process in range(count)]
        return [future.result(20) for future in futures]

    def stranger(self, *lines, answers=0):
        """Connects, says something and reads so many answers."""
        deadline = time.monotonic() + 10
        while True:
            try:
                connection = socket.create_connection(("127.0.0.1", self.port))
                break
            except ConnectionRefusedError:
                assert time.monotonic() < deadline
                time.sleep(0.02)
        connection.sendall(b"".join(lines))
        file = connection.makefile("rb")
        return connection, [json.loads(file.readline()) for _ in range(answers)]


def hello(process, count, host="elsewhere"):
    return json.dumps({"process": process, "of": count, "host": host}).encode() + b"\n"


@pytest.fixture
def group():
    return Group()


@pytest.mark.parametrize("count", [2, 5])
def test_all_meet_share_and_finish(group, count):
    links = group.all(count)
    for value in ({"a": [1, None]}, 0, "x"):
        shared = [group.do(link.first, lambda value=value: value) for link in links]
        assert [future.result(10) for future in shared] == [value] * count
    early = [group.do(link.finish) for link in links[1:]]
    time.sleep(0.2)
    assert not any(future.done() for future in early)
    links[0].finish()
    for future in early:
        future.result(10)
    assert group.endings.empty()


def test_only_process_0_works_for_all(group):
    links = group.all(2)

    def forbidden():
        raise AssertionError

    waiting = group.do(links[1].first, forbidden)
    assert links[0].first(lambda: 7) == 7
    assert waiting.result(10) == 7


def test_the_port_is_free_for_jax_once_all_have_come(group):
    links = group.all(2)
    with socket.create_server(("127.0.0.1", group.port)):
        assert links[0].first(lambda: 1) == links[1].first(lambda: 1)


def test_process_0_may_come_last(group):
    others = [group.meet(process, 3) for process in (1, 2)]
    time.sleep(0.8)
    group.meet(0, 3).result(10)
    for future in others:
        future.result(10)


def test_those_that_are_missing_are_named_to_all_that_came(group):
    hosts = ("h0", "h1", "h2")  # those of the others are not known
    futures = [group.meet(process, 5, limit=1.5, hosts=hosts) for process in (0, 3)]
    messages = []
    for future in futures:
        with pytest.raises(TimeoutError) as raised:
            future.result(20)
        messages.append(str(raised.value))
    assert messages[0] == messages[1]
    assert messages[0] == (
        "3 of 5 processes did not come within 1.5 s: 1 (h1), 2 (h2), 4; those that came: "
        f"0 ({HOST}), 3 ({HOST}); start the same command on all hosts"
    )


def test_a_long_list_of_missing_processes_is_cut(group):
    with pytest.raises(TimeoutError, match=r": 1, 2, .*, 15, 16, 83 more; those that came: 0 \("):
        group.meet(0, 100, limit=0.3).result(10)


def test_process_0_is_missing(group):
    with pytest.raises(TimeoutError) as raised:
        group.meet(2, 3, limit=0.5).result(20)
    message = str(raised.value)
    assert f"process 0 did not answer at 127.0.0.1:{group.port} within 0.5 s" in message
    assert f"this is process 2 of 3 on {HOST}" in message


def test_another_program_at_the_port_is_not_taken_for_process_0(group):
    with socket.create_server(("127.0.0.1", group.port)) as server:
        future = group.meet(1, 2, limit=0)
        server.accept()[0].sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        with pytest.raises(TimeoutError, match="something else answers there"):
            future.result(20)


def test_a_port_that_is_taken_is_named(group):
    with (
        socket.create_server(("127.0.0.1", group.port)),
        pytest.raises(OSError, match=f"cannot listen on port {group.port}"),
    ):
        group.meet(0, 2).result(10)


def test_processes_that_disagree_on_their_number(group):
    first = group.meet(0, 2, limit=2)
    with pytest.raises(
        ValueError, match=r"process 1 \(.*\) was told of 3 processes, process 0 of 2"
    ):
        group.meet(1, 3, limit=2).result(10)
    with pytest.raises(TimeoutError, match=r"come within 2 s: 1; .*was told of 3 processes"):
        first.result(10)


def test_two_processes_of_one_number(group):
    first = group.meet(0, 3)
    connection, _ = group.stranger(hello(1, 3, "host-a"))
    time.sleep(0.2)
    with pytest.raises(ValueError, match=f"host-a and {HOST} both run process 1"):
        group.meet(1, 3).result(10)
    second = group.meet(2, 3)
    first.result(10), second.result(10)
    connection.close()


def test_a_number_out_of_range(group):
    group.meet(0, 2, limit=1)
    for number in (2, -1, "1"):
        _, (answer,) = group.stranger(hello(number, 2), answers=1)
        assert "not below the number of processes" in answer["refused"]


def test_strangers_do_not_matter(group):
    first = group.meet(0, 2)
    noise = (b"GET / HTTP/1.1\r\n\r\n", b"\x00\xff\n", b"[1]\n", b"{}\n", b'{"value": 1}\n', b"")
    connections = [group.stranger(line)[0] for line in noise]
    time.sleep(0.2)
    assert not first.done()
    second = group.meet(1, 2)
    first.result(10), second.result(10)
    assert len(connections) == len(noise)


def test_a_process_that_goes_before_all_have_come_may_come_again(group):
    first = group.meet(0, 3)
    for _ in range(2):
        connection, _ = group.stranger(hello(1, 3))
        time.sleep(0.2)
        connection.close()
        time.sleep(0.2)
    others = [group.meet(process, 3) for process in (1, 2)]
    for future in (first, *others):
        future.result(10)


def test_a_process_that_is_killed_is_named_to_the_others_at_once(group):
    others = [group.meet(process, 4) for process in (0, 2, 3)]
    connection, _ = group.stranger(hello(1, 4, "host-b"), answers=1)
    for future in others:
        future.result(10)
    assert group.endings.empty()
    connection.close()
    endings = sorted(group.endings.get(timeout=5) for _ in range(3))
    assert [process for process, _, _ in endings] == [0, 2, 3]
    for _, message, status in endings:
        assert message.startswith("process 1 (host-b) is gone (killed, or its host failed)")
        assert status is None


def test_a_process_that_ends_by_an_error_passes_its_status_on(group):
    links = group.all(3)
    links[2].fail(7)
    endings = sorted(group.endings.get(timeout=5) for _ in range(2))
    expected = f"process 2 ({HOST}) ended with status 7: its log says why"
    assert endings == [(0, expected, 7), (1, expected, 7)]


def test_process_0_outlasts_the_others(group, monkeypatch):
    monkeypatch.setattr(rendezvous, "_OUTLAST_SECONDS", 1.5)
    first, second = group.meet(0, 3), group.meet(1, 3)
    connection, _ = group.stranger(hello(2, 3), answers=1)
    first, second = first.result(10), second.result(10)
    first.fail(2)
    assert group.endings.get(timeout=5)[0] == 1
    lasting = group.do(first.outlast)
    second.outlast()  # has nobody to wait for
    time.sleep(0.3)
    assert not lasting.done()
    connection.close()
    # Process 1 is a thread here, whose connection stays: process 0 waits for a while only.
    lasting.result(15)


def test_the_end_of_process_0_is_noticed(group):
    # What is process 0 for process 1, until it is killed.
    with socket.create_server(("127.0.0.1", group.port)) as server:
        future = group.meet(1, 2)
        connection, _ = server.accept()
        connection.recv(4096)
        connection.sendall(b'{"begin": "host-a"}\n')
        future.result(10)
        connection.close()
    process, message, status = group.endings.get(timeout=5)
    assert (process, status) == (1, None)
    assert message.startswith("process 0 (host-a) is gone")
