"""What the child processes of gpu.py do; each is given a job as JSON, and nobody else calls it.

They print JSON objects, a line each, as soon as something is known: what was measured before a
process is stopped counts. A list adds to what earlier lines gave under the same name.
"""

import collections
import functools
import json
import math
import pathlib
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from starcoder_jax.recipes import Recipe

WARM_UP = 2  # steps that are not timed: the first ones compile, load kernels and fill caches
# Key heads, and query heads that share each.
HEADS = {"multi-head": (8, 1), "grouped": (2, 4), "multi-query": (1, 8)}


def emit(**fields: Any) -> None:
    print(json.dumps(fields), flush=True)


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def is_out_of_memory(error: Exception) -> bool:
    """JAX says RESOURCE_EXHAUSTED, PyTorch "out of memory", cuBLAS and cuDNN ALLOC_FAILED."""
    text = str(error)
    return any(mark in text for mark in ("RESOURCE_EXHAUSTED", "out of memory", "ALLOC_FAILED"))


# --- Attention: every backend that GPUs have, beside the reference. ---


def parity(job: dict) -> None:
    """Errors of output and gradients, relative to the largest value of the float32 reference.

    Inputs are bfloat16 and normal, heads have the 128 values of StarCoder2's. The reference gets
    the same inputs in float32, and its products are not rounded to TF32.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    from starcoder_jax.model.attention import ATTENTION, reference_attention
    from starcoder_jax.model.mask import AttentionMask
    from starcoder_jax.parallel.mesh import MeshConfig, make_mesh

    device = jax_device(job)
    length = job["length"]
    position = np.arange(length)
    packed = np.array([(position > length // 5) * 1 + (position > length // 2), 0 * position])

    @functools.cache
    def inputs(heads: str) -> tuple:
        kv_heads, groups = HEADS[heads]
        rng = np.random.default_rng(kv_heads)
        shapes = [(kv_heads, groups), (kv_heads,), (kv_heads,), (kv_heads, groups)]
        drawn = [rng.normal(size=(2, length, *shape, 128)) for shape in shapes]
        return tuple(jnp.asarray(values, jnp.bfloat16) for values in drawn)

    @functools.partial(jax.jit, static_argnums=0)
    def output_and_gradients(attend, query, key, value, gradient, mask):
        output, pull = jax.vjp(lambda *qkv: attend(*qkv, mask), query, key, value)
        return output, *pull(gradient)

    @functools.cache
    def expected(heads: str, window: int | None, is_packed: bool) -> list:
        mask = AttentionMask(window, jnp.asarray(packed) if is_packed else None)
        exact = [x.astype(jnp.float32) for x in inputs(heads)]
        with jax.default_matmul_precision("highest"):
            results = output_and_gradients(reference_attention, *exact, mask)
        return [np.asarray(x) for x in results]

    def errors(backend: str, heads: str, window: int | None, is_packed: bool) -> dict:
        reference = expected(heads, window, is_packed)
        # On a mesh, as training runs it.
        with jax.set_mesh(make_mesh(MeshConfig(fsdp=1), [device])):
            rows = ("replica", "fsdp")
            placed = [jax.device_put(x, jax.P(rows, *[None] * (x.ndim - 1))) for x in inputs(heads)]
            segments = jax.device_put(packed, jax.P(rows, None)) if is_packed else None
            mask = AttentionMask(window, segments)
            actual = output_and_gradients(ATTENTION[backend], *placed, mask)
        actual = [np.asarray(x, np.float32) for x in actual]
        found = [relative_error(*pair) for pair in zip(actual, reference, strict=True)]
        return {"forward": found[0], "backward": max(found[1:])}

    for backend in ("cudnn", "xla"):
        for heads in HEADS:
            for window in (None, 3 * length // 8):
                for is_packed in (False, True):
                    row = {
                        "backend": backend,
                        "heads": heads,
                        "window": window,
                        "segments": is_packed,
                    }
                    if backend == "cudnn" and not job["gpu"]:
                        emit(rows=[row | {"not_checked": "needs an NVIDIA GPU"}])
                        continue
                    try:
                        result = errors(backend, heads, window, is_packed)
                    except Exception as error:
                        is_ours = str(error).startswith("model.attention_backend=")
                        result = {"refused" if is_ours else "failed": first_line(error)}
                    emit(rows=[row | result])


def relative_error(actual, expected) -> float:
    """The largest difference over the largest expected value.

    Raises:
        ArithmeticError: a value is not finite, which no comparison would show.
    """
    import numpy as np

    if not np.isfinite(actual).all():
        raise ArithmeticError("not finite")
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


# --- Training steps. ---


def recipe_of(job: dict) -> "Recipe":
    """The packaged recipe for sequences of the job's length, on one GPU, in the shapes asked for.

    The first stage of StarCoder2 knows no window, as none would hide anything; the second does.
    """
    from starcoder_jax.recipes import load_recipe

    settings = {
        **job["model"],
        "model.max_length": job["length"],
        "train.sequence_length": job["length"],
        "train.batch_size": job["batch"],
        "train.micro_batches": 1,
    }
    has_window = job["length"] > job["window"]
    if has_window:
        settings["model.sliding_window"] = job["window"]
    if job["recompute"]:
        settings["model.rematerialization"] = "full"
    if not job["gpu"]:
        settings["model.attention_backend"] = "xla"
    return load_recipe(
        ["3b_long.gin" if has_window else "3b.gin", job["overlay"]],
        [f"{name}={value}" for name, value in settings.items()],
    )


def draw(recipe: "Recipe", number: int):
    """Random tokens of a step, int32 [batch, length + 1]; both sides get the same."""
    import numpy as np

    shape = (recipe.train.batch_size, recipe.train.sequence_length + 1)
    rng = np.random.default_rng(number)
    return rng.integers(0, recipe.model.vocab_size, shape).astype(np.int32)


def time_steps(job: dict, recipe: "Recipe", run: Callable[[int], float]) -> None:
    """Runs steps, which return the loss when all of their work is done."""
    from starcoder_jax.model.flops import training_flops

    settings = recipe.train
    emit(flops=training_flops(recipe.model, settings.batch_size, settings.sequence_length))
    for number in range(WARM_UP + job["steps"]):
        start = time.perf_counter()
        loss = run(number)
        seconds = time.perf_counter() - start
        if not math.isfinite(loss):
            raise ArithmeticError(f"the loss of step {number} is {loss}")
        emit(losses=[loss], **({"step_s": [seconds]} if number >= WARM_UP else {}))
        if number == 0:
            emit(first_step_s=seconds)


def jax_device(job: dict):
    import jax

    device = jax.devices()[0]
    if job["gpu"] and device.platform != "gpu":
        raise RuntimeError(f"JAX sees no GPU but a {device.platform}: pip install 'jax[cuda13]'")
    return device


def train_jax(job: dict) -> None:
    """The training step as `starcoder_jax.train` builds it."""
    import jax
    import numpy as np

    from starcoder_jax.training.program import make_devices, make_program

    device = jax_device(job)
    recipe = recipe_of(job)
    model = recipe.model
    emit(computes=f"{model.attention_backend}, keeps {_KEPT[model.rematerialization]}")
    mesh, rules = make_devices(recipe, [device])
    with jax.set_mesh(mesh):
        program = make_program(recipe, mesh, rules, end_of_text=0)
        start = time.perf_counter()
        step = program.step.lower(program.state, program.tokens, program.weights).compile()
        emit(compile_s=time.perf_counter() - start)
        state = jax.jit(program.fresh_state)()
        weights = np.ones(program.weights.shape, np.float32)
        weights = jax.device_put(weights, program.weights.sharding)

        def run(number: int) -> float:
            nonlocal state
            tokens = jax.device_put(draw(recipe, number), program.tokens.sharding)
            state, metrics = step(state, tokens, weights)
            jax.block_until_ready(state)
            return float(metrics["loss"])

        time_steps(job, recipe, run)
        emit(peak_bytes=(device.memory_stats() or {}).get("peak_bytes_in_use"))
        if job["profile"]:
            with jax.profiler.trace(job["profile"]):
                run(WARM_UP)
            written = sorted(pathlib.Path(job["profile"]).rglob("*.xplane.pb"))
            profile = jax.profiler.ProfileData.from_file(str(written[-1]))
            emit(kernels=kernel_times(profile.planes))


# What the backward pass finds in memory, as DecoderConfig.rematerialization names it.
_KEPT = {"none": "everything", "dots": "matrix products", "full": "layer inputs"}


def kernel_times(planes: Iterable) -> list[dict]:
    """Seconds that a GPU spent in each kernel, the longest first, from the planes of a profile."""
    seconds: dict[str, float] = collections.defaultdict(float)
    for plane in planes:
        for line in plane.lines if plane.name.startswith("/device:GPU") else ():
            if line.name.startswith("Stream"):
                for event in line.events:
                    seconds[event.name] += event.duration_ns / 1e9
    longest = sorted(seconds.items(), key=lambda item: -item[1])
    return [{"name": name, "seconds": value} for name, value in longest]


def train_torch(job: dict) -> None:
    """The same step with transformers: bfloat16 weights, and float32 masters of them for AdamW."""
    import torch
    import transformers

    device = torch.device("cuda" if job["gpu"] else "cpu")
    if job["gpu"] and not torch.cuda.is_available():
        raise RuntimeError("PyTorch sees no GPU: install a build for CUDA")
    recipe = recipe_of(job)
    model = recipe.model
    window = model.sliding_window if job["keep_window"] else None
    emit(computes=f"{job['attention']}, keeps {'layer inputs' if job['recompute'] else 'all'}")
    config = transformers.Starcoder2Config(
        vocab_size=model.vocab_size,
        hidden_size=model.embed_dim,
        intermediate_size=model.mlp_dim,
        num_hidden_layers=model.num_layers,
        num_attention_heads=model.num_heads,
        num_key_value_heads=model.num_kv_heads,
        max_position_embeddings=model.max_length,
        rope_parameters={"rope_type": "default", "rope_theta": model.rope_theta},
        sliding_window=window,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
    )
    mask = None
    if job["attention"] == "flex_attention":
        from torch.nn.attention.flex_attention import create_block_mask

        # Made once, instead of by transformers in every step.
        mask = create_block_mask(
            lambda batch, head, query, key: (key <= query) & (key > query - window),
            *(None, None, model.max_length, model.max_length),
            device=device,
        )
    elif job["gpu"] and job["attention"] == "sdpa":
        # Flash attention or an error, never a slower kernel in silence.
        torch.backends.cuda.enable_math_sdp(False)
        torch.backends.cuda.enable_mem_efficient_sdp(False)
        torch.backends.cuda.enable_cudnn_sdp(False)
    torch.manual_seed(0)
    with device:
        network = transformers.AutoModelForCausalLM.from_config(
            config, dtype=torch.bfloat16, attn_implementation=job["attention"]
        )
    network.train()

    def loss_of(hidden, targets):
        logits = network.lm_head(hidden).flatten(0, 1)
        return torch.nn.functional.cross_entropy(logits.float(), targets.flatten())

    if not job["eager"]:
        # A layer at a time: all share one compilation, which of the whole model takes minutes.
        torch._dynamo.config.fail_on_recompile_limit_hit = True  # or it would go on uncompiled
        loss_of = torch.compile(loss_of)
    for layer in network.model.layers:
        forward = layer.forward if job["eager"] else torch.compile(layer.forward)
        if job["recompute"]:
            forward = functools.partial(
                torch.utils.checkpoint.checkpoint,
                forward,
                use_reentrant=False,
                preserve_rng_state=False,
            )
        layer.forward = forward

    weights = list(network.parameters())
    masters = [torch.nn.Parameter(weight.detach().float()) for weight in weights]
    for weight, master in zip(weights, masters, strict=True):
        weight.register_post_accumulate_grad_hook(functools.partial(_hand_over, master))
    settings = recipe.optimizer
    optimizer = torch.optim.AdamW(
        masters,
        lr=settings.peak_learning_rate / max(settings.warmup_steps, 1),
        betas=(settings.b1, settings.b2),
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
        fused=True,
    )

    def run(number: int) -> float:
        tokens = torch.tensor(draw(recipe, number), dtype=torch.long, device=device)
        hidden = network.model(tokens[:, :-1], attention_mask=mask, use_cache=False)
        loss = loss_of(hidden.last_hidden_state, tokens[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(masters, settings.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for weight, master in zip(weights, masters, strict=True):
                weight.copy_(master)
        if job["gpu"]:
            torch.cuda.synchronize()
        return loss.item()

    time_steps(job, recipe, run)
    emit(peak_bytes=torch.cuda.max_memory_allocated() if job["gpu"] else None)


def _hand_over(master, weight) -> None:
    """Moves a gradient to the master, so that it does not exist twice."""
    master.grad = weight.grad.float()
    weight.grad = None


SIDES = {"parity": parity, "starcoder_jax": train_jax, "transformers": train_torch}


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    try:
        SIDES[given["side"]](given)
    except Exception as error:
        traceback.print_exc()
        emit(failed=first_line(error), out_of_memory=is_out_of_memory(error))
        sys.exit(1)
