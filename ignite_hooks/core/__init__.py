"""The foundations: adapter to Ignite, handlers, scopes, checked fields, the trainer protocol."""
