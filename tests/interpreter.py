"""What Triton's interpreter can do here."""

from importlib.metadata import PackageNotFoundError, version


def takes_tensors_without_values() -> bool:
    """As torch.compile and opcheck bring them; before 3.6 it wants their numbers."""
    try:
        return tuple(map(int, version("triton").split(".")[:2])) >= (3, 6)
    except PackageNotFoundError:
        return False
