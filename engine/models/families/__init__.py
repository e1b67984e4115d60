"""The families of models as rows, a file per kind, and what a row says."""
