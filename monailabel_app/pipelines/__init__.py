"""Where the parts meet: whole jobs, called by the command line and by the server's adapters."""
