"""Growth as a function of images: what holds at every image of every schedule."""

import itertools

import pytest

from medray.train.schedule import growth_at, images_to_level, is_due, levels, plan

SCHEDULES = [
    {"final_px": 4, "fade_images": 10, "stable_images": 5},
    {"final_px": 8, "fade_images": 1, "stable_images": 1},
    {"final_px": 32, "fade_images": 7, "stable_images": 3},
    {"final_px": 32, "fade_images": 0, "stable_images": 4},
    {"final_px": 64, "fade_images": 4, "stable_images": 0},
    {"final_px": 1024, "fade_images": 3, "stable_images": 2},
    {"final_px": 32, "fade_images": 5, "stable_images": 5, "start_px": 16},
]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_growth_is_the_walk_through_the_plan_one_image_at_a_time(schedule: dict[str, int]) -> None:
    expected = []
    for stretch in plan(**schedule):
        end = stretch.first + 50 if stretch.end is None else stretch.end
        for image in range(stretch.first, end):
            into = max(image - stretch.first, 1)
            alpha = into / (end - stretch.first) if stretch.kind == "fade" else 1.0
            expected.append((stretch.px, alpha))
    grown = [growth_at(image, **schedule) for image in range(len(expected))]
    assert [(g.px, g.alpha) for g in grown] == expected


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_growth_never_shrinks_and_ends_at_the_final_resolution(schedule: dict[str, int]) -> None:
    grown = [growth_at(image, **schedule) for image in range(400)]
    assert grown[-1].px == schedule["final_px"] and grown[-1].alpha == 1.0
    assert all(0 < g.alpha <= 1 for g in grown)
    for before, after in itertools.pairwise(grown):
        assert before.px <= after.px <= 2 * before.px
        assert before.alpha <= after.alpha or before.level < after.level


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_plan_is_gapless_and_starts_at_image_zero(schedule: dict[str, int]) -> None:
    stretches = plan(**schedule)
    assert stretches[0].first == 0 and stretches[-1].end is None
    assert all(a.end == b.first for a, b in itertools.pairwise(stretches))


def test_the_papers_schedule_reaches_1024_px_after_ten_million_images() -> None:
    assert levels(1024, 4) == 9
    assert images_to_level(8, fade_images=600_000, stable_images=600_000) == 9_000_000
    grown = growth_at(9_300_000, final_px=1024, fade_images=600_000, stable_images=600_000)
    assert (grown.px, grown.alpha, grown.level) == (1024, 0.5, 8)


def test_no_fade_and_no_stable_images_start_at_the_final_resolution() -> None:
    grown = growth_at(0, final_px=64, fade_images=0, stable_images=0)
    assert (grown.px, grown.alpha, grown.level) == (64, 1.0, 4)


@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("every", [1, 2, 16])
@pytest.mark.parametrize("first", [0, 8, 100, 12_345])
def test_a_lazy_term_is_due_once_in_every_so_many_steps_wherever_the_run_resumes(
    batch: int, every: int, first: int
) -> None:
    due = [is_due(first + step * batch, batch, every) for step in range(5 * every)]
    for start in range(4 * every):
        assert sum(due[start : start + every]) == 1
