"""The reader study: who may read (`desk.py`), what is kept (`store.py`), HTTP (`routes.py`)."""
