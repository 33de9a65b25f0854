"""What JAX reads when it is imported: eight CPU devices, quick compilation, one cache of compiled programs for a run.

CMJAX_TESTS_CACHE names a folder for that cache, which then stays for the runs after this one.

Worker processes, and the commands that tests start, inherit all of it from the first process.
"""

from __future__ import annotations

import importlib.metadata
import os
import tempfile

__all__ = ["CACHE", "is_optimized", "is_worker"]

FLAGS = (
    "--xla_force_host_platform_device_count=8",
    # On a busy machine one of the eight may come a minute after the others; XLA's patience is 40 seconds.
    "--xla_cpu_collective_call_terminate_timeout_seconds=600",
)
# Nearly all of the tests' time goes to LLVM, and code that it does not optimize takes half of it. CI runs a part of the
# tests optimized too: CMJAX_TESTS_OPTIMIZED=1.
QUICK = ("--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true")
# Before jaxlib 0.11 loops can be written without MLIR, in half of the time; later versions have no such flag.
QUICK_OLD = ("--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1")

is_optimized = bool(os.environ.get("CMJAX_TESTS_OPTIMIZED"))
is_worker = "PYTEST_XDIST_WORKER" in os.environ
CACHE: tempfile.TemporaryDirectory[str] | None = None  # removed when the first process ends

if not is_worker:
    is_old = importlib.metadata.version("jaxlib").startswith("0.10.")
    quick = () if is_optimized else (*QUICK, *(QUICK_OLD if is_old else ()))
    os.environ["XLA_FLAGS"] = " ".join([*FLAGS, *quick, os.environ.get("XLA_FLAGS", "")]).strip()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # numbers are compared bit for bit: all machines run the same kernels
    shared = os.environ.get("CMJAX_TESTS_CACHE")
    CACHE = None if shared else tempfile.TemporaryDirectory(prefix="cmjax-tests-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = CACHE.name if CACHE else str(shared)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"  # reading any program is less work than compiling it
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
