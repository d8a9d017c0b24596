"""`jobs/latents.py` as a person uses it: what it leaves, resume, exit codes, messages."""

import shutil
import socket

import pytest

from jobs import _latents_run as latents_run
from jobs import _out
from jobs.latents import main
from medray.images import decode_png
from medray.models.weights import load_classifier, load_generator
from medray.sample.latents import LatentModel
from medray.shards import write_set
from medray.store import Store
from tests import outcomes
from tests.chaos_budget import trials
from tests.faults.kill import tree_sha256
from tests.faults.killer import Killer
from tests.jobs import small_search
from tests.jobs.folders import summary
from tests.jobs.small_search import arguments
from tests.sample import latents_toys as toys
from tests.shard_sets import samples


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    toys.save_generator(Store(folder / "g"), toys.generator())
    toys.save_classifier(Store(folder / "c"), toys.classifier())
    toys.save_classifier(Store(folder / "j"), toys.classifier(2, "plain"))
    return folder


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def run(runs, out, *more):
    return main(arguments(runs, out, *more))


@pytest.fixture(scope="module")
def made(runs, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "latents"
    assert main(arguments(runs, out, "--judge", f"{runs}/j")) == 0
    return out


def test_a_search_leaves_a_model_figures_pictures_and_a_page(made, runs):
    model = LatentModel.load(str(made))
    assert [target.name for target in model.targets] == ["a", "c"]
    assert model.generator_sha256 == load_generator(f"{runs}/g")[1]["generator_sha256"]
    assert model.classifier_sha256 == load_classifier(f"{runs}/c")[1]["classifier_sha256"]
    for name in ("plain", "accepted-a", "drawn-a", "accepted-c", "drawn-c", "curves"):
        assert decode_png((made / f"{name}.png").read_bytes()).std() > 1, name
    page = (made / "report.html").read_text()
    assert page.count("data:image/png;base64") == 6 and "http" not in page.replace("</html>", "")


def test_the_figures_agree_with_the_chunks_and_with_each_other(made):
    found = summary(made)["targets"]["a"]
    chunks = sorted((made / "chunks").glob("000-*"))
    assert found["starts"] == 8 * len(chunks) and found["accepted"] >= 24
    assert found["acceptance"] == found["accepted"] / found["starts"]
    # Each start is looked at once; each step of one that moves costs three passes.
    assert found["passes_of_the_search"] > found["starts"]
    hits = found["judge_hits"]
    assert hits["n"] == 60 and 0 <= hits["ci_low"] <= hits["share"] <= hits["ci_high"] <= 1
    assert found["accepted_of_plain"]["n"] == 200
    for made_by in ("drawn", "plain"):
        assert found[f"likely_of_{made_by}"]["share"] >= found[f"accepted_of_{made_by}"]["share"]
    assert summary(made)["judge_is_independent"] is True


def test_the_same_command_again_does_nothing_and_says_so(made, runs, capsys):
    before = tree_sha256(made)
    assert run(runs, made, "--judge", f"{runs}/j") == 0
    assert "is complete: nothing to do" in capsys.readouterr().err
    assert tree_sha256(made) == before


def test_a_stopped_search_goes_on_to_the_same_bytes(made, runs, tmp_path, monkeypatch):
    work, calls = latents_run.work, []

    def stopping(*task):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(task[5:7])
        return work(*task)

    monkeypatch.setattr(latents_run, "work", stopping)
    assert run(runs, tmp_path / "out", "--judge", f"{runs}/j") == 130
    left = sorted((tmp_path / "out" / "chunks").iterdir())
    assert len(left) == 2 and not (tmp_path / "out" / "latents.json").exists()
    left[1].write_bytes(left[1].read_bytes()[:-1])
    calls[:] = [None] * 3
    assert run(runs, tmp_path / "out", "--judge", f"{runs}/j") == 0
    assert calls[3:].count((0, 0)) == 0 and calls[3:].count((0, 1)) == 1
    assert tree_sha256(tmp_path / "out") == tree_sha256(made)


def test_chunks_that_depend_on_what_came_before_would_be_seen(made, runs, tmp_path, monkeypatch):
    """The comparison above has teeth: a chunk numbered by the order it is made in differs."""
    work, calls = latents_run.work, []

    def counting(*task):
        calls.append(task)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return work(*task[:4], task[4] + len(calls), *task[5:])

    monkeypatch.setattr(latents_run, "work", counting)
    assert run(runs, tmp_path / "out", "--judge", f"{runs}/j") == 130
    assert run(runs, tmp_path / "out", "--judge", f"{runs}/j") == 0
    assert tree_sha256(tmp_path / "out") != tree_sha256(made)


def test_another_plan_is_refused_with_the_difference(made, runs, capsys):
    assert run(runs, made, "--judge", f"{runs}/j", "--lr", "0.1") == 2
    assert "lr was 0.05, is 0.1" in capsys.readouterr().err
    assert run(runs, made) == 2
    assert "judge_sha256 was" in capsys.readouterr().err


def test_overwrite_begins_anew(runs, tmp_path):
    few = ("--classes", "c", "--per-class", "16", "--check-images", "10", "--plain-images", "100")
    assert run(runs, tmp_path / "out", *few) == 0
    first = tree_sha256(tmp_path / "out")
    (tmp_path / "out" / "accepted-old.png").write_bytes(b"")
    assert run(runs, tmp_path / "out", *few, "--overwrite") == 0
    assert tree_sha256(tmp_path / "out") == first


def test_a_place_with_other_things_in_it_is_left_alone(runs, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    assert run(runs, tmp_path, "--overwrite") == 2
    assert "is not empty" in capsys.readouterr().err
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_a_second_search_on_one_place_is_refused(runs, tmp_path, capsys):
    with _out.alone(Store(tmp_path / "out"), "search"):
        assert run(runs, tmp_path / "out") == 2
    assert "another search is writing" in capsys.readouterr().err


@pytest.mark.parametrize("folder", ["", "chunks/"])
def test_what_a_killed_writer_left_unfinished_goes(made, runs, tmp_path, folder):
    shutil.copytree(made, tmp_path / "out")
    left = tmp_path / "out" / f"{folder}plain.png.{socket.gethostname().replace('.', '-')}-1-0.part"
    left.write_bytes(b"half")
    assert run(runs, tmp_path / "out", "--judge", f"{runs}/j") == 0
    assert not left.exists() and tree_sha256(tmp_path / "out") == tree_sha256(made)


def test_an_object_store_will_do(runs):
    few = ("--classes", "c", "--per-class", "16", "--check-images", "10", "--plain-images", "100")
    assert run(runs, "memory://latents-job", *few) == 0
    assert LatentModel.load("memory://latents-job").dims == toys.DIMS


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(runs, tmp_path, capsys):
    assert run(runs, tmp_path / "out", "--dry-run") == 0
    assert "2 targets (a, c)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# --- what is not reached ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def certain(runs):
    """A classifier that never sees a b."""
    network = toys.classifier()
    network.head.bias.data[1] = -50
    toys.save_classifier(Store(runs / "never-b"), network)
    return ("--classifier", f"{runs}/never-b", "--steps", "3", "--most-starts", "1")


def test_a_class_that_nobody_reaches_is_named_and_the_others_are_fitted(
    runs, tmp_path, certain, capsys
):
    wanted = ("--classes", "b,c", "--per-class", "16", "--steps", "40", "--plain-images", "100")
    assert run(runs, tmp_path / "out", *certain, *wanted) == 0
    assert "b: 0 of 16 latents were accepted" in capsys.readouterr().err
    assert [t.name for t in LatentModel.load(str(tmp_path / "out")).targets] == ["c"]
    assert summary(tmp_path / "out")["not_reached"]["b"]["accepted"] == 0
    assert "no latents to draw from: b" in (tmp_path / "out" / "report.html").read_text()


def test_too_few_accepted_is_exit_code_5_where_asked(runs, tmp_path, certain, capsys):
    wanted = ("--classes", "b,c", "--per-class", "16", "--steps", "40", "--plain-images", "100")
    assert run(runs, tmp_path / "out", *certain, *wanted, "--min-accepted", "16") == 5
    said = capsys.readouterr().err
    assert "--min-accepted 16 latents were accepted for b\n" in said
    # What was found stays, and the same command says the same again.
    assert LatentModel.load(str(tmp_path / "out")).targets[0].name == "c"
    assert run(runs, tmp_path / "out", *certain, *wanted, "--min-accepted", "16") == 5


def test_no_class_reached_is_exit_code_5_and_leaves_no_model(runs, tmp_path, certain, capsys):
    assert run(runs, tmp_path / "out", *certain, "--classes", "b") == 5
    assert "no target was reached: b" in capsys.readouterr().err
    assert not (tmp_path / "out" / "latents.json").exists()


# --- mistakes ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def others(runs):
    """Networks that do not fit."""
    colour = {"channels": 3}
    toys.save_generator(Store(runs / "colour"), toys.generator(**colour), **colour)
    toys.save_classifier(Store(runs / "large"), toys.classifier(size_px=32))
    toys.save_classifier(Store(runs / "colour-judge"), toys.classifier(channels=3))
    network = toys.classifier()
    network.classes = ("a", "b", "d")
    toys.save_classifier(Store(runs / "d"), network)
    broken = toys.generator()
    broken.rgb16.bias.data.fill_(float("nan"))
    toys.save_generator(Store(runs / "broken"), broken)


@pytest.mark.parametrize(
    "more, code, said",
    [
        (["--classes", "a,fracture"], 2, "does not know 'fracture'\n  fix: it knows a, b, c"),
        (["--classes", "a+c"], 2, "2 classes at once"),
        (["--classes", "a,,c"], 2, "--classes: name different labels"),
        (["--classes", "a,a"], 2, "--classes: name different labels"),
        (["--generator", "{}/c"], 2, "c holds no generator"),
        (["--classifier", "{}/g"], 2, "g holds no classifier"),
        (["--generator", "{}/colour"], 2, "makes images of 3 channel(s)"),
        (["--classifier", "{}/large"], 2, "large looks at 32 px"),
        (["--judge", "{}/colour-judge"], 2, "colour-judge takes images of 3 channel(s)"),
        (["--judge", "{}/d"], 2, "d cannot judge: --classes: the classifier does not know 'c'"),
        (["--real", "{}/none"], 2, "--real {}/none holds no shards"),
        (["--threshold", "1.5"], 2, "--threshold"),
        (["--workers", "2", "--out", "memory://x"], 2, "--workers 0 alone"),
        (["--generator", "{}/broken"], 3, "MR-D042"),
    ],
)
def test_mistakes_have_their_exit_code_and_name_the_thing(
    runs, others, tmp_path, capsys, more, code, said
):
    assert run(runs, tmp_path / "out", *(word.format(runs) for word in more)) == code
    text = capsys.readouterr().err
    assert said.format(runs) in text and "Traceback" not in text
    assert not (tmp_path / "out" / "latents.json").exists()


# --- real images ------------------------------------------------------------------------------


def test_real_images_give_the_judges_accuracy_and_their_coverage(runs, tmp_path):
    from dataclasses import replace

    names = {"clear": "a", "opacity": "b", "rare": "c", None: None}
    real = [replace(s, label=names[s.label]) for s in samples(210, "val")]
    write_set(f"{tmp_path}/real", real, name="real", classes=toys.CLASSES, size_px=16)
    assert run(runs, tmp_path / "out", "--real", f"{tmp_path}/real") == 0
    found = summary(tmp_path / "out")["real"]
    assert found["images"] == 210 and set(found["targets"]) == {"a", "c"}
    assert found["targets"]["a"]["judge_recall"]["n"] == sum(s.label == "a" for s in real)
    assert found["balanced"]["n"] == 120
    assert main(arguments(runs, tmp_path / "o", "--real", f"{tmp_path}/real")) == 0
    assert run(runs, tmp_path / "p", "--real", f"{tmp_path}/real", "--real-split", "test") == 2


# --- workers and kills ------------------------------------------------------------------------


@pytest.mark.ray
def test_two_ray_workers_give_the_same_bytes_as_none(made, runs, tmp_path, ray_cluster):
    assert run(runs, tmp_path / "out", "--judge", f"{runs}/j", "--workers", "2") == 0
    assert tree_sha256(tmp_path / "out") == tree_sha256(made)


@pytest.mark.parametrize("kills", [5, pytest.param(trials(20, 200), marks=pytest.mark.chaos)])
def test_searches_killed_at_random_instants_end_with_the_same_bytes(made, runs, tmp_path, kills):
    def nothing_half(out):
        finished = (out / "latents.json").exists()
        assert not finished or tree_sha256(out)["latents.json"] == tree_sha256(made)["latents.json"]

    def same(out):
        assert tree_sha256(out) == tree_sha256(made)

    with Killer(small_search.make) as killer:
        more = {"check": nothing_half, "done": same, "units": "chunks/*", "runs": str(runs)}
        cost = killer.kill_at_random(tmp_path, kills, **more)
    outcomes.record(
        part="latents",
        fault="kill -9 at a random instant",
        trials=cost.kills,
        lost=cost.lost,
        unit="chunks",
        recovered_s=cost.recovered_s,
        wrong=0,
    )
