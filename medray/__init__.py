"""medray: from a small, imbalanced, labelled set of medical images to an audited synthetic archive.

The story, in the order of its stages. Each is a folder; they meet on disk, not by import:

1. `pack`      hospital files -> shards
2. `stream`    shards -> batches on this rank
3. `train`     batches -> weights

What the stages share: `records` (the nouns), `config`, `rng` (addresses for random numbers),
`store` (folders and object stores), `shards` (the one on-disk format), `rundir` and `checkpoints`,
`phantoms` (made-up images with known truth), `images`, `metrics`, `models` (networks), `dist` (the
cluster).

Importing this package imports no Ray, no torch and no CuPy.
"""

__version__ = "0.1.0"
