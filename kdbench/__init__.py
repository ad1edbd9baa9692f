"""Knowledge distillation, compared honestly."""
