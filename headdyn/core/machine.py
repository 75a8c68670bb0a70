"""What this machine can do and how it is used: device, precision, threads, memory."""

import ctypes
import os
import platform
import resource
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import torch

Precision = Literal["bf16", "fp32"]


@dataclass(frozen=True)
class Machine:
    """The resolved choices a run is recorded with. `precision` is what training computes in: bf16 or fp32."""

    device: str
    precision: Precision
    threads: int


def resolve(device: str, precision: str, threads: int) -> Machine:
    """Turn `auto` into this machine's best. bf16 is chosen where the hardware multiplies it, else fp32.

    `threads=0` means one per core. Raises ValueError for CUDA where there is none and for bf16 it cannot do.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda, but PyTorch sees no CUDA device here; set device=cpu or device=auto")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if precision == "auto":
        precision = "bf16" if multiplies_bf16(device) else "fp32"
    torch.set_num_threads(threads or cores())
    return Machine(device, cast(Precision, precision), threads or cores())


def choose_gpu(number: int) -> None:
    """Let job `number` of several use one of the GPUs that this process sees: no launcher of Hydra's assigns them."""
    if torch.cuda.is_available():
        torch.cuda.set_device(number % torch.cuda.device_count())


def multiplies_bf16(device: str) -> bool:
    """Whether bfloat16 products run in hardware; elsewhere they are slower than float32."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported()


def cores() -> int:
    """The CPUs this process may use, and no more than OMP_NUM_THREADS where that is set."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    return min(usable, torch.get_num_threads()) if "OMP_NUM_THREADS" in os.environ else usable


def keep_freed_memory() -> None:
    """Tell glibc to keep freed buffers for reuse (mmap and trim thresholds up).

    A training step frees and allocates the same hundreds of MB; giving them back to the kernel each time cost a third
    of the step (25 against 35 thousand tokens/s at D128 L4 B32 T128, compiled, two cores). Elsewhere a no-op.
    """
    if libc := _glibc():
        m_trim_threshold, m_mmap_threshold = -1, -3  # malloc.h's numbers
        libc.mallopt(m_mmap_threshold, 1 << 30)
        libc.mallopt(m_trim_threshold, (1 << 31) - 1)


def return_freed_memory() -> None:
    """Give what is freed back to the system, so that one job's memory does not stand beside the next one's."""
    if libc := _glibc():
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL("libc.so.6") if sys.platform == "linux" and platform.libc_ver()[0] == "glibc" else None


def begin_peak_memory() -> bool:
    """Let `peak_memory_bytes` count from now. Whether this system can (Linux does); else it counts from the start."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # see proc(5)
    except OSError:
        return False
    return True


def peak_memory_bytes() -> int:
    """The process's largest resident size since `begin_peak_memory`."""
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS
