import copy
import pickle
import threading

import pytest
import torch

from fastmeta.backends import cpu

needs_native = pytest.mark.skipif(
    not cpu.reads_tensors, reason="the native module makes no tensors here"
)


class Subclass(torch.Tensor):
    pass


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_large_tensors_lie_in_memory_that_is_kept(dtype):
    like = torch.zeros(1, dtype=dtype)
    cpu.release_memory()
    tensor = cpu.empty((3, 100, 1000), like)
    assert tensor.shape == (3, 100, 1000) and tensor.dtype is dtype
    assert tensor.is_contiguous() and not tensor._is_view()
    tensor.fill_(1)
    where, twin = tensor.data_ptr(), cpu.empty((3, 100, 1000), like)
    assert twin.data_ptr() != where  # while a tensor lives, nobody gets its memory
    del tensor
    assert cpu.empty((3, 100, 1000), like).data_ptr() == where
    assert bool((twin.fill_(2) == 2).all())


def test_a_small_tensor_is_like_any_other():
    assert cpu.empty((2, 3), torch.zeros(1)).shape == (2, 3)
    assert cpu.empty((0, 3), torch.zeros(1)).shape == (0, 3)


@needs_native
def test_a_view_of_a_large_tensor_keeps_its_memory():
    row = cpu.empty((300, 1000), torch.zeros(1)).fill_(3)[7]
    others = [cpu.empty((300, 1000), torch.zeros(1)).fill_(i) for i in range(4)]
    assert bool((row == 3).all()) and len(others) == 4


@needs_native
@pytest.mark.parametrize("shape", [(), (1,), (2, 3), (1, 5, 1, 7), (2, 1, 3, 1, 2, 1), (400, 300)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64])
def test_a_new_tensor_is_what_pytorch_would_make(shape, dtype):
    like = torch.zeros(3, dtype=dtype, requires_grad=dtype.is_floating_point)
    made, right = cpu.native.new_empty(like, shape), like.new_empty(shape)
    assert type(made) is torch.Tensor and not made.requires_grad and made.is_leaf
    assert (made.shape, made.stride(), made.dtype, made.device) == (
        right.shape, right.stride(), right.dtype, right.device
    )  # fmt: skip
    assert made.data_ptr() % 64 == 0 and made._version == 0 and made._base is None
    made.zero_()
    for twin in (copy.deepcopy(made), pickle.loads(pickle.dumps(made)), made.clone()):
        assert torch.equal(twin, made)
    assert made.data_ptr() not in (twin.data_ptr(), right.data_ptr())


@needs_native
@pytest.mark.parametrize(
    "like, shape",
    [
        (torch.zeros(1).as_subclass(Subclass), (2,)),
        (torch.zeros(1, device="meta"), (2,)),
        (torch.zeros(1).to_sparse(), (2,)),
        (torch.zeros(1), (0, 3)),
        (torch.zeros(1), (1,) * 7),
        (torch.zeros(1), (2**40, 2**40)),
        (torch.zeros(1), (2**62,)),
        (None, (2,)),
    ],
)
def test_other_tensors_are_left_to_pytorch(like, shape):
    assert cpu.native.new_empty(like, shape) is None


@needs_native
def test_what_does_not_fit_is_told_by_pytorch():
    with pytest.raises(RuntimeError, match="allocate memory"):
        cpu.empty((2**45,), torch.zeros(1))


@needs_native
def test_tensors_may_go_in_other_threads():
    def come_and_go():
        for n in (1, 1000, 100_000):
            held.append(cpu.empty((n,), torch.zeros(1)).fill_(n))

    held = []
    team = [threading.Thread(target=come_and_go) for _ in range(8)]
    for thread in team:
        thread.start()
    for thread in team:
        thread.join()
    assert all(bool((tensor == len(tensor)).all()) for tensor in held) and len(held) == 24
    thread = threading.Thread(target=held.clear)
    thread.start()
    thread.join()
    assert not held
