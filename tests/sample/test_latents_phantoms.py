"""A pair of findings that no training image had, drawn and seen by a judge that knows it.

The generator is the principal components of chest phantoms, so that a test can make one; neither it
nor the classifier that steers has seen a large heart beside an effusion. The judge is of another
architecture, trained on other patients, with the pair among them.
"""

from functools import cache

import numpy as np
import pytest
import torch
from torch.nn import functional

from medray import phantoms
from medray.metrics.intervals import binomial_interval
from medray.models.classifier import Classifier
from medray.sample.latents import Target, prior, target_of
from medray.sample.latents_check import shows
from medray.sample.latents_fit import fit
from medray.sample.latents_optimise import Pair, Settings, optimise
from tests.sample.latents_toys import principal

PX, DIMS, PAIR = 16, 40, ("cardiomegaly", "effusion")
SETTINGS = Settings(steps=60, lr=0.1, threshold=0.8, slots=32, restarts=96)


def drawn(seed: int, count: int, *, with_pair: bool) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 1, px, px) in [-1, 1] and whether they show each of the two findings."""
    made = list(phantoms.dataset("chest", seed, count, PX))
    truth = np.array([[sample.labels[name] for name in PAIR] for sample in made], np.float32)
    kept = np.ones(count, bool) if with_pair else truth.sum(1) < 2
    images = np.stack([sample.image for sample in made])[:, None] / np.float32(127.5) - 1
    return images[kept], truth[kept]


def trained(images: np.ndarray, truth: np.ndarray, architecture: str, seed: int) -> Classifier:
    """A classifier of the two findings, rare ones weighted up."""
    network = Classifier(PAIR, architecture=architecture, size_px=PX, width=8, multi_label=True)
    network.seed_weights(seed)
    x, y = torch.from_numpy(images), torch.from_numpy(truth)
    weight = (1 - y.mean(0)) / y.mean(0)
    adam = torch.optim.AdamW(network.parameters(), 3e-3)
    order = np.random.default_rng(seed)
    for _ in range(160):
        rows = torch.from_numpy(order.choice(len(x), 64))
        loss = functional.binary_cross_entropy_with_logits(
            network(x[rows]), y[rows], pos_weight=weight
        )
        adam.zero_grad()
        loss.backward()
        adam.step()
    return network.eval()


@cache
def networks() -> tuple[Pair, Classifier]:
    images, truth = drawn(0, 700, with_pair=False)
    assert not (truth.sum(1) == 2).any()
    generator = principal(images.reshape(len(images), -1), DIMS, PX)
    pair = Pair(generator, trained(images, truth, "residual", 1))  # type: ignore[arg-type]
    return pair, trained(*drawn(1, 700, with_pair=True), "plain", 2)


def seen(judge: Classifier, pair: Pair, latents: np.ndarray, target: Target) -> np.ndarray:
    """Whether the judge sees the target in each latent's image."""
    with torch.no_grad():
        logits = judge(pair.images(torch.from_numpy(latents)))
    return shows(judge.decisions(logits).int().numpy(), target)


@pytest.mark.parametrize("name", ["effusion", "cardiomegaly+effusion"])
def test_draws_show_what_is_wanted_to_an_independent_judge_far_more_often_than_chance(name):
    pair, judge = networks()
    target = target_of(name, PAIR, True)
    found = optimise(pair, target, 0, 0, SETTINGS)
    assert len(found.restarts_A) > 60
    (gaussian,) = fit([found.latents_AD])
    plain = prior(5, np.arange(300), DIMS)
    ours = seen(judge, pair, gaussian.transform(plain), target)
    by_chance = seen(judge, pair, plain, target)
    low, _ = binomial_interval(int(ours.sum()), len(ours))
    _, high = binomial_interval(int(by_chance.sum()), len(by_chance))
    assert low > 1.5 * high, (ours.mean(), by_chance.mean())


def test_the_judge_knows_the_pair_in_phantoms():
    """Otherwise its verdict above would say nothing."""
    _, judge = networks()
    images, truth = drawn(2, 300, with_pair=True)
    with torch.no_grad():
        says = judge.decisions(judge(torch.from_numpy(images))).numpy()
    both = truth.sum(1) == 2
    assert both.sum() >= 8
    assert says[both].all(1).mean() > 0.6 and says[~both].all(1).mean() < 0.15
