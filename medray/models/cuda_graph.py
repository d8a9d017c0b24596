"""A network's pass at one shape, recorded once and replayed: a small network's time is launches."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# Passes before the recording, in which libraries choose their algorithms and take their memory.
WARM = 3


class CudaGraph:
    """A function of one tensor, recorded at the shape and type of `example` (on a GPU).

    It gives what the function gives, to the bit: the same kernels in the same order. Safe from
    several threads. The function must not wait for the GPU; record it under the same settings
    (inference mode, cuDNN's flags) as it is to have.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], example: Tensor) -> None:
        self._lock = threading.Lock()
        self._input = example.clone()
        stream: Any = torch.cuda.Stream(example.device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(example.device))
        with torch.cuda.stream(stream):
            for _ in range(WARM):
                function(self._input)
        torch.cuda.current_stream(example.device).wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        # Other threads may use the GPU meanwhile: their calls are not recorded and do no harm.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._output = function(self._input)

    def __call__(self, values: Tensor) -> Tensor:
        """The function's result for values of the recorded shape, on either device."""
        # One at a time: the next one's input would overwrite this one's.
        with self._lock:
            self._input.copy_(values)
            self._graph.replay()
            return self._output.clone()
