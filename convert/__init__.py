"""From PyTorch checkpoints to Paddle and back, checked by running both frameworks."""
