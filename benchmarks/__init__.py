"""Latency, load, quality and cost: each a command that asserts correctness first, prints a table and ends in JSON."""
