"""Which runs a comparison takes, and where they are carried out."""
