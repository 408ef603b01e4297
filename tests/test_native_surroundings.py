"""What users change between two solves is seen by compiled programs, wherever it stands."""

import collections
import dataclasses
import enum
import functools
import sys
import types
from array import array
from fractions import Fraction

import numpy as np
import pytest
import torch
from native_text import agree, small
from torch import nn

from ocp.engines.native import emit, surroundings
from ocp.engines.native.surroundings import Surroundings

F64 = torch.float64


def tensor(*values):
    return torch.tensor(values, dtype=F64)


def base(x, u):
    return x + 0.1 * torch.sin(x) + torch.cat((u, u[:1] * x[:1]))


def scaled(read):
    """Dynamics that ask ``read()`` for a factor."""
    return lambda x, u, t: base(x, u) * read()


def holder(**values):
    return types.SimpleNamespace(**values)


def attribute(kind, name, value):
    return lambda: setattr(kind, name, value)


def item(thing, key, value):
    return lambda: thing.__setitem__(key, value)


def code(text, **names):
    """A module of the user's with these globals."""
    module = types.ModuleType("users_module")
    vars(module).update(names)
    exec(text, vars(module))
    return vars(module)


CASES = {}


def case(make):
    CASES[make.__name__] = make
    return make


# -- numbers: each case gives dynamics and a change ------------------------------------------------
@case
def entry_of_an_array():
    a = np.array([0.5])
    return scaled(lambda: float(a[0])), item(a, 0, 0.9)


@case
def numpy_scalar():
    d = {"k": np.float32(0.5)}
    return scaled(lambda: float(d["k"])), item(d, "k", np.float32(0.9))


@case
def array_of_the_standard_library():
    a = array("d", [0.5])
    return scaled(lambda: a[0]), item(a, 0, 0.9)


@case
def copied_array():
    a = np.array([0.5, 0.6, 0.7])
    return scaled(lambda: torch.tensor(a)), item(a, 0, 0.9)


@case
def converted_array():
    a = np.array([0.5, 0.6, 0.7], dtype=np.float32)
    return scaled(lambda: torch.as_tensor(a, dtype=F64)), item(a, 0, 0.9)


@case
def another_array():
    c = holder(a=np.array([0.5, 0.6, 0.7]))
    return scaled(lambda: torch.from_numpy(c.a)), attribute(c, "a", np.array([0.9, 0.6, 0.7]))


@case
def other_kinds_of_numbers():
    c = holder(z=0.5 + 0j, q=Fraction(1, 2))
    change = lambda: (setattr(c, "z", 0.7j), setattr(c, "q", Fraction(9, 10)))
    return scaled(lambda: c.z.real + float(c.q)), change


@case
def none_becomes_a_number():
    c = holder(gain=None)
    return scaled(lambda: 0.5 if c.gain is None else c.gain), attribute(c, "gain", 0.9)


@case
def member_of_an_enumeration():
    mode = enum.Enum("mode", "SLOW FAST")
    c = holder(mode=mode.SLOW)
    read = lambda: 0.5 if c.mode is mode.SLOW else 0.9
    return scaled(read), attribute(c, "mode", mode.FAST)


@case
def end_of_a_long_list():
    a = [0.5] * 3000
    return scaled(lambda: a[2900]), item(a, 2900, 0.9)


@case
def list_that_grows():
    a = [0.5]
    return scaled(lambda: sum(a)), lambda: a.append(0.2)


@case
def list_of_tensors_that_grows():
    a = [tensor(0.5)]
    return scaled(lambda: sum(a)), lambda: a.append(tensor(0.2))


@case
def dict_that_grows():
    d = {}
    return scaled(lambda: d.get("gain", 0.5)), item(d, "gain", 0.9)


@case
def dict_with_other_keys():
    d = {"low": 0.5}

    def change():
        d["high"] = d.pop("low")

    return scaled(lambda: d.get("high", 0.1)), change


@case
def view_of_a_dict():
    d = {"gain": 0.5}
    view = types.MappingProxyType(d)
    return scaled(lambda: view["gain"]), item(d, "gain", 0.9)


@case
def ends_of_a_queue():
    q = collections.deque([0.5])
    return scaled(lambda: q[0]), lambda: (q.popleft(), q.append(0.9))


@case
def member_of_a_set():
    s = set()
    return scaled(lambda: 0.9 if "on" in s else 0.5), lambda: s.add("on")


# -- numbers of functions, classes and modules -----------------------------------------------------
@case
def keyword_default():
    def f(x, u, t, *, gain=0.5):
        return base(x, u) * gain

    return f, attribute(f, "__kwdefaults__", {"gain": 0.9})


@case
def keywords_of_a_partial():
    f = functools.partial(lambda x, u, t, gain: base(x, u) * gain, gain=0.5)
    return f, item(f.keywords, "gain", 0.9)


@case
def slots():
    @dataclasses.dataclass(slots=True)
    class Car:
        gain: float

    c = Car(0.5)
    return scaled(lambda: c.gain), attribute(c, "gain", 0.9)


@case
def attribute_of_a_class():
    class Constants:
        gain = 0.5

    return scaled(lambda: Constants.gain), attribute(Constants, "gain", 0.9)


@case
def tensor_of_a_class():
    class Constants:
        gain = tensor(0.5)

    return scaled(lambda: Constants.gain), attribute(Constants, "gain", tensor(0.9))


@case
def attribute_that_hides_that_of_a_class():
    class Constants:
        gain = 0.5

    c = Constants()
    return scaled(lambda: c.gain), attribute(c, "gain", 0.9)


CALLABLE = """
class Base:
    {decorator}
    def gain({argument}):
        return G
class Dynamics(Base):
    def __call__(self, x, u, t):
        return base(x, u) * ({read})
"""


def callable_with(decorator, argument, read):
    space = code(CALLABLE.format(decorator=decorator, argument=argument, read=read))
    space.update(G=0.5, base=base)
    return space["Dynamics"](), item(space, "G", 0.9)


@case
def global_of_a_property():
    return callable_with("@property", "self", "self.gain")


@case
def global_of_a_static_method():
    return callable_with("@staticmethod", "", "self.gain()")


@case
def global_of_a_class_method():
    return callable_with("@classmethod", "cls", "self.gain()")


@case
def global_of_a_base_class():
    return callable_with("", "self", "super().gain()")


@case
def attribute_of_a_module():
    settings = types.ModuleType("settings")
    settings.gain = 0.5
    space = code("def f(x, u, t): return base(x, u) * settings.gain", base=base, settings=settings)
    return space["f"], attribute(settings, "gain", 0.9)


@case
def module_imported_in_the_function():
    settings = types.ModuleType("users_settings")
    exec("G = 0.5\ndef gain(): return G", vars(settings))
    sys.modules["users_settings"] = settings
    text = "def f(x, u, t):\n  import users_settings\n  return base(x, u) * users_settings.gain()"
    return code(text, base=base)["f"], attribute(settings, "G", 0.9)


# -- what stands where -----------------------------------------------------------------------------
@case
def another_function_of_pytorch():
    c = holder(act=torch.sin)
    return lambda x, u, t: base(x, u) + c.act(x), attribute(c, "act", torch.cos)


@case
def another_function():
    c = holder(act=lambda x: x / 2)
    return lambda x, u, t: base(x, u) + c.act(x), attribute(c, "act", lambda x: x * x)


@case
def another_method():
    class Plant:
        def act(self, x):
            return x / 2

        def __call__(self, x, u, t):
            return base(x, u) + self.act(x)

    return Plant(), attribute(Plant, "act", lambda self, x: x * x)


@case
def an_object_of_another_class():
    class Half:
        def __call__(self, x):
            return x / 2

    class Square:
        def __call__(self, x):
            return x * x

    c = holder(act=Half())
    return lambda x, u, t: base(x, u) + c.act(x), attribute(c, "act", Square())


@case
def another_layer():
    net = nn.Sequential(nn.Linear(3, 3), nn.Tanh()).double()
    return lambda x, u, t: base(x, u) + net(x), item(net, 1, nn.ReLU())


@case
def a_hook_of_a_layer():
    net = nn.Linear(3, 3).double()
    hook = lambda module, given, out: 2 * out
    return lambda x, u, t: base(x, u) + net(x), lambda: net.register_forward_hook(hook)


@case
def one_of_two_names_of_a_tensor():
    w = tensor(0.5)
    c = holder(a=w, b=w)
    return scaled(lambda: c.a + c.b), attribute(c, "b", tensor(0.9))


@case
def one_of_two_names_of_an_object():
    w = holder(gain=0.5)
    c = holder(a=w, b=w)
    return scaled(lambda: c.a.gain + c.b.gain), attribute(c, "b", holder(gain=0.9))


@case
def number_becomes_a_tensor():
    c = holder(gain=0.5)
    return scaled(lambda: c.gain), attribute(c, "gain", tensor(0.9))


@case
def length_of_a_tensor():
    c = [torch.ones(3)]
    return scaled(lambda: len(c[0]) / 10), item(c, 0, torch.ones(5))


@case
def lists_that_change_places():
    c = [[tensor(0.5), 0.1], [tensor(0.9), 0.2]]
    return scaled(lambda: c[0][0] + c[0][1]), c.reverse


@pytest.mark.parametrize("name", CASES)
def test_a_change_between_solves_is_seen(name):
    f, change = CASES[name]()
    problem = small(f, m=2)
    program = emit.model(problem, scalar=100_000)
    assert program.stale() is None
    x, u, t = problem.x0, torch.ones(2, dtype=F64), torch.tensor(0)
    before = f(x, u, t)
    change()
    assert not torch.equal(before, f(x, u, t))
    agree(problem, count=2, program=None if program.stale() else program)


def test_the_default_dtype_is_seen():
    problem = small(lambda x, u, t: base(x, u) * torch.tensor(0.3))
    program = emit.model(problem)
    torch.set_default_dtype(F64)
    try:
        assert program.stale() == "the default dtype"
        agree(problem)
    finally:
        torch.set_default_dtype(torch.float32)


def test_the_same_things_anew_change_nothing():
    c = holder(sizes=[1.0, 2.0], goal=tensor(1.0, 2.0, 3.0), inner={"gain": 0.5}, act=torch.sin)
    f = lambda x, u, t: c.act(x - c.goal) * c.inner["gain"] * sum(c.sizes) + u.sum()
    problem = small(f)
    program = agree(problem, count=2)
    for _ in range(2):
        c.sizes, c.inner, c.goal = [1.0, 2.0], {"gain": 0.5}, 2 * c.goal
        assert program.stale() is None
        agree(problem, count=2, program=program)
    c.inner["gain"] = 0.25
    assert program.stale() == "dynamics.0.inner.gain"


def test_arrays_that_are_read_in_place_make_nothing_stale():
    a = np.array([1.0, 2.0, 3.0])
    problem = small(lambda x, u, t: base(x, u) * torch.from_numpy(a))
    program = agree(problem, count=2)
    a[1] = 7.0
    assert program.stale() is None
    agree(problem, count=2, program=program)


def test_counters_and_logs_of_the_functions_do_not_count():
    log, c = [], holder(calls=0, last=None)

    def f(x, u, t):
        c.calls += 1
        c.last = c.calls
        log.append(c.calls)
        return base(x, u)

    program = emit.model(small(f))
    f(torch.ones(3), torch.ones(2), 0)
    assert program.stale() is None


def test_cycles_and_large_objects_end():
    loop = holder(gain=0.5, others=[holder(k=k) for k in range(30_000)])
    loop.itself = loop
    seen = Surroundings({"dynamics": scaled(lambda: loop.itself.gain)})
    assert seen.changed() is None
    loop.gain = 0.9
    assert seen.changed() is not None


def test_what_has_not_changed_is_compared_without_a_walk(monkeypatch):
    weights, sizes = np.linspace(0.0, 1.0, 300), [1.5, 2.5]

    class Scales:
        gain = 2.0
        table = np.eye(2)

    scales = Scales()
    f = lambda x: x * weights[3] * sizes[0] * scales.gain * scales.table[0, 0]
    seen = Surroundings({"f": f})
    monkeypatch.setattr(surroundings, "Crawl", None)
    assert seen.changed() is None
