"""Other libraries on the same server, with the same settings, payload and number of processes, in the same run."""
