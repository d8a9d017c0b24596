"""Nothing that comes from outside is run: five payloads in every file that medray reads.

Each payload makes a canary file when it is opened as its author meant; the first test shows that it
does. Digests are made to agree, as somebody would who can write the file: a digest is no defence
against its author.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from medray.errors import MedrayError
from medray.records import Sample, ShardIndex
from medray.store import Store

Bytes = Callable[[Path], bytes]


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.canary}",)


def _torch_zip(canary: Path) -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save({"weights": Touch(canary)}, buffer)
    return buffer.getvalue()


def _npy(canary: Path) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([[Touch(canary)]], object), allow_pickle=True)
    return buffer.getvalue()


PAYLOADS: dict[str, Bytes] = {
    "pickle-0": lambda canary: f"cposix\nsystem\n(S'touch {canary}'\ntR.".encode(),
    "pickle-5": lambda canary: pickle.dumps(Touch(canary), protocol=5),
    "torch": _torch_zip,
    "npy": _npy,
    "yaml": lambda canary: f"!!python/object/apply:os.system ['touch {canary}']\n".encode(),
}


def _as_meant(kind: str, data: bytes) -> Any:
    import torch

    if kind == "torch":
        return torch.load(io.BytesIO(data), weights_only=False)
    if kind == "npy":
        return np.load(io.BytesIO(data), allow_pickle=True)
    return yaml.unsafe_load(data) if kind == "yaml" else pickle.loads(data)


@pytest.mark.parametrize("kind", PAYLOADS)
def test_control_opened_as_its_author_meant_a_payload_runs(kind: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    with contextlib.suppress(ValueError, TypeError, AttributeError):
        _as_meant(kind, PAYLOADS[kind](canary))
    assert canary.exists()


# --- where a payload is put, and what reads it ----------------------------------------------------


@dataclass(frozen=True)
class Input:
    """A file that is read: `plant` puts data there, `read` reads it as medray does."""

    plant: Callable[[Path, bytes], object]
    read: Callable[[Path], object]


INPUTS: dict[str, Input] = {}


def reads(name: str, plant: Callable[[Path, bytes], object]) -> Callable[[Any], Any]:
    """Lists a reader under a name."""

    def listed(read: Callable[[Path], object]) -> Callable[[Path], object]:
        INPUTS[name] = Input(plant, read)
        return read

    return listed


def _put(name: str) -> Callable[[Path, bytes], object]:
    def plant(folder: Path, data: bytes) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    return plant


def _checkpoint(member: str) -> Callable[[Path, bytes], object]:
    """A checkpoint whose `member` is replaced and whose manifest agrees."""

    def plant(folder: Path, data: bytes) -> None:
        import torch

        from medray.checkpoints import Checkpoints, _digest
        from medray.lease import acquire

        store = Store(folder / "run")
        with contextlib.closing(_Held(acquire(store, wait_s=0))) as held:
            Checkpoints(store, held.lease).save(8, {"w": torch.zeros(2)}, {"score": None})
        manifest = next((folder / "run" / "checkpoints").rglob("manifest.json"))
        (manifest.parent / member).write_bytes(data)
        if member != "manifest.json":
            body = json.loads(manifest.read_text())
            body["files"][member] = _digest(data)
            manifest.write_text(json.dumps(body))

    return plant


@dataclass
class _Held:
    lease: Any

    def close(self) -> None:
        self.lease.release()


@reads("checkpoint, tensors", _checkpoint("state.safetensors"))
@reads("checkpoint, state", _checkpoint("state.json"))
@reads("checkpoint, manifest", _checkpoint("manifest.json"))
def _read_checkpoint(folder: Path) -> object:
    from medray.checkpoints import Checkpoints

    checkpoints = Checkpoints(Store(folder / "run"), None)
    newest = checkpoints.newest()
    if newest is None:
        raise MedrayError("no checkpoint is whole")
    return checkpoints.load(newest)


def _weights(folder: Path, data: bytes) -> None:
    _put("model/generator.safetensors")(folder, data)
    about = {"arguments": {}, "generator_sha256": hashlib.sha256(data).hexdigest()}
    _put("model/config.yaml")(folder, yaml.safe_dump(about).encode())


def _model_configuration(folder: Path, data: bytes) -> None:
    _put("model/generator.safetensors")(folder, b"")
    _put("model/config.yaml")(folder, data)


@reads("weights", _weights)
@reads("configuration of a model", _model_configuration)
def _read_generator(folder: Path) -> object:
    from medray.models.weights import load_generator

    return load_generator(str(folder))


def _latents(folder: Path, data: bytes) -> None:
    _put("latents.safetensors")(folder, data)
    about = {"latents_sha256": hashlib.sha256(data).hexdigest()}
    _put("latents.json")(folder, json.dumps(about).encode())


def _latents_facts(folder: Path, data: bytes) -> None:
    _put("latents.safetensors")(folder, b"")
    _put("latents.json")(folder, data)


@reads("latents", _latents)
@reads("latents, facts", _latents_facts)
def _read_latents(folder: Path) -> object:
    from medray.sample.latents import LatentModel

    return LatentModel.load(str(folder))


def _shard(encoding: str, extension: str, *, features: bool = False) -> Callable[..., object]:
    """A set of one sample whose member of that extension is the payload; every digest agrees."""

    def plant(folder: Path, data: bytes) -> None:
        import zstandard

        from medray.shards import ShardWriter, _members, write_index
        from tests.feature_sets import rows_of

        image = np.zeros((16, 16), np.uint8)
        sample = Sample(key="train-00000000", image=image, label="a", split="train", patient="p")
        if features:
            (sample,) = rows_of(np.zeros((1, 4), np.float32), ["a"])
        packed = zstandard.compress(data) if extension.endswith(".zst") else data
        members = dict(_members.encode(sample, encoding))
        assert extension in members, sorted(members)
        members[extension] = packed
        store = Store(folder / "set")
        with ShardWriter(store, "train-000000", "train", encoding) as writer:
            writer.add(sample, sorted(members.items()))
            shard = writer.close()
        index = ShardIndex(
            name="s", classes=("a",), channels=1, size_px=16, bits=8, encoding=encoding,
            source="", licence="", audited=False, shards=(shard,),
        )  # fmt: skip
        write_index(store, index)

    return plant


def _read_set(folder: Path) -> object:
    from tests.shard_sets import drain, stream

    with stream(folder / "set", prefetch=0) as batches:
        return drain(batches, 1)


def _verify(folder: Path) -> object:
    from medray import cli

    code = cli.main(["verify", str(folder / "set")])
    if code:
        raise MedrayError(f"exit code {code}")
    return code


for _encoding, _extension in (("png", "png"), ("raw", "npy"), ("zstd", "npy.zst")):
    reads(f"shard, {_extension}", _shard(_encoding, _extension))(_read_set)


@reads("shard, record", _shard("raw", "json"))
def _read_record(folder: Path) -> object:
    from medray.shards import open_shard, read_index

    store = Store(folder / "set")
    return open_shard(store, read_index(store).shards[0]).record(0)


reads("index of a set", _put("set/index.json"))(_read_set)
reads("index of a set, verified", _put("set/index.json"))(_verify)


@reads("features", _shard("raw", "npy", features=True))
def _read_features(folder: Path) -> object:
    from medray.stream.table import read_table

    return read_table(str(folder / "set"), "train")


@reads("plan of an archive", _put("plan.json"))
def _read_plan(folder: Path) -> object:
    from medray.archive.plan import read_plan

    return read_plan(Store(folder))


def _gate(name: str) -> Callable[[Path, bytes], object]:
    def plant(folder: Path, data: bytes) -> None:
        for part in ("train", "holdout"):
            _put(f"{part}/{name}")(folder, data)

    return plant


@reads("privacy gate", _gate("gate.json"))
def _read_gate(folder: Path) -> object:
    from medray.evaluate.memorisation import FACTS, Gate

    path = folder / "train" / FACTS
    path.write_bytes((folder / "train" / "gate.json").read_bytes())
    return Gate.load(str(folder / "train"))


@reads("lineage", _put("seen.json"))
def _read_lineage(folder: Path) -> object:
    from medray import lineage

    return lineage.read(str(folder))


@reads("configuration of a job", _put("job.yaml"))
def _read_job(folder: Path) -> object:
    from jobs.pack import PackJob
    from medray import config

    argv = ["--config", str(folder / "job.yaml"), "--source", "x", "--out", str(folder / "out")]
    return config.parse(PackJob, argv, prog="pack")


@reads("configuration of a run that is resumed", _put("run/config.yaml"))
def _resume(folder: Path) -> object:
    from medray.rundir import RunDir

    with RunDir.start(
        str(folder / "run"), config_yaml="a: 1\n", config_hash="h", command="x", resume=True
    ) as run:
        return run.config()


def _curves(folder: Path, data: bytes) -> None:
    _put("run/status.json")(folder, b'{"state": "running"}')
    _put("run/config.yaml")(folder, data)
    _put("run/metrics.jsonl")(folder, data)


@reads("curves, watched", _curves)
def _watch(folder: Path) -> object:
    from medray import top

    view = top.look(str(folder / "run"))
    assert view.images == 0 and view.total is None
    raise MedrayError("shown without what cannot be read")


@reads("record of a trial", _put("trials/x/000.json"))
def _read_trial(folder: Path) -> object:
    from medray.tune.journal import Journal

    return Journal(Store(folder))._read("trials/x/000.json")


@reads("extractor, TorchScript", _put("network.pt"))
def _read_extractor(folder: Path) -> object:
    from medray.models.extract import Extractor

    return Extractor.load(f"{folder / 'network.pt'},px=32,channels=1")


@reads("keys of a service", _put("keys.json"))
def _read_keys(folder: Path) -> object:
    from serve.keys import KeyBook

    return KeyBook.of(str(folder / "keys.json"))


@reads("table that is packed", _put("in/labels.csv"))
def _pack_table(folder: Path) -> object:
    return _pack(folder / "in" / "labels.csv", folder / "out")


def _hospital(folder: Path, data: bytes) -> None:
    for name in ("a.npy", "b.png", "c.dcm", "d.jpg"):
        _put(f"in/x/{name}")(folder, data)


@reads("images that are packed", _hospital)
def _pack_images(folder: Path) -> object:
    return _pack(folder / "in", folder / "out")


def _pack(source: Path, out: Path) -> object:
    from jobs import pack

    code = pack.main(
        ["--source", str(source), "--out", str(out), "--size-px", "16", "--workers", "0"]
    )
    if code:
        raise MedrayError(f"exit code {code}")
    return code


@pytest.mark.parametrize("kind", PAYLOADS)
@pytest.mark.parametrize("name", INPUTS)
def test_a_payload_is_refused_and_never_run(name: str, kind: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    INPUTS[name].plant(tmp_path, PAYLOADS[kind](canary))
    with pytest.raises(MedrayError):
        INPUTS[name].read(tmp_path)
    assert not canary.exists()


@pytest.mark.parametrize(
    "url", ["pipe:touch {}", "pipe:cat {}|sh", "|touch {}", "file:///$(touch {})", "`touch {}`"]
)
def test_a_url_is_never_a_command(url: str, tmp_path: Path) -> None:
    """webdataset runs what follows `pipe:`; here it is a place like any other."""
    from tests.shard_sets import stream

    canary = tmp_path / "canary"
    with pytest.raises(MedrayError):
        stream(url.format(canary))
    assert not canary.exists()


@pytest.mark.parametrize(
    ("name", "kind", "guard"),
    [
        ("shard, npy", "npy", "numpy.lib.format.read_array"),
        ("configuration of a job", "yaml", "yaml.safe_load"),
        ("configuration of a model", "yaml", "yaml.safe_load"),
    ],
)
def test_control_with_the_guard_taken_away_the_canary_is_made(
    name: str, kind: str, guard: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_array = np.lib.format.read_array
    without = {
        "numpy.lib.format.read_array": lambda file, **_: read_array(file, allow_pickle=True),
        "yaml.safe_load": yaml.unsafe_load,
    }
    monkeypatch.setattr(guard, without[guard])
    canary = tmp_path / "canary"
    INPUTS[name].plant(tmp_path, PAYLOADS[kind](canary))
    with contextlib.suppress(Exception):
        INPUTS[name].read(tmp_path)
    assert canary.exists()
