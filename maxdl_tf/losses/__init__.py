"""The training losses: PQ-style and auxiliary (architecture sections 5 and 6)."""
