"""Completes a prompt, or fills in at a place of a file, with a trained model.

python -m starcoder_jax.generate --checkpoint=runs/tiny --prompt='def read_lines(path):'
python -m starcoder_jax.generate --checkpoint=runs/tiny --file=module.py --cursor=12:5

Text is written as it comes. Exit status: 0 when done, 2 for bad input, 130 when Ctrl-C ended it
early.
"""

import argparse
import pathlib
import signal
import sys
from collections.abc import Sequence

from starcoder_jax.command import one_line_errors

INTERRUPTED = 130
_SLOTS = 32  # samples at once
_BUCKET = 128  # of lengths, so that few are compiled
_CONTEXT_BYTES = 1_000_000  # several times what the longest context of the family holds

# Fields of Sampling. Its defaults are those of the flags.
_SAMPLING = {
    "max_tokens": (int, "new tokens at most (64)"),
    "temperature": (float, "divides the logits; 0 takes the most likely token (0)"),
    "top_k": (int, "keeps this many of the most likely tokens (all)"),
    "top_p": (float, "keeps the most likely tokens that have this probability together (1)"),
    "min_p": (float, "keeps tokens at least this likely, measured by the most likely one (0)"),
    "repetition_penalty": (float, "above 1, makes tokens that were there less likely (1)"),
    "seed": (int, "of the samples (0)"),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        prog="python -m starcoder_jax.generate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flag = parser.add_argument
    text = "working directory of a training run, a checkpoint in it, or a Hugging Face directory"
    flag("--checkpoint", required=True, help=text)
    source = parser.add_mutually_exclusive_group(required=True)
    text = "to go on with; names of special tokens in it mean those; -: read from standard input"
    source.add_argument("--prompt", metavar="TEXT", help=text)
    source.add_argument("--file", help="file to fill in at --cursor")
    flag("--cursor", metavar="LINE:COLUMN", help="place in the file, both counted from 1")
    text = "repository of the file, for a StarCoder2: other files like it are shown to the model, "
    flag("--context", metavar="FOLDER", help=text + "as many as fit, the nearest ones first")
    text = "whether the model sees the prefix or the suffix of the file first (psm)"
    flag("--order", choices=("psm", "spm"), help=text)
    for name, (kind, text) in _SAMPLING.items():
        flag(f"--{name}", type=kind, default=argparse.SUPPRESS, help=text)
    flag(
        "--stop", action="append", default=[], help="the text ends before it; several may be given"
    )
    flag("--samples", type=int, default=1, help="how many completions (1)")
    text = "of parameters and computation (as stored, as trained)"
    flag("--dtype", choices=("float32", "bfloat16", "float16"), help=text)
    flag("--json", action="store_true", help="writes one JSON object a line for each completion")
    args = parser.parse_args(argv)
    if (args.cursor is None) != (args.file is None):
        parser.error("--file and --cursor go together")
    if args.file is None and (args.order or args.context):
        parser.error("--order and --context go with --file")
    if args.samples < 1:
        parser.error(f"--samples={args.samples} must be at least 1")
    try:
        with one_line_errors("generate"):
            status = _generate(args)
    except KeyboardInterrupt:
        status = INTERRUPTED
    sys.exit(status)


def _generate(args: argparse.Namespace) -> int:
    from starcoder_jax.inference.engine import Engine
    from starcoder_jax.inference.infilling import infill_prompt, read_repository, split_at
    from starcoder_jax.inference.sampling import Sampling
    from starcoder_jax.inference.writing import write_json, write_text
    from starcoder_jax.training.load import load_model

    given = {name: value for name, value in vars(args).items() if name in _SAMPLING}
    sampling = Sampling(**given, stop=tuple(args.stop))
    context = None
    if args.file is not None:
        text = _utf8(pathlib.Path(args.file).read_bytes(), args.file)
        prefix, suffix = split_at(text, args.cursor)
        if args.context is not None:
            context = read_repository(args.context, args.file, _CONTEXT_BYTES)
    elif args.prompt == "-":
        args.prompt = _utf8(sys.stdin.buffer.read(), "standard input")
    model, tokenizer = load_model(args.checkpoint, dtype=args.dtype)
    limit = model.config.max_length
    if args.file is None:
        prompt = tokenizer.encode_prompt(args.prompt)
    else:
        room = limit - sampling.max_tokens
        order = args.order or "psm"
        prompt = infill_prompt(
            tokenizer, prefix, suffix, order=order, max_tokens=room, context=context
        )
    length = -(-(len(prompt) + sampling.max_tokens) // _BUCKET) * _BUCKET
    slots = min(args.samples, _SLOTS)
    engine = Engine(model, tokenizer, slots=slots, max_length=min(limit, length))
    completions = engine.submit(prompt, sampling, samples=args.samples)
    shown = tokenizer.decode(prompt)
    if args.json:
        write_json(engine, completions, shown)
    else:
        write_text(engine, completions, shown if args.file is None else "")
    return INTERRUPTED if any(c.finish_reason == "cancelled" for c in completions) else 0


def _utf8(content: bytes, name: str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}: not UTF-8 text: {error.reason} at byte {error.start}") from None


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # "| head" ends it without a word
    main()
