"""Healing: short trainings that bring back what an edit took, by LoRA and by distillation from the dense model."""
