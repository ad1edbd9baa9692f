"""A suite as a static site: tables, charts, and a card for each method, in files that open from disk."""
