"""Who may do what on this server."""
