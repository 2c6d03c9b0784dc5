"""The ways to compute attention, one file each; `polyhead.kernels.select` picks among them."""
