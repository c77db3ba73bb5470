"""Deployment: exact rewriting for speed, export, and the environment that a CPU needs.

As in the package itself, names load on first use.
"""

import lazy_loader

from paddle_dense.environment import cpu_environment, set_cpu_environment

__getattr__, __dir__, _lazy = lazy_loader.attach(__name__, submod_attrs={"exporting": ["export"], "fusing": ["fuse"]})

__all__ = ["cpu_environment", "export", "fuse", "set_cpu_environment"]
