"""What a machine is asked for; the choice of a GPU is tested in tests/test_launchers.py."""

import os
import sys
from types import SimpleNamespace

import pytest
import torch

from headdyn.core import machine


def test_a_gpu_that_is_not_there_is_refused_and_a_processor_is_not(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    threads = torch.get_num_threads()
    try:
        with pytest.raises(ValueError, match="device=cuda, but PyTorch sees no CUDA device here"):
            machine.resolve("cuda", "fp32", 1)
        assert machine.resolve("cpu", "fp32", 1) == machine.Machine("cpu", "fp32", 1)
        assert machine.resolve("auto", "fp32", 1).device == "cpu"
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("vendor", "avx512", "amx", "chosen"),
    [
        ("AuthenticAMD", True, False, "bf16"),
        ("AuthenticAMD", False, False, "fp32"),
        ("GenuineIntel", True, False, "fp32"),  # its instruction takes longer than two of float32
        ("GenuineIntel", True, True, "bf16"),
        ("", False, False, "fp32"),
    ],
)
def test_bf16_is_chosen_where_its_products_are_faster(monkeypatch, vendor, avx512, amx, chosen):
    monkeypatch.setattr(machine, "_vendor", lambda: vendor)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert machine.resolve("cpu", "auto", torch.get_num_threads()).precision == chosen


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/cpuinfo")
def test_the_vendor_is_the_systems():
    assert machine._vendor() in ("AuthenticAMD", "GenuineIntel", "")


def test_freed_memory_is_kept_by_both_thresholds_of_malloc_h(monkeypatch):
    """M_TRIM_THRESHOLD is -1 and M_MMAP_THRESHOLD -3 in glibc's malloc.h."""
    calls = {}
    monkeypatch.setattr(machine, "_glibc", lambda: SimpleNamespace(mallopt=calls.__setitem__))
    machine.keep_freed_memory()
    assert calls == {-1: 2**31 - 1, -3: 2**30}


def test_cores_are_those_of_this_process_of_the_machine_or_one(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 4, 5}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert machine.cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")  # which macOS has not
    assert machine.cores() == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert machine.cores() == 1
