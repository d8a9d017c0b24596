"""The page's files as they are served, without a browser."""

from __future__ import annotations

import re

import pytest

from serve.page.routes import PAGES, files
from tests.serve.readers.service import serving


@pytest.fixture(scope="module", params=["", "/some/prefix"])
def client(request, tmp_path_factory):
    with serving(tmp_path_factory.mktemp("page"), root_path=request.param) as service:
        yield service.client()


@pytest.mark.parametrize("path", PAGES)
def test_a_page_comes_with_the_notice_a_strict_policy_and_a_tag(client, path) -> None:
    answer = client.get(f"/{path}")
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/html")
    assert "Research use only. Not for diagnosis." in answer.text
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    assert answer.text.count('aria-current="page"') == 1
    assert not re.search(r"\{(title|body|script|at-\w+)\}", answer.text)
    again = client.get(f"/{path}", headers={"if-none-match": answer.headers["etag"]})
    assert again.status_code == 304 and not again.content
    assert client.head(f"/{path}").status_code == 200


@pytest.mark.parametrize("path", PAGES)
def test_everything_that_a_page_names_is_there_under_any_prefix(client, path) -> None:
    text = client.get(f"/{path}").text
    named = re.findall(r'(?:src|href)="([^"#]*)"', text)
    assert len(named) >= 8 and not [n for n in named if n.startswith(("/", "http", "//"))]
    for name in named:
        assert client.get("/" + name.removeprefix("./")).status_code == 200, name


def test_no_script_or_style_of_the_page_names_another_place_or_writes_markup() -> None:
    banned = (
        "http://",
        "https://",
        "innerHTML",
        "outerHTML",
        "document.write",
        "eval(",
        'fetch("/',
    )
    for name, (data, _) in files().items():
        text = data.decode().replace("http://www.w3.org/2000/svg", "")
        assert not [word for word in banned if word in text], name
        for imported in re.findall(r'from "\./([^"]+)"', text):
            assert imported in files(), f"{name} imports {imported}"


@pytest.mark.parametrize(
    "name", ["", "nothing.js", "..%2fshell.html", "shell.html", "%2e%2e/routes.py", "routes.py"]
)
def test_only_the_pages_own_files_are_served(client, name) -> None:
    answer = client.get(f"/static/{name}")
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
