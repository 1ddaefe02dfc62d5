"""The training losses: the PQ-style loss, its auxiliary losses, and the loss of pretraining (architecture section 6)."""
