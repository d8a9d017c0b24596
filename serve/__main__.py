"""`python -m serve generator=RUN classifier=RUN`: the service in one process, without Ray.

The same KEY=VALUE as `serve run serve.app:app` takes. SIGTERM: no new connections, what is under
way is answered, then the end.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence

from medray import log
from medray.errors import MedrayError, UsageError
from serve.problems import Problem
from serve.settings import Args, parsed


def settings(words: Sequence[str]) -> Args:
    """The settings of KEY=VALUE words; UsageError says what is wrong."""
    given = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise UsageError(f"given: {word!r}; allowed: KEY=VALUE")
        given[key] = value
    return parsed(given)


def main(argv: Sequence[str] | None = None) -> int:
    """Serves until SIGTERM or SIGINT."""
    words = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & set(words):
        print(__doc__)
        for name, field in Args.model_fields.items():
            print(f"  {name}={field.default!r:24} {field.description}")
        return 0
    try:
        return _serve(settings(words))
    except MedrayError as error:
        log.error("failed", str(error), exit_code=error.exit_code)
        return error.exit_code
    except Problem as problem:
        log.error("failed", problem.text, exit_code=UsageError.exit_code)
        return UsageError.exit_code


def _serve(args: Args) -> int:
    from serve import door, gate
    from serve.in_process import InProcess

    door.check_port(args)
    services = InProcess(args)
    front = gate.front(services)
    socket = door.bound(args.host, args.port)
    host, port = socket.getsockname()[:2]

    def opened() -> None:
        log.event("listening", f"http://{host}:{port}{args.root_path}", port=port)

    server = door.server(front, args, opened)
    for number in (signal.SIGTERM, signal.SIGINT):
        # uvicorn drains at a signal, and raises it again when that is done: then it is over.
        signal.signal(number, lambda *_: None)
    try:
        server.run([socket])
    finally:
        socket.close()
        # uvicorn leaves by SystemExit where a start failed.
        if front.failure is not None:
            raise front.failure
    return 0


if __name__ == "__main__":
    sys.exit(main())
