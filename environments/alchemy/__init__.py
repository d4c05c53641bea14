"""Alchemy-Random: combine elements until the target is made; what makes what is hidden."""
