"""Text in, verdict out."""
