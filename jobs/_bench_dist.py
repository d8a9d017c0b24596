"""The rows of `bench.py --suite train` about ranks: Ray Train against torchrun, two against one.

Each side is a group of ranks that is started once and then waits for rounds (a file says go, rank
0 answers with the seconds), so starting processes or Ray is outside the rates; it is reported. A
round is the same training steps of the same network on the same images, one thread per rank.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from medray import log
from medray.dist.context import Context, launch
from medray.errors import ResourceError

ROWS = ("train_vs_torchrun", "workers_2")
FINAL_PX, FMAP_BASE, FMAP_MAX = 64, 2048, 128
# As the presets for 64 px have it.
BATCH_IMAGES = 16
STEPS = 4
# Who waits looks seldom: it takes the time from ranks that use every core, and none is timed by it.
START_TIMEOUT_S, ROUND_TIMEOUT_S, POLL_S = 180.0, 300.0, 0.05
ROOT = Path(__file__).resolve().parents[1]

# Ranks add up the same images in another order, so they agree to rounding.
ORDER = 1e-3

# Starts so many ranks in a folder for a batch.
How = Callable[[Path, int, int], Any]
Case = tuple[str, str, float, Callable[[], float], Callable[[], float], Callable[[], None]]


def rows(rounds: int) -> Iterator[Case]:
    """Both rows: name, against what, target, a timed round of each in steps/s, and the check."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="medray-bench-")))

        def start(name: str, workers: int, how: How) -> Group:
            return stack.enter_context(Group(folder / name, workers, how))

        torchrun = start("torchrun", 2, by_torchrun)
        ray = start("ray", 2, _ray)
        exact = lambda: assert_same(ray, torchrun, 0)  # noqa: E731
        yield "train_vs_torchrun", "torchrun", 0.98, ray, torchrun, exact
        ray.stop()
        one = start("one", 1, by_torchrun)
        nearly = lambda: assert_same(torchrun, one, ORDER)  # noqa: E731
        yield "workers_2", "one worker", 1.8, torchrun, one, nearly


class Group:
    """Ranks that wait in `folder` for rounds; calling it runs one and gives steps/s."""

    def __init__(self, folder: Path, workers: int, how: How, batch: int = BATCH_IMAGES) -> None:
        folder.mkdir()
        self.folder, self.name = folder, folder.name
        self._rounds = 0
        self._start_s = time.monotonic()
        self._thread = threading.Thread(target=how, args=(folder, workers, batch), daemon=True)

    def __enter__(self) -> Group:
        self._thread.start()
        self._wait("ready", START_TIMEOUT_S)
        took_s = time.monotonic() - self._start_s
        log.event("bench.startup", f"{self.name}: ready after {took_s:.1f} s", seconds=took_s)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends the ranks."""
        (self.folder / "stop").touch()
        self._thread.join(ROUND_TIMEOUT_S)

    def __call__(self) -> float:
        """One timed round in steps/s."""
        return STEPS / float(self.round()["seconds"])

    def round(self) -> dict[str, float]:
        """One round: its seconds, and the sum over all weights after it."""
        (self.folder / f"go-{self._rounds}").touch()
        answer = self._wait(f"done-{self._rounds}", ROUND_TIMEOUT_S)
        self._rounds += 1
        result: dict[str, float] = json.loads(answer.read_text())
        return result

    def _wait(self, name: str, timeout_s: float) -> Path:
        deadline = time.monotonic() + timeout_s
        while not (self.folder / name).exists():
            if time.monotonic() > deadline or not self._thread.is_alive():
                raise ResourceError(f"the ranks of {self.name} gave no {name}")
            time.sleep(POLL_S)
        return self.folder / name


def assert_same(ours: Group, other: Group, share: float, *, stop: bool = False) -> None:
    """Asserts that the first round left both with the same weights; it is the warm-up, too.

    `stop` ends the other one, which is not timed.
    """
    a, b = ours.round()["weights"], other.round()["weights"]
    if stop:
        other.stop()
    assert abs(a - b) <= share * abs(b), f"weights sum to {a} and {b}, allowed: {share} apart"


def by_torchrun(folder: Path, workers: int, batch: int) -> None:
    """Starts ranks by torchrun and waits for their end."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(workers), "-m", "jobs._bench_dist", str(folder), str(batch)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run(command, env=environment, check=True, cwd=ROOT)


def _ray(folder: Path, workers: int, batch: int) -> None:
    config = {"folder": str(folder), "batch": batch}
    launch(serve, config, backend="ray", workers=workers, threads_per_rank=1, name="bench")


def serve(context: Context, config: dict[str, Any]) -> None:
    """What every rank does: trains when told to, until told to stop."""
    folder = Path(config["folder"])
    train = _Train(context, int(config["batch"]))
    number = 0
    if context.rank == 0:
        (folder / "ready").touch()
    while not (folder / "stop").exists():
        if (folder / f"go-{number}").exists():
            _answer(context, folder / f"done-{number}", train)
            number += 1
        time.sleep(POLL_S)


def _answer(context: Context, path: Path, train: _Train) -> None:
    context.barrier()
    start_s = time.perf_counter()
    train.steps()
    context.barrier()
    result = {"seconds": time.perf_counter() - start_s, "weights": train.weights()}
    if context.rank == 0:
        part = path.with_suffix(".part")
        part.write_text(json.dumps(result))
        part.rename(path)


class _Train:
    """The progressive GAN at its final resolution on phantoms."""

    def __init__(self, context: Context, batch: int) -> None:
        from medray.train.pggan import Pggan
        from medray.train.pggan_config import PgganConfig

        config = {
            "final_px": FINAL_PX,
            "start_px": FINAL_PX,
            "fmap_base": FMAP_BASE,
            "fmap_max": FMAP_MAX,
            "latent_dims": FMAP_MAX,
            "batch": batch,
            "loss": "wgan-gp",
            "precision": "fp32",
        }
        self._algorithm = Pggan(PgganConfig.model_validate(config), context)
        self._batch = _batch(context, batch)
        self._images = 0

    def steps(self) -> None:
        """One round."""
        for _ in range(STEPS):
            self._algorithm.step(self._batch, self._images)
            self._images += self._algorithm.config.batch

    def weights(self) -> float:
        """The sum of all weights' magnitudes."""
        parameters = self._algorithm.generator.parameters()
        return sum(float(parameter.detach().abs().double().sum()) for parameter in parameters)


def _batch(context: Context, batch: int) -> Any:
    """This rank's part of one batch of phantoms."""
    import numpy as np

    from medray import phantoms
    from medray.records import Batch

    part = batch // context.world
    numbers = range(context.rank * part, (context.rank + 1) * part)
    images = [phantoms.chest(0, number, FINAL_PX).image[None] for number in numbers]
    return Batch(
        keys=tuple(f"train-{number:08d}" for number in numbers),
        images_NCHW=np.ascontiguousarray(np.stack(images)),
        labels_N=np.full(part, -1),
        records=[{} for _ in numbers],
        masks_NHW=None,
        first_index=numbers[0],
    )


if __name__ == "__main__":
    task = {"folder": sys.argv[1], "batch": int(sys.argv[2])}
    launch(serve, task, backend="torchrun", threads_per_rank=1)
