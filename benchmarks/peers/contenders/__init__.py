"""One module for each contender; each imports its library only when it runs, in the environment of the peers."""
