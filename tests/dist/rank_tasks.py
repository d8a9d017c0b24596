"""What the ranks of tests/dist do: each function is a worker for `medray.dist.context.launch`."""

from __future__ import annotations

import atexit
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from medray.dist.context import Context
from medray.dist.engine import Engine, State, make_engine
from medray.errors import DataError, MedrayError, Stopped
from tests.dist import small_gan

STEPS = 4
ENGINES = [("torch", 0), ("deepspeed", 0), ("deepspeed", 1), ("deepspeed", 2), ("deepspeed", 3)]


def values(state: State) -> dict[str, Any]:
    """A state as lists, which JSON carries without a change."""
    return {name: tensor.double().tolist() for name, tensor in state.items()}


def summary(engines: tuple[Engine, Engine]) -> dict[str, Any]:
    """Parameters and Adam's state of both networks, gathered."""
    names = ("generator", "discriminator")
    return {
        name: {"weights": values(one.full_parameters()), "adam": values(one.optimizer_state())}
        for name, one in zip(names, engines, strict=True)
    }


def parity(context: Context, config: dict[str, Any]) -> dict[str, Any]:
    """Trains with each engine asked for; says what every rank ended with."""
    dtype = getattr(torch, config["dtype"])
    results = {}
    for kind, stage in config["engines"]:
        _, engines = small_gan.train(context, kind, stage, STEPS, dtype)
        results[f"{kind}-{stage}"] = context.gather(summary(engines))
        for engine in engines:
            engine.close()
    return results


def hand_over(context: Context, config: dict[str, Any]) -> dict[str, Any]:
    """Trains with torch, hands weights and Adam over to each engine in turn, and back to torch."""
    both, engines = small_gan.train(context, "torch", 0, STEPS, torch.float32)
    states = {"start": summary(engines)}
    for number, (kind, stage) in enumerate([*config["engines"], ("torch", 0)]):
        weights = [engine.full_parameters() for engine in engines]
        adam = [engine.optimizer_state() for engine in engines]
        weights = [{k: v.clone() for k, v in state.items()} for state in weights]
        adam = [{k: v.clone() for k, v in state.items()} for state in adam]
        for engine in engines:
            engine.close()
        both = small_gan.networks(torch.float32)
        engines = small_gan.engines_for(kind, stage, both, context)
        for engine, weight, moments in zip(engines, weights, adam, strict=True):
            engine.load_parameters(weight)
            engine.load_optimizer_state(moments)
        states[f"{number}-{kind}-{stage}"] = summary(engines)
    small_gan.step(both, engines, small_gan.draw(context, STEPS, torch.float32))
    states["one more step"] = summary(engines)
    return states


def continued(context: Context, config: dict[str, Any]) -> dict[str, Any]:
    """Takes the state of `config` and trains one step more with one engine."""
    both = small_gan.networks(torch.float32)
    engines = small_gan.engines_for(config["kind"], config["stage"], both, context)
    for engine, name in zip(engines, ("generator", "discriminator"), strict=True):
        state = config["state"][name]
        engine.load_parameters({k: torch.tensor(v) for k, v in state["weights"].items()})
        engine.load_optimizer_state({k: torch.tensor(v) for k, v in state["adam"].items()})
    before = summary(engines)
    small_gan.step(both, engines, small_gan.draw(context, STEPS, torch.float32))
    return {"before": before, "after": summary(engines)}


def faulty(context: Context, config: dict[str, Any]) -> dict[str, Any]:
    """Poisons one gradient on the last rank in one of four steps; says what each rank is told."""
    told = {}
    for kind, stage in config["engines"]:
        network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
        named = list(network.named_parameters())
        engine = make_engine(kind, network, named, context, **small_gan.ADAM, zero_stage=stage)
        for number in range(4):
            bias = network[1].bias
            poison = number == config["bad_step"] and context.rank == context.world - 1
            loss = network(torch.ones(2, 3)).mean()
            engine.zero_grad()
            engine.backward(loss + (bias.sum() * float("inf") if poison else 0.0))
            engine.step()
        told[f"{kind}-{stage}"] = context.gather([engine.nonfinite(), engine.nonfinite()])
        engine.close()
    return told


def faulty_pieces(context: Context, config: dict[str, Any]) -> dict[str, Any]:
    """Poisons one gradient in the first of a step's two pieces; says what each rank is told."""
    told = {}
    for kind, stage in config["engines"]:
        network = torch.nn.Linear(3, 2)
        named = list(network.named_parameters())
        engine = make_engine(kind, network, named, context, **small_gan.ADAM, zero_stage=stage)
        for poison in (float("nan"), 0.0):
            loss = network(torch.ones(2, 3)).mean()
            engine.zero_grad()
            engine.backward(loss + network.bias.sum() * poison, more=True)
            engine.backward(network(torch.ones(2, 3)).mean())
            engine.step()
        told[f"{kind}-{stage}"] = context.gather([engine.nonfinite(), engine.nonfinite()])
        engine.close()
    return told


def lopsided(context: Context, config: dict[str, Any]) -> dict[str, Any]:
    """One step in which a parameter has a gradient on rank 0 alone, and one has none at all.

    Stage 2 cannot do the first; it is asked whether it says so.
    """
    moments: dict[str, Any] = {}
    for kind, stage in config["engines"]:
        network = torch.nn.ParameterDict(
            {name: torch.nn.Parameter(torch.ones(3)) for name in ("both", "first", "none")}
        )
        named = list(network.named_parameters())
        engine = make_engine(kind, network, named, context, **small_gan.ADAM, zero_stage=stage)
        loss = network["both"].sum() * 2.0
        if context.rank == 0:
            loss = loss + network["first"].sum() * 4.0
        engine.zero_grad()
        engine.backward(loss)
        engine.step()
        moments[f"{kind}-{stage}"] = context.gather(values(engine.optimizer_state()))
        try:
            moments[f"{kind}-{stage} says"] = engine.nonfinite()
        except MedrayError as error:
            moments[f"{kind}-{stage} says"] = error.message
        engine.close()
    return moments


def grow(context: Context, config: dict[str, Any]) -> dict[str, Any]:
    """Closes an engine over some parameters and opens one over all, on the same network."""
    weights = {}
    for kind, stage in config["engines"]:
        both, engines = small_gan.train(context, kind, stage, 2, torch.float32)
        for engine in engines:
            engine.close()
        network = both[0]
        named = list(network.named_parameters())
        engine = make_engine(kind, network, named, context, **small_gan.ADAM, zero_stage=stage)
        for number in range(2):
            _, z_NL = small_gan.draw(context, number, torch.float32)
            maps = network.first(z_NL).view(-1, 4, small_gan.SIZE_PX, small_gan.SIZE_PX)
            engine.zero_grad()
            engine.backward((network.later(maps) + network(z_NL)).square().mean())
            engine.step()
        weights[f"{kind}-{stage}"] = values(engine.full_parameters())
        engine.close()
    return weights


def everything(context: Context, config: dict[str, Any]) -> dict[str, Any]:
    """All tasks of the engine tests in one launch, because each launch costs seconds."""
    plain = {"engines": [pair for pair in ENGINES if pair[1] < 3], "bad_step": 1}
    return {
        "float32": parity(context, {"engines": ENGINES, "dtype": "float32"}),
        "float64": parity(context, {"engines": [("torch", 0)], "dtype": "float64"}),
        "hand_over": hand_over(context, {"engines": ENGINES}),
        "grow": grow(context, {"engines": ENGINES}),
        "faulty": faulty(context, plain),
        "faulty pieces": faulty_pieces(context, plain),
        "lopsided": lopsided(context, plain),
    }


class _AbortsAtTeardown:
    """Ends the process the way gloo's threads do when the interpreter is taken down under them."""

    def __del__(self, abort: Callable[[], Any] = os.abort) -> None:
        abort()


LEFT_BEHIND: list[_AbortsAtTeardown] = []


def leave_something_behind(context: Context, config: dict[str, Any]) -> str:
    """Returns with an object that aborts a process whose interpreter is taken down."""
    atexit.register((Path(config["folder"]) / f"ended-{context.rank}").touch)
    LEFT_BEHIND.append(_AbortsAtTeardown())
    return "done"


def about(context: Context, config: dict[str, Any]) -> dict[str, Any]:
    """Who and where each rank is, and what the collectives give."""
    tensors = [torch.full((2,), float(context.rank)), torch.full((3,), context.rank)]
    context.broadcast_(tensors)
    context.barrier()
    return {
        "ranks": context.gather([context.rank, context.world, context.local_rank]),
        "threads": torch.get_num_threads(),
        "broadcast": [tensor.tolist() for tensor in tensors],
        "mean": context.all_reduce_mean_(torch.tensor([float(context.rank)])).tolist(),
        "any": [context.any(context.rank == 1), context.any(False)],
        "config": config,
    }


def fail(context: Context, config: dict[str, Any]) -> None:
    """The last rank raises while the others wait for it in a collective."""
    Path(config["folder"], f"start-{time.time_ns()}-{context.rank}").touch()
    if context.rank == context.world - 1:
        if config["kind"] == "typed":
            raise DataError(
                "shard is short", code="MR-D042", where="train-0.tar", hint="pack again"
            )
        raise KeyError("surprise")
    context.barrier()


def killed_once(context: Context, config: dict[str, Any]) -> Any:
    """Trains; rank 0 of the first attempt is killed in the middle."""
    marker = Path(config["folder"], "killed")
    if context.rank == 0 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    _, engines = small_gan.train(context, "torch", 0, STEPS, torch.float32)
    return summary(engines)


def until_stopped(context: Context, config: dict[str, Any]) -> None:
    """Steps until a stop is agreed on; one rank may send itself SIGTERM."""
    Path(config["folder"], f"pid-{context.rank}").write_text(str(os.getpid()))
    if config.get("own_sigterm") and context.rank == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        reason = context.agree_to_stop()
        if reason:
            Path(config["folder"], f"stopped-{context.rank}").write_text(reason)
            raise Stopped(f"stopped: {reason}")
        time.sleep(0.05)
    raise AssertionError("no stop within a minute")
