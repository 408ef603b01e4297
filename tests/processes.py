"""Runs a function in several processes that form one group of torch.distributed."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

needs_gloo = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()),
    reason="this build of torch has no gloo, which joins processes without a GPU",
)


def member(rank: int, size: int, work: Callable[[int], Any], folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=60),
    )
    torch.save(work(rank), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def together(work: Callable[[int], Any], folder: Path, size: int = 2) -> list[Any]:
    """What ``work(rank)`` returns in each of ``size`` processes; work is a module's function."""
    torch.multiprocessing.spawn(member, (size, work, str(folder)), nprocs=size)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(size)]
