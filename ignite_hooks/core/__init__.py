"""The modules that all other packages use: engines, handlers, scopes, field types, checks."""
