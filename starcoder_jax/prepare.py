"""Prepares the token store of a recipe: reads, filters and tokenizes its sources.

    python -m starcoder_jax.prepare --gin_file=tiny.gin --directory=data

`python -m starcoder_jax.train` does this by itself if the store is absent. On a cluster, run it
once on one machine with storage that all hosts see, and train with --gin.data.directory=DIR. The
vocabulary is that of `train.initial_checkpoint`, if the recipe has one and names no other.
"""

import argparse
import dataclasses
from collections.abc import Sequence

from starcoder_jax.command import add_recipe_flags, one_line_errors, parse


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        prog="python -m starcoder_jax.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_recipe_flags(parser)
    parser.add_argument("--directory", required=True, help="where the token store goes")
    args, overrides = parse(parser, argv)
    with one_line_errors("prepare"):
        from starcoder_jax.data.prepare import prepare
        from starcoder_jax.recipes import load_recipe

        recipe = load_recipe(args.gin_file, overrides)
        tokenizer = recipe.tokenizer
        if recipe.train.initial_checkpoint is not None and tokenizer.path is None:
            from starcoder_jax.training.initial import open_initial_checkpoint  # loads JAX

            folder = open_initial_checkpoint(recipe).folder
            tokenizer = dataclasses.replace(tokenizer, path=str(folder))
        prepare(recipe.data, tokenizer, args.directory)


if __name__ == "__main__":
    main()
