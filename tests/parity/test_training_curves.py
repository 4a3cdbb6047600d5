"""From the same parameters and data, 50 steps of training lose what PyTorch's loop loses."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax import nnx

from starcoder_jax.training.loss import LossConfig
from starcoder_jax.training.optimizer import OptimizerConfig, make_optimizer
from starcoder_jax.training.step import TrainState, make_train_step

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

STEPS, WARMUP, PEAK, FLOOR = 50, 5, 2e-2, 2e-3
BATCHES, ROWS, LENGTH = 3, 4, 24  # few enough to be learnt by heart
TOLERANCE = 1e-4  # of the loss


def batches():
    rng = np.random.default_rng(0)
    return rng.integers(0, 320, (BATCHES, ROWS, LENGTH + 1)).astype(np.int32)


def our_curve(model):
    """Losses of the step that `python -m starcoder_jax.train` runs."""
    optimizer = make_optimizer(
        OptimizerConfig(PEAK, FLOOR, WARMUP, b1=0.9, b2=0.95, epsilon=1e-8), STEPS
    )
    train_step = reference.jit(make_train_step(model.config, optimizer, LossConfig()))
    params = nnx.to_pure_dict(nnx.state(model))
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        optimizer_state=optimizer.init(params),
        first_bad_step=jnp.full((), -1, jnp.int32),
    )
    losses, data = [], batches()
    for step in range(STEPS):
        weights = np.ones((ROWS, LENGTH), np.float32)
        state, metrics = train_step(state, data[step % BATCHES], weights)
        losses.append(metrics["loss"])
    return np.array(jax.device_get(losses))


def their_curve(model):
    """Losses of a plain PyTorch loop."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        lr=PEAK,
        betas=(0.9, 0.95),
        eps=1e-8,
    )

    def share_of_peak(step):
        if step < WARMUP:
            return (step + 1) / WARMUP
        floor = FLOOR / PEAK
        progress = (step - WARMUP + 1) / (STEPS - WARMUP)
        return floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share_of_peak)
    model.train()
    losses, data = [], torch.tensor(batches()).long()
    for step in range(STEPS):
        tokens = data[step % BATCHES]
        logits = model(tokens[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return np.array(losses)


@pytest.mark.parametrize("architecture", reference.CONFIGS)
def test_losses_fall_together(architecture, tmp_path):
    torch.manual_seed(0)
    config = reference.CONFIGS[architecture](attn_implementation="eager")
    theirs = transformers.AutoModelForCausalLM.from_config(config)
    ours = our_curve(reference.reopened(theirs, tmp_path))
    expected = their_curve(theirs)
    difference = np.abs(ours - expected) / expected
    print(
        f"{architecture}: from {expected[0]:.3f} to {expected[-1]:.3f}, "
        f"relative difference at most {difference.max():.1e}"
    )
    assert expected[0] > 5.5 and expected[-1] < 0.5 * expected[0]
    assert difference.max() < TOLERANCE
