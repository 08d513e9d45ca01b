"""What a planned cluster would do: measured costs, run through the shipped state machines."""
