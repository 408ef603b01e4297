"""Commands side by side, none of which outlives the call that started it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from subprocess import CompletedProcess, Popen

GRACE = 2.0  # s that a command which is stopped has to tidy up


def run(
    commands: Sequence[Sequence[str]], seconds: float, scratch: Path | None = None
) -> list[CompletedProcess[str]]:
    """What each command says, all running at the same time, in English.

    Their temporary files go to ``scratch``, or where the system has them.

    Those that take longer than ``seconds`` are stopped, status 124; one that cannot be started has
    status 127. Whatever ends the call early, Ctrl-C for example, stops all and their children.
    """
    running: list[Popen[str] | None] = []
    done = []
    until = time.monotonic() + seconds
    try:
        for command in commands:
            try:
                running.append(start(command, scratch))
                done.append(CompletedProcess(command, 124, "", f"gave up after {seconds:.0f} s"))
            except OSError as error:
                running.append(None)
                done.append(CompletedProcess(command, 127, "", str(error)))
        for i, process in enumerate(running):
            if process is not None:
                out, err = process.communicate(timeout=max(0.0, until - time.monotonic()))
                done[i] = CompletedProcess(commands[i], process.returncode, out, err)
    except subprocess.TimeoutExpired:
        pass
    finally:
        for process in running:
            if process is not None:
                stop(process)
    return done


def start(command: Sequence[str], scratch: Path | None) -> Popen[str]:
    """In a group of its own: whoever stops it reaches its children."""
    pipe, place = subprocess.PIPE, {} if scratch is None else {"TMPDIR": str(scratch)}
    return Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=pipe,
        stderr=pipe,
        text=True,
        errors="replace",
        env={**os.environ, "LC_ALL": "C", **place},
        start_new_session=True,
    )


def stop(process: Popen[str]) -> None:
    """End a process with its children, if it has not ended, and close what it wrote to."""
    with process:  # closes the pipes and waits
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
