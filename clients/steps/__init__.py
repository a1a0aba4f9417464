"""What the devices of a node do in a step: who takes part, what they contribute, in the clear and masked."""
