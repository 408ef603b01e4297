"""Files a run is resumed from."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch

VERSION = 1


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint; a run that is killed meanwhile leaves the one before."""
    part = path.with_name(path.name + ".part")
    torch.save({"version": VERSION, **content}, part)
    os.replace(part, path)


def load(path: str | Path) -> dict[str, Any]:
    """Read one; only tensors and plain values are accepted, no code runs.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a checkpoint of this version.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {str(path)!r}.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is no checkpoint that training wrote.") from error
    if not isinstance(content, dict) or content.get("version") != VERSION:
        raise ValueError(f"{path} is no checkpoint of version {VERSION}.")
    return content


def random_state() -> dict[str, Any]:
    """Of torch's global generators, which dropout and the like draw from."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
