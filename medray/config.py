"""Configuration: frozen pydantic models <-> YAML <-> command line. An unknown key is an error.

Precedence: flag, environment (MEDRAY_<FIELD>), YAML (--config), default. Only argparse and pydantic
are imported here, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import os
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from medray._remote import refuse_password
from medray.errors import UsageError

ENVIRONMENT_PREFIX = "MEDRAY_"
SUBMIT_DIR = "MEDRAY_SUBMIT_DIR"

_IS_LOCATION = object()
# A path or URL. A relative path is resolved against the folder that the command was given in.
Location = Annotated[str, _IS_LOCATION]


class Frozen(BaseModel):
    """A configuration: immutable, checked, and strict about its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class JobConfig(Frozen):
    """What every job takes."""

    seed: int = Field(0, ge=0, lt=2**63, description="every random number is a function of it")
    dry_run: bool = Field(
        False, description="print what would be done, and what it takes; do nothing"
    )
    json_lines: bool = Field(
        False, description="log one JSON object per event", json_schema_extra={"flag": "--json"}
    )
    quiet: bool = Field(
        False, description="warnings and errors only", json_schema_extra={"short": "-q"}
    )
    verbose: bool = Field(False, description="details too", json_schema_extra={"short": "-v"})
    debug: bool = Field(False, description="show tracebacks")


# How a command is run, not what it computes: these never make a run another run.
OPERATIONAL = frozenset(
    "dry_run json_lines quiet verbose debug run_dir out resume overwrite init_from".split()
)

C = TypeVar("C", bound=Frozen)


def parse(cls: type[C], argv: Sequence[str], *, prog: str, description: str = "") -> C:
    """The configuration that flags, environment and YAML give; UsageError says what is wrong."""
    flags = vars(_parser(cls, prog, description).parse_args(list(argv)))
    path = flags.pop("config", None)
    from_yaml, from_environment = _from_yaml(cls, path) if path else {}, _from_environment(cls)
    layers = {**from_yaml, **from_environment, **flags}
    origins = {name: f"{path}: {name}" for name in from_yaml}
    origins |= {name: f"${ENVIRONMENT_PREFIX}{name.upper()}" for name in from_environment}
    origins |= {name: _flag(name, cls.model_fields[name]) for name in flags}
    try:
        return cls.model_validate(_resolved(cls, layers))
    except ValidationError as error:
        raise UsageError(_explain(error, origins)) from None


def _resolved(cls: type[Frozen], given: dict[str, Any]) -> dict[str, Any]:
    """Relative locations made absolute, one word made a list of one where a list is wanted."""
    resolved = dict(given)
    for name in given:
        info, value = cls.model_fields[name], given[name]
        if isinstance(value, str) and typing.get_origin(_plain_type(info.annotation)) is tuple:
            value = [value]
        if _is_location(info) and isinstance(value, str):
            # A field may take a few words that are no places.
            value = value if value in _extra(info).get("words", ()) else absolute(value)
        elif _is_location(info) and isinstance(value, list | tuple):
            value = [absolute(v) if isinstance(v, str) else v for v in value]
        resolved[name] = value
    return resolved


def _is_location(info: FieldInfo) -> bool:
    if _IS_LOCATION in info.metadata:
        return True
    return any(
        _IS_LOCATION in typing.get_args(part)
        for part in (info.annotation, *typing.get_args(info.annotation))
    )


def absolute(location: str) -> str:
    """`location` as a URL or an absolute path; UsageError for a URL with a password.

    Inside Ray's package cache a relative path would be lost with the job, so there it is refused
    unless MEDRAY_SUBMIT_DIR says where the command was given.
    """
    if "://" in location or os.path.isabs(location):
        refuse_password(location)
        return location
    base = os.environ.get(SUBMIT_DIR)
    if base is None:
        base = os.getcwd()
        if "working_dir_files" in Path(base).parts:
            raise UsageError(
                f"the relative path {location!r} would be lost inside Ray's package cache",
                hint=f"give an absolute path, or set {SUBMIT_DIR} in the job's environment "
                f"(as `medray submit` does), for example /home/you/project/{location}",
            )
    return os.path.normpath(os.path.join(base, os.path.expanduser(location)))


# --- YAML and environment ---------------------------------------------------------------------


def _from_yaml(cls: type[Frozen], path: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(Path(absolute(path)).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read the configuration {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UsageError(f"{path} must hold keys and values, got {type(content).__name__}")
    fields = {str(key).replace("-", "_"): value for key, value in content.items()}
    for key in fields:
        if key not in cls.model_fields:
            raise UsageError(f"{path}: unknown key {key!r}{_nearest(key, cls.model_fields)}")
    return fields


def _from_environment(cls: type[Frozen]) -> dict[str, str]:
    names = {name: ENVIRONMENT_PREFIX + name.upper() for name in cls.model_fields}
    return {name: os.environ[key] for name, key in names.items() if key in os.environ}


def to_yaml(config: Frozen) -> str:
    """The resolved configuration as YAML, in the order of its fields."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def identity(config: Frozen, *, leave_out: frozenset[str] = frozenset()) -> dict[str, Any]:
    """The fields that decide the result: all but the operational ones and those in `leave_out`."""
    skip = OPERATIONAL | leave_out
    return {k: v for k, v in config.model_dump(mode="json").items() if k not in skip}


def digest(config: Frozen, *, leave_out: frozenset[str] = frozenset()) -> str:
    """SHA-256 of `identity(config)`."""
    text = yaml.safe_dump(identity(config, leave_out=leave_out), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def taken(config: C, values: dict[str, Any], where: str) -> C:
    """`config` with `values` that a file named `where` holds; UsageError says what is wrong."""
    try:
        return type(config).model_validate({**config.model_dump(), **values})
    except ValidationError as error:
        origins = {name: f"{where}: {name}" for name in values}
        raise UsageError(_explain(error, origins)) from None


# --- errors -----------------------------------------------------------------------------------


def _nearest(given: str, valid: typing.Iterable[str]) -> str:
    names = list(valid)
    close = difflib.get_close_matches(given, names, n=1)
    meant = f" (did you mean {close[0]}?)" if close else ""
    return f"{meant}; valid are: {', '.join(names)}"


def _explain(error: ValidationError, origins: dict[str, str]) -> str:
    """Every problem with where its value came from: a flag, $MEDRAY_..., or a key of the YAML."""
    lines = []
    for problem in error.errors(include_url=False):
        message = problem["msg"].removeprefix("Value error, ")
        if problem["loc"]:
            first, *inner = (str(part) for part in problem["loc"])
            origin = origins.get(first, "--" + first.replace("_", "-"))
            given = "" if problem["type"] == "missing" else f", got {problem['input']!r}"
            message = f"{'.'.join([origin, *inner])}: {message}{given}"
        lines.append(message)
    return "\n".join(lines)


# --- command line -----------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog}: {message}", hint=f"{self.prog} --help lists every flag")

    def parse_args(self, args: Any = None, namespace: Any = None) -> argparse.Namespace:  # type: ignore[override]
        known, unknown = self.parse_known_args(args, namespace)
        if unknown:
            flags = [option for action in self._actions for option in action.option_strings]
            nearest = _nearest(unknown[0].split("=")[0], flags)
            raise UsageError(f"{self.prog}: unknown argument {unknown[0]!r}{nearest}")
        assert isinstance(known, argparse.Namespace)
        return known


def _parser(cls: type[Frozen], prog: str, description: str) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=prog,
        description=description,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML with the same keys as the flags")
    for name, info in cls.model_fields.items():
        _add_flag(parser, name, info)
    return parser


def _extra(info: FieldInfo) -> dict[str, Any]:
    return info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}


def _flag(name: str, info: FieldInfo) -> str:
    return str(_extra(info).get("flag", "--" + name.replace("_", "-")))


def _add_flag(parser: argparse.ArgumentParser, name: str, info: FieldInfo) -> None:
    extra = _extra(info)
    names = [_flag(name, info)]
    if "short" in extra:
        names.insert(0, str(extra["short"]))
    kind = _plain_type(info.annotation)
    default = "" if info.is_required() else f" (default: {_shown(info)})"
    options: dict[str, Any] = {"dest": name, "help": f"{info.description or ''}{default}".strip()}
    options["help"] = options["help"].replace("%", "%%")
    if kind is bool:
        options["action"] = argparse.BooleanOptionalAction
    elif typing.get_origin(kind) in (list, tuple):
        options |= {"nargs": "+", "metavar": extra.get("metavar", "VALUE")}
    elif typing.get_origin(kind) is dict:
        options |= {"nargs": "+", "metavar": "KEY=VALUE", "action": _Pairs}
    elif typing.get_origin(kind) is typing.Literal:
        options["metavar"] = "|".join(str(choice) for choice in typing.get_args(kind))
    else:
        fallback = {int: "N", float: "X"}.get(kind, "TEXT") if isinstance(kind, type) else "TEXT"
        options["metavar"] = extra.get("metavar", fallback)
    parser.add_argument(*names, **options)


class _Pairs(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        pairs = [value.partition("=") for value in values]
        if not all(separator for _, separator, _ in pairs):
            raise UsageError(f"{option_string}: give KEY=VALUE pairs, got {' '.join(values)}")
        setattr(namespace, self.dest, {key: value for key, _, value in pairs})


def _plain_type(annotation: Any) -> Any:
    """The type behind Optional and Annotated."""
    while True:
        origin = typing.get_origin(annotation)
        if origin is Annotated:
            annotation = typing.get_args(annotation)[0]
        elif origin in (typing.Union, types.UnionType):
            kinds = [part for part in typing.get_args(annotation) if part is not type(None)]
            if len(kinds) > 1:
                return str
            annotation = kinds[0]
        else:
            return annotation


def _shown(info: FieldInfo) -> str:
    default = info.get_default(call_default_factory=True)
    if default is None or default == () or default == {}:
        return "none"
    return " ".join(map(str, default)) if isinstance(default, tuple | list) else str(default)
