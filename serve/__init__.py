"""Synthesis, classification and explanation over HTTP, on Ray Serve or in one process.

`serve.app:app` is what `serve run` and `serve deploy` take. A request goes through the gate
(`gate.py`: keys, limits, metrics, errors), a route (`routes/`), and `services.py`'s interface to
the models, which run in this process (`in_process.py`) or in replicas (`deployments.py`).
"""
