"""The training losses: PQ-style, auxiliary, and the loss of pretraining (architecture section 6)."""
