"""What a processor needs, and that nothing is changed unasked."""

import os
import platform
import subprocess
import sys

import pytest

from paddle_dense import environment
from paddle_dense.environment import cpu_environment, set_cpu_environment, vector_lanes

CPUINFO = "processor\t: 0\nvendor_id\t: {vendor}\nflags\t\t: fpu {flags}\n\nprocessor\t: 1\nvendor_id\t: {vendor}\n"


@pytest.mark.parametrize(
    ("vendor", "flags", "expected"),
    [("AuthenticAMD", "avx avx2", "5"), ("AuthenticAMD", "avx", None), ("GenuineIntel", "avx avx2", None)],
)
def test_mkl_is_given_avx2_on_amd_only(tmp_path, monkeypatch, vendor, flags, expected):
    (tmp_path / "cpuinfo").write_text(CPUINFO.format(vendor=vendor, flags=flags))
    monkeypatch.setattr(environment, "_CPUINFO", tmp_path / "cpuinfo")
    assert cpu_environment().get("MKL_DEBUG_CPU_TYPE") == expected


@pytest.mark.parametrize(("flags", "lanes"), [("avx avx2", 8), ("avx avx2 avx512f avx512bw", 16), ("", 8)])
def test_vector_lanes(tmp_path, monkeypatch, flags, lanes):
    (tmp_path / "cpuinfo").write_text(CPUINFO.format(vendor="GenuineIntel", flags=flags))
    monkeypatch.setattr(environment, "_CPUINFO", tmp_path / "cpuinfo")
    assert vector_lanes() == lanes


def test_asking_changes_nothing():
    before = dict(os.environ)
    assert int(cpu_environment()["OMP_NUM_THREADS"]) >= 1
    assert dict(os.environ) == before


def run(code, **variables):
    environ = {key: value for key, value in os.environ.items() if key not in ("OMP_NUM_THREADS", "MKL_DEBUG_CPU_TYPE")}
    done = subprocess.run([sys.executable, "-c", code], env={**environ, **variables}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_is_set_before_paddle_loads_and_leaves_what_is_set():
    code = (
        "import os, sys\n"
        "from paddle_dense.environment import cpu_environment, set_cpu_environment\n"
        "print(set_cpu_environment() == {k: v for k, v in cpu_environment().items() if k != 'OMP_NUM_THREADS'})\n"
        "print(os.environ['OMP_NUM_THREADS'], 'paddle' in sys.modules)"
    )
    assert run(code, OMP_NUM_THREADS="7").split() == ["True", "7", "False"]


def test_importing_the_package_changes_no_environment():
    code = "import os; before = dict(os.environ); import paddle_dense.deploy; print(before == dict(os.environ))"
    assert run(code).split() == ["True"]


def test_after_paddle_it_is_too_late():
    import paddle  # noqa: F401

    with pytest.raises(RuntimeError, match="before import paddle"):
        set_cpu_environment()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc, whose allocator has settings")
def test_freed_memory_is_kept():
    code = (
        "import resource, numpy as np\n"
        "from paddle_dense.environment import set_cpu_environment\n"
        "{}\n"
        "def fill():\n"
        "    np.ones(1 << 22)\n"
        "fill()\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(10): fill()\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)"
    )
    assert int(run(code.format("set_cpu_environment()"))) < 100 < int(run(code.format("")))


def test_paddle_inference_frees_several_tensors_at_once():
    code = (
        "from paddle_dense.environment import cpu_environment, set_cpu_environment\n"
        "set_cpu_environment()\n"
        "import paddle\n"
        "flag = 'FLAGS_eager_delete_tensor_gb'\n"
        "print(paddle.get_flags(flag)[flag] == float(cpu_environment()[flag]) > 0)"
    )
    assert run(code).split() == ["True"]
