"""Explicit and automatic mesh axes: four devices give what one gives (see `_on_four_devices`)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("dtype", "part"),
    [
        pytest.param("float32", "inference+others+more", marks=pytest.mark.slow),
        pytest.param("float64", "more", marks=pytest.mark.slow),
        ("float64", "inference"),
        ("float64", "others"),
    ],
)
def test_four_devices_equal_one(dtype, part):
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
    environment = {
        **os.environ,
        "XLA_FLAGS": flags,
        "JAX_ENABLE_X64": str(int(dtype == "float64")),
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests._on_four_devices", dtype, part],
        cwd=Path(__file__).parents[1],
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-4000:]
