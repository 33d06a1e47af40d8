"""The network as plain values, and from plain values."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastmeta import models
from fastmeta.cli.options.algorithms import FIXED_HEAD, METRIC

# Of the paper that each is from; Conv4 with 32 filters is MAML's for miniImageNet.
FILTERS = {"conv4": 32, "conv4-stride": 32, "resnet12": 64}
# ... and with 64 that of Vinyals et al. and of Snell et al.
ENCODER_FILTERS = 64

# ---- options to plain values --------------------------------------------------------------------


def mlp_config(options: argparse.Namespace, inputs: int) -> dict[str, Any]:
    """Return the settings of a perceptron with one output."""
    return {
        "kind": "mlp",
        "sizes": [inputs, *options.hidden, 1],
        "activation": options.activation,
    }


def image_config(options: argparse.Namespace, channels: int, size: int) -> dict[str, Any]:
    """Return the settings of a classifier of images.

    Raises:
        ValueError: filters for a network that has none.
    """
    if options.filters and options.model not in FILTERS:
        raise ValueError(f"--filters: {options.model} has none")
    return {
        "kind": options.model,
        "ways": _outputs(options),
        "channels": channels,
        "image_size": size,
        "filters": options.filters or _filters(options),
    }


def vector_config(options: argparse.Namespace, inputs: int) -> dict[str, Any]:
    """Return the settings of a classifier, or an encoder, of vectors.

    Raises:
        ValueError: dropout in a network that adapts.
    """
    if options.dropout and options.algorithm not in METRIC:
        raise ValueError(f"--dropout: {options.algorithm} adapts its network, without dropout")
    return {
        "kind": "vector-mlp",
        "ways": _outputs(options),
        "features": inputs,
        "hidden": options.hidden,
        "activation": options.activation,
        "dropout": options.dropout,
    }


def _outputs(options: argparse.Namespace) -> int | None:
    """None: an encoder without a head."""
    return options.ways if options.algorithm in FIXED_HEAD else None


def _filters(options: argparse.Namespace) -> int | None:
    if options.model in FILTERS and options.algorithm in METRIC:
        return ENCODER_FILTERS
    return FILTERS.get(options.model)


# ---- plain values to what runs ------------------------------------------------------------------


def make_network(config: Mapping[str, Any]) -> nn.Module:
    """Build the network, initialised by the global generator.

    Raises:
        ValueError: settings that do not go together.
    """
    kind = config["kind"]
    if kind == "mlp":
        return models.mlp(config["sizes"], config["activation"])
    if kind == "vector-mlp":
        return _vector_network(config)
    ways, channels, size, filters = (
        config[name] for name in ("ways", "channels", "image_size", "filters")
    )
    if kind == "omniglot-fc":
        return models.omniglot_fc(ways, inputs=channels * size * size)
    if kind == "resnet12":
        widths = tuple(round(filters * factor) for factor in (1, 2.5, 5, 10))
        return models.resnet12(ways, channels, widths)
    pool = "stride" if kind == "conv4-stride" else "max"
    return models.conv4(ways, channels, filters, size, pool)


def _vector_network(config: Mapping[str, Any]) -> nn.Module:
    width, hidden, activation = (config[name] for name in ("features", "hidden", "activation"))
    if config["ways"] is None:
        return models.ResidualMLP(width, hidden, activation, config["dropout"])
    return models.mlp([width, *hidden, config["ways"]], activation)


def sample_input(config: Mapping[str, Any]) -> Tensor:
    """Return an input of the network, [1, ...]."""
    if config["kind"] == "vector-mlp":
        return torch.zeros(1, config["features"])
    return torch.zeros(1, config["channels"], config["image_size"], config["image_size"])


def loss_of(config: Mapping[str, Any]) -> str:
    """Return the loss that goes with the network's outputs."""
    return "mse" if config["kind"] == "mlp" else "cross_entropy"


def head_of(model: nn.Module) -> nn.Linear:
    """Return the last linear layer, which ANIL adapts."""
    return [layer for layer in model.modules() if isinstance(layer, nn.Linear)][-1]
