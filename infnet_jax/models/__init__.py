"""Networks as Flax linen modules: NHWC in, float32 parameters, compute dtype by argument."""
