"""This machine's device, precision, threads and memory."""

import ctypes
import os
import platform
import resource
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import torch

from headdyn.core.threads import usable_cores

Precision = Literal["bf16", "fp32"]


@dataclass(frozen=True)
class Machine:
    """Where and how a run computes, as its manifest states it. `precision` is that of training."""

    device: str
    precision: Precision
    threads: int


def resolve(device: str, precision: str, threads: int) -> Machine:
    """Replace `auto` by this machine's best: a GPU if there is one, and bf16 if the hardware multiplies it faster.

    Sets torch's number of threads; `threads=0` means one per core. Raises ValueError for `cuda` without a CUDA device.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda, but PyTorch sees no CUDA device here; set device=cpu or device=auto")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if precision == "auto":
        precision = "bf16" if bf16_is_faster(device) else "fp32"
    torch.set_num_threads(threads or cores())
    return Machine(device, cast(Precision, precision), threads or cores())


def choose_gpu(number: int) -> None:
    """Use one of the visible GPUs, by the number of this job, because Hydra's launchers assign none to their jobs."""
    if torch.cuda.is_available():
        torch.cuda.set_device(number % torch.cuda.device_count())


def bf16_is_faster(device: str) -> bool:
    """Whether the hardware multiplies bfloat16 faster than float32.

    Intel's AVX-512 instruction for bfloat16 is slower without AMX: on a Xeon, products took twice as long as in
    float32, and training steps of the laptop mode 1.4 times as long.
    """
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_amx_tile_supported() or (torch.cpu._is_avx512_bf16_supported() and _vendor() == "AuthenticAMD")


def _vendor() -> str:
    """The processor's vendor as Linux names it; "" elsewhere."""
    try:
        information = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""
    named = (line.partition(":")[2].strip() for line in information.splitlines() if line.startswith("vendor_id"))
    return next(named, "")


def cores() -> int:
    """How many CPUs this process may use, at most OMP_NUM_THREADS if that is set."""
    return min(usable_cores(), torch.get_num_threads()) if "OMP_NUM_THREADS" in os.environ else usable_cores()


def keep_freed_memory() -> None:
    """Let glibc keep freed buffers for reuse, by higher thresholds for mmap and trim. Does nothing without glibc.

    Every training step frees and allocates the same hundreds of MB. Giving them back to the kernel each time slowed
    training from 35 to 25 thousand tokens/s (D128 L4 B32 T128, compiled, two cores).
    """
    if libc := _glibc():
        m_trim_threshold, m_mmap_threshold = -1, -3  # malloc.h's numbers
        libc.mallopt(m_mmap_threshold, 1 << 30)
        libc.mallopt(m_trim_threshold, (1 << 31) - 1)


def return_freed_memory() -> None:
    """Give freed memory back to the system, so that it does not add to the memory that the next job needs."""
    if libc := _glibc():
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL("libc.so.6") if sys.platform == "linux" and platform.libc_ver()[0] == "glibc" else None


def begin_peak_memory() -> bool:
    """Let `peak_memory_bytes` count from now on. Returns False where that is impossible (everywhere but on Linux).

    The peak is then that since the process began.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5")  # see proc(5)
    except OSError:
        return False
    return True


def peak_memory_bytes() -> int:
    """The process's largest resident size since `begin_peak_memory`, or since it began if that returned False."""
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS
