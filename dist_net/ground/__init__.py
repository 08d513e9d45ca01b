"""What every room may use: files, times, names, vectors, records and checkpoints."""
