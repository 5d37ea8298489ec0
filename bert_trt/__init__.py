"""What the scripts share. Scripts import this package, never the other way round."""
