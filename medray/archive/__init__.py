"""Keep what was made: labelled shards of synthetic images, each with an address."""
