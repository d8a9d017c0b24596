"""DeepSpeed ZeRO 0 to 3 behind the four calls of `engine.Engine`.

What DeepSpeed does unasked is turned off: the clipping of gradients at 1.0, and the compilation of
a shared-memory collective (minutes, and a compiler) where gloo does. Forward passes go through the
network itself, never through DeepSpeed's wrapper, whose hooks do not know second derivatives. At
stages 1 and 2 Adam's state does not exist before a step, so one step with zero gradients is taken
first. What is set is read back and compared. Stage 3 is for a network without a gradient penalty.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterable
from typing import Any

import torch

from medray.dist import engine
from medray.dist.context import Context
from medray.errors import MedrayError, ResourceError, UsageError


def load_deepspeed(context: Context) -> Any:
    """The deepspeed module, quiet and joined to the ranks' group; ResourceError without it."""
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if context.device.type == "cuda" else "cpu")
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "error")
    # DeepSpeed uses a collective that newer versions of torch have renamed.
    warnings.filterwarnings(
        "ignore", message=".*all_gather_into_tensor.*|.*reduce_scatter_tensor.*"
    )
    try:
        import deepspeed
    except ImportError as error:
        raise ResourceError(
            f"engine deepspeed: {error}",
            hint="pip install 'medray[deepspeed]', or use --engine torch",
        ) from error
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    context.ensure_group()
    # DeepSpeed insists on the variable even where the group exists.
    os.environ.setdefault("LOCAL_RANK", str(context.local_rank))
    backend = "nccl" if context.device.type == "cuda" else "gloo"
    deepspeed.init_distributed(dist_backend=backend, verbose=False)
    return deepspeed


def config_of(zero_stage: int, parameters: int) -> dict[str, Any]:
    """DeepSpeed's configuration: one micro-batch a step, float32, no clipping, no printing."""
    zero: dict[str, Any] = {"stage": zero_stage}
    if zero_stage == 3:
        # Weights of any size are partitioned; gathered ones are freed at once.
        zero |= {"stage3_param_persistence_threshold": 0, "stage3_max_reuse_distance": 0}
    else:
        zero |= {"reduce_bucket_size": max(parameters, 1), "overlap_comm": False}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**12,
    }


class TouchAll(torch.autograd.Function):
    """The loss unchanged, with a zero gradient for every parameter.

    DeepSpeed reduces a gradient when it arrives: one that arrives on some ranks alone would leave
    the others waiting.
    """

    @staticmethod
    def forward(ctx: Any, loss: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        """Returns a copy of `loss`, which now hangs on every parameter."""
        ctx.shapes = [parameter.shape for parameter in parameters]
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The loss's own gradient, and zeros."""
        # Not one zero expanded: autograd adds the real gradients into these in place.
        return grads[0], *(grads[0].new_zeros(shape) for shape in ctx.shapes)


class DeepSpeedEngine:
    """One network under one DeepSpeed engine at ZeRO stage 0 to 3."""

    def __init__(
        self,
        module: torch.nn.Module,
        parameters: engine.Named,
        context: Context,
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        zero_stage: int,
    ) -> None:
        if parameters[0][1].dtype != torch.float32:
            raise UsageError(
                f"parameters of {parameters[0][1].dtype} with engine deepspeed, allowed: float32"
            )
        deepspeed = load_deepspeed(context)
        self._context, self._stage = context, zero_stage
        self._named = dict(parameters)
        # At stage 3 a parameter outside its own forward is empty.
        self._shapes = {name: torch.empty_like(p, device="meta") for name, p in parameters}
        adam = torch.optim.Adam(self._named.values(), lr=lr, betas=betas, eps=eps, fused=True)
        count = sum(parameter.numel() for parameter in self._named.values())
        self._owners = owners(module, self._named.values())
        # At stage 3 DeepSpeed empties all that it is given: parameters of levels to come stay out.
        model = torch.nn.ModuleList(self._owners) if zero_stage == 3 else module
        self._engine, *_ = deepspeed.initialize(
            model=model, optimizer=adam, config=config_of(zero_stage, count)
        )
        self._first_bad = engine.FirstBad(list(self._named), context.device)
        self._norms = [torch.zeros((), device=context.device) for _ in self._named]
        self._arrivals = 0
        self._hooks = [
            parameter.register_hook(self._noting(index))  # type: ignore[no-untyped-call]
            for index, parameter in enumerate(self._named.values())
        ]
        if zero_stage < 3:
            self._throw_away_step(lr)
        else:
            self._allocate()
            self._hooks.append(module.register_forward_pre_hook(self._gather_weights))

    def _noting(self, index: int) -> Any:
        def note(grad: torch.Tensor) -> None:
            self._arrivals = hash((self._arrivals, index))
            norm = torch.linalg.vector_norm(grad, float("inf"))
            # Not the last one's alone: a step may have several backward passes.
            self._norms[index] = torch.maximum(self._norms[index], norm)

        return note

    def _throw_away_step(self, lr: float) -> None:
        """A step with zero gradients, which makes Adam's state and moves nothing."""
        self.set_lr(0.0)
        self.zero_grad()
        self.backward(torch.zeros((), device=self._context.device))
        self.step()
        self._set_step(0)
        self.set_lr(lr)

    def _gather_weights(self, *_: Any) -> None:
        """Stage 3, before a forward pass: the weights of all layers, whole.

        DeepSpeed gathers a layer's weights when the layer is called, which misses those that the
        network reads off a layer itself; it lets go of each layer's after its call.
        """
        self._engine.optimizer.parameter_offload.get_param_coordinator().reset_step()
        parted = [p for p in self._named.values() if p.numel() == 0]
        if parted:
            vars(parted[0])["all_gather"](param_list=parted)

    def _part_weights(self) -> None:
        """Stage 3, before a step: lets go of weights that no layer's call has used or let go of."""
        used = [(p, vars(p)["ds_active_sub_modules"]) for p in self._named.values()]
        whole = [parameter for parameter, layers in used if parameter.numel() > 0 and not layers]
        if whole:
            vars(whole[0])["partition"](param_list=whole)

    def _allocate(self) -> None:
        """Adam's state before the first step of stage 3, where gradients need a forward pass."""
        for flat in self._engine.optimizer.fp32_partitioned_groups_flat:
            self._adam.state[flat] = {
                "step": torch.tensor(0.0),
                **{moment: torch.zeros_like(flat.data) for moment in engine.MOMENTS},
            }

    @property
    def _adam(self) -> torch.optim.Optimizer:
        """torch's own Adam, inside DeepSpeed's optimiser from stage 1 on."""
        outer = self._engine.optimizer
        return outer if self._stage == 0 else outer.optimizer  # type: ignore[no-any-return]

    def zero_grad(self) -> None:
        """Sets every gradient to zero."""
        self._engine.optimizer.zero_grad()

    def backward(self, loss: torch.Tensor, *, more: bool = False) -> None:
        """Adds the gradients of `loss`; means them over the ranks once no more follow."""
        if self._stage < 3:
            loss = TouchAll.apply(loss, *self._named.values())  # type: ignore[no-untyped-call]
        self._engine.set_gradient_accumulation_boundary(not more)
        self._engine.backward(loss)

    def send(self) -> None:
        """Nothing: DeepSpeed sends gradients as they come."""

    def step(self) -> None:
        """Takes one Adam step (collective)."""
        self._first_bad.record(self._norms)
        self._norms = [torch.zeros_like(norm) for norm in self._norms]
        if self._stage == 3:
            self._part_weights()
        self._engine.step()

    def set_lr(self, lr: float) -> None:
        """Sets the learning rate of the next steps."""
        for group in self._adam.param_groups:
            group["lr"] = lr

    def nonfinite(self) -> str | None:
        """The first parameter with a non-finite gradient on any rank since the last call.

        MedrayError where gradients came in another order on another rank: stage 2 and up send them
        in that order, and would add up different parameters in silence.
        """
        told = self._context.gather((self._first_bad.read(), self._arrivals))
        if len({arrivals for _, arrivals in told}) > 1 and self._stage > 1:
            raise MedrayError(
                f"gradients came in another order on another rank, ZeRO stage {self._stage} needs "
                "losses of one form on all ranks",
                hint="use --zero-stage 0 or 1, or --engine torch",
            )
        found = [index for index, _ in told if index is not None]
        return self._first_bad.name(min(found)) if found else None

    def optimizer_state(self) -> engine.State:
        """Adam's whole state by name, gathered from the ranks (collective)."""
        state: engine.State = {"step": torch.tensor(self._get_step(), dtype=torch.int64)}
        for moment in engine.MOMENTS:
            for name, parameter in self._named.items():
                state[f"{moment}.{name}"] = self._get(parameter, moment)
        return state

    def load_optimizer_state(self, state: engine.State) -> None:
        """Sets Adam's state by name and reads it back (collective)."""
        engine.check_state(state, self._shapes, engine.MOMENTS)
        for moment in engine.MOMENTS:
            for name, parameter in self._named.items():
                self._set(parameter, state[f"{moment}.{name}"], moment)
        self._set_step(int(state["step"]))
        self._compare(state, self.optimizer_state())

    def full_parameters(self) -> engine.State:
        """The whole parameters by name (collective)."""
        if self._stage < 3:
            return {name: parameter.detach() for name, parameter in self._named.items()}
        return {name: self._get(parameter, None) for name, parameter in self._named.items()}

    def load_parameters(self, state: engine.State) -> None:
        """Sets the parameters by name, DeepSpeed's own copies too, and reads them back."""
        engine.check_state(state, self._shapes, ("",))
        for name, parameter in self._named.items():
            if self._stage < 3:
                parameter.data.copy_(state[name])
            if self._stage > 0:
                self._set(parameter, state[name], None)
        self._compare(state, self.full_parameters())

    def close(self) -> None:
        """Takes DeepSpeed's hooks off the network, which has its whole parameters again."""
        whole = self.full_parameters() if self._stage == 3 else {}
        for hook in self._hooks:
            hook.remove()
        self._engine.destroy()
        for name, value in whole.items():
            _strip(self._named[name])
            self._named[name].data = value
        for owner in self._owners:
            if self._stage == 3:
                owner._parameters = owner.__dict__.pop("_original_parameters")

    def _get_step(self) -> int:
        return int(next(iter(self._adam.state.values()))["step"])

    def _set_step(self, step: int) -> None:
        for own in self._adam.state.values():
            own["step"].fill_(float(step))

    def _get(self, parameter: torch.nn.Parameter, moment: str | None) -> torch.Tensor:
        """A whole parameter (None) or moment, in the parameter's own strides."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        if self._stage == 0:
            return parameter.detach() if moment is None else self._adam.state[parameter][moment]
        if moment is None:
            flat = safe_get_full_fp32_param(parameter)
        else:
            flat = safe_get_full_optimizer_state(parameter, moment)
        return flat.detach().clone()  # type: ignore[no-any-return]

    def _set(self, parameter: torch.nn.Parameter, value: torch.Tensor, moment: str | None) -> None:
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        value = value.to(parameter.device, torch.float32)
        if self._stage == 3:
            self._set_part(parameter, value, moment)
        elif self._stage == 0:
            target = parameter.data if moment is None else self._adam.state[parameter][moment]
            target.copy_(value)
        elif moment is None:
            safe_set_full_fp32_param(parameter, value)
        else:
            safe_set_full_optimizer_state(parameter, value, moment)

    def _set_part(
        self, parameter: torch.nn.Parameter, value: torch.Tensor, moment: str | None
    ) -> None:
        """Stage 3: sets this rank's part, padded where the ranks do not divide the elements.

        DeepSpeed's own setter of whole values fails at that padding.
        """
        from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

        own: torch.Tensor = vars(parameter)["ds_tensor"]
        count = own.numel()
        padded = torch.zeros(count * self._context.world, device=value.device)
        padded[: value.numel()] = value.reshape(-1)
        part = padded.narrow(0, count * self._context.rank, count)
        if moment is None:
            own.data.copy_(part.view_as(own))
            safe_set_local_fp32_param(parameter, part)
        else:
            safe_set_local_optimizer_state(parameter, part, moment)

    def _compare(self, wanted: engine.State, got: engine.State) -> None:
        """ResourceError on every rank unless what was set reads back bit for bit on all."""
        wrong = [
            name
            for name, value in got.items()
            if not torch.equal(value.cpu(), wanted[name].to(value.dtype).cpu())
        ]
        if self._context.any(bool(wrong)):
            raise ResourceError(
                f"DeepSpeed did not take {wrong or 'a value on another rank'}",
                hint="resume with --engine torch",
            )


def owners(
    module: torch.nn.Module, parameters: Iterable[torch.nn.Parameter]
) -> list[torch.nn.Module]:
    """The submodules that hold one of `parameters` directly."""
    wanted = {id(parameter) for parameter in parameters}
    return [
        one
        for one in module.modules()
        if any(id(parameter) in wanted for parameter in one.parameters(recurse=False))
    ]


def _strip(parameter: torch.nn.Parameter) -> None:
    """Takes off what stage 3 has hung on a parameter, so that it is a plain one again."""
    for name in list(vars(parameter)):
        delattr(parameter, name)
