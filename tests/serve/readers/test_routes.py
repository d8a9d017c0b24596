"""Reader studies over HTTP: who may do what, whose is what, and that the truth stays in."""

from __future__ import annotations

import json
import re
import threading
import time

import numpy as np
import pytest

from medray.evaluate.reader_set import decode_image
from medray.metrics.classification import auroc
from serve.readers.routes import COOKIE
from tests.memory import resident_mb
from tests.reader_sets import make_study
from tests.serve.readers.service import begin, logged_in, serving
from tests.serve.readers.test_store import full

XSS = r"""
<script>alert(1)</script>
"><img src=x onerror=alert(1)>
<svg/onload=alert(1)>
javascript:alert(1)
<iframe src=javascript:alert(1)>
'-alert(1)-'
{{7*7}}
${alert(1)}
<a href='javascript:alert(1)'>x</a>
<body onload=alert(1)>
&lt;script&gt;
<math><mi//xlink:href='data:x,<script>alert(1)</script>'>
<details open ontoggle=alert(1)>
<img src=`x` onerror=alert(1)>
\u003cscript\u003ealert(1)\u003c/script\u003e
%3Cscript%3Ealert(1)%3C/script%3E
<scr<script>ipt>alert(1)</scr</script>ipt>
<style>@import'//x'</style>
<link rel=import href=//x>
<object data='data:text/html,<script>alert(1)</script>'>
<input autofocus onfocus=alert(1)>
<marquee onstart=alert(1)>
<video><source onerror=alert(1)>
<base href=//x>
--!><script>
]]><script>alert(1)</script>
"onmouseover=alert(1) x="
<form action=//x><button>
<template><script>alert(1)</script></template>
=HYPERLINK("//x")
""".strip().splitlines()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("studies")
    make_study(made, images=20, name="s")
    make_study(made, "--seed", "4", images=20, name="t")
    make_study(made, "--classes", images=18, name="classes")
    make_study(made, images=20, mode="2afc", name="pairs")
    make_study(made, images=20, mode="feedback", name="training")
    make_study(made, "--seed", "9", images=20, name="later")
    make_study(made, "--seed", "10", images=80, name="long")
    make_study(made, "--seed", "11", images=20, name="disk")
    return made


@pytest.fixture(scope="module")
def service(folder, fast_folder):
    with serving(folder, database=f"sqlite:///{fast_folder}/readers.sqlite") as made:
        made.tokens = begin(made, "s", "ann", "bob")
        made.others = begin(made, "t", "eve")
        yield made


def body(item, number=0, **named):
    return {"item": item, "token": f"token-{number:08d}", "score": 3, "seconds": 2.0, **named}


ADMIN = [
    ("GET", "/v1/studies", None),
    ("POST", "/v1/studies", {"study": "s"}),
    ("GET", "/v1/studies/s/progress", None),
    ("POST", "/v1/studies/s/readers", {"name": "zed"}),
    ("DELETE", "/v1/studies/s/readers/99", None),
    ("POST", "/v1/studies/s/lock", None),
    ("GET", "/v1/studies/s/answers", None),
    ("GET", "/v1/studies/s/report", None),
]
READER = [
    ("GET", "/v1/studies/session", None),
    ("GET", "/v1/studies/s/items", None),
    ("GET", "/v1/studies/s/items/ITEM/images/0", None),
    ("POST", "/v1/studies/s/answers", body("ITEM")),
    ("POST", "/v1/studies/s/events", {"kind": "pause"}),
    ("POST", "/v1/studies/s/finish", None),
    ("POST", "/v1/studies/logout", None),
]


def filled(service, path, content):
    item = service.desk.store.readers("s")[0].order[0]
    text = json.dumps(content).replace("ITEM", item)
    return path.replace("ITEM", item), json.loads(text)


@pytest.mark.parametrize(("method", "path", "content"), ADMIN)
def test_an_administrators_route_is_closed_to_everybody_else(
    service, method, path, content
) -> None:
    reader = logged_in(service, service.tokens[0])
    for client, status in (
        (service.client(), 401),
        (service.client("mrk_wrong"), 401),
        (service.client(service.reader_token), 403),
        (reader, 401),
    ):
        answer = client.request(method, path, json=content)
        assert answer.status_code == status, (path, answer.text)
        assert answer.headers["content-type"] == "application/problem+json"
    assert service.desk.study("s").status == "open"


@pytest.mark.parametrize(("method", "path", "content"), READER)
def test_a_readers_route_is_closed_without_a_session_that_holds(
    service, method, path, content
) -> None:
    path, content = filled(service, path, content)
    fresh = begin(service, "s", f"temp{method}{abs(hash(path)) % 10**6}")[0]
    expired, revoked = logged_in(service, service.tokens[0]), logged_in(service, fresh)
    mallory = logged_in(service, service.others[0])
    service.desk.store.revoke(service.desk.store.readers("s")[-1].id)
    before = service.desk.store.answers(service.desk.store.readers("s")[0].id)
    wrong = [service.client(), service.client(cookie=f"{COOKIE}=wrong"), revoked, service.admin]
    for client in wrong:
        answer = client.request(method, path, json=content)
        assert answer.status_code == 401, (path, answer.text)
    if "/s/" in path:
        answer = mallory.request(method, path, json=content)
        assert answer.status_code == 404, answer.text
    service.clock.ahead_s = 13 * 3600
    try:
        assert expired.request(method, path, json=content).status_code == 401
    finally:
        service.clock.ahead_s = 0
    assert service.desk.store.answers(service.desk.store.readers("s")[0].id) == before


def test_a_reader_gets_his_own_order_and_the_pixels_as_they_were_made(service, folder) -> None:
    ann, bob = (logged_in(service, token) for token in service.tokens)
    orders = [[i["item"] for i in c.get("/v1/studies/s/items").json()["items"]] for c in (ann, bob)]
    assert sorted(orders[0]) == sorted(orders[1]) and orders[0] != orders[1]
    study = service.desk.set_of(service.desk.study("s"))
    item = study.item(orders[0][0])
    sent = ann.get(f"/v1/studies/s/items/{item.id}/images/0")
    assert (decode_image(sent.content) == decode_image(study.image(item.images[0]))).all()
    assert ann.get(f"/v1/studies/s/items/{item.id}/images/1").status_code == 404
    for name in ("0" * 16, "..%2f..%2ftruth", "truth.json", item.images[0]):
        answer = ann.get(f"/v1/studies/s/items/{name}/images/0")
        assert answer.status_code in (404, 422), name


def test_an_answer_sent_twice_is_stored_once_and_a_correction_is_a_new_row(service) -> None:
    ann = logged_in(service, service.tokens[0])
    item = ann.get("/v1/studies/s/items").json()["items"][3]["item"]
    first = ann.post("/v1/studies/s/answers", json=body(item, 1))
    again = ann.post("/v1/studies/s/answers", json=body(item, 1))
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json()["answer"] == again.json()["answer"]
    other_tab = ann.post("/v1/studies/s/answers", json=body(item, 2, score=5))
    assert (other_tab.status_code, other_tab.json()["code"]) == (409, "answered")
    number = first.json()["answer"]["id"]
    mended = ann.post("/v1/studies/s/answers", json=body(item, 3, score=5, corrects=number))
    assert mended.status_code == 201 and mended.json()["answer"]["version"] == 1
    # An answer of somebody else's cannot be corrected, whoever knows its number.
    bob = logged_in(service, service.tokens[1])
    stolen = bob.post("/v1/studies/s/answers", json=body(item, 4, corrects=number))
    assert stolen.status_code == 409


@pytest.mark.parametrize(
    "change",
    [
        {"score": 0}, {"score": 6}, {"score": "3"}, {"score": 2.5}, {"score": None},
        {"choice": "left"}, {"label": "x"}, {"item": "x"}, {"item": "0" * 16}, {"token": "short"},
        {"token": "a b c d e f g"}, {"seconds": -1}, {"seconds": "NaN"}, {"hidden": "yes"},
        {"corrects": 0}, {"truth": 1}, {"score": True}, {"seconds": 1e9},
    ],
)  # fmt: skip
def test_an_answer_that_makes_no_sense_is_refused_with_what_is_allowed(service, change) -> None:
    bob = logged_in(service, service.tokens[1])
    item = bob.get("/v1/studies/s/items").json()["items"][5]["item"]
    answer = bob.post("/v1/studies/s/answers", json={**body(item, 9), **change})
    assert answer.status_code in (404, 422), answer.text
    assert answer.json()["detail"] and "Traceback" not in answer.text
    assert not [i for i in bob.get("/v1/studies/s/items").json()["items"] if i["item"] == item
                and i["answer"]]  # fmt: skip


def test_ten_forged_posts_change_nothing(service) -> None:
    bob = logged_in(service, service.tokens[1])
    item = bob.get("/v1/studies/s/items").json()["items"][6]["item"]
    good = bob.headers.pop("x-csrf-token")
    evil, path = {"origin": "https://evil.example"}, "/v1/studies/s/answers"
    forged = [
        {}, {"x-csrf-token": ""}, {"x-csrf-token": "wrong"}, {"x-csrf-token": good[:-1]},
        {"x-csrf-token": good, **evil}, evil,
        {"x-csrf-token": good, "sec-fetch-site": "cross-site"},
        {"x-csrf-token": good, "origin": "null"}, {"x-csrf-token": good.swapcase()},
        {"x-csrf-token": good, "sec-fetch-site": "same-site"},
    ]  # fmt: skip
    for headers in forged:
        assert bob.post(path, json=body(item, 5), headers=headers).status_code == 403, headers
    assert bob.post(path, json=body(item, 5), headers={"x-csrf-token": good}).status_code == 201
    form = bob.post(path, data={"item": item}, headers={"x-csrf-token": good})
    assert form.status_code in (415, 422)


def test_the_cookie_is_strict_hidden_from_scripts_and_only_its_hash_is_kept(service) -> None:
    client = service.client()
    answer = client.post("/v1/studies/login", json={"token": service.tokens[0]})
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie and "Path=/v1/studies" in cookie
    secret = client.cookies[COOKIE]
    with service.desk.store.reading() as connection:
        kept = str([
            connection.exec_driver_sql(f"SELECT * FROM {t}").all() for t in ("sessions", "readers")
        ])  # fmt: skip
    assert secret not in kept and service.tokens[0] not in kept
    client.headers["x-csrf-token"] = answer.json()["csrf"]
    assert client.post("/v1/studies/logout").status_code == 204
    assert service.client(cookie=f"{COOKIE}={secret}").get("/v1/studies/session").status_code == 401


@pytest.mark.parametrize("ahead_s", [61, pytest.param(-3600, id="or the clock is set back")])
def test_twenty_wrong_logins_are_throttled_and_a_minute_later_the_right_one_works(
    service, ahead_s
) -> None:
    client = service.client()
    codes = [
        client.post("/v1/studies/login", json={"token": f"guess{n}"}).status_code for n in range(20)
    ]
    assert codes[:5] == [401] * 5 and codes[-1] == 429
    held = client.post("/v1/studies/login", json={"token": service.tokens[0]})
    assert held.status_code == 429 and int(held.headers["retry-after"]) > 0
    service.clock.ahead_s = ahead_s
    try:
        right = client.post("/v1/studies/login", json={"token": service.tokens[0]})
        assert right.status_code == 200
    finally:
        service.clock.ahead_s = 0


@pytest.mark.parametrize("text", XSS)
def test_no_markup_gets_into_a_name(service, text) -> None:
    answer = service.admin.post("/v1/studies/s/readers", json={"name": text})
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert "nosniff" in answer.headers["x-content-type-options"]
    begun = service.admin.post("/v1/studies", json={"study": text})
    assert begun.status_code in (404, 422)


def test_a_study_called_by_markup_is_escaped_in_its_report(tmp_path) -> None:
    study = make_study(tmp_path, "--name", XSS[0], images=4)
    from medray.evaluate import reader_report

    row = {"reader": "a", "position": 0, "version": 0, "score": 1, "label": None, "seconds": 1}
    rows = [{**row, "item": i.id, "hidden": False, "idle": False} for i in study.items]
    page = reader_report.files(study, study.truth(), rows)["report.html"].decode()
    assert "<script" not in page and "&lt;script&gt;" in page


def crawl(service, study, token):
    """Every answer that a reader and an administrator can get while a study is open."""
    ann, admin, seen = logged_in(service, token), service.admin, []

    def note(answer):
        seen.append((answer.status_code, answer.content + str(answer.headers).encode()))

    note(ann.get("/v1/studies/session"))
    listed = ann.get(f"/v1/studies/{study}/items")
    note(listed)
    for number, item in enumerate(listed.json()["items"]):
        note(ann.post(f"/v1/studies/{study}/answers", json=body(item["item"], number)))
        note(ann.post(f"/v1/studies/{study}/answers", json=body(item["item"], number + 500)))
    for path in ("items", "answers", "report", "report?format=html", "progress", "truth.json",
                 "study.json", "items/truth/images/0", "../later/truth.json"):  # fmt: skip
        note(ann.get(f"/v1/studies/{study}/{path}"))
        note(admin.get(f"/v1/studies/{study}/{path}"))
    note(ann.post(f"/v1/studies/{study}/finish"))
    note(admin.get("/v1/studies"))
    note(admin.get("/openapi.json"))
    return seen


def test_the_truth_is_in_no_answer_before_the_close_and_in_the_report_after_it(service) -> None:
    (token,) = begin(service, "later", "ann")
    seen = crawl(service, "later", token)
    study = service.desk.set_of(service.desk.study("later"))
    truth = study.truth()
    words = {word for of in truth.values() for word in (*of.sources, *filter(None, of.labels))}
    words |= {of.repeats for of in truth.values() if of.repeats} - {i.id for i in study.items}
    words |= {'"synthetic":', '"truth":', '"right":', '"called"', '"correct":', study.truth_sha256}
    assert len(seen) > 60 and {status for status, _ in seen} <= {200, 201, 204, 401, 404, 405, 409}
    for status, data in seen:
        if b"openapi" not in data[:20]:
            assert not [word for word in words if word.encode() in data], (status, data[:300])
    # What is answered alike for all cannot tell either: the same keys, length and status by kind.
    answers = [json.loads(re.split(rb"Headers\(", d)[0]) for s, d in seen if s == 201]
    assert len({tuple(a["answer"]) for a in answers}) == 1
    admin = service.admin
    assert admin.post("/v1/studies/later/close").status_code == 409
    assert admin.post("/v1/studies/later/lock").status_code == 200
    assert admin.get("/v1/studies/later/report").status_code == 409
    assert b"truth" not in admin.get("/v1/studies/later/answers").content
    assert admin.post("/v1/studies/later/close").status_code == 200
    assert admin.post("/v1/studies/later/unlock").status_code == 409
    report = admin.get("/v1/studies/later/report").json()
    assert report["readers"]["ann"]["accuracy"]["count"] == 20
    for format in ("html", "csv", "imrmc"):
        file = admin.get(f"/v1/studies/later/report?format={format}")
        assert file.status_code == 200 and "attachment" in file.headers["content-disposition"]
    assert admin.get("/v1/studies/later/report?format=exe").status_code == 422


def test_training_tells_the_truth_of_a_case_once_it_is_answered_and_lets_none_be_corrected(
    service,
) -> None:
    (token,) = begin(service, "training", "ann")
    ann = logged_in(service, token)
    truth = service.desk.set_of(service.desk.study("training")).truth()
    items = ann.get("/v1/studies/training/items")
    assert b"synthetic" not in items.content and b"truth" not in items.content
    first = items.json()["items"][0]["item"]
    told = ann.post("/v1/studies/training/answers", json=body(first)).json()
    assert told["truth"]["synthetic"] == bool(truth[first].answer)
    changed = ann.post(
        "/v1/studies/training/answers", json=body(first, 7, corrects=told["answer"]["id"])
    )
    assert changed.status_code == 409 and "truth" not in changed.json()


def test_pairs_take_a_side_and_classes_a_label_of_the_study(service) -> None:
    (token,) = begin(service, "pairs", "ann")
    ann = logged_in(service, token)
    item = ann.get("/v1/studies/pairs/items").json()["items"][0]
    assert item["images"] == 2
    for side in (0, 1):
        assert ann.get(f"/v1/studies/pairs/items/{item['item']}/images/{side}").status_code == 200
    path = "/v1/studies/pairs/answers"
    assert ann.post(path, json=body(item["item"])).status_code == 422
    right = body(item["item"], 2, score=None, choice="right")
    assert ann.post(path, json=right).status_code == 201
    (token,) = begin(service, "classes", "ann")
    ann, path = logged_in(service, token), "/v1/studies/classes/answers"
    item = ann.get("/v1/studies/classes/items").json()["items"][0]["item"]
    assert ann.post(path, json=body(item)).status_code == 422
    assert ann.post(path, json=body(item, 2, label="cat")).status_code == 422
    assert ann.post(path, json=body(item, 3, label="rare")).status_code == 201


def test_a_sitting_ends_after_sixty_images_and_goes_on_after_a_rest(service) -> None:
    (token,) = begin(service, "long", "ann")
    ann = logged_in(service, token)
    items = [i["item"] for i in ann.get("/v1/studies/long/items").json()["items"]]
    for number, item in enumerate(items[:60]):
        saved = ann.post("/v1/studies/long/answers", json=body(item, number)).json()
        assert saved["sitting"]["offer_break"] == (number + 1 >= 40)
    held = ann.get(f"/v1/studies/long/items/{items[60]}/images/0")
    assert (held.status_code, held.json()["code"]) == (429, "rest_due")
    # What was answered stays in reach, and an answer that waited offline is not lost.
    assert ann.get(f"/v1/studies/long/items/{items[0]}/images/0").status_code == 200
    assert ann.post("/v1/studies/long/answers", json=body(items[61], 61)).status_code == 201
    service.clock.ahead_s = 601
    try:
        assert ann.get(f"/v1/studies/long/items/{items[60]}/images/0").status_code == 200
        assert ann.get("/v1/studies/session").json()["sitting"]["images"] == 0
        service.clock.ahead_s = -3600  # set back: nobody waits for it to come round again
        assert ann.get(f"/v1/studies/long/items/{items[60]}/images/0").status_code == 200
    finally:
        service.clock.ahead_s = 0
    left = ann.post("/v1/studies/long/finish")
    assert left.status_code == 409 and "27 of 88 cases" in left.json()["detail"]


def test_size_type_and_time_of_an_image_tell_nothing_of_its_kind(service) -> None:
    (token,) = begin(service, "long", "timer")
    ann, reader = logged_in(service, token), service.desk.store.readers("long")[-1]
    truth = service.desk.truth_of(service.desk.study("long"))
    heads = set()
    for item in reader.order[:40]:
        sent = ann.get(f"/v1/studies/long/items/{item}/images/0")
        kept = {k: v for k, v in sent.headers.items() if k not in ("date", "x-request-id")}
        heads.add((len(sent.content), str(kept)))
    assert len(heads) == 1
    generator, found = np.random.default_rng(0), []
    # In another order each time: what else this machine does meets both kinds alike.
    for _ in range(64):
        kinds, seconds = [], []
        for item in generator.permutation(reader.order).tolist():
            start = time.perf_counter()
            service.desk.image(reader, item, 0)
            seconds.append(time.perf_counter() - start)
            kinds.append(truth[item].answer)
        found.append(auroc(np.array(seconds), np.array(kinds)))
    assert 0.45 <= np.mean(found) <= 0.55


def test_fifty_readers_at_once_are_all_served_and_every_answer_is_kept(service) -> None:
    tokens, wrong = begin(service, "long", *(f"reader {n}" for n in range(50))), []

    def read(token: str) -> None:
        client = logged_in(service, token)
        for item in client.get("/v1/studies/long/items").json()["items"][:3]:
            seen = client.get(f"/v1/studies/long/items/{item['item']}/images/0")
            saved = client.post("/v1/studies/long/answers", json=body(item["item"]))
            if (seen.status_code, saved.status_code) != (200, 201):
                wrong.append((seen.status_code, saved.text))

    threads = [threading.Thread(target=read, args=(token,)) for token in tokens]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    told = service.admin.get("/v1/studies/long/progress").json()["readers"]
    assert [r["answered"] for r in told if r["name"].startswith("reader ")] == [3] * 50


@pytest.mark.chaos
def test_ten_thousand_answers_leave_the_memory_as_it_was(service) -> None:
    (token,) = begin(service, "long", "tireless")
    ann = logged_in(service, token)
    items = [i["item"] for i in ann.get("/v1/studies/long/items").json()["items"]]
    newest: dict[str, int] = {}

    def answer(first: int, last: int) -> None:
        """All after the first of an item correct the one before."""
        for number in range(first, last):
            item = items[number % len(items)]
            given = body(item, number, corrects=newest.get(item))
            sent = ann.post("/v1/studies/long/answers", json=given)
            assert sent.status_code == 201, sent.text
            newest[item] = sent.json()["answer"]["id"]
            if number % 10 == 0:
                assert ann.get(f"/v1/studies/long/items/{items[0]}/images/0").status_code == 200

    answer(0, 1000)
    before_mb = resident_mb()
    answer(1000, 11_000)
    assert resident_mb() - before_mb < 100


def test_on_a_full_disk_answers_are_503_and_reading_goes_on(service) -> None:
    (token,) = begin(service, "disk", "ann")
    ann = logged_in(service, token)
    items = [i["item"] for i in ann.get("/v1/studies/disk/items").json()["items"]]
    keep = full(service.desk.store, 0)
    try:
        sent, last = None, {}
        for number in range(2000):
            sent = ann.post("/v1/studies/disk/answers", json=body(items[0], number, **last))
            if sent.status_code != 201:
                break
            last = {"corrects": sent.json()["answer"]["id"]}
        assert (sent.status_code, sent.json()["code"]) == (503, "storage_full")
        assert int(sent.headers["retry-after"]) > 0
        assert ann.get("/v1/studies/session").status_code == 200
        assert ann.get(f"/v1/studies/disk/items/{items[1]}/images/0").status_code == 200
        assert service.client().get("/livez").status_code == 200
    finally:
        keep()
    assert ann.post("/v1/studies/disk/answers", json=body(items[1], 9)).status_code == 201


def test_sessions_and_answers_survive_a_restart(folder, tmp_path) -> None:
    make_study(tmp_path, images=20, name="s")
    with serving(tmp_path) as before:
        (token,) = begin(before, "s", "ann")
        ann = logged_in(before, token)
        item = ann.get("/v1/studies/s/items").json()["items"][0]["item"]
        ann.post("/v1/studies/s/answers", json=body(item))
        cookie, csrf = ann.cookies[COOKIE], ann.headers["x-csrf-token"]
    with serving(tmp_path, root_path="/medray") as after:
        again = after.client(cookie=f"{COOKIE}={cookie}", **{"x-csrf-token": csrf})
        assert again.get("/v1/studies/session").json()["progress"]["answered"] == 1
        sent = again.post("/v1/studies/s/answers", json=body(item))
        assert sent.status_code == 200
        login = after.client().post("/v1/studies/login", json={"token": token})
        assert "Path=/medray/v1/studies" in login.headers["set-cookie"]
        link = after.admin.post("/v1/studies/s/readers", json={"name": "bob"}).json()["link"]
        assert link.startswith("/medray/studies#")


def test_a_study_whose_images_changed_is_refused_and_a_name_is_no_path(service, folder) -> None:
    for name in ("../s", "/etc", "s/../s", "S", "", "nothing", "a" * 80, "..", "s\0"):
        answer = service.admin.post("/v1/studies", json={"study": name})
        assert answer.status_code in (404, 422), name
    study = folder / "changed"
    make_study(folder, "--seed", "21", name="changed")
    assert service.admin.post("/v1/studies", json={"study": "changed"}).status_code == 201
    text = (study / "study.json").read_text()
    (study / "study.json").write_text(text.replace("reader study", "another study"))
    assert service.admin.post("/v1/studies", json={"study": "changed"}).status_code == 409


def test_without_a_folder_of_studies_the_service_says_so(tmp_path) -> None:
    with serving(tmp_path) as service:
        service.desk.root = None
        answer = service.admin.post("/v1/studies", json={"study": "s"})
        assert (answer.status_code, answer.json()["code"]) == (404, "studies_off")
        assert service.admin.get("/v1/studies").json() == {"studies": []}
