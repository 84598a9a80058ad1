"""What metrics look at: the activations of a network, or pixels."""
