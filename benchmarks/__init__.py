"""`python -m benchmarks`: how fast, each figure beside its floor in the same run. See README.md."""
