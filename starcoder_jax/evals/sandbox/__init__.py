"""Runs code that a model wrote, where it can do no harm."""

from starcoder_jax.evals.sandbox.program import Outcome, Program
from starcoder_jax.evals.sandbox.sandbox import Sandbox
from starcoder_jax.evals.sandbox.toolchains import missing_toolchains

__all__ = ["Outcome", "Program", "Sandbox", "missing_toolchains"]
