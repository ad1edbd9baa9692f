"""Papers' tables as protocols, each a TOML file of this folder, and how they are carried out."""
