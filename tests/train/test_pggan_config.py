"""The progressive GAN's configuration: the paper's defaults, and what is refused."""

import subprocess
import sys

import pytest
from pydantic import ValidationError

from medray.train.pggan_config import PgganConfig


def test_defaults_follow_the_paper() -> None:
    config = PgganConfig()
    rates = [config.lr_at(px) for px in (4, 64, 128, 256, 512, 1024)]
    assert rates == [0.001, 0.001, 0.0015, 0.002, 0.003, 0.003]
    assert (config.gp_weight, config.drift, config.fmap_base, config.fmap_max) == (
        10.0,
        0.001,
        8192,
        512,
    )


def test_batch_and_rate_hold_from_their_resolution_on() -> None:
    config = PgganConfig(batch=64, batch_by_px={32: 16, 128: 4}, lr=0.01, lr_by_px={8: 0.02})
    assert [config.batch_at(px) for px in (4, 16, 32, 64, 128, 256)] == [64, 64, 16, 16, 4, 4]
    assert [config.lr_at(px) for px in (4, 8, 1024)] == [0.01, 0.02, 0.02]


def test_maps_by_resolution_are_read_from_text_as_the_command_line_gives_it() -> None:
    assert PgganConfig(batch_by_px={"32": "16"}).batch_by_px == {32: 16}  # type: ignore[dict-item]


def test_r1_keeps_its_strength_on_the_same_image_at_twice_the_size() -> None:
    config = PgganConfig(r1_gamma=3.0)
    assert config.r1_gamma_at(64) == 3.0
    assert config.r1_gamma_at(128) == 12.0 and config.r1_gamma_at(32) == 0.75


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"final_px": 48}, "power of two from 4 to 1024"),
        ({"final_px": 2048}, "power of two from 4 to 1024"),
        ({"final_px": 16, "start_px": 32}, "start px 32 is above final px 16"),
        ({"channels": 2}, "must be 1 or 3"),
        ({"batch_by_px": {30: 4}}, "power of two"),
        ({"lr_by_px": {32: 0.0}}, "must be above 0 at every resolution, got 0.0 at 32 px"),
        ({"zero_stage": 2}, "zero stage 2 needs the engine deepspeed"),
        ({"loss": "hinge"}, "'r1' or 'wgan-gp'"),
        ({"total_images": 0}, "greater than or equal to 1"),
        ({"final_pixels": 64}, "Extra inputs are not permitted"),
    ],
)
def test_what_cannot_be_is_refused_with_what_is_allowed(
    given: dict[str, object], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        PgganConfig(**given)  # type: ignore[arg-type]


def test_configuration_and_schedule_need_no_torch() -> None:
    code = "import sys, medray.train.pggan_config; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
