"""The engine on a GPU: tensors on the device, rounds as graphs."""
