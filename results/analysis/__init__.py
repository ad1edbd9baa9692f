"""From records to numbers: leaderboards, comparisons, statistics, published results."""
