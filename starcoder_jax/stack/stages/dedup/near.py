"""Near duplicates as steps over shards: candidates, their verification, and who stays.

Signatures are made from each document once, and its shingles once more if it is in a pair on each
side: to keep the shingles of all documents would take more room than the documents. A pair is
verified in the shard of its second document, to which the first one's shingles are sent.
"""

import functools
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from starcoder_jax.stack.record import Output, stable_hash
from starcoder_jax.stack.runner.steps import Map, Shuffle, Step
from starcoder_jax.stack.stages.dedup import ids, keep
from starcoder_jax.stack.stages.dedup.bands import band_keys, candidate_pairs, changes
from starcoder_jax.stack.stages.dedup.components import Forest, components
from starcoder_jax.stack.stages.dedup.jaccard import similar
from starcoder_jax.stack.stages.dedup.minhash import densified, signatures
from starcoder_jax.stack.stages.dedup.shingles import batches, shingle_sets

# The place of a document in one band's bucket; a document has 32 of them by default.
PLACE = pa.schema([("key", pa.uint64()), ("fingerprint", pa.uint64()), ("id", pa.int64())])
PAIR = pa.schema([("first", pa.int64()), ("second", pa.int64())])
# A document's shingles, and what they are to be compared with.
REQUEST = pa.schema(
    [
        ("first", pa.int64()),
        ("seconds", pa.large_list(pa.int64())),
        ("shingles", pa.large_list(pa.uint64())),
    ]
)
MEMBER = pa.schema([("id", pa.int64()), ("component", pa.int64())])

_DOCUMENTS = 4096  # whose signatures are held at a time: 4 MB of them
_REQUESTS = 256  # sent at a time


def steps(
    source: str,
    *,
    kinds: Sequence[str],
    preferences: Sequence[str],
    partitions: int,
    threshold: float,
    num_hashes: int,
    bands: int,
    rows: int,
    ngram: int,
) -> list[Step]:
    """The steps from a source of `RECORD`s to one without near duplicates, called "dedup"."""
    bucket = functools.partial(
        emit_places,
        kinds=tuple(kinds),
        partitions=partitions,
        num_hashes=num_hashes,
        bands=bands,
        rows=rows,
        ngram=ngram,
    )
    sets = functools.partial(attach_shingles, partitions=partitions, ngram=ngram)
    check = functools.partial(verify, partitions=partitions, ngram=ngram, threshold=threshold)
    choose = functools.partial(keep.losers, keep=tuple(preferences))
    contestant = keep.contestant(pa.int64())
    by_id = functools.partial(ids.to_their_shards, column="id")
    by_first = functools.partial(ids.to_their_shards, column="first")
    return [
        Shuffle("dedup.candidates", (source,), bucket, PLACE, pairs_of_buckets, partitions),
        Shuffle("dedup.pairs", ("dedup.candidates",), by_first, PAIR, distinct, partitions),
        Map("dedup.shingles", (source, "dedup.pairs"), sets),
        Shuffle(
            "dedup.requests", ("dedup.shingles",), emit_requests, REQUEST, ids.as_it_is, partitions
        ),
        Map("dedup.edges", (source, "dedup.requests"), check),
        Shuffle("dedup.components", ("dedup.edges",), to_one, PAIR, members, 1),
        Shuffle("dedup.members", ("dedup.components",), by_id, MEMBER, ids.as_it_is, partitions),
        Map(
            "dedup.contestants",
            (source, "dedup.members"),
            functools.partial(contestants_of, partitions=partitions),
        ),
        Shuffle(
            "dedup.losers",
            ("dedup.contestants",),
            functools.partial(by_component, partitions=partitions),
            contestant,
            choose,
            partitions,
        ),
        Shuffle("dedup.drops", ("dedup.losers",), by_id, keep.LOSER, ids.as_it_is, partitions),
        Map(
            "dedup",
            (source, "dedup.drops"),
            functools.partial(keep.without, reason="near duplicate", partitions=partitions),
        ),
    ]


def emit_places(
    table: pa.Table,
    *,
    kinds: Sequence[str],
    partitions: int,
    num_hashes: int,
    bands: int,
    rows: int,
    ngram: int,
) -> Iterator[tuple[np.ndarray, pa.Table]]:
    """Sends the `PLACE`s of a shard's documents to a partition of the bucket's key."""
    table, numbers = ids.taking_part(table, kinds, partitions)
    kind_codes = _kind_codes(table["kind"])
    for start, sketch, fingerprints, known in _sketches(table["content"], ngram, num_hashes):
        there = start + np.flatnonzero(known)
        keys = band_keys(densified(sketch[known]), kind_codes[there], bands, rows).ravel()
        places = pa.table(
            [keys, np.repeat(fingerprints[known], bands), np.repeat(numbers[there], bands)],
            schema=PLACE,
        )
        yield keys % np.uint64(partitions), places


def _kind_codes(kinds: pa.ChunkedArray) -> np.ndarray:
    encoded = kinds.combine_chunks().dictionary_encode()
    codes = np.array([stable_hash(kind) for kind in encoded.dictionary.to_pylist()], np.uint64)
    return codes[encoded.indices.to_numpy(zero_copy_only=False)]


def _sketches(
    contents: pa.ChunkedArray, ngram: int, num_hashes: int
) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """Yields the first row, signatures, fingerprints and which documents have shingles."""
    start, waiting, parts = 0, 0, []
    for hashes, offsets in batches(contents, ngram):
        # The sum of the shingles says, but for chance, whether they are the same.
        sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(hashes)])[offsets]
        parts.append((signatures(hashes, offsets, num_hashes), np.diff(sums), np.diff(offsets) > 0))
        waiting += len(offsets) - 1
        if waiting >= _DOCUMENTS:
            yield start, *map(np.concatenate, zip(*parts, strict=True))
            start, waiting, parts = start + waiting, 0, []
    if parts:
        yield start, *map(np.concatenate, zip(*parts, strict=True))


def pairs_of_buckets(places: pa.Table) -> Output:
    """The candidate `PAIR`s of a partition's buckets."""
    columns = (places[name].to_numpy() for name in PLACE.names)
    ends = zip(*candidate_pairs(*columns), strict=True)
    return Output(_sorted_pairs(*map(np.concatenate, ends)))


def distinct(pairs: pa.Table) -> Output:
    """Each `PAIR` once, in ascending order."""
    return Output(_sorted_pairs(pairs["first"].to_numpy(), pairs["second"].to_numpy()))


def _sorted_pairs(first: np.ndarray, second: np.ndarray) -> pa.Table:
    order = np.lexsort((second, first))
    first, second = first[order], second[order]
    new = changes(first) | changes(second)
    return pa.table([first[new], second[new]], schema=PAIR)


def attach_shingles(table: pa.Table, pairs: pa.Table, partitions: int, ngram: int) -> Output:
    """The `REQUEST`s of a shard's pairs, one for each distinct first document."""
    firsts, begins = np.unique(pairs["first"].to_numpy(), return_index=True)
    found = _sets(table, ids.rows_of(firsts, table, partitions), ngram)
    return Output(_requests(firsts, pairs["second"].to_numpy(), begins, found))


def _sets(table: pa.Table, rows: np.ndarray, ngram: int) -> list[np.ndarray]:
    return shingle_sets(table["content"].take(pa.array(rows)), ngram)


def _lists(values: np.ndarray, begins: np.ndarray) -> pa.LargeListArray:
    offsets = np.append(begins, len(values)).astype(np.int64)
    return pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(values))


def _requests(
    firsts: np.ndarray, seconds: np.ndarray, begins: np.ndarray, found: Sequence[np.ndarray]
) -> pa.Table:
    sizes = np.array([len(values) for values in found], np.int64)
    shingles = np.concatenate([np.empty(0, np.uint64), *found])
    lists = _lists(seconds, begins), _lists(shingles, np.cumsum(sizes) - sizes)
    return pa.table([firsts, *lists], schema=REQUEST)


def emit_requests(requests: pa.Table) -> Iterator[tuple[np.ndarray, pa.Table]]:
    """Sends each `REQUEST` to the shards of its second documents, which learn of theirs alone."""
    for start in range(0, len(requests), _REQUESTS):
        part = requests.slice(start, _REQUESTS).combine_chunks()
        seconds = part["seconds"].combine_chunks()
        sizes = pc.list_value_length(seconds).to_numpy()
        row = np.repeat(np.arange(len(part)), sizes)
        second = seconds.flatten().to_numpy()
        shard = ids.shard_of(second)
        begins = np.flatnonzero(np.diff(row, prepend=-1) | np.diff(shard, prepend=-1))
        sent = part.take(pa.array(row[begins]))
        yield shard[begins], sent.set_column(1, REQUEST.field(1), _lists(second, begins))


def verify(
    table: pa.Table, requests: pa.Table, partitions: int, ngram: int, threshold: float
) -> Output:
    """The `PAIR`s of a shard's requests whose Jaccard similarity is at least `threshold`.

    Pairs that such pairs link already are left out, and not even compared.
    """
    seconds = np.unique(pc.list_flatten(requests["seconds"]).to_numpy())
    found = _sets(table, ids.rows_of(seconds, table, partitions), ngram)
    sets = dict(zip(seconds.tolist(), found, strict=True))
    forest = Forest()
    pairs, candidates, compared = [], 0, 0
    for first, others, shingles in zip(*(requests[name] for name in REQUEST.names), strict=True):
        number, against = first.as_py(), shingles.values.to_numpy()
        for second in others.values.to_pylist():
            candidates += 1
            if forest.linked(number, second):
                continue
            compared += 1
            if similar(against, sets[second], threshold):
                forest.link(number, second)
                pairs.append((number, second))
    edges = np.array(pairs, np.int64).reshape(-1, 2)
    counts = {"candidate pairs": candidates, "compared pairs": compared}
    return Output(_sorted_pairs(edges[:, 0], edges[:, 1]), counts=counts)


def to_one(pairs: pa.Table) -> Iterator[tuple[np.ndarray, pa.Table]]:
    """Sends everything to one partition."""
    yield np.zeros(len(pairs), np.int64), pairs


def members(pairs: pa.Table) -> Output:
    """The `MEMBER`s of the components that all verified `PAIR`s make.

    This is done in one place: ten million pairs take 5 seconds and 1.2 GB on one core, a hundred
    million a minute and 12 GB. There are fewer pairs than there are documents times shards that a
    group is spread over, since `verify` leaves out what is linked already.
    """
    return Output(
        pa.table(components(pairs["first"].to_numpy(), pairs["second"].to_numpy()), schema=MEMBER)
    )


def contestants_of(table: pa.Table, found: pa.Table, partitions: int) -> Output:
    """The `keep.contestant`s among a shard's rows, by component."""
    numbers = found["id"].to_numpy()
    rows = table.drop_columns(["content"]).take(pa.array(ids.rows_of(numbers, table, partitions)))
    return Output(keep.contestants(rows, found["component"].combine_chunks(), numbers))


def by_component(table: pa.Table, partitions: int) -> Iterator[tuple[np.ndarray, pa.Table]]:
    """Sends the contestants of a component to one partition."""
    yield table["key"].to_numpy() % partitions, table
