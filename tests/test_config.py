"""Configuration: precedence, errors, locations."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import Field

from medray.config import Frozen, JobConfig, Location, absolute, digest, parse, to_yaml
from medray.errors import UsageError


class Example(JobConfig):
    """A small configuration."""

    final_px: int = Field(32, ge=4)
    place: Location | None = None
    places: tuple[Location, ...] = ()
    by_px: dict[int, float] = {}


def read(*argv: str) -> Example:
    return parse(Example, argv, prog="test")


def test_a_flag_beats_the_environment_and_that_beats_yaml_and_that_beats_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    yaml = tmp_path / "c.yaml"
    yaml.write_text("final-px: 64\nseed: 1\n")
    assert read().final_px == 32
    assert read("--config", str(yaml)).final_px == 64
    monkeypatch.setenv("MEDRAY_FINAL_PX", "128")
    assert read("--config", str(yaml)).final_px == 128
    assert read("--config", str(yaml), "--final-px", "256").final_px == 256
    assert read("--config", str(yaml)).seed == 1


def test_an_environment_variable_without_the_prefix_has_no_effect(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SEED", "9")
    assert read().seed == 0


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--finl-px", "64"], "did you mean --final-px"),
        (["--final-px", "two"], "--final-px: Input should be a valid integer"),
        (["--final-px", "2"], "got '2'"),
        (["--final-px"], "expected one argument"),
        (["--by-px", "64"], "KEY=VALUE"),
        (["--config", "absent.yaml"], "cannot read the configuration absent.yaml"),
    ],
)
def test_a_mistake_on_the_command_line_is_named(argv: list[str], expected: str) -> None:
    with pytest.raises(UsageError, match=None) as caught:
        read(*argv)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("final_pxx: 64", "did you mean final_px?"), ("- 1", "keys and values"), ("a: [", "not YAML")],
)
def test_a_mistake_in_yaml_is_named_and_an_unknown_key_lists_the_valid_ones(
    tmp_path: Path, text: str, expected: str
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        read("--config", str(path))
    assert expected in str(caught.value)


def test_pairs_lists_and_yaml_round_trip(tmp_path: Path) -> None:
    config = read("--by-px", "4=0.5", "64=1", "--places", "/a", "s3://b/c")
    assert config.by_px == {4: 0.5, 64: 1.0}
    assert config.places == ("/a", "s3://b/c")
    path = tmp_path / "c.yaml"
    path.write_text(to_yaml(config))
    assert read("--config", str(path)) == config


def test_a_relative_path_is_resolved_against_the_submitter_and_refused_in_rays_package_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    cache.mkdir(parents=True)
    monkeypatch.chdir(cache)
    with pytest.raises(UsageError, match="package cache"):
        absolute("runs/a")
    monkeypatch.setenv("MEDRAY_SUBMIT_DIR", "/home/someone")
    assert absolute("runs/a") == "/home/someone/runs/a"
    assert absolute("s3://bucket/x") == "s3://bucket/x"


def test_the_digest_ignores_how_a_run_is_shown_and_notices_what_it_computes() -> None:
    assert digest(read("--verbose")) == digest(read())
    assert digest(read("--seed", "1")) != digest(read())
    assert digest(read("--seed", "1"), leave_out=frozenset({"seed"})) == digest(
        read(), leave_out=frozenset({"seed"})
    )


def test_a_configuration_cannot_be_changed_after_it_was_made() -> None:
    class Small(Frozen):
        a: int = 1

    with pytest.raises(ValueError, match="frozen"):
        Small().a = 2  # type: ignore[misc]
