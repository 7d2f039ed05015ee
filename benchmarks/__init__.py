"""What the store's operations cost, as ratios to two floors measured in the same run; `make bench`."""
