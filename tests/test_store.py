"""Store: one interface on folders and object stores, and nothing half written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from medray.errors import ResourceError, UsageError
from medray.store import Store


@pytest.fixture(params=["folder", "file", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    url = {"folder": str(tmp_path / "s"), "file": f"file://{tmp_path}/s"}.get(request.param)
    return Store(url or f"memory://{tmp_path.name}/s")


def test_what_is_written_is_read_listed_and_removed(store: Store) -> None:
    store.write_bytes("a/b.txt", b"hello")
    store.write_bytes("c.txt", b"")
    assert store.read_bytes("a/b.txt") == b"hello"
    assert store.read_range("a/b.txt", 1, 3) == b"ell"
    assert store.size("a/b.txt") == 5
    assert store.names() == ["a/b.txt", "c.txt"]
    assert store.names("a/") == ["a/b.txt"]
    assert store.names("c") == ["c.txt"]
    assert store.child("a").names() == ["b.txt"]
    with store.open("a/b.txt") as file:
        assert file.read() == b"hello"
    store.remove("c.txt")
    store.remove("c.txt")
    assert not store.exists("c.txt")
    store.remove_tree("a")
    store.remove_tree("a")
    assert store.names() == []


def test_a_second_write_replaces_the_first(store: Store) -> None:
    store.write_bytes("x", b"old, and longer")
    store.write_bytes("x", b"new")
    assert store.read_bytes("x") == b"new"


def test_a_finished_file_is_published_and_leaves_its_place(store: Store, tmp_path: Path) -> None:
    finished = tmp_path / "finished"
    finished.write_bytes(b"data")
    store.publish(finished, "deep/name")
    assert store.read_bytes("deep/name") == b"data"
    assert not finished.exists()


def test_an_absent_object_is_a_file_not_found_error(store: Store) -> None:
    with pytest.raises(FileNotFoundError):
        store.read_bytes("absent")


def test_unfinished_files_are_not_listed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    (tmp_path / "x.123.part").write_bytes(b"half")
    store.write_bytes("y", b"1")
    assert store.names() == ["y"]


def test_a_write_that_fails_leaves_the_old_content_and_no_part(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write_bytes("x", b"old")
    (tmp_path / "d").mkdir()
    with pytest.raises(ResourceError, match="cannot write"):
        store.write_bytes("d", b"a folder stands here")
    assert store.read_bytes("x") == b"old"
    assert sorted(os.listdir(tmp_path)) == ["d", "x"]


def test_an_unknown_scheme_is_named_with_the_allowed_ones() -> None:
    with pytest.raises(UsageError, match="nosuch"):
        Store("nosuch://bucket/x")
