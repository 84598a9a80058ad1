"""Numbers as tables: csv, markdown, LaTeX."""
