"""The trainer: recipes, one flat loop, checkpoints, timing and reports."""
