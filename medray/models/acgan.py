"""The two networks of an ACGAN whose samples are features: vectors, or maps.

Features are standardised: the networks see mean 0 and deviation 1 in each feature (of maps: in each
channel), and `Generator.features` undoes it. A feature that was constant stays so.

Shape letters: N samples, Z noise, K classes, C channels (of vectors their dimensions), H and W
pixels (1 and 1 for vectors), O and I outputs and inputs of a layer.

Odena, Olah, Shlens, "Conditional image synthesis with auxiliary classifier GANs" (ICML 2017).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from medray import rng
from medray.errors import UsageError
from medray.models import weights
from medray.store import Store

ROLE = "acgan"
LEAK = 0.2
# Below this share of the largest deviation a feature counts as constant.
CONSTANT = 1e-6


class Layer(nn.Module):
    """A dense layer, or a 3x3 convolution where `kernel_px` is 3.

    Spectral: the weight, as a matrix, is divided by its largest singular value (Miyato et al., ICLR
    2018); one power iteration a training step, whose vector is part of the network's state.
    """

    u_O: Tensor

    def __init__(
        self, fan_in: int, fan_out: int, kernel_px: int = 0, *, spectral: bool = False
    ) -> None:
        super().__init__()
        kernel = (kernel_px, kernel_px) if kernel_px else ()
        self.weight = nn.Parameter(torch.empty((fan_out, fan_in, *kernel)))
        self.bias = nn.Parameter(torch.zeros(fan_out))
        self.kernel_px, self.spectral = kernel_px, spectral
        if spectral:
            self.register_buffer("u_O", torch.ones(fan_out) / fan_out**0.5)

    def forward(self, x: Tensor) -> Tensor:
        weight = self._divided() if self.spectral else self.weight
        if self.kernel_px:
            return functional.conv2d(x, weight, self.bias, padding=self.kernel_px // 2)
        return functional.linear(x, weight, self.bias)

    def _divided(self) -> Tensor:
        matrix_OI = self.weight.flatten(1)
        with torch.no_grad():
            v_I = functional.normalize(matrix_OI.t() @ self.u_O, dim=0)
            u_O = functional.normalize(matrix_OI @ v_I, dim=0)
            if self.training:
                self.u_O.copy_(u_O)
        return self.weight / torch.dot(u_O, matrix_OI @ v_I)


class Generator(nn.Module):
    """Noise (N, Z) and classes (N,) to standardised features (N, C, H, W).

    Vectors: dense layers. Maps: a dense layer to maps of half the size, doubled, then two
    convolutions. The class is a one-hot appended to the noise.
    """

    mean_C: Tensor
    scale_C: Tensor

    def __init__(
        self,
        classes: Sequence[str],
        shape: Sequence[int],
        *,
        noise_dims: int = 64,
        width: int = 256,
        layers: int = 2,
    ) -> None:
        super().__init__()
        _check(classes, shape)
        self.classes, self.shape = tuple(classes), _shape_CHW(shape)
        self.noise_dims, self.width, self.depth = noise_dims, width, layers
        channels, height, width_px = self.shape
        self.maps = height > 1 or width_px > 1
        fans = [noise_dims + len(classes)] + [width] * layers
        self.hidden = nn.ModuleList(Layer(a, b) for a, b in zip(fans, fans[1:], strict=False))
        if self.maps:
            self._small = (-(-height // 2), -(-width_px // 2))
            self.spread = Layer(width, width * self._small[0] * self._small[1])
            self.conv = Layer(width, width, 3)
        self.last = Layer(width, channels, 3 if self.maps else 0)
        self.register_buffer("mean_C", torch.zeros(channels))
        self.register_buffer("scale_C", torch.ones(channels))

    def arguments(self) -> dict[str, Any]:
        """What makes this network again: `Generator(**arguments)`."""
        return {
            "classes": list(self.classes),
            "shape": list(self.shape),
            "noise_dims": self.noise_dims,
            "width": self.width,
            "layers": self.depth,
        }

    def forward(self, noise_NZ: Tensor, classes_N: Tensor) -> Tensor:
        onehot_NK = functional.one_hot(classes_N, len(self.classes)).to(noise_NZ.dtype)
        x = torch.cat([noise_NZ, onehot_NK], 1)
        for layer in self.hidden:
            x = functional.leaky_relu(layer(x), LEAK)
        channels, height, width = self.shape
        if not self.maps:
            flat_NC: Tensor = self.last(x)
            return flat_NC[:, :, None, None]
        x = functional.leaky_relu(self.spread(x), LEAK).view(-1, self.width, *self._small)
        x = functional.interpolate(x, (height, width), mode="nearest")
        maps_NCHW: Tensor = self.last(functional.leaky_relu(self.conv(x), LEAK))
        return maps_NCHW

    def standardise(self, features: Tensor) -> None:
        """Takes mean and deviation of features (M, C, H, W)."""
        wide = features.double()
        mean_C, deviation_C = wide.mean((0, 2, 3)), wide.std((0, 2, 3), correction=0)
        constant_C = deviation_C <= CONSTANT * max(float(deviation_C.max()), 1e-30)
        self.mean_C.copy_(mean_C)
        self.scale_C.copy_(torch.where(constant_C, 0.0, deviation_C))

    def standardised(self, features: Tensor) -> Tensor:
        """Features (N, C, H, W) as the networks see them; constant ones are 0."""
        scale_C = torch.where(self.scale_C == 0, 1.0, self.scale_C)
        centred = (features - _maps(self.mean_C)) * _maps((self.scale_C != 0).float())
        return centred / _maps(scale_C)

    def features(self, standardised: Tensor) -> Tensor:
        """The inverse of `standardised`."""
        return standardised * _maps(self.scale_C) + _maps(self.mean_C)


class Discriminator(nn.Module):
    """Standardised features (N, C, H, W) to logits of being real (N,) and of the classes (N, K)."""

    def __init__(
        self,
        classes: Sequence[str],
        shape: Sequence[int],
        *,
        width: int = 256,
        layers: int = 2,
        spectral: bool = True,
    ) -> None:
        super().__init__()
        _check(classes, shape)
        self.classes, self.shape = tuple(classes), _shape_CHW(shape)
        self.width, self.depth, self.spectral = width, layers, spectral
        channels, height, width_px = self.shape
        self.maps = height > 1 or width_px > 1
        if self.maps:
            self.convs = nn.ModuleList(
                Layer(a, width, 3, spectral=spectral) for a in (channels, width)
            )
        fans = [width if self.maps else channels] + [width] * layers
        self.hidden = nn.ModuleList(
            Layer(a, b, spectral=spectral) for a, b in zip(fans, fans[1:], strict=False)
        )
        # The last layers are not held to a slope: a weak source would leave all to the class.
        self.source, self.label = Layer(width, 1), Layer(width, len(classes))

    def arguments(self) -> dict[str, Any]:
        """What makes this network again: `Discriminator(**arguments)`."""
        return {
            "classes": list(self.classes),
            "shape": list(self.shape),
            "width": self.width,
            "layers": self.depth,
            "spectral": self.spectral,
        }

    def forward(self, standardised: Tensor) -> tuple[Tensor, Tensor]:
        x = standardised
        if self.maps:
            for conv in self.convs:
                x = functional.avg_pool2d(functional.leaky_relu(conv(x), LEAK), 2, ceil_mode=True)
            x = x.mean((2, 3))
        else:
            x = x.flatten(1)
        for layer in self.hidden:
            x = functional.leaky_relu(layer(x), LEAK)
        return self.source(x)[:, 0], self.label(x)


@torch.no_grad()
def seed_weights(network: nn.Module, seed: int, stream: str) -> None:
    """Weights N(0, 2 / fan in) (He et al., ICCV 2015), each from a stream of its own name.

    The vectors of power iterations begin normal too: along no axis of the weight.
    """
    tensors: list[tuple[str, Tensor]] = [*network.named_parameters(), *network.named_buffers()]
    for name, tensor in tensors:
        leaf = name.rpartition(".")[2]
        if leaf not in ("weight", "u_O"):
            continue
        drawn = torch.from_numpy(rng.normals(seed, f"{stream}.{name}", 0, tensor.numel()))
        scale = (2 / tensor[0].numel()) ** 0.5 if leaf == "weight" else 1 / len(tensor) ** 0.5
        tensor.copy_(drawn.view(tensor.shape) * scale)


def noise(
    seed: int, stream: str, numbers_N: np.ndarray[Any, Any], dims: int, start: int = 0
) -> Tensor:
    """Standard normal noise of these addresses, (N, Z), from draw `start` on."""
    return torch.from_numpy(rng.normals(seed, stream, numbers_N, dims, start))


class Pair(nn.Module):
    """Both networks of a run, made of their arguments."""

    def __init__(self, generator: dict[str, Any], discriminator: dict[str, Any]) -> None:
        super().__init__()
        self.generator, self.discriminator = Generator(**generator), Discriminator(**discriminator)


def save_acgan(
    store: Store,
    generator: Generator,
    discriminator: Discriminator,
    about: dict[str, Any],
    card: str,
) -> str:
    """Writes both networks, `about` and the card as a run's model; the weights' SHA-256."""
    networks: dict[str, Generator | Discriminator] = {
        "generator": generator,
        "discriminator": discriminator,
    }
    tensors = {f"{r}.{n}": t for r, made in networks.items() for n, t in made.state_dict().items()}
    arguments = {role: network.arguments() for role, network in networks.items()}
    kind = {"kind": ROLE, "arguments": arguments}
    return weights.save_network(store, ROLE, tensors, {**kind, **about}, card)


def load_acgan(url: str) -> tuple[Generator, Discriminator, dict[str, Any]]:
    """Generator and discriminator of a run folder or its `model/` folder, and its configuration.

    `about["features"]` says of which network, layer and pooling the features are. Raises as
    `weights.load_generator`.
    """
    pair, about = weights.load_network(url, ROLE, Pair)
    return pair.generator, pair.discriminator, about


def _shape_CHW(shape: Sequence[int]) -> tuple[int, int, int]:
    channels, height, width = shape if len(shape) == 3 else (shape[0], 1, 1)
    return int(channels), int(height), int(width)


def _maps(values_C: Tensor) -> Tensor:
    return values_C[:, None, None]


def _check(classes: Sequence[str], shape: Sequence[int]) -> None:
    if len(set(classes)) < max(2, len(classes)):
        raise UsageError(f"an ACGAN needs two or more different classes, got {list(classes)}")
    if len(shape) not in (1, 3) or min(shape) < 1:
        raise UsageError(f"features must have shape (D,) or (C, H, W), got {tuple(shape)}")
