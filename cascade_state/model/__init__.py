"""The domain: frozen values and pure rules, one entity a file. Imports nothing above `errors`."""
