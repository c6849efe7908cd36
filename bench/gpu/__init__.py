"""Benchmarks for machines with an NVIDIA GPU; everything also runs, tiny, on the CPU."""
