"""What the code of a function names."""

from __future__ import annotations

import dis
import functools
from types import CodeType
from typing import NamedTuple

__all__ = ["Names", "names_of"]

_BY_NAME = {"getattr", "hasattr", "attrgetter", "methodcaller"}  # which take names as texts


class Names(NamedTuple):
    """Global variables, attributes and modules that code names, that of functions in it too.

    Attributes:
        texts: which it may take for names of attributes.
        catches: whether it catches exceptions.
    """

    variables: frozenset[str]
    attributes: frozenset[str]
    imports: frozenset[str]
    texts: frozenset[str]
    catches: bool


@functools.lru_cache(maxsize=4096)
def names_of(code: CodeType) -> Names:
    variables, attributes, imports = set(), set(), set()
    texts: set[str] = set()
    kinds = set()
    for instruction in dis.get_instructions(code):
        kind, name = instruction.opname, instruction.argval
        kinds.add(kind)
        if kind in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"):
            if name.isidentifier():  # as those are not that pytest puts into an assert
                variables.add(name)
        elif kind == "IMPORT_NAME":
            imports.add(name)
        elif kind in ("LOAD_METHOD", "IMPORT_FROM") or ("ATTR" in kind and isinstance(name, str)):
            attributes.add(name)
    catches = _catches(kinds) or "suppress" in variables | attributes
    for constant in code.co_consts:
        if isinstance(constant, str) and constant.isidentifier():
            texts.add(constant)
        elif isinstance(constant, CodeType):
            inner = names_of(constant)
            variables |= inner.variables
            attributes |= inner.attributes
            imports |= inner.imports
            texts |= inner.texts
            catches = catches or inner.catches
    used = texts if _BY_NAME & (variables | attributes) else ()
    return Names(
        frozenset(variables), frozenset(attributes), frozenset(imports), frozenset(used), catches
    )


def _catches(kinds: set[str]) -> bool:
    tries = not kinds.isdisjoint(("PUSH_EXC_INFO", "SETUP_FINALLY"))  # a `with` does, too
    matches = not kinds.isdisjoint(("CHECK_EXC_MATCH", "JUMP_IF_NOT_EXC_MATCH"))
    return matches or (tries and "WITH_EXCEPT_START" not in kinds)
