"""What the whole package stands on."""
