"""Keys: kept as hashes, found by hash, refused with the reason, changed without a restart."""

from __future__ import annotations

import json
import stat
import time
from pathlib import Path

import pytest

from medray.errors import UsageError
from serve import keys
from serve.keys import KeyBook
from serve.problems import Problem


def test_a_key_is_printed_once_and_only_its_hash_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "keys.json"
    words = ["--file", str(file), "--name", "alice", "--scopes", "read,generate", "--days", "1"]
    assert keys.main(["new", *words]) == 0
    token = capsys.readouterr().out.strip()
    assert token.startswith("mrk_") and len(token) > 40
    assert token not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    key, scopes = KeyBook(path=file).find(token.encode(), time.time())
    assert key.name == "alice" and scopes == {"read", "generate"}
    assert keys.main(["new", *words]) == 2, "a name twice"
    assert keys.main(["revoke", "--file", str(file), "--name", "alice"]) == 0
    with pytest.raises(Problem) as refused:
        KeyBook(path=file).find(token.encode(), time.time())
    assert (refused.value.status, refused.value.code) == (401, "key_unknown")


def test_an_expired_key_is_refused_and_says_so() -> None:
    token, key = keys.make("old", ["read"], expires="2020-01-01T00:00:00+00:00")
    with pytest.raises(Problem) as refused:
        KeyBook([key]).find(token.encode(), time.time())
    assert refused.value.code == "key_expired"
    assert KeyBook([key]).find(token.encode(), 1.0)[0].name == "old"


def test_a_token_that_differs_in_its_last_character_is_unknown() -> None:
    token, key = keys.make("one", ["read"])
    other = token[:-1] + ("A" if token[-1] != "A" else "B")
    with pytest.raises(Problem):
        KeyBook([key]).find(other.encode(), time.time())


def test_an_administrator_has_every_scope_and_nobody_else_more_than_told() -> None:
    token, key = keys.make("root", ["admin"])
    assert KeyBook([key]).find(token.encode(), 0.0)[1] == set(keys.SCOPES)
    token, key = keys.make("maker", ["generate"])
    assert KeyBook([key]).find(token.encode(), 0.0)[1] == {"generate"}


def test_a_file_that_changes_is_read_again_and_a_broken_one_is_not_believed(
    tmp_path: Path,
) -> None:
    file = tmp_path / "keys.json"
    token, key = keys.make("one", ["read"])
    keys.write(file, [key])
    book = KeyBook(path=file)
    assert not book.refresh(), "nothing changed"
    keys.write(file, [])
    assert book.refresh() and not book.by_name and not book.open
    keys.write(file, [key])
    book.refresh()
    file.write_text("{not json")
    with pytest.raises(UsageError):
        book.refresh()
    assert book.find(token.encode(), time.time())[0].name == "one"
    file.unlink()
    book.refresh()
    assert not book.by_name and not book.open, "a lost file closes the service"


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        '{"schema": "medray.keys/2", "keys": []}',
        '{"schema": "medray.keys/1"}',
        '{"schema": "medray.keys/1", "keys": [{"name": "a"}]}',
        json.dumps({"schema": keys.SCHEMA, "keys": [{"name": "a b", "sha256": "0", "scopes": []}]}),
        json.dumps(
            {"schema": keys.SCHEMA, "keys": [{"name": "a", "sha256": "0" * 64, "scopes": ["x"]}]}
        ),
    ],
)
def test_what_is_no_list_of_keys_is_refused_without_showing_it(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        keys.parsed(text, "the file")
    assert "0000" not in str(refused.value)


def test_keys_of_the_environment_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    token, key = keys.make("env", ["read"])
    monkeypatch.setenv(keys.ENVIRONMENT, keys.text_of([key]))
    assert KeyBook.of(None).find(token.encode(), 0.0)[0].name == "env"
    monkeypatch.delenv(keys.ENVIRONMENT)
    assert KeyBook.of(None).open
