"""Stage 3: batches -> weights. The loop owns cadence, an algorithm owns the step."""
