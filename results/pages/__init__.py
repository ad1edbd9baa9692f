"""Numbers as pages: terminal, markdown, LaTeX, CSV, pictures."""
