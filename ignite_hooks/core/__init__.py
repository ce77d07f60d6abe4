"""The foundations: the adapter to Ignite, handlers, scopes, checked fields, the trainer protocol."""
