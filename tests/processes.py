"""Two processes that form a group of torch.distributed, and run functions of the test modules."""

from __future__ import annotations

import pickle
import runpy
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

SIZE, PATIENCE = 2, 120  # processes; seconds

needs_gloo = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()),
    reason="this build of torch has no gloo, which joins processes without a GPU",
)


def member(rank: int, folder: str, orders: Any, answers: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=SIZE,
        timeout=timedelta(seconds=PATIENCE),
    )
    while (work := orders.get()) is not None:
        try:
            answers.put(pickle.dumps((work(rank), "")))
        except BaseException:
            answers.put(pickle.dumps((None, traceback.format_exc())))
            raise
    dist.destroy_process_group()


def example(name: str, **arguments: Any) -> Any:
    """What ``main`` of an example returns."""
    path = Path(__file__).resolve().parent.parent / "examples" / name
    return runpy.run_path(str(path))["main"](**arguments)


class Pair:
    """The processes, started by the first call, for all tests of a session."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.links, self.processes = folder, [], []

    def start(self) -> None:
        context = get_context("spawn")
        self.links = [(context.Queue(), context.Queue()) for _ in range(SIZE)]
        for rank, link in enumerate(self.links):
            process = context.Process(target=member, args=(rank, str(self.folder), *link))
            process.start()
            self.processes.append(process)

    def __call__(self, work: Callable[[int], Any]) -> list[Any]:
        """What ``work(rank)`` returns in each process; work is a function of a module."""
        if not self.processes:
            self.start()
        for orders, _ in self.links:
            orders.put(work)
        results = []
        for _, answers in self.links:
            result, trouble = pickle.loads(answers.get(timeout=PATIENCE))
            assert not trouble, trouble
            results.append(result)
        return results

    def close(self) -> None:
        for orders, _ in self.links:
            orders.put(None)
        for process in self.processes:
            process.join(10)
            if process.is_alive():
                process.kill()
