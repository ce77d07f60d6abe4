"""What the ranks of one run have in common."""
