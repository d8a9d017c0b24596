"""A trained network as data: safetensors, its configuration, a model card; nothing is unpickled."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from medray.errors import DataError, UsageError
from medray.models.classifier import Classifier
from medray.models.pggan import Generator
from medray.store import Store

N = TypeVar("N", bound=nn.Module)
CONFIG_FILE = "config.yaml"
GENERATOR, CLASSIFIER, SEGMENTER = "generator", "classifier", "segmenter"
GENERATOR_FILE = f"{GENERATOR}.safetensors"


def save_network(
    store: Store, role: str, tensors: Mapping[str, Tensor], about: dict[str, Any], card: str
) -> str:
    """Writes `<role>.safetensors`, `about` (the network's arguments and more) and the card.

    Returns the weights' SHA-256, which `config.yaml` names as `<role>_sha256`.
    """
    data = save_tensors({name: t.detach().cpu().contiguous() for name, t in tensors.items()})
    sha256 = hashlib.sha256(data).hexdigest()
    store.write_bytes(f"{role}.safetensors", data)
    store.write_bytes("README.md", card.encode())
    # The configuration names the weights' digest, so it is written last.
    text = yaml.safe_dump({**about, f"{role}_sha256": sha256}, sort_keys=False)
    store.write_bytes(CONFIG_FILE, text.encode())
    return sha256


def save_generator(
    store: Store, tensors: dict[str, Tensor], about: dict[str, Any], card: str
) -> str:
    """Writes the averaged generator, `about` (its arguments and more) and the card; its SHA-256."""
    return save_network(store, GENERATOR, tensors, about, card)


def load_generator(url: str) -> tuple[Generator, dict[str, Any]]:
    """The generator of a run folder or of its `model/` folder, on the CPU, and its configuration.

    Raises UsageError where there is none, DataError where the weights do not have the digest that
    the configuration names or do not fit it.
    """
    about, tensors, where = _read(url, GENERATOR)
    network = Generator(**about["arguments"])
    _fill(network, tensors, where)
    network.compute_dtype = torch.float32
    return network.eval().requires_grad_(False), about


def load_classifier(url: str) -> tuple[Classifier, dict[str, Any]]:
    """The classifier of a run folder or of its `model/` folder, on the CPU, and its configuration.

    `about["classifier_sha256"]` identifies it. Raises as `load_generator`.
    """
    return load_network(url, CLASSIFIER, Classifier)


def load_network(url: str, role: str, make: Callable[..., N]) -> tuple[N, dict[str, Any]]:
    """The network of `role` that `make` builds of its arguments. Raises as `load_generator`."""
    about, tensors, where = _read(url, role)
    network = make(**about["arguments"])
    _fill(network, tensors, where)
    return network.eval().requires_grad_(False), about


def _read(url: str, role: str) -> tuple[dict[str, Any], dict[str, Tensor], str]:
    """Configuration, checked weights and their place."""
    name = f"{role}.safetensors"
    store = Store(url)
    if not store.exists(CONFIG_FILE) or not store.exists(name):
        store = store.child("model")
    if not store.exists(CONFIG_FILE) or not store.exists(name):
        raise UsageError(
            f"{url} holds no {role}", hint=f"give a finished run of a {role}, or its model folder"
        )
    try:
        about = yaml.safe_load(store.read_bytes(CONFIG_FILE))
    except yaml.YAMLError:
        about = None
    if not isinstance(about, dict) or not {"arguments", f"{role}_sha256"} <= set(about):
        raise DataError(
            f"the configuration names no arguments or no {role}_sha256",
            code="MR-D032",
            where=f"{store.url}/{CONFIG_FILE}",
        )
    data = store.read_bytes(name)
    if hashlib.sha256(data).hexdigest() != about[f"{role}_sha256"]:
        raise DataError(
            "the weights do not have the digest that config.yaml names",
            code="MR-D030",
            where=f"{store.url}/{name}",
        )
    try:
        return about, load_tensors(data), store.url
    except SafetensorError as error:
        text = f"these are no weights: {error}"
        raise DataError(text, code="MR-D031", where=f"{store.url}/{name}") from error


def _fill(network: nn.Module, tensors: dict[str, Tensor], where: str) -> None:
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise DataError(f"the weights do not fit: {error}", code="MR-D031", where=where) from error
