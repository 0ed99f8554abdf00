"""Who may do what: keys, scopes."""
