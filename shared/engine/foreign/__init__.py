"""Models of other architectures than our decoder's: transformers' modules over our paged cache."""
