"""What a run is: typed, strict, no torch."""
