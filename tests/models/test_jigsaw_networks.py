"""Jigsaw networks: the published sizes, the compact form's table, what they refuse."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor

from medray.errors import UsageError
from medray.models import weights
from medray.models.encoder import load_encoder
from medray.models.jigsaw import Jigsaw, logits_of
from medray.store import Store
from medray.train import permutations

THOUSAND = permutations.choose(1000, 0)
FEW = THOUSAND[:12]


def compact(seed: int = 0) -> Jigsaw:
    return Jigsaw(FEW, width=8).seed_weights(seed).eval().requires_grad_(False)


def views(count: int, px: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(px)
    return torch.rand(count, 9, 1, px, px, generator=generator) * 2 - 1


def parameters(network: torch.nn.Module) -> int:
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("channels", "trunk", "whole"),
    [(3, 165_219_584, 170_439_912), (1, 165_178_112, 170_398_440)],
)
def test_the_published_network_has_the_published_number_of_parameters(
    channels: int, trunk: int, whole: int
) -> None:
    with torch.device("meta"):
        network = Jigsaw(THOUSAND, form="published", channels=channels)
        shape = network(torch.empty(2, 9, channels, 64, 64)).shape
    assert parameters(network.trunk) == trunk and parameters(network) == whole
    assert shape == (2, 1000)


def test_the_compact_network_has_a_tenth_of_them_at_most_head_included() -> None:
    with torch.device("meta"):
        assert parameters(Jigsaw(THOUSAND)) <= 170_398_440 / 10
        assert parameters(Jigsaw(THOUSAND, width=96)) <= 170_398_440 / 10


def test_the_logit_of_a_permutation_is_the_sum_of_its_nine_entries() -> None:
    table_NSQ = torch.randn(3, 9, 9, generator=torch.Generator().manual_seed(0))
    orders_PS = torch.tensor([[int(place) for place in text] for text in FEW])
    logits_NP = logits_of(table_NSQ, orders_PS)
    for n, p in itertools.product(range(3), range(len(FEW))):
        wanted = sum(float(table_NSQ[n, s, orders_PS[p, s]]) for s in range(9))
        assert float(logits_NP[n, p]) == pytest.approx(wanted, abs=1e-5)


def test_shuffled_views_give_a_shuffled_table() -> None:
    network, given = compact(), views(2)
    order = torch.tensor([4, 2, 0, 1, 3, 8, 7, 5, 6])
    table = network.table(given)
    torch.testing.assert_close(
        network.table(given[:, order]), table[:, order], rtol=1e-4, atol=1e-5
    )
    assert float((table - table[:, order]).abs().max()) > 1e-3


def test_a_puzzles_logits_do_not_depend_on_its_batch() -> None:
    network, given = compact(), views(4)
    alone = torch.cat([network(given[n : n + 1]) for n in range(4)])
    torch.testing.assert_close(network(given), alone, rtol=1e-4, atol=1e-5)
    assert network(views(2, 48)).shape == (2, len(FEW))


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        (("012345678", "012345677"), "got 012345677"),
        (("012345678", "012345678"), "got 2 with 1 of them"),
        (("012345678",), "got 1 with 1 of them"),
        (("01234567", "10234567"), "got 01234567"),
    ],
)
def test_what_are_not_different_permutations_is_refused(texts: tuple[str, ...], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Jigsaw(texts)


def test_views_of_another_shape_are_refused() -> None:
    network = compact()
    for given in (views(1)[:, :8], views(1)[:, :, 0], views(1).expand(1, 9, 3, 32, 32)):
        with pytest.raises(UsageError, match=r"\(N, 9, 1, p, p\)"):
            network(given)


def test_a_published_networks_folder_is_no_encoders(tmp_path: Path) -> None:
    # Written by hand: the weights themselves are large.
    store = Store(tmp_path).child("model")
    weights.save_network(store, "jigsaw", {"a": torch.zeros(1)}, {"arguments": {}}, "card")
    with pytest.raises(UsageError, match="holds no encoder"):
        load_encoder(str(tmp_path))


def test_whole_images_have_features() -> None:
    network = compact()
    assert network.features(views(3, 64)[:, 0]).shape == (3, network.encoder.dims)  # type: ignore[union-attr]
