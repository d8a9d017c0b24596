"""`to` of POST /v1/images/generations: a walk between two latents, each step at an address."""

from __future__ import annotations

import numpy as np
import pytest

from medray.images import decode_png
from serve.compute.synthesis import between
from tests.serve.routes.test_generate import made, parts_of


def walk(service, **more):
    body = {"model": "generator", "class": "opacity", "seed": 5, "start": 7, "to": 9, "n": 5}
    return parts_of(made(service, **{**body, "format": "png16", **more}))


def test_a_walk_begins_and_ends_with_the_images_of_its_two_indices(service):
    steps = walk(service)
    ends = [
        made(service, model="generator", **{"class": "opacity"}, seed=5, start=i, format="png16")
        for i in (7, 9)
    ]
    pixels = [decode_png(data).astype(int) for _, _, data in steps]
    assert (pixels[0] == decode_png(ends[0].content)).all()
    assert (pixels[-1] == decode_png(ends[1].content)).all()
    assert len({address for address, _, _ in steps}) == 5
    assert steps[2][0].endswith(";to=9;share=0.5")
    assert steps == walk(service)


def test_each_step_is_nearer_to_the_end(service):
    pixels = [decode_png(data).astype(float) for _, _, data in walk(service, n=9)]
    away = [np.abs(p - pixels[-1]).mean() for p in pixels]
    assert away[0] > away[4] > away[7] > 0 and away[8] == 0
    assert max(np.abs(a - b).mean() for a, b in zip(pixels, pixels[1:], strict=False)) < away[0]


def test_latents_between_keep_to_the_sphere_where_a_line_would_leave_it():
    a, b = np.eye(2, 512, dtype=np.float32) * np.float32(20)
    middle = between(a, b, 0.5)
    assert np.linalg.norm(middle) == pytest.approx(20) and np.linalg.norm((a + b) / 2) < 15
    assert (between(a, b, 0.0) == a).all() and (between(a, b, 1.0) == b).all()
    assert (between(a, a, 0.5) == a).all()


@pytest.mark.parametrize("change", [{"n": 1}, {"format": "tar"}, {"to": -1}, {"to": 2**64}])
def test_a_walk_that_goes_nowhere_is_refused(service, change):
    body = {"model": "generator", "class": "opacity", "to": 9, "n": 5, **change}
    assert service.post("/v1/images/generations", json=body).status_code == 422
