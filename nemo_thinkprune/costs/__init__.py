"""What a run costs, as arithmetic on a model and a recipe: parameters, bytes, FLOPs, seconds.  No torch."""
