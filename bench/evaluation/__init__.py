"""What a trained student costs, and what it knows."""
