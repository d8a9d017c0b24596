"""POST /v1/images/generations: bytes that are a function of the address, in every form."""

import concurrent.futures
import email.parser
import io
import json
import tarfile

import numpy as np
import pydicom
import pytest

from medray.archive.plan import parse_address
from medray.images import decode_png
from medray.models.weights import load_generator
from medray.sample.images import Renderer
from medray.sample.latents import LatentModel
from medray.store import Store
from medray.stream import Source, Stream
from serve.records import ModelSpec
from tests.serve.small_service import CLASSES, running

PATH = "/v1/images/generations"


def made(service, **body):
    response = service.post(PATH, json=body)
    assert response.status_code == 200, response.text
    return response


def parts_of(response):
    """(address, media type, bytes) of each part, read as any mail program would."""
    head = f"content-type: {response.headers['content-type']}\r\n\r\n".encode()
    message = email.parser.BytesParser().parsebytes(head + response.content)
    assert message.is_multipart() and not message.defects
    found = []
    for part in message.get_payload():
        data = part.get_payload(decode=True)
        # A mail's last line break belongs to its boundary.
        length = int(part["content-length"])
        assert len(data) == length
        found.append((part["x-medray-address"], part.get_content_type(), data))
    return found


@pytest.fixture(scope="module")
def first_png(service):
    return made(service, model="generator", **{"class": "opacity"}, seed=5, start=7)


def test_an_image_comes_with_its_address_and_says_that_it_is_synthetic(service, first_png):
    assert first_png.headers["content-type"] == "image/png"
    address = first_png.headers["x-medray-address"]
    generator, latents, seed, index = parse_address(address.split(";")[0])
    assert (seed, index) == (5, 7) and address.endswith(";class=opacity")
    assert first_png.headers["x-medray-model"].startswith(generator)
    assert b"SyntheticData" in first_png.content and address.encode() in first_png.content
    assert latents != "prior"


def test_the_pixels_are_those_that_an_archive_makes_of_the_address(
    service, small_models, first_png
):
    latents = LatentModel.load(f"{small_models.conditional}/latents")
    renderer = Renderer(*load_generator(small_models.conditional))
    number = [target.name for target in latents.targets].index("opacity")
    wanted = renderer.render(latents.draw(5, np.array([number]), np.array([7])))[0]
    np.testing.assert_array_equal(decode_png(first_png.content), wanted)


def test_neither_neighbours_nor_concurrency_nor_another_replica_change_a_byte(
    service, small_models, tmp_path, first_png
):
    whole = parts_of(made(service, **{"class": "opacity"}, model="generator", seed=5, n=20))
    assert len(whole) == 20 and whole[7][2] == first_png.content

    def one(index):
        asked = {"class": CLASSES[index % 2], "model": "generator", "seed": 5, "start": index}
        return made(service, **asked).content

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        alone = list(pool.map(one, range(20)))
    assert [alone[n] for n in range(1, 20, 2)] == [whole[n][2] for n in range(1, 20, 2)]
    with running(small_models, tmp_path, batch=16) as other:
        asked = {"class": "opacity", "model": "generator", "seed": 5, "start": 7}
        assert made(other, **asked).content == first_png.content
    assert len(set(alone)) == 20


def test_another_batch_shape_is_another_render_which_the_provenance_names(
    service, small_models, tmp_path, first_png
):
    """The control of the test above: the promise holds at one shape, and says which."""
    with running(small_models, tmp_path, batch=4) as other:
        asked = {"class": "opacity", "model": "generator", "seed": 5, "start": 7}
        assert made(other, **asked).content != first_png.content


def test_a_class_by_name_by_vector_and_by_labels_is_the_same_image(service, first_png):
    asked = {"model": "generator", "seed": 5, "start": 7}
    assert made(service, labels=[0, 1], **asked).content == first_png.content
    assert made(service, labels={"opacity": 1}, **asked).content == first_png.content
    assert made(service, labels=[1, 0], **asked).content != first_png.content


def test_png16_and_npy_have_the_same_16_bits_and_png_their_upper_half(service, first_png):
    asked = {"class": "opacity", "model": "generator", "seed": 5, "start": 7}
    deep = decode_png(made(service, format="png16", **asked).content)
    array = np.load(io.BytesIO(made(service, format="npy", **asked).content))
    assert deep.dtype == array.dtype == np.uint16
    np.testing.assert_array_equal(deep, array)
    assert len(np.unique(deep)) > len(np.unique(deep >> 8))
    eight = decode_png(first_png.content).astype(int)
    assert np.abs(deep / 257 - eight).max() <= 0.51


def test_dicom_is_marked_as_synthetic_and_the_same_instance_each_time(service):
    asked = {"class": "opacity", "model": "generator", "seed": 5, "start": 7, "format": "dicom"}
    response = made(service, **asked)
    assert response.headers["content-type"] == "application/dicom"
    dataset = pydicom.dcmread(io.BytesIO(response.content))
    assert dataset.SyntheticData == "YES" and dataset.ConversionType == "SYN"
    assert dataset.PatientID.startswith("SYN-") and dataset.ImageType == ["DERIVED", "SECONDARY"]
    assert dataset.SeriesDescription.startswith("SYNTHETIC")
    assert "class opacity" in dataset.DerivationDescription
    assert dataset.ImageComments == response.headers["x-medray-address"]
    assert made(service, **asked).content == response.content


def test_truncation_draws_towards_the_mean_and_is_part_of_the_address(service):
    asked = {"class": "clear", "model": "generator", "format": "npy", "n": 2}
    spreads = []
    for truncation in (1.0, 0.5, 0.0):
        parts = parts_of(made(service, truncation=truncation, **asked))
        one, other = (np.load(io.BytesIO(data)).astype(float) for _, _, data in parts)
        spreads.append(np.abs(one - other).mean())
        assert (";truncation=" in parts[0][0]) == (truncation != 1)
    assert spreads[0] > spreads[1] > spreads[2] == 0


def test_a_tar_is_a_shard_that_webdataset_tools_and_this_project_read(service, tmp_path):
    response = made(service, **{"class": "clear"}, model="generator", n=70, format="tar", start=3)
    assert response.headers["content-type"] == "application/x-tar"
    with tarfile.open(fileobj=io.BytesIO(response.content)) as tar:
        names = tar.getnames()
        record = json.load(tar.extractfile("train-00000003.json"))
        member = tar.getmember("train-00000003.png")
    assert len(names) == 140 and names == sorted(names)
    assert record["label"] == "clear" and record["provenance"]["index"] == 3
    assert (member.mtime, member.uid, member.mode) == (0, 0, 0o644)
    Store(tmp_path).write_bytes("train-000000.tar", response.content)
    with Stream([Source(str(tmp_path))], threads=1, cache_dir=tmp_path / "cache") as batches:
        batch = batches.next(70)
    assert batch.images_NCHW.shape == (70, 1, 16, 16)
    assert {r["provenance"]["index"] for r in batch.records} == set(range(3, 73))


def test_a_model_without_classes_makes_whatever_comes(service):
    response = made(service, model="plain", seed=2)
    assert ":prior:2:0" in response.headers["x-medray-address"]
    refused = service.post(PATH, json={"model": "plain", "truncation": 0.5})
    assert refused.status_code == 422 and "allowed: 1" in refused.json()["detail"]


def test_thousands_of_images_are_streamed_some_at_a_time(service, monkeypatch):
    """No more than two batches of them are ever waited for, and all arrive in order."""
    asked = []
    generate = service.services.generate

    async def counting(model, orders, format):
        asked.append(len(orders))
        return await generate(model, orders, format)

    monkeypatch.setattr(service.services, "generate", counting)
    parts = parts_of(made(service, **{"class": "clear"}, model="generator", n=300))
    assert [int(address.split(";")[0].split(":")[-1]) for address, _, _ in parts] == list(
        range(300)
    )
    assert max(asked) == 64 and sum(asked) == 300


def test_a_quota_counts_images_and_gives_back_those_not_made(service):
    asked = {"class": "clear", "model": "generator"}
    assert service.post(PATH, "scarce", json={**asked, "n": 8}).status_code == 200
    refused = service.post(PATH, "scarce", json={**asked, "n": 8})
    assert refused.status_code == 429 and int(refused.headers["retry-after"]) > 0
    assert "8 images asked" in refused.json()["detail"]
    assert service.post(PATH, "scarce", json={**asked, "model": "none"}).status_code == 404
    assert service.post(PATH, "scarce", json={**asked, "n": 2}).status_code == 200


def test_a_model_that_is_replaced_meanwhile_ends_the_answers_that_it_began(
    small_models, tmp_path, monkeypatch
):
    asked = {"class": "clear", "model": "generator", "n": 200, "format": "tar"}
    with running(small_models, tmp_path) as service:
        whole = made(service, **asked)
        generate, calls = service.services.generate, []

        async def replacing(model, orders, format):
            found = await generate(model, orders, format)
            if not calls:
                spec = ModelSpec("generator", small_models.plain)
                version = await service.services._loaded("generator", spec)
                service.services.registry.put("generator", version, 1.0)
            calls.append(len(orders))
            return found

        monkeypatch.setattr(service.services, "generate", replacing)
        assert made(service, **asked).content == whole.content and len(calls) == 4
        new = made(service, model="generator")
        assert new.headers["x-medray-model"] != whole.headers["x-medray-model"]
