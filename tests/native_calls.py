"""Compiled programs called on problems: what the tests of the native engine share."""

from __future__ import annotations

from ctypes import addressof, byref
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import native_model as texts
import torch
from torch import Tensor

import ocp
from ocp.engines import Expansion, Policy, Sweep, Trials
from ocp.engines.base import ROWS
from ocp.engines.native import abi, build, emit
from ocp.solvers.decide import Rules
from ocp.solvers.loop import State

I64 = torch.int64
TRIALS = 12
RULES = Rules()


decide_text = cache(emit.decide_text)


def address(value: Tensor | None) -> int:
    assert value is None or value.is_contiguous()
    return 0 if value is None else value.data_ptr()


@dataclass
class Program:
    """The program of a problem; ``par`` and ``dat`` are what its text reads."""

    problem: ocp.Problem
    text: str
    par: Tensor
    dat: Tensor
    single: bool = False
    threads: int = 1
    second_order: bool = True
    info: abi.Info = field(init=False)

    def __post_init__(self) -> None:
        p, dtype = self.problem, self.problem.x0.dtype
        text = build.program(
            texts.JETS + self.text,
            decide_text(TRIALS, dtype),
            real="double" if dtype == torch.float64 else "float",
            single=self.single,
            bounds=p.lower is not None,
            second_order=self.second_order,
        )
        self.library = build.load(text)
        self.info = abi.declare(self.library)
        self.keep = [self.par.to(dtype).contiguous(), self.dat.to(dtype).contiguous()]
        bounds = (None, None)
        if p.lower is not None:
            bounds = p.lower[:, 0].contiguous(), p.upper[:, 0].contiguous()
        self.keep += [b for b in bounds if b is not None]
        self.data = abi.Data(
            p.horizon, p.batch, self.keep[1].shape[-1], self.threads,
            *map(address, self.keep[:2]), *map(address, bounds),
        )  # fmt: skip
        size = self.library.ocp_work_bytes(byref(self.data))
        self.work = torch.full((size,), 255, dtype=torch.uint8)  # nan, wherever it is read too soon
        self.data.work = self.work.data_ptr()

    def call(self, entry: str, *arguments: Any) -> Any:
        ready = [address(a) if a is None or isinstance(a, Tensor) else a for a in arguments]
        return getattr(self.library, entry)(addressof(self.data), *ready)

    def new(self, *shape: int) -> Tensor:
        return torch.full(shape, torch.nan, dtype=self.problem.x0.dtype)

    @property
    def sizes(self) -> tuple[int, int, int, int, int]:
        p = self.problem
        n, m = p.state_dims[0], p.control_dims[0]
        return p.horizon, p.batch, n, m, n + m

    # -- the entries, with results as the eager engine gives them ----------------------------------
    def rollout(self, us: Tensor) -> Tensor:
        T, B, n, *_ = self.sizes
        xs = self.new(T + 1, B, n)
        self.call("ocp_rollout", self.problem.x0.reshape(B, n).contiguous(), us, xs)
        return xs

    def total_cost(self, xs: Tensor, us: Tensor) -> Tensor:
        cost = self.new(xs.shape[1])
        self.call("ocp_total_cost", xs.shape[1], xs, us, cost)
        return cost

    def gaps(self, xs: Tensor, us: Tensor) -> Tensor:
        T, B, n, *_ = self.sizes
        gaps = self.new(T, B, n)
        self.call("ocp_gaps", xs, us, gaps)
        return gaps

    def expand(self, xs: Tensor, us: Tensor) -> Expansion:
        T, B, n, _, d = self.sizes
        parts = self.new(T, B, n, d), self.new(T, B, d), self.new(T, B, d, d)
        ends = self.new(B, n), self.new(B, n, n)
        self.call("ocp_expand", xs, us, *parts, *ends)
        return Expansion(*parts, *ends, (n,) * (T + 1))

    def contracted(self, xs: Tensor, us: Tensor, v: Tensor) -> Tensor:
        T, B, _, _, d = self.sizes
        H = self.new(T, B, d, d)
        self.call("ocp_contracted", xs, us, v, H)
        return H

    def costates(self, e: Expansion) -> tuple[Tensor, Tensor]:
        T, B, n, m, _ = self.sizes
        ps, hus = self.new(T + 1, B, n), self.new(T, B, m)
        self.call("ocp_costates", e.fz, e.lz, e.phix, ps, hus)
        return ps, hus

    def linear_rollout(
        self, e: Expansion, policy: Policy, gaps: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        T, B, n, m, _ = self.sizes
        dxs, dus = self.new(T + 1, B, n), self.new(T, B, m)
        self.call("ocp_linear_rollout", e.fz, policy.k, policy.K, gaps, dxs, dus)
        return dxs, dus

    def sweep(
        self,
        xs: Tensor | None,
        us: Tensor,
        gaps: Tensor | None,
        damping: Tensor,
        full: Tensor | None,
        on_state: bool = False,
        given: Expansion | None = None,
        table: Tensor | None = None,
    ) -> tuple[Sweep, Tensor]:
        """And whether derivatives are finite."""
        T, B, n, m, _ = self.sizes
        k, K = self.new(T, B, m), self.new(T, B, m, n)
        vx, vxx = self.new(T + 1, B, n), self.new(T + 1, B, n, n)
        slope, curvature, residual = self.new(B), self.new(B), self.new(B)
        failed, finite = torch.empty(B, dtype=I64), torch.empty(B, dtype=I64)
        arrays = (None,) * 5 if given is None else tuple(given[:5])
        inputs = (*arrays, table, xs, us, gaps, damping, None if full is None else full.to(I64))
        outputs = (k, K, vx, vxx, None, None, None, slope, curvature, residual, failed, finite)
        call = abi.SweepCall(*map(address, inputs), int(on_state), *map(address, outputs))
        self.call("ocp_sweep", addressof(call))
        return Sweep(Policy(k, K), vx, vxx, slope, curvature, residual, failed), finite

    def follow(
        self, xs: Tensor, us: Tensor, gaps: Tensor | None, policy: Policy, step_sizes: Tensor
    ) -> Trials:
        T, B, n, m, _ = self.sizes
        A = len(step_sizes)
        out = self.new(T + 1, A, B, n), self.new(T, A, B, m), self.new(A, B)
        inputs = map(address, (xs, us, gaps, policy.k, policy.K, step_sizes))
        call = abi.FollowCall(*inputs, A, *map(address, out))
        self.call("ocp_follow", addressof(call))
        return Trials(*out)

    def iterate(
        self, state: State, steps: int, method: int, on_state: bool = False, rules: Rules = RULES
    ) -> tuple[State, list[dict[str, Tensor]], Tensor, Tensor]:
        """The state after at most ``steps``, its new rows, steps taken and problems handed back."""
        B, dtype = self.problem.batch, self.problem.x0.dtype
        xs, us = state.xs.clone(), state.us.clone()
        gaps = None if state.gaps is None else state.gaps.clone()
        reals = torch.stack([getattr(state, name) for name in abi.REALS])
        counts = torch.stack([getattr(state, name).to(I64) for name in abi.COUNTS])
        rows = self.new(steps, len(ROWS), B)
        taken, handed = torch.empty(B, dtype=I64), torch.empty(B, dtype=I64)
        sizes = 0.5 ** torch.arange(self.info.trials, dtype=dtype)
        limits = torch.tensor(rules.limits(dtype), dtype=dtype)
        arrays = (sizes, xs, us, gaps, reals, counts, rows, taken, handed, limits)
        call = abi.Iterate(steps, method, int(on_state), *map(address, arrays))
        most = self.call("ocp_iterate", addressof(call))
        numbers = dict(zip(abi.REALS, reals, strict=True)) | dict(
            zip(abi.COUNTS, counts, strict=True)
        )
        numbers["second_order"] = numbers["second_order"] != 0
        history = [dict(zip(ROWS, row, strict=True)) for row in rows[:most]]
        return state._replace(xs=xs, us=us, gaps=gaps, **numbers), history, taken, handed
