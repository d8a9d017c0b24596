"""Hospital files -> shards: `config`, `sources`, `deidentify`, `split`, `plan`, `worker`, `pack`.

A plan says which file becomes which key in which shard; a shard is a pure function of the plan and
of the files, so any number of workers, and any number of interruptions, give the same bytes.
"""
