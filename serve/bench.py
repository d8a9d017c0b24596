"""Rows of the benchmark's suite `serve`, each a process that waits for words on its standard input.

`python -m serve.bench ROW [ROUNDS]`: answers `check`, `ours`, `other` with a line of JSON each,
until its input ends. Client, service and what it is compared with share this machine's cores.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

from serve import bench_faults
from serve.bench_rigs import (
    BODY_BYTES,
    CLIENTS,
    SECONDS,
    SLOW_S,
    Access,
    Case,
    ask_classes,
    ask_images,
    free_port,
    load,
    make_classifier,
    make_generator,
    only,
    ray_serve,
)
from serve.settings import Args, parsed

SHAPES = (1, 2, 4, 8, 16, 32)
BARE_S = 1.0


def plain_deployment(args: Args) -> Any:
    """The same application as Ray Serve's documentation has it: an ingress behind Serve's proxy."""
    from ray import serve

    settings = args.model_dump(mode="json")

    def application() -> Any:
        from serve import gate
        from serve.in_process import InProcess

        return gate.front(InProcess(Args.model_validate(settings)))

    made = serve.ingress(application)()
    return serve.deployment(
        made, name="Plain", max_ongoing_requests=1000, ray_actor_options={"num_cpus": 0}
    ).bind()


@contextlib.contextmanager
def noop(haproxy: bool = False) -> Iterator[Case]:
    """An authenticated POST of 1 KB through all checks: own door against Serve's proxy."""
    if haproxy:
        os.environ["RAY_SERVE_ENABLE_HA_PROXY"] = "1"
    with tempfile.TemporaryDirectory(prefix="medray-bench-") as folder:
        access = Access.new(folder)
        # HAProxy's port is Ray's own choice, in a network of its own.
        proxy_port = 8000 if haproxy else free_port()
        common = {"keys": access.path, "state_dir": folder}
        ours = parsed({**common, "port": free_port()})
        plain = parsed({**common, "door": False})
        with ray_serve(proxy_port) as serve:
            from serve.app import app

            serve.run(app(ours), name="ours", route_prefix="/ours")
            serve.run(plain_deployment(plain), name="plain", route_prefix="/")

            def asked(port: int, seconds: float = SECONDS) -> dict[str, Any]:
                return load(
                    port=port, key=access.token, body_bytes=BODY_BYTES, clients=CLIENTS,
                    seconds=seconds,
                )  # fmt: skip

            def check() -> None:
                for port in (ours.port, proxy_port):
                    only(asked(port, 1.0), 200)
                    wrong = load(
                        port=port, key="mrk_wrong", body_bytes=8, clients=1, seconds=0.3, expect=401
                    )
                    only(wrong, 401)

            yield Case(
                check,
                lambda: float(only(asked(ours.port), 200)["per_s"]),
                lambda: float(only(asked(proxy_port), 200)["per_s"]),
            )


def rate(work: Callable[[], int], seconds: float = BARE_S) -> float:
    """Units per second of work that says how many it did."""
    work()
    begun_s, units = time.perf_counter(), 0
    while (spent_s := time.perf_counter() - begun_s) < seconds:
        units += work()
    return units / spent_s


def generator_rate(url: str, batch: int) -> float:
    """Images per second of the bare generator at a batch."""
    import numpy as np

    from medray.models.weights import load_generator
    from medray.sample.images import Renderer

    renderer = Renderer(*load_generator(url), batch=batch)
    latents_ND = np.random.default_rng(0).standard_normal((batch, renderer.dims), np.float32)
    return rate(lambda: len(renderer.unrounded(latents_ND)))


def classifier_rate(url: str, batch: int) -> float:
    """Images per second of the bare classifier at a batch."""
    import torch

    from medray.models.weights import load_classifier

    network, _ = load_classifier(url)
    images_NCHW = torch.zeros(batch, 1, network.size_px, network.size_px)

    def work() -> int:
        with torch.inference_mode():
            return len(network(images_NCHW))

    torch.set_num_threads(1)
    return rate(work)


def bare_gain(rate_of: Callable[[str, int], float], url: str) -> float:
    """What a network gains by its best batch over one image at a time."""
    rates = {batch: rate_of(url, batch) for batch in SHAPES}
    print(f"bare: {rates}", file=sys.stderr, flush=True)
    return max(rates.values()) / rates[1]


@contextlib.contextmanager
def two_services(
    folder: str, one: dict[str, Any], **models: str
) -> Iterator[tuple[Access, Args, Args]]:
    """The same service with batches and, by the settings `one`, without, both on Ray Serve."""
    access = Access.new(folder)
    common = {**models, "keys": access.path, "replica_cpus": 0, "queue_images": 4096}
    batched = parsed({**common, "port": free_port(), "state_dir": f"{folder}/batched"})
    single = parsed(
        {**common, "window_ms": 0, **one, "port": free_port(), "state_dir": f"{folder}/single"}
    )
    with ray_serve(free_port()) as serve:
        from serve.app import app

        serve.run(app(batched), name="batched", route_prefix="/batched")
        serve.run(app(single), name="single", route_prefix="/single")
        yield access, batched, single


@contextlib.contextmanager
def generate(px: int, against_bare: bool) -> Iterator[Case]:
    """One image a request from many clients, with batches and without.

    Without: every image has a pass of its own, at the render shape, which makes the same bytes; or,
    `against_bare`, of a batch of one, which is quicker and makes others.
    """
    one = {"batch": 1} if against_bare else {"join": 1}
    with tempfile.TemporaryDirectory(prefix="medray-bench-") as folder:
        url = make_generator(folder, px)
        with two_services(folder, one, generator=url) as (access, batched, single):

            def per_s(args: Args) -> float:
                return float(only(ask_images(args, access, seconds=SLOW_S), 200)["per_s"])

            def check() -> None:
                for args in (batched, single):
                    only(ask_images(args, access, clients=2), 200)

            if against_bare:
                ours = lambda: per_s(batched) / per_s(single)  # noqa: E731
                yield Case(check, ours, lambda: bare_gain(generator_rate, url))
            else:
                yield Case(check, lambda: per_s(batched), lambda: per_s(single))


@contextlib.contextmanager
def latency(px: int) -> Iterator[Case]:
    """The slowest of a hundred answers with 32 callers, against two batches' time and the window.

    A caller waits for the batch under way and for its own. The time of a batch is that of a request
    for one batch of images, with nobody else there.
    """
    with tempfile.TemporaryDirectory(prefix="medray-bench-") as folder:
        url = make_generator(folder, px)
        with bench_faults.service(folder, generator=url, queue_images=4096) as (access, args):

            def batch() -> float:
                body = f'{{"n": {args.batch}, "seed": 7, "start": {{n}}}}'
                told = load(
                    port=args.port, key=access.token, path="/v1/images/generations",
                    numbered=True, body=body, clients=1, seconds=SECONDS,
                )  # fmt: skip
                return 2 * float(only(told, 200)["p50_ms"]) + args.window_ms

            def many() -> float:
                return float(only(ask_images(args, access, seconds=SLOW_S), 200)["p99_ms"])

            yield Case(lambda: None, many, batch)


@contextlib.contextmanager
def classify(px: int) -> Iterator[Case]:
    """One small PNG a request from many clients, with batches and without."""
    import numpy as np

    from medray.images.png import encode_png

    with tempfile.TemporaryDirectory(prefix="medray-bench-") as folder:
        url = make_classifier(folder, px)
        body = encode_png(np.random.default_rng(0).integers(0, 255, (px, px), np.uint8)).hex()
        with two_services(folder, {"join": 1}, classifier=url) as (access, batched, single):

            def per_s(args: Args) -> float:
                return float(only(ask_classes(args, access, body), 200)["per_s"])

            def check() -> None:
                for args in (batched, single):
                    per_s(args)

            ours = lambda: per_s(batched) / per_s(single)  # noqa: E731
            yield Case(check, ours, lambda: bare_gain(classifier_rate, url))


ROWS: dict[str, Callable[[int], contextlib.AbstractContextManager[Case]]] = {
    "noop_default": lambda _: noop(),
    "noop_haproxy": lambda _: noop(haproxy=True),
    "generate_32": lambda _: generate(32, against_bare=False),
    "latency_32": lambda _: latency(32),
    "generate_64": lambda _: generate(64, against_bare=True),
    "classify_128": lambda _: classify(128),
    "overload": bench_faults.overload,
    "replica_killed": bench_faults.replica_killed,
    "soak": bench_faults.soak,
}


def main(argv: list[str] | None = None) -> int:
    """Sets up the row and answers until the input ends."""
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] not in ROWS:
        print(f"usage: python -m serve.bench {{{','.join(ROWS)}}} [ROUNDS]", file=sys.stderr)
        return 2
    with ROWS[words[0]](int(words[1]) if len(words) > 1 else 1) as case:
        _tell("ready")
        for line in sys.stdin:
            try:
                if line.strip() == "check":
                    case.check()
                    _tell("ok")
                else:
                    _tell({"ours": case.ours, "other": case.other}[line.strip()]())
            except AssertionError as error:
                _tell({"failed": str(error)})
    return 0


def _tell(what: Any) -> None:
    print("bench: " + json.dumps(what), flush=True)


if __name__ == "__main__":
    sys.exit(main())
