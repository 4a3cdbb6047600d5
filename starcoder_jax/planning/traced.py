"""FLOPs of a traced program, for machines whose compiler is not at hand."""

import math

from jax.extend import core


def traced_flops(jaxpr: core.Jaxpr) -> float:
    """FLOPs of all products on all devices together, two for a multiplication and its addition.

    Loops are multiplied out; of branches the costliest counts. What the compiler leaves out as
    unused counts, as does what several devices compute alike, once.
    """
    return sum(_flops(equation) for equation in jaxpr.eqns)


def _flops(equation: core.JaxprEqn) -> float:
    params = equation.params
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        inner = math.prod(left[axis] for axis in contracted)
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * inner
    inner = [traced_flops(x) for x in core.jaxprs_in_params(params)]
    if equation.primitive.name == "cond":
        return max(inner)
    if equation.primitive.name == "shard_map":  # one device's share
        return sum(inner) * params["mesh"].size
    return sum(inner) * (params["length"] if equation.primitive.name == "scan" else 1)
