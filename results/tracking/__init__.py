"""Records to MLflow."""
