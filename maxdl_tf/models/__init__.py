"""The networks: tables of variants, encoder, stacked decoder, heads, and the whole models built of them."""
