"""What coordination costs: wake-ups, lateness, batches, take-overs, moves."""
