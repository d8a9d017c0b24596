"""60 canaries in places where files name people: none is in any output or log."""

import io

import numpy as np
import pytest

from medray.pack.config import PackConfig
from medray.pack.pack import Job, pack
from medray.store import Store
from tests.canaries import assert_all_are_in, canaries, canary, with_canaries


@pytest.mark.parametrize("encoding", ["png", "raw"])
def test_no_canary_is_in_any_output_or_log(tmp_path, monkeypatch, capfd, encoding):
    monkeypatch.setenv("MEDRAY_SECRET_KEY", "0123456789abcdef")
    source = tmp_path / f"in{canary(55)}"
    (source / canary(56)).mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 4000, (12, 12), np.uint16)
    name = f"{canary(56)}/{canary(57)}.dcm"
    (source / name).write_bytes(with_canaries(pixels))
    (source / "labels.csv").write_text(
        f"file,label,patient,note\n{name},x,{canary(58)},{canary(59)}\n"
    )
    assert_all_are_in(source)
    config = PackConfig(
        source=str(source),
        size_px=8,
        encoding=encoding,
        samples_per_shard=1,
        val=0,
        test=0,
        workers=0,
    )
    for layout in ("csv", "tree"):
        given = config.model_copy(update={"layout": layout})
        if layout == "csv":
            given = given.model_copy(update={"source": f"{source}/labels.csv"})
        pack(given, Job(str(tmp_path / layout)))
        assert_none_is_in(tmp_path / layout, capfd)
    stored = Store(tmp_path / "csv").read_bytes("train-000000.tar")
    assert b'"patient":"' in stored  # a hash is there


def assert_none_is_in(out, capfd):
    store = Store(out)
    logged = "".join(capfd.readouterr())
    hay = {name: store.read_bytes(name) for name in store.names()} | {"log": logged.encode()}
    assert len(hay) > 7
    for name, data in hay.items():
        assert not [word for word in canaries() if word in data + name.encode()], name


def test_what_is_rejected_is_not_logged_by_name_either(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("MEDRAY_SECRET_KEY", "0123456789abcdef")
    (tmp_path / "in").mkdir()
    damaged = with_canaries(np.zeros((4, 4), np.uint16))[:-9]
    (tmp_path / "in" / f"{canary(57)}.dcm").write_bytes(damaged)
    (tmp_path / "in" / "good.npy").write_bytes(npy())
    config = PackConfig(source=str(tmp_path / "in"), size_px=4, max_rejected=1, workers=0)
    pack(config, Job(str(tmp_path / "out")))
    logged = "".join(capfd.readouterr())
    assert "1 files were rejected" in logged and "CANARY" not in logged


def npy():
    np.save(buffer := io.BytesIO(), np.zeros((4, 4), np.uint8))
    return buffer.getvalue()
