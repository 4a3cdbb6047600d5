"""Does the next piece of work while its consumer is busy with this one."""

import concurrent.futures
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def ahead(work: Callable[[T], R], items: Iterable[T]) -> Iterator[tuple[T, R]]:
    """Yields each item with `work(item)`, in order, computed one ahead in a thread of its own.

    At most two results exist at a time: the one yielded and the next. What `work` raises is raised
    here, in its turn.
    """
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting: tuple[T, concurrent.futures.Future[R]] | None = None
        for item in items:
            current, waiting = waiting, None
            result = None if current is None else current[1].result()
            waiting = (item, pool.submit(work, item))
            if current is not None:
                yield current[0], result
                del result  # or it would be a third while the next but one is made
        if waiting is not None:
            yield waiting[0], waiting[1].result()
