"""What an update of the weights costs."""
