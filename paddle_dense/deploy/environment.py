"""The environment in which Paddle is fast on the processor it finds.

Paddle's CPU wheel carries an MKL from before 2020, which takes a slow path on AMD's processors unless it is told that
they have AVX2, and it starts with one thread. Both are settled by environment variables that are read once, when Paddle
loads; so the commands of this package call `set_cpu_environment` before they import it, and a program of one's own does
the same in its first lines::

    from paddle_dense.deploy.environment import set_cpu_environment

    set_cpu_environment()
    import paddle
"""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")


def cpu_environment() -> dict[str, str]:
    """What is right for this machine's processor, as environment variables; nothing is changed.

    Returns:
        ``OMP_NUM_THREADS``, the number of cores that this process may use, and on AMD's processors with AVX2
        ``MKL_DEBUG_CPU_TYPE=5``.
    """
    variables = {"OMP_NUM_THREADS": str(_usable_cores())}
    vendor, features = _processor()
    if "AMD" in vendor and "avx2" in features:
        variables["MKL_DEBUG_CPU_TYPE"] = "5"
    return variables


def set_cpu_environment() -> dict[str, str]:
    """Set what `cpu_environment` says in this process, but for variables that are set already.

    Returns:
        What was set.

    Raises:
        RuntimeError: Paddle is loaded already and would not notice.
    """
    if "paddle" in sys.modules:
        raise RuntimeError("Paddle has been imported already: call set_cpu_environment() before import paddle")
    variables = {name: value for name, value in cpu_environment().items() if name not in os.environ}
    os.environ.update(variables)
    return variables


def _usable_cores() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):  # no such limit
        return cores


def _processor() -> tuple[str, str]:
    """Vendor and features; outside Linux the features are not known, and AMD has had AVX2 since 2015."""
    if not _CPUINFO.exists():
        return platform.processor(), "avx2"
    lines = _CPUINFO.read_text().splitlines()
    told = dict(reversed([tuple(map(str.strip, line.partition(":")[::2])) for line in lines]))
    return told.get("vendor_id", ""), told.get("flags", "")
