"""Decoder, paged cache, block pool and sampler: what target and draft workers share. Torch lives here."""
