"""Near deduplication: starcoder_jax beside datasketch, rensa and BigCode's algorithm, same run.

    pip install -c constraints.txt ".[bench]"
    python benchmarks/dedup.py --files=20000

The corpus are source files of this machine, drawn with a seed from the folders given. Every side
looks for near duplicates at a Jaccard similarity of 0.7 of sets of shingles, which are five tokens,
runs of `[A-Za-z_0-9]`. The others find candidates by 25 bands of 10 rows, as The Stack did:

- ours: all steps of the stage `dedup` with its defaults, in memory and in four shards: exact
  duplicates, signatures, candidates by 32 bands of 8 rows, verification, components, who stays, and
  the table of what is left.
- datasketch: `MinHash` with xxh32 and `update_batch`, `MinHashLSH`, union-find over candidates.
- rensa: `RMinHash`, `RMinHashLSH`, union-find over candidates.
- bigcode: The Stack v1's way, written anew: 32 bits of SHA-1, (a h + b) mod (2^61 - 1) for 256
  pairs of a and b in numpy, a dictionary for each band, union-find over buckets.

A run of a side is a process of its own on one core with one thread; sides take turns. Counted are
its CPU seconds with the contents in memory already, not the reading of files. Peak memory is that
of the process, contents included.

Then recall: of the pairs of files with different sets of shingles that are candidates of any side,
and of all pairs of 2,000 files, those whose exact Jaccard similarity, computed from the shingles'
text, is at least 0.8 or 0.7. Exit status 1 if a pair that ours verified has less than 0.7.
"""

import argparse
import collections
import hashlib
import importlib.metadata
import itertools
import json
import os
import pathlib
import platform
import random
import re
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence

import numpy as np

THRESHOLD, NGRAM, NUM_HASHES, BANDS, ROWS = 0.7, 5, 256, 25, 10
TOKEN = re.compile(rb"[A-Za-z_0-9]+")
LEVELS = (0.8, 0.7)  # of similarity, at which recall is printed
MAX_BYTES = 1 << 20  # of a file
COMPARED = 2000  # files, all pairs of which are compared
SUFFIXES = (
    *(".awk", ".bash", ".c", ".cc", ".cmake", ".cpp", ".css", ".cu", ".cuh", ".el", ".go", ".h"),
    *(".hh", ".hpp", ".hxx", ".inc", ".inl", ".java", ".jl", ".js", ".lua", ".m4", ".mjs", ".php"),
    *(".pl", ".pm", ".proto", ".pxd", ".py", ".pyi", ".pyx", ".rb", ".rs", ".sh", ".sql", ".tcl"),
    *(".ts", ".vim"),
)
FOLDERS = (
    *(sysconfig.get_path("stdlib"), sysconfig.get_path("purelib")),
    *("/usr/lib", "/usr/include", "/usr/share"),
)
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")

# Two numbers of files; the candidates of a side are an array of such, int64 [m, 2].
Pairs = Iterable[tuple[int, int]]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folders", default=",".join(FOLDERS), help="comma-separated")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sides", default=",".join(SIDES), help="comma-separated, of these")
    parser.add_argument("--side", help=argparse.SUPPRESS)  # set for the child processes, as is
    parser.add_argument("--scratch", type=pathlib.Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def shingles(content: bytes) -> set[bytes]:
    tokens = TOKEN.findall(content)
    return {b" ".join(tokens[start : start + NGRAM]) for start in range(len(tokens) - NGRAM + 1)}


def sample(folders: Sequence[str], files: int, seed: int) -> dict[str, bytes]:
    """Source files that are UTF-8 and have a shingle, by path, in an order drawn with a seed."""
    found = {
        os.path.join(folder, name)
        for top in folders
        for folder, _, names in os.walk(os.path.realpath(top))
        for name in names
        if os.path.splitext(name)[1] in SUFFIXES
    }
    paths = sorted(found)
    random.Random(seed).shuffle(paths)
    contents = ((path, usable_content(path)) for path in paths)
    return dict(itertools.islice((pair for pair in contents if pair[1]), files))


def usable_content(path: str) -> bytes | None:
    if not os.path.isfile(path) or os.path.islink(path) or os.path.getsize(path) > MAX_BYTES:
        return None
    content = pathlib.Path(path).read_bytes()
    try:
        content.decode()
    except UnicodeDecodeError:
        return None
    return content if len(TOKEN.findall(content)) >= NGRAM else None


class Groups:
    """Union-find over the numbers of files."""

    def __init__(self, count: int):
        self.parents = list(range(count))

    def find(self, number: int) -> int:
        """The number that stands for a group."""
        parents = self.parents
        while parents[number] != number:
            parents[number] = number = parents[parents[number]]
        return number

    def join(self, first: int, second: int) -> None:
        """Makes the groups of two numbers one."""
        first, second = self.find(first), self.find(second)
        self.parents[max(first, second)] = min(first, second)

    def removed(self) -> int:
        """How many do not stand for their group."""
        return sum(self.find(number) != number for number in range(len(self.parents)))


# Each side prepares and returns two functions: one that is timed and returns the number of files
# removed, and one that says then which pairs were candidates, and which were verified if any are.
Side = tuple[Callable[[], int], Callable[[], tuple[Pairs, Pairs]]]


def ours(paths: Sequence[str], contents: Sequence[bytes]) -> Side:
    import pyarrow as pa

    from starcoder_jax.stack.record import part_of, records
    from starcoder_jax.stack.stages import dedup

    pa.set_cpu_count(1)
    partitions = 4
    shards: list[list[dict]] = [[] for _ in range(partitions)]
    for path, content in sorted(zip(paths, contents, strict=True)):
        row = {"kind": "file", "path": path, "content": content}
        row["repository"] = "/".join(path.split("/")[:6])
        shards[part_of(row["repository"], partitions)].append(row)
    source = [records(shard) for shard in shards]
    steps = dedup.steps(dedup.DedupConfig(threshold=THRESHOLD), "source", partitions)
    tables = {"source": source}

    def run() -> int:
        for step in steps:
            tables[step.name] = run_step(step, tables)
        return len(paths) - sum(map(len, tables["dedup"]))

    def pairs(step: str) -> Pairs:
        places = {path: place for place, path in enumerate(paths)}
        numbers = [[places[path] for path in t["path"].to_pylist()] for t in tables["dedup.exact"]]
        for table in tables[step]:
            for ends in zip(*(table[name].to_pylist() for name in table.column_names), strict=True):
                yield tuple(numbers[end >> 32][end & 0xFFFFFFFF] for end in ends)

    return run, lambda: (pairs("dedup.pairs"), pairs("dedup.edges"))


def run_step(step, tables: dict) -> list:
    """What a runner does, without files and processes."""
    import pyarrow as pa

    if hasattr(step, "function"):
        inputs = [tables[name] for name in step.inputs]
        return [step.function(*shards).table for shards in zip(*inputs, strict=True)]
    parts = [[step.schema.empty_table()] for _ in range(step.partitions)]
    for shard in itertools.chain.from_iterable(tables[name] for name in step.inputs):
        for numbers, rows in step.emit(shard):
            for part in np.unique(numbers):
                parts[int(part)].append(rows.filter(pa.array(numbers == part)))
    return [step.reduce(pa.concat_tables(part)).table for part in parts]


def looked_up(index, sketches: Iterable, count: int, found: list[tuple[int, int]]) -> int:
    """Looks each sketch up among those before it; returns how many are removed."""
    groups = Groups(count)
    for number, sketch in enumerate(sketches):
        for other in index.query(sketch):
            groups.join(number, other)
            found.append((other, number))
        index.insert(number, sketch)
    return groups.removed()


def datasketch(paths: Sequence[str], contents: Sequence[bytes]) -> Side:
    from datasketch import MinHash, MinHashLSH
    from xxhash import xxh32_intdigest

    found: list[tuple[int, int]] = []

    def run() -> int:
        empty = MinHash(num_perm=NUM_HASHES, hashfunc=xxh32_intdigest)
        index = MinHashLSH(num_perm=NUM_HASHES, params=(BANDS, ROWS))

        def sketch(content: bytes):
            sketch = empty.copy()
            sketch.update_batch(shingles(content))
            return sketch

        return looked_up(index, map(sketch, contents), len(contents), found)

    return run, lambda: (found, ())


def rensa(paths: Sequence[str], contents: Sequence[bytes]) -> Side:
    from rensa import RMinHash, RMinHashLSH

    found: list[tuple[int, int]] = []

    def run() -> int:
        index = RMinHashLSH(THRESHOLD, BANDS * ROWS, BANDS)

        def sketch(content: bytes):
            sketch = RMinHash(BANDS * ROWS, 42)
            sketch.update(list(shingles(content)))
            return sketch

        return looked_up(index, map(sketch, contents), len(contents), found)

    return run, lambda: (found, ())


def bigcode(paths: Sequence[str], contents: Sequence[bytes]) -> Side:
    prime, mask = np.uint64((1 << 61) - 1), np.uint64((1 << 32) - 1)
    draw = np.random.RandomState(42)
    factors = draw.randint(1, prime, NUM_HASHES, dtype=np.uint64)
    terms = draw.randint(0, prime, NUM_HASHES, dtype=np.uint64)
    tables = [collections.defaultdict(list) for _ in range(BANDS)]

    def run() -> int:
        for number, content in enumerate(contents):
            digests = [hashlib.sha1(shingle).digest()[:4] for shingle in shingles(content)]
            hashes = np.frombuffer(b"".join(digests), "<u4").astype(np.uint64)
            values = ((hashes[:, None] * factors + terms) % prime & mask).min(0)
            for band, table in enumerate(tables):
                table[values[band * ROWS : (band + 1) * ROWS].tobytes()].append(number)
        groups = Groups(len(contents))
        for table in tables:
            for bucket in table.values():
                for other in bucket[1:]:
                    groups.join(bucket[0], other)
        return groups.removed()

    def pairs() -> Pairs:
        for table in tables:
            for bucket in table.values():
                yield from itertools.combinations(bucket, 2)

    return run, lambda: (pairs(), ())


SIDES = {"ours": ours, "datasketch": datasketch, "rensa": rensa, "bigcode": bigcode}
PACKAGES = {
    "ours": ("numpy", "pyarrow", "scipy"),
    "datasketch": ("datasketch", "xxhash"),
    "rensa": ("rensa",),
    "bigcode": (),
}


def child(side: str, scratch: pathlib.Path) -> None:
    """Runs one side on one core, and leaves its pairs in the scratch folder."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    paths, sizes = json.loads((scratch / "files.json").read_text())
    with open(scratch / "contents", "rb") as corpus:
        run, pairs = SIDES[side](paths, [corpus.read(size) for size in sizes])
    start, clock = time.process_time(), time.perf_counter()
    removed = run()
    seconds, wall = time.process_time() - start, time.perf_counter() - clock
    peak = next(
        int(line.split()[1])
        for line in pathlib.Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM:")
    )
    for name, found in zip(("candidates", "verified"), pairs(), strict=True):
        array = np.array(sorted({(min(pair), max(pair)) for pair in found}), np.int64)
        np.save(scratch / f"{side}.{name}.npy", array.reshape(-1, 2))
    print(json.dumps({"seconds": seconds, "wall": wall, "removed": removed, "peak": 1024 * peak}))


def measure(sides: Sequence[str], repeats: int, scratch: pathlib.Path) -> dict[str, list[dict]]:
    results: dict[str, list[dict]] = {side: [] for side in sides}
    environment = os.environ | dict.fromkeys(ONE_THREAD, "1")
    for _ in range(repeats):
        for side in sides:
            command = [sys.executable, __file__, f"--side={side}", f"--scratch={scratch}"]
            done = subprocess.run(
                command, env=environment, check=True, stdout=subprocess.PIPE, text=True
            )
            results[side].append(json.loads(done.stdout.splitlines()[-1]))
    return results


def report_speed(results: dict[str, list[dict]], files: int, size: int) -> None:
    print("| side | CPU s, median | spread | wall s | files/s | MB/s | removed | peak GB |")
    print("|---|---|---|---|---|---|---|---|")
    for side, runs in results.items():
        seconds = [run["seconds"] for run in runs]
        middle = statistics.median(seconds)
        wall = statistics.median(run["wall"] for run in runs)
        print(
            f"| {side} | {middle:.2f} | {(max(seconds) - min(seconds)) / middle:.0%} | {wall:.2f} "
            f"| {files / middle:,.0f} | {size / middle / 1e6:.1f} | {runs[-1]['removed']:,} "
            f"| {max(run['peak'] for run in runs) / 1e9:.2f} |"
        )


class Truth:
    """Exact Jaccard similarities, of shingles hashed by Python itself to 64 bits."""

    def __init__(self, contents: Sequence[bytes], numbers: Iterable[int]):
        self.sets, self.kinds = {}, {}
        same: dict[bytes, int] = {}
        for number in numbers:
            values = np.array([hash(shingle) for shingle in shingles(contents[number])], np.int64)
            values.sort()
            self.sets[number] = values
            # Files with the same set of shingles are one kind, known by the first one's number.
            digest = hashlib.sha256(values.tobytes()).digest()
            self.kinds[number] = same.setdefault(digest, number)

    def pairs_of_kinds(self, pairs: Pairs) -> set[tuple[int, int]]:
        """The pairs of kinds that pairs of files are, without those of the same kind."""
        kinds = self.kinds
        found = ((kinds[first], kinds[second]) for first, second in pairs)
        return {(min(pair), max(pair)) for pair in found if pair[0] != pair[1]}

    def jaccard(self, pair: tuple[int, int]) -> float:
        """The similarity of two files."""
        first, second = (self.sets[number] for number in pair)
        shared = len(np.intersect1d(first, second, assume_unique=True))
        return shared / (len(first) + len(second) - shared)

    def similar(self, numbers: Sequence[int], level: float) -> set[tuple[int, int]]:
        """All pairs of kinds among some files that are at least that similar."""
        numbers = sorted({self.kinds[number] for number in numbers})
        holders = collections.defaultdict(list)
        for number in numbers:
            for value in self.sets[number].tolist():
                holders[value].append(number)
        shared = collections.Counter(
            itertools.chain.from_iterable(
                itertools.combinations(files, 2) for files in holders.values() if len(files) > 1
            )
        )
        sizes = {number: len(self.sets[number]) for number in numbers}
        return {
            pair
            for pair, count in shared.items()
            if count >= level * (sizes[pair[0]] + sizes[pair[1]] - count)
        }


def report_recall(sides: Sequence[str], contents: Sequence[bytes], scratch: pathlib.Path) -> int:
    """Prints recall, and returns how many pairs ours verified wrongly."""
    found = {side: np.load(scratch / f"{side}.candidates.npy") for side in sides}
    compared = range(min(COMPARED, len(contents)))
    truth = Truth(contents, {*np.concatenate([*found.values()]).ravel().tolist(), *compared})
    candidates = {side: truth.pairs_of_kinds(pairs.tolist()) for side, pairs in found.items()}
    union = set().union(*candidates.values())
    similarity = {pair: truth.jaccard(pair) for pair in union}
    print(f"\n{len(union):,} candidate pairs with different sets of shingles, of all sides\n")
    levels = " | ".join(f"recall at {level}" for level in LEVELS)
    print(f"| side | candidates | precision at {THRESHOLD} | {levels} | {levels}, of all pairs |")
    print("|---|---|---|" + "---|" * 2 * len(LEVELS))
    of_union = [{pair for pair in union if similarity[pair] >= level} for level in LEVELS]
    of_all = [
        truth.similar([number for number in compared if number in truth.sets], level)
        for level in LEVELS
    ]
    for side, pairs in candidates.items():
        right = sum(similarity[pair] >= THRESHOLD for pair in pairs)
        shares = [
            f"{len(pairs & wanted) / max(len(wanted), 1):.4f} of {len(wanted):,}"
            for wanted in (*of_union, *of_all)
        ]
        print(
            f"| {side} | {len(pairs):,} | {right / max(len(pairs), 1):.3f} | {' | '.join(shares)} |"
        )
    wrong = 0
    if "ours" in sides:
        verified = truth.pairs_of_kinds(np.load(scratch / "ours.verified.npy").tolist())
        wrong = sum(similarity[pair] < THRESHOLD for pair in verified)
        print(f"\nours verified {len(verified):,} of them, {wrong} wrongly")
    return wrong


def main() -> int:
    args = parse_arguments()
    if args.side:
        child(args.side, args.scratch)
        return 0
    sides = args.sides.split(",")
    if unknown := set(sides) - set(SIDES):
        raise SystemExit(f"--sides: no side is called {', '.join(sorted(unknown))}")
    files = sample(args.folders.split(","), args.files, args.seed)
    sizes = list(map(len, files.values()))
    packages = itertools.chain.from_iterable(PACKAGES[side] for side in sides)
    versions = [f"{name} {importlib.metadata.version(name)}" for name in packages]
    print(f"Python {platform.python_version()}, {', '.join(versions)}, one core, one thread")
    print(f"{len(files):,} files, {sum(sizes) / 1e6:.1f} MB, {args.repeats} repeats\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        scratch = pathlib.Path(folder)
        (scratch / "files.json").write_text(json.dumps([list(files), sizes]))
        (scratch / "contents").write_bytes(b"".join(files.values()))
        report_speed(measure(sides, args.repeats, scratch), len(files), sum(sizes))
        return int(report_recall(sides, list(files.values()), scratch) > 0)


if __name__ == "__main__":
    sys.exit(main())
