"""What came out: the run store, MLflow, statistics, tables and the leaderboard."""
