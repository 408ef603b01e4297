"""Groups of processes, by torch.distributed."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist


def group_of(name: str, group: Any) -> dist.ProcessGroup:
    """The group that an argument called ``name`` means: one as it is, or "default".

    Raises:
        ValueError: torch.distributed is not initialised.
        TypeError: it is no group, or this process is no member of it.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise ValueError(
            f"{name} needs torch.distributed: start the processes by torchrun and call "
            "torch.distributed.init_process_group() in each."
        )
    if isinstance(group, str) and group == "default":
        group = dist.group.WORLD
    if not isinstance(group, dist.ProcessGroup):
        raise TypeError(
            f"{name} must be 'default' or a group that this process is a member of, got {group!r}."
        )
    return group
