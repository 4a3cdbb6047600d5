"""What a StarCoder is: configuration, decoder, attention, positions."""
