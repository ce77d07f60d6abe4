"""Context managers that users put around parts of the training loop, such as a step."""
