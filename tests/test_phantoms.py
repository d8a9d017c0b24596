"""Phantoms are functions of their address, and show what their labels say."""

import collections
import dataclasses
import functools
import hashlib
import itertools
import json

import numpy as np
import pytest

from medray import phantoms
from medray.phantoms import _chest, _field, _nodule

KINDS = sorted(phantoms.KINDS)
COUNT = 400


@functools.cache
def first(kind):
    return tuple(phantoms.dataset(kind, 0, COUNT, 8))


@pytest.fixture(params=KINDS)
def many(request):
    return request.param, first(request.param)


@pytest.fixture(scope="module")
def slices():
    return list(phantoms.dataset("brain", 3, 120, 64))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size_px", [8, 32, 33, 64, 300])
def test_a_phantom_is_a_grey_square_of_bytes_with_a_record(kind, size_px):
    sample = phantoms.KINDS[kind](1, 2, size_px)
    assert sample.image.shape == (size_px, size_px) and sample.image.dtype == np.uint8
    assert sample.label in phantoms.CLASSES[kind]
    # A smooth nodule is a finding like others; a normal film and a slice without tumour are none.
    findings = phantoms.CLASSES[kind] if kind == "lung" else phantoms.CLASSES[kind][1:]
    assert set(sample.labels) == set(findings)
    record = json.loads(json.dumps(sample.record()))
    assert record["split"] in ("train", "val", "test") and record["patient"]
    assert np.ptp(sample.image) > 100


@pytest.mark.parametrize("kind", KINDS)
def test_the_bytes_do_not_depend_on_what_else_is_drawn(kind):
    draw = phantoms.KINDS[kind]
    before = draw(5, 10**12, 32).image.tobytes()
    for index in (3, 0, 7):
        draw(5, index, 64)
    assert draw(5, 10**12, 32).image.tobytes() == before
    assert (
        list(phantoms.dataset(kind, 5, 3, 32))[2].image.tobytes() == draw(5, 2, 32).image.tobytes()
    )


GOLDEN = {"brain": "7572095b1a908d92", "chest": "8fd276b3513c285e", "lung": "ceeea7d123f6a5df"}


@pytest.mark.parametrize("kind", KINDS)
def test_the_bytes_are_those_of_every_machine(kind):
    digest = hashlib.sha256()
    for sample in phantoms.dataset(kind, 2024, 12, 32):
        digest.update(sample.image.tobytes())
    assert digest.hexdigest()[:16] == GOLDEN[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_seed_and_index_each_change_the_picture(kind):
    images = [phantoms.KINDS[kind](seed, index, 32).image for seed in (0, 1) for index in (0, 1)]
    for first, second in itertools.combinations(images, 2):
        assert np.mean(first != second) > 0.3


@pytest.mark.parametrize("kind", KINDS)
def test_another_size_is_the_same_picture(kind):
    for index in range(8):
        small, large = (phantoms.KINDS[kind](0, index, px) for px in (32, 128))
        reduced = large.image.reshape(32, 4, 32, 4).mean(axis=(1, 3))
        assert np.abs(reduced - small.image).mean() < 4
        assert small.record() | {"spacing_mm": None} == large.record() | {"spacing_mm": None}


def test_a_patient_has_several_images_and_one_split(many):
    _, samples = many
    splits = collections.defaultdict(set)
    for sample in samples:
        splits[sample.patient].add(sample.split)
    assert all(len(found) == 1 for found in splits.values())
    assert 0.3 * COUNT < len(splits) < 0.5 * COUNT
    sizes = collections.Counter(sample.patient for sample in samples)
    assert len(set(sizes.values())) >= 4


@pytest.mark.parametrize("kind", KINDS)
def test_splits_hold_70_15_and_15_percent_of_patients(kind):
    found = collections.Counter(phantoms.split_of(kind, 0, patient) for patient in range(3000))
    for split, share in (("train", 0.70), ("val", 0.15), ("test", 0.15)):
        assert abs(found[split] / 3000 - share) < 4 * (share * (1 - share) / 3000) ** 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_patients_of_different_seeds_are_different_people(kind):
    patients = [
        {sample.patient for sample in phantoms.dataset(kind, seed, 20, 8)} for seed in (0, 1)
    ]
    assert not patients[0] & patients[1]


def test_keys_are_unique_and_name_the_split(many):
    _, samples = many
    assert len({sample.key for sample in samples}) == COUNT
    assert all(sample.key.startswith(sample.split + "-") for sample in samples)


def test_every_class_occurs_and_the_rare_ones_are_rare(many):
    kind, samples = many
    share = {
        name: sum(sample.label == name for sample in samples) / COUNT
        for name in phantoms.CLASSES[kind]
    }
    assert all(share.values())
    assert max(share, key=share.__getitem__) == phantoms.CLASSES[kind][0]
    rarest = {"chest": "pneumothorax", "brain": "high_grade", "lung": "lobulation"}[kind]
    assert share[rarest] == min(share.values())
    assert kind == "brain" or share[rarest] < 0.07


def test_a_film_may_show_several_findings_and_is_called_by_the_rarest():
    several = 0
    for sample in first("chest"):
        present = [name for name in _chest.RAREST_FIRST if sample.labels[name]]
        assert sample.label == (present[0] if present else "normal")
        several += len(present) > 1
    assert 0.04 < several / COUNT < 0.25


def film_with(monkeypatch, index, **changes):
    """The film of an address with its findings replaced: none but those given."""
    none = {"heart_scale": 1.0, "effusions": (), "consolidations": (), "nodules": ()}
    of = _chest.Findings.of.__func__

    def changed(cls, anatomy, draws):
        found = of(cls, anatomy, draws)
        return dataclasses.replace(found, **{**none, "pneumothorax": None, **changes})

    with monkeypatch.context() as patch:
        patch.setattr(_chest.Findings, "of", classmethod(changed))
        return phantoms.chest(0, index, 64).image.astype(float)


SHOWN = [
    ("effusion", {"effusions": ((1.0, 0.4),)}, (0.45, 0.25), 1),
    ("effusion on the other side", {"effusions": ((-1.0, 0.4),)}, (-0.45, 0.25), 1),
    ("consolidation", {"consolidations": ((-0.4, -0.1, 0.25, 0.4),)}, (-0.4, -0.1), 1),
    ("nodule", {"nodules": ((0.4, -0.2, 0.08),)}, (0.4, -0.2), 1),
    ("large heart", {"heart_scale": 1.45}, (0.42, 0.12), 1),
    ("air outside a fallen lung", {"pneumothorax": (1.0, 0.25)}, (0.55, -0.25), -1),
]


@pytest.mark.parametrize("name, changes, place, sign", SHOWN, ids=[row[0] for row in SHOWN])
def test_a_finding_shows_where_it_is_and_not_elsewhere(monkeypatch, name, changes, place, sign):
    gains, elsewhere = [], []
    for index in range(6):
        plain = film_with(monkeypatch, index)
        change = sign * (film_with(monkeypatch, index, **changes) - plain)
        column, row = (round((1 + part) * 32) for part in place)
        gains.append(change[row - 3 : row + 4, column - 3 : column + 4].mean())
        mirrored = 63 - column
        elsewhere.append(np.abs(change[:24, mirrored - 3 : mirrored + 4]).mean())
    assert np.mean(gains) > 8
    assert np.mean(elsewhere) < 0.25 * np.mean(gains)


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_with_everything_that_can_happen_does_not_run_out_of_numbers(monkeypatch, kind):
    taken = _field.Draws.chance
    monkeypatch.setattr(_field.Draws, "chance", lambda self, p: taken(self, p) or True)
    shown = list(phantoms.KINDS[kind](0, 0, 32).labels.values()).count(1)
    assert shown >= {"chest": 5, "brain": 1, "lung": 2}[kind]


def test_a_normal_film_has_dark_lungs_beside_a_bright_middle_over_a_bright_belly(monkeypatch):
    for index in range(12):
        image = film_with(monkeypatch, index)
        right, left = image[20:36, 14:20].mean(), image[16:28, 44:50].mean()
        middle, belly = image[16:40, 30:34].mean(), image[57:61, 20:44].mean()
        assert max(right, left) + 40 < min(middle, belly)


def test_a_slice_has_a_tumour_mask_exactly_where_it_has_a_grade(slices):
    for sample in slices:
        assert set(np.unique(sample.mask)) <= {0, 255}
        assert (sample.label != "none") == bool(sample.mask.any())
        assert sample.labels == {
            grade: int(sample.label == grade) for grade in ("low_grade", "high_grade")
        }


def test_small_pictures_keep_their_tumours_too():
    for sample in phantoms.dataset("brain", 0, 150, 32):
        assert (sample.label != "none") == bool(sample.mask.any())


def test_a_mask_covers_the_same_share_of_the_picture_at_every_size():
    shares = {
        px: np.mean([sample.mask.mean() / 255 for sample in phantoms.dataset("brain", 0, 40, px)])
        for px in (32, 64, 128)
    }
    assert 0.005 < shares[128] < 0.05
    assert shares[32] == pytest.approx(shares[128], rel=0.04)
    assert shares[64] == pytest.approx(shares[128], rel=0.02)


def test_masked_tissue_is_brighter_than_the_brain_around_it(slices):
    for sample in slices:
        if sample.label == "low_grade":
            inside = sample.image[sample.mask > 0].mean()
            ring = dilated(sample.mask > 0, 4) & ~dilated(sample.mask > 0, 2)
            assert inside > sample.image[ring].mean() + 10


def dilated(mask, steps):
    for _ in range(steps):
        grown = np.pad(mask, 1)
        mask = grown[2:, 1:-1] | grown[:-2, 1:-1] | grown[1:-1, 2:] | grown[1:-1, :-2] | mask
    return mask


def test_a_high_grade_tumour_has_a_dark_core_in_a_bright_rim(slices):
    spread = {"low_grade": [], "high_grade": []}
    for sample in slices:
        if sample.label in spread and sample.mask.sum() > 255 * 30:
            spread[sample.label].append(sample.image[sample.mask > 0].astype(float).std())
    assert np.mean(spread["high_grade"]) > 2 * np.mean(spread["low_grade"])


def test_all_slices_of_a_patient_cut_one_tumour(slices):
    grades = collections.defaultdict(set)
    for sample in slices:
        grades[sample.patient].add(sample.label)
    assert all(len(found - {"none"}) <= 1 for found in grades.values())
    assert any(len(found) == 2 for found in grades.values())


# --- nodules of the lung ----------------------------------------------------------------------


def nodules_with(monkeypatch, *signs, count=10, px=64):
    """Nodules of the first addresses, with these signs instead of their own."""
    labels = {name: int(name in signs) for name in _nodule.SIGNS}
    labels[_nodule.SMOOTH] = int(not signs)
    with monkeypatch.context() as patch:
        patch.setattr(_nodule, "_signs", lambda draws: dict(labels))
        found = [phantoms.lung(0, index, px) for index in range(count)]
    assert all(sample.labels == labels for sample in found)
    return found


def greys(sample, where):
    return sample.image[where].astype(float)


def around(sample, near=3, far=6):
    mask = sample.mask > 0
    return dilated(mask, far) & ~dilated(mask, near)


def radii(sample):
    """Distances of the mask's border from its middle, by angle, over their mean."""
    rows, columns = np.nonzero(sample.mask)
    y, x = rows - rows.mean(), columns - columns.mean()
    sector = ((np.arctan2(y, x) + np.pi) * (24 / (2 * np.pi))).astype(int) % 24
    far = np.array([np.hypot(y, x)[sector == s].max(initial=0.5) for s in range(24)])
    return far / far.mean()


def test_a_nodule_is_called_by_the_first_of_its_signs_and_smooth_without_any():
    order = ("calcification", "ground_glass", "part_solid", "spiculation", "lobulation")
    several = 0
    for sample in first("lung"):
        shown = [name for name in order if sample.labels[name]]
        assert sample.label == (shown[0] if shown else "solid_smooth")
        assert sample.labels["solid_smooth"] == int(not shown)
        several += len(shown) > 1
    assert 0.02 < several / COUNT < 0.15


def test_signs_are_as_frequent_as_in_the_real_set():
    shares = {"solid_smooth": 0.623, "calcification": 0.128, "ground_glass": 0.095,
              "part_solid": 0.064, "spiculation": 0.058, "lobulation": 0.033}  # fmt: skip
    draws = [_field.Draws(1, "phantom.lung.nodule", index) for index in range(2000)]
    found = collections.Counter(_nodule.Nodule.of(d).label for d in draws)
    for name, share in shares.items():
        assert abs(found[name] / 2000 - share) < 0.035, name


def test_every_nodule_has_a_mask_in_the_middle_of_the_picture():
    for sample in phantoms.dataset("lung", 0, 60, 32):
        rows, columns = np.nonzero(sample.mask)
        assert len(rows) >= 3 and abs(rows.mean() - 15.5) < 4 and abs(columns.mean() - 15.5) < 4


def test_a_solid_nodule_is_bright_in_dark_lung(monkeypatch):
    for sample in nodules_with(monkeypatch):
        inside, outside = greys(sample, sample.mask > 0), greys(sample, around(sample))
        assert inside.mean() > np.percentile(outside, 25) + 40


def test_a_calcified_nodule_is_the_brightest(monkeypatch):
    solid, stone = (
        [greys(s, s.mask > 0).max() for s in nodules_with(monkeypatch, *signs)]
        for signs in ((), ("calcification",))
    )
    assert np.mean(stone) > 215 > 170 > np.mean(solid)


def test_ground_glass_is_a_haze_and_part_solid_has_a_core_in_it(monkeypatch):
    def rise(sample, percent):
        lung = np.percentile(greys(sample, around(sample)), 25)
        return np.percentile(greys(sample, sample.mask > 0), percent) - lung

    solid, haze, part = [
        nodules_with(monkeypatch, *signs) for signs in ((), ("ground_glass",), ("part_solid",))
    ]
    middle = [np.mean([rise(s, 50) for s in group]) for group in (solid, haze, part)]
    peak = [np.mean([rise(s, 95) for s in group]) for group in (solid, haze, part)]
    assert 8 < middle[1] < 0.5 * middle[0] and middle[2] < 0.7 * middle[0]
    assert peak[1] < 0.6 * peak[0] and peak[2] > 0.8 * peak[0]


def test_spicules_run_into_the_lung_and_no_further(monkeypatch):
    with_rays = nodules_with(monkeypatch, "spiculation")
    monkeypatch.setattr(_nodule, "_spicules", lambda draws: ())
    without = nodules_with(monkeypatch, "spiculation")
    near, far = [], []
    for rayed, bare in zip(with_rays, without, strict=True):
        assert np.array_equal(rayed.mask, bare.mask)
        gain = np.maximum(rayed.image.astype(float) - bare.image, 0)
        near.append(np.percentile(gain[around(bare, 1, 4)], 90))
        far.append(gain[~dilated(bare.mask > 0, 24)].mean())
    assert np.mean(near) > 25 and np.mean(far) == 0


def test_lobes_leave_notches_in_the_border(monkeypatch):
    plain, lobed = (
        np.mean([radii(s).std() for s in nodules_with(monkeypatch, *signs, px=128)])
        for signs in ((), ("lobulation",))
    )
    assert lobed > 1.5 * plain


def test_nodules_of_a_patient_come_from_one_scanner():
    """The window that keeps lungs grey belongs to the patient."""
    dark = collections.defaultdict(set)
    for sample in phantoms.dataset("lung", 4, 90, 32):
        lung = np.percentile(greys(sample, around(sample, 2, 4)), 20)
        dark[sample.patient].add(bool(lung < 60))
    assert all(len(found) == 1 for found in dark.values())
    assert {True, False} == set().union(*dark.values())


@pytest.mark.parametrize("size_px", [-1, 0, 7, 2049])
@pytest.mark.parametrize("kind", KINDS)
def test_a_size_out_of_range_is_refused(kind, size_px):
    with pytest.raises(ValueError, match="8 to 2048"):
        phantoms.KINDS[kind](0, 0, size_px)


def test_wrong_addresses_and_kinds_are_refused():
    with pytest.raises(ValueError, match="there are chest, brain"):
        phantoms.dataset("foot", 0, 1, 32)
    with pytest.raises(ValueError, match="count"):
        phantoms.dataset("chest", 0, -1, 32)
    with pytest.raises(ValueError, match="index"):
        phantoms.chest(0, -1, 32)
    with pytest.raises(ValueError, match="seed"):
        phantoms.brain(-1, 0, 32)
