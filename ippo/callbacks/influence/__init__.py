"""The inside of the influence filter."""
