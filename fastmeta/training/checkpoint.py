"""Checkpoints: one safetensors file that holds a whole run, written all at once or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

FORMAT = "fastmeta-checkpoint"
VERSION = 2


@dataclass(frozen=True)
class Checkpoint:
    """All that a run needs to continue bit for bit.

    Attributes:
        step: meta-steps done.
        config: what the run was asked to do; plain values only. A run with another config must
            not continue from here.
        notes: plain values that may differ when the run continues, such as paths.
        meta: state_dict of the algorithm (the model, and inner rates where they are learned).
        optimizer: state_dict of the optimizer.
        streams: states of random generators by name (uint8 tensors).
        best: the best score in validation so far, plain values, or None.
    """

    step: int
    config: Mapping[str, Any]
    meta: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]
    streams: Mapping[str, Tensor]
    notes: Mapping[str, Any] = field(default_factory=dict)
    best: Mapping[str, Any] | None = None


def save_checkpoint(path: str | Path, checkpoint: Checkpoint) -> None:
    """Write `checkpoint` to `path`, replacing what is there in one atomic step.

    A reader, or a run that is killed meanwhile, sees the old file or the new one, never a part.

    Raises:
        OSError: the folder cannot be written.
    """
    from safetensors.torch import save

    moments, groups = _split_optimizer(checkpoint.optimizer)
    tensors = {
        **_prefixed("meta", checkpoint.meta),
        **_prefixed("optimizer", moments),
        **_prefixed("stream", checkpoint.streams),
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    facts = {
        "version": VERSION,
        "step": checkpoint.step,
        "config": checkpoint.config,
        "notes": checkpoint.notes,
        "best": checkpoint.best,
        "optimizer_groups": groups,
        "sha256": _digest(tensors),
    }
    write_atomically(Path(path), save(tensors, {FORMAT: json.dumps(facts, sort_keys=True)}))


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read what `save_checkpoint` wrote.

    Raises:
        ValueError: the file is no checkpoint of fastmeta, is of another version, or is damaged.
        OSError: the file cannot be opened.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        last = path.with_name(path.name.replace(".best.", "."))
        hint = f"; {last} is there: no validation has made it a best one" if last.is_file() else ""
        raise FileNotFoundError(f"there is no checkpoint {path}{hint}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a checkpoint, or is damaged: {error}") from error
    if FORMAT not in metadata:
        raise ValueError(f"{path} is a safetensors file, but not a checkpoint of fastmeta")
    facts = json.loads(metadata[FORMAT])
    if facts["version"] != VERSION:
        raise ValueError(
            f"{path} has checkpoint version {facts['version']}, this fastmeta reads {VERSION}"
        )
    if facts["sha256"] != _digest(tensors):
        raise ValueError(f"{path} is damaged: its numbers do not match its checksum")
    return Checkpoint(
        step=facts["step"],
        config=facts["config"],
        notes=facts["notes"],
        best=facts["best"],
        meta=_without_prefix("meta", tensors),
        optimizer=_join_optimizer(_without_prefix("optimizer", tensors), facts["optimizer_groups"]),
        streams=_without_prefix("stream", tensors),
    )


def check_same_run(path: str | Path, saved: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Raise ValueError naming the first setting in which two configs differ."""
    differences = _differences(saved, json.loads(json.dumps(asked)))
    if differences:
        raise ValueError(
            f"{path} is from a run with other settings; give those of its beginning again: "
            + "; ".join(differences)
        )


def _differences(saved: Any, asked: Any, name: str = "") -> list[str]:
    if isinstance(saved, Mapping) and isinstance(asked, Mapping):
        found = []
        for key in sorted({*saved, *asked}):
            inner = f"{name}.{key}" if name else key
            found += _differences(saved.get(key), asked.get(key), inner)
        return found
    return [] if saved == asked else [f"{name} was {_short(saved)}, now {_short(asked)}"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _split_optimizer(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], list[Any]]:
    """Return the optimizer's tensors as '<parameter index>.<name>', and its groups."""
    moments = {
        f"{index}.{name}": tensor
        for index, entry in state["state"].items()
        for name, tensor in entry.items()
    }
    return moments, state["param_groups"]


def _join_optimizer(moments: Mapping[str, Tensor], groups: list[Any]) -> dict[str, Any]:
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in moments.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = tensor
    return {"state": state, "param_groups": groups}


def _prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}:{name}": tensor for name, tensor in tensors.items()}


def _without_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    start = f"{prefix}:"
    return {
        name.removeprefix(start): tensor
        for name, tensor in tensors.items()
        if name.startswith(start)
    }


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file in one step: whoever reads it sees the old content or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    # Without it a crash of the machine can undo the rename. Windows cannot open a folder.
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
