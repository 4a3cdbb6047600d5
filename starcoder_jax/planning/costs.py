"""What one instruction of a compiled program computes and moves."""

import dataclasses
import math
import re

from starcoder_jax.planning.hlo import Computation, Instruction

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "collective-permute",
    "all-to-all",
)
# What moves nothing: names for what is there.
_FREE = {
    "parameter", "get-tuple-element", "tuple", "bitcast", "constant", "while", "conditional",
    "call", "partition-id", "replica-id", "after-all", "iota", "opt-barrier",
}  # fmt: skip
_SLICES = ("dynamic-slice", "slice", "gather")
_PRODUCTS = ("dot", "convolution")
_UPDATE = "dynamic-update-slice"


def moved_bytes(
    instruction: Instruction, computation: Computation, inside: Computation | None = None
) -> float:
    """Bytes that an instruction reads from and writes to a device's memory.

    Each operand is read once and the result written once, and nothing stays in between: what XLA
    keeps in a TPU's fast memory, which its layouts tell, does not count. Of an array that is only
    sliced, the slices count; an update in place counts as what it writes.

    Args:
        instruction: of the computation.
        computation: around it.
        inside: the computation of a fusion.
    """
    opcode = instruction.opcode
    is_elsewhere = opcode.endswith(("-start", "-done")) and opcode != "copy-start"
    if opcode in _FREE or is_elsewhere or "AllocateBuffer" in instruction.rest:
        return 0.0
    operands = [computation[name] for name in instruction.operands if name in computation]
    if opcode == "copy-start":
        # (destination, source, context)
        return dataclasses.replace(
            instruction, shape=_without_context(instruction.shape)
        ).memory_bytes
    if opcode in _SLICES:
        return 2 * instruction.memory_bytes
    if opcode == _UPDATE:
        return 2 * operands[1].memory_bytes
    if inside is None:
        return instruction.memory_bytes + sum(x.memory_bytes for x in operands)
    opcodes = {x.opcode for x in inside.values()}
    if not opcodes.isdisjoint(COLLECTIVES) and opcodes.isdisjoint(_PRODUCTS):
        return 0.0  # begins or ends what counts on the wire
    parameters = {
        int(x.rest[: x.rest.index(")")]): x for x in inside.values() if x.opcode == "parameter"
    }
    read = sum(
        _read_bytes(parameters[index], inside)
        for index, operand in enumerate(operands)
        if index in parameters and operand.memory_bytes
    )
    return read + _written_bytes(instruction, inside)


def _without_context(shape: str) -> str:
    return shape[: shape.rindex(",")]


def _read_bytes(parameter: Instruction, inside: Computation) -> float:
    """Of a fusion's operand, what is used of it."""
    total = 0.0
    names = [parameter.name]
    while names:
        name = names.pop()
        for user in inside.values():
            if name not in user.operands:
                continue
            if user.opcode == "tuple" or user.opcode in COLLECTIVES:
                continue  # handed on, or counted on the wire
            if user.opcode == "bitcast":
                names.append(user.name)
            elif user.opcode in _SLICES and user.operands[0] == name:
                total += user.num_bytes
            elif user.opcode != _UPDATE or user.operands[0] != name:
                return parameter.num_bytes
    return total


def _written_bytes(fusion: Instruction, inside: Computation) -> float:
    """Of a fusion's results, what is new in them."""
    root = next(x for x in inside.values() if x.is_root)
    results = [inside[name] for name in root.operands] if root.opcode == "tuple" else [root]
    total = 0.0
    for result in results:
        while result.opcode == "bitcast":
            result = inside[result.operands[0]]
        if result.opcode == _UPDATE:
            total += inside[result.operands[1]].num_bytes
        elif result.opcode != "parameter" and result.opcode not in COLLECTIVES:
            total += result.num_bytes
    return min(total, fusion.memory_bytes)


def product_flops(instruction: Instruction, computation: Computation) -> float:
    """FLOPs of a dot product or convolution, two for a multiplication and its addition; or 0."""
    if instruction.opcode not in _PRODUCTS:
        return 0.0
    left, right = (computation[name].dims for name in instruction.operands)
    output = instruction.dims
    if instruction.opcode == "dot":
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.rest)[1]
        sizes = [left[int(axis)] for axis in contracted.split(",") if axis]
        return 2.0 * math.prod(output) * math.prod(sizes)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.rest)
    left_labels, right_labels, output_labels = labels.groups()
    pairs = 1  # of an output and a window position that meets an element of the input
    for axis, window in enumerate(_windows(instruction.rest)):
        size = left[left_labels.index(str(axis))]
        pairs *= window.valid_pairs(size, output[output_labels.index(str(axis))])
    features = right[right_labels.index("i")] * right[right_labels.index("o")]
    return 2.0 * output[output_labels.index("b")] * features * pairs


@dataclasses.dataclass(frozen=True)
class _Window:
    """A convolution's window along one axis.

    For TPUs, products with several free axes become windows that lie mostly in the padding, where
    nothing is computed.
    """

    size: int
    stride: int
    padding: int
    input_dilation: int
    dilation: int

    def valid_pairs(self, input_size: int, output_size: int) -> int:
        last = (input_size - 1) * self.input_dilation
        places = (
            output * self.stride - self.padding + position * self.dilation
            for output in range(output_size)
            for position in range(self.size)
        )
        return sum(0 <= place <= last and place % self.input_dilation == 0 for place in places)


def _windows(rest: str) -> list[_Window]:
    match = re.search(r"window=\{([^}]*)\}", rest)
    if match is None:
        return []
    fields = dict(field.split("=") for field in match[1].split())
    sizes = [int(size) for size in fields["size"].split("x")]

    def numbers(name: str, default: int) -> list[int]:
        text = fields.get(name)
        if text is None:
            return [default] * len(sizes)
        return [int(part.split("_")[0]) for part in text.split("x")]

    columns = (
        sizes,
        numbers("stride", 1),
        numbers("pad", 0),
        numbers("lhs_dilate", 1),
        numbers("rhs_dilate", 1),
    )
    return [_Window(*values) for values in zip(*columns, strict=True)]
