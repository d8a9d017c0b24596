"""The page in a browser: every grey level arrives, no answer is lost, nothing is from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import io
import re
import time
from pathlib import Path

import numpy as np
import pytest

from medray.evaluate.reader_set import Item, Known, encode_image, study_bytes, truth_bytes
from medray.images import encode_png
from medray.images.pixels import grey_levels
from medray.images.secondary_capture import encode_secondary_capture
from medray.records import Sample
from medray.shards import write_set
from medray.store import Store
from tests.made_dicom import dicom_bytes
from tests.reader_sets import make_study
from tests.serve.readers.service import begin, serving
from tests.serve.small_service import PX, chest

pytestmark = pytest.mark.browser
PAGES = ("", "synthesis", "classify", "jobs", "studies")
RAMP = np.arange(65536, dtype=np.uint16).reshape(256, 256)


def write_ramps(folder) -> None:
    """A study of a 16-bit and a 12-bit ramp: every value that such an image can have."""
    images = [RAMP, (RAMP % 4096).astype(np.uint16)]
    names = [f"{number:016x}" for number in range(4)]
    items = [Item(names[n], (names[n + 2],)) for n in range(2)]
    known = {i.id: Known((n,), (None,), (f"ramp{n}",)) for n, i in enumerate(items)}
    store, truth = Store(folder), truth_bytes(known)
    digests = {}
    for item, image in zip(items, images, strict=True):
        data = encode_image(image)
        digests[item.images[0]] = hashlib.sha256(data).hexdigest()
        store.write_bytes(f"images/{item.images[0]}.npy", data)
    store.write_bytes("truth.json", truth)
    about = {"name": "ramps", "mode": "rating", "classes": [], "size_px": 256, "bits": 16}
    study = study_bytes(**about, seed=0, items=items, image_sha256=digests, truth=truth)
    store.write_bytes("study.json", study)


@pytest.fixture(scope="module")
def service(tmp_path_factory, browser, small_models):
    folder = tmp_path_factory.mktemp("studies")
    make_study(folder, images=36, px=32, name="forty")
    make_study(folder, images=8, px=32, mode="2afc", name="pairs")
    make_study(folder, images=8, px=32, mode="feedback", name="training")
    write_ramps(folder / "ramps")
    models = {"generator": small_models.conditional, "classifier": small_models.classifier}
    real = [Sample("", film, "clear") for film in chest(0, 40)]
    write_set(folder / "films", real, name="films", classes=["clear"], size_px=PX)
    models["real"] = str(folder / "films")
    with serving(folder, open_door=True, window_ms=1, **models) as made:
        yield made


def wait(page, script, arg=None, timeout=15.0):
    """Until a script is true, asked from outside: the page lets nobody evaluate text."""
    until = time.monotonic() + timeout
    while not page.evaluate(script, arg):
        assert time.monotonic() < until, f"never: {script}"
        page.wait_for_timeout(25)


def painted(page):
    """Until the next case is painted."""
    wait(page, "document.querySelector('#answer').getAttribute('aria-busy') === 'false'")


def saved(page, timeout=15.0):
    """Until all that was answered is saved."""
    wait(page, "document.querySelector('#saved').textContent.startsWith('Saved')", timeout=timeout)


class Watched:
    """A page whose requests and complaints are noted."""

    def __init__(self, browser, url, **context):
        self.context = browser.new_context(
            **{"viewport": {"width": 1200, "height": 850}, **context}
        )
        self.page, self.url, self.hosts, self.complaints = self.context.new_page(), url, set(), []
        self.page.on("request", lambda r: self.hosts.add(r.url.split("/")[2]))
        self.page.on("console", lambda m: m.type == "error" and self.complaints.append(m.text))
        self.page.on("pageerror", lambda e: self.complaints.append(str(e)))

    def open(self, path):
        self.page.goto(f"{self.url}/{path}")
        self.page.wait_for_load_state("networkidle")
        return self.page


@pytest.fixture
def watched(browser, service):
    made = []

    def new(**context):
        made.append(Watched(browser, service.url, **context))
        return made[-1]

    yield new
    for one in made:
        one.context.close()


def opened(watched, service, path):
    """One of the pages, or a case as a reader sees it."""
    if path != "reading":
        seen = watched()
        return seen, seen.open(path)
    (token,) = begin(service, "forty", f"reader {len(service.desk.store.readers('forty'))}")
    seen = watched()
    page = seen.open(f"studies#{token}")
    page.click("#begin")
    painted(page)
    return seen, page


@pytest.mark.parametrize("path", [*PAGES, "reading"])
def test_a_page_asks_no_other_host_breaks_no_policy_and_fits_a_phone(
    watched, service, tmp_path, path
) -> None:
    seen, page = opened(watched, service, path)
    inline = "document.querySelectorAll('[style], style, script:not([src]), [onclick]').length"
    assert page.evaluate(inline) == 0
    assert "Research use only. Not for diagnosis." in page.inner_text("body")
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.screenshot(path=tmp_path / f"{path or 'home'}-{scheme}.png")
    wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    page.set_viewport_size({"width": 360, "height": 740})
    page.screenshot(path=tmp_path / f"{path or 'home'}-phone.png", full_page=True)
    assert page.evaluate(wide) <= 0
    page.set_viewport_size({"width": 900, "height": 740})
    page.evaluate("document.documentElement.style.fontSize = '200%'")
    assert page.evaluate(wide) <= 0
    assert seen.hosts == {seen.url.split("/")[2]}
    # That nobody is logged in is asked once, and the browser notes the answer.
    assert [c for c in seen.complaints if "401" not in c] == []


@pytest.mark.parametrize("path", [*PAGES, "reading"])
def test_no_serious_finding_of_accessibility(watched, service, path) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is absent")
    _, page = opened(watched, service, path)
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        found = axe.Axe().run(page).response["violations"]
        serious = [v for v in found if v["impact"] in ("serious", "critical")]
        assert serious == [], [(v["id"], [n["html"] for n in v["nodes"]]) for v in serious]


def values(page, script, dtype):
    """A typed array of the page."""
    code = f"""() => {{ const given = ({script})(); let text = '';
    const bytes = new Uint8Array(given.buffer, given.byteOffset, given.byteLength);
    for (const byte of bytes) text += String.fromCharCode(byte);
    return btoa(text); }}"""
    return np.frombuffer(base64.b64decode(page.evaluate(code)), dtype)


def test_every_value_of_16_and_12_bits_arrives_and_the_window_is_the_references(
    watched, service
) -> None:
    (token,) = begin(service, "ramps", "ann")
    page = watched().open(f"studies#{token}")
    page.click("#begin")
    counts = []
    for _ in range(2):
        painted(page)
        own = "document.querySelector('canvas').viewer"
        got = values(page, f"() => {own}.image.data", np.uint16).reshape(256, 256)
        counts.append(len(np.unique(got)))
        for centre, width in ((32767.5, 65535), (2048, 4096), (1000, 37), (40000.25, 12345.6)):
            page.evaluate(f"([c, w]) => {own}.setWindow(c, w)", [centre, width])
            painting = f"{own}.native.getContext('2d').getImageData(0, 0, 256, 256).data"
            levels = values(page, f"() => {painting}", np.uint8).reshape(256, 256, 4)
            wanted = grey_levels(got, centre - width / 2, centre + width / 2, 8)
            assert np.abs(levels[..., 0].astype(int) - wanted.astype(int)).max() <= 1
        page.keyboard.press("1")
        page.keyboard.press("Enter")
    assert sorted(counts) == [4096, 65536]


def decoded(page, data, kind="decode"):
    """What the page's own decoder makes of bytes."""
    script = """async ([text, kind]) => { const m = await import('./static/image.js');
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer;
    const made = await m[kind](bytes);
    return { ...made, data: [...made.data], rgb: null }; }"""
    return page.evaluate(script, [base64.b64encode(data).decode(), kind])


def test_the_pages_own_decoders_give_the_pixels_that_were_encoded(watched) -> None:
    page = watched().open("")
    generator = np.random.default_rng(0)
    smooth = (RAMP // 3 + RAMP.T).astype(np.uint16)[:120, :77]
    from PIL import Image

    for image in (smooth, generator.integers(0, 65536, (33, 20)).astype(np.uint16),
                  generator.integers(0, 256, (19, 50)).astype(np.uint8)):  # fmt: skip
        for data in (encode_png(image), encode_png(image, filter="smallest"), pillow(Image, image)):
            got = decoded(page, data)
            assert (np.array(got["data"]).reshape(image.shape) == image).all()
    array = io.BytesIO()
    np.save(array, smooth.astype(">u2"))
    assert (np.array(decoded(page, array.getvalue())["data"]).reshape(smooth.shape) == smooth).all()
    rgb = generator.integers(0, 256, (9, 11, 3)).astype(np.uint8)
    grey = np.rint(rgb @ np.array([0.299, 0.587, 0.114]))
    got = np.array(decoded(page, encode_png(rgb))["data"]).reshape(9, 11)
    assert np.abs(got - grey).max() <= 1


def pillow(pil, image):
    buffer = io.BytesIO()
    pil.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_dicom_file_shows_its_own_values(watched) -> None:
    page = watched().open("")
    made = encode_secondary_capture(
        np.arange(256, dtype=np.uint8).reshape(16, 16),
        address="mr1:a:prior:0:0", model="m", seed=0, label="", series="s", audited=False,
    )  # fmt: skip
    got = decoded(page, made)
    assert got["data"] == list(range(256)) and (got["width"], got["height"]) == (16, 16)
    stored = np.arange(-8, 8, dtype=np.int16).reshape(4, 4) * 100
    ct = dicom_bytes(stored, Modality="CT", RescaleSlope=2, RescaleIntercept=-24)
    got = decoded(page, ct)
    assert got["unit"] == "HU" and got["data"] == (stored.ravel() * 2.0 - 24).tolist()


def finish_by_keyboard(page, cases, first=0):
    for number in range(first, cases):
        painted(page)
        page.keyboard.press(str(1 + number % 5))
        page.keyboard.press("Enter")


@pytest.mark.parametrize("offline_s", [1, pytest.param(60, marks=pytest.mark.chaos)])
def test_forty_cases_by_keyboard_with_a_reload_an_outage_and_two_tabs(
    watched, service, tmp_path, offline_s
) -> None:
    (token,) = begin(service, "forty", f"ann {offline_s}")
    seen = watched()
    page = seen.open(f"studies#{token}")
    assert token not in page.url
    page.screenshot(path=tmp_path / "welcome.png")
    page.keyboard.press("Enter")
    painted(page)
    page.screenshot(path=tmp_path / "case.png")
    finish_by_keyboard(page, 10)
    page.reload()
    page.wait_for_selector("#begin:visible")
    wait(page, "document.querySelector('#begin').textContent === 'Go on: 29 of 39 left'")
    page.click("#begin")
    finish_by_keyboard(page, 14, 10)
    saved(page)
    painted(page)
    seen.context.set_offline(True)
    for number in range(4):
        page.keyboard.press(str(1 + number))
        page.keyboard.press("Enter")
        page.wait_for_timeout(150)
    wait(page, "document.querySelector('#saved').textContent.includes('kept in this browser')")
    page.screenshot(path=tmp_path / "offline.png")
    before = len(service.desk.store.answers(service.desk.store.readers("forty")[-1].id))
    page.wait_for_timeout(1000 * offline_s)
    seen.context.set_offline(False)
    saved(page, timeout=40.0)
    other = seen.context.new_page()
    other.goto(f"{seen.url}/studies")
    other.click("#begin")
    until = time.monotonic() + 240
    while not (page.is_visible("#done") and other.is_visible("#done")):
        assert time.monotonic() < until, "both tabs end"
        for tab in (page, other):
            # A tab in the background is not painted.
            tab.bring_to_front()
            if tab.is_visible("#case"):
                painted(tab)
                tab.keyboard.press("4")
                tab.keyboard.press("Enter")
    page.wait_for_selector("#finish:visible")
    page.screenshot(path=tmp_path / "done.png")
    reader = service.desk.store.readers("forty")[-1]
    answers = service.desk.store.answers(reader.id)
    assert before < len(answers)
    assert sorted(a.item for a in answers if a.version == 0) == sorted(reader.order)
    assert len(reader.order) == 39 and all(a.seconds is not None for a in answers)
    page.click("#finish")
    page.wait_for_selector("#finished:visible")
    assert service.desk.store.reader(reader.id).finished_s is not None
    leaks = [c for c in seen.complaints if "Failed to load" not in c and "ERR_INTERNET" not in c]
    assert leaks == []


def test_a_change_of_mind_is_a_new_row_and_what_lacks_is_said(watched, service) -> None:
    (token,) = begin(service, "forty", "bob")
    page = watched().open(f"studies#{token}")
    page.click("#begin")
    painted(page)
    page.click("#save")
    assert "1 to 5" in page.inner_text("#lack")
    finish_by_keyboard(page, 2)
    saved(page)
    page.click("#back")
    wait(page, "document.querySelector('#progress').textContent.startsWith('Case 2')")
    painted(page)
    assert page.is_checked("input[name=score][value='2']")
    page.keyboard.press("5")
    page.keyboard.press("Enter")
    wait(page, "document.querySelector('#progress').textContent.startsWith('Case 3')")
    saved(page)
    reader = service.desk.store.readers("forty")[-1]
    rows = [(a.position, a.version, a.score) for a in service.desk.store.answers(reader.id)]
    assert rows == [(0, 0, 1), (1, 0, 2), (1, 1, 5)]


def test_a_hidden_page_and_idle_eyes_are_flagged_and_times_begin_with_the_pixels(
    watched, service
) -> None:
    (token,) = begin(service, "forty", "cat")
    page = watched().open(f"studies#{token}")
    page.click("#begin")
    painted(page)
    page.wait_for_timeout(500)
    finish_by_keyboard(page, 1)
    painted(page)
    page.evaluate("""() => { Object.defineProperty(document, 'hidden', { get: () => true,
        configurable: true }); document.dispatchEvent(new Event('visibilitychange'));
        delete document.hidden; }""")
    finish_by_keyboard(page, 1)
    painted(page)
    page.evaluate("() => { const now = performance.now(); performance.now = () => now + 31000; }")
    finish_by_keyboard(page, 1)
    saved(page)
    rows = service.desk.store.answers(service.desk.store.readers("forty")[-1].id)
    assert [(a.hidden, a.idle) for a in rows] == [(False, False), (True, False), (False, True)]
    assert 0.4 < rows[0].seconds < 10 and rows[2].seconds > 30


def test_window_zoom_flip_and_reset_by_keys_and_by_dragging(watched, service) -> None:
    (token,) = begin(service, "forty", "dan")
    page = watched().open(f"studies#{token}")
    page.click("#begin")
    painted(page)
    state = """() => { const v = document.querySelector('canvas').viewer;
        return [v.window[0], v.window[1], v.inverted, v.flipX, v.flipY, v.zoom]; }"""
    start = page.evaluate(state)
    box = page.locator("canvas").bounding_box()
    page.mouse.move(box["x"] + 100, box["y"] + 100)
    page.mouse.down()
    page.mouse.move(box["x"] + 160, box["y"] + 140)
    page.mouse.up()
    dragged = page.evaluate(state)
    assert dragged[0] > start[0] and dragged[1] > start[1]
    page.mouse.wheel(0, -100)
    wait(page, "document.querySelector('canvas').viewer.zoom > 1")
    for key in "ihv+":
        page.keyboard.press(key)
    page.wait_for_timeout(50)
    assert page.evaluate(state)[2:5] == [True, True, True] and page.evaluate(state)[5] > 1.5
    page.keyboard.press("=")
    ratio = "() => { const v = document.querySelector('canvas').viewer; return v.zoom * v.fit(); }"
    assert page.evaluate(ratio) == pytest.approx(1)
    page.keyboard.press(" ")
    assert page.evaluate(state) == start


def test_pairs_by_f_and_j_and_training_with_the_truth(watched, service, tmp_path) -> None:
    (token,) = begin(service, "pairs", "ann")
    page = watched().open(f"studies#{token}")
    page.click("#begin")
    painted(page)
    page.screenshot(path=tmp_path / "pair.png")
    for key in "fj":
        painted(page)
        page.keyboard.press(key)
        page.keyboard.press("Enter")
    saved(page)
    rows = service.desk.store.answers(service.desk.store.readers("pairs")[0].id)
    assert [a.choice for a in rows] == ["left", "right"]
    (token,) = begin(service, "training", "ann")
    page = watched().open(f"studies#{token}")
    page.click("#begin")
    painted(page)
    page.keyboard.press("5")
    page.keyboard.press("Enter")
    wait(page, "document.querySelector('#truth').textContent")
    page.screenshot(path=tmp_path / "truth.png")
    study, reader = service.desk.study("training"), service.desk.store.readers("training")[0]
    kind = service.desk.truth_of(study)[reader.order[0]].answer
    assert ("synthetic" if kind else "is real") in page.inner_text("#truth")
    page.keyboard.press("Enter")
    wait(page, "document.querySelector('#progress').textContent.startsWith('Case 2')")


def test_the_administrator_begins_invites_locks_closes_and_downloads(
    watched, service, tmp_path
) -> None:
    seen = watched()
    # Nothing but what is done here replaces the list: it is asked for again every five seconds.
    seen.page.add_init_script("window.setInterval = () => 0")
    page = seen.open("studies")
    page.on("dialog", lambda dialog: dialog.accept())
    page.fill("#begin-name", "training")
    # In the old list, which the new one replaces.
    page.evaluate("""() => { const old = document.createElement('i'); old.id = 'old';
        document.querySelector('#studies-list').append(old); }""")
    page.click("text=Begin the study")
    wait(page, "document.querySelector('#begin-name').value === ''")
    wait(page, "!document.querySelector('#old')")
    section = page.locator("[data-study=training]")
    section.locator("input").fill("zoe")
    section.locator("text=Invite").click()
    page.wait_for_selector("[data-study=training] .address:visible")
    link = section.locator(".address").inner_text().split(": ", 1)[1]
    page.screenshot(path=tmp_path / "admin.png", full_page=True)
    reader = watched()
    reader.page.goto(link)
    reader.page.click("#begin")
    painted(reader.page)
    reader.page.keyboard.press("2")
    reader.page.keyboard.press("Enter")
    wait(reader.page, "document.querySelector('#truth').textContent")
    section.locator("text=Lock").first.click()
    section.locator("text=Close and show the truth").click()
    with page.expect_download() as held:
        section.locator("text=Report html").click()
    text = Path(held.value.path()).read_text()
    assert "zoe" in text and "Reader study" in text


def test_synthesis_shows_walks_marks_and_saves_what_the_service_made(
    watched, service, tmp_path
) -> None:
    page = watched().open("synthesis")
    page.select_option("#class", "opacity")
    page.fill("#count", "6")
    page.click("#make")
    wait(page, "document.querySelectorAll('#grid canvas').length === 6")
    assert page.is_visible("text=SYNTHETIC")
    address = page.inner_text("#address")
    page.screenshot(path=tmp_path / "synthesis.png")
    for kind in ("png16", "dicom"):
        with page.expect_download() as held:
            page.click(f"[data-save={kind}]")
        body = {"model": "generator", "class": "opacity", "seed": 0, "start": 0, "format": kind}
        answer = service.client().post("/v1/images/generations", json=body)
        assert Path(held.value.path()).read_bytes() == answer.content
        assert "SYNTHETIC" in held.value.suggested_filename
        assert answer.headers["x-medray-address"] == address
    page.click("#walk-make")
    wait(page, "!document.querySelector('#walk-at').disabled")
    page.evaluate("""() => { const at = document.querySelector('#walk-at'); at.value = 8;
        at.dispatchEvent(new Event('input')); }""")
    page.wait_for_timeout(100)
    assert "share=0.5" in page.inner_text("#address")


def test_synthesis_shows_the_nearest_real_image_on_demand(watched, tmp_path) -> None:
    page = watched().open("synthesis")
    page.fill("#count", "2")
    page.click("#make")
    wait(page, "document.querySelectorAll('#grid canvas').length === 2")
    assert not page.is_visible("#real")
    page.click("#nearest")
    wait(page, "!document.querySelector('#real').hidden")
    note = page.inner_text("#real-note")
    assert re.search(
        r"Similarity -?0\.\d{3} .* Not nearly the same picture\. train-000000\d\d", note
    )
    assert "clear; of 40 training images" in note and page.is_visible("text=REAL")
    page.locator("#real").screenshot(path=tmp_path / "real.png")
    page.screenshot(path=tmp_path / "nearest.png", full_page=True)
    # Another image is chosen: what is beside it no longer belongs to it.
    page.locator("#grid button").nth(1).click()
    assert not page.is_visible("#real")


def test_classify_takes_a_dropped_file_and_shows_heat_when_asked(watched, tmp_path) -> None:
    page = watched().open("classify")
    noises = np.random.default_rng(0).integers(0, 256, (2, 48, 64)).astype(np.uint8)
    film = encode_secondary_capture(
        noises[1], address="mr1:a:prior:0:0", model="m", seed=0, label="", series="s", audited=False
    )
    files = {"noise.png": encode_png(noises[0]), "film.dcm": film}
    for (name, data), noise in zip(files.items(), noises, strict=True):
        page.set_input_files("#file", {"name": name, "mimeType": "", "buffer": data})
        wait(
            page,
            "n => document.querySelector('#status').textContent.startsWith(n + ': 1')",
            arg=name,
        )
        assert page.locator("#probabilities tr").count() == 2
        assert not page.is_checked("#heat")
        shown = "String(document.querySelector('#view').viewer.image?.data)"
        wait(page, f"text => {shown} === text", arg=",".join(map(str, noise.ravel())))
        pixels = "document.querySelector('#view').toDataURL()"
        page.wait_for_timeout(100)
        plain = page.evaluate(pixels)
        page.check("#heat")
        wait(page, f"plain => {pixels} !== plain", arg=plain)
        page.screenshot(path=tmp_path / f"{name}.png")
    assert page.is_visible("#flag") and "do not trust" in page.inner_text("#flag")
    assert "In colour" not in page.inner_text("#flag")
    colours = np.random.default_rng(1).integers(0, 256, (6, 8, 3), np.uint8)
    data = encode_png(colours.repeat(8, 0).repeat(8, 1))
    page.set_input_files("#file", {"name": "cat.png", "mimeType": "", "buffer": data})
    wait(page, "() => document.querySelector('#status').textContent.startsWith('cat.png: 1')")
    assert "In colour, unlike" in page.inner_text("#flag")
    page.screenshot(path=tmp_path / "cat.png")
    page.set_input_files("#file", {"name": "bad.png", "mimeType": "", "buffer": b"not an image"})
    page.wait_for_selector("#problem:visible")
    assert "bad.png was not classified" in page.inner_text("#status")
