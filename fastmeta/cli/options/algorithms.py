"""Which algorithms there are, and which settings each of them has."""

from __future__ import annotations

from typing import Any

# Their networks end in a head of as many outputs as training tasks have classes.
FIXED_HEAD = ("maml", "fomaml", "anil", "metasgd", "reptile")
# One encoder for all tasks, with a head that is fitted in closed form.
METRIC = ("protonet", "matchingnet", "r2d2")
CLASSIFIERS = (*FIXED_HEAD, *METRIC, "protomaml")

_LOOP = ("inner_lr", "inner_steps")
_RATES = (*_LOOP, "learn_inner_lr", "per_step_lr")
_DISTANCE = ("metric", "temperature", "learn_temperature")
SETTINGS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(FIXED_HEAD, _RATES),
    "protomaml": _LOOP,
    "protonet": (*_DISTANCE, "normalize"),
    "matchingnet": (*_DISTANCE, "full_context"),
    "r2d2": (),
}
ALL_SETTINGS = tuple(dict.fromkeys(name for names in SETTINGS.values() for name in names))

# Of the papers, but for temperatures: cosines over 1 leave a sure attention soft.
_METRIC_DEFAULTS: dict[str, dict[str, Any]] = {
    "protonet": dict(
        metric="sqeuclidean", temperature=1.0, learn_temperature=False, normalize=False
    ),
    "matchingnet": dict(
        metric="cosine", temperature=0.1, learn_temperature=True, full_context=False
    ),
    "r2d2": {},
}


def defaults_by_algorithm(
    gradient: dict[str, Any], metric: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """Return the defaults of each algorithm; a setting that it has not is None.

    Args:
        gradient: defaults of MAML and its relatives.
        metric: what differs for the others, Proto-MAML's outer loop included.
    """
    none = dict.fromkeys(ALL_SETTINGS)
    found = {name: {**none, **gradient, "algorithm": name} for name in FIXED_HEAD}
    found["metasgd"]["learn_inner_lr"] = "element"
    found["reptile"] |= {"inner_steps": max(5, gradient["inner_steps"]), "learn_inner_lr": "none"}
    found["protomaml"] = {
        **gradient, **none, "algorithm": "protomaml",
        "inner_lr": gradient["inner_lr"] / 10, "inner_steps": gradient["inner_steps"],
    }  # fmt: skip
    stem, suffix = gradient["checkpoint"].rsplit(".", 1)
    for name in METRIC:
        own = _METRIC_DEFAULTS[name]
        found[name] = {**gradient, **none, **metric, **own, "algorithm": name}
    for name in found.keys() - {"maml"}:  # no algorithm replaces what another has learned
        found[name]["checkpoint"] = f"{stem}-{name}.{suffix}"
    return found
