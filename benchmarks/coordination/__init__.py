"""What workers take: lateness of timers, take-over after a kill, moves of partitions."""
