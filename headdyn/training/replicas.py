"""One training on several devices: `torchrun --nproc-per-node 4 -m headdyn.run …`, one process a device.

Data parallelism, as in DDP and nanochat: every process has a replica of the model and of both optimizers, processes its
share of each batch, and adds its gradients to those of the others, so that all make the same update. Process 0 does
everything else of the run; the others only take part in trainings. Nothing is sharded: a model that does not fit on one
device is better trained with torchtitan or OLMo-core.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from headdyn.training.settings import process, processes

T = TypeVar("T")
_TIMEOUT = timedelta(days=7)  # the others wait while process 0 builds a corpus or runs analyses


def join() -> None:
    """Connect to the other processes, and use the GPU with this process's local rank. Later calls do nothing."""
    if dist.is_initialized():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=_TIMEOUT)


def from_process_0(make: Callable[[], T]) -> T:
    """Return on every process what `make` returns on process 0: with several processes a copy, its tensors on the CPU.

    Every process must call it; `make` is called on process 0 alone.
    """
    if processes() == 1:
        return make()
    buffer = io.BytesIO()
    if process() == 0:
        torch.save(make(), buffer)
    message: list[Any] = [buffer.getvalue()]
    dist.broadcast_object_list(message, device=torch.device("cpu"))
    # This unpickles any object, as the broadcast itself does; the sender is a process of this job.
    return torch.load(io.BytesIO(message[0]), map_location="cpu", weights_only=False)


def add_up(tensors: Sequence[Tensor]) -> None:
    """Replace every tensor, in place, by its sum over the processes. All tensors are sent as one message."""
    if processes() == 1:
        return
    total = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(total)
    for tensor, its_sum in zip(tensors, total.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(its_sum.view_as(tensor))


def release() -> None:
    """Called by process 0 when there is nothing more to train: let the other processes end."""
    if processes() > 1:
        join()
        from_process_0(lambda: None)  # None in place of a training (`next_token.help_process_0`)
        leave()


def leave() -> None:
    """Disconnect from the other processes. Otherwise a thread that still listens may abort this one when it ends."""
    dist.destroy_process_group()
