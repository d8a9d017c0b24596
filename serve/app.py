"""The application for Ray Serve: `serve run serve.app:app generator=RUN classifier=RUN`.

`app` is a builder: importing this makes nothing. `serve/config.yaml` is for `serve deploy`.
"""

from __future__ import annotations

from typing import Any

from click import ClickException
from pydantic import BaseModel

from medray.errors import UsageError
from serve.settings import Args, parsed

__all__ = ["Args", "app"]


class Refused(ClickException):
    """Settings that cannot be taken: `serve run` says so and ends with 2."""

    exit_code = 2


def app(args: Any) -> Any:
    """The application of settings: `Args`, or what they are made of; a `ray.serve.Application`."""
    from serve.in_process import check_door
    from serve.keys import KeyBook

    try:
        given = args.model_dump() if isinstance(args, BaseModel) else args
        settings = parsed(given)
        check_door(settings, KeyBook.of(settings.keys))
    except UsageError as error:
        raise Refused(str(error)) from None
    from serve.deployments import bound

    return bound(settings)
