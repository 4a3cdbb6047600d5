"""Opening and writing a StarCoder2-3B checkpoint: starcoder_jax beside transformers, same run.

    python benchmarks/huggingface.py --directory=SCRATCH

Writes a checkpoint of random bfloat16 parameters with PyTorch and transformers alone, then times
ours (convert to Orbax and back, load_model, save_model) and theirs (from_pretrained,
save_pretrained), taking turns. Every step is a process of its own, on the CPU, so that its peak
memory is its own: VmHWM, which counts pages of mapped files too. Loading ends when every parameter
has been touched, writing when the files are on the disk. What is read was just written: as much of
it as memory holds comes from there and not from the disk.

Compared are all files written with the original, tensor by tensor and bit for bit, and the logits
of one pass in float32. Exit status 1 if bits differ, or logits by more than 1e-3 of the largest.

A run that was interrupted goes on with the same command. At the end SCRATCH is emptied of what the
run put there, at most three times the checkpoint's 6 GB.
"""

import argparse
import importlib.metadata
import json
import os
import pathlib
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

LARGEST_DIFFERENCE = 1e-3  # of the logits, relative to the largest
WRITTEN = ("converted", "ours", "theirs")  # checkpoints that must equal the original


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--directory", type=pathlib.Path, required=True, help="for scratch files")
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--embed", type=int, default=3072)
    parser.add_argument("--heads", type=int, default=24)
    parser.add_argument("--kv_heads", type=int, default=2)
    parser.add_argument("--vocab", type=int, default=49152)
    parser.add_argument("--length", type=int, default=512, help="tokens of the forward pass")
    parser.add_argument("--shard_bytes", type=int, default=2_500_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--step", help=argparse.SUPPRESS)  # set for the child processes
    return parser.parse_args()


def write_original(args: argparse.Namespace) -> dict:
    """One shard in memory at a time; names and shapes are those of transformers' own model."""
    import torch
    import transformers
    from safetensors.torch import save_file

    from starcoder_jax.data.tokenizer_training import train_tokenizer

    target = args.directory / "original"
    target.mkdir()
    config = transformers.Starcoder2Config(
        vocab_size=args.vocab,
        hidden_size=args.embed,
        intermediate_size=4 * args.embed,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        num_key_value_heads=args.kv_heads,
        max_position_embeddings=16384,
        sliding_window=4096,
        rope_parameters={"rope_type": "default", "rope_theta": 999999.4420358813},
        bos_token_id=0,
        eos_token_id=0,
        dtype="bfloat16",
        architectures=["Starcoder2ForCausalLM"],
    )
    config.save_pretrained(target)
    train_tokenizer([pathlib.Path(__file__).read_text()], kind="bpe", vocab_size=300).save(target)
    with torch.device("meta"):
        shapes = {
            name: parameter.shape
            for name, parameter in transformers.Starcoder2ForCausalLM(config).named_parameters()
        }
    shards, size = [[]], 0
    for name, shape in shapes.items():
        if size + 2 * shape.numel() > args.shard_bytes and shards[-1]:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += 2 * shape.numel()
    generator = torch.Generator().manual_seed(0)
    places = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        places |= dict.fromkeys(names, file)
        tensors = {}
        for name in names:
            values = torch.empty(shapes[name], dtype=torch.bfloat16)
            # In bfloat16 at once: the embedding in float32 would be half a gigabyte more.
            values.normal_(1.0 if name.endswith("norm.weight") else 0.0, 0.02, generator=generator)
            tensors[name] = values
        save_file(tensors, target / file, metadata={"format": "pt"})
    total = sum(2 * shape.numel() for shape in shapes.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (target / "model.safetensors.index.json").write_text(json.dumps(index))
    os.sync()
    return {"bytes": total, "tensors": len(shapes), "shards": len(shards)}


def convert(args: argparse.Namespace, source: str, target: str, form: str) -> dict:
    from starcoder_jax.convert import main

    start = time.perf_counter()
    main(
        [
            f"--source={args.directory / source}",
            f"--target={args.directory / target}",
            f"--format={form}",
        ]
    )
    os.sync()
    return {"seconds": time.perf_counter() - start, "peak": peak_memory()}


def load_and_save_ours(args: argparse.Namespace) -> dict:
    import jax

    import starcoder_jax as sj

    start = time.perf_counter()
    model, tokenizer = sj.load_model(args.directory / "original", dtype="bfloat16")
    jax.block_until_ready(jax.tree.leaves(model))
    return timed_saving(
        start, lambda: sj.save_model(model, args.directory / "ours", tokenizer=tokenizer)
    )


def load_and_save_theirs(args: argparse.Namespace) -> dict:
    import torch
    import transformers

    start = time.perf_counter()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        args.directory / "original", dtype=torch.bfloat16
    )
    for parameter in model.parameters():
        parameter.detach().view(-1)[::2048].sum()  # a value of every page
    return timed_saving(start, lambda: model.save_pretrained(args.directory / "theirs"))


def timed_saving(start: float, save: Callable[[], None]) -> dict:
    """Time and peak memory of loading, which began at `start` and is done, and of saving."""
    loaded = time.perf_counter()
    load_peak = peak_memory()
    save()
    os.sync()
    return {
        "load": {"seconds": loaded - start, "peak": load_peak},
        "save": {"seconds": time.perf_counter() - loaded, "peak": peak_memory()},
    }


def tokens(args: argparse.Namespace):
    import numpy as np

    return np.random.default_rng(0).integers(0, args.vocab, (1, args.length)).astype(np.int32)


def forward_ours(args: argparse.Namespace) -> dict:
    import jax
    import numpy as np

    import starcoder_jax as sj

    model, _ = sj.load_model(args.directory / "original", dtype="float32")
    forward = jax.jit(lambda model, tokens: model(tokens))
    return timed_forward(args, "ours", lambda: np.asarray(forward(model, tokens(args))))


def forward_theirs(args: argparse.Namespace) -> dict:
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        args.directory / "original", dtype=torch.float32
    )
    ids = torch.tensor(tokens(args)).long()
    with torch.no_grad():
        return timed_forward(args, "theirs", lambda: model(ids, use_cache=False).logits.numpy())


def timed_forward(args: argparse.Namespace, side: str, forward: Callable) -> dict:
    """Writes the logits, and times the second pass: the first one compiles or warms up."""
    import numpy as np

    np.save(args.directory / f"{side}.npy", forward())
    start = time.perf_counter()
    forward()
    return {"seconds": time.perf_counter() - start, "peak": peak_memory()}


def compare_logits(args: argparse.Namespace) -> dict:
    import numpy as np

    ours, theirs = (np.load(args.directory / f"{side}.npy") for side in ("ours", "theirs"))
    largest = np.abs(theirs).max()
    return {"largest": float(largest), "difference": float(np.abs(ours - theirs).max() / largest)}


def compare_files(args: argparse.Namespace, name: str) -> dict:
    """How many tensors of the original a written checkpoint holds bit for bit, and how many not."""
    import torch
    from safetensors import safe_open

    def places(directory: pathlib.Path) -> dict:
        files = [safe_open(file, "pt") for file in sorted(directory.glob("*.safetensors"))]
        return {tensor: file for file in files for tensor in file.keys()}  # noqa: SIM118

    def same(first: torch.Tensor, second: torch.Tensor) -> bool:
        return first.dtype == second.dtype and torch.equal(
            first.view(torch.int16), second.view(torch.int16)
        )

    expected = places(args.directory / "original")
    found = places(args.directory / name)
    equal = sum(
        same(expected[tensor].get_tensor(tensor), found[tensor].get_tensor(tensor))
        for tensor in expected.keys() & found.keys()
    )
    return {"equal": equal, "different": len(expected.keys() | found.keys()) - equal}


def peak_memory() -> int:
    """The largest resident memory that this process has had, in bytes."""
    status = pathlib.Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return 1024 * int(line.split()[1])


# Name -> what the process does; what it is to write, under the scratch directory.
STEPS: dict[str, tuple[Callable[[argparse.Namespace], dict], str]] = {
    "original": (write_original, "original"),
    "to_orbax": (lambda args: convert(args, "original", "orbax", "orbax"), "orbax"),
    "to_hf": (lambda args: convert(args, "orbax", "converted", "hf"), "converted"),
    "ours": (load_and_save_ours, "ours"),
    "theirs": (load_and_save_theirs, "theirs"),
    **{
        f"compare_{name}": (lambda args, name=name: compare_files(args, name), "")
        for name in WRITTEN
    },
    "forward_ours": (forward_ours, "ours.npy"),
    "forward_theirs": (forward_theirs, "theirs.npy"),
    "compare_logits": (compare_logits, ""),
}


class Run:
    """Runs steps in processes of their own, and remembers what came of them."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.directory = args.directory
        self.directory.mkdir(parents=True, exist_ok=True)
        self.file = self.directory / "results.json"
        # Another shape is another run.
        self.shape = {key: value for key, value in vars(args).items() if key != "directory"}
        self.results: dict = {"shape": self.shape}
        if self.file.exists():
            self.results = json.loads(self.file.read_text())
        if self.results["shape"] != self.shape:
            sys.exit(f"{self.directory} holds another run: give its arguments, or empty it")

    def __call__(self, step: str, repeat: int = 0) -> dict:
        """The result of a step, run now if it is not known."""
        key = f"{step} {repeat}"
        if key not in self.results:
            self.remove(STEPS[step][1])
            print(f"{step} ...", file=sys.stderr)
            options = [f"--{name}={value}" for name, value in self.shape.items() if value]
            command = [sys.executable, __file__, f"--directory={self.directory}", f"--step={step}"]
            done = subprocess.run(
                [*command, *options],
                env=os.environ | {"JAX_PLATFORMS": "cpu"},
                stdout=subprocess.PIPE,
                text=True,
            )
            if done.returncode:
                sys.exit(f"step {step} failed with status {done.returncode}")
            self.results[key] = json.loads(done.stdout.splitlines()[-1])
            partial = self.file.with_suffix(".partial")
            partial.write_text(json.dumps(self.results))
            partial.replace(self.file)  # whole, whenever the run is interrupted
        return self.results[key]

    def remove(self, *names: str) -> None:
        """Of what steps have written."""
        for name in filter(None, names):
            path = self.directory / name
            if path.is_dir():
                shutil.rmtree(path)
            path.unlink(missing_ok=True)


def main() -> None:
    args = parse_arguments()
    args.directory = args.directory.absolute()
    if args.step:
        print(json.dumps(STEPS[args.step][0](args)))
        return
    run = Run(args)
    original = run("original")
    rows: dict[str, list[dict]] = {}

    def add(name: str, result: dict) -> None:
        rows.setdefault(name, []).append(result)

    for repeat in range(args.repeats):
        add("ours: convert to Orbax", run("to_orbax", repeat))
        add("ours: convert to Hugging Face", run("to_hf", repeat))
        run("compare_converted", repeat)
        run.remove("orbax", "converted")
        for side, load, save in (
            ("ours", "load_model", "save_model"),
            ("theirs", "from_pretrained", "save_pretrained"),
        ):
            result = run(side, repeat)
            add(f"{side}: {load}", result["load"])
            add(f"{side}: {save}, after loading", result["save"])
            run(f"compare_{side}", repeat)
            run.remove(side)
    for side in ("ours", "theirs"):
        add(f"{side}: {args.length} tokens in float32", run(f"forward_{side}"))
    logits = run("compare_logits")
    different = report(args, original, rows, logits, run)
    run.remove("original", "ours.npy", "theirs.npy", "results.json")
    sys.exit(different or logits["difference"] > LARGEST_DIFFERENCE)


def report(args, original: dict, rows: dict, logits: dict, run: Run) -> bool:
    """Prints everything; returns whether any bit differs."""
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}"
        for name in ("jax", "orbax-checkpoint", "torch", "transformers", "safetensors")
    )
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores; {versions}")
    print(
        f"{original['bytes'] / 2e6:,.1f}M parameters in bfloat16, {original['shards']} files of "
        f"{original['bytes'] / 1e9:.2f} GB: layers {args.layers}, embed {args.embed}, heads "
        f"{args.heads}/{args.kv_heads}, vocabulary {args.vocab}"
    )
    print(f"{'':<40}{'seconds':>9}{'spread':>9}{'GB/s':>7}{'peak GB':>9}")
    for name, results in rows.items():
        seconds = [result["seconds"] for result in results]
        median = statistics.median(seconds)
        spread = f"{(max(seconds) - min(seconds)) / median:.1%}" if len(seconds) > 1 else ""
        speed = "" if "tokens" in name else f"{original['bytes'] / median / 1e9:.2f}"
        peak = max(result["peak"] for result in results) / 1e9
        print(f"{name:<40}{median:>9.2f}{spread:>9}{speed:>7}{peak:>9.2f}")
    any_different = False
    for name in WRITTEN:
        found = [run(f"compare_{name}", repeat) for repeat in range(args.repeats)]
        different = sum(result["different"] for result in found)
        any_different |= different > 0
        equal = sum(result["equal"] for result in found)
        print(f"{name}: {equal} tensors equal the original bit for bit, {different} do not")
    print(
        f"logits differ by at most {logits['difference']:.1e} of the largest, "
        f"{logits['largest']:.3f}"
    )
    return any_different


if __name__ == "__main__":
    main()
