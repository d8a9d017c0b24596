"""Readers of known skill read over HTTP, and the report recovers their skill."""

from __future__ import annotations

import math
import threading

import numpy as np
import pytest

from medray import rng
from medray.evaluate.reader_set import decode_image
from tests.reader_sets import make_study
from tests.serve.readers.service import begin, logged_in, serving

# How far apart real and synthetic look to a reader, in standard deviations; where points begin.
SKILLS = {"blind": 0.0, "fair": 1.0, "sharp": 2.5}
CUTS = np.array([-1.0, -0.3, 0.3, 1.0])


def normal(x: float) -> float:
    return 0.5 * (1 + math.erf(x / math.sqrt(2)))


def truths(d: float) -> dict[str, float]:
    """Accuracy, sensitivity and AUC of five points by a reader of skill d."""
    shares = []
    for centre in (-d / 2, d / 2):
        below = np.array([0.0, *(normal(cut - centre) for cut in CUTS), 1.0])
        shares.append(np.diff(below))
    real, fake = shares
    less = np.cumsum(real) - real
    sensitivity, specificity = fake[3:].sum(), real[:3].sum()
    return {
        "accuracy": (sensitivity + specificity) / 2,
        "sensitivity": sensitivity,
        "auc": float((fake * (less + real / 2)).sum()),
    }


def read_all(service, study, token, skill, reader):
    """Reads the whole study, with the rests that it asks for."""
    client, truth = logged_in(service, token), service.desk.truth_of(service.desk.study(study))
    for position, item in enumerate(client.get(f"/v1/studies/{study}/items").json()["items"]):
        path = f"/v1/studies/{study}/items/{item['item']}/images/0"
        sent = client.get(path)
        if sent.status_code == 429:
            service.clock.ahead_s += 601
            sent = client.get(path)
        assert decode_image(sent.content).shape == (16, 16)
        kind = truth[item["item"]].answer
        seen = (kind - 0.5) * skill + float(rng.normals(reader, "test.simulated", position, 1)[0])
        body = {"item": item["item"], "token": f"t-{reader}-{position:05d}", "seconds": 2.0}
        saved = client.post(
            f"/v1/studies/{study}/answers", json={**body, "score": 1 + int((seen > CUTS).sum())}
        )
        assert saved.status_code == 201
    assert client.post(f"/v1/studies/{study}/finish").status_code == 204


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("simulated")
    make_study(folder, images=120, name="s")
    with serving(folder) as service:
        tokens = begin(service, "s", *SKILLS)
        readers = [
            threading.Thread(target=read_all, args=(service, "s", token, SKILLS[name], n))
            for n, (name, token) in enumerate(zip(SKILLS, tokens, strict=True))
        ]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        admin = service.admin
        assert admin.get("/v1/studies/s/progress").json()["not_ready"] == []
        for action in ("lock", "close"):
            assert admin.post(f"/v1/studies/s/{action}").status_code == 200
        return admin.get("/v1/studies/s/report").json()


def test_the_report_recovers_each_readers_skill_within_its_interval(report) -> None:
    held = []
    for name, d in SKILLS.items():
        for figure, value in truths(d).items():
            found = report["readers"][name][figure]
            held.append(found["low"] <= value <= found["high"])
    # Nine intervals of 95%: one may miss.
    assert sum(held) >= 8
    # The control: a blind reader's interval does not hold a sharp one's skill.
    assert report["readers"]["blind"]["auc"]["high"] < truths(SKILLS["sharp"])["auc"]


def test_the_pooled_figures_hold_the_mean_of_the_skills(report) -> None:
    for figure in ("accuracy", "accuracy_over_cases", "auc", "sensitivity"):
        value = np.mean([truths(d)[figure.removesuffix("_over_cases")] for d in SKILLS.values()])
        assert report["pooled"][figure]["low"] <= value <= report["pooled"][figure]["high"]


def test_readers_who_repeat_themselves_by_chance_alone_have_the_self_agreement_of_chance(
    report,
) -> None:
    agreed = report["readers"]["blind"]["self_agreement"]
    p = 1 - normal(CUTS[2])
    assert agreed["count"] == 12 and agreed["low"] <= p**2 + (1 - p) ** 2 <= agreed["high"]
    assert report["readers"]["sharp"]["self_agreement"]["share"] > 0.6
    assert report["study"]["readings"] == 396 and report["kappa"]["cases"] == 120
