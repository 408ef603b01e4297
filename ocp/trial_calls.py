"""Trial calls of the user's functions at construction, so that mistakes surface with a name.

Each function is called on one sample (shape, dtype, repeatable, arguments left alone), under vmap
(no control flow on tensors) and differentiated (no entry that autograd cannot see).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor
from torch.func import grad, jacrev, vmap

if TYPE_CHECKING:
    from ocp.problem import Problem

ENTRIES = 4096  # a Jacobian up to this size is examined entry by entry, a larger one by columns
COLUMNS = 64  # components of a long argument that are moved, evenly spread; few of a very long one

ONE_SAMPLE = "Functions see ONE sample: x (n,), u (m,), without a batch axis."
ON_TENSOR = (
    "A branch (if, min, max, range, float, .item) on a tensor cannot be batched: choose by "
    "torch.where, torch.minimum, torch.clamp; build vectors by torch.stack."
)
ON_STAGE = (
    "t is an integer tensor here and all stages run in one batched call: index a tensor with it "
    "(reference[t]), choose by torch.where, or pass stagewise=True to get t as an int."
)
NO_NUMPY = (
    "Only torch operations can be batched and differentiated: replace numpy and math by torch."
)


class StageIndex(Tensor):
    """``t`` in trial calls: a 0-dim integer tensor that is no key.

    Tensors hash by identity, so that ``table.get(t, default)`` and ``t in {...}`` would never
    find, without a word.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __hash__(self) -> int:
        raise TypeError("the stage t is a tensor, and as a key it is never found")


Passed = dict[tuple[Any, ...], tuple[weakref.ref, weakref.ref, tuple[int, ...]]]
_passed: Passed = {}  # what passed: the functions (no longer than they live), and the sizes


def state_sizes(problem: Problem, us: Callable[[], Sequence[Tensor]]) -> tuple[int, ...]:
    """`check_functions`, once for the same functions on data of the same form.

    So that a problem with another x0 costs nothing, in a receding horizon or a portfolio. A
    dynamics that was checked where it was made, and says its sizes for a number of columns of x0
    (`declared_sizes`, a compiled network), is not tried.
    """
    declared = getattr(problem.dynamics, "declared_sizes", None)
    if declared is not None:
        return declared(problem.x0.shape[-1])
    form = lambda v: (tuple(v.shape), v.dtype, v.device)
    key = (
        *(id(f) for f in (problem.dynamics, problem.cost)),
        *(form(problem.x0)[0][-1:], *form(problem.x0)[1:]),
        *(problem.stagewise, problem.control_dims),
        *((k, form(v)) for k, v in problem.parameters.items()),
        *((k, form(v[0])) for k, v in problem.per_problem.items()),
    )
    dynamics, cost, sizes = _passed.get(key, (None, None, ()))
    if dynamics and cost and dynamics() is problem.dynamics and cost() is problem.cost:
        return sizes
    sizes = check_functions(problem, us())
    try:
        forget = lambda _: _passed.pop(key, None)
        references = weakref.ref(problem.dynamics, forget), weakref.ref(problem.cost, forget)
    except TypeError:  # objects with __slots__ may not allow it: they are tried every time
        return sizes
    _passed[key] = (*references, sizes)
    return sizes


def check_functions(problem: Problem, us: Sequence[Tensor]) -> tuple[int, ...]:
    """Try every function along the controls ``us``; the state's size at each stage (T + 1)."""
    x = problem.x0[0] if problem.x0.ndim == 2 else problem.x0
    p = {**problem.parameters, **{k: v[0] for k, v in problem.per_problem.items()}}
    sizes, seen = [x.shape[0]], set()
    for t, u in enumerate(us):
        stage = t if problem.stagewise else torch.tensor(t, device=x.device).as_subclass(StageIndex)
        after = call(f"dynamics at stage {t}", problem.f, x, u, stage, p)
        check_vector(f"dynamics at stage {t}", after, x, None if problem.stagewise else sizes[0])
        check_scalar(
            f"cost.stage at stage {t}",
            call(f"cost.stage at stage {t}", problem.l, x, u, stage, p),
            x,
        )
        form = (x.shape[0], u.shape[0], after.shape[0])
        if form not in seen:
            seen.add(form)
            for what, function in (("dynamics", problem.f), ("cost.stage", problem.l)):
                check_call_batched(what, function, problem, x, u, stage)
                check_graph(what, lambda x, u, t=stage, f=function: f(x, u, t, p), x, u)
        x = after.detach()
        sizes.append(x.shape[0])
        if not problem.stagewise:  # stages are alike: the rest of the horizon has the same sizes
            sizes += [x.shape[0]] * (problem.horizon - 1)
            break
    check_scalar("cost.terminal", call("cost.terminal", problem.phi, x, p), x)
    check_call_batched("cost.terminal", lambda x, u, t, p: problem.phi(x, p), problem, x, x[:0], 0)
    check_graph("cost.terminal", lambda x, u: problem.phi(x, p), x, x[:0])
    return tuple(sizes)


# -- one sample --------------------------------------------------------------------------------
def call(what: str, function: Callable[..., Any], *args: Any) -> Any:
    """``function(*args)``, called twice.

    Raises:
        ValueError: it fails, changes an argument, or answers differently the second time.
    """
    fresh = [a.clone() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args]
    value = attempt(what, "on one sample", function, *fresh)
    for name, argument in zip(("x", "u"), fresh, strict=False):
        if isinstance(argument, Tensor) and argument._version > 0:  # written to since the clone
            raise ValueError(
                f"{what} changes its argument {name} in place: write x = x + ... instead of "
                "x += ..., and torch.stack or torch.cat instead of assigning to entries."
            )
    if isinstance(value, Tensor):
        again = attempt(what, "on one sample", function, *fresh)
        if not torch.allclose(value, again, rtol=0, atol=0, equal_nan=True):
            raise ValueError(
                f"{what} gives two answers for the same arguments: it must be deterministic. Call "
                "model.eval() where there is dropout; pass noise as data, in per_problem; keep no "
                "state between calls."
            )
    return value


def attempt(what: str, how: str, function: Callable[..., Any], *args: Any) -> Any:
    """Call a user's function; a failure becomes an error that says what was passed and why."""
    try:
        with torch.no_grad():
            return function(*args)
    except Exception as error:  # anything a user's function may raise; it stays the cause
        shapes = [
            f"{name} {tuple(a.shape)} {a.dtype}".replace("torch.", "")
            for name, a in zip(("x", "u"), args, strict=False)
            if isinstance(a, Tensor) and not isinstance(a, StageIndex)
        ]
        refuse(f"{what} failed {how}, {', '.join(shapes)}", error)


def refuse(what: str, error: Exception, hint: str | None = None) -> NoReturn:
    said = in_short(str(error))
    reason = f"{type(error).__name__}: {said}." if said else f"{type(error).__name__}."
    raise ValueError(f"{what}: {reason} {hint or advice(error)}") from error


def first_sentence(error: BaseException) -> str:
    """Kind and first line of an error, which may say nothing."""
    lines = str(error).strip().splitlines()
    return ": ".join([type(error).__name__, *lines[:1]])


def in_short(text: str) -> str:
    """The first line; PyTorch's longest ones in fewer words."""
    for words, short in (
        (("data-dependent control flow", ".item()"), "the value of a batched tensor is asked for"),
        (("data pointer of Tensor",), "the data of a batched tensor is asked for (numpy, tolist)"),
    ):
        if any(word in text for word in words):
            return short
    return text.strip().split("\n")[0].rstrip(".")


def advice(error: Exception) -> str:
    """What to try, judged by the words of the error."""
    text = str(error)
    for words, hint in (
        (("as a key it is never found",), ON_STAGE),
        (("randomness", "random operation"), "Dynamics are deterministic: call model.eval()."),
        (("numpy", "data pointer", "__array__", "only one element tensors", "scalar"), NO_NUMPY),
        (("control flow", ".item()", "data-dependent"), ON_TENSOR),
        (
            ("dtype", "same type", "scalar type", "Float", "Double"),
            "Make the tensors it uses agree with x0 (float64 unless x0 is float32), or pass them "
            "in parameters.",
        ),
        (
            ("saved tensor hooks",),
            "Remove torch.utils.checkpoint from it: what one stage saves is small.",
        ),
        (
            ("same device", "on device", "cuda"),
            "Pass the tensors it uses in parameters: they move to the device of x0.",
        ),
        (
            ("in-place", "inplace", "leaf Variable"),
            "Do not assign to entries: build the result by torch.stack or torch.cat.",
        ),
    ):
        if any(word in text for word in words):
            return hint
    if isinstance(error, KeyError):
        return f"Keys of p are those of parameters and per_problem. {ON_STAGE}"
    return ONE_SAMPLE


def check_vector(what: str, value: Any, x: Tensor, size: int | None) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{what} must return a tensor, got {type(value).__name__}: torch.stack it.")
    if value.ndim != 1 or value.shape[0] == 0 or (size is not None and value.shape[0] != size):
        needs = f"({size},), the size of x0" if size is not None else "(n',) with n' >= 1"
        more = "" if size is None else " Sizes may change with t only with stagewise=True."
        raise ValueError(
            f"{what} returned shape {tuple(value.shape)}, needs {needs}."
            + (more if value.ndim == 1 else f" {ONE_SAMPLE}")
        )
    check_dtype(what, value, x)


def check_scalar(what: str, value: Any, x: Tensor) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{what} must return a 0-dim tensor, got {type(value).__name__}; for no cost return "
            "x.new_zeros(())."
        )
    if value.ndim != 0:
        raise ValueError(
            f"{what} must return a scalar, a 0-dim tensor, got shape {tuple(value.shape)}: "
            "sum it, or index it."
        )
    check_dtype(what, value, x)


def check_dtype(what: str, value: Tensor, x: Tensor) -> None:
    if value.dtype != x.dtype or value.device != x.device:
        raise TypeError(
            f"{what} returned {value.dtype} on {value.device}, x0 is {x.dtype} on {x.device}: make "
            "the tensors it uses agree with x0, or pass them as parameters."
        )


# -- batched -----------------------------------------------------------------------------------
def check_call_batched(
    what: str, function: Callable[..., Any], problem: Problem, x: Tensor, u: Tensor, t: Any
) -> None:
    """Call under vmap: over states and data, then over t as well where t is a tensor."""
    from ocp.engines.indexing import batched_indices  # its package imports this module

    keep = {k: None for k in problem.parameters}
    p = {**problem.parameters, **{k: v[[0, -1]] for k, v in problem.per_problem.items()}}
    axes = keep | {k: 0 for k in problem.per_problem}
    xs, us = x.expand(2, -1), u.expand(2, -1)
    with batched_indices():
        attempt(what, "batched", vmap(function, in_dims=(0, 0, None, axes)), xs, us, t, p)
    if not isinstance(t, StageIndex):
        return
    ts = torch.tensor([0, problem.horizon - 1], device=x.device)
    try:
        with torch.no_grad(), batched_indices():
            vmap(function, in_dims=(0, 0, 0, axes))(xs, us, ts, p)
    except Exception as error:  # t alone is new since the call above
        refuse(
            f"{what} failed batched over the stages t = 0 and {problem.horizon - 1}",
            error,
            ON_STAGE,
        )


_batched: weakref.WeakValueDictionary[tuple[int, str], Any] = weakref.WeakValueDictionary()


# -- differentiated ----------------------------------------------------------------------------
def check_graph(what: str, function: Callable[..., Tensor], x: Tensor, u: Tensor) -> None:
    """Refuse an entry that changes with an argument while its derivative is exactly zero.

    Judged at a point off symmetry, where a derivative that is exactly zero means no dependence;
    by columns of the Jacobian where that is large. Values that are not finite say nothing.

    By plain autograd: the transforms of torch.func import PyTorch's compiler, which takes seconds.
    """
    n, z = x.shape[0], torch.cat((x, u))
    z = z + 1e-2 * (1 + z.abs()) * torch.sin(
        1 + torch.arange(len(z), dtype=z.dtype, device=z.device)
    )
    value = attempt(what, "near x0", lambda z: function(z[:n], z[n:]), z)
    weights = torch.cos(torch.arange(value.numel(), dtype=z.dtype, device=z.device))
    by_columns = value.numel() * len(z) > ENTRIES

    def result(z: Tensor) -> Tensor:
        out = function(z[:n], z[n:]).reshape(-1)
        return (weights @ out)[None] if by_columns else out

    derivative = attempt(f"the derivative of {what}", "near x0", partial(jacobian, result), z)
    if len(z) <= COLUMNS and not by_columns:
        weighted = lambda z: (weights @ result(z))[None]
        name = f"the second derivative of {what}"
        attempt(name, "near x0", partial(jacobian, partial(jacobian, weighted, graph=True)), z)
    derivative = derivative.reshape(-1, len(z))
    count = min(len(z), COLUMNS if len(z) <= ENTRIES else 8)
    columns = torch.linspace(0, len(z) - 1, count, device=z.device).long()
    width = torch.finfo(z.dtype).eps ** 0.25 * (1 + z.abs())
    moves = torch.nn.functional.one_hot(columns, len(z)) * width
    with torch.no_grad():
        ahead, behind = (vmap(result)(z + s * moves).reshape(len(columns), -1) for s in (1, -1))
    change = (ahead - behind).mT
    size = 1 + ahead.abs().mT + behind.abs().mT
    seen = derivative[:, columns] != 0
    hidden = ~seen & (change.abs() > 1e3 * torch.finfo(z.dtype).eps * size)
    hidden &= change.abs() > 1e-6 * width[columns]
    if bool(hidden.any()):
        k, j = hidden.nonzero()[0].tolist()
        i = int(columns[j])
        name = f"x[{i}]" if i < n else f"u[{i - n}]"
        which = "" if by_columns or value.ndim == 0 else f"[{k}]"
        raise ValueError(
            f"{what}{which} changes with {name}, but autograd does not see it: remove .detach(), "
            ".data, .item(), float(...), torch.tensor(...), torch.no_grad and numpy from it."
        )


def jacobian(function: Callable[[Tensor], Tensor], z: Tensor, graph: bool = False) -> Tensor:
    """(k, d) of a function (d,) -> (k,) or (1, k); ``graph``: to be differentiated again."""
    with torch.enable_grad():
        z = z if graph else z.detach().requires_grad_()
        out = function(z).reshape(-1)
        rows = [
            torch.autograd.grad(
                y, z, create_graph=graph, retain_graph=True, materialize_grads=True
            )[0]
            if y.requires_grad
            else torch.zeros_like(z)
            for y in out.unbind()
        ]
    return torch.stack(rows)


def check_batched(problem: Problem) -> None:
    """Second derivatives under vmap, which the eager engine asks for; once for each function.

    Raises:
        ValueError: an operation of the user's does not allow them.
    """
    if problem.stagewise or problem.state_dims[0] + problem.control_dims[0] > COLUMNS:
        return
    x = problem.x0[0] if problem.x0.ndim == 2 else problem.x0
    p = {**problem.parameters, **{k: v[0] for k, v in problem.per_problem.items()}}
    n, t = len(x), torch.tensor(0, device=x.device)
    z = torch.cat((x, x.new_zeros(problem.control_dims[0])))
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "dynamics": lambda z: problem.f(z[:n], z[n:], t, p).sum(),
        "cost.stage": lambda z: problem.l(z[:n], z[n:], t, p),
        "cost.terminal": lambda z: problem.phi(z[:n], p),
    }
    for what, function in functions.items():
        owner = problem.dynamics if what == "dynamics" else problem.cost
        if _batched.get((id(owner), what)) is not owner:
            twice = vmap(jacrev(grad(function)))
            attempt(f"the second derivative of {what}", "batched near x0", twice, z.expand(2, -1))
            with suppress(TypeError):  # objects with __slots__ may not allow it: tried every time
                _batched[id(owner), what] = owner
