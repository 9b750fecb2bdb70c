"""What a person asks for. Operations emit events and return results; they print nothing."""
