"""On a GPU: a recorded pass gives the plain one's bytes, on any thread; the CPU's nearly."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from medray.models.classifier import Classifier
from medray.models.pggan import Generator
from medray.sample.images import TOLERANCE, Renderer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]
ARGUMENTS = {"final_px": 32, "latent_dims": 24, "fmap_base": 512, "fmap_max": 48}
ABOUT = {"px": 32, "arguments": ARGUMENTS, "generator_sha256": "0" * 64}


def renderer(device="cuda", **options):
    torch.manual_seed(0)
    return Renderer(Generator(**ARGUMENTS), ABOUT, device=device, **options)


def latents(count=70):
    return np.random.default_rng(0).standard_normal((count, 24), np.float32)


@pytest.mark.parametrize("dtype", ["float32", "bf16"])
def test_a_recorded_pass_gives_the_bytes_of_the_plain_one_and_nearly_the_cpus(dtype):
    recorded, plain = renderer(dtype=dtype), renderer(dtype=dtype)
    plain._pass = lambda padded_BD: plain._images(padded_BD.cuda())
    images = recorded.render(latents())
    np.testing.assert_array_equal(images, plain.render(latents()))
    on_cpu = renderer("cpu", dtype=dtype).render(latents())
    assert np.abs(images.astype(int) - on_cpu.astype(int)).max() <= TOLERANCE[dtype]


def test_threads_and_neighbours_change_no_byte_on_a_gpu():
    shared = renderer()
    whole = shared.render(latents())
    with ThreadPoolExecutor(4) as threads:
        parts = list(threads.map(shared.render, np.split(latents(), [3, 20, 41])))
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_a_classifier_says_on_a_gpu_what_it_says_on_the_cpu():
    from serve.compute.diagnosis import Diagnosis
    from serve.records import Want

    torch.manual_seed(0)
    network = Classifier(("a", "b", "c"), size_px=32).eval()
    images = list(np.random.default_rng(0).integers(0, 255, (21, 32, 32), np.uint8))
    wants = [Want(heatmap=True)] * len(images)
    on_cpu = Diagnosis(network, "0" * 64, None).diagnose(images, wants)
    on_gpu = Diagnosis(network, "0" * 64, None, device="cuda").diagnose(images, wants)
    for one, other in zip(on_cpu, on_gpu, strict=True):
        for name, value in one.probabilities.items():
            assert abs(value - other.probabilities[name]) < 2e-3
        assert one.decided == other.decided
        assert np.abs(one.heat_HW - other.heat_HW).mean() < 0.02
