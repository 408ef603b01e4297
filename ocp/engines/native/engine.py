"""The native engine: a problem's functions as one compiled program. Same answers as `Eager`."""

from __future__ import annotations

import functools
import threading
from ctypes import Structure, addressof, byref
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from ocp.engines.base import (
    ROWS,
    Appraisal,
    Begun,
    Expansion,
    Policy,
    Recipe,
    SecondOrder,
    Sweep,
    Trials,
)
from ocp.engines.eager import Eager
from ocp.engines.native import abi
from ocp.engines.native.compiled import Compiled, Refused, compiled_for, forget
from ocp.engines.native.sources import Changed
from ocp.problem import Problem, Stages

if TYPE_CHECKING:
    from ocp.engines.native.hamiltonians import Hamiltonians
    from ocp.engines.native.prepared import Prepared

INT = torch.int64
SCRATCH = 2**24  # bytes of work memory that a thread keeps


class Native(Eager):
    """Calls the compiled program of a problem on the CPU; one object a problem and its data."""

    name = "native"

    def __init__(self, problem: Problem, compiled: Compiled) -> None:
        super().__init__(problem)
        self.compiled, self.library = compiled, cast(Any, compiled.library)
        self._copies: dict[int, Native] = {}
        self.info, self.program = compiled.info, compiled.program
        T, B = problem.horizon, problem.batch
        # Arrays whose addresses `data` holds: they live as long as it does.
        numbers = compiled.program.shared(problem), compiled.program.per_problem(problem)
        self.held = tuple(map(optional, (*numbers, *self.bounds())))
        threads = torch.get_num_threads()
        columns = numbers[1].shape[-1]
        self.data_block = abi.Data(T, B, columns, threads, *map(address, self.held))
        self.work: Tensor | None = None
        self.x0 = self.start()

    def bounds(self) -> tuple[Tensor | None, Tensor | None]:
        """(T, m) each."""
        lower, upper = self.problem.lower, self.problem.upper
        if lower is None or upper is None:
            return None, None
        return dense(lower)[:, 0], dense(upper)[:, 0]

    def start(self) -> Tensor:
        """(B, n)."""
        return self.problem.x0.reshape(self.problem.batch, -1).contiguous()

    # -- forms of trajectories, which differ where sizes change, see `Padded` -------------------
    def wide_x(self, xs: Stages) -> Tensor:
        """As programs take them: (T + 1, B, n), or (T, B, n)."""
        return dense(xs)

    def wide_u(self, us: Stages) -> Tensor:
        return dense(us)

    def own_x(self, xs: Tensor) -> Stages:
        """The opposite."""
        return xs

    def own_u(self, us: Tensor) -> Stages:
        return us

    # -- calls ---------------------------------------------------------------------------------
    def call(self, entry: str, *arguments: Any) -> Any:
        if self.work is None:
            self.data_block.work = scratch(self.work_bytes).data_ptr()
        return getattr(self.library, entry)(addressof(self.data_block), *map(word, arguments))

    @cached_property
    def work_bytes(self) -> int:
        return int(self.library.ocp_work_bytes(byref(self.data_block)))

    def iterations(self, request: abi.Iterate, taken: Tensor) -> int:
        """Runs ``ocp_iterate``; the most steps that a problem took."""
        return int(self.call("ocp_iterate", request))

    def use(self, work: Tensor) -> None:
        """As work memory of its own; without, calls use that of their thread."""
        self.work = work
        self.data_block.work = work.data_ptr()

    def new(self, *shape: int) -> Tensor:
        return self.x0.new_empty(shape)

    def integers(self, *shape: int) -> Tensor:
        return self.x0.new_empty(shape, dtype=INT)

    def fits(self, us: Stages) -> bool:
        """Whether it is (T, B, m). Trials of all step sizes side by side, or a direction for each
        of them, which few methods have, are left to the eager engine."""
        return isinstance(us, Tensor) and us.ndim == 3 and us.shape[1] == self.problem.batch

    def of(self, us: Stages) -> Native | None:
        """The engine for lines (T, L, m): this, or for L = k B that of k copies of its problems."""
        if self.fits(us):
            return self
        B = self.problem.batch
        whole = isinstance(us, Tensor) and us.ndim == 3 and us.shape[1] % B == 0
        return self.copies(us.shape[1] // B) if whole and isinstance(us, Tensor) else None

    def copies(self, times: int) -> Native:
        """The engine of all problems, copy by copy."""
        if times not in self._copies:
            problem, B = self.problem, self.problem.batch
            tiled = lambda v: v.repeat(times, *[1] * (v.ndim - 1))
            own = {k: tiled(v) for k, v in problem.per_problem.items()}
            many = problem.replace(x0=tiled(problem.x0.reshape(B, -1)), per_problem=own, goal=None)
            self._copies[times] = native_of(many, self.compiled)
        return self._copies[times]

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        return self.problem.horizon, self.problem.batch, self.info.n, self.info.m

    # -- the model along a trajectory ----------------------------------------------------------
    def begin(self, us: Stages, xs: Stages | None = None) -> Begun:
        if not self.fits(us):
            return super().begin(us, xs)
        T, B, n, m = self.sizes
        given, states = dense(us), optional(xs)
        rolled, clipped = self.new(T + 1, B, n), self.new(T, B, m)
        gaps = None if states is None else self.new(T, B, n)
        told = self.new(B), self.new(B), self.integers(B)
        arrays = self.x0, given, states, rolled, clipped, gaps, *told
        self.call("ocp_begin", abi.BeginCall(*map(address, arrays)))
        cost, gap, fine = told
        return Begun(rolled, clipped, gaps, gap, cost, fine != 0)

    def rollout(self, us: Stages) -> Stages:
        if not self.fits(us):
            return super().rollout(us)
        T, B, n, _ = self.sizes
        xs = self.new(T + 1, B, n)
        self.call("ocp_rollout", self.x0, dense(us), xs)
        return xs

    def gaps(self, xs: Stages, us: Stages) -> Stages:
        engine = self.of(us)
        if engine is not self:
            return super().gaps(xs, us) if engine is None else engine.gaps(xs, us)
        T, B, n, _ = self.sizes
        gaps = self.new(T, B, n)
        self.call("ocp_gaps", dense(xs), dense(us), gaps)
        return gaps

    def total_cost(self, xs: Stages, us: Stages) -> Tensor:
        states = dense(xs)
        cost = self.new(states.shape[1])
        self.call("ocp_total_cost", states.shape[1], states, dense(us), cost)
        return cost

    def expand(self, xs: Stages, us: Stages) -> Expansion:
        engine = self.of(us)
        if engine is not self:
            return super().expand(xs, us) if engine is None else engine.expand(xs, us)
        T, B, n, m = self.sizes
        d = n + m
        parts = self.new(T, B, n, d), self.new(T, B, d), self.new(T, B, d, d)
        ends = self.new(B, n), self.new(B, n, n)
        self.call("ocp_expand", dense(xs), dense(us), *parts, *ends)
        return Expansion(*parts, *ends, (n,) * (T + 1))

    def curvature(self, xs: Stages, us: Stages) -> SecondOrder:
        """Contracted within the compiled sweep; the callable itself is the eager one."""

        def contract(t: int, v: Tensor) -> Tensor:
            return super(Native, self).curvature(xs, us)(t, v)

        return SecondOrder(contract, xs, us)

    def curvature_along(self, xs: Stages, us: Stages, ps: Stages) -> SecondOrder:
        if not self.fits(us):
            return super().curvature_along(xs, us, ps)
        T, B, n, m = self.sizes
        table = self.new(T, B, n + m, n + m)
        self.call("ocp_contracted", dense(xs), dense(us), dense(ps)[1:].contiguous(), table)
        return SecondOrder(lambda t, _: table[t], xs, us, table=table)

    # -- sweeps --------------------------------------------------------------------------------
    def costates(self, expansion: Expansion) -> tuple[Stages, Stages]:
        T, B, n, m = self.sizes
        ps, hus = self.new(T + 1, B, n), self.new(T, B, m)
        given = map(dense, (expansion.fz, expansion.lz, expansion.phix))
        self.call("ocp_costates", *given, ps, hus)
        return ps, hus

    def linear_rollout(
        self, expansion: Expansion, policy: Policy, gaps: Stages | None
    ) -> tuple[Stages, Stages]:
        T, B, n, m = self.sizes
        dxs, dus = self.new(T + 1, B, n), self.new(T, B, m)
        parts = [optional(v) for v in (policy.k, policy.K, gaps)]
        self.call("ocp_linear_rollout", dense(expansion.fz), *parts, dxs, dus)
        return dxs, dus

    def sweep(
        self,
        expansion: Expansion,
        us: Stages,
        gaps: Stages | None,
        damping: Tensor,
        curvature: Any,
        on_state: bool = False,
        proximal: bool = False,
    ) -> Sweep:
        if proximal or (curvature is not None and not isinstance(curvature, SecondOrder)):
            return super().sweep(expansion, us, gaps, damping, curvature, on_state, proximal)
        B = self.problem.batch
        given = [dense(v) for v in expansion[:5]]
        full = table = states = None
        if curvature is not None:
            every = self.integers(B).fill_(1)
            full = every if curvature.full is None else curvature.full.to(INT)
            table, states = optional(curvature.table), dense(curvature.xs)
        arrays = (*given, table, states, dense(us), optional(gaps), damping.contiguous(), full)
        return self._sweep(arrays, on_state)

    def appraise(self, xs: Stages, us: Stages) -> Appraisal:
        T, B, n, m = self.sizes
        judged = self.new(T + 1, B, n), self.new(T, B, m), self.integers(B)
        largest = self.new(2, B).unbind()
        arrays = *(None,) * 6, dense(xs), dense(us), None, self.x0.new_zeros(B), ones(B)
        return Appraisal(self._sweep(arrays, False, judged, largest), *judged, *largest)

    def _sweep(
        self,
        arrays: tuple[Tensor | None, ...],
        on_state: bool,
        judged: tuple[Tensor | None, ...] = (None, None, None),
        largest: tuple[Tensor | None, ...] = (None, None),
    ) -> Sweep:
        """Arrays as in `abi.SweepCall`; ``judged``: costates, H_u and the indefinite stage;
        ``largest``: H_u and gap."""
        T, B, n, m = self.sizes
        k, K = self.new(T, B, m), self.new(T, B, m, n)
        vx, vxx = self.new(T + 1, B, n), self.new(T + 1, B, n, n)
        slope, bend, residual = self.new(3, B).unbind()
        failed, finite = self.integers(2, B).unbind()
        results = k, K, vx, vxx, *judged, slope, bend, residual, failed, finite, *largest
        pointers = [*map(address, arrays), int(on_state), *map(address, results)]
        self.call("ocp_sweep", abi.SweepCall(*pointers))
        return Sweep(Policy(k, K), vx, vxx, slope, bend, residual, failed)

    def follow(
        self, xs: Stages, us: Stages, gaps: Stages | None, policy: Policy, step_sizes: Tensor
    ) -> Trials:
        if not self.fits(policy.k):
            k, alone = policy.k, policy.K is None and gaps is None and self.compiled.form is None
            if alone and isinstance(k, Tensor) and k.ndim == 4:
                return self._follow_own(dense(us), k, step_sizes)
            return super().follow(xs, us, gaps, policy, step_sizes)
        T, B, n, m = self.sizes
        A = step_sizes.shape[0]
        given = dense(xs), dense(us), optional(gaps), dense(policy.k), optional(policy.K)
        sizes = step_sizes.to(self.x0.dtype).contiguous()
        out = self.new(T + 1, A, B, n), self.new(T, A, B, m), self.new(A, B)
        pointers = [*map(address, (*given, sizes)), A, *map(address, out)]
        self.call("ocp_follow", abi.FollowCall(*pointers))
        return Trials(*out)

    def _follow_own(self, us: Tensor, k: Tensor, step_sizes: Tensor) -> Trials:
        """Each step size has its direction, k (T, A, B, m); controls are then known ahead."""
        A = len(step_sizes)
        trials = us[:, None] + step_sizes[:, None, None] * k
        lower, upper = self.held[2:]
        if lower is not None and upper is not None:
            lo, hi = lower[:, None, None], upper[:, None, None]
            trials = torch.minimum(torch.maximum(trials, lo), hi)
        lines, many = trials.flatten(1, 2), self.copies(A)
        xs = dense(many.rollout(lines))
        split = lambda v: v.unflatten(-2, (A, -1))
        return Trials(split(xs), trials, many.total_cost(xs, lines).unflatten(0, (A, -1)))

    def hamiltonian(self, augmented: bool) -> Hamiltonians | None:
        from ocp.engines import warn_once
        from ocp.engines.native.hamiltonians import compiled_for

        try:
            return compiled_for(self, augmented)
        except Refused as error:
            warn_once(f"{self.problem.name or 'the problem'}: {error}")
            return None

    def boundary(self, expansion: Expansion, curvature: SecondOrder, *rhs: Stages) -> Any:
        from ocp.engines.native.boundary import correction

        if not self.problem.uniform or self.compiled.form is not None or curvature.table is None:
            return None
        return correction(expansion, curvature.table, *map(torch.as_tensor, rhs))

    # -- whole iterations ----------------------------------------------------------------------
    def iterate(self, state: Any, recipe: Recipe, most: int) -> Any:
        """The loop in one call; the decisions are the compiled `decide`."""
        if recipe.trials != self.info.trials:
            return None
        descent = recipe.pairs is not None
        T, B, n, m = self.sizes
        copies = [dense(v).clone() for v in (state.xs, state.us)]
        gaps = None if state.gaps is None else dense(state.gaps).clone()
        reals = torch.stack([getattr(state, k) for k in abi.REALS])
        counts = torch.stack([getattr(state, k).to(INT) for k in abi.COUNTS])
        rows = self.new(most, len(ROWS), B)
        limits, sizes = recipe_numbers(recipe, self.x0.dtype, self.x0.device)
        taken, handed = self.integers(2, B).unbind()
        before = state.feedback  # of problems that do not run any more
        K = None if before is None else dense(before).clone()
        K = self.x0.new_zeros(T, B, m, n) if K is None and not descent else K
        memory = self.remembering(state.memory, recipe.pairs)
        arrays = (*copies, gaps, reals, counts, rows, taken, handed, limits, K, memory)
        modes = abi.DESCENT if descent else recipe.second_order, int(recipe.on_state)
        fresh = int(state.memory is None)
        request = abi.Iterate(most, *modes, address(sizes), *map(address, arrays), fresh)
        steps = self.iterations(request, taken)
        if steps == 0:
            return None
        block = dict(zip(ROWS, rows[:steps].unbind(1), strict=True))
        flags = {k: block[k] != 0 for k in ("second_order", "running")}
        numbers = dict(zip(abi.REALS, reals.unbind(), strict=True))
        numbers |= zip(abi.COUNTS, counts.unbind(), strict=True)
        numbers["second_order"] = numbers["second_order"] != 0
        if gaps is not None and not bool((numbers["gap"] > 0).any()):
            gaps = None
        xs, us = copies
        rows_now = (*state.rows, {**block, **flags})
        kept = {"feedback": K, "memory": memory, "rows": rows_now}
        return state._replace(xs=xs, us=us, gaps=gaps, **kept, **numbers)

    def remembering(self, memory: Tensor | None, pairs: int | None) -> Tensor | None:
        """A copy of the memory of PMP (3 + 2 pairs, B, T m), zero at first, and room to work on it;
        None for methods without."""
        if pairs is None:
            return None
        if self.data_block.slots != pairs + 1:
            self.data_block.slots, self.work = pairs + 1, None
            self.__dict__.pop("work_bytes", None)  # there is more to keep now
        if memory is not None:
            return memory.contiguous().clone()
        T, B, _, m = self.sizes
        return self.new(3 + 2 * pairs, B, T * m).zero_()

    def prepare(self, recipe: Recipe, damping: float, steps: int, shift: int) -> Prepared | None:
        from ocp.engines.native.prepared import Prepared

        known = recipe.trials == self.info.trials and recipe.pairs is None
        return Prepared(self, self.program, recipe, damping, steps, shift) if known else None


def make_native(problem: Problem) -> Eager:
    """The engine of a problem: for the CPU, or for the GPU its tensors are on.

    Raises:
        Refused: it cannot be compiled; says why.
    """
    try:
        return engine_of(problem, compiled_for(problem))
    except Changed:  # a tensor that the functions see has another shape: another program
        forget(problem)
        return engine_of(problem, compiled_for(problem))


def engine_of(problem: Problem, compiled: Compiled) -> Eager:
    if problem.shared_controls:
        from ocp.engines.native.ensemble import Ensemble

        return Ensemble(problem, compiled)
    return native_of(problem, compiled)


def native_of(problem: Problem, compiled: Compiled) -> Native:
    if compiled.form is not None:
        from ocp.engines.native.cuda import Cuda, PaddedCuda

        return (Cuda if problem.uniform else PaddedCuda)(problem, compiled)
    from ocp.engines.native.padded import Padded

    return (Native if problem.uniform else Padded)(problem, compiled)


def word(value: Any) -> int:
    """An argument of an entry as one machine word; structures have to outlive the call."""
    if isinstance(value, Structure):
        return addressof(value)
    return value if isinstance(value, int) else address(value)


@functools.lru_cache(maxsize=16)
def recipe_numbers(
    recipe: Recipe, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Its limits, and the step sizes 1, 1/2, ...."""
    limits = torch.tensor(recipe.limits, dtype=dtype, device=device)
    return limits, 0.5 ** torch.arange(recipe.trials, dtype=dtype, device=device)


_own = threading.local()


def scratch(size: int) -> Tensor:
    """Work memory for one call: this thread's, which is kept unless it is large."""
    kept: Tensor | None = getattr(_own, "memory", None)
    if kept is None or kept.shape[0] < size:
        kept = torch.empty(size, dtype=torch.uint8)
        if size <= SCRATCH:
            _own.memory = kept
    return kept


@functools.lru_cache(maxsize=16)
def ones(count: int) -> Tensor:
    """Integers that nobody writes to."""
    return torch.ones(count, dtype=INT)


def address(value: Tensor | None) -> int:
    """0 for an optional array that is missing."""
    return 0 if value is None else value.data_ptr()


def dense(value: Stages) -> Tensor:
    assert isinstance(value, Tensor)
    return value.contiguous()


def optional(value: Stages | None) -> Tensor | None:
    return None if value is None else dense(value)
