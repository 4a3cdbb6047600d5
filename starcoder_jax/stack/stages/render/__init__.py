"""`render`: what was collected as JSON, HTML or a notebook becomes text to train on."""

from starcoder_jax.stack.stages.render.config import RenderConfig
from starcoder_jax.stack.stages.render.stage import steps

__all__ = ["RenderConfig", "steps"]
