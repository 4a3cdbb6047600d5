"""From batches to a model: step, loss, optimizer, checkpoints, evaluation, loop."""
