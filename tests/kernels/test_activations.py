"""What stands around a convolution: the `.cu` bodies on the CPU, and on a GPU the whole layers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medray.kernels import activations
from medray.models import ops
from tests.kernels import emulate

needs_compiler = pytest.mark.skipif(not emulate.HAS_COMPILER, reason="g++ is not here")
TYPES = {torch.float32: 2e-6, torch.bfloat16: 2.0**-7}
SHAPES = [(7, 4), (9, 6), (5, 64), (3, 512)]
GRID, BLOCK = 4, (2, 4)


def rows(shape, dtype, seed=0):
    torch.manual_seed(seed)
    return torch.randn(shape).to(dtype)


def whole(kernel, out, arguments, **defines):
    """A kernel with a row of threads for each row, as the launcher shapes it."""
    if out.shape[1] % 4 == 0:
        defines["WHOLE"] = 1
    head = [out, np.int64(len(out)), np.uint32(out.shape[1])]
    defines["TYPE"] = emulate.c_type(out)
    emulate.launch("activations", kernel, GRID, BLOCK, head + arguments, **defines)


def close(made, expected, dtype):
    np.testing.assert_allclose(made.float().numpy(), expected, rtol=TYPES[dtype], atol=TYPES[dtype])


@needs_compiler
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_bias_and_leaky_relu_are_the_definition(shape, dtype):
    y, bias = rows(shape, dtype), rows(shape[1:], dtype, 1)
    expected = activations.bias_leaky_ref(y.float().numpy(), bias.float().numpy())
    emulate.launch_rows("activations", "bias_leaky", y, [bias])
    close(y, expected, dtype)


@needs_compiler
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_norm_and_its_gradient_are_the_definitions(shape, dtype):
    y, bias, scales = rows(shape, dtype), rows(shape[1:], dtype, 1), torch.empty(shape[0])
    expected, scale = activations.bias_leaky_norm_ref(y.float().numpy(), bias.float().numpy())
    whole("bias_leaky_norm", y, [bias, scales])
    close(y, expected, dtype)
    np.testing.assert_allclose(scales, scale, rtol=1e-6)
    g, by = rows(shape, dtype, 2), torch.empty(shape, dtype=dtype)
    whole("leaky_norm_gradient", by, [g, y, scales])
    gradient = activations.leaky_norm_gradient_ref(g.float().numpy(), y.float().numpy(), scale)
    close(by, gradient, dtype)


@needs_compiler
def test_without_the_barrier_the_norm_is_wrong():
    y, bias, scales = rows((5, 64), torch.float32), torch.zeros(64), torch.empty(5)
    expected, _ = activations.bias_leaky_norm_ref(y.numpy(), bias.numpy())
    whole("bias_leaky_norm", y, [bias, scales], NO_BARRIER=1)
    assert not np.allclose(y, expected, rtol=1e-3)


@needs_compiler
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("channels, width", [(4, 1), (8, 4), (64, 2)])
def test_halving_and_spreading_are_torchs(channels, width, dtype):
    torch.manual_seed(0)
    shape = (3, channels, 2 * width, 2 * width)
    x = torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last)
    small = torch.nn.functional.avg_pool2d(x.float(), 2)
    out = torch.empty(3 * width * width, channels, dtype=dtype)
    log_width = np.uint32(width.bit_length() - 1)
    emulate.launch_rows("activations", "halve_pixels", out, [activations._rows(x), log_width])
    close(out, activations._rows(small).numpy(), dtype)
    back = torch.empty(12 * width * width, channels, dtype=dtype)
    arguments = [out, log_width]
    emulate.launch_rows("activations", "spread_pixels", back, arguments, rows=len(out))
    made = out.view(3, width, width, channels).permute(0, 3, 1, 2).float()
    large = torch.nn.functional.interpolate(made * 0.25, scale_factor=2, mode="nearest")
    close(back, activations._rows(large).numpy(), dtype)


def test_the_kernels_are_for_a_gpu():
    assert not activations.fits(torch.zeros(1, 4, 2, 2))
    assert [activations.halves(width) for width in (0, 1, 3, 64)] == [False, True, False, True]


# --- on a GPU -----------------------------------------------------------------------------------

on_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]


def image(channels, px, device):
    torch.manual_seed(channels)
    x = torch.randn(3, channels, px, px).to(device)
    return x.contiguous(memory_format=torch.channels_last).requires_grad_(True)


@pytest.mark.parametrize("channels", [pytest.param(c, marks=on_gpu) for c in (4, 6, 32)])
def test_layers_on_a_gpu_give_the_cpus_values_and_gradients(channels):
    found = []
    for device in ("cpu", "cuda"):
        x = image(channels, 8, device)
        torch.manual_seed(0)
        weight = torch.randn(channels, channels, 3, 3).to(device).requires_grad_(True)
        bias = torch.randn(channels).to(device).requires_grad_(True)
        with torch.backends.cudnn.flags(allow_tf32=False):
            made = ops.halve(ops.conv_leaky(x, weight, bias))
            # A gradient penalty: once more through the gradients.
            (slope,) = torch.autograd.grad(made.square().sum(), x, create_graph=True)
            slope.square().sum().backward()
            more = [x.grad.clone(), weight.grad.clone(), bias.grad.clone()]
            x.grad = weight.grad = bias.grad = None
            conv = torch.nn.functional.conv2d
            ops.conv_leaky_norm(conv, x, weight, bias, 1, 1).pow(3).sum().backward()
        found.append([made, *more, x.grad, weight.grad, bias.grad])
    for one, other in zip(*found, strict=True):
        one, other = one.detach(), other.detach().cpu()
        assert float((one - other).norm() / one.norm()) < 1e-4
