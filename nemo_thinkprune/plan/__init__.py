"""`thinkprune plan`: what a recipe needs of its GPUs, phase by phase, before it runs."""
