"""Code and the intermediate representation that LLVM made of it, as StarCoder2 read them.

    code<code_to_intermediate>ir        ir<intermediate_to_code>code

An `ir_event` has `code`, `ir` and `opt_level`, "-Oz" or "-O3".
"""

from collections.abc import Sequence

from starcoder_jax.stack.chance import fraction
from starcoder_jax.stack.stages.render import values
from starcoder_jax.stack.stages.render.config import RenderConfig
from starcoder_jax.stack.stages.render.result import RejectedError, Rendered


def render_ir(
    contents: Sequence[bytes], rows: Sequence[int], names: tuple[str, str], config: RenderConfig
) -> Rendered:
    """A pair from the `ir_event`s of one code; which comes first is random.

    Args:
        contents: the events: the same code at one or more levels of optimization.
        rows: of them.
        names: repository and path, which name the random choices.
        config: thresholds.

    Raises:
        RejectedError: it is dropped.
    """
    if config.style != "starcoder2":
        raise RejectedError("no intermediate representation in this style")
    events = [values.parsed(content) for content in contents]
    pairs = [(values.text(it, "code"), values.text(it, "ir")) for it in events]
    if not any(code.strip() and ir.strip() for code, ir in pairs):
        raise RejectedError("no code with its representation")
    levels = [values.text(event, "opt_level").removeprefix("-") for event in events]
    by_size = fraction(*names, "level", seed=config.seed) < config.size_optimized_rate
    order = ("Oz", "O3") if by_size else ("O3", "Oz")
    usable = [n for n, (code, ir) in enumerate(pairs) if code.strip() and ir.strip()]
    ranks = {level: rank for rank, level in enumerate(order)}
    chosen = min(usable, key=lambda index: ranks.get(levels[index], len(ranks)))
    code, ir = pairs[chosen]
    if fraction(*names, "direction", seed=config.seed) < 0.5:
        parts = [(None, code), ("<code_to_intermediate>", ir)]
    else:
        parts = [(None, ir), ("<intermediate_to_code>", code)]
    unused = {row: "other level" for index, row in enumerate(rows) if index != chosen}
    return Rendered("ir", parts, unused=unused)
