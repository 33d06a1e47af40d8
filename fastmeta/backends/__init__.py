"""How things run: one module a backend, and the registry that says which of them can."""

from fastmeta.backends.registry import available_backends, requested_backend, use_backend

__all__ = ["available_backends", "requested_backend", "use_backend"]


def __dir__() -> list[str]:
    return [*__all__]
