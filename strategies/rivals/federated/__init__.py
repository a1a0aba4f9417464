"""Federated rivals: methods of other papers in which no interaction leaves a device, simulated in one process."""
