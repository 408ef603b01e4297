"""Folders of the cache in which programs are made; killed processes leave theirs behind."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

PREFIX = "build-"  # of their names
STALE = 3600.0  # seconds after which nobody works there any more


def clear_stale(cache: Path) -> None:
    """Remove those that were left behind."""
    for folder in cache.glob(f"{PREFIX}*"):
        try:
            old = time.time() - folder.stat().st_mtime > STALE
        except OSError:  # gone meanwhile
            continue
        if old:
            shutil.rmtree(folder, ignore_errors=True)
