"""Completes a prompt, or fills in at a place of a file, with a trained model.

python -m starcoder_jax.generate --checkpoint=runs/tiny --prompt='def read_lines(path):'
python -m starcoder_jax.generate --checkpoint=runs/tiny --file=module.py --cursor=12:5
"""

import argparse
import pathlib
import re
from collections.abc import Sequence

from starcoder_jax.command import one_line_errors


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        prog="python -m starcoder_jax.generate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--checkpoint", required=True, help="working directory of a training run, or a checkpoint"
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--prompt", help="text to go on with")
    source.add_argument("--file", help="file to fill in at --cursor")
    parser.add_argument(
        "--cursor", metavar="LINE:COLUMN", help="place in the file, both counted from 1"
    )
    parser.add_argument("--max_tokens", type=int, default=64, help="new tokens at most")
    args = parser.parse_args(argv)
    if (args.cursor is None) != (args.file is None):
        parser.error("--file and --cursor go together")
    if args.max_tokens < 1:
        parser.error(f"--max_tokens={args.max_tokens} must be at least 1")
    with one_line_errors("generate"):
        if args.file is not None:
            text = pathlib.Path(args.file).read_text(encoding="utf-8")
            prefix, suffix = split_at(text, args.cursor)

        import starcoder_jax as sj

        model, tokenizer = sj.load_model(args.checkpoint)
        if args.file is None:
            print(args.prompt, end="")
            print(*sj.generate(model, tokenizer, [args.prompt], max_tokens=args.max_tokens))
        else:
            print(sj.infill(model, tokenizer, prefix, suffix, max_tokens=args.max_tokens))


def split_at(text: str, cursor: str) -> tuple[str, str]:
    """The text before and after LINE:COLUMN.

    Raises:
        ValueError: there is no such place in the text.
    """
    line, colon, column = cursor.partition(":")
    if not (colon and line.isdigit() and column.isdigit()):
        raise ValueError(f"--cursor={cursor} must be LINE:COLUMN, such as 12:5")
    # As editors count: form feeds and the like, of which Python's files have some, end no line.
    lines = re.split("(?<=\n)", text)
    row, place = int(line) - 1, int(column) - 1
    if not 0 <= row < len(lines) or not 0 <= place <= len(lines[row].rstrip("\n")):
        raise ValueError(f"--cursor={cursor} is outside the file of {len(lines)} lines")
    offset = sum(len(part) for part in lines[:row]) + place
    return text[:offset], text[offset:]


if __name__ == "__main__":
    main()
