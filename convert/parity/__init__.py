"""Whether PyTorch and Paddle do the same: forward and layer by layer (`forward`), and in training (`training`)."""
