"""The commands, one file each: what the command line says, and how the result is printed."""

# The modules have `parser()` and `main(arguments)`.
COMMANDS = {
    "info": ("paddle_dense.commands.info", "describe a weight file"),
    "list": ("paddle_dense.commands.list", "list the presets, or their released weights"),
    "pull": ("paddle_dense.commands.pull", "download released weights"),
    "torch2paddle": ("convert.torch2paddle", "convert PyTorch checkpoints to Paddle"),
    "paddle2torch": ("convert.paddle2torch", "convert Paddle weights to PyTorch"),
    "parity": ("convert.parity.__main__", "compare a checkpoint's network in both frameworks"),
    "train": ("paddle_dense.commands.train", "train, continue, fine-tune, evaluate"),
    "predict": ("paddle_dense.commands.predict", "tell what images show"),
    "evaluate": ("paddle_dense.commands.evaluate", "measure how often a network is right"),
    "deploy": ("paddle_dense.commands.deploy", "make a network fast and export it"),
    "app": ("paddle_dense.commands.app", "serve a page that converts weights and tells what images show"),
    "completion": ("paddle_dense.commands.completion", "print a script that completes these commands in a shell"),
}
