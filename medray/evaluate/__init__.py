"""Is it any good: distances to real images, memorisation, membership, diversity, and the report."""
