"""What lies in a folder, and the proof that two hold the same model."""
