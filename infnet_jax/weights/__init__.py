"""Public PyTorch weights, read without PyTorch."""
