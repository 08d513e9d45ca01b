"""Predict a planned cluster's throughput: the shipped state machines, timed by measured costs."""
