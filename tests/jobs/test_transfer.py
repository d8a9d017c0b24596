"""jobs/transfer.py: fits of encoders in pairs, who may be tested, what a rerun leaves as it was."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from jobs import _transfer_run as transfer_run
from jobs import transfer
from medray import lineage, log
from medray.metrics import classification
from medray.models.encoder import Encoder, EncoderConfig, save_encoder
from medray.store import Store
from medray.stream.clips import ClipSet
from tests.faults.kill import tree_sha256
from tests.jobs.clip_runs import clips, made

pytestmark = pytest.mark.usefixtures("own_cache")
SMALL = (
    *("--frames", "4", "--size-px", "32", "--clips-seen", "240", "--tuned-frames", "2"),
    *("--tuned-px", "32", "--tuned-clips-seen", "16", "--seeds", "1", "--fractions", "1.0"),
    *("--findings", "left", "right"),
)


@pytest.fixture
def data(tmp_path: Path) -> str:
    return made(tmp_path / "set", clips("train", 30), clips("val", 18))


def run(tmp_path: Path, data: str, out: str, *more: str, tested: str = "val") -> int:
    names = [fact.patient for fact in ClipSet.open(data).facts(tested)]
    (tmp_path / "tested.txt").write_text("\n".join(names))
    who = ("--test-patients", str(tmp_path / "tested.txt"), "--out", str(tmp_path / out))
    code = transfer.main(["--data", data, *who, *SMALL, "--json", *more])
    log.setup()
    return code


def predictions(folder: Path) -> dict:
    found: dict = json.loads((folder / "predictions.json").read_text())
    return found


def encoder(url: Path, saw: lineage.Lineage) -> str:
    store = Store(url).child("model")
    save_encoder(store, Encoder(EncoderConfig(1, 8)).seed_weights(3), {}, "card")
    lineage.write(store, saw)
    return str(url)


def test_what_is_left_is_what_each_encoder_says_of_patients_never_trained_on(
    tmp_path: Path, data: str
) -> None:
    url = encoder(tmp_path / "e", ClipSet.open(data).lineage("train", labels=False))
    assert run(tmp_path, data, "out", "--encoders", f"jigsaw={url}", "random=random") == 0
    found = predictions(tmp_path / "out")
    assert found["findings"] == ["left", "right"] and len(found["patients"]) == 18
    assert all(name.startswith("val-") for name in found["patients"])
    kinds = [(fit["mode"], fit["arm"]) for fit in found["fits"]]
    assert kinds == [(m, a) for m in ("frozen", "tuned") for a in ("jigsaw", "random")]
    truth_NK = np.asarray(found["truth"])
    for fit in found["fits"][:2]:
        said_NK = np.asarray(fit["said"])
        assert said_NK.shape == (18, 2) and ((said_NK >= 0) & (said_NK <= 1)).all()
        assert classification.auroc(said_NK[:, 0], truth_NK[:, 0]) > 0.8
    assert found["fits"][0]["said"] != found["fits"][1]["said"]
    assert run(tmp_path, data, "out", "--encoders", f"jigsaw={url}", "random=random") == 0


def test_a_rerun_after_a_cut_leaves_the_same_bytes(
    tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ("--encoders", "random=random", "--modes", "tuned", "frozen", "--fractions", "0.5", "1")
    assert run(tmp_path, data, "whole", *more) == 0
    fit, done = transfer_run._fit, []

    def cut(*arguments: object) -> None:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(fit(*arguments))  # type: ignore[arg-type, func-returns-value]

    with monkeypatch.context() as patched:
        patched.setattr(transfer_run, "_fit", cut)
        assert run(tmp_path, data, "cut", *more) == 130
    assert not (tmp_path / "cut" / "summary.json").exists()
    assert run(tmp_path, data, "cut", *more) == 0
    one, two = (
        tree_sha256(tmp_path / name, lambda file: file.startswith(("fits/", "pred", "summary")))
        for name in ("whole", "cut")
    )
    assert one == two and len(one) == 6


def test_an_encoder_that_saw_a_test_patient_or_a_label_of_the_set_is_refused(
    tmp_path: Path, data: str, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = ClipSet.open(data)
    leak = encoder(tmp_path / "leak", opened.lineage("val", labels=False))
    assert run(tmp_path, data, "a", "--encoders", f"jigsaw={leak}") == 3
    assert "held out" in capsys.readouterr().err
    labelled = encoder(tmp_path / "labelled", opened.lineage("train", labels=True))
    assert run(tmp_path, data, "b", "--encoders", f"jigsaw={labelled}") == 3
    assert "labels" in capsys.readouterr().err
    other = lineage.Lineage([lineage.Saw("elsewhere/1", "someone", "train", "tumour")])
    fine = encoder(tmp_path / "fine", other)
    assert run(tmp_path, data, "c", "--encoders", f"taught={fine}", "--dry-run") == 0


@pytest.mark.parametrize(
    ("more", "code", "says"),
    [
        (("--encoders", "jigsaw=nowhere"), 2, "holds no encoder"),
        (("--encoders", "a/b=random"), 2, "letters, digits"),
        (("--encoders", "r=random", "--fractions", "0"), 2, "above 0"),
        (("--encoders", "r=random", "--findings", "broken"), 2, "no training sample has broken"),
    ],
)
def test_mistakes_are_told(
    tmp_path: Path,
    data: str,
    more: tuple[str, ...],
    code: int,
    says: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(tmp_path, data, "out", *more) == code
    assert says in capsys.readouterr().err


def test_patients_that_the_set_does_not_have_test_nothing(
    tmp_path: Path, data: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "others.txt").write_text("somebody\n")
    more = ("--encoders", "r=random", "--test-patients", str(tmp_path / "others.txt"))
    assert run(tmp_path, data, "out", *more) == 3
    assert "48 clips to train on and 0 to test on" in capsys.readouterr().err
