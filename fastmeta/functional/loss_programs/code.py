"""What a function's code may read, and what it does beside computing."""

from __future__ import annotations

import dis
import functools
from collections.abc import Mapping
from types import CodeType
from typing import Any, NamedTuple

__all__ = ["Reads", "reads_of"]


class Reads(NamedTuple):
    """What code reads that is not its own.

    Attributes:
        variables: global ones and those of closures, each with the attributes that are all that is
            read of it; None where it is read in another way.
        attributes: that it reads, of whatever object.
        does: what it does that nobody may overlook, or None.
        changes: kinds of containers that it may change.
    """

    variables: tuple[tuple[str, tuple[str, ...] | None], ...]
    attributes: Mapping[str, Any]
    does: str | None
    changes: frozenset[type]


@functools.lru_cache(maxsize=256)
def reads_of(code: CodeType) -> Reads:
    """Of code that defines no functions but comprehensions, else the reason is in `does`."""
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    within = [reads_of(one) for one in inner]
    instructions = [i for i in dis.get_instructions(code) if i.opname not in _BETWEEN]
    does = [said for i in instructions if (said := _does(i, code)) is not None]
    others = [one for one in inner if one.co_name not in _COMPREHENSIONS]
    does += ["it defines a function inside (lambda, def)"] * len(others)
    does += [f"it asks PyTorch for {name}" for name in code.co_names if name.startswith(_STATES)]
    does += [one.does for one in within if one.does is not None]
    variables = _variables(instructions, code)
    for one in within:
        for name, attributes in one.variables:
            if name in code.co_freevars or name not in code.co_cellvars:
                _merge(variables, name, attributes)
    names = [i.argval for i in instructions if i.opname in _ATTRIBUTE]
    names += [name for one in within for name in one.attributes]
    changes = {kind for kind, by in _CHANGES.items() if not by.isdisjoint(names)}
    if any(i.opname in ("STORE_SUBSCR", "DELETE_SUBSCR") for i in instructions):
        changes |= {list, dict}
    return Reads(
        tuple((name, None if a is None else tuple(a)) for name, a in variables.items()),
        dict.fromkeys(names),
        does[0] if does else None,
        frozenset(changes).union(*(one.changes for one in within)),
    )


def _variables(
    instructions: list[dis.Instruction], code: CodeType
) -> dict[str, dict[str, None] | None]:
    found: dict[str, dict[str, None] | None] = {}
    for i, following in zip(instructions, [*instructions[1:], None], strict=True):
        free = i.opname in ("LOAD_DEREF", "LOAD_CLASSDEREF") and i.argval in code.co_freevars
        if i.opname == "LOAD_GLOBAL" or free:
            named = following is not None and following.opname in _ATTRIBUTE
            _merge(found, i.argval, (following.argval,) if following and named else None)
    return found


def _merge(
    found: dict[str, dict[str, None] | None], name: str, attributes: tuple[str, ...] | None
) -> None:
    known = found.get(name, {})
    both = None if known is None or attributes is None else known | dict.fromkeys(attributes)
    found[name] = both


def _does(instruction: dis.Instruction, code: CodeType) -> str | None:
    name = instruction.opname
    if name == "STORE_DEREF":  # a name of its own, which a comprehension reads
        own = instruction.argval in code.co_cellvars
        return None if own else f"it changes {instruction.argval}"
    if "YIELD" in name and code.co_name != "<genexpr>":
        return "it is a generator"
    said = _OTHERWISE.get(name)
    return said and said.format(instruction.argval)


_ATTRIBUTE = ("LOAD_ATTR", "LOAD_METHOD")
_BETWEEN = ("CACHE", "EXTENDED_ARG", "NOP", "PUSH_NULL")
_COMPREHENSIONS = ("<genexpr>", "<listcomp>", "<dictcomp>", "<setcomp>")
_CHANGES: dict[type, set[str]] = {
    list: {"append", "clear", "extend", "insert", "pop", "remove", "reverse", "sort"},
    dict: {"clear", "pop", "popitem", "setdefault", "update"},
}
# Of PyTorch, which change.
_STATES = ("is_", "are_", "get_", "set_", "initial_", "seed", "backends", "storage")
_OTHERWISE = {
    "IMPORT_NAME": "it imports {}", "STORE_GLOBAL": "it changes {}",
    "DELETE_GLOBAL": "it deletes {}", "STORE_ATTR": "it sets the attribute {}",
    "DELETE_ATTR": "it deletes the attribute {}", "DELETE_DEREF": "it deletes {}",
    "LOAD_NAME": "it reads names of a class", "LOAD_BUILD_CLASS": "it defines a class",
    "LOAD_SUPER_ATTR": "it calls super()", "MATCH_CLASS": "it matches classes",
}  # fmt: skip
