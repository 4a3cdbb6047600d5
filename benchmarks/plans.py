"""Plans every recipe of the family for its hardware, and writes the table of docs/performance.md.

    python benchmarks/plans.py --directory=SCRATCH

Compiles about forty training steps, in an hour on two cores; what was compiled stays in SCRATCH,
and the same command goes on from there. With --only=15b,3b no table is written, but printed.

A recipe keeps its tokens at a time where its overlay, which was chosen for 15b, has other numbers:
its batch is split into more micro-batches, and made larger if it does not split over the devices.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import subprocess
import sys

from starcoder_jax.parallel.topology import parse_topology
from starcoder_jax.recipes import load_recipe

ROOT = pathlib.Path(__file__).parent.parent
DOCUMENT = ROOT / "docs" / "performance.md"
MARKS = "<!-- plans: written by benchmarks/plans.py -->", "<!-- end of plans -->"
# Overlay -> the machine it is for.
TPUS = {
    "v5litepod-256": "v5litepod-256",
    "v5p-128": "v5p-128",
    "v5p-256": "v5p-256",
    "v5p-512": "v5p-512",
    "v6e-256": "v6e-256",
    "tpu7x-256": "tpu7x:4x4x8",
}
GPUS = {"8xh100": "h100:8", "8xh200": "h200:8", "64xh100": "h100:64"}
FLAGSHIPS = ("3b", "7b", "15b")
OTHERS = (
    *("santacoder_1b", "starcoderbase_1b", "starcoderbase_3b", "starcoderbase_7b"),
    *("starcoderbase_15b", "starcoder", "3b_long", "7b_long", "15b_long"),
)
ROWS = [
    *((recipe, overlay) for recipe in FLAGSHIPS for overlay in TPUS),
    *((recipe, "v5p-256") for recipe in OTHERS),
    ("octocoder", "8xh200"),
    ("bloom_176b", "v5p-512"),
    *((recipe, "64xh100") for recipe in FLAGSHIPS),
    ("3b", "8xh100"),
    ("7b", "8xh200"),
]
SLACK = 1.3  # of the tokens at a time


def overrides(name: str, overlay: str) -> list[str]:
    """What a recipe needs beside an overlay, as `field=value`."""
    recipe = load_recipe([f"{name}.gin", f"hardware/{overlay}.gin"], [])
    chosen_for = load_recipe(["15b.gin", f"hardware/{overlay}.gin"], []).train
    devices = parse_topology((TPUS | GPUS)[overlay]).num_devices
    replica, fsdp, *_ = recipe.mesh.sizes(devices)
    ways = replica * fsdp  # that split the batch
    settings = recipe.train
    tokens = chosen_for.batch_size * chosen_for.sequence_length // chosen_for.micro_batches
    at_a_time = max(1, SLACK * tokens / ways / settings.sequence_length)  # rows
    rows = -(-settings.batch_size // ways)
    micro_batches = 1
    while -(-rows // micro_batches) > at_a_time:
        micro_batches += 1
    batch_size = ways * micro_batches * -(-rows // micro_batches)
    found = []
    if recipe.model.attention_dropout or recipe.model.positions == "alibi":
        found.append('model.attention_backend="xla"')  # kernels have neither
    if name == "bloom_176b":  # what other policies save of so wide a model does not fit
        found.append('model.rematerialization="full"')
    if batch_size != settings.batch_size:
        found.append(f"train.batch_size={batch_size}")
    if micro_batches != settings.micro_batches:
        found.append(f"train.micro_batches={micro_batches}")
    return found


def plan(directory: pathlib.Path, name: str, overlay: str, extra: list[str]) -> dict:
    """The object that `plan --json` prints, or {"error": its last line}; kept in the directory."""
    kept = directory / f"{name}-{overlay}.json"
    if kept.exists():
        return json.loads(kept.read_text())
    machine = (TPUS | GPUS)[overlay]
    command = [sys.executable, "-m", "starcoder_jax.plan", f"--gin_file={name}.gin"]
    command += [f"--gin_file=hardware/{overlay}.gin", f"--topology={machine}", "--json"]
    command += [f"--gin.{override}" for override in extra]
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    lines = done.stderr.strip().splitlines()
    result = json.loads(done.stdout) if done.returncode == 0 else {"error": lines[-1]}
    kept.write_text(json.dumps(result))
    print(f"{name} on {overlay}: {result.get('error', 'planned')}", file=sys.stderr, flush=True)
    return result


def environment() -> dict[str, str]:
    """With the XLA flags that training has."""
    flags = subprocess.run(
        ["bash", "-c", f"source {ROOT}/launch/flags/tpu.env && echo $LIBTPU_INIT_ARGS"],
        capture_output=True, text=True, check=True,
        env=os.environ | {"LIBTPU_INIT_ARGS": ""},
    )  # fmt: skip
    return os.environ | {"LIBTPU_INIT_ARGS": flags.stdout.strip()}


def row(name: str, overlay: str, result: dict) -> str:
    """A line of the table."""
    if "error" in result:
        return f"| `{name}` | {overlay} | {result['error']} ||||||"
    gib = 2**30
    memory = headroom = "not known"
    if result["fits"] is not None:
        used, limit = result["hbm_bytes_per_chip"] / gib, result["hbm_limit_bytes"] / gib
        memory = f"{used:.1f} of {limit:.1f}" if result["fits"] else f"{used:.1f}: DOES NOT FIT"
        headroom = f"{limit - used:.1f}"
    per_device = result["batch_size"] // result["micro_batches"]
    return (
        f"| `{name}` | {overlay} | {result['batch_size']} x {result['sequence_length']:,}, "
        f"{per_device} at a time, {result['rematerialization']}, "
        f"{result['attention_backend']} | {memory} | {headroom} | "
        f"{result['collective_bytes_per_chip'] / 1e9:.0f} | "
        f"{result['predicted_step_seconds']:.2f} | {result['predicted_mfu']:.0%} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--directory", type=pathlib.Path, required=True, help="for what is compiled"
    )
    parser.add_argument("--only", help="recipes, separated by commas")
    args = parser.parse_args()
    args.directory.mkdir(parents=True, exist_ok=True)
    wanted = args.only.split(",") if args.only else None
    rows = [pair for pair in ROWS if wanted is None or pair[0] in wanted]
    # Not in the threads: gin has one state for all.
    jobs = [(args.directory, *pair, overrides(*pair)) for pair in rows]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(lambda job: plan(*job), jobs))
    lines = [
        "| recipe | hardware | a step | GiB a chip at the peak | headroom, GiB | GB sent by a chip "
        "| predicted s | predicted MFU |",
        "|---|---|---|---|---|---|---|---|",
        *(row(*pair, result) for pair, result in zip(rows, results, strict=True)),
    ]
    table = "\n".join(lines)
    if wanted is not None:
        print(table)
        return
    text = DOCUMENT.read_text(encoding="utf-8")
    before, rest = text.split(MARKS[0])
    _, after = rest.split(MARKS[1])
    DOCUMENT.write_text(f"{before}{MARKS[0]}\n{table}\n{MARKS[1]}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
