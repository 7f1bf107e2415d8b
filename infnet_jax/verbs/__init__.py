"""One file a verb of `infnet-jax`, named as it is typed."""
