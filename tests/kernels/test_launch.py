"""A kernel that was launched is found again: exactly where Triton would take the same form."""

import ast
import itertools
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend

from fastmeta.kernels import launch


class _Form(launch.CompiledKernel):
    """What would be compiled for a launch; it records how it is launched."""

    def __init__(self, number):
        self.number, self.launched = number, []

    def __del__(self):
        pass

    def __getitem__(self, grid):
        return lambda *args, stream: self.launched.append((grid[:3], args, stream))


class _Kernel:
    """Like a `JITFunction`, with Triton's own rules of which launches share a form."""

    pre_run_hooks = ()

    def __init__(self, *names):
        self.params = [type("Parameter", (), {"name": name}) for name in names]
        self.forms, self.runs = {}, 0

    def run(self, *args, grid, warmup, **options):
        self.runs += 1
        key = (*map(_specialised, args), *sorted(options.items()))
        return self.forms.setdefault(key, _Form(len(self.forms)))


def _specialised(argument):
    native = pytest.importorskip("triton._C.libtriton")
    if not hasattr(native, "native_specialize_impl"):
        pytest.skip("this Triton has its rules elsewhere")
    backend = make_backend(GPUTarget("cuda", 90, 32))
    return native.native_specialize_impl(backend, argument, False, True, True)


@pytest.fixture
def current(monkeypatch):
    state = {"device": 0}
    active = type("Driver", (), {})()
    active.get_current_device = lambda: state["device"]
    active.get_current_stream = lambda device: 100 + device
    monkeypatch.setattr(launch, "driver", type("Drivers", (), {"active": active}))
    return state


def _tensors():
    for dtype in (torch.float32, torch.float64, torch.int64):
        numbers = torch.zeros(64, dtype=dtype)
        yield numbers
        yield numbers[1:]  # at another alignment


_NUMBERS = (0, 1, 2, 15, 16, 17, 48, 2**30, 2**30 + 1, 2**31 - 1, 2**31, 2**31 + 16, 2**40, 2**62)


def test_two_launches_share_a_form_only_where_triton_says_so(current):
    kernel = _Kernel("x", "n", "scale", "BLOCK", "FLAG")
    start = launch._Launcher(kernel)
    given = itertools.product(_tensors(), _NUMBERS, (0.5, 1.0), (16, 32), (False, True))
    for x, n, scale, block, flag in [*given] * 2:
        form = start(x, n, scale, grid=(3,), warmup=False, BLOCK=block, FLAG=flag, num_warps=4)
        own = (*map(_specialised, (x, n, scale)), ("BLOCK", block), ("FLAG", flag))
        assert form is kernel.forms[(*own, ("num_warps", 4))]
    assert len(kernel.forms) < kernel.runs < 3 * 2 * len(_NUMBERS) * 2 * 2


def test_a_known_form_is_launched_with_all_arguments_and_constants_in_order(current):
    kernel = _Kernel("x", "n", "A", "B")
    start = launch._Launcher(kernel)
    x, y = torch.zeros(16), torch.ones(16)
    form = start(x, 3, grid=(2,), warmup=False, B=7, A=5, num_warps=4)
    assert start(y, 5, grid=(4, 6), warmup=False, B=7, A=5, num_warps=4) is form
    ((grid, args, stream),) = form.launched
    assert (grid, args[0] is y, args[1:], stream) == ((4, 6, 1), True, (5, 5, 7), 100)
    assert kernel.runs == 1


def test_each_device_has_forms_of_its_own(current):
    kernel = _Kernel("x")
    start = launch._Launcher(kernel)
    for device in (0, 1, 0, 1):
        current["device"] = device
        start(torch.zeros(16), grid=(1,), warmup=False)
    assert kernel.runs == 2


class _Forgets(dict):
    def setdefault(self, key, value):
        return value


@pytest.mark.parametrize(
    "case", ["a hook", "a warmup", "a tensor by name", "a constant unnamed", "a grid function"]
)
def test_the_rest_is_left_to_triton(current, monkeypatch, case):
    kernel = _Kernel("x", "n")
    if case == "a hook":
        kernel.pre_run_hooks = [print]
    given = {} if case == "a constant unnamed" else {"n": 1}
    if case == "a tensor by name":
        given["n"] = torch.zeros(1)
        monkeypatch.setattr(kernel, "forms", _Forgets())
    start = launch._Launcher(kernel)
    for _ in range(3):
        grid = (lambda arguments: (1,)) if case == "a grid function" else (1,)
        start(torch.zeros(16), grid=grid, warmup=case == "a warmup", **given)
    assert kernel.runs == 3


def test_whatever_the_package_launches_is_launchable():
    launched = 0
    for path in Path(launch.__file__).parent.glob("*.py"):
        tree = ast.parse(path.read_text())
        named = {n.name: n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
        for call in ast.walk(tree):
            kernel = named.get(_launched(call))
            if kernel is not None:
                launched += 1
                first = kernel.decorator_list[0]
                assert isinstance(first, ast.Name) and first.id == "launchable", kernel.name
    assert launched > 20


def _launched(node):
    """x, of x[...](...)"""
    subscript = node.func if isinstance(node, ast.Call) else None
    kernel = subscript.value if isinstance(subscript, ast.Subscript) else None
    return kernel.id if isinstance(kernel, ast.Name) else None


def test_a_launchable_kernel_is_started_by_a_launcher():
    kernel = triton.runtime.JITFunction(_some_kernel)
    assert launch.launchable(kernel) is kernel and isinstance(kernel.run, launch._Launcher)
    assert launch.launchable(_some_kernel) is _some_kernel  # as where Triton interprets


def _some_kernel(x):
    pass


def test_rounding_up():
    for a, b in [(1, 1), (1, 2), (2, 2), (3, 2), (64, 16), (65, 16)]:
        assert launch.cdiv(a, b) == triton.cdiv(a, b)
