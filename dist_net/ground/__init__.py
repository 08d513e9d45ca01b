"""Shared by all packages: files, times, names, vectors, records and checkpoints."""
