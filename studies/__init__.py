"""Experiments made with Lowland as any user would make them: public names alone, outside the package."""
