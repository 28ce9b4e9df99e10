"""Training: the same modules, prompts and samplers as inference."""
