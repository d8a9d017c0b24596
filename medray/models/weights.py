"""A trained network as data: safetensors, its configuration, a model card; nothing is unpickled."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
import yaml
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from medray.errors import DataError, UsageError
from medray.models.pggan import Generator
from medray.store import Store

GENERATOR_FILE = "generator.safetensors"
CONFIG_FILE = "config.yaml"


def save_generator(
    store: Store, tensors: dict[str, Tensor], about: dict[str, Any], card: str
) -> str:
    """Writes the averaged generator, `about` (its arguments and more) and the card; its SHA-256."""
    data = save_tensors({name: t.detach().cpu().contiguous() for name, t in tensors.items()})
    sha256 = hashlib.sha256(data).hexdigest()
    store.write_bytes(GENERATOR_FILE, data)
    store.write_bytes("README.md", card.encode())
    # The configuration names the weights' digest, so it is written last.
    text = yaml.safe_dump({**about, "generator_sha256": sha256}, sort_keys=False)
    store.write_bytes(CONFIG_FILE, text.encode())
    return sha256


def load_generator(url: str) -> tuple[Generator, dict[str, Any]]:
    """The generator of a run folder or of its `model/` folder, on the CPU, and its configuration.

    Raises UsageError where there is none, DataError where the weights do not have the digest that
    the configuration names or do not fit it.
    """
    store = Store(url)
    if not store.exists(CONFIG_FILE) or not store.exists(GENERATOR_FILE):
        store = store.child("model")
    if not store.exists(CONFIG_FILE):
        raise UsageError(
            f"{url} holds no generator", hint="give a finished run, or its model folder"
        )
    about = yaml.safe_load(store.read_bytes(CONFIG_FILE))
    data = store.read_bytes(GENERATOR_FILE)
    if hashlib.sha256(data).hexdigest() != about["generator_sha256"]:
        raise DataError(
            "the weights do not have the digest that config.yaml names",
            code="MR-D030",
            where=f"{store.url}/{GENERATOR_FILE}",
        )
    network = Generator(**about["arguments"])
    try:
        network.load_state_dict(load_tensors(data))
    except RuntimeError as error:
        raise DataError(
            f"the weights do not fit: {error}", code="MR-D031", where=store.url
        ) from error
    network.compute_dtype = torch.float32
    return network.eval().requires_grad_(False), about
