"""The radial function's Triton kernels."""
