"""Evaluators, and validation within a training run."""
