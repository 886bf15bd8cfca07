"""Floor 9: benchmarks of kernels, steps, growth and block swaps."""
