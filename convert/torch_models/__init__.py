"""PyTorch twins of the Paddle networks: same arguments, same state_dict keys as the originals, same numbers."""
