"""The text of a compiled program, as XLA prints it: computations and their instructions."""

import dataclasses
import functools
import math
import re

_DTYPE_BYTES = {
    "pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "f8e4m3fn": 1, "f8e5m2": 1, "s16": 2,
    "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8,
    "c64": 8,
}  # fmt: skip
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%([\w.\-]+) = (.*)$")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?")
_OPCODE = re.compile(r"^([a-z][\w\-]*)\(")
_CALLED = re.compile(r"(?:calls|to_apply|true_computation|false_computation)=%([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation: `shape` is the text of its type, `rest` follows its opcode."""

    name: str
    shape: str
    opcode: str
    rest: str
    is_root: bool

    @functools.cached_property
    def operands(self) -> list[str]:
        """Names of the operands, in order."""
        return re.findall(r"%([\w.\-]+)", self.rest[: closing(self.rest)])

    @property
    def called(self) -> list[str]:
        """Names of the computations that it calls or may call, other than loops."""
        names = _CALLED.findall(self.rest)
        for branches in _BRANCHES.findall(self.rest):
            names += re.findall(r"%([\w.\-]+)", branches)
        return names

    @property
    def dims(self) -> list[int]:
        """Of its array."""
        return [int(size) for size in _ARRAY.match(self.shape)[2].split(",") if size]

    @property
    def part_bytes(self) -> list[float]:
        """Of each array in its type."""
        return [_array_bytes(dtype, dims) for dtype, dims, _ in _ARRAY.findall(self.shape)]

    @property
    def num_bytes(self) -> float:
        """Of all arrays in its type."""
        return sum(self.part_bytes)

    @property
    def memory_bytes(self) -> float:
        """Of those arrays in its type that lie in the device's memory, not in its fast one."""
        found = _ARRAY.findall(self.shape)
        return sum(_array_bytes(dtype, dims) for dtype, dims, at in found if "S(1)" not in at)

    def attribute(self, name: str) -> str | None:
        """The value of `name=%value` or `name=value`."""
        match = re.search(rf"\b{name}=%?([\w.\-]+)", self.rest)
        return match[1] if match else None


# Instructions by name, in the order of the text.
Computation = dict[str, Instruction]


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """The instructions of each computation by name, and the name of the entry.

    Raises:
        ValueError: the text is none of a compiled program.
    """
    computations: dict[str, Computation] = {}
    entry = current = None
    for line in text.splitlines():
        if current is None:
            if match := _HEADER.match(line):
                current = match[2]
                computations[current] = {}
                entry = current if match[1] else entry
        elif line == "}" or line.startswith("}, execution_thread="):
            current = None
        elif match := _INSTRUCTION.match(line):
            is_root, name, value = match.groups()
            end = closing(value, 1) + 1 if value.startswith("(") else value.index(" ")
            shape, value = value[:end], value[end:].lstrip()
            opcode = _OPCODE.match(value)
            if opcode is None:
                raise ValueError(f"cannot read the instruction {name} of the compiled program")
            rest = value[opcode.end() :]
            computations[current][name] = Instruction(
                name, shape, opcode[1], rest, is_root is not None
            )
    if entry is None:
        raise ValueError("the compiled program has no entry")
    return computations, entry


def closing(text: str, start: int = 0) -> int:
    """Where the parenthesis closes that was opened before `start`."""
    depth = 1
    for match in re.compile(r"[()]").finditer(text, start):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    return len(text)


def _array_bytes(dtype: str, dims: str) -> float:
    return _DTYPE_BYTES.get(dtype, 0) * math.prod(int(size) for size in dims.split(",") if size)
