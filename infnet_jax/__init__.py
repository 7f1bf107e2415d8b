"""Self-supervised Inf-Net for COVID-19 chest CT: lesion segmentation and severity, in JAX."""

__version__ = "0.2.0"
