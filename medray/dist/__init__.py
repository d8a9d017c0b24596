"""The cluster as two small objects: a context (rank, size, device, collectives, stop) and an engine
(gradients averaged over the ranks, then Adam).

`context.launch` runs one worker function under Ray Train, as plain processes in torchrun's form, or
right here; the worker sees the same `Context` each time. `engine.make_engine` wraps a network for
plain torch or DeepSpeed. Nothing here imports Ray, torch or DeepSpeed before it is used.
"""
