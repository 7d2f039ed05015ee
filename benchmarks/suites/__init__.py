"""The benchmarks, one module for each subject; `benchmarks.registry` says how to add one."""
