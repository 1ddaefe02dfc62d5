"""The models: variants as tables, the backbone, the stacked decoder, the heads, and the whole."""
