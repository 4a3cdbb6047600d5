"""StarCoder2-3B on one NVIDIA GPU: attention kernels beside the reference, steps beside PyTorch.

    pip install -c constraints.txt "jax[cuda13]" ".[parity]"   # driver 580 or newer; or jax[cuda12]
    python benchmarks/gpu.py --json=gpu.json

One run of at most --limit_s seconds; what does not finish is said so, and the rest is printed. The
batch is --tokens tokens at each of --lengths. 80 GB of memory are enough.

Attention: {multi-head, grouped, multi-query} x {window, none} x {packed documents, one} of cuDNN's
kernel, and of `xla`, which packed documents need on a GPU, in bfloat16 beside the float32
reference; largest difference over largest value, of the output and of the gradients.

Training: the recipes 3b.gin, and 3b_long.gin for lengths beyond the window of 4,096, with the
overlay of gin/hardware for one GPU of this memory: bfloat16 products of float32 parameters, AdamW
in float32. The peer is transformers' Starcoder2 with bfloat16 weights, float32 masters and moments
and fused AdamW, layers and loss under torch.compile: the same rounding and the same state, with two
bytes more a parameter. Its attention is flash attention (the package, if it is there, else that of
PyTorch's SDPA), and where a window counts flex attention, since SDPA's knows none. Should that
fail, it attends to all keys, which is more work and said so. Both sides recompute no more than the
memory asks for; one that runs out of memory is tried once more, with recomputation or else half the
batch. Sides run one after the other, as their states do not fit beside each other.

Steps are timed one by one, to the end of all their work, with new random tokens. FLOPs are those of
`starcoder_jax.model.flops`, which counts the visible pairs of attention and no recomputation, for
both sides; MFU is over the peak of `starcoder_jax.parallel.hardware`.

Exit status: 0; 1 when attention fails, or differs by more than bfloat16 explains, 2e-2; 2 for bad
flags; 3 when something was not checked, or did not run to its end.
"""

import argparse
import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

from starcoder_jax.parallel.hardware import Chip, chip_of

CHILD = pathlib.Path(__file__).with_name("gpu_sides.py")
TOLERANCE = 2e-2
SIDES = ("parity", "starcoder_jax", "transformers")
# Where the state of 3B, 49 GB with its gradients, leaves room for more than the layers' inputs.
ROOMY_GIB = 100
MODEL_FLAGS = {
    "layers": "num_layers",
    "embed": "embed_dim",
    "heads": "num_heads",
    "kv_heads": "num_kv_heads",
    "mlp": "mlp_dim",
    "vocab": "vocab_size",
}
PACKAGES = (
    *("jax", "jaxlib", "jax-cuda13-plugin", "jax-cuda12-plugin", "flax", "optax"),
    *("nvidia-cudnn-cu13", "nvidia-cudnn-cu12", "torch", "triton", "flash-attn", "transformers"),
)


@dataclasses.dataclass(frozen=True)
class Attempt:
    """How a side is tried at a length; `recompute`: all of the forward pass, from layer inputs."""

    side: str
    length: int
    batch: int
    recompute: bool
    attention: str | None = None  # the peer's
    keep_window: bool = True  # of the peer: else it attends to all keys
    is_smaller: bool = False  # than the first try

    def after(self, outcome: dict) -> "Attempt | None":
        """The next try after one that failed, None to give up."""
        if outcome.get("out_of_memory"):
            if self.is_smaller or (self.recompute and self.batch == 1):
                return None
            if self.recompute:
                return dataclasses.replace(self, batch=self.batch // 2, is_smaller=True)
            return dataclasses.replace(self, recompute=True, is_smaller=True)
        if "failed" in outcome and self.attention == "flex_attention":
            return dataclasses.replace(self, attention="sdpa", keep_window=False)
        return None


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--limit_s", type=positive_number, default=480, help="seconds for everything"
    )
    parser.add_argument("--json", type=pathlib.Path, help="write all results to this file")
    parser.add_argument("--profile", type=pathlib.Path, help="profile a step of ours, in here")
    parser.add_argument("--sides", default=",".join(SIDES), help="comma-separated, of these")
    parser.add_argument("--lengths", default="4096,16384", help="comma-separated")
    parser.add_argument("--tokens", type=positive_number, default=16384, help="of a step")
    parser.add_argument("--window", type=positive_number, default=4096, help="of lengths beyond it")
    parser.add_argument("--parity_length", type=positive_number, default=512)
    parser.add_argument("--steps", type=positive_number, default=8, help="that are timed")
    parser.add_argument("--eager", action="store_true", help="PyTorch without torch.compile")
    for flag in MODEL_FLAGS:
        parser.add_argument(f"--{flag}", type=positive_number, help="default: of StarCoder2-3B")
    args = parser.parse_args()
    if args.json and not args.json.parent.is_dir():
        parser.error(f"--json={args.json}: make the folder first")
    args.sides = args.sides.split(",")
    for side in args.sides:
        if side not in SIDES:
            parser.error(f"--sides: {side!r} is none of {', '.join(SIDES)}")
    try:
        args.lengths = [positive_number(length) for length in args.lengths.split(",")]
    except ValueError:
        parser.error(f"--lengths={args.lengths} must be numbers of tokens, with commas")
    return args


def positive_number(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def environment() -> dict:
    """The GPU (None: there is none, or CUDA_VISIBLE_DEVICES hides it), its driver, versions."""
    found: dict = {"gpu": None, "python": platform.python_version(), "versions": {}}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    fields = "name,driver_version,memory.total,power.limit,clocks.max.sm"
    query = ["nvidia-smi", f"--id={visible}", f"--query-gpu={fields}", "--format=csv,noheader"]
    if visible and shutil.which("nvidia-smi"):
        done = subprocess.run(query, capture_output=True, text=True, check=True)
        names = ("gpu", "driver", "memory", "power_limit", "max_clock")
        values = (value.strip() for value in done.stdout.splitlines()[0].split(","))
        found |= dict(zip(names, values, strict=True))
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found["versions"][name] = importlib.metadata.version(name)
    found["xla_flags"] = os.environ.get("XLA_FLAGS", "")
    return found


def first_attempt(side: str, length: int, args: argparse.Namespace, memory: float) -> Attempt:
    """With a GPU of so many GiB; 0: none."""
    attention = None
    if side == "transformers":
        attention = "sdpa"
        if memory and importlib.util.find_spec("flash_attn"):
            attention = "flash_attention_2"
        elif memory and length > args.window:
            attention = "flex_attention"
    batch = max(args.tokens // length, 1)
    return Attempt(side, length, batch, memory < ROOMY_GIB, attention)


def run_child(job: dict, seconds: float, caches: str) -> dict:
    """What a child made known; "unfinished" or "failed" says why it is not all.

    Its output goes through files: a pipe would stay open as long as any compiler that it started.
    """
    inherited = os.environ | {
        "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0"),
        # As launch/flags/gpu.env.
        "XLA_PYTHON_CLIENT_MEM_FRACTION": os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92"),
        "TORCHINDUCTOR_CACHE_DIR": caches,
        "HF_HUB_OFFLINE": "1",
    }
    inherited.pop("JAX_COMPILATION_CACHE_DIR", None)  # compilation is measured
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        child = subprocess.Popen(
            [sys.executable, str(CHILD), json.dumps(job)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            env=inherited,
            start_new_session=True,
        )
        outcome: dict = {}
        try:
            child.wait(seconds)
        except subprocess.TimeoutExpired:
            outcome["unfinished"] = f"stopped after {seconds:.0f} s"
        finally:  # its own children too
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        output.seek(0)
        for line in output:
            if line.startswith("{") and line.endswith("}\n"):
                for name, value in json.loads(line).items():
                    is_more = isinstance(value, list)
                    outcome[name] = [*outcome.get(name, ()), *value] if is_more else value
        errors.seek(0)
        tail = [line.strip() for line in errors.read().splitlines() if line.strip()][-15:]
    if child.returncode and not outcome.keys() & {"unfinished", "failed"}:
        outcome["failed"] = f"status {child.returncode}: {tail[-1] if tail else ''}"
    if "failed" in outcome:
        print("\n".join(tail), file=sys.stderr)
    return outcome


def print_environment(environ: dict) -> None:
    versions = ", ".join(f"{name} {version}" for name, version in environ["versions"].items())
    if environ["gpu"] is None:
        print(f"no NVIDIA GPU; {platform.processor() or platform.machine()}; {versions}")
        return
    chip = chip_of(environ["gpu"])
    peak = f"MFU over {chip.peak_flops / 1e12:.0f} TFLOP/s ({chip.source})" if chip else "no MFU"
    print(
        f"{environ['gpu']}, {environ['memory']}, {environ['power_limit']}, at most "
        f"{environ['max_clock']}; driver {environ['driver']}; {peak}\n{versions}\n"
        f"XLA_FLAGS={environ['xla_flags']!r}"
    )


class Run:
    """Children one after the other, within the time that is left for them."""

    def __init__(self, args: argparse.Namespace, memory: float, caches: str):
        self.args, self.memory, self.caches = args, memory, caches
        self.deadline = time.monotonic() + args.limit_s
        self.jobs = [("parity", None)] if "parity" in args.sides else []
        self.jobs += [
            (side, length) for length in args.lengths for side in SIDES[1:] if side in args.sides
        ]

    def __call__(self, side: str, length: int | None, jobs_left: int) -> list[dict]:
        """The outcome of each try."""
        left = self.deadline - time.monotonic()
        # Half as much again as an even share: what a slow one takes, quick ones leave.
        end = time.monotonic() + (left if jobs_left == 1 else min(left, 1.5 * left / jobs_left))
        args = self.args
        if length is None:
            job = {"side": side, "gpu": self.memory > 0, "length": args.parity_length}
            return [self._child(job, end)]
        shared = {
            "gpu": self.memory > 0,
            "overlay": f"hardware/{'h200' if self.memory > ROOMY_GIB else 'a100-80gb'}.gin",
            "window": args.window,
            "model": {
                f"model.{field}": getattr(args, flag)
                for flag, field in MODEL_FLAGS.items()
                if getattr(args, flag) is not None
            },
            "steps": args.steps,
            "eager": args.eager,
            "profile": str(args.profile / str(length)) if args.profile else None,
        }
        outcomes = []
        attempt = first_attempt(side, length, args, self.memory)
        while attempt is not None:
            fields = dataclasses.asdict(attempt)
            outcomes.append(fields | self._child(shared | fields, end))
            attempt = attempt.after(outcomes[-1])
        return outcomes

    def _child(self, job: dict, end: float) -> dict:
        seconds = end - time.monotonic()
        if seconds < 1:
            return {"unfinished": "not run: no time left"}
        print(f"{job['side']}, {job['length']} tokens ...", file=sys.stderr, flush=True)
        return run_child(job, seconds, self.caches)


def parity_verdict(outcome: dict) -> int:
    """The exit status that the attention kernels deserve: cuDNN may refuse packed documents."""
    rows = outcome.get("rows", [])
    is_bad = [
        "failed" in row
        or ("refused" in row and not row["segments"])
        or max(row.get("forward", 0), row.get("backward", 0)) > TOLERANCE
        for row in rows
    ]
    if any(is_bad) or "failed" in outcome:
        return 1
    return 3 if len(rows) < 24 or any("not_checked" in row for row in rows) else 0


def print_parity(outcome: dict) -> None:
    print(
        f"\nattention in bfloat16 beside the float32 reference, largest error; limit {TOLERANCE:g}"
    )
    print(f"{'backend':<9}{'heads':<13}{'window':<8}{'packed':<8}{'forward':>9}{'backward':>10}")
    rows = outcome.get("rows", [])
    for row in rows:
        packed = "yes" if row["segments"] else "no"
        start = f"{row['backend']:<9}{row['heads']:<13}{row['window'] or 'none':<8}{packed:<8}"
        if "forward" in row:
            mark = "" if max(row["forward"], row["backward"]) <= TOLERANCE else "  EXCEEDED"
            print(f"{start}{row['forward']:>9.1e}{row['backward']:>10.1e}{mark}")
            continue
        kind = next(name for name in ("refused", "failed", "not_checked") if name in row)
        print(f"{start} {kind.replace('_', ' ')}: {row[kind]}")
    print(
        f"{sum('forward' in row for row in rows)} of 24 measured, "
        f"{sum('refused' in row for row in rows)} refused{_trouble(outcome)}",
        flush=True,
    )


def print_training_header() -> None:
    print(
        f"\n{'side':<15}{'length':>7}{'batch':>6}{'s a step':>10}{'spread':>8}{'tokens/s':>10}"
        f"{'MFU':>7}{'peak GB':>9}{'compile s':>11}{'losses':>14}  attention and memory"
    )


def print_training(result: dict, chip: Chip | None) -> None:
    start = f"{result['side']:<15}{result['length']:>7}{result['batch']:>6}"
    steps = result.get("step_s")
    if not steps:
        print(f"{start}{_trouble(result)}", flush=True)
        return
    median = statistics.median(steps)
    spread = (max(steps) - min(steps)) / median
    mfu = f"{result['flops'] / median / chip.peak_flops:.1%}" if chip else "-"
    memory = f"{result['peak_bytes'] / 1e9:.1f}" if result.get("peak_bytes") else "-"
    # PyTorch compiles as it runs: by how much the first step was longer.
    compilation = result.get("compile_s", result["first_step_s"] - median)
    losses = f"{result['losses'][0]:.2f} to {result['losses'][-1]:.2f}"
    keys = "" if result["keep_window"] else ", all keys instead of a window: more work"
    print(
        f"{start}{median:>10.3f}{spread:>8.1%}{tokens_per_second(result):>10,.0f}{mfu:>7}"
        f"{memory:>9}{compilation:>11.1f}{losses:>14}  {result['computes']}{keys}"
        f"{_trouble(result)}",
        flush=True,
    )


def print_summary(results: list[dict]) -> None:
    """Ratios, and where the time of a profiled step went."""
    for length in dict.fromkeys(result["length"] for result in results):
        timed = {r["side"]: r for r in results if r["length"] == length and r.get("step_s")}
        if len(timed) == 2:
            ours, theirs = timed["starcoder_jax"], timed["transformers"]
            ratio = tokens_per_second(ours) / tokens_per_second(theirs)
            print(f"{length} tokens: starcoder_jax is {ratio:.2f} times as fast as transformers")
    for result in results:
        if "kernels" in result:
            kernels = result["kernels"]
            total = sum(kernel["seconds"] for kernel in kernels)
            print(f"\nkernels of a step at {result['length']} tokens: {total:.3f} s")
            for kernel in kernels[:20]:
                print(f"{kernel['seconds'] / total:>7.1%}  {kernel['name'][:85]}")


def tokens_per_second(result: dict) -> float:
    return result["batch"] * result["length"] / statistics.median(result["step_s"])


def _trouble(outcome: dict) -> str:
    """Why an outcome is not all that was asked for."""
    words = [outcome[name] for name in ("failed", "unfinished") if name in outcome]
    return "; ".join(["", *words])


def main() -> None:
    args = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # with the children
    environ = environment()
    print_environment(environ)
    shapes = {"lengths": args.lengths, "tokens": args.tokens, "window": args.window}
    shapes |= {flag: getattr(args, flag) or "3B's" for flag in MODEL_FLAGS}
    print(", ".join(f"{name} {value}" for name, value in shapes.items()), flush=True)

    training: list[dict] = []
    report: dict = {"environment": environ, "shapes": shapes, "training": training}
    status = 0
    with tempfile.TemporaryDirectory() as caches:
        run = Run(args, float(environ.get("memory", "0").split()[0]) / 1024, caches)
        for number, (side, length) in enumerate(run.jobs):
            outcomes = run(side, length, len(run.jobs) - number)
            if length is None:
                report["parity"] = outcomes[0]
                print_parity(outcomes[0])
                status = parity_verdict(outcomes[0])
            else:
                if not training:
                    print_training_header()
                training += outcomes
                for outcome in outcomes:
                    print_training(outcome, chip_of(environ["gpu"] or ""))
                if "step_s" not in outcomes[-1] or _trouble(outcomes[-1]):
                    status = status or 3
            if args.json:  # each time: what stops the run leaves what it has measured
                args.json.write_text(json.dumps(report, indent=1))
    print_summary(training)
    sys.exit(status)


if __name__ == "__main__":
    main()
