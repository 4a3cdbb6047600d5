"""What a training step will need and how fast it will be, on machines that are not there."""
