"""Latent class optimisation: what is accepted passes, nothing is wasted, chunks are functions."""

import numpy as np
import pytest
import torch

from medray.errors import DataError, UsageError
from medray.sample.latents import Target, target_of
from medray.sample.latents_optimise import Chunk, Pair, Settings, optimise, starts_of
from tests.sample import latents_toys as toys

SMALL = Settings(steps=40, threshold=0.6, slots=8, restarts=24)


@pytest.fixture(scope="module")
def pair():
    return toys.pair()


@pytest.fixture(scope="module")
def chunk(pair):
    return optimise(pair, wanted("a"), 3, 1, SMALL)


def wanted(name: str) -> Target:
    return target_of(name, toys.CLASSES, False)


def probabilities(pair: Pair, latents: np.ndarray, target: Target) -> np.ndarray:
    """Each latent's probability of the target, looked at alone, from the classifier's logits."""
    rows = [pair.classifier(pair.images(torch.from_numpy(row[None]))) for row in latents]
    number = list(target.wanted.values()).index(1)
    return torch.cat(rows).softmax(1)[:, number].numpy()


def test_every_accepted_latent_passes_when_it_is_looked_at_alone(pair, chunk):
    assert 12 < len(chunk.restarts_A) <= 24 and (chunk.restarts_A >= 24).all()
    alone = probabilities(pair, chunk.latents_AD, wanted("a"))
    assert (alone >= 0.6 - 1e-5).all()
    np.testing.assert_allclose(chunk.probabilities_A, alone, atol=1e-5)


def test_most_starts_do_not_pass_before_they_are_moved(pair, chunk):
    starts = starts_of(3, wanted("a"), 1, SMALL, pair.dims)
    passed = (probabilities(pair, starts, wanted("a")) >= 0.6).sum()
    assert passed == (chunk.steps_A == 0).sum()
    assert passed < len(chunk.restarts_A) / 2


def test_latents_that_pass_at_their_start_are_taken_as_they_are(pair, chunk):
    starts = starts_of(3, wanted("a"), 1, SMALL, pair.dims)
    still = chunk.steps_A == 0
    assert still.any()
    assert (chunk.latents_AD[still] == starts[chunk.restarts_A[still] - 24]).all()


def test_a_chunk_is_the_same_bytes_whatever_is_made_before_it(pair, chunk):
    optimise(pair, wanted("b"), 3, 0, SMALL)
    again = optimise(pair, wanted("a"), 3, 1, SMALL)
    assert again.to_bytes("plan") == chunk.to_bytes("plan")
    assert optimise(pair, wanted("a"), 4, 1, SMALL).to_bytes("plan") != chunk.to_bytes("plan")


def test_the_networks_are_not_changed(pair, chunk):
    fresh = toys.pair()
    for ours, other in ((pair.generator, fresh.generator), (pair.classifier, fresh.classifier)):
        for name, tensor in ours.state_dict().items():
            assert torch.equal(tensor, other.state_dict()[name]), name
        assert all(p.grad is None for p in ours.parameters())


def test_passes_are_those_that_the_networks_make(pair, chunk, monkeypatch):
    made = []
    forward = pair.generator.forward

    def counting(z_NL, px, alpha):
        made.append(len(z_NL) * (3 if torch.is_grad_enabled() else 1))
        return forward(z_NL, px, alpha)

    monkeypatch.setattr(pair.generator, "forward", counting)
    again = optimise(pair, wanted("a"), 3, 1, SMALL)
    assert again.passes == sum(made) == chunk.passes
    assert max(made) <= 3 * SMALL.slots
    # A latent that has passed is moved no further.
    assert chunk.moved_T.sum() == (chunk.steps_A[chunk.steps_A > 0] + 1).sum() + (
        24 - len(chunk.steps_A)
    ) * (SMALL.steps + 1)


def test_without_steps_enough_what_is_refused_is_told(pair):
    few = optimise(pair, wanted("a"), 3, 1, Settings(1, 1e-6, 0.6, 8, 24))
    assert (few.steps_A == 0).all() and len(few.restarts_A) < 12
    assert 0 < few.best_refused < 0.6


def test_none_accepted_is_a_chunk_too(pair):
    none = optimise(pair, wanted("a"), 3, 0, Settings(1, 1e-6, 0.9999, 8, 8))
    assert none.latents_AD.shape == (0, toys.DIMS) and len(none.restarts_A) == 0
    again = Chunk.from_bytes(none.to_bytes("plan"), "plan")
    assert again is not None and again.latents_AD.shape == (0, toys.DIMS)


def test_the_anchor_keeps_latents_near_their_starts(pair):
    def moved(anchor: float) -> float:
        found = optimise(pair, wanted("a"), 0, 0, Settings(60, 0.05, 0.6, 8, 24, anchor=anchor))
        starts = starts_of(0, wanted("a"), 0, SMALL, pair.dims)[found.restarts_A]
        return float(np.linalg.norm(found.latents_AD - starts, axis=1).mean())

    assert 0.2 < moved(4.0) < 0.98 * moved(0.0)


def test_the_shell_keeps_the_length(pair):
    target = wanted("a")
    found = optimise(pair, target, 0, 0, Settings(60, 0.05, 0.7, 8, 24, shell=50, anchor=0))
    far = found.steps_A > 8
    starts = starts_of(0, target, 0, SMALL, pair.dims)[found.restarts_A[far]]
    off, before = (
        np.abs(np.linalg.norm(rows, axis=1) / toys.DIMS**0.5 - 1).mean()
        for rows in (found.latents_AD[far], starts)
    )
    assert far.sum() > 3 and off < 0.5 * before


def test_several_findings_at_once_are_wanted_and_the_others_not():
    many = toys.pair(multi_label=True)
    both = target_of("a+c", toys.CLASSES, True)
    found = optimise(many, both, 0, 0, Settings(100, 0.05, 0.55, 8, 24))
    assert len(found.restarts_A) > 3
    logits = many.classifier(many.images(torch.from_numpy(found.latents_AD)))
    assert (many.classifier.decisions(logits).int() == torch.tensor([1, 0, 1])).all()


def test_a_rare_finding_passes_where_the_classifier_decides_that_it_is_there():
    """Its calibrated probability may stay below 1/2 in every image that shows it."""
    many = toys.pair(multi_label=True)
    many.classifier.bias.fill_(-3.0)
    many.classifier.thresholds.fill_(torch.sigmoid(torch.tensor(-3.0)))
    plain = toys.pair(multi_label=True)
    latents = torch.from_numpy(starts_of(0, wanted("a"), 0, SMALL, toys.DIMS))
    torch.testing.assert_close(many.logits(latents), plain.logits(latents), atol=1e-4, rtol=1e-4)
    wanted_K = torch.tensor([1.0, 0.0, 0.0])
    passed = many.passes(many.logits(latents), wanted_K, 0.5)
    says = many.classifier.decisions(many.classifier(many.images(latents)))
    assert (passed == (says == wanted_K.bool()).all(1)).all()
    assert many.classifier.probabilities(many.images(latents)).max() < 0.5


def test_wanting_no_finding_is_wanting_none_seen():
    many = toys.pair(multi_label=True)
    logits = torch.tensor([[-1.0, -0.1, -2.0], [-1.0, 0.1, -2.0]])
    assert many.passes(logits, torch.zeros(3), 0.9).tolist() == [True, False]


def test_a_chunk_of_another_plan_or_with_damage_is_not_taken(chunk):
    data = chunk.to_bytes("plan")
    again = Chunk.from_bytes(data, "plan")
    assert again is not None and again.to_bytes("plan") == data
    assert Chunk.from_bytes(data, "other") is None
    for damaged in (data[:-3], data[:40], b"", b"\xff" * 200):
        assert Chunk.from_bytes(damaged, "plan") is None


@pytest.mark.parametrize("which, code", [("generator", "MR-D042"), ("classifier", "MR-D043")])
def test_a_network_that_gives_no_numbers_is_named(which, code):
    broken = toys.pair()
    with torch.no_grad():
        next(getattr(broken, which).parameters()).fill_(float("nan"))
    with pytest.raises(DataError, match=f"the {which} gives .* not finite") as raised:
        optimise(broken, wanted("a"), 0, 0, SMALL)
    assert raised.value.code == code


def test_networks_that_do_not_belong_together_are_refused():
    with pytest.raises(UsageError, match=r"makes images of 3 channel\(s\).* takes 1"):
        Pair(toys.generator(channels=3), toys.classifier())
    with pytest.raises(UsageError, match="makes images of 16 px.* looks at 32 px"):
        Pair(toys.generator(), toys.classifier(size_px=32))
