"""The architecture, kept: who imports whom, where heavy libraries live, sizes, names, YAML."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("medray", "jobs", "serve")
SOURCES = sorted(p for package in PACKAGES for p in (ROOT / package).rglob("*.py"))

BASE = {"errors", "log", "store", "records", "config", "rng", "kernels"}
ONE = {
    "shards",
    "rundir",
    "checkpoints",
    "images",
    "metrics",
    "models",
    "phantoms",
    "report",
    "lineage",
}
MAY_IMPORT = {
    **{name: BASE for name in BASE},
    **{name: BASE | ONE for name in ONE},
    "kernels": {"errors", "rng"},
    "dist": BASE | ONE,
    "pack": BASE | ONE,
    "stream": BASE | ONE,
    "train": BASE | ONE | {"dist", "stream"},
    # An ACGAN may be fitted where it is used: its training is imported when it is.
    "sample": BASE | ONE | {"train"},
    "evaluate": BASE | ONE | {"stream"},
    "archive": BASE | ONE | {"sample", "evaluate"},
    "tune": BASE | ONE | {"dist", "pack", "stream", "train", "sample", "evaluate", "archive"},
    "job": BASE | ONE,
    "doctor": BASE,
    "submit": BASE | {"job"},
    "top": BASE | ONE,
}
HOMES = {
    "ray.train": {"medray/dist"},
    "deepspeed": {"medray/dist"},
    "ray.tune": {"medray/tune"},
    "ray.serve": {"serve"},
    "cupy": {"medray/kernels/_launch.py"},
    "webdataset": {"medray/shards", "medray/stream", "jobs/_bench_stream.py"},
    "pydicom": {"medray/images"},
    "nibabel": {"medray/images"},
    "highdicom": {"medray/images"},
    "sqlalchemy": {"serve/readers"},
}
LONGEST_FUNCTION = 60
LONGEST_FILE = 400
LONGER: dict[str, int] = {}


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _part(path: Path) -> str:
    """What a file of medray/ belongs to; `_run_info.py` goes with the module it was split from."""
    first = path.relative_to(ROOT / "medray").parts[0].removesuffix(".py")
    return SPLIT_FROM.get(first, first)


SPLIT_FROM = {
    "_parts": "store",
    "_remote": "store",
    "_run_entry": "rundir",
    "_run_info": "rundir",
    "_run_log": "rundir",
    "_tensors": "checkpoints",
    "lease": "rundir",
}


def _names(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", SOURCES, ids=_names)
def test_imports_go_down_only(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    for name in _imports(path):
        top, _, rest = name.partition(".")
        if package == "medray":
            assert top not in ("jobs", "serve") or path.name == "cli.py", f"imports {name}"
            part = _part(path)
            other = SPLIT_FROM.get(rest.split(".")[0], rest.split(".")[0])
            if top == "medray" and rest and part not in ("cli", "__init__"):
                allowed = MAY_IMPORT[part] | {part}
                assert (
                    other in allowed
                    or not (ROOT / "medray" / other).exists()
                    and not (ROOT / "medray" / f"{other}.py").exists()
                ), f"medray/{part} imports {name}"
        if package == "jobs":
            assert top != "serve", f"imports {name}"


@pytest.mark.parametrize("path", SOURCES, ids=_names)
def test_heavy_libraries_stay_in_their_homes(path: Path) -> None:
    where = _names(path)
    for name in _imports(path):
        for library, homes in HOMES.items():
            if name == library or name.startswith(library + "."):
                assert any(where.startswith(home) for home in homes), f"{where} imports {name}"


@pytest.mark.parametrize("path", SOURCES, ids=_names)
def test_functions_and_files_stay_short(path: Path) -> None:
    where, text = _names(path), path.read_text()
    assert len(text.splitlines()) <= LONGER.get(where, LONGEST_FILE), f"{where} is too long"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            limit = LONGER.get(f"{where}:{node.name}", LONGEST_FUNCTION)
            assert lines <= limit, f"{where}:{node.name} has {lines} lines"


def test_there_is_no_import_cycle_between_the_modules() -> None:
    modules = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in SOURCES}
    edges = {
        name: {i for i in _top_imports(path) if i in modules} for name, path in modules.items()
    }
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail, name))
        if name not in done:
            for other in edges[name] - {name}:
                visit(other, (*trail, name))
            done.add(name)

    for name in edges:
        visit(name, ())


def _top_imports(path: Path) -> Iterator[str]:
    """Imports that run when the module is imported (not those inside functions)."""
    body = ast.Module(
        [n for n in ast.parse(path.read_text()).body if isinstance(n, ast.Import | ast.ImportFrom)],
        [],
    )
    for node in body.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_no_module_of_jobs_or_serve_has_a_standard_library_name() -> None:
    for path in SOURCES:
        if path.relative_to(ROOT).parts[0] in ("jobs", "serve"):
            assert path.stem not in sys.stdlib_module_names, f"{path} hides a standard module"


def test_importing_medray_imports_no_ray_torch_or_cupy() -> None:
    code = (
        "import sys, medray; sys.exit(bool({'ray', 'torch', 'cupy', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_every_yaml_parses() -> None:
    paths = [p for p in ROOT.rglob("*.y*ml") if not any(q.startswith(".") for q in p.parts[-3:])]
    assert paths
    for path in paths:
        if not {".venv", "runs", "build"} & set(path.relative_to(ROOT).parts):
            list(yaml.safe_load_all(path.read_text()))


BANNED = ("pickle", "torch.load", "eval(", "exec(", "yaml.load(")


@pytest.mark.parametrize("path", SOURCES, ids=_names)
def test_nothing_is_unpickled_or_evaluated(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("eval", "exec", "yaml.load", "torch.load"), f"calls {called}"
            assert not called.startswith(("pickle.", "cloudpickle.", "joblib.load")), called
