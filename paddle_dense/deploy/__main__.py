"""``python -m paddle_dense.deploy`` hands over to the command `paddle_dense.commands.deploy`."""

import runpy

if __name__ == "__main__":
    runpy.run_module("paddle_dense.commands.deploy", run_name="__main__", alter_sys=True)
