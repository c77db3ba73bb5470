"""``python -m paddle_dense.training`` hands over to the command `paddle_dense.commands.train`."""

import runpy

if __name__ == "__main__":
    runpy.run_module("paddle_dense.commands.train", run_name="__main__", alter_sys=True)
