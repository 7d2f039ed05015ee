"""The second back end: the same contract, kept in the memory of one process.

It is a real one, with transactions, row locks, savepoints and isolation, so that a test on it means
something. Nothing is written to disk: what a store holds vanishes with the last opening of it.
"""
