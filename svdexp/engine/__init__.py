"""What `compress` calls."""
