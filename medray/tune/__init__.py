"""Stage 7: how much synthetic data, of which kind, helps a task, and whether that is real or luck.

`data` holds what a search may see (never a test row) and opens the test rows once; `spaces` and
`arms` say what is tried; `features` and `images` are the two kinds of trial; `search` proposes
trials and stops the hopeless, `local` and `on_ray` run them; `verdict` says what came of it.
"""
