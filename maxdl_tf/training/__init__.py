"""Training: devices, the step, the loop around it, optimizers."""
