"""What the sections of a curation's gin file are."""

import dataclasses

from starcoder_jax.stack.runner.run import RunnerConfig
from starcoder_jax.stack.stages.collect import CollectConfig
from starcoder_jax.stack.stages.decontaminate import DecontaminateConfig
from starcoder_jax.stack.stages.dedup import DedupConfig
from starcoder_jax.stack.stages.filter import FilterConfig
from starcoder_jax.stack.stages.format import FormatConfig
from starcoder_jax.stack.stages.identify import IdentifyConfig
from starcoder_jax.stack.stages.optout import OptoutConfig
from starcoder_jax.stack.stages.publish import PublishConfig
from starcoder_jax.stack.stages.redact import RedactConfig
from starcoder_jax.stack.stages.render import RenderConfig


@dataclasses.dataclass(frozen=True)
class StackRecipe:
    """Everything that defines a corpus; the field names are the sections of a gin file.

    `runner` alone does not shape what is published.
    """

    collect: CollectConfig
    identify: IdentifyConfig
    render: RenderConfig
    filter: FilterConfig
    dedup: DedupConfig
    decontaminate: DecontaminateConfig
    redact: RedactConfig
    optout: OptoutConfig
    format: FormatConfig
    publish: PublishConfig
    runner: RunnerConfig
