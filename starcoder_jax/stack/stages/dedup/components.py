"""Groups of documents that are linked, directly or through others."""

import numpy as np
from scipy import sparse


def components(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Connected components of a graph.

    Args:
        first, second: int64 [m], the ids at the two ends of each edge.

    Returns:
        int64 [n], the distinct ids, ascending; and int64 [n], the least id of each one's component.
    """
    ids, places = np.unique(np.concatenate([first, second]), return_inverse=True)
    if len(ids) == 0:
        return ids, ids
    ends = places.reshape(2, -1)
    graph = sparse.coo_array(
        (np.ones(len(first), bool), (ends[0], ends[1])), shape=(len(ids), len(ids))
    )
    _, labels = sparse.csgraph.connected_components(graph, directed=False)
    _, least = np.unique(labels, return_index=True)
    return ids, ids[least][labels]


class Forest:
    """The same for edges that come one by one, with an answer after each."""

    def __init__(self):
        self._parents: dict[int, int] = {}

    def _root(self, id_: int) -> int:
        parents = self._parents
        parent = parents.setdefault(id_, id_)
        while parent != id_:
            # Halving the path keeps it short.
            parents[id_] = id_ = parents[parent]
            parent = parents[id_]
        return id_

    def linked(self, first: int, second: int) -> bool:
        """Whether two ids are in one component."""
        return self._root(first) == self._root(second)

    def link(self, first: int, second: int) -> None:
        """Adds an edge."""
        self._parents[self._root(first)] = self._root(second)
