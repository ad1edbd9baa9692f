"""Many experiments: suites, tuning, workers, and the command line."""
