"""What a running server counts about itself, in the form that Prometheus reads."""
