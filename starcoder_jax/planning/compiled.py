"""What a compiled program does: operations and collectives, loops multiplied out.

XLA's own cost analysis counts the body of a loop once, whatever its trip count, and says nothing of
collectives. Here the text of the optimized program is read: every computation is weighted with how
often it runs, which for a loop is the bound in its condition over the step in its body.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator

from starcoder_jax.planning.costs import COLLECTIVES, moved_bytes, product_flops
from starcoder_jax.planning.hlo import Computation, Instruction, closing, parse

_SLICE_TRANSFER = re.compile(r'_xla_megascale_transfer_type="(\w+)"')


@dataclasses.dataclass(frozen=True)
class Collective:
    """All executions of the collectives of one kind, group size, result and timing.

    Attributes:
        kind: such as "all-gather"; "slice-all-reduce" goes between slices of TPUs, by their hosts.
        count: executions a step.
        group_size: devices that take part in one.
        result_bytes: of the result on one device, for one execution.
        is_overlapped: whether it goes on beside operations, instead of between them.
    """

    kind: str
    count: int
    group_size: int
    result_bytes: float
    is_overlapped: bool

    @property
    def wire_bytes(self) -> float:
        """What one device sends for all executions, by the ring algorithm.

        With N devices: all-gather (N-1)/N of its result, reduce-scatter (N-1) times its result,
        all-reduce twice (N-1)/N, all-to-all (N-1)/N, a permutation all of it.
        """
        share = (self.group_size - 1) / self.group_size
        factors = {
            "all-gather": share,
            "all-reduce": 2 * share,
            "reduce-scatter": self.group_size - 1,
            "all-to-all": share,
            "collective-permute": 1.0,
            # Of these the operand is known.
            "slice-all-reduce": 2 * share,
            "slice-reduce-scatter": share,
            "slice-all-gather": self.group_size - 1,
        }
        return self.count * self.result_bytes * factors[self.kind]


@dataclasses.dataclass(frozen=True)
class Operation:
    """One thing that a program does on a device; a fusion is one.

    Attributes:
        opcode: of XLA, such as "fusion".
        runs: how often in a step.
        flops: of the products in it, each time; 0 for kernels, whose insides are not known.
        moved_bytes: that it reads from and writes to the device's memory, each time.
    """

    opcode: str
    runs: int
    flops: float
    moved_bytes: float


class CompiledProgram:
    """The optimized program of one device.

    Args:
        text: from `compiled.as_text()`.
        num_devices: the program runs on; a collective that names no groups takes all of them.
        num_slices: that the devices are split among.

    Attributes:
        unknown_loops: names of loops whose trip count could not be read; they count once.
    """

    def __init__(self, text: str, num_devices: int, num_slices: int = 1):
        self._computations, entry = parse(text)
        self._num_devices, self._num_slices = num_devices, num_slices
        self.unknown_loops: list[str] = []
        self._runs: dict[str, int] = collections.Counter()
        self._inside: set[str] = set()  # of fusions, or of another thread
        self._weigh(entry, 1, False)

    def operations(self) -> Iterator[Operation]:
        """What the program does one after the other, collectives left out."""
        for name, runs in self._runs.items():
            if name in self._inside:
                continue
            computation = self._computations[name]
            for instruction in computation.values():
                inside = None
                flops = product_flops(instruction, computation)
                if instruction.opcode == "fusion":
                    inside = self._computations[instruction.called[0]]
                    flops = self._flops(inside)
                moved = 0.0
                if instruction.opcode.removesuffix("-start") not in COLLECTIVES:
                    moved = moved_bytes(instruction, computation, inside)
                if flops or moved:
                    yield Operation(instruction.opcode, runs, flops, moved)

    def collectives(self) -> list[Collective]:
        """Every kind of collective, the largest on the wire first."""
        counts: dict[tuple, int] = collections.Counter()
        parts: dict[tuple, int] = {}
        for name, runs in self._runs.items():
            for instruction in self._computations[name].values():
                kind = instruction.opcode.removesuffix("-start")
                transfer = _SLICE_TRANSFER.search(instruction.rest)
                if transfer and instruction.opcode == "send":
                    kind = "slice-" + transfer[1].lower().replace("_", "-")
                    counts[kind, self._num_slices, instruction.part_bytes[0], True] += runs
                groups = self._group_size(instruction) if kind in COLLECTIVES else 1
                if groups == 1:
                    continue
                key = (kind, groups, _result_bytes(instruction))
                if name in self._inside:
                    # Of one that may be begun in a fusion and carried on in those of products.
                    parts[*key, instruction.attribute("channel_id")] = runs
                else:
                    counts[*key, instruction.opcode.endswith("-start")] += runs
        for (*key, _), runs in parts.items():
            counts[*key, True] += runs
        found = [
            Collective(kind, count, groups, size, is_overlapped)
            for (kind, groups, size, is_overlapped), count in counts.items()
        ]
        return sorted(found, key=lambda item: -item.wire_bytes)

    def _flops(self, computation: Computation) -> float:
        """Of the products in a computation and in those that it calls."""
        return sum(
            product_flops(instruction, computation)
            + sum(self._flops(self._computations[name]) for name in instruction.called)
            for instruction in computation.values()
        )

    def _weigh(self, name: str, runs: int, is_inside: bool) -> None:
        self._runs[name] += runs
        if is_inside:
            self._inside.add(name)
        for instruction in self._computations[name].values():
            opcode = instruction.opcode
            if opcode == "while":
                trips = self._trips(instruction)
                self._weigh(instruction.attribute("body"), runs * trips, is_inside)
            # The additions that reductions apply are nothing beside them.
            elif opcode not in COLLECTIVES and not opcode.startswith("reduce"):
                # What a SparseCore does goes on beside the rest, as what is fused into products.
                is_beside = opcode == "fusion" or opcode.endswith("-start")
                for other in instruction.called:
                    self._weigh(other, runs, is_inside or is_beside)

    def _trips(self, loop: Instruction) -> int:
        """How often a loop runs: as the compiler notes it, or bound over step of its counter.

        The counter begins at zero.
        """
        if noted := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.rest):
            return int(noted[1])
        condition = self._computations[loop.attribute("condition")]
        body = self._computations[loop.attribute("body")]
        root = next(x for x in condition.values() if x.is_root)
        sides = [condition[name] for name in root.operands if name in condition]
        bounds = [_constant(x) for x in sides if x.opcode == "constant"]
        counters = [x for x in sides if x.opcode == "get-tuple-element"]
        if root.opcode == "compare" and len(bounds) == 1 and len(counters) == 1:
            step = _step(body, int(counters[0].attribute("index")))
            extra = 1 if root.attribute("direction") == "LE" else 0
            return math.ceil((bounds[0] + extra) / step)
        self.unknown_loops.append(loop.name)
        return 1

    def _group_size(self, instruction: Instruction) -> int:
        rest = instruction.rest
        if instruction.opcode.startswith("collective-permute"):
            return 2
        if match := re.search(r"replica_groups=\[(\d+),(\d+)\]<=", rest):
            return int(match[2])
        if match := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", rest):
            sizes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
            return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", match[2]))
        if match := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
            return len(match[1].split(","))
        if "replica_groups=" in rest and "replica_groups={}" not in rest:
            raise ValueError(f"cannot read the groups of {instruction.name} in the program")
        return self._num_devices


def _result_bytes(collective: Instruction) -> float:
    """Of the result; the start of an asynchronous one carries the operands too."""
    arrays = collective.part_bytes
    if not collective.opcode.endswith("-start") or collective.opcode.startswith("all-reduce"):
        return sum(arrays)
    # (operands, results, then counters of a few bytes): results are the last of equal parts.
    operands = len(collective.operands)
    return sum(arrays[operands : 2 * operands])


def _constant(instruction: Instruction) -> int:
    return int(instruction.rest[: closing(instruction.rest)])


def _step(body: Computation, index: int) -> int:
    """What a loop's body adds to its counter, the element `index` of its state."""
    root = next(x for x in body.values() if x.is_root)
    if root.opcode != "tuple":
        return 1
    counter = body.get(root.operands[index])
    while counter is not None and counter.opcode in ("copy", "bitcast"):
        counter = body.get(counter.operands[0])
    if counter is None or counter.opcode != "add":
        return 1
    constants = [body[x] for x in counter.operands if x in body and body[x].opcode == "constant"]
    return _constant(constants[0]) if constants else 1
