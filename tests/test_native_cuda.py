"""Programs for GPUs: compiled wherever NVRTC is, run and compared where there is a GPU.

pip install nvidia-cuda-nvrtc     # about 90 MB, no driver needed, for the compile checks
"""

from __future__ import annotations

import re
from ctypes import POINTER, Structure, addressof, c_int64, c_void_p, cast, sizeof

import pytest
import torch
from grid_calls import compiled as twin
from models import cartpoles, guess, resizing, rich
from native_cases import needs_compiler
from references import close
from torch import Tensor

import ocp
from ocp import engines
from ocp.engines.native import abi, build, driver, emit, grid, nvrtc, stagewise
from ocp.engines.native.compiled import compiled_for, rows_of, text_of
from ocp.engines.native.grid import Form
from ocp.problems.registry import REGISTRY

F64 = torch.float64
THREADS, RANKS, TEAM = Form(False, 32), Form(False, 128, 4), Form(True, 32)


def lacking() -> str:
    try:
        nvrtc.library()
    except build.BuildError as error:
        return str(error)
    return ""


needs_nvrtc = pytest.mark.skipif(bool(lacking()), reason=lacking().split(":")[0])
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def gpu_text(problem: ocp.Problem, form: Form) -> str:
    shared, problem = problem.shared_controls, rows_of(problem)
    made = stagewise.model(problem) if problem.stagewise else emit.model(problem)
    return text_of(problem, made, form, shared)


# -- without a GPU ---------------------------------------------------------------------------------
@needs_nvrtc
@pytest.mark.parametrize("form", [THREADS, TEAM], ids=["threads", "team"])
def test_programs_compile_to_machine_code(form: Form) -> None:
    text = gpu_text(rich(7, 6), form)
    image = nvrtc.compile_text(text, nvrtc.Target(90, True))
    assert image.startswith(b"\x7fELF")
    for entry in (*abi.ARGUMENTS, "ocp_fill_rows", "ocp_info", "ocp_work_bytes"):
        of_cpu = "ensemble" in entry or entry in ("ocp_again", "ocp_begin", "ocp_whole")
        assert (entry.encode() in image) == (not of_cpu), entry


@needs_nvrtc
@pytest.mark.parametrize(("architecture", "form"), [(80, TEAM), (90, RANKS)])
@pytest.mark.parametrize("shared", [False, True])
def test_programs_of_stages_that_differ_and_of_shared_controls_compile(
    architecture: int, form: Form, shared: bool
) -> None:
    text = gpu_text(resizing(3, shared_controls=shared), form)
    image = nvrtc.compile_text(text, nvrtc.Target(architecture, True))
    assert (b"ocp_ensemble_sweep" in image) == shared and (b"ocp_iterate" in image) != shared


@needs_nvrtc
@pytest.mark.slow
@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize("name", list(REGISTRY))
def test_every_classic_problem_compiles(name: str, architecture: int) -> None:
    problem = REGISTRY[name].factory()
    d = problem.state_dims[0] + problem.control_dims[0]
    for form in [THREADS, RANKS, TEAM] if d <= 10 else [TEAM]:
        assert nvrtc.compile_text(gpu_text(problem, form), nvrtc.Target(architecture, True))


@needs_nvrtc
def test_an_unknown_architecture_gets_code_that_the_driver_compiles() -> None:
    latest = nvrtc.architectures()[-1]
    known = nvrtc.target((latest // 10, latest % 10))
    later = nvrtc.target((latest // 10 + 5, 0))
    assert known == (latest, True) or (known.architecture, known.cubin) == (latest, True)
    assert (later.architecture, later.cubin) == (latest, False)
    ptx = nvrtc.compile_text('extern "C" __global__ void nothing() {}', later)
    assert re.search(rb"\.visible \.entry nothing", ptx)
    with pytest.raises(build.BuildError, match="sm_20"):
        nvrtc.target((2, 0))


@needs_nvrtc
def test_a_refused_text_is_an_error_with_the_compilers_words() -> None:
    with pytest.raises(build.BuildError, match=r"(?s)sm_90.*error.*nonsense"):
        nvrtc.compile_text("nonsense;", nvrtc.Target(90, True))


def test_without_nvrtc_the_error_says_where_it_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCP_NVRTC", "/nowhere/libnvrtc.so")
    nvrtc.library.cache_clear()
    with pytest.raises(build.BuildError, match=r"NVRTC was not found.*\n.*/nowhere"):
        nvrtc.library()
    nvrtc.library.cache_clear()


@needs_nvrtc
def test_the_loop_of_many_cartpoles_does_not_spill_what_fast_memory_cannot_hold() -> None:
    form = grid.form(5, 16_384)
    log = nvrtc.compiled(gpu_text(cartpoles(1, 9), form), nvrtc.Target(90, True))[1]
    found = grid.usages(log)
    assert {"ocp_iterate", "ocp_sweep", "ocp_follow", "ocp_expand"} <= set(found)
    loop = found["ocp_iterate"]
    assert 64 < loop.registers <= 255 and loop.spilled <= grid.MOST_SPILLS < loop.local
    assert form.beside * form.ranks * loop.registers <= grid.REGISTERS
    assert "registers" in str(loop) and f"{loop.local} bytes" in str(loop)


SAID = """ptxas info    : Compiling entry function 'ocp_iterate' for 'sm_90'
ptxas info    : Function properties for ocp_iterate
    2384 bytes stack frame, 634 bytes spill stores, 1120 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 4096 bytes smem
ptxas info    : Function properties for other
    16 bytes stack frame, 720 bytes spill stores, 744 bytes spill loads
ptxas info    : Compiling entry function 'ocp_gaps' for 'sm_90'
ptxas info    : Function properties for ocp_gaps
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 58 registers, used 0 barriers, 112 bytes cumulative stack size
"""


def test_what_the_compiler_says_of_kernels_is_read() -> None:
    found = grid.usages("warning: nothing\n" + SAID)
    assert found["ocp_iterate"] == grid.Usage(255, 2384, 634, 4096)
    assert found["ocp_gaps"] == grid.Usage(58, 112, 0, 0)
    assert grid.usages("") == {}


def test_the_form_that_spills_least_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    spills = {Form(False, 32): 900, Form(False, 64, 2): 100, Form(True, 32): 0}
    made = []

    class Fake:
        def __init__(self, form: Form) -> None:
            self.form = form
            made.append(form)

        def has(self, entry: str) -> bool:
            return True

        def usage(self, entry: str) -> grid.Usage:
            return grid.Usage(255, 0, spills[self.form])

    monkeypatch.setattr(driver, "load", lambda text, form, device: Fake(form))
    device = torch.device("cuda", 0)
    assert driver.fitting(str, Form(False, 32), device).form == Form(False, 64, 2)
    assert made == [Form(False, 32), Form(False, 64, 2)]
    spills |= {Form(False, 64, 2): 700, Form(True, 32): 800}
    assert driver.fitting(str, Form(False, 32), device).form == Form(False, 64, 2)


class FakeDriver:
    """Fails with one code, and says so."""

    def cuGetErrorString(self, code: int, said: object) -> int:
        said._obj.value = b"an illegal memory access"  # type: ignore[attr-defined]
        return 0


def test_errors_of_the_driver_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "library", FakeDriver)
    driver.asked(0, "cuLaunchKernel")
    with pytest.raises(driver.DeviceError, match=r"(?s)illegal.*\(700\).*CUDA_LAUNCH_BLOCKING"):
        driver.asked(700, "cuLaunchKernel(ocp_iterate)")
    with pytest.raises(build.BuildError, match=r"cuModuleLoadData.*\(2\); the local memory"):
        driver.asked(2, "cuModuleLoadData")
    assert not issubclass(driver.DeviceError, build.BuildError)  # eager would fail as well


def test_no_room_is_an_error_with_the_number_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    from ocp.engines.native import cuda

    problem = rich(7, 6)
    engine = cuda.Cuda(problem, twin(problem, Form(False, 4)))
    asked_for, real = [], Tensor.new_empty

    def full(self: Tensor, *shape: object, **more: object) -> Tensor:
        if more.get("dtype") is torch.uint8:
            asked_for.append(shape[0])
            raise torch.OutOfMemoryError("no")
        return real(self, *shape, **more)

    monkeypatch.setattr(Tensor, "new_empty", full)
    with pytest.raises(torch.OutOfMemoryError, match=r"[\d,]+ bytes for the 4 problems"):
        engine.room()
    assert len(asked_for) > 1 and asked_for[-1] < asked_for[0]


def test_arguments_of_kernels_are_structures_by_value_and_words() -> None:
    data = abi.Data(3, 4, 5, 6)
    values, pointers = driver.packed([data, 7, 1 << 40])
    assert pointers[0] == addressof(data) and sizeof(abi.Data) == 8 * len(abi.Data._fields_)
    words = [cast(c_void_p(p), POINTER(c_int64))[0] for p in pointers]
    assert words == [3, 7, 1 << 40]
    assert isinstance(values[0], Structure)


# -- on a GPU --------------------------------------------------------------------------------------
def moved(problem: ocp.Problem, dtype: torch.dtype = F64) -> ocp.Problem:
    """To the GPU, with all its numbers."""
    cast_all = lambda data: {
        k: torch.as_tensor(v).to("cuda", dtype if torch.as_tensor(v).is_floating_point() else None)
        for k, v in data.items()
    }
    return problem.replace(
        x0=problem.x0.to("cuda", dtype),
        parameters=cast_all(problem.parameters),
        per_problem=cast_all(problem.per_problem),
        control_bounds=None
        if problem.lower is None
        else tuple(
            torch.as_tensor(b)[0, 0].to("cuda", dtype) for b in (problem.lower, problem.upper)
        ),
    )


def gpu_and_cpu(problem: ocp.Problem, form: Form):
    """Both engines; on the GPU in the form asked for, whatever the sizes say."""
    there = moved(problem)
    made = compiled_for(there)
    kernels = driver.load(text_of(there, made.program, form), form, there.x0.device)
    from ocp.engines.native.cuda import Cuda

    other = type(made)(made.program, kernels, made.info, made.functions, form)
    return Cuda(there, other), engines.make(problem, "native")


def same(actual, expected, tolerance: float) -> None:
    for a, e in zip(actual, expected, strict=True):
        if isinstance(e, tuple):
            same(a, e, tolerance)
        elif e is not None:
            close(a.cpu().to(F64), e.to(F64), tolerance)


@pytest.mark.cuda
@on_gpu
@needs_compiler
@pytest.mark.parametrize("form", [THREADS, RANKS, TEAM], ids=["threads", "ranks", "team"])
@pytest.mark.parametrize("bounds", [False, True])
def test_steps_on_the_gpu_equal_those_of_the_cpu(form: Form, bounds: bool) -> None:
    problem = rich(70, 6)
    if bounds:
        problem = problem.replace(control_bounds=([-0.2, -0.2], [0.25, 0.25]))
    ours, theirs = gpu_and_cpu(problem, form)
    us = torch.stack(guess(problem, 3, 0.2))
    if bounds:
        us = us.clamp(-0.2, 0.25)
    xs = theirs.rollout(us)
    gpu = us.cuda(), xs.cuda()
    same([ours.rollout(gpu[0])], [xs], 1e-12)
    same(ours.expand(gpu[1], gpu[0])[:5], theirs.expand(xs, us)[:5], 1e-9)
    for method in ("ilqr", "ddp", "newton", "pmp"):
        solver = ocp.make_solver(method, engine="native")
        state = solver.init(problem, us.movedim(0, 1))
        there = solver.init(ours.problem, us.movedim(0, 1).cuda())._replace(engine=ours)
        for _ in range(3):
            state = solver.steps(problem, state, 1)
            there = solver.steps(ours.problem, there, 1)
        same([there.xs, there.us, there.cost], [state.xs, state.us, state.cost], 1e-9)
        assert there.status.tolist() == state.status.tolist()
        assert there.xs.is_cuda and there.iterations.is_cuda


@pytest.mark.cuda
@on_gpu
@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_whole_solves_on_the_gpu_end_like_those_on_the_cpu(dtype: torch.dtype) -> None:
    problem = rich(2100, 6)
    solution = ocp.solve(moved(problem, dtype), "ddp", max_iterations=60)
    reference = ocp.solve(problem, "ddp", max_iterations=60, engine="native")
    assert solution.engine == "cuda" and solution.controls.is_cuda
    same([solution.cost], [reference.cost], 1e-9 if dtype == F64 else 1e-4)
    if dtype == F64:
        assert [int(s) for s in solution.status] == [int(s) for s in reference.status]


@pytest.mark.cuda
@on_gpu
@needs_compiler
def test_many_cartpoles_on_the_gpu_equal_the_few_among_them() -> None:
    problem = cartpoles(16_384, horizon=30)
    few = problem.replace(
        x0=problem.x0[::1024], per_problem={k: v[::1024] for k, v in problem.per_problem.items()}
    )
    solution = ocp.solve(moved(problem), "ilqr", max_iterations=20)
    reference = ocp.solve(few, "ilqr", max_iterations=20, engine="native")
    decided = (solution.cost[::1024].cpu() - reference.cost).abs() < 1e-6 * reference.cost
    assert float(decided.double().mean()) > 0.7  # a last bit may lead to another valley


@pytest.mark.cuda
@on_gpu
def test_what_cannot_be_compiled_is_solved_by_pytorch_on_the_gpu() -> None:
    sort = lambda x, u, t: x.sort().values + u
    cost = ocp.FunctionCost(lambda x, u, t: u @ u, lambda x: x @ x)
    problem = ocp.Problem(sort, cost, torch.ones(2, dtype=F64, device="cuda"), 3, 2)
    with pytest.warns(RuntimeWarning, match=r"eager PyTorch.*sort"):
        solution = ocp.solve(problem)
    assert solution.engine == "eager" and solution.converged and solution.cost.is_cuda


def test_the_twin_is_the_text_of_the_gpu() -> None:
    """What test_native_grid runs on the CPU is, letter by letter, what is compiled here."""
    problem = rich(7, 6)
    made = twin(problem, TEAM)
    assert text_of(problem, made.program, TEAM) == gpu_text(problem, TEAM)
