"""A sampler of features by an ACGAN: only what its discriminator calls the wanted class is kept.

Row i of a draw owns a range of noise: its candidates are tried in their order and the first that
the discriminator gives the wanted class is row i, whatever is drawn with it. Both networks run at
one fixed, padded batch, so that no neighbour changes a bit.

Shape letters: N rows, Z noise, K classes, D features (of maps C x H x W), T tries.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medray.errors import GateError, UsageError
from medray.models.acgan import Discriminator, Generator, load_acgan, noise
from medray.sample.features import Array, Sampler

STREAM, ACCEPTANCE_STREAM = "sample.acgan", "sample.acgan.acceptance"
# Rows of one pass, padded; candidates that a row may try; candidates that acceptance is taken of.
BATCH, TRIES, TRIED = 128, 256, 512


class ACGAN(Sampler):
    """Features by an auxiliary classifier GAN (Odena et al. 2017), trained here or by jobs/acgan.

    `settings` are those of `medray.train.acgan_config.ACGANConfig`, for `fit`.
    """

    generator: Generator
    discriminator: Discriminator
    # What its features are: "<network sha256>:<layer>:<pooling>"; empty where it was not said.
    tag: str = ""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    @classmethod
    def of(
        cls, generator: Generator, discriminator: Discriminator, counts_K: Any, tag: str = ""
    ) -> ACGAN:
        """A sampler of trained networks; `counts_K` are the rows that each class had."""
        made = cls()
        made._take(generator, discriminator)
        made.classes = np.asarray(generator.classes)
        made._counts_K = np.asarray(counts_K, np.int64)
        made._model, made.tag = np.empty((0, 0), np.float32), tag
        return made

    @classmethod
    def load(cls, url: str, *, tag: str | None = None) -> ACGAN:
        """The sampler of a run folder of jobs/acgan.py, or of its `model/` folder.

        UsageError where its features are not `tag`'s, where that is given.
        """
        generator, discriminator, about = load_acgan(url)
        made = cls.of(generator, discriminator, about["counts"], str(about["features"]))
        if tag is not None:
            made.check(tag, url)
        return made

    def check(self, tag: str, where: str = "the ACGAN") -> None:
        """UsageError where features of `tag` are not those that the sampler makes."""
        if tag != self.tag:
            raise UsageError(
                f"{where} makes features of {self.tag or 'an unnamed network'}, these are of {tag} "
                "(network:layer:pooling)",
                hint="train an ACGAN on features of the same network, layer and pooling",
            )

    def _take(self, generator: Generator, discriminator: Discriminator) -> None:
        self.generator = generator.cpu().eval().requires_grad_(False)
        self.discriminator = discriminator.cpu().eval().requires_grad_(False)
        self.__dict__.pop("acceptance", None)

    def _fit(self, features_MD: Array, numbers_M: NDArray[np.int64]) -> None:
        from medray.train import acgan
        from medray.train.acgan_config import ACGANConfig

        rows = acgan.as_maps(_numpy(features_MD))
        names = [str(name) for name in self.classes]
        training = acgan.trained_in_memory(
            ACGANConfig(**self.settings), names, rows, numbers_M.astype(np.int64)
        )
        self._take(training.average, training.discriminator)

    @functools.cached_property
    def acceptance(self) -> dict[str, float]:
        """Share of candidates that the discriminator calls by their class, class by class."""
        found = {}
        for number, name in enumerate(self.generator.classes):
            addresses_T = np.arange(TRIED, dtype=np.uint64) + np.uint64(TRIED * number)
            named = [
                self._candidates(0, ACCEPTANCE_STREAM, some, np.full(len(some), number), 0)[1]
                for some in np.array_split(addresses_T, TRIED // BATCH)
            ]
            found[name] = float(np.concatenate(named).mean())
        return found

    def candidates(
        self, seed: int, numbers_N: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """The first candidate of rows of these classes, by number, and whether it is accepted."""
        rows = np.empty((len(numbers_N), *self.generator.shape), np.float32)
        named_N = np.empty(len(numbers_N), np.bool_)
        for first in range(0, len(numbers_N), BATCH):
            part = slice(first, first + BATCH)
            wanted_N = numbers_N[part]
            addresses_N = np.arange(first, first + len(wanted_N), dtype=np.uint64)
            rows[part], named_N[part] = self._candidates(seed, STREAM, addresses_N, wanted_N, 0)
        return rows, named_N

    def _draw(self, seed: int, start: int, numbers_N: Array) -> Array:
        wanted_N = _numpy(numbers_N).astype(np.int64)
        rows = np.empty((len(wanted_N), *self.generator.shape), np.float32)
        for first in range(0, len(wanted_N), BATCH):
            part = slice(first, first + BATCH)
            rows[part] = self._rows(seed, start + first, wanted_N[part])
        found: NDArray[np.float32] = rows if self.generator.maps else rows.reshape(len(rows), -1)
        return torch.from_numpy(found).to(self._model) if hasattr(self._model, "detach") else found

    def _rows(self, seed: int, start: int, wanted_N: NDArray[np.int64]) -> NDArray[np.float32]:
        """Up to BATCH rows: of each the first candidate that is called as wanted."""
        addresses_N = np.arange(start, start + len(wanted_N), dtype=np.uint64)
        made = np.empty((len(wanted_N), *self.generator.shape), np.float32)
        left = np.arange(len(wanted_N))
        for attempt in range(TRIES):
            rows, named = self._candidates(seed, STREAM, addresses_N[left], wanted_N[left], attempt)
            made[left[named]] = rows[named]
            left = left[~named]
            if not len(left):
                return made
        name = self.classes[wanted_N[left[0]]]
        raise GateError(
            f"none of {TRIES} candidates for row {start + left[0]} is one that the discriminator "
            f"calls {name} (acceptance {self.acceptance[str(name)]:.1%})",
            hint="train longer, on more rows of this class, or with a larger --class-weight",
        )

    def _candidates(
        self,
        seed: int,
        stream: str,
        addresses_N: NDArray[np.uint64],
        wanted_N: NDArray[np.int64],
        attempt: int,
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Up to BATCH candidates (N, C, H, W), and which have the wanted class."""
        dims, count = self.generator.noise_dims, len(wanted_N)
        # An even number of draws each, so that no pair of normals is shared by two candidates.
        even = dims + dims % 2
        drawn_NZ = noise(seed, stream, addresses_N, dims, attempt * even)
        noise_BZ, classes_B = torch.zeros(BATCH, dims), torch.zeros(BATCH, dtype=torch.int64)
        noise_BZ[:count], classes_B[:count] = drawn_NZ, torch.from_numpy(wanted_N)
        with torch.inference_mode():
            standardised: Tensor = self.generator(noise_BZ, classes_B)
            _, labels_BK = self.discriminator(standardised)
            features = self.generator.features(standardised)
        named_B = labels_BK.argmax(1) == classes_B
        return features[:count].numpy(), named_B[:count].numpy()


def _numpy(array: Array) -> NDArray[Any]:
    return np.asarray(array.detach().cpu() if hasattr(array, "detach") else array)
