"""What a machine is asked for; the choice of a GPU is tested in tests/test_launchers.py."""

from types import SimpleNamespace

from headdyn.core import machine


def test_freed_memory_is_kept_by_both_thresholds_of_malloc_h(monkeypatch):
    """M_TRIM_THRESHOLD is -1 and M_MMAP_THRESHOLD -3 in glibc's malloc.h."""
    calls = {}
    monkeypatch.setattr(machine, "_glibc", lambda: SimpleNamespace(mallopt=calls.__setitem__))
    machine.keep_freed_memory()
    assert calls == {-1: 2**31 - 1, -3: 2**30}
