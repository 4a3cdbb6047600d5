"""Converts checkpoints between Hugging Face and Orbax.

python -m starcoder_jax.convert --source=runs/tiny --target=tiny-hf --format=hf
python -m starcoder_jax.convert --source=tiny-hf --target=tiny-orbax --format=orbax
"""

import argparse
from collections.abc import Sequence

from starcoder_jax.command import one_line_errors


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        prog="python -m starcoder_jax.convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--source",
        required=True,
        help="a Hugging Face directory, a working directory of a training run, or a checkpoint",
    )
    parser.add_argument("--target", required=True, help="the directory to make")
    parser.add_argument(
        "--format", required=True, choices=["hf", "orbax"], help="to write: Hugging Face or Orbax"
    )
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16"],
        help="of the parameters written; by default as they are stored",
    )
    args = parser.parse_args(argv)
    with one_line_errors("convert"):
        from starcoder_jax.training.convert import convert

        convert(args.source, args.target, args.format, args.dtype)
        print(f"wrote {args.target}")


if __name__ == "__main__":
    main()
