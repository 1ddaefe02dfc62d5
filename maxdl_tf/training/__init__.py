"""Training: where it runs, what it optimises, what it saves, and the loop around it."""
