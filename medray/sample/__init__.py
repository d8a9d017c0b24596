"""Stage 4: weights -> images and features."""
