"""Context managers of users, entered and left around the parts of the training loop."""
