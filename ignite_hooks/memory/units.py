"""What memory is counted in."""

__all__ = ["KIB", "MIB"]

KIB = 2**10
MIB = 2**20
