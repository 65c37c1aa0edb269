"""The analyses: one finding per file."""
