"""The gpusched service."""
