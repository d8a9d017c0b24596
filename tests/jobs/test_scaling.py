"""The model of more GPUs than are here: held against a published run, its limits named."""

from __future__ import annotations

import pytest

from jobs import _scaling_run as scaling_run
from jobs import scaling as scaling_job
from medray.errors import UsageError
from medray.train import scaling
from medray.train.pggan_config import PgganConfig
from medray.train.rehearsal import Costs, Step

TRAIN = PgganConfig(
    final_px=8, total_images=1000, fade_images=100, stable_images=100, batch=8, fmap_base=64,
    fmap_max=16, loss="wgan-gp",
)  # fmt: skip
COSTS = [
    Costs(px, 8, Step(0, "", 8 * flops), Step(0, "", 8 * flops))
    for px, flops in ((4, 10**9), (8, 10**10))
]
MACHINE = scaling.Machine("made up", 4, {4: 1e12}, link_bytes_s=1e12, network_bytes_s=1e9)


def test_the_model_fitted_on_one_gpu_is_within_a_fifth_of_the_published_times_on_more() -> None:
    rows = scaling_run.held()
    assert [row.gpus for row in rows] == [1, 2, 4, 8]
    assert abs(rows[0].off) < 0.01
    assert all(abs(row.off) <= 0.2 for row in rows[1:]), rows


def test_the_work_is_shared_and_what_it_takes_is_the_operations_over_the_rate() -> None:
    one, four = (scaling.predict(TRAIN, COSTS, MACHINE, gpus) for gpus in (1, 4))
    # 100 images at 4 px and 900 at 8 px, in whole steps.
    assert one.compute_s == pytest.approx((104 * 1e9 + 904 * 1e10) / 1e12, rel=0.01)
    assert four.compute_s == pytest.approx(one.compute_s / 4)
    assert one.exposed_s == 0 and four.exposed_s > 0
    assert four.gpu_hours == pytest.approx(4 * four.seconds / 3600)


def test_a_step_takes_no_less_than_its_launches() -> None:
    slow = scaling.Machine("made up", 4, {4: 1e12}, {4: 1.0})
    step = scaling.step(TRAIN, COSTS[1], slow, 1)
    assert step.compute_s == 1.0 and step.launched_s == pytest.approx(1 - 8e10 / 1e12)
    assert scaling.limit(scaling.predict(TRAIN, COSTS, slow, 1)) == "launches"


def test_the_slowest_link_decides_and_is_named() -> None:
    inside, outside = (scaling.reduce_s(MACHINE, gpus, 10**9) for gpus in (4, 8))
    assert inside == pytest.approx(2 * 3 / 4 * 1e-3, rel=0.1)
    assert outside == pytest.approx(2 * 7 / 8, rel=0.01)
    narrow = scaling.Machine("made up", 1, {4: 1e14}, network_bytes_s=1e4)
    assert scaling.limit(scaling.predict(TRAIN, COSTS, narrow, 8)) == "all-reduce"
    hungry = scaling.Machine("made up", 8, {4: 1e14}, store_bytes_s=1e2)
    assert scaling.limit(scaling.predict(TRAIN, COSTS, hungry, 1)) == "store"
    assert scaling.limit(scaling.predict(TRAIN, COSTS, MACHINE, 1)) == "the GPU"


def test_more_gpus_than_images_is_an_error_that_says_so() -> None:
    with pytest.raises(UsageError, match="16 GPUs, and a batch of 8 images"):
        scaling.predict(TRAIN, COSTS, MACHINE, 16)


CONFIG = """
final_px: 16
total_images: 4000
fade_images: 500
stable_images: 500
fmap_base: 64
fmap_max: 16
batch: 8
precision: bf16
workers: 8
"""


def test_the_command_prints_ranges_and_writes_the_page(tmp_path, capsys) -> None:
    (tmp_path / "train.yaml").write_text(CONFIG)
    words = ["--train", str(tmp_path / "train.yaml"), "--gpus", *"1 8 64".split()]
    words += ["--images-per-gpu", "2"]
    assert scaling_job.main([*words, "--page", str(tmp_path / "page.md")]) == 0
    said, page = capsys.readouterr().err, (tmp_path / "page.md").read_text()
    for text in (said, page):
        assert "| 4 | 3 | " in text and "predicted |" in text
        assert "64 GPUs, and a batch of 8 images" in text
        assert text.count("Predicted, not measured") == 2 and "Constants:" in text


@pytest.mark.parametrize(
    "text, code, said",
    [("a: [", 3, "cannot be read"), ("- 1", 3, "holds no keys"), ("batch: 8", 2, "fade_images")],
)
def test_a_bad_training_is_named(tmp_path, capsys, text: str, code: int, said: str) -> None:
    (tmp_path / "train.yaml").write_text(text)
    assert scaling_job.main(["--train", str(tmp_path / "train.yaml")]) == code
    assert said in capsys.readouterr().err
