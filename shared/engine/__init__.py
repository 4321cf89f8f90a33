"""Decoder, paged cache, block pool and sampler, shared by the workers. Torch lives here."""
