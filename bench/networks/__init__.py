"""Networks: building, loading, observing them, and how they are computed."""
