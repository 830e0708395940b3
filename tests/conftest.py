"""Shared settings: 64-bit on, strict promotion, reference data, hypothesis profile."""

import gc
import os
from pathlib import Path

import jax
import pytest
from hypothesis import HealthCheck, settings

# Tests compile far more than they compute. On a CPU, XLA's older code generator without LLVM's
# optimisations compiles them three times as fast; set XLA_FLAGS, also to nothing, to test with the
# flags of your choice. Other releases may not know these flags, and XLA ends the process on one it
# does not know.
if jax.__version_info__[:2] == (0, 10):
    os.environ.setdefault(
        "XLA_FLAGS",
        "--xla_cpu_use_fusion_emitters=false --xla_backend_optimization_level=0 "
        "--xla_cpu_parallel_codegen_split_count=1",
    )

# Trees that a test searches for are its own.
os.environ["KLPROJAX_TREES"] = ""

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

settings.register_profile(
    "klprojax",
    deadline=None,
    derandomize=True,
    max_examples=20,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("klprojax")


# Tracing makes objects by the million, few of them garbage; looking for it took 7 % of the time.
gc.set_threshold(20_000, 20, 20)


def pytest_collection_finish():
    # What is imported by now stays.
    gc.freeze()


def pytest_addoption(parser):
    parser.addoption(
        "--data-dir",
        default=os.environ.get("KLPROJAX_DATA"),
        help="folder with reference models and answers (default: $KLPROJAX_DATA)",
    )


@pytest.fixture(scope="session")
def data_dir(request) -> Path:
    """The folder of reference data; tests that need it are skipped without one."""
    value = request.config.getoption("--data-dir")
    if not value:
        pytest.skip("needs --data-dir or KLPROJAX_DATA")
    return Path(value)
