import pytest
import torch

from fastmeta.backends import cpu

needs_native = pytest.mark.skipif(cpu.native is None, reason="the native kernels are not built")


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
