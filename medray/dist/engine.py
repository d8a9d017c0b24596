"""Gradients averaged over the ranks, then Adam: the same five calls for plain torch and DeepSpeed.

zero_grad, backward, send, step, and now and then nonfinite. The torch engine keeps all gradients of
a network in one flat buffer, so that a step is one all-reduce; a parameter that got no gradient
counts as zero on every rank. Optimiser state is gathered into one form ("exp_avg.<name>",
"exp_avg_sq.<name>", "step"), so the engine and the number of ranks may change on resume.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from medray.dist.context import Context
from medray.errors import DataError, UsageError

Named = Sequence[tuple[str, torch.nn.Parameter]]
State = dict[str, torch.Tensor]
MOMENTS = ("exp_avg", "exp_avg_sq")


class Engine(Protocol):
    """What a training step needs of torch or DeepSpeed for one network."""

    def zero_grad(self) -> None:
        """Sets every gradient to zero."""

    def backward(self, loss: torch.Tensor, *, more: bool = False) -> None:
        """Adds the gradients of `loss`; `more`: another loss of the same step follows."""

    def send(self) -> None:
        """Begins to mean the gradients over the ranks, while other networks work (collective).

        It may be left out: `step` does what was not begun.
        """

    def step(self) -> None:
        """Means the gradients over the ranks and takes one Adam step (collective)."""

    def set_lr(self, lr: float) -> None:
        """Sets the learning rate of the next steps."""

    def nonfinite(self) -> str | None:
        """The first parameter that had a non-finite gradient since the last call (collective)."""

    def optimizer_state(self) -> State:
        """Adam's whole state on every rank: exp_avg.NAME, exp_avg_sq.NAME, step (collective)."""

    def load_optimizer_state(self, state: State) -> None:
        """Takes what `optimizer_state` of any engine gave; DataError where it does not fit."""

    def full_parameters(self) -> State:
        """The whole parameters by name, on every rank (collective)."""

    def load_parameters(self, state: State) -> None:
        """Takes what `full_parameters` of any engine gave; DataError where it does not fit."""

    def close(self) -> None:
        """Takes the engine's hooks off the network, which stays usable."""


def make_engine(
    kind: str,
    module: torch.nn.Module,
    parameters: Named,
    context: Context,
    *,
    lr: float,
    betas: tuple[float, float] = (0.0, 0.99),
    eps: float = 1e-8,
    zero_stage: int = 0,
) -> Engine:
    """An engine over `parameters` (names and float parameters of `module`), same on every rank.

    kind is torch or deepspeed; zero_stage is 0 to 3 and needs deepspeed from 1 on. Parameters are
    made equal to rank 0's first. UsageError for what cannot be, ResourceError where DeepSpeed is
    not installed.
    """
    _check(kind, parameters, zero_stage)
    context.broadcast_([parameter.data for _, parameter in parameters])
    if kind == "torch":
        return TorchEngine(parameters, context, lr=lr, betas=betas, eps=eps)
    from medray.dist._deepspeed import DeepSpeedEngine

    return DeepSpeedEngine(
        module, parameters, context, lr=lr, betas=betas, eps=eps, zero_stage=zero_stage
    )


def _check(kind: str, parameters: Named, zero_stage: int) -> None:
    if kind not in ("torch", "deepspeed"):
        raise UsageError(f"engine = {kind!r}, allowed: torch, deepspeed")
    if zero_stage not in range(4):
        raise UsageError(f"zero_stage = {zero_stage}, allowed: 0, 1, 2, 3")
    if kind == "torch" and zero_stage != 0:
        raise UsageError(
            f"zero_stage = {zero_stage} with engine torch, allowed: 0",
            hint="use --engine deepspeed for stages 1 to 3",
        )
    if not parameters:
        raise UsageError("parameters are empty, an engine needs at least one")
    if len({parameter.dtype for _, parameter in parameters}) != 1:
        raise UsageError("parameters of several dtypes, an engine takes one dtype")


class FirstBad:
    """Remembers, without a host sync, which gradients were non-finite in the first bad step."""

    def __init__(self, names: Sequence[str], device: torch.device) -> None:
        self._names = list(names)
        self._bad = torch.zeros(len(names), dtype=torch.bool, device=device)

    def record(self, norms: Sequence[torch.Tensor]) -> None:
        """Takes one norm per parameter; a step after the first bad one changes nothing."""
        bad = ~torch.stack(list(norms)).isfinite()
        self._bad = torch.where(self._bad.any(), self._bad, bad)

    def read(self) -> int | None:
        """The index of the first bad parameter, or None; syncs and forgets."""
        found = self._bad.nonzero().flatten().tolist()
        self._bad = torch.zeros_like(self._bad)
        return int(found[0]) if found else None

    def name(self, index: int) -> str:
        """The name of the parameter with this index."""
        return self._names[index]


class TorchEngine:
    """Plain torch: one flat all-reduce per step, fused Adam."""

    def __init__(
        self,
        parameters: Named,
        context: Context,
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        self._context = context
        self._names = [name for name, _ in parameters]
        self._parameters = [parameter for _, parameter in parameters]
        self._flat, self._views = _flat_views(self._parameters)
        self._first_bad = FirstBad(self._names, self._flat.device)
        self._end_mean: Callable[[], None] | None = None
        self._adam = torch.optim.Adam(self._parameters, lr=lr, betas=betas, eps=eps, fused=True)
        self.zero_grad()

    def zero_grad(self) -> None:
        """Sets every gradient to zero and makes it a view of the flat buffer."""
        self._flat.zero_()
        for parameter, view in zip(self._parameters, self._views, strict=True):
            parameter.grad = view

    def backward(self, loss: torch.Tensor, *, more: bool = False) -> None:
        """Adds the gradients of `loss` into the flat buffer."""
        loss.backward()  # type: ignore[no-untyped-call]

    def send(self) -> None:
        """Sends the flat buffer off to be meaned over the ranks (collective)."""
        self._collect()
        self._end_mean = self._context.start_mean_(self._flat)

    def step(self) -> None:
        """Means the flat buffer over the ranks and takes one Adam step (collective)."""
        if self._end_mean is None:
            self.send()
        assert self._end_mean is not None, "what was sent is under way"
        self._end_mean()
        self._end_mean = None
        # One call for all: on a GPU as many launches would take longer than the work.
        self._first_bad.record(torch._foreach_norm(self._views, float("inf")))
        self._adam.step()

    def _collect(self) -> None:
        # autograd accumulates into the views in place; whatever replaced one is copied back.
        for parameter, view in zip(self._parameters, self._views, strict=True):
            if parameter.grad is not view:
                view.zero_() if parameter.grad is None else view.copy_(parameter.grad)
                parameter.grad = view

    def set_lr(self, lr: float) -> None:
        """Sets the learning rate of the next steps."""
        for group in self._adam.param_groups:
            group["lr"] = lr

    def nonfinite(self) -> str | None:
        """The first parameter with a non-finite mean gradient since the last call; syncs."""
        index = self._first_bad.read()
        return None if index is None else self._first_bad.name(index)

    def optimizer_state(self) -> State:
        """Adam's state by name; tensors are Adam's own, so copy what must outlive the next step."""
        state: State = {"step": torch.tensor(0, dtype=torch.int64)}
        for name, parameter in zip(self._names, self._parameters, strict=True):
            own = self._adam.state.get(parameter, {})
            for moment in MOMENTS:
                state[f"{moment}.{name}"] = own.get(moment, torch.zeros_like(parameter.data))
            state["step"] = torch.tensor(int(own.get("step", 0)), dtype=torch.int64)
        return state

    def load_optimizer_state(self, state: State) -> None:
        """Takes Adam's state by name; DataError where a name or a shape does not fit."""
        check_state(state, dict(zip(self._names, self._parameters, strict=True)), MOMENTS)
        for name, parameter in zip(self._names, self._parameters, strict=True):
            own = self._adam.state[parameter]
            for moment in MOMENTS:
                own[moment] = torch.empty_like(parameter.data).copy_(state[f"{moment}.{name}"])
            own["step"] = torch.tensor(
                float(state["step"]), dtype=torch.float32, device=parameter.device
            )

    def full_parameters(self) -> State:
        """The parameters by name, not copied."""
        pairs = zip(self._names, self._parameters, strict=True)
        return {name: parameter.detach() for name, parameter in pairs}

    def load_parameters(self, state: State) -> None:
        """Copies parameters in by name; DataError where a name or a shape does not fit."""
        own = self.full_parameters()
        check_state(state, own, ("",))
        for name, parameter in own.items():
            parameter.copy_(state[name])

    def close(self) -> None:
        """Frees the gradients."""
        for parameter in self._parameters:
            parameter.grad = None


def _flat_views(parameters: Sequence[torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """One zero buffer for all gradients, and each parameter's view of it, in its strides."""
    first = parameters[0]
    total = sum(parameter.numel() for parameter in parameters)
    flat = torch.zeros(total, dtype=first.dtype, device=first.device)
    views, start = [], 0
    for parameter in parameters:
        dense = torch.empty_like(parameter).stride()
        views.append(flat.as_strided(parameter.shape, dense, start))
        start += parameter.numel()
    return flat, views


def joined(parts: dict[str, State]) -> State:
    """The tensors of all parts, under `part.name`; some are the live ones."""
    return {f"{p}.{n}": t.detach() for p, tensors in parts.items() for n, t in tensors.items()}


def part_of(state: State, prefix: str) -> State:
    """The part that `joined` put under `prefix`."""
    return {n[len(prefix) + 1 :]: t for n, t in state.items() if n.startswith(prefix + ".")}


def check_state(state: State, parameters: State, prefixes: Sequence[str]) -> None:
    """DataError unless `state` has every parameter under every prefix, in the parameter's shape."""
    for prefix in prefixes:
        for name, parameter in parameters.items():
            key = f"{prefix}.{name}" if prefix else name
            if key not in state:
                raise DataError(f"checkpoint lacks {key}", code="MR-D060")
            if state[key].shape != parameter.shape:
                raise DataError(
                    f"{key} has shape {tuple(state[key].shape)} in the checkpoint, "
                    f"{tuple(parameter.shape)} in the network",
                    code="MR-D061",
                    hint="resume with the configuration that the checkpoint was made with",
                )
