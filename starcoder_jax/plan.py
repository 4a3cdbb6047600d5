"""Plans a training run for a machine without having it: does it fit, and how fast will it be?

    python -m starcoder_jax.plan --gin_file=15b.gin --topology=v5p-256
    python -m starcoder_jax.plan --gin_file=3b.gin --topology=v5litepod-256 --json
    python -m starcoder_jax.plan --gin_file=7b.gin --topology=v6e-256 --search --output=mine.gin

The step that `train` would run is compiled for the machine; for TPUs by libtpu
(pip install 'starcoder_jax[tpu]'), which needs no TPU. For GPUs and CPUs it is compiled for as many
simulated CPU devices: FLOPs and collectives are then about right, memory is not known.

--search compiles the ways to split the recipe over the machine that promise most, as many as it is
told (8), and ranks them by the predicted step time. The batch, the sequence length and the
attention backend stay as the recipe has them.
"""

import argparse
import json
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from starcoder_jax.command import add_recipe_flags, one_line_errors, parse

if TYPE_CHECKING:
    from starcoder_jax.planning.compile import Plan
    from starcoder_jax.planning.search import Ranking


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        prog="python -m starcoder_jax.plan",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_recipe_flags(parser)
    parser.add_argument(
        "--topology",
        required=True,
        help="v5p-256 or v5p:4x4x8, v5litepod-256, v6e-256, 2*v5p-256, h100:64, cpu:8, ...",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--search",
        nargs="?",
        type=int,
        const=8,
        metavar="COMPILES",
        help="find the fastest mesh, rematerialisation and micro-batches",
    )
    parser.add_argument("--output", type=pathlib.Path, help="overlay recipe for --search to write")
    args, overrides = parse(parser, argv)
    with one_line_errors("plan"):
        from starcoder_jax.parallel.topology import parse_topology

        topology = parse_topology(args.topology)
        if args.output is not None and args.search is None:
            raise ValueError("--output is written by --search: give both")
        if args.search is not None and (args.search < 1 or not topology.is_tpu):
            raise ValueError(
                "--search compiles at least once, and for TPUs: what fits is known there"
            )
        simulate(topology.num_devices)
        from starcoder_jax.planning.compile import make_plan
        from starcoder_jax.recipes import load_recipe

        name = "+".join(pathlib.Path(file).stem for file in args.gin_file)
        recipe = load_recipe(args.gin_file, overrides)
        if args.search is None:
            plan = make_plan(recipe, topology)
            print(json.dumps(plan.as_json(name)) if args.json else table(plan, name))
            return
        from starcoder_jax.planning.search import overlay, search

        ranking = search(
            recipe, topology, args.search, lambda line: print(line, file=sys.stderr, flush=True)
        )
        best = ranking.plans[0]
        if args.output is not None:
            header = f"{name} on {topology.name}, by plan --search: {summary(best)}"
            args.output.write_text(overlay(best, header), encoding="utf-8")
        if args.json:
            print(json.dumps([plan.as_json(name) for plan in ranking.plans]))
        else:
            print(ranking_table(ranking))
            print()
            print(table(best, name))


def simulate(num_devices: int) -> None:
    """Keeps JAX off this machine's accelerators, and gives it simulated devices instead."""
    import jax

    # libtpu would ask Google Cloud what machine this is, and refuse to be loaded twice.
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", num_devices)
    # Programs for machines that are not there cannot be read back from it.
    jax.config.update("jax_enable_compilation_cache", False)


def table(plan: "Plan", name: str) -> str:
    """What a person reads."""
    from starcoder_jax.planning.roofline import ASSUMPTIONS

    settings, model, topology = plan.recipe.train, plan.recipe.model, plan.topology
    gib = 2**30
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items() if size > 1) or "1"
    rows = [
        ("recipe", f"{name}, {plan.parameters / 1e9:.2f} billion parameters"),
        ("machine", f"{topology.name}: {topology.num_chips} chips; mesh {mesh}"),
        (
            "step",
            f"{settings.batch_size} x {settings.sequence_length:,} tokens in "
            f"{settings.micro_batches} micro-batch(es), rematerialisation "
            f"{model.rematerialization}, attention {model.attention_backend}",
        ),
    ]
    if topology.is_tpu:
        limit = topology.chip.hbm_bytes
        rows.append(
            (
                "memory",
                f"{plan.peak_bytes / gib:.2f} of {limit / gib:.2f} GiB a device at the peak, "
                f"{plan.state_bytes / gib:.2f} of them parameters and optimizer: "
                f"{'fits' if plan.fits else 'DOES NOT FIT'}",
            )
        )
    else:
        rows.append(
            (
                "memory",
                f"{plan.state_bytes / gib:.2f} GiB a device for parameters and optimizer; "
                "activations are not known without the machine's compiler",
            )
        )
    rows += [
        (
            "FLOPs",
            f"{plan.model_flops:.3g} of the model a step; {plan.hardware_flops:.3g} a device, "
            "recomputation included"
            + (
                ""
                if plan.moved_bytes is None
                else f"; {plan.moved_bytes / 1e9:.0f} GB to and from its memory"
            ),
        ),
        ("wire", f"{plan.collective_bytes / 1e9:.1f} GB sent by a device a step"),
    ]
    rows += [
        ("", f"{item.kind} x {item.count}: {item.wire_bytes / 1e9:.2f} GB in groups of "
             f"{item.group_size}{'' if item.is_overlapped else ', waited for'}")
        for item in plan.collectives[:6]
    ]  # fmt: skip
    if plan.bound is not None:
        tokens = settings.batch_size * settings.sequence_length
        rows += [
            (
                "prediction",
                f"{plan.bound.step:.3f} s a step (compute {plan.bound.compute:.3f}, collectives "
                f"{plan.bound.overlapped:.3f} beside it and {plan.bound.exposed:.3f} on top), MFU "
                f"{plan.mfu:.1%}, "
                f"{tokens / plan.bound.step:,.0f} tokens/s",
            ),
            *(("", f"assuming {assumption}") for assumption in ASSUMPTIONS),
        ]
    rows += [("compiled", f"in {plan.compile_seconds:.0f} s on this machine")]
    rows += [("", f"loop {loop} of unknown length, counted once") for loop in plan.unknown_loops]
    return "\n".join(f"{label:<12}{text}" for label, text in rows)


def summary(plan: "Plan") -> str:
    """Step time, MFU and memory in a few words."""
    return (
        f"{plan.bound.step:.3f} s a step, MFU {plan.mfu:.1%}, {plan.peak_bytes / 2**30:.1f} of "
        f"{plan.topology.chip.hbm_bytes / 2**30:.1f} GiB"
    )


def ranking_table(ranking: "Ranking") -> str:
    """What was compiled, the fastest first, then what does not fit and what was not tried."""
    from starcoder_jax.planning.search import describe

    rows = [(summary(plan), describe(plan.recipe)) for plan in ranking.plans]
    rows += [("does not fit", describe(item.recipe)) for item in ranking.too_large]
    rows += [
        (f"not tried, {item.bound.step:.3f} s at best", describe(item.recipe))
        for item in ranking.waiting[:3]
    ]
    if more := len(ranking.waiting[3:]):
        rows.append(("not tried", f"{more} more"))
    return "\n".join(f"{left:<48}{right}" for left, right in rows)


if __name__ == "__main__":
    main()
