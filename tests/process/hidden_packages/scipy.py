"""Stands before the real one, where dist_net's processes run: numba imports it if it can."""

raise ImportError("importing scipy takes 0.2 s of CPU, and nothing here computes with it")
