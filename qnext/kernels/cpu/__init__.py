"""Fast kernels for CPUs, in Python: compiled by Numba, with the SIMD instructions of `simd`."""
