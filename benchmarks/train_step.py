"""One training step: starcoder_jax beside transformers' Starcoder2 in PyTorch, same run.

    python benchmarks/train_step.py --layers=6 --embed=512 --vocab=49152 --length=1024 --batch=4

Both sides train the same architecture in float32 on the same random tokens with AdamW and clipping
at norm 1, each in a process of its own, and alternate so that both see the same machine. Printed
are medians over the repeats and their spread, tokens a second, and the ratio.
FLOPs are counted as 6 per token and parameter plus causal attention.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--embed", type=int, default=512)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--kv_heads", type=int, default=2)
    parser.add_argument("--vocab", type=int, default=49152)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=5, help="timed steps of a repeat")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument(
        "--sides", default="jax,torch,torch_compiled", help="comma-separated, of these three"
    )
    parser.add_argument("--side", help=argparse.SUPPRESS)  # set for the child processes
    return parser.parse_args()


def jax_step(args: argparse.Namespace):
    """A function that trains one step and returns the loss; and versions."""
    import jax
    import numpy as np

    from starcoder_jax.model.config import DecoderConfig
    from starcoder_jax.training.loss import LossConfig
    from starcoder_jax.training.optimizer import OptimizerConfig, make_optimizer
    from starcoder_jax.training.step import initial_state, make_train_step

    config = DecoderConfig(
        vocab_size=args.vocab,
        num_layers=args.layers,
        embed_dim=args.embed,
        num_heads=args.heads,
        num_kv_heads=args.kv_heads,
        mlp_dim=4 * args.embed,
        max_length=args.length,
        sliding_window=args.window,
        dtype="float32",
        rematerialization="dots",
    )
    optimizer = make_optimizer(OptimizerConfig(3e-4, 3e-4, 0), total_steps=1000)
    state = jax.jit(lambda: initial_state(config, optimizer, 0))()
    train_step = jax.jit(make_train_step(config, optimizer, LossConfig()), donate_argnums=0)
    tokens = np.random.default_rng(0).integers(0, args.vocab, (args.batch, args.length + 1))
    weights = np.ones((args.batch, args.length), np.float32)

    def step() -> float:
        nonlocal state
        state, metrics = train_step(state, tokens.astype(np.int32), weights)
        return float(metrics["loss"])

    return step, f"jax {jax.__version__}"


def torch_step(args: argparse.Namespace, compiled: bool):
    """As `jax_step`, with PyTorch."""
    import numpy as np
    import torch
    import transformers

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    config = transformers.Starcoder2Config(
        vocab_size=args.vocab,
        hidden_size=args.embed,
        intermediate_size=4 * args.embed,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        num_key_value_heads=args.kv_heads,
        max_position_embeddings=args.length,
        sliding_window=args.window,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
    )
    model = transformers.Starcoder2ForCausalLM(config)
    run = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    tokens = np.random.default_rng(0).integers(0, args.vocab, (args.batch, args.length + 1))
    tokens = torch.tensor(tokens)

    def step() -> float:
        logits = run(input_ids=tokens[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step, f"torch {torch.__version__}, transformers {transformers.__version__}"


def run_side(args: argparse.Namespace) -> None:
    """A child process: prints one JSON line with seconds a step, for each repeat asked for."""
    if args.side == "jax":
        step, versions = jax_step(args)
    else:
        step, versions = torch_step(args, compiled=args.side == "torch_compiled")
    first_loss = step()  # compiles
    step()
    print(json.dumps({"versions": versions, "first_loss": first_loss}), flush=True)
    for _ in sys.stdin:  # one line asks for one repeat, so that the sides can take turns
        start = time.perf_counter()
        for _ in range(args.steps):
            step()
        print(json.dumps((time.perf_counter() - start) / args.steps), flush=True)


def main() -> None:
    args = parse_arguments()
    if args.side:
        run_side(args)
        return
    sides = {}
    for side in args.sides.split(","):
        command = [sys.executable, __file__, *sys.argv[1:], f"--side={side}"]
        sides[side] = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
    started = {side: json.loads(child.stdout.readline()) for side, child in sides.items()}
    seconds = {side: [] for side in sides}
    for _ in range(args.repeats):
        for side, child in sides.items():
            child.stdin.write("go\n")
            child.stdin.flush()
            seconds[side].append(json.loads(child.stdout.readline()))
    for child in sides.values():
        child.stdin.close()
        child.wait()

    tokens = args.batch * args.length
    head_dim = args.embed // args.heads
    parameters = args.vocab * args.embed + args.layers * args.embed * (
        2 * args.embed + 2 * args.kv_heads * head_dim + 8 * args.embed
    )
    keys = sum(min(i + 1, args.window) for i in range(args.length)) / args.length
    flops = tokens * (6 * parameters + 12 * args.layers * args.embed * keys)
    print(f"{platform.processor() or platform.machine()}, {args.threads} threads, float32")
    print(
        f"{parameters / 1e6:.1f}M parameters: layers {args.layers}, embed {args.embed}, heads "
        f"{args.heads}/{args.kv_heads}, vocabulary {args.vocab}, window {args.window}; "
        f"batch {args.batch} x {args.length}"
    )
    print(f"{'side':<16}{'ms a step':>12}{'spread':>10}{'tokens/s':>12}{'GFLOP/s':>10}{'loss':>9}")
    for side, values in seconds.items():
        median = statistics.median(values)
        spread = (max(values) - min(values)) / median
        print(
            f"{side:<16}{1e3 * median:>12.1f}{spread:>10.1%}{tokens / median:>12.0f}"
            f"{flops / median / 1e9:>10.1f}{started[side]['first_loss']:>9.3f}"
        )
    for side, values in seconds.items():
        if side != "jax" and "jax" in seconds:
            ratio = statistics.median(values) / statistics.median(seconds["jax"])
            print(f"jax is {ratio:.2f} times as fast as {side} ({started[side]['versions']})")


if __name__ == "__main__":
    main()
