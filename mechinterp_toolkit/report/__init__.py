"""Running analyses over checkpoints, and the page that shows what was found."""
