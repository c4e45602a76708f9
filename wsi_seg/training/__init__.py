"""Training: recipe in, model bundle out."""
