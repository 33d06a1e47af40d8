import pytest
import torch

from fastmeta.episodes import PixelScale

IMAGES = torch.randint(0, 256, (5, 3, 6, 6), generator=torch.Generator().manual_seed(0)).byte()


def plainly(images, mean, std, invert, dtype):
    value = images.to(torch.float64) / 255
    value = 1 - value if invert else value
    mean, std = (torch.tensor(n, dtype=torch.float64).view(-1, 1, 1) for n in (mean, std))
    return ((value - mean) / std).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("invert", [False, True])
@pytest.mark.parametrize(
    ("mean", "std"), [(0.0, 1.0), (0.5, 0.25), ((0.1, 0.5, 0.9), (0.2, 1.0, 3.0)), (0.5, (1, 2, 3))]
)
def test_the_same_as_written_plainly(mean, std, invert, dtype):
    scaled = PixelScale(mean=mean, std=std, invert=invert, dtype=dtype)(IMAGES)
    assert scaled.dtype == dtype and scaled.shape == IMAGES.shape
    # Two roundings of numbers up to 10.
    tolerance = 20 * torch.finfo(dtype).eps
    expected = plainly(IMAGES, mean, std, invert, dtype)
    torch.testing.assert_close(scaled, expected, rtol=tolerance, atol=tolerance)


def test_the_ends_of_the_range():
    ends = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1)
    assert PixelScale()(ends).flatten().tolist() == [0, 1]
    assert PixelScale(invert=True)(ends).flatten().tolist() == [1, 0]


def test_bytes_are_left_alone():
    before = IMAGES.clone()
    PixelScale(mean=0.5)(IMAGES)
    assert torch.equal(before, IMAGES)


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"std": 0.0}, ValueError),
        ({"std": (1.0, -1.0, 1.0)}, ValueError),
        ({"mean": float("nan")}, ValueError),
        ({"mean": ()}, ValueError),
        ({"dtype": torch.uint8}, TypeError),
    ],
)
def test_wrong_use(wrong, error):
    with pytest.raises(error, match=next(iter(wrong))):
        PixelScale(**wrong)


def test_another_number_of_channels():
    with pytest.raises(ValueError, match="mean has 2 numbers, but the images have 3 channels"):
        PixelScale(mean=(0.5, 0.5))(IMAGES)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("invert", [False, True])
def test_taking_images_is_choosing_and_scaling(dtype, invert):
    images = torch.randint(256, (7, 3, 5, 9), dtype=torch.uint8)
    rows = torch.tensor([6, 0, 6, 3])
    scale = PixelScale(mean=(0.1, 0.5, 0.7), std=(0.3, 1.0, 2.0), invert=invert, dtype=dtype)
    assert torch.equal(scale.take(images, rows), scale(images[rows]))
