"""POST /v1/classify and /v1/features: what comes back of every kind of upload."""

import base64
import io
import json

import numpy as np
import PIL.Image
import pytest

from medray.images import decode_png, encode_png
from serve.compute.diagnosis import Diagnosis
from serve.compute.fit import COLOURED, colour
from serve.uploads import Upload
from tests.evaluate.test_ood import strange
from tests.serve.small_service import CLASSES, PX, chest
from tests.serve.test_uploads import GOOD

PATH, FEATURES = "/v1/classify", "/v1/features"
BYTES = {"content-type": "application/octet-stream"}


@pytest.fixture(scope="module")
def films():
    return list(chest(900, 6))


def said(service, data, path=PATH, **params):
    params = {"model": "classifier", **params}
    response = service.post(path, content=data, headers=BYTES, params=params)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize("name", GOOD)
def test_every_kind_of_file_is_judged_frame_by_frame(service, name):
    data, frames, _ = GOOD[name]
    found = said(service, data)
    assert [image["frame"] for image in found["images"]] == list(range(frames))
    for image in found["images"]:
        assert list(image["probabilities"]) == list(CLASSES)
        assert sum(image["probabilities"].values()) == pytest.approx(1, abs=1e-4)
        assert image["decided"][0] in CLASSES and image["heatmap_png"] is None
    assert found["notice"] == "Research use only. Not for diagnosis."


def test_the_answer_is_the_models_own(service, small_models, films):
    model = Diagnosis.load(small_models.classifier)
    found = said(service, encode_png(films[0]))
    wanted = model.probabilities([films[0]])[0]
    assert list(found["images"][0]["probabilities"].values()) == pytest.approx(wanted, abs=1e-5)
    assert found["sha256"] == model.sha256 and found["multi_label"] is False
    assert found["ood"]["threshold"] == pytest.approx(model.familiarity.facts.threshold, abs=1e-5)


def test_many_files_of_a_form_are_answered_in_their_order(service, films):
    files = [("file", (f"{n}.dcm", encode_png(film))) for n, film in enumerate(films)]
    response = service.post(PATH, files=files, params={"model": "classifier"})
    found = response.json()["images"]
    assert [image["file"] for image in found] == list(range(len(films)))
    for image, film in zip(found, films, strict=True):
        alone = said(service, encode_png(film))["images"][0]
        assert image["probabilities"] == pytest.approx(alone["probabilities"], abs=1e-5)


@pytest.mark.parametrize("kind", ["noise", "checkerboard", "photograph"])
def test_what_is_no_radiograph_is_flagged(service, kind):
    for image in strange(kind):
        assert said(service, encode_png(image[0]))["images"][0]["unlike"] is True


def jpeg(pixels):
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, "JPEG", quality=60)
    return buffer.getvalue()


def in_colour(film, seed=0):
    """The film's light and shade, in as many colours as things have."""
    hues = np.random.default_rng(seed).uniform(0.2, 1, (4, 4, 3))
    size = film.shape[0] // 4
    return (film[..., None] * hues.repeat(size, 0).repeat(size, 1)).astype(np.uint8)


@pytest.mark.parametrize("model", ["classifier", "bare"])
def test_a_coloured_image_is_flagged_where_the_model_is_of_grey_ones(service, films, model):
    for seed in range(4):
        found = said(service, jpeg(in_colour(films[0], seed)), model=model)["images"][0]
        assert found["coloured"] and found["unlike"] is True


def test_a_film_that_was_photographed_or_has_a_marker_is_not_in_colour(service, films):
    film = films[0]
    tinted = np.stack([film, film * 0.93, film * 0.8], axis=-1).astype(np.uint8)
    marked = np.stack([film] * 3, axis=-1)
    marked[1:4, 1:6] = (255, 0, 0)
    for picture in (np.stack([film] * 3, axis=-1), tinted, marked):
        found = said(service, jpeg(picture))["images"][0]
        assert not found["coloured"]
    assert 0 < colour(tinted) < colour(marked) < COLOURED < colour(in_colour(film))


def test_a_film_like_the_training_data_is_not_flagged(service, films):
    flags = [said(service, encode_png(film))["images"][0]["unlike"] for film in films]
    assert flags.count(True) <= 1 and None not in flags


def test_a_model_without_a_distance_gives_none_and_the_reason(service, films):
    found = said(service, encode_png(films[0]), model="bare")
    assert found["images"][0]["ood_score"] is None and found["images"][0]["unlike"] is None
    assert found["ood"] is None and "ood.safetensors" in found["ood_reason"]


def picture(image, name):
    return decode_png(base64.b64decode(image[name]))


def test_heatmap_mask_and_overlay_explain_one_class(service, films):
    wide = np.repeat(films[0], 2, axis=1)
    found = said(
        service, encode_png(wide), heatmap="1", mask="1", overlay="1", **{"class": "clear"}
    )
    image = found["images"][0]
    heat, mask = picture(image, "heatmap_png"), picture(image, "mask_png")
    overlay = picture(image, "overlay_png")
    assert image["heatmap_class"] == "clear" and heat.shape == mask.shape == (PX, PX)
    np.testing.assert_array_equal(mask == 255, heat >= 128)
    assert overlay.shape == (PX, PX, 3)
    cold = heat == 0
    assert (overlay[cold] == overlay[cold][:, :1]).all()
    # Twice as wide as high: it fills the middle half of the square.
    place = {"size_px": PX, "top": PX // 4, "left": 0, "height": PX // 2, "width": PX}
    assert image["place"] == place
    alone = said(service, encode_png(wide), mask="1", threshold="0.2")["images"][0]
    assert alone["heatmap_png"] is None and alone["mask_png"] and alone["heatmap_class"]


def test_features_come_as_json_or_npy(service, small_models, films):
    found = said(service, encode_png(films[0]), FEATURES)
    model = Diagnosis.load(small_models.classifier)
    wanted = model.features([films[0]])[0]
    assert found["dims"] == len(wanted) == len(found["images"][0]["features"])
    np.testing.assert_allclose(found["images"][0]["features"], wanted, atol=1e-4)
    files = [("file", ("x", encode_png(film))) for film in films]
    params = {"model": "classifier", "format": "npy"}
    response = service.post(FEATURES, files=files, params=params)
    rows = np.load(io.BytesIO(response.content))
    assert rows.dtype == np.float32 and rows.shape == (len(films), len(wanted))
    np.testing.assert_allclose(rows[0], wanted, atol=1e-4)
    assert response.headers["x-medray-model"] == model.sha256


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [(KeyError("kept to itself"), 500, "internal"), (MemoryError("kept to itself"), 503, "memory")],
)
def test_a_quota_counts_frames_and_gives_back_what_was_not_judged(
    service, monkeypatch, error, status, code
):
    returned = []
    limits = service.services.limits
    monkeypatch.setattr(limits, "images", lambda name, count: returned.append(-count))
    monkeypatch.setattr(limits, "returned", lambda name, count: returned.append(count))
    said(service, GOOD["nifti"][0])
    assert returned == [-5]

    async def broken(*_):
        raise error

    monkeypatch.setattr(service.services, "classify", broken)
    params = {"model": "classifier"}
    response = service.post(PATH, content=GOOD["nifti"][0], headers=BYTES, params=params)
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert str(error) not in response.text and type(error).__name__ not in response.text
    assert returned == [-5, -5, 5]


def test_nothing_of_an_upload_is_logged_or_said_but_its_numbers(service, capsys):
    """Names of patients, in file names and in DICOM, go nowhere."""
    from tests.made_dicom import dicom_bytes
    from tests.serve.bad_requests import FILM

    canary = "CANARY^JANE"
    good = dicom_bytes(FILM, PatientName=canary, PatientID=canary)
    bad = good[:-1000]
    for data, status in ((good, 200), (bad, 422)):
        files = [("file", (f"{canary}.dcm", data))]
        response = service.post(PATH, files=files, params={"model": "classifier"})
        assert response.status_code == status
        assert "CANARY" not in response.text and "CANARY" not in str(response.headers)
    metrics = service.wait(service.client.get("/metrics")).text
    assert "CANARY" not in metrics + "".join(capsys.readouterr())


def test_large_uploads_are_small_once_decoded(service, monkeypatch):
    """What waits for the model is of the model's size, whatever came in."""
    kept = []
    classify = service.services.classify

    async def seen(model, images, want):
        kept.extend(image.nbytes for image in images)
        return await classify(model, images, want)

    monkeypatch.setattr(service.services, "classify", seen)
    said(service, encode_png(np.zeros((1500, 2000), np.uint16)))
    assert kept == [2 * PX * PX]
    large = [name for name, kind in Upload.__annotations__.items() if kind not in ("int", "str")]
    assert large == ["image", "colour"]


def test_the_answer_has_the_form_that_openapi_says(service, films):
    schema = service.wait(service.client.get("/openapi.json")).json()
    answer = schema["paths"][PATH]["post"]["responses"]["200"]
    assert "Diagnosis" in json.dumps(answer)
    body = schema["paths"][PATH]["post"]["requestBody"]["content"]
    assert {"application/octet-stream", "multipart/form-data"} <= set(body)
