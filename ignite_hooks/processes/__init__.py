"""Collectives and checks that keep the ranks of one run alike."""
